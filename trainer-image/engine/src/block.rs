//! One decoder block over packed sequences, forwards and backwards:
//! `x₁ = x + attention(norm(x))`, `y = x₁ + swiglu(norm(x₁))`. Pure.
//!
//! What lies between two attentions is computed piece by piece, so that it stays in the processor's cache. Norms and `SwiGLU`
//! are computed again on the way back rather than kept.

use rayon::prelude::*;

use super::{
    attention::{Sequences, attention, attention_backward},
    kernels::{ROWS, rms_norm, rms_norm_backward, sum_in_order, swiglu, swiglu_backward},
    layout::{BlockWeights, block_sizes},
    linear::{linear, linear_backward},
    scratch::scratch,
};

/// The numbers that a block needs beside its weights.
#[derive(Clone, Copy)]
pub(crate) struct BlockShape<'a> {
    pub(crate) sequences: Sequences<'a>,
    pub(crate) hidden: usize,
    pub(crate) inner: usize,
    pub(crate) eps: f32,
}

/// What the way back needs of the way there.
#[derive(Debug, Default)]
pub(crate) struct Saved {
    /// [rows, 3 · hidden]
    qkv: Vec<f32>,
    /// What attention gathered [rows, hidden].
    mixed: Vec<f32>,
    /// x₁ [rows, hidden]
    middle: Vec<f32>,
    /// [rows, 2 · inner]
    gate_up: Vec<f32>,
}

/// `y` [rows, hidden] of `x`, and what [`backward`] needs.
pub(crate) fn forward(shape: BlockShape, weights: &[f32], x: &[f32], y: &mut [f32]) -> Saved {
    let BlockShape { sequences, hidden, inner, eps } = shape;
    let weights = BlockWeights::cut(weights, hidden, inner);
    let rows = x.len() / hidden;
    let mut saved = Saved {
        qkv: vec![0.0; rows * 3 * hidden],
        mixed: vec![0.0; rows * hidden],
        middle: vec![0.0; rows * hidden],
        gate_up: vec![0.0; rows * 2 * inner],
    };
    (saved.qkv.par_chunks_mut(ROWS * 3 * hidden), x.par_chunks(ROWS * hidden)).into_par_iter().for_each(|(qkv, x)| {
        let mut normed = scratch(x.len());
        rms_norm(x, weights.input_norm, eps, &mut normed);
        linear(&normed, weights.qkv, hidden, qkv, false);
    });
    attention(sequences, &saved.qkv, &mut saved.mixed);
    let pieces = (
        saved.middle.par_chunks_mut(ROWS * hidden),
        saved.gate_up.par_chunks_mut(ROWS * 2 * inner),
        y.par_chunks_mut(ROWS * hidden),
        x.par_chunks(ROWS * hidden),
        saved.mixed.par_chunks(ROWS * hidden),
    );
    pieces.into_par_iter().for_each(|(middle, gate_up, y, x, mixed)| {
        middle.copy_from_slice(x);
        linear(mixed, weights.output, hidden, middle, true);
        // y holds the norm until its own turn.
        rms_norm(middle, weights.inner_norm, eps, y);
        linear(y, weights.gate_up, hidden, gate_up, false);
        let mut product = scratch(gate_up.len() / 2);
        swiglu(gate_up, inner, &mut product);
        y.copy_from_slice(middle);
        linear(&product, weights.down, inner, y, true);
    });
    saved
}

/// The gradients by `x` (written to `dx`) and by the weights (returned, laid out like them).
pub(crate) fn backward(
    shape: BlockShape,
    weights: &[f32],
    x: &[f32],
    saved: &Saved,
    dy: &[f32],
    dx: &mut [f32],
) -> Vec<f32> {
    let BlockShape { sequences, hidden, inner, eps } = shape;
    let [norm_size, qkv_size, ..] = block_sizes(hidden, inner);
    let first = norm_size + qkv_size;
    let (total, weights) = (weights.len(), BlockWeights::cut(weights, hidden, inner));
    let mut dmixed = scratch(x.len());
    // dx holds the gradient by x₁ until the second half.
    let pieces = (
        dx.par_chunks_mut(ROWS * hidden),
        dmixed.par_chunks_mut(ROWS * hidden),
        dy.par_chunks(ROWS * hidden),
        saved.middle.par_chunks(ROWS * hidden),
        saved.gate_up.par_chunks(ROWS * 2 * inner),
        saved.mixed.par_chunks(ROWS * hidden),
    );
    let upper: Vec<Vec<f32>> = pieces
        .into_par_iter()
        .map(|(dmiddle, dmixed, dy, middle, gate_up, mixed)| {
            let mut gradient = vec![0.0; total - first];
            let [_, _, output, inner_norm, gate_up_size, _] = block_sizes(hidden, inner);
            let (doutput, rest) = gradient.split_at_mut(output);
            let (dinner_norm, rest) = rest.split_at_mut(inner_norm);
            let (dgate_up_weight, ddown) = rest.split_at_mut(gate_up_size);
            let mut product = scratch(gate_up.len() / 2);
            swiglu(gate_up, inner, &mut product);
            let mut dproduct = scratch(product.len());
            linear_backward(&product, weights.down, inner, dy, &mut dproduct, ddown);
            let mut dgate_up = scratch(gate_up.len());
            swiglu_backward(gate_up, inner, &dproduct, &mut dgate_up);
            let (mut normed, mut dnormed) = (scratch(middle.len()), scratch(middle.len()));
            rms_norm(middle, weights.inner_norm, eps, &mut normed);
            linear_backward(&normed, weights.gate_up, hidden, &dgate_up, &mut dnormed, dgate_up_weight);
            dmiddle.copy_from_slice(dy);
            rms_norm_backward(middle, weights.inner_norm, eps, &dnormed, dmiddle, dinner_norm);
            linear_backward(mixed, weights.output, hidden, dmiddle, dmixed, doutput);
            gradient
        })
        .collect();
    let mut dqkv = scratch(saved.qkv.len());
    attention_backward(sequences, &saved.qkv, &dmixed, &mut dqkv);
    let pieces = (dx.par_chunks_mut(ROWS * hidden), x.par_chunks(ROWS * hidden), dqkv.par_chunks(ROWS * 3 * hidden));
    let lower: Vec<Vec<f32>> = pieces
        .into_par_iter()
        .map(|(dx, x, dqkv)| {
            let mut gradient = vec![0.0; first];
            let (dinput_norm, dqkv_weight) = gradient.split_at_mut(norm_size);
            let (mut normed, mut dnormed) = (scratch(x.len()), scratch(x.len()));
            rms_norm(x, weights.input_norm, eps, &mut normed);
            linear_backward(&normed, weights.qkv, hidden, dqkv, &mut dnormed, dqkv_weight);
            rms_norm_backward(x, weights.input_norm, eps, &dnormed, dx, dinput_norm);
            gradient
        })
        .collect();
    let mut gradient = vec![0.0; total];
    let (low, up) = gradient.split_at_mut(first);
    sum_in_order(&lower, low);
    sum_in_order(&upper, up);
    gradient
}
