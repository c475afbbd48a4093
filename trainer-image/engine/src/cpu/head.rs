//! The final norm and the output projection, fused with softmax and cross-entropy, forward and backward, over the rows that
//! have a target. Pure.

use rayon::prelude::*;

use super::{
    block::{Context, Workspace, add_norm},
    buffer::{Buffer, scratch},
    kernels::{exponentials_of_rows, multiply_all},
    matrix::{Dtype, Out, chunk_rows},
    norm::{norm, norm_backward},
};
use crate::{Target, model::Model};

/// Maximum of logits held at once, so that a large vocabulary needs no more memory than a small one.
const LOGITS: usize = 1 << 22;

/// Buffers of the backward pass for the targets that are computed at once.
#[derive(Debug, Default)]
pub(crate) struct HeadWorkspace<N: Dtype> {
    dlogits: Buffer<N>,
    normed: Buffer<N>,
    dx: Buffer<f32>,
    parts: Buffer<f32>,
    gradients: N::Workspace,
}

impl<N: Dtype> HeadWorkspace<N> {
    /// Returns the bytes held.
    pub(crate) fn bytes(&self) -> usize {
        self.dlogits.bytes()
            + self.normed.bytes()
            + self.dx.bytes()
            + self.parts.bytes()
            + N::bytes(&N::Packs::default(), &self.gradients)
    }
}

/// Returns how many targets are computed at once: a multiple of a chunk.
pub(crate) fn targets_per_pass(vocabulary: usize, targets: usize) -> usize {
    let chunk_rows = chunk_rows(targets);
    (LOGITS / vocabulary).max(1).next_multiple_of(chunk_rows)
}

/// Replaces the logits of the targets' rows with e^(logit − maximum). Returns −ln softmax(logits)[id] of each, and each row's
/// (maximum, sum) in `totals`.
fn cross_entropy(logits: &mut [f32], vocabulary: usize, targets: &[Target], totals: &mut [(f32, f32)]) -> Vec<f64> {
    let chosen: Vec<f32> =
        logits.chunks_exact(vocabulary).zip(targets).map(|(row, target)| row[target.id as usize]).collect();
    exponentials_of_rows(logits, vocabulary, totals);
    let rows = chosen.iter().zip(totals);
    rows.map(|(logit, (top, sum))| f64::from(*top - logit) + f64::from(*sum).ln()).collect()
}

/// Returns −ln softmax(logits)[id], to the bit as training computes it.
pub(crate) fn surprise(logits: &[f32], id: u32) -> f64 {
    let mut row = scratch::<f32>(logits.len());
    row.copy_from_slice(logits);
    let mut totals = [(0.0, 0.0)];
    cross_entropy(&mut row, logits.len(), &[Target { row: 0, id }], &mut totals).into_iter().sum()
}

fn gather(x: &[f32], width: usize, targets: &[Target], rows: &mut [f32]) {
    for (row, target) in rows.chunks_exact_mut(width).zip(targets) {
        row.copy_from_slice(&x[target.row * width..][..width]);
    }
}

/// Returns −ln softmax(logits)[id] of the targets for `x` [rows, hidden], in the pieces in which they are computed.
pub(crate) fn losses<N: Dtype>(context: Context<N>, model: &Model, x: &[f32], targets: &[Target]) -> Vec<Vec<f64>> {
    let (hidden, vocabulary) = (context.hidden, model.head.outputs);
    targets
        .par_chunks(chunk_rows(targets.len()).min((LOGITS / vocabulary).max(1)))
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
        .collect()
}

/// Returns Σ over targets of −ln softmax(logits)[id] for `x` [rows, hidden].
pub(crate) fn loss<N: Dtype>(context: Context<N>, model: &Model, x: &[f32], targets: &[Target]) -> f64 {
    losses(context, model, x, targets).into_iter().map(|piece| piece.into_iter().sum::<f64>()).sum()
}

/// Operands of one backward task.
struct Chunk<'a, N> {
    targets: &'a [Target],
    scales: &'a [f32],
    dlogits: &'a mut [N],
    normed: &'a mut [N],
    dx: &'a mut [f32],
    part: &'a mut [f32],
}

/// As [`loss`], and computes the gradients of Σ of each target's loss times its scale: by `x` into `dx`; those of the weights are
/// added to `gradients`, unless they are frozen.
pub(crate) fn backward<N: Dtype>(
    context: Context<N>,
    model: &Model,
    (x, targets, scales): (&[f32], &[Target], &[f32]),
    workspace: &mut HeadWorkspace<N>,
    dx: &mut [f32],
    mut gradients: Option<&mut [f32]>,
) -> f64 {
    let (hidden, vocabulary) = (context.hidden, model.head.outputs);
    let (wide, narrow) = (N::stride(vocabulary), N::stride(hidden));
    let chunk_rows = chunk_rows(targets.len());
    dx.fill(0.0);
    let mut sum = 0.0;
    let pass = targets_per_pass(vocabulary, targets.len());
    for (targets, scales) in targets.chunks(pass).zip(scales.chunks(pass)) {
        let count = targets.len();
        workspace.dlogits.resize(count * wide);
        workspace.normed.resize(count * narrow);
        workspace.dx.resize(count * hidden);
        workspace.parts.resize(count.div_ceil(chunk_rows) * 2 * hidden);
        workspace.dx.fill(0.0);
        workspace.parts.fill(0.0);
        let chunks = (
            targets.par_chunks(chunk_rows),
            scales.par_chunks(chunk_rows),
            workspace.dlogits.par_chunks_mut(chunk_rows * wide),
            workspace.normed.par_chunks_mut(chunk_rows * narrow),
            workspace.dx.par_chunks_mut(chunk_rows * hidden),
            workspace.parts.par_chunks_mut(2 * hidden),
        );
        let sums: Vec<f64> = chunks
            .into_par_iter()
            .map(|(targets, scales, dlogits, normed, dx, part)| {
                backward_chunk(context, model, x, Chunk { targets, scales, dlogits, normed, dx, part })
            })
            .collect();
        sum += sums.into_iter().sum::<f64>();
        if let Some(gradients) = gradients.as_deref_mut() {
            add_norm(&model.norm, &workspace.parts, gradients);
            Workspace::add_gradients(
                &mut workspace.gradients,
                &[(&model.head, &workspace.dlogits, &workspace.normed)],
                gradients,
            );
        }
        for (target, row) in targets.iter().zip(workspace.dx.chunks_exact(hidden)) {
            dx[target.row * hidden..][..hidden].copy_from_slice(row);
        }
    }
    sum
}

fn backward_chunk<N: Dtype>(context: Context<N>, model: &Model, x: &[f32], chunk: Chunk<N>) -> f64 {
    let Chunk { targets, scales, dlogits, normed, dx, part } = chunk;
    let (hidden, vocabulary) = (context.hidden, model.head.outputs);
    let weights = context.norm(&model.norm);
    let mut rows = scratch::<f32>(targets.len() * hidden);
    gather(x, hidden, targets, &mut rows);
    norm(&rows, weights, normed);
    let mut logits = scratch::<f32>(targets.len() * vocabulary);
    N::forward(context.weight(&model.head), normed, Out::Set(&mut logits));
    let mut totals = vec![(0.0, 0.0); targets.len()];
    let sum = cross_entropy(&mut logits, vocabulary, targets, &mut totals).into_iter().sum();
    let rows_of_logits = logits.chunks_exact_mut(vocabulary).zip(targets).zip(scales);
    for (((logits, target), scale), (_, total)) in rows_of_logits.zip(&totals) {
        multiply_all(logits, scale / total);
        logits[target.id as usize] -= scale;
    }
    N::keep(&logits, vocabulary, dlogits);
    let mut dnormed = scratch::<f32>(rows.len());
    N::backward(context.weight(&model.head), dlogits, Out::Set(&mut dnormed));
    norm_backward(&rows, weights, &dnormed, dx, part);
    sum
}
