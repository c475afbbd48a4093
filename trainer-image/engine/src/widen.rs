//! Stored numbers as `f32`, and the search for one that is not finite. Here, because this crate is compiled for speed: a model of
//! 1 GB has half a billion of them.

/// A type in which numbers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredType {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of an [`F32`](Self::F32).
    Bf16,
}

/// Converts little-endian numbers. What is left over of the longer side is ignored.
pub fn widen(stored: StoredType, bytes: &[u8], to: &mut [f32]) {
    let halves = to.iter_mut().zip(bytes.as_chunks::<2>().0).map(|(to, bytes)| (to, u16::from_le_bytes(*bytes)));
    match stored {
        StoredType::F32 => {
            for (to, bytes) in to.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *to = f32::from_le_bytes(*bytes);
            }
        }
        StoredType::F16 => {
            for (to, bits) in halves {
                *to = half::f16::from_bits(bits).to_f32();
            }
        }
        StoredType::Bf16 => {
            for (to, bits) in halves {
                *to = f32::from_bits(u32::from(bits) << 16);
            }
        }
    }
}

/// Returns the place of the first number that is infinite or not a number.
pub fn first_not_finite(numbers: &[f32]) -> Option<usize> {
    // In blocks without a branch, which the compiler turns into vector instructions.
    const BLOCK: usize = 1024;
    let exponent = f32::INFINITY.to_bits();
    let is_finite = |block: &[f32]| block.iter().fold(true, |all, x| all & (x.to_bits() & exponent != exponent));
    let block = numbers.chunks(BLOCK).position(|block| !is_finite(block))?;
    numbers[block * BLOCK..].iter().position(|x| !x.is_finite()).map(|at| block * BLOCK + at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_is_what_the_library_says() {
        let bits: Vec<u16> = (0..=u16::MAX).collect();
        let bytes: Vec<u8> = bits.iter().flat_map(|bits| bits.to_le_bytes()).collect();
        let widened = |stored| {
            let mut to = vec![0.0; bits.len()];
            widen(stored, &bytes, &mut to);
            to.into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        // Signalling NaNs: the library makes them quiet.
        let same = |found: Vec<u32>, expected: Vec<f32>| {
            found.into_iter().zip(expected).all(|(found, expected)| {
                found == expected.to_bits() || (f32::from_bits(found).is_nan() && expected.is_nan())
            })
        };
        assert!(same(
            widened(StoredType::Bf16),
            bits.iter().map(|bits| half::bf16::from_bits(*bits).to_f32()).collect()
        ));
        assert!(same(widened(StoredType::F16), bits.iter().map(|bits| half::f16::from_bits(*bits).to_f32()).collect()));
        let numbers = [1.5, -0.0, f32::MIN_POSITIVE / 2.0, f32::INFINITY];
        let mut to = [0.0; 4];
        widen(StoredType::F32, &numbers.map(f32::to_le_bytes).concat(), &mut to);
        assert_eq!(to.map(f32::to_bits), numbers.map(f32::to_bits));
    }

    #[test]
    fn the_first_number_that_is_not_finite_is_found() {
        assert_eq!(first_not_finite(&[]), None);
        for count in [1, 1023, 1024, 1025, 5000] {
            let mut numbers = vec![f32::MAX; count];
            assert_eq!(first_not_finite(&numbers), None);
            for (at, value) in [(count - 1, f32::NAN), (count / 2, f32::NEG_INFINITY), (0, f32::INFINITY)] {
                numbers[at] = value;
                assert_eq!(first_not_finite(&numbers), Some(at), "{count}");
            }
        }
    }
}
