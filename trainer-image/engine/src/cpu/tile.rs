//! The kernel of `bf16` products: a block of 32 × 32 sums of products in `f32`. There are three implementations, and the
//! fastest that the processor has is used: AMX tiles, AVX-512 dot products, and portable multiply-adds.
//!
//! The implementation determines the order of a sum and so its last bits; the number of threads does not.

use std::sync::OnceLock;

use pulp::Simd;

use super::{
    bf16::Bf16,
    buffer::scratch,
    dispatch::dispatched,
    isa::{self, Isa},
};

/// Rows and columns of a block.
pub(crate) const BLOCK: usize = 32;
/// Products of a row that are processed together. Depths are padded with zeros to a multiple.
pub(crate) const DEPTH: usize = 32;
/// Rows or columns of a tile.
pub(crate) const TILE: usize = 16;
/// Pairs of elements in a tile: 16 rows of 16 pairs on the left; 16 pairs of rows by 16 columns on the right.
pub(crate) const TILE_SIZE: usize = TILE * DEPTH / 2;
/// Two consecutive elements along the sum; the first in the lower half.
pub(crate) type Pair = u32;

/// 32 rows of a left operand, in two halves of 16.
#[derive(Clone, Copy)]
pub(crate) struct Left<'a> {
    pub(crate) data: &'a [Bf16],
    /// Distance between rows, in elements.
    pub(crate) row: usize,
    /// Distance between groups of 32 columns.
    pub(crate) step: usize,
    /// Distance between the first 16 rows and the others.
    pub(crate) half: usize,
}

/// An implementation of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Intel AMX.
    #[cfg(target_arch = "x86_64")]
    Amx,
    /// AVX-512 `vdpbf16ps`.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// `f32` multiply-adds in the widest registers available.
    Portable,
}

impl Kind {
    /// Returns the fastest that this processor has.
    pub(crate) fn best() -> Self {
        Self::all()[0]
    }

    /// Returns all that this processor has, the fastest first.
    pub(crate) fn all() -> &'static [Self] {
        static ALL: OnceLock<Vec<Kind>> = OnceLock::new();
        ALL.get_or_init(Self::detected)
    }

    fn detected() -> Vec<Self> {
        let mut all = Vec::new();
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        {
            if isa::limit() >= Isa::Amx && Isa::Amx.is_supported() {
                all.push(Self::Amx);
            }
            if isa::limit() >= Isa::Avx512
                && std::is_x86_feature_detected!("avx512bf16")
                && std::is_x86_feature_detected!("avx512f")
            {
                all.push(Self::Avx512);
            }
        }
        all.push(Self::Portable);
        all
    }

    /// Returns the path's name for the records of a run.
    pub(crate) fn path(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Amx => "cpu-bf16-amx",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => "cpu-bf16-avx512",
            Self::Portable => "cpu-bf16-portable",
        }
    }

    /// Prepares this thread for [`block`](Self::block): AMX needs its tiles configured. Cheap when repeated.
    pub(crate) fn prepare(self) {
        #[cfg(target_arch = "x86_64")]
        if self == Self::Amx {
            x86::configure();
        }
    }

    /// Returns whether [`block`](Self::block) reads all 32 rows, however many are valid.
    pub(crate) fn reads_whole_blocks(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        if self == Self::Amx {
            return true;
        }
        false
    }

    /// Computes the sums of products of the first `height` of 32 rows with 32 columns over `depth` tiles. `right` holds the tiles of the first 16
    /// columns and of the others. Call [`prepare`](Self::prepare) on this thread first.
    #[inline]
    pub(crate) fn block(self, left: Left, height: usize, right: [&[Pair]; 2], depth: usize, out: &mut Block) {
        let reached = if self.reads_whole_blocks() { BLOCK } else { height };
        assert!(depth > 0 && (1..=BLOCK).contains(&reached));
        let row = reached - 1;
        let farthest = (row / TILE * left.half + row % TILE * left.row).max(row.min(TILE - 1) * left.row);
        let last = farthest + (depth - 1) * left.step + DEPTH;
        assert!(left.data.len() >= last && right.iter().all(|side| side.len() >= depth * TILE_SIZE));
        match self {
            // SAFETY: only `all` makes the variants, after checking the processor's features; the assertion keeps every
            // element that the strides reach inside its slice.
            #[cfg(target_arch = "x86_64")]
            #[allow(unsafe_code)]
            Self::Amx => unsafe { x86::amx(left, right, depth, out) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            #[allow(unsafe_code)]
            Self::Avx512 => unsafe { x86::avx512(left, height, right, depth, out) },
            Self::Portable => {
                let mut rows = scratch::<f32>(height * depth * DEPTH);
                widen_block(left, depth, &mut rows);
                products(&rows, depth * DEPTH, height, right, depth, out);
            }
        }
    }

    /// Computes `out` [16, 32] = the transpose of the first 16 columns of 32 rows, which are `stride` apart.
    #[inline]
    pub(crate) fn transpose(self, rows: &[Bf16], stride: usize, out: &mut [Bf16]) {
        assert!(rows.len() >= (DEPTH - 1) * stride + TILE && out.len() == TILE * DEPTH);
        match self {
            // SAFETY: only `all` makes the variants, after checking for AVX-512; the assertion keeps every element inside
            // its slice.
            #[cfg(target_arch = "x86_64")]
            #[allow(unsafe_code)]
            Self::Amx | Self::Avx512 => unsafe { x86::transpose(rows, stride, out) },
            Self::Portable => {
                for (at, row) in rows.chunks(stride).take(DEPTH).enumerate() {
                    for (lane, value) in row[..TILE].iter().enumerate() {
                        out[lane * DEPTH + at] = *value;
                    }
                }
            }
        }
    }
}

/// 32 × 32 sums.
#[repr(C, align(64))]
pub(crate) struct Block(pub(crate) [[f32; BLOCK]; BLOCK]);

dispatched!(
    /// Converts consecutive numbers.
    pub(crate) widen<'a>(numbers: &'a [Bf16], to: &'a mut [f32]) = widen_kernel
);
dispatched!(widen_block<'a>(left: Left<'a>, depth: usize, to: &'a mut [f32]) = widen_block_kernel);
dispatched!(
    /// Computes the sums of products of the first `height` of `rows`, which are `stride` apart, with 32 columns over `depth`
    /// tiles, as [`Kind::block`] does without special instructions. Rows that several blocks of columns share are so converted
    /// once.
    pub(crate) products<'a>(
        rows: &'a [f32], stride: usize, height: usize, right: [&'a [Pair]; 2], depth: usize, out: &'a mut Block,
    ) = products_kernel
);

#[inline(always)]
fn widen_kernel<S: Simd>(_: S, numbers: &[Bf16], to: &mut [f32]) {
    for (to, number) in to.iter_mut().zip(numbers) {
        *to = number.to_f32();
    }
}

#[inline(always)]
fn widen_block_kernel<S: Simd>(simd: S, left: Left, depth: usize, to: &mut [f32]) {
    for (row, to) in to.chunks_exact_mut(depth * DEPTH).enumerate() {
        let data = &left.data[row / TILE * left.half + row % TILE * left.row..];
        for (step, to) in to.chunks_exact_mut(DEPTH).enumerate() {
            widen_kernel(simd, &data[step * left.step..][..DEPTH], to);
        }
    }
}

#[inline(always)]
fn products_kernel<S: Simd>(
    simd: S,
    rows: &[f32],
    stride: usize,
    height: usize,
    right: [&[Pair]; 2],
    depth: usize,
    out: &mut Block,
) {
    let registers = 2 * TILE / S::F32_LANES;
    let right = right.map(|side| &side[..depth * TILE_SIZE]);
    if height == 1 && registers >= 4 {
        // A single row has too few sums for the processor to work on at once.
        for at in (0..registers).step_by(4) {
            products_of_rows::<S, 1, 4>(simd, rows, stride, 0, right, at, out);
        }
        return;
    }
    for at in (0..registers).step_by(2) {
        let mut start = 0;
        while start < height {
            start += match height - start {
                4.. => products_of_rows::<S, 4, 2>(simd, rows, stride, start, right, at, out),
                2.. => products_of_rows::<S, 2, 2>(simd, rows, stride, start, right, at, out),
                _ => products_of_rows::<S, 1, 2>(simd, rows, stride, start, right, at, out),
            };
        }
    }
}

/// Multiplies `R` rows from `start` on with the columns of `C` registers from `at` on. Returns `R`.
#[allow(clippy::needless_range_loop, reason = "iterated over, the sums would lie in memory rather than in registers")]
#[inline(always)]
fn products_of_rows<S: Simd, const R: usize, const C: usize>(
    simd: S,
    rows: &[f32],
    stride: usize,
    start: usize,
    right: [&[Pair]; 2],
    at: usize,
    out: &mut Block,
) -> usize {
    let per_side = TILE / S::F32_LANES;
    let upper = simd.splat_u32s(0xffff_0000);
    let columns: [&[S::u32s]; C] = std::array::from_fn(|column| {
        let column = at + column;
        &S::as_simd_u32s(right[column / per_side]).0[column % per_side..]
    });
    let pairs = right[0].len() / TILE;
    let rows: [&[[f32; 2]]; R] = std::array::from_fn(|row| &rows[(start + row) * stride..].as_chunks::<2>().0[..pairs]);
    let mut sums = [[simd.splat_f32s(0.0); C]; R];
    for pair in 0..pairs {
        for column in 0..C {
            let line = columns[column][pair * per_side];
            let first = simd.transmute_f32s_u32s(simd.wrapping_dyn_shl_u32s(line, simd.splat_u32s(16)));
            let second = simd.transmute_f32s_u32s(simd.and_u32s(line, upper));
            for row in 0..R {
                // Without `map`: a closure need not be inlined, and would be compiled for the baseline instruction set.
                let [one, two] = rows[row][pair];
                let (one, two) = (simd.splat_f32s(one), simd.splat_f32s(two));
                let sum = simd.mul_add_e_f32s(one, first, sums[row][column]);
                sums[row][column] = simd.mul_add_e_f32s(two, second, sum);
            }
        }
    }
    for (sums, out) in sums.into_iter().zip(&mut out.0[start..]) {
        S::as_mut_simd_f32s(out).0[at..][..C].copy_from_slice(&sums);
    }
    R
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    #![allow(unsafe_code)]

    use std::{
        arch::{
            asm,
            x86_64::{
                __m512bh, __m512i, _mm256_loadu_si256, _mm512_cvtepu16_epi32, _mm512_dpbf16_ps, _mm512_loadu_si512,
                _mm512_or_si512, _mm512_set1_epi32, _mm512_setzero_ps, _mm512_shuffle_i32x4, _mm512_slli_epi32,
                _mm512_storeu_ps, _mm512_storeu_si512, _mm512_unpackhi_epi32, _mm512_unpackhi_epi64,
                _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
            },
        },
        cell::Cell,
    };

    use super::{BLOCK, Bf16, Block, DEPTH, Left, Pair, TILE, TILE_SIZE};

    /// Eight tiles of 16 rows of 64 bytes.
    #[repr(C, align(64))]
    struct Shape {
        palette: u8,
        start_row: u8,
        reserved: [u8; 14],
        row_bytes: [u16; 16],
        rows: [u8; 16],
    }

    static SHAPE: Shape = {
        let (mut row_bytes, mut rows) = ([0; 16], [0; 16]);
        let mut tile = 0;
        while tile < 8 {
            row_bytes[tile] = 2 * DEPTH as u16;
            rows[tile] = TILE as u8;
            tile += 1;
        }
        Shape { palette: 1, start_row: 0, reserved: [0; 14], row_bytes, rows }
    };

    /// Configures this thread's tiles, once. No other code in this process uses them.
    pub(super) fn configure() {
        thread_local! {
            static DONE: Cell<bool> = const { Cell::new(false) };
        }
        if !DONE.get() {
            // SAFETY: the caller checked that the processor has AMX; the instruction reads the 64 bytes of `SHAPE`.
            unsafe {
                asm!("ldtilecfg [{shape}]", shape = in(reg) &raw const SHAPE, options(nostack, readonly));
            }
            DONE.set(true);
        }
    }

    /// # Safety
    /// The processor has AMX-BF16, this thread's tiles are configured, and everything that the strides of `left` reach over
    /// `depth` steps, and 2 · `depth` tiles of `right`, lies inside their slices.
    pub(super) unsafe fn amx(left: Left, right: [&[Pair]; 2], depth: usize, out: &mut Block) {
        let (upper, lower) = (left.data.as_ptr(), left.data[left.half..].as_ptr());
        let (near, far) = (right[0].as_ptr(), right[1].as_ptr());
        // SAFETY: the caller's contract; the four stores write the 4 KiB of `out`.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "2:",
                "tileloadd tmm4, [{upper} + {row}]",
                "tileloadd tmm5, [{near} + {line}]",
                "tileloadd tmm6, [{lower} + {row}]",
                "tileloadd tmm7, [{far} + {line}]",
                "tdpbf16ps tmm0, tmm4, tmm5",
                "tdpbf16ps tmm2, tmm6, tmm5",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm3, tmm6, tmm7",
                "add {upper}, {step}",
                "add {lower}, {step}",
                "add {near}, 1024",
                "add {far}, 1024",
                "dec {depth}",
                "jnz 2b",
                "tilestored [{out} + {wide}], tmm0",
                "tilestored [{out} + {wide} + 64], tmm1",
                "tilestored [{out} + {wide} + 2048], tmm2",
                "tilestored [{out} + {wide} + 2112], tmm3",
                upper = inout(reg) upper => _,
                lower = inout(reg) lower => _,
                near = inout(reg) near => _,
                far = inout(reg) far => _,
                depth = inout(reg) depth => _,
                row = in(reg) 2 * left.row,
                step = in(reg) 2 * left.step,
                line = in(reg) 64_usize,
                wide = in(reg) 4 * BLOCK,
                out = in(reg) out.0.as_mut_ptr(),
                options(nostack),
            );
        }
    }

    /// # Safety
    /// The processor has AVX512F; `rows` holds 32 rows of 16 elements, `stride` apart, and `out` 16 rows of 32.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn transpose(rows: &[Bf16], stride: usize, out: &mut [Bf16]) {
        // Two consecutive elements along the sum form one 32-bit element: first combine pairs of rows, then transpose 16 ×
        // 16 of these in steps: neighbors, pairs, and twice quarters of registers.
        let pair = |at: usize| {
            // SAFETY: the caller's contract; a row of 16 elements is 32 bytes, read unaligned.
            let [first, second] = [2 * at, 2 * at + 1].map(|row| unsafe {
                _mm512_cvtepu16_epi32(_mm256_loadu_si256(rows.as_ptr().add(row * stride).cast()))
            });
            _mm512_or_si512(first, _mm512_slli_epi32::<16>(second))
        };
        let lines: [__m512i; TILE] = std::array::from_fn(pair);
        let mut twos = lines;
        for at in (0..TILE).step_by(2) {
            twos[at] = _mm512_unpacklo_epi32(lines[at], lines[at + 1]);
            twos[at + 1] = _mm512_unpackhi_epi32(lines[at], lines[at + 1]);
        }
        let mut fours = twos;
        for at in (0..TILE).step_by(4) {
            for half in 0..2 {
                fours[at + 2 * half] = _mm512_unpacklo_epi64(twos[at + half], twos[at + half + 2]);
                fours[at + 2 * half + 1] = _mm512_unpackhi_epi64(twos[at + half], twos[at + half + 2]);
            }
        }
        // Now `fours[4 · i + j]` holds lines 4 · i to 4 · i + 3 of columns j, j + 4, j + 8 and j + 12.
        for column in 0..4 {
            let [a, b, c, d] = [0, 4, 8, 12].map(|line| fours[line + column]);
            let (near, far) = (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0x88>(c, d));
            let (near_odd, far_odd) = (_mm512_shuffle_i32x4::<0xdd>(a, b), _mm512_shuffle_i32x4::<0xdd>(c, d));
            let done = [
                _mm512_shuffle_i32x4::<0x88>(near, far),
                _mm512_shuffle_i32x4::<0x88>(near_odd, far_odd),
                _mm512_shuffle_i32x4::<0xdd>(near, far),
                _mm512_shuffle_i32x4::<0xdd>(near_odd, far_odd),
            ];
            for (quarter, line) in done.into_iter().enumerate() {
                // SAFETY: the caller's contract; a row of 32 elements is 64 bytes, written unaligned.
                unsafe { _mm512_storeu_si512(out.as_mut_ptr().add((4 * quarter + column) * DEPTH).cast(), line) };
            }
        }
    }

    /// # Safety
    /// The processor has AVX512F and AVX512-BF16, and everything that the strides of `left` reach over `height` rows and `depth`
    /// steps, and `depth` tiles on each side of `right`, lies inside their slices.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) unsafe fn avx512(left: Left, height: usize, right: [&[Pair]; 2], depth: usize, out: &mut Block) {
        let mut start = 0;
        while start < height {
            // SAFETY: the caller's contract; the rows from `start` on are at least as many as are computed.
            unsafe {
                start += match height - start {
                    8.. => avx512_rows::<8>(left, start, right, depth, out),
                    4.. => avx512_rows::<4>(left, start, right, depth, out),
                    2.. => avx512_rows::<2>(left, start, right, depth, out),
                    _ => avx512_rows::<1>(left, start, right, depth, out),
                };
            }
        }
    }

    /// Computes `R` rows from `start`, a multiple of `R`, on. Returns `R`.
    ///
    /// # Safety
    /// As [`avx512`], for these rows.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn avx512_rows<const R: usize>(
        left: Left,
        start: usize,
        right: [&[Pair]; 2],
        depth: usize,
        out: &mut Block,
    ) -> usize {
        let (near, far) = (right[0].as_ptr(), right[1].as_ptr());
        let rows = left.data[start / TILE * left.half + start % TILE * left.row..].as_ptr();
        let mut sums = [[_mm512_setzero_ps(); 2]; R];
        for step in 0..depth {
            for pair in 0..DEPTH / 2 {
                // SAFETY: the caller's contract. Two neighbors in a row form one 32-bit element, read unaligned.
                unsafe {
                    let at = step * TILE_SIZE + pair * TILE;
                    let one: __m512bh = std::mem::transmute::<__m512i, _>(_mm512_loadu_si512(near.add(at).cast()));
                    let two: __m512bh = std::mem::transmute::<__m512i, _>(_mm512_loadu_si512(far.add(at).cast()));
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
        for (row, sums) in sums.iter().enumerate() {
            let out = &mut out.0[start + row];
            // SAFETY: a row of `out` has 32 elements.
            unsafe {
                _mm512_storeu_ps(out.as_mut_ptr(), sums[0]);
                _mm512_storeu_ps(out[TILE..].as_mut_ptr(), sums[1]);
            }
        }
        R
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize, seed: u32) -> Vec<Bf16> {
        (0..count as u32)
            .map(|i| Bf16::of(((i.wrapping_mul(2_654_435_761).wrapping_add(seed * 97)) % 1000) as f32 / 500.0 - 1.0))
            .collect()
    }

    #[test]
    fn every_kernel_transposes() {
        let stride = 50;
        let rows = numbers((DEPTH - 1) * stride + TILE, 3);
        for &kind in Kind::all() {
            let mut out = vec![Bf16::default(); TILE * DEPTH];
            kind.transpose(&rows, stride, &mut out);
            for (at, out) in out.iter().enumerate() {
                assert_eq!(*out, rows[at % DEPTH * stride + at / DEPTH], "{kind:?} {at}");
            }
        }
    }

    #[test]
    fn every_kernel_gives_the_sums() {
        let (depth, row) = (3, 200);
        let left = numbers(BLOCK * row, 1);
        let dense = numbers(depth * DEPTH * BLOCK, 2);
        let mut right = vec![0; 2 * depth * TILE_SIZE];
        for k in 0..depth * DEPTH {
            for column in 0..BLOCK {
                let at = (column / TILE * depth + k / DEPTH) * TILE_SIZE + k % DEPTH / 2 * TILE + column % TILE;
                right[at] |= u32::from(dense[k * BLOCK + column].bits()) << (16 * (k % 2));
            }
        }
        for &kind in Kind::all() {
            kind.prepare();
            let mut out = Block([[f32::NAN; BLOCK]; BLOCK]);
            let rows = Left { data: &left, row, step: DEPTH, half: TILE * row };
            kind.block(rows, BLOCK, right.split_at(depth * TILE_SIZE).into(), depth, &mut out);
            for height in 1..BLOCK {
                let mut some = Block([[f32::NAN; BLOCK]; BLOCK]);
                kind.block(rows, height, right.split_at(depth * TILE_SIZE).into(), depth, &mut some);
                assert_eq!(some.0[..height], out.0[..height], "{kind:?} {height}");
            }
            for (r, out) in out.0.iter().enumerate() {
                for (c, out) in out.iter().enumerate() {
                    let terms = (0..depth * DEPTH).map(|k| left[r * row + k].to_f32() * dense[k * BLOCK + c].to_f32());
                    let expected: f32 = terms.sum();
                    assert!((out - expected).abs() < 1e-4, "{kind:?} {r} {c}: {out} {expected}");
                }
            }
        }
    }
}
