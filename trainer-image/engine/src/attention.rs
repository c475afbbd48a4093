//! Fused causal attention with rotary positions over packed sequences, forwards and backwards. Pure.
//!
//! Rows hold query, key and value side by side, each `heads · width` wide, and sequences lie one after another without
//! padding. The rotation is Llama's: the first half of a head is turned against the second.

use pulp::Simd;
use rayon::prelude::*;

use super::{
    kernels::{dispatched, dot, exponentials, scale, softmax_slopes},
    scratch::{Scratch, scratch},
};

/// The cosines and sines of rotary positions: [positions, width / 2] each.
#[derive(Clone, Debug)]
pub struct Rotary {
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
}

impl Rotary {
    /// For positions below `positions` and heads of `width`.
    pub fn new(positions: usize, width: usize, theta: f64) -> Self {
        let half = width / 2;
        let angles = (0..positions).flat_map(|position| {
            (0..half).map(move |pair| position as f64 * theta.powf(-2.0 * pair as f64 / width as f64))
        });
        let (cos, sin) = angles.map(|angle| (angle.cos() as f32, angle.sin() as f32)).unzip();
        Self { cos, sin, half }
    }

    /// Turns one head at `position` and multiplies it by `scale`; `direction` 1 turns it, −1 turns it back.
    #[inline(always)]
    pub fn turn(&self, head: &mut [f32], position: usize, scale: f32, direction: f32) {
        let at = position * self.half..(position + 1) * self.half;
        let (first, second) = head.split_at_mut(self.half);
        let (cos, sin) = (&self.cos[at.clone()], &self.sin[at]);
        let (first, second, sin) = (&mut first[..cos.len()], &mut second[..cos.len()], &sin[..cos.len()]);
        for i in 0..cos.len() {
            let (a, b, cos, sin) = (first[i], second[i], scale * cos[i], scale * direction * sin[i]);
            first[i] = a * cos - b * sin;
            second[i] = b * cos + a * sin;
        }
    }
}

/// What attention is computed over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sequences<'a> {
    /// Where each sequence begins, and where the last one ends, in rows.
    pub(crate) offsets: &'a [usize],
    /// Heads.
    pub(crate) heads: usize,
    /// Width of a head.
    pub(crate) width: usize,
    /// The rotation.
    pub(crate) rotary: &'a Rotary,
}

/// `out` [rows, heads · width] from `qkv` [rows, 3 · heads · width].
pub(crate) fn attention(sequences: Sequences, qkv: &[f32], out: &mut [f32]) {
    let hidden = sequences.heads * sequences.width;
    let work = split_rows(sequences.offsets, hidden, out);
    work.into_par_iter().for_each(|(rows, out)| {
        let qkv = &qkv[rows.start * 3 * hidden..rows.end * 3 * hidden];
        match sequences.width {
            16 => forward_piece::<16>(sequences, qkv, out),
            32 => forward_piece::<32>(sequences, qkv, out),
            64 => forward_piece::<64>(sequences, qkv, out),
            _ => forward_piece::<128>(sequences, qkv, out),
        }
    });
}

/// The gradient of [`attention`] by `qkv`, written to `dqkv`.
pub(crate) fn attention_backward(sequences: Sequences, qkv: &[f32], dout: &[f32], dqkv: &mut [f32]) {
    let hidden = sequences.heads * sequences.width;
    let work = split_rows(sequences.offsets, 3 * hidden, dqkv);
    work.into_par_iter().for_each(|(rows, dqkv)| {
        let qkv = &qkv[rows.start * 3 * hidden..rows.end * 3 * hidden];
        let dout = &dout[rows.start * hidden..rows.end * hidden];
        match sequences.width {
            16 => backward_piece::<16>(sequences, qkv, dout, dqkv),
            32 => backward_piece::<32>(sequences, qkv, dout, dqkv),
            64 => backward_piece::<64>(sequences, qkv, dout, dqkv),
            _ => backward_piece::<128>(sequences, qkv, dout, dqkv),
        }
    });
}

/// Cuts `data` (rows of `width`) into its sequences.
fn split_rows<'a>(
    offsets: &[usize],
    width: usize,
    data: &'a mut [f32],
) -> Vec<(std::ops::Range<usize>, &'a mut [f32])> {
    let mut rest = data;
    offsets
        .windows(2)
        .map(|bounds| {
            let rows = bounds[0]..bounds[1];
            let (piece, tail) = std::mem::take(&mut rest).split_at_mut(rows.len() * width);
            rest = tail;
            (rows, piece)
        })
        .collect()
}

dispatched!(forward_piece[const W]<'a>(sequences: Sequences<'a>, qkv: &'a [f32], out: &'a mut [f32]) = forward::<S, W>);
dispatched!(backward_piece[const W]<'a>(
    sequences: Sequences<'a>, qkv: &'a [f32], dout: &'a [f32], dqkv: &'a mut [f32],
) = backward::<S, W>);

/// Rows that a tile has.
const TALL: usize = 8;
/// Rows are padded to whole multiples of this: of a tile, and of every processor's register.
const PADDED: usize = 16;

/// One head of one sequence. Rows are padded with zeros, so that no kernel has a special case.
struct Head<const W: usize> {
    rows: usize,
    padded: usize,
    /// [padded][W], rotated and scaled by 1/√W
    query: Vec<[f32; W]>,
    /// [padded][W], rotated
    key: Vec<[f32; W]>,
    /// [padded][W]
    value: Vec<[f32; W]>,
    /// Rows side by side, a register full at a time: [padded / lanes, W, lanes].
    columns: Vec<f32>,
    /// Probabilities of each query over all keys: [padded, padded].
    scores: Scratch,
}

impl<const W: usize> Head<W> {
    fn new(rows: usize) -> Self {
        let padded = rows.next_multiple_of(PADDED);
        Self {
            rows,
            padded,
            query: vec![[0.0; W]; padded],
            key: vec![[0.0; W]; padded],
            value: vec![[0.0; W]; padded],
            columns: vec![0.0; padded * W],
            scores: scratch(padded * padded),
        }
    }

    /// Takes one head out of `qkv` [rows, 3 · hidden].
    #[inline(always)]
    fn gather(&mut self, sequences: &Sequences, qkv: &[f32], head: usize) {
        let hidden = sequences.heads * W;
        let scale = 1.0 / (W as f32).sqrt();
        for (row, qkv) in qkv.chunks_exact(3 * hidden).enumerate() {
            let (query, key) = (&mut self.query[row], &mut self.key[row]);
            query.copy_from_slice(&qkv[head * W..][..W]);
            key.copy_from_slice(&qkv[hidden + head * W..][..W]);
            self.value[row].copy_from_slice(&qkv[2 * hidden + head * W..][..W]);
            sequences.rotary.turn(query, row, scale, 1.0);
            sequences.rotary.turn(key, row, 1.0, 1.0);
        }
    }

    /// How many keys the queries of the tile at `row` are computed over.
    #[inline(always)]
    fn reach(row: usize) -> usize {
        (row + TALL).next_multiple_of(PADDED)
    }

    /// Fills `scores` with probabilities; 0 for keys after their query and for padding.
    #[inline(always)]
    fn attend<S: Simd>(&mut self, simd: S) {
        transpose::<S, W>(&self.key, &mut self.columns);
        let padded = self.padded;
        for start in (0..self.rows).step_by(TALL) {
            let reach = Self::reach(start);
            let tile = &self.query[start..start + TALL];
            products::<S, W>(simd, tile, &self.columns, reach, &mut self.scores[start * padded..], padded);
            for row in start..start + TALL {
                let scores = &mut self.scores[row * padded..][..reach];
                if row >= self.rows {
                    scores.fill(0.0);
                    continue;
                }
                scores[row + 1..].fill(f32::NEG_INFINITY);
                let (_, sum) = exponentials(simd, scores);
                scale(simd, scores, 1.0 / sum);
                scores[row + 1..].fill(0.0);
            }
        }
    }
}

/// [rows][W] → [rows / lanes, W, lanes]
#[inline(always)]
fn transpose<S: Simd, const W: usize>(rows: &[[f32; W]], columns: &mut [f32]) {
    for (block, rows) in columns.chunks_exact_mut(W * S::F32_LANES).zip(rows.chunks_exact(S::F32_LANES)) {
        for (lane, row) in rows.iter().enumerate() {
            for column in 0..W {
                block[column * S::F32_LANES + lane] = row[column];
            }
        }
    }
}

/// The products of a tile of rows with the first `reach` rows that `columns` holds, written to `out`, whose rows are `stride`
/// apart.
#[inline(always)]
fn products<S: Simd, const W: usize>(
    simd: S,
    tile: &[[f32; W]],
    columns: &[f32],
    reach: usize,
    out: &mut [f32],
    stride: usize,
) {
    let tile: [&[f32; W]; TALL] = std::array::from_fn(|row| &tile[row]);
    let columns = S::as_simd_f32s(columns).0;
    for (block, columns) in columns.chunks_exact(W).take(reach / S::F32_LANES).enumerate() {
        let mut sums = [simd.splat_f32s(0.0); TALL];
        for column in 0..W {
            for row in 0..TALL {
                sums[row] = simd.mul_add_f32s(simd.splat_f32s(tile[row][column]), columns[column], sums[row]);
            }
        }
        for row in 0..TALL {
            S::as_mut_simd_f32s(&mut out[row * stride..][..reach]).0[block] = sums[row];
        }
    }
}

/// `Σₖ left[start + r][k] · right[k]` for the rows of a tile, where rows of `left` are `stride` apart.
#[inline(always)]
fn along_rows<S: Simd, const W: usize>(
    simd: S,
    left: &[f32],
    stride: usize,
    start: usize,
    right: &[[f32; W]],
) -> [[f32; W]; TALL] {
    let left: [&[f32]; TALL] = std::array::from_fn(|row| &left[(start + row) * stride..][..right.len()]);
    let mut out = [[0.0; W]; TALL];
    for block in 0..W / S::F32_LANES {
        let mut sums = [simd.splat_f32s(0.0); TALL];
        for (k, line) in right.iter().enumerate() {
            let line = S::as_simd_f32s(line).0[block];
            for row in 0..TALL {
                sums[row] = simd.mul_add_f32s(simd.splat_f32s(left[row][k]), line, sums[row]);
            }
        }
        for row in 0..TALL {
            S::as_mut_simd_f32s(&mut out[row]).0[block] = sums[row];
        }
    }
    out
}

/// `Σₖ left[k][at + r] · right[k]` for the rows of a tile, where rows of `left` are `stride` apart.
#[inline(always)]
fn along_columns<S: Simd, const W: usize>(
    simd: S,
    left: &[f32],
    stride: usize,
    at: usize,
    right: &[[f32; W]],
) -> [[f32; W]; TALL] {
    let mut out = [[0.0; W]; TALL];
    for block in 0..W / S::F32_LANES {
        let mut sums = [simd.splat_f32s(0.0); TALL];
        for (left, line) in left.chunks_exact(stride).zip(right) {
            let line = S::as_simd_f32s(line).0[block];
            let factors = &left[at..at + TALL];
            for row in 0..TALL {
                sums[row] = simd.mul_add_f32s(simd.splat_f32s(factors[row]), line, sums[row]);
            }
        }
        for row in 0..TALL {
            S::as_mut_simd_f32s(&mut out[row]).0[block] = sums[row];
        }
    }
    out
}

#[inline(always)]
fn forward<S: Simd, const W: usize>(simd: S, sequences: Sequences, qkv: &[f32], out: &mut [f32]) {
    let hidden = sequences.heads * W;
    let rows = out.len() / hidden;
    let mut gathered = Head::<W>::new(rows);
    for head in 0..sequences.heads {
        gathered.gather(&sequences, qkv, head);
        gathered.attend(simd);
        for start in (0..rows).step_by(TALL) {
            let values = &gathered.value[..Head::<W>::reach(start)];
            let mixed = along_rows(simd, &gathered.scores, gathered.padded, start, values);
            for (row, mixed) in mixed.iter().enumerate().take(rows - start) {
                out[(start + row) * hidden + head * W..][..W].copy_from_slice(mixed);
            }
        }
    }
}

#[inline(always)]
fn backward<S: Simd, const W: usize>(simd: S, sequences: Sequences, qkv: &[f32], dout: &[f32], dqkv: &mut [f32]) {
    let hidden = sequences.heads * W;
    let rows = dout.len() / hidden;
    let scale = 1.0 / (W as f32).sqrt();
    let mut gathered = Head::<W>::new(rows);
    let padded = gathered.padded;
    let mut dmixed = vec![[0.0_f32; W]; padded];
    let mut slopes = scratch(padded * padded);
    for head in 0..sequences.heads {
        gathered.gather(&sequences, qkv, head);
        gathered.attend(simd);
        for (dmixed, dout) in dmixed.iter_mut().zip(dout.chunks_exact(hidden)) {
            dmixed.copy_from_slice(&dout[head * W..][..W]);
        }
        // Slopes of scores: p · (dp − Σ p·dp), where dp = dmixed · value.
        transpose::<S, W>(&gathered.value, &mut gathered.columns);
        for start in (0..rows).step_by(TALL) {
            let reach = Head::<W>::reach(start);
            let tile = &dmixed[start..start + TALL];
            products::<S, W>(simd, tile, &gathered.columns, reach, &mut slopes[start * padded..], padded);
            for row in start..start + TALL {
                let slopes = &mut slopes[row * padded..][..reach];
                let scores = &gathered.scores[row * padded..][..reach];
                let mean = dot(simd, slopes, scores);
                softmax_slopes(simd, scores, mean, slopes);
            }
        }
        for start in (0..rows).step_by(TALL) {
            let keys = &gathered.key[..Head::<W>::reach(start)];
            let dquery = along_rows(simd, &slopes, padded, start, keys);
            // A key is looked at by its own row and those after it.
            let later = start * padded..rows * padded;
            let dkey = along_columns(simd, &slopes[later.clone()], padded, start, &gathered.query[start..rows]);
            let dvalue = along_columns(simd, &gathered.scores[later], padded, start, &dmixed[start..rows]);
            for at in 0..TALL.min(rows - start) {
                let row = start + at;
                let dqkv = &mut dqkv[row * 3 * hidden..][..3 * hidden];
                let (mut dquery, mut dkey) = (dquery[at], dkey[at]);
                sequences.rotary.turn(&mut dquery, row, scale, -1.0);
                sequences.rotary.turn(&mut dkey, row, 1.0, -1.0);
                dqkv[head * W..][..W].copy_from_slice(&dquery);
                dqkv[hidden + head * W..][..W].copy_from_slice(&dkey);
                dqkv[2 * hidden + head * W..][..W].copy_from_slice(&dvalue[at]);
            }
        }
    }
}
