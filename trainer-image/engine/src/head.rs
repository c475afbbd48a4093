//! The final norm and the output projection fused with softmax and cross-entropy, forwards and backwards, over the rows that
//! have a target. Pure.

use rayon::prelude::*;

use super::{
    Target,
    kernels::{ROWS, exponentials_of_rows, rms_norm, rms_norm_backward, sum_in_order},
    linear::{linear, linear_backward},
};

/// The weights of the head.
#[derive(Clone, Copy)]
pub(crate) struct Head<'a> {
    /// [width]
    pub(crate) norm: &'a [f32],
    /// [vocabulary, width]
    pub(crate) embedding: &'a [f32],
    pub(crate) eps: f32,
}

impl Head<'_> {
    fn width(&self) -> usize {
        self.norm.len()
    }

    fn vocabulary(&self) -> usize {
        self.embedding.len() / self.width()
    }

    /// The logits [rows, vocabulary] of `x` [rows, width], and its norm.
    fn logits(&self, x: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let mut normed = vec![0.0; x.len()];
        rms_norm(x, self.norm, self.eps, &mut normed);
        let mut logits = vec![0.0; x.len() / self.width() * self.vocabulary()];
        linear(&normed, self.embedding, self.width(), &mut logits, false);
        (logits, normed)
    }

    /// Σ over targets of −ln softmax(logits)[id] for `x` [rows, width].
    pub(crate) fn loss(&self, x: &[f32], targets: &[Target]) -> f64 {
        let piece = |targets: &[Target]| -> f64 {
            let (mut logits, _) = self.logits(&gather(x, self.width(), targets));
            let rows = logits.chunks_exact(self.vocabulary()).zip(targets);
            let chosen: Vec<f32> = rows.map(|(row, target)| row[target.id as usize]).collect();
            let mut totals = vec![(0.0, 0.0); targets.len()];
            exponentials_of_rows(&mut logits, self.vocabulary(), &mut totals);
            let rows = chosen.iter().zip(totals);
            rows.map(|(logit, (top, sum))| f64::from(top - logit) + f64::from(sum).ln()).sum()
        };
        let sums: Vec<f64> = targets.par_chunks(ROWS).map(piece).collect();
        sums.into_iter().sum()
    }

    /// `slope` times the gradients of [`loss`](Self::loss) by `x` (written to `dx`), by the norm and by the embedding.
    pub(crate) fn backward(&self, x: &[f32], targets: &[Target], slope: f32, dx: &mut [f32]) -> (Vec<f32>, Vec<f32>) {
        let (width, vocabulary) = (self.width(), self.vocabulary());
        let piece = |targets: &[Target]| {
            let rows = gather(x, width, targets);
            let (mut logits, normed) = self.logits(&rows);
            let mut totals = vec![(0.0, 0.0); targets.len()];
            exponentials_of_rows(&mut logits, vocabulary, &mut totals);
            for ((logits, target), (_, total)) in logits.chunks_exact_mut(vocabulary).zip(targets).zip(totals) {
                let scale = slope / total;
                for logit in logits.iter_mut() {
                    *logit *= scale;
                }
                logits[target.id as usize] -= slope;
            }
            let mut dnormed = vec![0.0; rows.len()];
            let mut dembedding = vec![0.0; self.embedding.len()];
            linear_backward(&normed, self.embedding, width, &logits, &mut dnormed, &mut dembedding);
            let (mut drows, mut dnorm) = (vec![0.0; rows.len()], vec![0.0; width]);
            rms_norm_backward(&rows, self.norm, self.eps, &dnormed, &mut drows, &mut dnorm);
            (drows, dnorm, dembedding)
        };
        let pieces: Vec<_> = targets.par_chunks(ROWS).map(piece).collect();
        dx.fill(0.0);
        let (mut dnorms, mut dembeddings) = (Vec::new(), Vec::new());
        for (targets, (drows, dnorm, dembedding)) in targets.chunks(ROWS).zip(pieces) {
            for (target, drow) in targets.iter().zip(drows.chunks_exact(width)) {
                dx[target.row * width..][..width].copy_from_slice(drow);
            }
            dnorms.push(dnorm);
            dembeddings.push(dembedding);
        }
        let (mut dnorm, mut dembedding) = (vec![0.0; width], vec![0.0; self.embedding.len()]);
        sum_in_order(&dnorms, &mut dnorm);
        sum_in_order(&dembeddings, &mut dembedding);
        (dnorm, dembedding)
    }
}

fn gather(x: &[f32], width: usize, targets: &[Target]) -> Vec<f32> {
    let mut rows = Vec::with_capacity(targets.len() * width);
    for target in targets {
        rows.extend_from_slice(&x[target.row * width..][..width]);
    }
    rows
}
