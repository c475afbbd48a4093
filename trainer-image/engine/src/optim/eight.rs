//! Numbers in eight bits: dynamic quantization in blocks, for the moments of AdamW (Dettmers et al. 2022, arXiv 2110.02861). Pure.
//!
//! Map, size of blocks and the tensors that stay in 32 bits are those of bitsandbytes. A block of 256 numbers is divided by its largest
//! magnitude, and each quotient becomes the nearest of 256 numbers, which are dense near 0 and near 1. The only operations are single
//! divisions, multiplications and comparisons of `f32`, so that the bits are the same on every processor.

use std::sync::LazyLock;

use crate::Layout;

/// Numbers of a block, which share a scale.
pub(crate) const BLOCK: usize = 256;
/// Numbers of the smallest tensor that is quantized.
pub(crate) const LEAST: usize = 4096;
/// Decades of the map below 1.
const DECADES: i32 = 7;
/// The lowest bits of a float that the table of first guesses leaves out: it has 64 entries for each power of two.
const SHIFT: u32 = 17;
/// Index of the last entry of that table, which is that of 1.
const LAST: usize = (1.0_f32.to_bits() >> SHIFT) as usize;

/// Which of the two maps numbers are quantized by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sign {
    /// From −1 to 1, for first moments.
    Signed,
    /// From 0 to 1, for second moments.
    Unsigned,
}

/// The numbers of the codes.
struct Map {
    sign: Sign,
    /// The number of each code, in ascending order.
    values: [f32; 256],
    /// The numbers that are not negative, in ascending order.
    magnitudes: Vec<f32>,
    /// The middle between each magnitude and the next one.
    middles: Vec<f32>,
    /// For the upper bits of a quotient, the index of the magnitude nearest to the smallest number with these bits.
    guesses: Vec<u8>,
}

static SIGNED: LazyLock<Map> = LazyLock::new(|| Map::new(Sign::Signed));
static UNSIGNED: LazyLock<Map> = LazyLock::new(|| Map::new(Sign::Unsigned));

impl Map {
    /// Makes the map as `create_dynamic_map` of bitsandbytes does: decade `i` from the lowest has 2ⁱ numbers of each sign, or 2ⁱ⁺¹ if
    /// there is one sign: the middles of equal parts of the decade from 0.1 to 1. Beside them are 0 and 1.
    fn new(sign: Sign) -> Self {
        let mut magnitudes = vec![0.0];
        for decade in 0..DECADES.unsigned_abs() {
            let count = match sign {
                Sign::Signed => 1_u32 << decade,
                Sign::Unsigned => 2 << decade,
            };
            let power = 10_f64.powi(DECADES - 1 - decade.cast_signed());
            magnitudes.extend((0..count).map(|part| {
                let middle = 0.1 + 0.9 * f64::from(2 * part + 1) / f64::from(2 * count);
                (middle / power) as f32
            }));
        }
        magnitudes.push(1.0);
        let negative = match sign {
            Sign::Signed => magnitudes.len() - 2,
            Sign::Unsigned => 0,
        };
        let mut values = [0.0; 256];
        let below = magnitudes[1..=negative].iter().rev().map(|x| -x);
        for (value, number) in values.iter_mut().zip(below.chain(magnitudes.iter().copied())) {
            *value = number;
        }
        let middles: Vec<f32> = magnitudes.windows(2).map(|pair| (pair[0] + pair[1]) * 0.5).collect();
        let nearest = |x: f32| middles.partition_point(|middle| *middle < x) as u8;
        let guesses = (0..=LAST as u32).map(|bits| nearest(f32::from_bits(bits << SHIFT))).collect();
        Self { sign, values, magnitudes, middles, guesses }
    }

    fn of(sign: Sign) -> &'static Self {
        match sign {
            Sign::Signed => &SIGNED,
            Sign::Unsigned => &UNSIGNED,
        }
    }

    /// Returns the code of a quotient from −1 to 1. A number in the middle between two becomes the lower one. As in bitsandbytes, a
    /// negative number never becomes 0. Neither does a positive one without a sign: AdamW divides by the root of second moments.
    fn code(&self, quotient: f32) -> u8 {
        let magnitude = quotient.abs();
        let mut index = usize::from(self.guesses[((magnitude.to_bits() >> SHIFT) as usize).min(LAST)]);
        if self.sign == Sign::Signed && quotient < 0.0 {
            // The mirror of the numbers above 0, without 1. The lower number is the one with the larger magnitude.
            let zero = self.magnitudes.len() - 2;
            while index < zero && self.middles[index] <= magnitude {
                index += 1;
            }
            return (zero - index.clamp(1, zero)) as u8;
        }
        while index < self.middles.len() && self.middles[index] < magnitude {
            index += 1;
        }
        match self.sign {
            Sign::Signed => (index + self.magnitudes.len() - 2) as u8,
            Sign::Unsigned => index.max(usize::from(magnitude > 0.0)) as u8,
        }
    }
}

/// Writes the numbers of a block.
pub(crate) fn expand(sign: Sign, codes: &[u8], scale: f32, numbers: &mut [f32]) {
    let values = &Map::of(sign).values;
    for (number, code) in numbers.iter_mut().zip(codes) {
        *number = values[usize::from(*code)] * scale;
    }
}

/// Writes the codes of a block, and returns its scale, the largest magnitude. It is NaN if a number is not finite, so that such numbers
/// are not lost.
pub(crate) fn compress(sign: Sign, numbers: &[f32], codes: &mut [u8]) -> f32 {
    let map = Map::of(sign);
    let most = numbers.iter().fold(0.0_f32, |most, number| most.max(number.abs()));
    if numbers.iter().any(|number| !number.is_finite()) {
        codes.fill(map.code(1.0));
        return f32::NAN;
    }
    if most == 0.0 {
        codes.fill(map.code(0.0));
        return 0.0;
    }
    for (code, number) in codes.iter_mut().zip(numbers) {
        *code = map.code(number / most);
    }
    most
}

/// Numbers for the tensors of a layout, one for each parameter: those of large tensors in eight bits, those of small ones in `f32`.
#[derive(Clone, Debug, PartialEq)]
pub struct EightBit {
    /// The codes of large tensors, one tensor after another.
    codes: Vec<u8>,
    /// The scales of their blocks. Every tensor begins a block.
    scales: Vec<f32>,
    /// The numbers of small tensors.
    small: Vec<f32>,
}

/// The numbers of one tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum TensorNumbers<'a> {
    /// A small tensor.
    Small(&'a [f32]),
    /// A code for each number, and a scale for each block of 256.
    Coded(&'a [u8], &'a [f32]),
}

/// The numbers of one tensor, to be changed.
#[derive(Debug)]
pub enum TensorNumbersMut<'a> {
    /// A small tensor.
    Small(&'a mut [f32]),
    /// A code for each number, and a scale for each block of 256.
    Coded(&'a mut [u8], &'a mut [f32]),
}

impl EightBit {
    /// Whether a tensor with this many numbers is quantized.
    pub const fn takes(count: usize) -> bool {
        count >= LEAST
    }

    /// Returns the number of scales of a tensor that is quantized.
    pub const fn blocks(count: usize) -> usize {
        count.div_ceil(BLOCK)
    }

    /// Returns zeros.
    pub(crate) fn zero(layout: &Layout, sign: Sign) -> Self {
        let counts = || layout.tensors().iter().map(|tensor| tensor.range.len());
        let (large, small) = (|| counts().filter(|count| Self::takes(*count)), counts().filter(|it| !Self::takes(*it)));
        Self {
            codes: vec![Map::of(sign).code(0.0); large().sum()],
            scales: vec![0.0; large().map(Self::blocks).sum()],
            small: vec![0.0; small.sum()],
        }
    }

    /// Quantizes numbers, one for each parameter.
    pub(crate) fn of(layout: &Layout, sign: Sign, numbers: &[f32]) -> Self {
        let mut eight = Self::zero(layout, sign);
        for (tensor, into) in layout.tensors().iter().zip(eight.tensors_mut(layout)) {
            let numbers = &numbers[tensor.range.clone()];
            match into {
                TensorNumbersMut::Small(small) => small.copy_from_slice(numbers),
                TensorNumbersMut::Coded(codes, scales) => {
                    let blocks = codes.chunks_mut(BLOCK).zip(numbers.chunks(BLOCK));
                    for ((codes, numbers), scale) in blocks.zip(scales) {
                        *scale = compress(sign, numbers, codes);
                    }
                }
            }
        }
        eight
    }

    /// Returns the numbers, one for each parameter.
    pub(crate) fn numbers(&self, layout: &Layout, sign: Sign) -> Vec<f32> {
        let mut numbers = vec![0.0; layout.size()];
        for (tensor, own) in layout.tensors().iter().zip(self.tensors(layout)) {
            let numbers = &mut numbers[tensor.range.clone()];
            match own {
                TensorNumbers::Small(small) => numbers.copy_from_slice(small),
                TensorNumbers::Coded(codes, scales) => {
                    for ((numbers, codes), scale) in numbers.chunks_mut(BLOCK).zip(codes.chunks(BLOCK)).zip(scales) {
                        expand(sign, codes, *scale, numbers);
                    }
                }
            }
        }
        numbers
    }

    /// Whether the numbers are those of a layout.
    pub(crate) fn is_of(&self, layout: &Layout) -> bool {
        let (mut codes, mut scales, mut small) = (0, 0, 0);
        for count in layout.tensors().iter().map(|tensor| tensor.range.len()) {
            if Self::takes(count) {
                codes += count;
                scales += Self::blocks(count);
            } else {
                small += count;
            }
        }
        [self.codes.len(), self.scales.len(), self.small.len()] == [codes, scales, small]
    }

    /// Returns the numbers of each tensor, in the order of the layout.
    pub fn tensors(&self, layout: &Layout) -> Vec<TensorNumbers<'_>> {
        let (mut codes, mut scales, mut small) = (self.codes.as_slice(), self.scales.as_slice(), self.small.as_slice());
        let counts = layout.tensors().iter().map(|tensor| tensor.range.len());
        let take = |count| {
            if Self::takes(count) {
                let blocks = scales.split_off(..Self::blocks(count)).unwrap_or_default();
                TensorNumbers::Coded(codes.split_off(..count).unwrap_or_default(), blocks)
            } else {
                TensorNumbers::Small(small.split_off(..count).unwrap_or_default())
            }
        };
        counts.map(take).collect()
    }

    /// Returns the numbers of each tensor, in the order of the layout.
    pub fn tensors_mut(&mut self, layout: &Layout) -> Vec<TensorNumbersMut<'_>> {
        let (mut codes, mut scales) = (self.codes.as_mut_slice(), self.scales.as_mut_slice());
        let mut small = self.small.as_mut_slice();
        let counts = layout.tensors().iter().map(|tensor| tensor.range.len());
        let take = |count| {
            if Self::takes(count) {
                let blocks = scales.split_off_mut(..Self::blocks(count)).unwrap_or_default();
                TensorNumbersMut::Coded(codes.split_off_mut(..count).unwrap_or_default(), blocks)
            } else {
                TensorNumbersMut::Small(small.split_off_mut(..count).unwrap_or_default())
            }
        };
        counts.map(take).collect()
    }

    /// Returns the bytes of the numbers.
    pub(crate) fn bytes(&self) -> usize {
        self.codes.len() + size_of::<f32>() * (self.scales.len() + self.small.len())
    }

    /// Copies other numbers into these vectors.
    pub(crate) fn copy_from(&mut self, other: &Self) {
        self.codes.clone_from(&other.codes);
        self.scales.clone_from(&other.scales);
        self.small.clone_from(&other.small);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `fixtures/dynamic_map.json`, as `fixtures/dynamic_map.py` writes it by the definition of bitsandbytes.
    #[derive(serde::Deserialize)]
    struct Fixture {
        signed: Vec<f32>,
        unsigned: Vec<f32>,
        numbers: Vec<f32>,
        signed_codes: Vec<u8>,
        unsigned_codes: Vec<u8>,
    }

    #[test]
    fn maps_and_codes_are_those_of_bitsandbytes() {
        let fixture: Fixture = serde_json::from_str(include_str!("../../tests/fixtures/dynamic_map.json")).unwrap();
        for (sign, expected) in [(Sign::Signed, &fixture.signed), (Sign::Unsigned, &fixture.unsigned)] {
            let values = &Map::of(sign).values;
            assert!(values.is_sorted() && expected.len() == 256);
            for (found, expected) in values.iter().zip(expected) {
                assert!((found - expected).abs() <= 2e-7 * expected.abs(), "{sign:?}: {found} {expected}");
            }
        }
        assert_eq!((SIGNED.values[127], SIGNED.values[255], UNSIGNED.values[0]), (0.0, 1.0, 0.0));
        let mut codes = vec![0; fixture.numbers.len()];
        let most = compress(Sign::Signed, &fixture.numbers, &mut codes);
        let largest = fixture.numbers.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
        assert_eq!((most.to_bits(), &codes), (largest.to_bits(), &fixture.signed_codes));
        let magnitudes: Vec<f32> = fixture.numbers.iter().map(|x| x.abs()).collect();
        compress(Sign::Unsigned, &magnitudes, &mut codes);
        assert_eq!(codes, fixture.unsigned_codes);
    }

    /// Every number of the map keeps its code, and the number nearest to any other one is found, as by a search of all.
    #[test]
    fn the_nearest_number_is_found() {
        for sign in [Sign::Signed, Sign::Unsigned] {
            let map = Map::of(sign);
            for (code, value) in map.values.iter().enumerate() {
                assert_eq!(map.code(*value), code as u8, "{sign:?} {value}");
            }
            for step in -40_000..=40_000 {
                let x = (step as f32 / 40_000.0).powi(3);
                if sign == Sign::Unsigned && x < 0.0 {
                    continue;
                }
                let found = map.values[usize::from(map.code(x))];
                let nearest = map.values.iter().map(|value| (value - x).abs()).fold(f32::INFINITY, f32::min);
                let kept = found != 0.0 && x.abs() < map.magnitudes[1];
                assert!(kept || (found - x).abs() <= nearest + 2e-7 * x.abs(), "{sign:?} {x}: {found}");
                assert!(x == 0.0 || (sign == Sign::Signed && x > 0.0) || found != 0.0, "{x} is not lost");
            }
        }
    }

    #[test]
    fn numbers_that_are_not_finite_are_not_lost() {
        let (mut numbers, mut codes) = ([1.0_f32; 4], [0; 4]);
        numbers[2] = f32::NAN;
        assert!(compress(Sign::Signed, &numbers, &mut codes).is_nan());
        numbers[2] = f32::INFINITY;
        let scale = compress(Sign::Unsigned, &numbers, &mut codes);
        expand(Sign::Unsigned, &codes, scale, &mut numbers);
        assert!(numbers.iter().all(|number| number.is_nan()));
    }

    #[test]
    fn small_tensors_stay_in_32_bits_and_tensors_share_no_block() {
        let shapes = [("a", LEAST - 1), ("b", LEAST + 7), ("c", 3), ("d", LEAST)];
        let layout = Layout::new(shapes.map(|(name, count)| (name.to_owned(), vec![count])));
        let numbers: Vec<f32> = (0..layout.size()).map(|at| ((at * 37 % 1001) as f32 - 500.0) / 300.0).collect();
        let eight = EightBit::of(&layout, Sign::Signed, &numbers);
        assert!(eight.is_of(&layout));
        assert_eq!(eight.bytes(), 2 * LEAST + 7 + 4 * (17 + 16 + LEAST - 1 + 3));
        let back = eight.numbers(&layout, Sign::Signed);
        for (tensor, numbers_of) in layout.tensors().iter().zip(eight.tensors(&layout)) {
            let (own, found) = (&numbers[tensor.range.clone()], &back[tensor.range.clone()]);
            match numbers_of {
                TensorNumbers::Small(small) => assert!(small == own && found == own),
                TensorNumbers::Coded(codes, scales) => {
                    assert_eq!((codes.len(), scales.len()), (own.len(), own.len().div_ceil(256)));
                    assert!(own != found);
                }
            }
        }
    }

    proptest! {
        /// The error is at most half of the widest gap of the map, in units of the largest magnitude.
        #[test]
        fn the_error_is_bounded(numbers in prop::collection::vec(-1e3_f32..1e3, 1..256), power in -30_i32..20) {
            let numbers: Vec<f32> = numbers.iter().map(|x| x * 2_f32.powi(power)).collect();
            for (sign, bound) in [(Sign::Signed, 0.007_04), (Sign::Unsigned, 0.003_52)] {
                let numbers: Vec<f32> =
                    numbers.iter().map(|x| if sign == Sign::Unsigned { x.abs() } else { *x }).collect();
                let (mut codes, mut back) = (vec![0; numbers.len()], vec![0.0; numbers.len()]);
                let most = compress(sign, &numbers, &mut codes);
                expand(sign, &codes, most, &mut back);
                for (x, y) in numbers.iter().zip(&back) {
                    prop_assert!((x - y).abs() <= bound * most, "{} {} {}", x, y, most);
                    prop_assert!(x * y >= 0.0, "the sign is kept");
                }
            }
        }
    }
}
