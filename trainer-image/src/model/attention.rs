//! Fused causal attention with rotary positions over packed sequences, forwards and backwards. Pure.
//!
//! Rows hold query, key and value side by side, each `heads · width` wide, and sequences lie one after another without
//! padding. The rotation is Llama's: the first half of a head is turned against the second.

use rayon::prelude::*;

use super::kernels::{dispatched, dot, exponentials};

/// The cosines and sines of rotary positions: [positions, width / 2] each.
#[derive(Clone, Debug)]
pub(super) struct Rotary {
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
}

impl Rotary {
    /// For positions below `positions` and heads of `width`.
    pub(super) fn new(positions: usize, width: usize, theta: f64) -> Self {
        let half = width / 2;
        let angles = (0..positions).flat_map(|position| {
            (0..half).map(move |pair| position as f64 * theta.powf(-2.0 * pair as f64 / width as f64))
        });
        let (cos, sin) = angles.map(|angle| (angle.cos() as f32, angle.sin() as f32)).unzip();
        Self { cos, sin, half }
    }

    /// Turns one head at `position`; `direction` 1 turns it, −1 turns it back.
    #[inline(always)]
    pub(super) fn turn(&self, head: &mut [f32], position: usize, direction: f32) {
        let at = position * self.half..(position + 1) * self.half;
        let (first, second) = head.split_at_mut(self.half);
        for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(&self.cos[at.clone()]).zip(&self.sin[at]) {
            let sin = direction * sin;
            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
        }
    }
}

/// What attention is computed over.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sequences<'a> {
    /// Where each sequence begins, and where the last one ends, in rows.
    pub(super) offsets: &'a [usize],
    /// Heads.
    pub(super) heads: usize,
    /// Width of a head.
    pub(super) width: usize,
    /// The rotation.
    pub(super) rotary: &'a Rotary,
}

/// `out` [rows, heads · width] from `qkv` [rows, 3 · heads · width].
pub(super) fn attention(sequences: Sequences, qkv: &[f32], out: &mut [f32]) {
    let hidden = sequences.heads * sequences.width;
    let work = split_rows(sequences.offsets, hidden, out);
    work.into_par_iter().for_each(|(rows, out)| {
        let qkv = &qkv[rows.start * 3 * hidden..rows.end * 3 * hidden];
        match sequences.width {
            8 => forward_piece::<8>(sequences, qkv, out),
            16 => forward_piece::<16>(sequences, qkv, out),
            32 => forward_piece::<32>(sequences, qkv, out),
            64 => forward_piece::<64>(sequences, qkv, out),
            _ => forward_piece::<128>(sequences, qkv, out),
        }
    });
}

/// The gradient of [`attention`] by `qkv`, written to `dqkv`.
pub(super) fn attention_backward(sequences: Sequences, qkv: &[f32], dout: &[f32], dqkv: &mut [f32]) {
    let hidden = sequences.heads * sequences.width;
    let work = split_rows(sequences.offsets, 3 * hidden, dqkv);
    work.into_par_iter().for_each(|(rows, dqkv)| {
        let qkv = &qkv[rows.start * 3 * hidden..rows.end * 3 * hidden];
        let dout = &dout[rows.start * hidden..rows.end * hidden];
        match sequences.width {
            8 => backward_piece::<8>(sequences, qkv, dout, dqkv),
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

dispatched!(forward_piece[const W]<'a>(sequences: Sequences<'a>, qkv: &'a [f32], out: &'a mut [f32]) = forward::<W>);
dispatched!(backward_piece[const W]<'a>(
    sequences: Sequences<'a>, qkv: &'a [f32], dout: &'a [f32], dqkv: &'a mut [f32],
) = backward::<W>);

/// One head of one sequence, rotated and gathered.
struct Head<const W: usize> {
    /// [rows][W], scaled by 1/√W
    query: Vec<[f32; W]>,
    /// [rows][W]
    key: Vec<[f32; W]>,
    /// [W][rows]: scores of a query against all keys run along memory.
    key_columns: Vec<f32>,
    /// [rows][W]
    value: Vec<[f32; W]>,
    /// Probabilities of one query.
    scores: Vec<f32>,
}

impl<const W: usize> Head<W> {
    #[inline(always)]
    fn gather(sequences: &Sequences, qkv: &[f32], head: usize) -> Self {
        let hidden = sequences.heads * W;
        let rows = qkv.len() / (3 * hidden);
        let scale = 1.0 / (W as f32).sqrt();
        let mut gathered = Self {
            query: vec![[0.0; W]; rows],
            key: vec![[0.0; W]; rows],
            key_columns: vec![0.0; W * rows],
            value: vec![[0.0; W]; rows],
            scores: vec![0.0; rows],
        };
        for (row, qkv) in qkv.chunks_exact(3 * hidden).enumerate() {
            let part = |part: usize| &qkv[part * hidden + head * W..][..W];
            let (query, key) = (&mut gathered.query[row], &mut gathered.key[row]);
            query.copy_from_slice(part(0));
            sequences.rotary.turn(query, row, 1.0);
            for value in query.iter_mut() {
                *value *= scale;
            }
            key.copy_from_slice(part(1));
            sequences.rotary.turn(key, row, 1.0);
            for (column, value) in key.iter().enumerate() {
                gathered.key_columns[column * rows + row] = *value;
            }
            gathered.value[row].copy_from_slice(part(2));
        }
        gathered
    }

    /// Fills `scores` with the probabilities of the query at `row` over keys 0..=row.
    #[inline(always)]
    fn probabilities(&mut self, row: usize) {
        let rows = self.query.len();
        let query = self.query[row];
        let scores = &mut self.scores[..=row];
        scores.fill(0.0);
        for (column, q) in query.iter().enumerate() {
            let keys = &self.key_columns[column * rows..][..=row];
            for (score, key) in scores.iter_mut().zip(keys) {
                *score = q.mul_add(*key, *score);
            }
        }
        let (_, sum) = exponentials(scores);
        let inverse = 1.0 / sum;
        for score in scores {
            *score *= inverse;
        }
    }
}

#[inline(always)]
fn forward<const W: usize>(sequences: Sequences, qkv: &[f32], out: &mut [f32]) {
    let hidden = sequences.heads * W;
    for head in 0..sequences.heads {
        let mut gathered = Head::<W>::gather(&sequences, qkv, head);
        for (row, out) in out.chunks_exact_mut(hidden).enumerate() {
            gathered.probabilities(row);
            let mut sum = [0.0; W];
            for (probability, value) in gathered.scores[..=row].iter().zip(&gathered.value) {
                for (sum, value) in sum.iter_mut().zip(value) {
                    *sum = probability.mul_add(*value, *sum);
                }
            }
            out[head * W..][..W].copy_from_slice(&sum);
        }
    }
}

#[inline(always)]
fn backward<const W: usize>(sequences: Sequences, qkv: &[f32], dout: &[f32], dqkv: &mut [f32]) {
    let hidden = sequences.heads * W;
    let rows = dout.len() / hidden;
    let scale = 1.0 / (W as f32).sqrt();
    let mut slopes = vec![0.0_f32; rows];
    for head in 0..sequences.heads {
        let mut gathered = Head::<W>::gather(&sequences, qkv, head);
        let mut value_columns = vec![0.0; W * rows];
        for (row, value) in gathered.value.iter().enumerate() {
            for (column, value) in value.iter().enumerate() {
                value_columns[column * rows + row] = *value;
            }
        }
        let mut dkey = vec![[0.0_f32; W]; rows];
        let mut dvalue = vec![[0.0_f32; W]; rows];
        for (row, dout) in dout.chunks_exact(hidden).enumerate() {
            gathered.probabilities(row);
            let dout: &[f32] = &dout[head * W..][..W];
            let scores = &gathered.scores[..=row];
            // slope = p · (dp − Σ p·dp), where dp = dout · value
            let slopes = &mut slopes[..=row];
            slopes.fill(0.0);
            for (column, d) in dout.iter().enumerate() {
                for (slope, value) in slopes.iter_mut().zip(&value_columns[column * rows..][..=row]) {
                    *slope = d.mul_add(*value, *slope);
                }
            }
            let mean = dot(slopes, scores);
            for (slope, score) in slopes.iter_mut().zip(scores) {
                *slope = score * (*slope - mean);
            }
            let query = gathered.query[row];
            let mut dquery = [0.0_f32; W];
            for (at, (slope, score)) in slopes.iter().zip(scores).enumerate() {
                let (key, dkey, dvalue) = (&gathered.key[at], &mut dkey[at], &mut dvalue[at]);
                for column in 0..W {
                    dquery[column] = slope.mul_add(key[column], dquery[column]);
                    dkey[column] = slope.mul_add(query[column], dkey[column]);
                    dvalue[column] = score.mul_add(dout[column], dvalue[column]);
                }
            }
            for value in &mut dquery {
                *value *= scale;
            }
            sequences.rotary.turn(&mut dquery, row, -1.0);
            dqkv[row * 3 * hidden + head * W..][..W].copy_from_slice(&dquery);
        }
        for (row, (dkey, dvalue)) in dkey.iter_mut().zip(&dvalue).enumerate() {
            sequences.rotary.turn(dkey, row, -1.0);
            let dqkv = &mut dqkv[row * 3 * hidden..][..3 * hidden];
            dqkv[hidden + head * W..][..W].copy_from_slice(dkey);
            dqkv[2 * hidden + head * W..][..W].copy_from_slice(dvalue);
        }
    }
}
