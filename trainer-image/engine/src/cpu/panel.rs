//! The kernel of `f32` products: multiplies a few rows with a panel of 32 columns. A panel is stored along its depth; the
//! rows are read in place. Pure.
//!
//! Every sum is taken in the order of its depth, for every instruction set and however rows are split.

use std::ops::Range;

use pulp::Simd;

/// Columns of a panel.
pub(crate) const PANEL: usize = 32;

/// The rows of a left operand.
#[derive(Clone, Copy)]
pub(crate) struct Left<'a> {
    pub(crate) data: &'a [f32],
    /// Distance between rows, in elements.
    pub(crate) row: usize,
    /// Distance between elements of a row.
    pub(crate) step: usize,
}

/// The destination of sums: `data`, in rows `stride` apart.
pub(crate) struct Place<'a> {
    pub(crate) data: &'a mut [f32],
    pub(crate) stride: usize,
    /// Valid columns of the panel.
    pub(crate) width: usize,
    /// Whether sums are added to the destination.
    pub(crate) add: bool,
}

/// Returns how many rows are multiplied at once: as many as the registers hold sums for, two registers per row.
pub(crate) const fn tall<S: Simd>() -> usize {
    if S::REGISTER_COUNT >= 32 { 12 } else { 6 }
}

/// Multiplies `rows` rows of `left` with `panel` [depth, 32]. All rows are multiplied with two registers of columns before the
/// next two, so that these stay in the cache.
#[inline(always)]
pub(crate) fn multiply<S: Simd>(simd: S, left: Left, rows: usize, panel: &[f32], place: &mut Place) {
    for part in 0..PANEL / (2 * S::F32_LANES) {
        let mut row = 0;
        while row < rows {
            row += match rows - row {
                12.. if tall::<S>() == 12 => block::<S, 12>(simd, left, row, part, panel, place),
                6.. if tall::<S>() == 6 => block::<S, 6>(simd, left, row, part, panel, place),
                4.. => block::<S, 4>(simd, left, row, part, panel, place),
                _ => block::<S, 1>(simd, left, row, part, panel, place),
            };
        }
    }
}

/// Multiplies `ROWS` rows from `row` on with the columns of two registers. Returns `ROWS`.
#[allow(clippy::needless_range_loop, reason = "iterated over, the sums would lie in memory rather than in registers")]
#[inline(always)]
fn block<S: Simd, const ROWS: usize>(
    simd: S,
    left: Left,
    row: usize,
    part: usize,
    panel: &[f32],
    place: &mut Place,
) -> usize {
    let lines = S::as_simd_f32s(panel).0.chunks_exact(PANEL / S::F32_LANES);
    let data = &left.data[row * left.row..];
    assert!(lines.len() > 0 && data.len() > (ROWS - 1) * left.row + (lines.len() - 1) * left.step);
    // SAFETY: the assertion keeps the start of every row inside the slice.
    #[allow(unsafe_code)]
    let rows: [*const f32; ROWS] = std::array::from_fn(|row| unsafe { data.as_ptr().add(row * left.row) });
    // Hide the relation of the addresses: the compiler would otherwise compute each from the previous one, a chain that
    // stalls the processor.
    let rows = rows.map(std::hint::black_box);
    let mut sums = [[simd.splat_f32s(0.0); 2]; ROWS];
    for (k, line) in lines.enumerate() {
        let right = [line[2 * part], line[2 * part + 1]];
        for row in 0..ROWS {
            // SAFETY: k is below the number of lines, and the assertion keeps the last element inside the slice.
            #[allow(unsafe_code)]
            let left = simd.splat_f32s(unsafe { *rows[row].add(k * left.step) });
            sums[row][0] = simd.mul_add_e_f32s(left, right[0], sums[row][0]);
            sums[row][1] = simd.mul_add_e_f32s(left, right[1], sums[row][1]);
        }
    }
    let first = 2 * part * S::F32_LANES;
    if place.width == PANEL {
        for at in 0..ROWS {
            let out = &mut place.data[(row + at) * place.stride + first..][..2 * S::F32_LANES];
            let out = S::as_mut_simd_f32s(out).0;
            out[0] = if place.add { simd.add_f32s(out[0], sums[at][0]) } else { sums[at][0] };
            out[1] = if place.add { simd.add_f32s(out[1], sums[at][1]) } else { sums[at][1] };
        }
    } else {
        let mut block = [[0.0_f32; PANEL]; ROWS];
        for at in 0..ROWS {
            let line = S::as_mut_simd_f32s(&mut block[at]).0;
            line[0] = sums[at][0];
            line[1] = sums[at][1];
        }
        put_some(&block, row, first..first + 2 * S::F32_LANES, place);
    }
    ROWS
}

/// Stores the sums of the panel's valid columns.
fn put_some(sums: &[[f32; PANEL]], row: usize, columns: Range<usize>, place: &mut Place) {
    for (at, sums) in sums.iter().enumerate() {
        let out = &mut place.data[(row + at) * place.stride..][..place.width];
        for (out, sum) in out.iter_mut().skip(columns.start).zip(&sums[..columns.len()]) {
            *out = if place.add { *out + sum } else { *sum };
        }
    }
}
