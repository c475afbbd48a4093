//! The output projection fused with softmax and cross-entropy, forwards and backwards, over the rows that have a target.
//! Pure.

use rayon::prelude::*;

use super::{
    kernels::{ROWS, exponentials_of_rows, sum_in_order},
    linear::{linear, linear_backward},
};

/// A row that has a target, and the id it should predict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The row.
    pub row: usize,
    /// The id.
    pub id: u32,
}

/// Σ over targets of −ln softmax(hidden · weightᵀ)[id]: `hidden` [rows, width], `weight` [vocabulary, width].
pub(super) fn loss(hidden: &[f32], weight: &[f32], width: usize, targets: &[Target]) -> f64 {
    let vocabulary = weight.len() / width;
    let pieces: Vec<f64> = targets
        .par_chunks(ROWS)
        .map(|targets| {
            let rows = gather(hidden, width, targets);
            let mut logits = vec![0.0; targets.len() * vocabulary];
            linear(&rows, weight, width, &mut logits, false);
            let chosen = logits.chunks_exact(vocabulary).zip(targets).map(|(row, target)| row[target.id as usize]);
            let chosen: Vec<f32> = chosen.collect();
            let mut totals = vec![(0.0, 0.0); targets.len()];
            exponentials_of_rows(&mut logits, vocabulary, &mut totals);
            let losses =
                chosen.iter().zip(totals).map(|(logit, (top, sum))| f64::from(top - logit) + f64::from(sum).ln());
            losses.sum()
        })
        .collect();
    pieces.into_iter().sum()
}

/// `slope` times the gradients of [`loss`] by `hidden` (written to `dhidden`) and by `weight` (returned).
pub(super) fn loss_backward(
    hidden: &[f32],
    weight: &[f32],
    width: usize,
    targets: &[Target],
    slope: f32,
    dhidden: &mut [f32],
) -> Vec<f32> {
    let vocabulary = weight.len() / width;
    let pieces: Vec<(Vec<f32>, Vec<f32>)> = targets
        .par_chunks(ROWS)
        .map(|targets| {
            let rows = gather(hidden, width, targets);
            let mut logits = vec![0.0; targets.len() * vocabulary];
            linear(&rows, weight, width, &mut logits, false);
            let mut totals = vec![(0.0, 0.0); targets.len()];
            exponentials_of_rows(&mut logits, vocabulary, &mut totals);
            for ((logits, target), (_, total)) in logits.chunks_exact_mut(vocabulary).zip(targets).zip(totals) {
                let scale = slope / total;
                for logit in logits.iter_mut() {
                    *logit *= scale;
                }
                logits[target.id as usize] -= slope;
            }
            let mut drows = vec![0.0; rows.len()];
            let dweight = linear_backward(&rows, weight, width, &logits, &mut drows);
            (drows, dweight)
        })
        .collect();
    dhidden.fill(0.0);
    let mut partial = Vec::with_capacity(pieces.len());
    for (targets, (drows, dweight)) in targets.chunks(ROWS).zip(pieces) {
        for (target, drow) in targets.iter().zip(drows.chunks_exact(width)) {
            dhidden[target.row * width..][..width].copy_from_slice(drow);
        }
        partial.push(dweight);
    }
    sum_in_order(partial, weight.len())
}

fn gather(hidden: &[f32], width: usize, targets: &[Target]) -> Vec<f32> {
    let mut rows = Vec::with_capacity(targets.len() * width);
    for target in targets {
        rows.extend_from_slice(&hidden[target.row * width..][..width]);
    }
    rows
}
