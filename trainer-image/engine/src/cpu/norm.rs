//! `RMSNorm` and `LayerNorm`, forward and backward. Pure.

use pulp::Simd;

use super::{
    buffer::scratch,
    dispatch::{dispatched, dispatched_for, each},
    kernels::{dot, scale},
    matrix::Dtype,
};
use crate::model::Norm;

/// Returns 1 / sqrt(mean(x²) + eps).
#[inline(always)]
fn inverse_norm<S: Simd>(simd: S, x: &[f32], eps: f32) -> f32 {
    1.0 / (dot(simd, x, x) / x.len() as f32 + eps).sqrt()
}

#[inline(always)]
fn rms_norm_row<S: Simd>(simd: S, x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
    let factor = simd.splat_f32s(inverse_norm(simd, x, eps));
    each!(simd: S, y; x, weight => simd.mul_f32s(simd.mul_f32s(x, factor), weight));
}

/// Returns Σ x.
#[inline(always)]
fn total<S: Simd>(simd: S, x: &[f32]) -> f32 {
    let (whole, rest) = S::as_simd_f32s(x);
    let mut sum = simd.splat_f32s(0.0);
    for x in whole {
        sum = simd.add_f32s(sum, *x);
    }
    if !rest.is_empty() {
        sum = simd.add_f32s(sum, simd.partial_load_f32s(rest));
    }
    simd.reduce_sum_f32s(sum)
}

/// Computes `to = (x − mean(x)) / sqrt(var(x) + eps)`. Returns 1 / sqrt(var(x) + eps).
#[inline(always)]
fn standardise<S: Simd>(simd: S, x: &[f32], eps: f32, to: &mut [f32]) -> f32 {
    let mean = simd.splat_f32s(total(simd, x) / x.len() as f32);
    {
        let to = &mut *to;
        each!(simd: S, to; x => simd.sub_f32s(x, mean));
    }
    let norm = inverse_norm(simd, to, eps);
    scale(simd, to, norm);
    norm
}

/// The parameters of a norm: `RMSNorm` (Zhang and Sennrich 2019) without a bias, `LayerNorm` (Ba et al. 2016) with one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NormWeights<'a> {
    pub(crate) weight: &'a [f32],
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) eps: f32,
}

impl<'a> NormWeights<'a> {
    /// Returns the parameters of a norm module.
    pub(crate) fn new(norm: &Norm, parameters: &'a [f32], eps: f32) -> Self {
        let bias = norm.bias.clone().map(|bias| &parameters[bias]);
        Self { weight: &parameters[norm.weight.clone()], bias, eps }
    }
}

#[inline(always)]
fn norm_rows<S: Simd, N: Dtype>(simd: S, x: &[f32], norm: NormWeights, y: &mut [N]) {
    let NormWeights { weight, bias, eps } = norm;
    let width = weight.len();
    let mut buffer = scratch::<f32>(width);
    for (y, x) in y.chunks_exact_mut(N::stride(width)).zip(x.chunks_exact(width)) {
        let (y, padding) = y.split_at_mut(width);
        {
            let y = N::place(y, &mut buffer);
            match bias {
                None => rms_norm_row(simd, x, weight, eps, y),
                Some(bias) => {
                    standardise(simd, x, eps, y);
                    each!(simd: S, y; weight, bias => simd.mul_add_f32s(y, weight, bias));
                }
            }
        }
        N::finish(y, &buffer);
        padding.fill(N::default());
    }
}

#[inline(always)]
fn norm_backward_rows<S: Simd>(simd: S, x: &[f32], norm: NormWeights, dy: &[f32], dx: &mut [f32], dw: &mut [f32]) {
    let NormWeights { weight, bias, eps } = norm;
    let width = weight.len();
    let (dw, dbias) = dw.split_at_mut(width);
    let (mut dnormed, mut normed) = (scratch::<f32>(width), scratch::<f32>(width));
    let rows = x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(dx.chunks_exact_mut(width));
    for ((x, dy), dx) in rows {
        let dnormed = &mut dnormed[..];
        let dw = &mut *dw;
        if bias.is_none() {
            let norm = inverse_norm(simd, x, eps);
            let factor = simd.splat_f32s(norm);
            each!(simd: S, dw; x, dy => simd.mul_add_f32s(simd.mul_f32s(dy, factor), x, dw));
            {
                let dnormed = &mut *dnormed;
                each!(simd: S, dnormed; dy, weight => simd.mul_f32s(dy, weight));
            }
            let along = dot(simd, dnormed, x) * norm * norm * norm / width as f32;
            let (along, dnormed) = (simd.splat_f32s(-along), &*dnormed);
            each!(simd: S, dx; dnormed, x => simd.mul_add_f32s(factor, dnormed, simd.mul_add_f32s(along, x, dx)));
        } else {
            let normed = &mut normed[..];
            let norm = standardise(simd, x, eps, normed);
            let normed = &*normed;
            let dbias = &mut *dbias;
            each!(simd: S, dw; normed, dy => simd.mul_add_f32s(dy, normed, dw));
            each!(simd: S, dbias; dy => simd.add_f32s(dbias, dy));
            {
                let dnormed = &mut *dnormed;
                each!(simd: S, dnormed; dy, weight => simd.mul_f32s(dy, weight));
            }
            let mean = simd.splat_f32s(-total(simd, dnormed) / width as f32);
            let along = simd.splat_f32s(-dot(simd, dnormed, normed) / width as f32);
            let (factor, dnormed) = (simd.splat_f32s(norm), &*dnormed);
            each!(simd: S, dx; dnormed, normed => {
                let dnormed_centered = simd.mul_add_f32s(along, normed, simd.add_f32s(dnormed, mean));
                simd.mul_add_f32s(factor, dnormed_centered, dx)
            });
        }
    }
}

dispatched_for!(
    /// Computes the norm of every row of `x`. Rows of `x` have no gaps.
    pub(crate) norm<'a, N>(x: &'a [f32], norm: NormWeights<'a>, y: &'a mut [N]) = norm_rows
);
dispatched!(
    /// Adds the gradients of [`norm`] by `x` to `dx`, and those by weight and bias, concatenated, to `dw`.
    pub(crate) norm_backward<'a>(
        x: &'a [f32], norm: NormWeights<'a>, dy: &'a [f32], dx: &'a mut [f32], dw: &'a mut [f32],
    ) = norm_backward_rows
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_that_do_not_fill_a_register_are_computed() {
        let (x, mut normed) = (vec![1.0_f32; 37], vec![0.0_f32; 37]);
        norm(&x, NormWeights { weight: &[2.0; 37], bias: None, eps: 0.0 }, &mut normed);
        assert!(normed.iter().all(|y| (y - 2.0).abs() < 1e-6), "{normed:?}");
    }
}
