//! The `bf16` number type: storage of activations whose products are summed in `f32`. Pure.

/// A number with an exponent of eight bits and a fraction of seven: the upper half of an `f32`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct Bf16(u16);

impl Bf16 {
    /// Rounds `x` to the nearest, ties to even. NaN stays NaN.
    #[inline(always)]
    pub(crate) fn of(x: f32) -> Self {
        let bits = x.to_bits();
        let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
        // Rounding could carry a NaN's fraction into the exponent.
        let nan = bits >> 16 | 0x40;
        Self(if x.is_nan() { nan as u16 } else { rounded as u16 })
    }

    /// Returns the sixteen bits.
    #[inline(always)]
    pub(crate) fn bits(self) -> u16 {
        self.0
    }

    /// Converts to `f32`, exactly.
    #[inline(always)]
    pub(crate) fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.0) << 16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_to_nearest_even() {
        let cases = [(1.0, 1.0), (1.003, 1.0), (1.005, 1.007_812_5), (-3.13, -3.125), (0.0, 0.0)];
        for (x, expected) in cases {
            assert!((Bf16::of(x).to_f32() - expected).abs() < f32::EPSILON, "{x}");
        }
        // Ties go to the even number.
        assert_eq!(Bf16::of(f32::from_bits(0x3f80_8000)).0, 0x3f80);
        assert_eq!(Bf16::of(f32::from_bits(0x3f81_8000)).0, 0x3f82);
        assert!(Bf16::of(f32::from_bits(0x7f80_0001)).to_f32().is_nan());
        assert!(Bf16::of(f32::NAN).to_f32().is_nan());
        assert!(Bf16::of(f32::MAX).to_f32().is_infinite());
        assert!(Bf16::of(f32::NEG_INFINITY).to_f32() == f32::NEG_INFINITY);
    }
}
