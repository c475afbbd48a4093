//! The final norm and the output projection fused with softmax and cross-entropy, forwards and backwards, over the rows that
//! have a target. Pure.

use rayon::prelude::*;

use super::{
    Target,
    block::{Context, Room, add_norm, piece},
    buffer::{Buffer, scratch},
    kernels::{exponentials_of_rows, multiply_all, norm, norm_backward},
    matrix::{Number, Out},
    model::Model,
};

/// Logits that are held at a time, so that a large vocabulary needs no more memory than a small one.
const LOGITS: usize = 1 << 22;

/// Room for the way back, for as many targets as are computed at a time.
#[derive(Debug, Default)]
pub(crate) struct HeadRoom<N: Number> {
    dlogits: Buffer<N>,
    normed: Buffer<N>,
    dx: Buffer<f32>,
    parts: Buffer<f32>,
    gradients: N::Room,
}

impl<N: Number> HeadRoom<N> {
    /// Bytes that it takes.
    pub(crate) fn bytes(&self) -> usize {
        self.dlogits.bytes()
            + self.normed.bytes()
            + self.dx.bytes()
            + self.parts.bytes()
            + N::bytes(&N::Packs::default(), &self.gradients)
    }
}

/// How many targets are computed at a time: whole pieces.
pub(crate) fn at_a_time(vocabulary: usize, targets: usize) -> usize {
    let piece = piece(targets);
    (LOGITS / vocabulary).max(1).next_multiple_of(piece)
}

/// The logits of the rows of some targets become e^(logit − the largest). Returns Σ of −ln softmax(logits)[id], and each row's
/// sum of exponentials in `totals`.
fn cross_entropy(logits: &mut [f32], vocabulary: usize, targets: &[Target], totals: &mut [(f32, f32)]) -> f64 {
    let chosen: Vec<f32> =
        logits.chunks_exact(vocabulary).zip(targets).map(|(row, target)| row[target.id as usize]).collect();
    exponentials_of_rows(logits, vocabulary, totals);
    let rows = chosen.iter().zip(totals);
    rows.map(|(logit, (top, sum))| f64::from(*top - logit) + f64::from(*sum).ln()).sum()
}

fn gather(x: &[f32], width: usize, targets: &[Target], rows: &mut [f32]) {
    for (row, target) in rows.chunks_exact_mut(width).zip(targets) {
        row.copy_from_slice(&x[target.row * width..][..width]);
    }
}

/// Σ over targets of −ln softmax(logits)[id] for `x` [rows, hidden].
pub(crate) fn loss<N: Number>(context: Context<N>, model: &Model, x: &[f32], targets: &[Target]) -> f64 {
    let (hidden, vocabulary) = (context.hidden, model.head.outputs);
    let sums: Vec<f64> = targets
        .par_chunks(piece(targets.len()).min((LOGITS / vocabulary).max(1)))
        .map(|targets| {
            let mut rows = scratch::<f32>(targets.len() * hidden);
            gather(x, hidden, targets, &mut rows);
            let mut normed = scratch::<N>(targets.len() * N::stride(hidden));
            norm(&rows, context.norm(&model.norm), &mut normed);
            let mut logits = scratch::<f32>(targets.len() * vocabulary);
            N::forward(context.weight(&model.head), &normed, Out::Set(&mut logits));
            let mut totals = vec![(0.0, 0.0); targets.len()];
            cross_entropy(&mut logits, vocabulary, targets, &mut totals)
        })
        .collect();
    sums.into_iter().sum()
}

/// What one task of the way back reads and writes.
struct Piece<'a, N> {
    targets: &'a [Target],
    dlogits: &'a mut [N],
    normed: &'a mut [N],
    dx: &'a mut [f32],
    part: &'a mut [f32],
}

/// As [`loss`], and `slope` times its gradients: by `x`, written to `dx`, and by the weights, added to `gradients`.
pub(crate) fn backward<N: Number>(
    context: Context<N>,
    model: &Model,
    (x, targets): (&[f32], &[Target]),
    slope: f32,
    room: &mut HeadRoom<N>,
    dx: &mut [f32],
    gradients: &mut [f32],
) -> f64 {
    let (hidden, vocabulary) = (context.hidden, model.head.outputs);
    let (wide, narrow) = (N::stride(vocabulary), N::stride(hidden));
    let piece = piece(targets.len());
    dx.fill(0.0);
    let mut sum = 0.0;
    for targets in targets.chunks(at_a_time(vocabulary, targets.len())) {
        let count = targets.len();
        room.dlogits.resize(count * wide);
        room.normed.resize(count * narrow);
        room.dx.resize(count * hidden);
        room.parts.resize(count.div_ceil(piece) * 2 * hidden);
        room.dx.fill(0.0);
        room.parts.fill(0.0);
        let pieces = (
            targets.par_chunks(piece),
            room.dlogits.par_chunks_mut(piece * wide),
            room.normed.par_chunks_mut(piece * narrow),
            room.dx.par_chunks_mut(piece * hidden),
            room.parts.par_chunks_mut(2 * hidden),
        );
        let sums: Vec<f64> = pieces
            .into_par_iter()
            .map(|(targets, dlogits, normed, dx, part)| {
                backward_piece(context, model, x, slope, Piece { targets, dlogits, normed, dx, part })
            })
            .collect();
        sum += sums.into_iter().sum::<f64>();
        add_norm(&model.norm, &room.parts, gradients);
        Room::add_gradients(&mut room.gradients, &[(&model.head, &room.dlogits, &room.normed)], gradients);
        for (target, row) in targets.iter().zip(room.dx.chunks_exact(hidden)) {
            dx[target.row * hidden..][..hidden].copy_from_slice(row);
        }
    }
    sum
}

fn backward_piece<N: Number>(context: Context<N>, model: &Model, x: &[f32], slope: f32, piece: Piece<N>) -> f64 {
    let Piece { targets, dlogits, normed, dx, part } = piece;
    let (hidden, vocabulary) = (context.hidden, model.head.outputs);
    let weights = context.norm(&model.norm);
    let mut rows = scratch::<f32>(targets.len() * hidden);
    gather(x, hidden, targets, &mut rows);
    norm(&rows, weights, normed);
    let mut logits = scratch::<f32>(targets.len() * vocabulary);
    N::forward(context.weight(&model.head), normed, Out::Set(&mut logits));
    let mut totals = vec![(0.0, 0.0); targets.len()];
    let sum = cross_entropy(&mut logits, vocabulary, targets, &mut totals);
    for ((logits, target), (_, total)) in logits.chunks_exact_mut(vocabulary).zip(targets).zip(&totals) {
        multiply_all(logits, slope / total);
        logits[target.id as usize] -= slope;
    }
    N::keep(&logits, vocabulary, dlogits);
    let mut dnormed = scratch::<f32>(rows.len());
    N::backward(context.weight(&model.head), dlogits, Out::Set(&mut dnormed));
    norm_backward(&rows, weights, &dnormed, dx, part);
    sum
}
