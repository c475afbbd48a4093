//! Weights of eight bits: the 32 numbers of a tile's column are whole numbers of seven bits and a sign times one power of two. Pure.
//!
//! Such a number is exact in `bf16`, whose fraction has as many bits. A product with these weights therefore has the bits of the
//! product with the same weights in `bf16`, whichever kernel computes it; only fewer bytes are read.

use std::num::FpCategory;

use pulp::Simd;
use rayon::prelude::*;

use super::{
    dispatch::dispatched,
    tile::{Block, DEPTH, Kind, Left, Pair, TILE, TILE_SIZE},
};
use crate::{
    ModelConfig, Tensor,
    model::{Linear, Model},
};

/// Bytes of a tile: for each pair of lines, those of the first line and those of the second.
pub(crate) const BYTES: usize = TILE * DEPTH;

/// The largest absolute value of a whole number.
const LARGEST: f32 = 127.0;

/// The powers of two that are stored, from 2^-84 to 2^9: sums in units of one of them, converted into units of another, are normal
/// numbers.
const POWERS: std::ops::RangeInclusive<i32> = -84..=9;

/// What is added to an exponent before it is stored.
const BIAS: i32 = 127;

/// Returns 2^`power`, for powers of normal numbers.
#[inline(always)]
fn power_of_two(power: i32) -> f32 {
    f32::from_bits((power + BIAS).cast_unsigned() << 23)
}

/// Returns the exponent of the largest power of two that is at most |`x`|, for normal numbers.
fn exponent(x: f32) -> i32 {
    (x.to_bits() >> 23 & 0xff).cast_signed() - BIAS
}

/// The power of numbers that are all 0.
const ZERO: i32 = -16;

/// Returns the power of two that belongs to the largest of some absolute values, such that this one has seven bits.
fn power(largest: f32) -> i32 {
    if largest == 0.0 { ZERO } else { exponent(largest) - 6 }
}

/// Returns the power of two in whose units every number is whole and has seven bits. `None` if there is no such power, or a number
/// is -0.
fn common_power(numbers: &[f32; DEPTH]) -> Option<i32> {
    let largest = numbers.iter().fold(0.0, |largest: f32, x| largest.max(x.abs()));
    let power = power(largest);
    let whole = |x: &f32| {
        let units = x * power_of_two(-power);
        units.fract().classify() == FpCategory::Zero && units.abs() <= LARGEST && (*x != 0.0 || x.is_sign_positive())
    };
    (POWERS.contains(&power) && numbers.iter().all(whole)).then_some(power)
}

/// Rounds numbers that share a power of two to eight bits. Of the two powers that suit the largest of them, takes that with the
/// smaller squared error: the smaller one rounds finer, but limits the largest.
pub(crate) fn round(numbers: &mut [f32]) {
    let largest = numbers.iter().fold(0.0, |largest: f32, x| largest.max(x.abs()));
    let limited = |power: i32| power.clamp(*POWERS.start(), *POWERS.end());
    let fine = limited(power(largest));
    let coarse = if largest * power_of_two(-fine) > LARGEST { limited(fine + 1) } else { fine };
    let rounded = |x: f32, power: i32| {
        let units = (x * power_of_two(-power)).round_ties_even().clamp(-LARGEST, LARGEST);
        // Without a negative zero.
        units * power_of_two(power) + 0.0
    };
    let error = |power: i32| -> f64 { numbers.iter().map(|x| f64::from(x - rounded(*x, power)).powi(2)).sum() };
    let power = if error(fine) < error(coarse) { fine } else { coarse };
    for x in numbers {
        *x = rounded(*x, power);
    }
}

/// Rounds a tensor of a model to eight bits, if it is the weight of a linear layer: groups of 32 inputs of an output share a power of
/// two. Returns whether it is one. Decoders in `bf16` then read half as many bytes, and compute the same bits as with `values` in
/// `bf16`. The values, in the order and number of the [layout](crate::Layout), must be finite.
pub fn round_to_eight_bits(config: &ModelConfig, tensor: &Tensor, values: &mut [f32]) -> bool {
    let model = Model::new(config);
    let matrices = model.matrices();
    let contains =
        |matrix: &&&Linear| matrix.weight.start <= tensor.range.start && tensor.range.end <= matrix.weight.end;
    let Some(matrix) = matrices.iter().find(contains) else { return false };
    if matrix.inputs_first {
        // The group of an output is a column.
        for lines in values.chunks_mut(DEPTH * matrix.outputs) {
            for output in 0..matrix.outputs {
                let mut group: Vec<f32> = lines.iter().skip(output).step_by(matrix.outputs).copied().collect();
                round(&mut group);
                lines.iter_mut().skip(output).step_by(matrix.outputs).zip(group).for_each(|(to, x)| *to = x);
            }
        }
    } else {
        values.par_chunks_mut(matrix.inputs).for_each(|row| row.chunks_mut(DEPTH).for_each(round));
    }
    true
}

/// Packs a tile: `number` returns the element of a line and a column, 0 beyond the last ones. Returns false, and leaves the tile
/// unspecified, if the numbers do not fit into eight bits.
pub(crate) fn pack(number: impl Fn(usize, usize) -> f32, tile: &mut [i8], powers: &mut [u8]) -> bool {
    for (lane, to) in powers.iter_mut().enumerate() {
        let numbers: [f32; DEPTH] = std::array::from_fn(|line| number(line, lane));
        let Some(power) = common_power(&numbers) else { return false };
        *to = (power + BIAS) as u8;
        for (line, x) in numbers.iter().enumerate() {
            tile[line * TILE + lane] = (x * power_of_two(-power)) as i8;
        }
    }
    true
}

/// Reads a lane of tiles: what one output is computed with.
pub(crate) fn column(tiles: &[i8], powers: &[u8], lane: usize, to: &mut [f32]) {
    let groups = to.chunks_mut(DEPTH).zip(tiles.as_chunks::<BYTES>().0).zip(powers.as_chunks::<TILE>().0);
    for ((to, tile), powers) in groups {
        for (to, line) in to.iter_mut().zip(tile.as_chunks::<TILE>().0) {
            *to = f32::from(line[lane]) * f32::from_bits(u32::from(powers[lane]) << 23);
        }
    }
}

/// Unpacks tiles into `bf16`.
pub(crate) fn unpack(tiles: &[i8], powers: &[u8], to: &mut [Pair]) {
    #[cfg(target_arch = "x86_64")]
    if matches!(super::isa::arch(), pulp::Arch::V4(_)) {
        let depth = powers.len() / TILE;
        assert!(tiles.len() >= depth * BYTES && to.len() >= depth * TILE_SIZE);
        // SAFETY: the instruction set includes AVX-512; the assertion keeps what is read and written inside its slice.
        #[allow(unsafe_code)]
        unsafe {
            x86::unpack(tiles, powers, depth, to);
        }
        return;
    }
    unpack_in_steps(tiles, powers, to);
}

dispatched!(unpack_in_steps<'a>(tiles: &'a [i8], powers: &'a [u8], to: &'a mut [Pair]) = unpack_kernel);

#[inline(always)]
fn unpack_kernel<S: Simd>(_: S, tiles: &[i8], powers: &[u8], to: &mut [Pair]) {
    let tiles = tiles.as_chunks::<BYTES>().0.iter().zip(powers.as_chunks::<TILE>().0);
    for ((tile, powers), to) in tiles.zip(to.as_chunks_mut::<TILE_SIZE>().0) {
        let mut units = [0.0; TILE];
        for lane in 0..TILE {
            units[lane] = f32::from_bits(u32::from(powers[lane]) << 23);
        }
        for (lines, to) in tile.as_chunks::<{ 2 * TILE }>().0.iter().zip(to.as_chunks_mut::<TILE>().0) {
            for lane in 0..TILE {
                let first = (f32::from(lines[lane]) * units[lane]).to_bits();
                let second = (f32::from(lines[TILE + lane]) * units[lane]).to_bits();
                // The lower halves are 0.
                to[lane] = first >> 16 | second;
            }
        }
    }
}

/// Tiles of 16 columns over the whole depth, with a power for each column of a tile.
#[derive(Clone, Copy)]
pub(crate) struct Side<'a> {
    pub(crate) tiles: &'a [i8],
    pub(crate) powers: &'a [u8],
}

/// The most rows that [`products`] takes: the registers hold their sums.
pub(crate) const ROWS: usize = 4;

/// Computes the sums of products of at most [`ROWS`] rows, which are `stride` apart, with 32 columns, as the portable kernel does with
/// the unpacked tiles, with the same bits. Returns false, and computes nothing, on a processor without AVX2 and FMA.
pub(crate) fn products(rows: &[f32], stride: usize, height: usize, sides: [Side; 2], out: &mut Block) -> bool {
    #[cfg(target_arch = "x86_64")]
    if matches!(super::isa::arch(), pulp::Arch::V3(_) | pulp::Arch::V4(_)) {
        let depth = sides[0].powers.len() / TILE;
        assert!((1..=ROWS).contains(&height) && depth > 0 && rows.len() >= (height - 1) * stride + depth * DEPTH);
        assert!(sides.iter().all(|side| side.powers.len() >= depth * TILE && side.tiles.len() >= depth * BYTES));
        // SAFETY: these instruction sets include AVX2 and FMA; the assertions keep everything that is read inside its slice.
        #[allow(unsafe_code)]
        unsafe {
            match height {
                1 => x86::products::<1>(rows, stride, sides, depth, out),
                2 => x86::products::<2>(rows, stride, sides, depth, out),
                3 => x86::products::<3>(rows, stride, sides, depth, out),
                _ => x86::products::<4>(rows, stride, sides, depth, out),
            }
        }
        return true;
    }
    let _ = (rows, stride, height, sides, out);
    false
}

/// The most rows that [`dot_products`] takes: the registers hold their sums.
pub(crate) const DOT_ROWS: usize = 8;

/// Computes the sums of products of the first `height` rows, at most [`DOT_ROWS`], with 32 columns, as [`Kind::Avx512`] does with the
/// unpacked tiles, with the same bits. The weights go from eight bits into registers, and not through memory.
#[cfg(target_arch = "x86_64")]
pub(crate) fn dot_products(left: Left, height: usize, sides: [Side; 2], out: &mut Block) {
    let depth = sides[0].powers.len() / TILE;
    assert!(Kind::all().contains(&Kind::Avx512), "the processor has AVX512-BF16");
    assert!((1..=DOT_ROWS).contains(&height) && depth > 0);
    assert!(left.data.len() >= (height - 1) * left.row + (depth - 1) * left.step + DEPTH);
    assert!(sides.iter().all(|side| side.powers.len() >= depth * TILE && side.tiles.len() >= depth * BYTES));
    // SAFETY: the processor has AVX512F and AVX512-BF16; the assertions keep everything that is read inside its slice.
    #[allow(unsafe_code)]
    unsafe {
        match height {
            1 => x86::dot_products::<1>(left, sides, depth, out),
            2 => x86::dot_products::<2>(left, sides, depth, out),
            3 => x86::dot_products::<3>(left, sides, depth, out),
            4 => x86::dot_products::<4>(left, sides, depth, out),
            5 => x86::dot_products::<5>(left, sides, depth, out),
            6 => x86::dot_products::<6>(left, sides, depth, out),
            7 => x86::dot_products::<7>(left, sides, depth, out),
            _ => x86::dot_products::<8>(left, sides, depth, out),
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    #![allow(unsafe_code)]

    use std::arch::x86_64::{
        __m512, __m512bh, __m512i, _mm_loadl_epi64, _mm_loadu_si128, _mm256_add_epi32, _mm256_broadcast_ss,
        _mm256_castsi256_ps, _mm256_cvtepi8_epi32, _mm256_cvtepi32_ps, _mm256_cvtepu8_epi32, _mm256_fmadd_ps,
        _mm256_mul_ps, _mm256_set1_epi32, _mm256_setzero_ps, _mm256_slli_epi32, _mm256_storeu_ps, _mm256_sub_epi32,
        _mm512_castps_si512, _mm512_castsi512_ps, _mm512_cvtepi8_epi32, _mm512_cvtepi32_ps, _mm512_cvtepu8_epi32,
        _mm512_dpbf16_ps, _mm512_mul_ps, _mm512_or_si512, _mm512_set1_epi32, _mm512_setzero_ps, _mm512_slli_epi32,
        _mm512_srli_epi32, _mm512_storeu_ps, _mm512_storeu_si512,
    };

    use super::{BIAS, BYTES, Block, DEPTH, Left, Pair, Side, TILE, TILE_SIZE};

    /// Returns the powers of two of a tile's columns.
    ///
    /// # Safety
    /// The processor has AVX512F; `powers` has 16 bytes.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn units(powers: *const u8) -> __m512 {
        // SAFETY: the caller's contract; read unaligned.
        let powers = unsafe { _mm_loadu_si128(powers.cast()) };
        _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_cvtepu8_epi32(powers)))
    }

    /// Returns two lines of a tile, as pairs of `bf16`.
    ///
    /// # Safety
    /// The processor has AVX512F; `lines` has 32 bytes.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn pairs(lines: *const i8, units: __m512) -> __m512i {
        let line = |at: usize| {
            // SAFETY: the caller's contract; read unaligned.
            let bytes = unsafe { _mm_loadu_si128(lines.add(at * TILE).cast()) };
            // The lower half is 0.
            _mm512_castps_si512(_mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)), units))
        };
        _mm512_or_si512(_mm512_srli_epi32::<16>(line(0)), line(1))
    }

    /// # Safety
    /// The processor has AVX512F; there are `depth` tiles with their powers, and room for as many.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn unpack(tiles: &[i8], powers: &[u8], depth: usize, to: &mut [Pair]) {
        for tile in 0..depth {
            // SAFETY: the caller's contract.
            unsafe {
                let units = units(powers.as_ptr().add(tile * TILE));
                for pair in 0..DEPTH / 2 {
                    let pairs = pairs(tiles.as_ptr().add(tile * BYTES + pair * 2 * TILE), units);
                    _mm512_storeu_si512(to.as_mut_ptr().add(tile * TILE_SIZE + pair * TILE).cast(), pairs);
                }
            }
        }
    }

    /// # Safety
    /// The processor has AVX512F and AVX512-BF16; everything that the strides of `left` reach over `R` rows and `depth` steps, and
    /// `depth` tiles of each side with their powers, lies inside their slices.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) unsafe fn dot_products<const R: usize>(left: Left, sides: [Side; 2], depth: usize, out: &mut Block) {
        let tiles = sides.map(|side| side.tiles.as_ptr());
        let powers = sides.map(|side| side.powers.as_ptr());
        let rows = left.data.as_ptr();
        let mut sums = [[_mm512_setzero_ps(); 2]; R];
        for step in 0..depth {
            // SAFETY: the caller's contract. Two neighbors in a row form one 32-bit element, read unaligned.
            unsafe {
                let units = [units(powers[0].add(step * TILE)), units(powers[1].add(step * TILE))];
                for pair in 0..DEPTH / 2 {
                    let at = step * BYTES + pair * 2 * TILE;
                    let one: __m512bh = std::mem::transmute::<__m512i, _>(pairs(tiles[0].add(at), units[0]));
                    let two: __m512bh = std::mem::transmute::<__m512i, _>(pairs(tiles[1].add(at), units[1]));
                    let column = step * left.step + 2 * pair;
                    for (row, sums) in sums.iter_mut().enumerate() {
                        let a = rows.add(row * left.row + column).cast::<i32>().read_unaligned();
                        let a: __m512bh = std::mem::transmute::<__m512i, _>(_mm512_set1_epi32(a));
                        sums[0] = _mm512_dpbf16_ps(sums[0], a, one);
                        sums[1] = _mm512_dpbf16_ps(sums[1], a, two);
                    }
                }
            }
        }
        for (sums, out) in sums.iter().zip(&mut out.0) {
            // SAFETY: a row of `out` has 32 elements.
            unsafe {
                _mm512_storeu_ps(out.as_mut_ptr(), sums[0]);
                _mm512_storeu_ps(out[TILE..].as_mut_ptr(), sums[1]);
            }
        }
    }

    /// Columns of a register.
    const LANES: usize = 8;

    /// # Safety
    /// The processor has AVX2 and FMA; `rows` has `R` rows of `depth` groups of 32, `stride` apart; each side has `depth` tiles.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn products<const R: usize>(
        rows: &[f32],
        stride: usize,
        sides: [Side; 2],
        depth: usize,
        out: &mut Block,
    ) {
        for (half, side) in sides.into_iter().enumerate() {
            let (tiles, powers) = (side.tiles.as_ptr(), side.powers.as_ptr());
            let mut sums = [[_mm256_setzero_ps(); 2]; R];
            // SAFETY: the caller's contract: the tile, its powers and the rows' 32 elements lie inside the slices.
            unsafe {
                let power = |tile: usize, part: usize| {
                    _mm256_cvtepu8_epi32(_mm_loadl_epi64(powers.add(tile * TILE + part * LANES).cast()))
                };
                let mut before = [power(0, 0), power(0, 1)];
                for tile in 0..depth {
                    // Sums are in units of the tile's powers, which changes no bit.
                    for part in 0..2 {
                        let now = power(tile, part);
                        let change = _mm256_add_epi32(_mm256_sub_epi32(before[part], now), _mm256_set1_epi32(BIAS));
                        let change = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(change));
                        for sums in &mut sums {
                            sums[part] = _mm256_mul_ps(sums[part], change);
                        }
                        before[part] = now;
                    }
                    let lines = tiles.add(tile * BYTES);
                    let x = rows.as_ptr().add(tile * DEPTH);
                    for line in 0..DEPTH {
                        let weights = [0, 1].map(|part| {
                            let bytes = _mm_loadl_epi64(lines.add(line * TILE + part * LANES).cast());
                            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes))
                        });
                        for (row, sums) in sums.iter_mut().enumerate() {
                            let x = _mm256_broadcast_ss(&*x.add(row * stride + line));
                            sums[0] = _mm256_fmadd_ps(x, weights[0], sums[0]);
                            sums[1] = _mm256_fmadd_ps(x, weights[1], sums[1]);
                        }
                    }
                }
                for (sums, out) in sums.iter().zip(&mut out.0) {
                    for part in 0..2 {
                        let unit = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(before[part]));
                        let place = out[half * TILE + part * LANES..][..LANES].as_mut_ptr();
                        _mm256_storeu_ps(place, _mm256_mul_ps(sums[part], unit));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{bf16::Bf16, tile};

    /// Tiles of numbers that fit, with powers that differ: [depth] tiles, and the same in `bf16`.
    fn tiles(depth: usize, seed: u32) -> (Vec<i8>, Vec<u8>, Vec<Pair>) {
        let number = |at: u32| at.wrapping_mul(2_654_435_761).wrapping_add(seed.wrapping_mul(0x9e37_79b9)) >> 8;
        let (mut bytes, mut powers) = (vec![0; depth * BYTES], vec![0; depth * TILE]);
        for tile in 0..depth {
            let value = |line: usize, lane: usize| {
                let at = ((tile * DEPTH + line) * TILE + lane) as u32;
                let power = (number(7 * (tile * TILE + lane) as u32) % 9).cast_signed() - 12;
                (number(at) % 255) as f32 * power_of_two(power) - 127.0 * power_of_two(power)
            };
            let (bytes, powers) = (&mut bytes[tile * BYTES..][..BYTES], &mut powers[tile * TILE..][..TILE]);
            assert!(pack(value, bytes, powers));
        }
        let mut pairs = vec![0; depth * TILE_SIZE];
        unpack(&bytes, &powers, &mut pairs);
        (bytes, powers, pairs)
    }

    #[test]
    fn packed_numbers_are_the_numbers() {
        let number = |line: usize, lane: usize| (line as f32 - 15.0) * power_of_two((lane as u32).cast_signed() - 9);
        let (mut bytes, mut powers) = (vec![0; BYTES], vec![0; TILE]);
        assert!(pack(number, &mut bytes, &mut powers));
        let mut pairs = vec![0; TILE_SIZE];
        unpack(&bytes, &powers, &mut pairs);
        for lane in 0..TILE {
            let mut read = [0.0; DEPTH];
            column(&bytes, &powers, lane, &mut read);
            for (line, read) in read.iter().enumerate() {
                let pair = pairs[line / 2 * TILE + lane];
                let half = if line % 2 == 0 { pair << 16 } else { pair & 0xffff_0000 };
                assert_eq!((*read, f32::from_bits(half)), (number(line, lane), number(line, lane)), "{line} {lane}");
            }
        }
    }

    #[test]
    fn numbers_of_more_bits_do_not_fit() {
        let (mut bytes, mut powers) = (vec![0; BYTES], vec![0; TILE]);
        let cases = [(129.0, 0.5), (1.0, 0.007), (f32::NAN, 1.0), (f32::INFINITY, 1.0), (1e30, 1e30), (1.0, -0.0)];
        for (first, other) in cases {
            let number = |line: usize, lane: usize| if line == 3 && lane == 5 { first } else { other };
            assert!(!pack(number, &mut bytes, &mut powers), "{first} {other}");
        }
        assert!(pack(|_, _| 0.0, &mut bytes, &mut powers));
    }

    #[test]
    fn rounded_numbers_fit_and_are_near() {
        for scale in [1e-12, 0.01, 1.0, 300.0] {
            for seed in 0..50_u32 {
                let numbers: [f32; DEPTH] = std::array::from_fn(|at| {
                    let bits = (at as u32 + 1).wrapping_mul(2_654_435_761).wrapping_add(seed.wrapping_mul(97_003));
                    (bits as f32 / u32::MAX as f32 - 0.5) * scale
                });
                let mut rounded = numbers;
                round(&mut rounded);
                assert!(common_power(&rounded).is_some(), "{rounded:?}");
                let largest = numbers.iter().fold(0.0, |largest: f32, x| largest.max(x.abs()));
                for (x, rounded) in numbers.iter().zip(&rounded) {
                    assert!((x - rounded).abs() <= largest / 63.0, "{x} {rounded}");
                }
                let again = rounded;
                round(&mut rounded);
                assert_eq!(again.map(f32::to_bits), rounded.map(f32::to_bits));
            }
        }
        let mut zeros = [0.0, -0.0, 0.0];
        round(&mut zeros);
        assert!(zeros.iter().all(|x| x.to_bits() == 0));
    }

    #[test]
    fn few_rows_have_the_bits_of_unpacked_tiles() {
        let depth = 5;
        let (near, far) = (tiles(depth, 1), tiles(depth, 2));
        let stride = depth * DEPTH + 3;
        let rows: Vec<f32> = (0..ROWS * stride).map(|at| tile_number(at as u32)).collect();
        let side = |tiles: &(Vec<i8>, Vec<u8>, Vec<Pair>)| -> (Vec<i8>, Vec<u8>) { (tiles.0.clone(), tiles.1.clone()) };
        let (one, two) = (side(&near), side(&far));
        for height in 1..=ROWS {
            let mut expected = Block([[f32::NAN; tile::BLOCK]; tile::BLOCK]);
            tile::products(&rows, stride, height, [&near.2, &far.2], depth, &mut expected);
            let mut found = Block([[f32::NAN; tile::BLOCK]; tile::BLOCK]);
            let sides = [&one, &two].map(|(tiles, powers)| Side { tiles, powers });
            let computed = products(&rows, stride, height, sides, &mut found);
            let portable = matches!(crate::arch(), pulp::Arch::Scalar);
            assert_eq!(computed, cfg!(target_arch = "x86_64") && !portable, "{height}");
            if computed {
                let bits = |block: &Block| -> Vec<u32> {
                    block.0[..height].as_flattened().iter().map(|x| x.to_bits()).collect()
                };
                assert_eq!(bits(&expected), bits(&found), "{height}");
            }
        }
    }

    #[test]
    fn tiles_unpack_alike_on_every_processor() {
        let (bytes, powers, pairs) = tiles(3, 7);
        let mut expected = vec![0; pairs.len()];
        unpack_kernel(pulp::Scalar, &bytes, &powers, &mut expected);
        assert_eq!(pairs, expected);
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn dot_products_have_the_bits_of_unpacked_tiles() {
        if !Kind::all().contains(&Kind::Avx512) {
            return;
        }
        let depth = 5;
        let (near, far) = (tiles(depth, 1), tiles(depth, 2));
        let row = depth * DEPTH + 32;
        let data: Vec<Bf16> = (0..DOT_ROWS * row).map(|at| Bf16::of(tile_number(at as u32))).collect();
        let left = Left { data: &data, row, step: DEPTH, half: tile::TILE * row };
        for height in 1..=DOT_ROWS {
            let mut expected = Block([[f32::NAN; tile::BLOCK]; tile::BLOCK]);
            Kind::Avx512.block(left, height, [&near.2, &far.2], depth, &mut expected);
            let mut found = Block([[f32::NAN; tile::BLOCK]; tile::BLOCK]);
            let sides = [&near, &far].map(|(tiles, powers, _)| Side { tiles, powers });
            dot_products(left, height, sides, &mut found);
            let bits =
                |block: &Block| -> Vec<u32> { block.0[..height].as_flattened().iter().map(|x| x.to_bits()).collect() };
            assert_eq!(bits(&expected), bits(&found), "{height}");
        }
    }

    /// An activation in `bf16`, as `f32`.
    fn tile_number(at: u32) -> f32 {
        let x = (at.wrapping_mul(2_246_822_519) >> 9) as f32 / (1 << 22) as f32 - 1.0;
        f32::from_bits(x.to_bits() & 0xffff_0000)
    }
}
