//! The activations of a feed-forward part, forward and backward. Pure.

use pulp::Simd;

use super::{
    buffer::scratch,
    dispatch::{dispatched_for, each},
    kernels::exp,
    matrix::Dtype,
};
use crate::{Family, ModelConfig};

/// 1 / (1 + e^−x)
#[inline(always)]
fn sigmoid<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let one = simd.splat_f32s(1.0);
    simd.div_f32s(one, simd.add_f32s(one, exp(simd, simd.neg_f32s(x))))
}

/// `y = silu(gate) · up`
#[inline(always)]
fn swiglu_row<S: Simd>(simd: S, gate: &[f32], up: &[f32], y: &mut [f32]) {
    each!(simd: S, y; gate, up => simd.mul_f32s(simd.mul_f32s(gate, sigmoid(simd, gate)), up));
}

/// Returns tanh(√(2/π) · (x + 0.044715 · x³)) and its derivative.
#[inline(always)]
fn gelu_tanh<S: Simd>(simd: S, x: S::f32s) -> (S::f32s, S::f32s) {
    const ROOT: f32 = 0.797_884_6;
    const CUBE: f32 = 0.044_715;
    let splat = |value: f32| simd.splat_f32s(value);
    let square = simd.mul_f32s(x, x);
    let inner = simd.mul_f32s(simd.mul_f32s(splat(ROOT), x), simd.mul_add_f32s(splat(CUBE), square, splat(1.0)));
    // tanh(u) = 2 · sigmoid(2u) − 1
    let tanh = simd.mul_add_f32s(splat(2.0), sigmoid(simd, simd.add_f32s(inner, inner)), splat(-1.0));
    let derivative = simd.mul_f32s(splat(ROOT), simd.mul_add_f32s(splat(3.0 * CUBE), square, splat(1.0)));
    let along = simd.sub_f32s(splat(1.0), simd.mul_f32s(tanh, tanh));
    (tanh, simd.mul_f32s(along, derivative))
}

/// `y = x / 2 · (1 + tanh(…))`, Hugging Face's `gelu_new`.
#[inline(always)]
fn gelu_row<S: Simd>(simd: S, x: &[f32], y: &mut [f32]) {
    let half = simd.splat_f32s(0.5);
    each!(simd: S, y; x => {
        let (tanh, _) = gelu_tanh(simd, x);
        let sigma = simd.mul_f32s(half, x);
        simd.mul_add_f32s(sigma, tanh, sigma)
    });
}

/// The activation function of a feed-forward part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activation {
    /// `silu(gate) · up`, over rows that hold gate and up side by side.
    SwiGlu,
    /// Hugging Face's `gelu_new`.
    Gelu,
}

impl Activation {
    /// Returns the activation of a model.
    pub(crate) fn of(config: &ModelConfig) -> Self {
        match config.family {
            Family::Llama => Self::SwiGlu,
            Family::Gpt2 => Self::Gelu,
        }
    }

    /// Returns the input width for an output of `width`.
    pub(crate) fn inputs(self, width: usize) -> usize {
        match self {
            Self::SwiGlu => 2 * width,
            Self::Gelu => width,
        }
    }
}

#[inline(always)]
fn activation_rows<S: Simd, N: Dtype>(simd: S, activation: Activation, x: &[N], width: usize, y: &mut [N]) {
    let wide = activation.inputs(width);
    let (mut x_buffer, mut y_buffer) = (scratch::<f32>(wide), scratch::<f32>(width));
    for (x, y) in x.chunks_exact(N::stride(wide)).zip(y.chunks_exact_mut(N::stride(width))) {
        let (y, padding) = y.split_at_mut(width);
        let x = N::read(&x[..wide], &mut x_buffer);
        {
            let y = N::place(y, &mut y_buffer);
            match activation {
                Activation::SwiGlu => swiglu_row(simd, &x[..width], &x[width..], y),
                Activation::Gelu => gelu_row(simd, x, y),
            }
        }
        N::finish(y, &y_buffer);
        padding.fill(N::default());
    }
}

/// Operands of the backward pass of an [`Activation`]. Rows of `x` and `dx` have the input width, rows of `y` and `dy` the
/// output width.
pub(crate) struct ActivationBackward<'a, N> {
    pub(crate) activation: Activation,
    pub(crate) width: usize,
    pub(crate) x: &'a [N],
    pub(crate) dy: &'a [N],
    /// The activation's output, computed again.
    pub(crate) y: &'a mut [N],
    pub(crate) dx: &'a mut [N],
}

#[inline(always)]
fn activation_backward_rows<S: Simd, N: Dtype>(simd: S, work: ActivationBackward<N>) {
    let ActivationBackward { activation, width, x, dy, y, dx } = work;
    let wide = activation.inputs(width);
    let (mut x_buffer, mut dx_buffer) = (scratch::<f32>(wide), scratch::<f32>(wide));
    let (mut y_buffer, mut dy_buffer) = (scratch::<f32>(width), scratch::<f32>(width));
    let (narrow, wider) = (N::stride(width), N::stride(wide));
    let rows = x.chunks_exact(wider).zip(dx.chunks_exact_mut(wider));
    let rows = rows.zip(dy.chunks_exact(narrow).zip(y.chunks_exact_mut(narrow)));
    for ((x, dx), (dy, y)) in rows {
        let ((dx, dx_padding), (y, y_padding)) = (dx.split_at_mut(wide), y.split_at_mut(width));
        let (x, dy) = (N::read(&x[..wide], &mut x_buffer), N::read(&dy[..width], &mut dy_buffer));
        {
            let (dx, y) = (N::place(dx, &mut dx_buffer), N::place(y, &mut y_buffer));
            match activation {
                Activation::SwiGlu => swiglu_backward_row(simd, x, dy, y, dx),
                Activation::Gelu => gelu_backward_row(simd, x, dy, y, dx),
            }
        }
        N::finish(dx, &dx_buffer);
        N::finish(y, &y_buffer);
        dx_padding.fill(N::default());
        y_padding.fill(N::default());
    }
}

#[inline(always)]
fn swiglu_backward_row<S: Simd>(simd: S, x: &[f32], dy: &[f32], y: &mut [f32], dx: &mut [f32]) {
    let one = simd.splat_f32s(1.0);
    let (gate, up) = x.split_at(y.len());
    let (dgate, dup) = dx.split_at_mut(y.len());
    // `dup` holds the sigmoid until `dgate` is complete.
    {
        let dup = &mut *dup;
        each!(simd: S, dup; gate => sigmoid(simd, gate));
    }
    {
        let sigma = &*dup;
        each!(simd: S, dgate; gate, up, dy, sigma => {
            let derivative = simd.mul_add_f32s(gate, simd.sub_f32s(one, sigma), one);
            simd.mul_f32s(simd.mul_f32s(dy, up), simd.mul_f32s(sigma, derivative))
        });
        each!(simd: S, y; gate, up, sigma => simd.mul_f32s(simd.mul_f32s(gate, sigma), up));
    }
    each!(simd: S, dup; gate, dy => simd.mul_f32s(simd.mul_f32s(dy, gate), dup));
}

#[inline(always)]
fn gelu_backward_row<S: Simd>(simd: S, x: &[f32], dy: &[f32], y: &mut [f32], dx: &mut [f32]) {
    let half = simd.splat_f32s(0.5);
    gelu_row(simd, x, y);
    each!(simd: S, dx; x, dy => {
        let (tanh, derivative) = gelu_tanh(simd, x);
        let derivative = simd.mul_add_f32s(x, derivative, simd.add_f32s(simd.splat_f32s(1.0), tanh));
        simd.mul_f32s(simd.mul_f32s(half, dy), derivative)
    });
}

dispatched_for!(
    /// Applies the activation to every row of `x`; rows of `y` are `width` wide.
    pub(crate) activate<'a, N>(activation: Activation, x: &'a [N], width: usize, y: &'a mut [N]) = activation_rows
);
dispatched_for!(
    /// Computes the gradient of [`activate`] by its input.
    pub(crate) activation_backward<'a, N>(work: ActivationBackward<'a, N>) = activation_backward_rows
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_that_do_not_fill_a_register_are_computed() {
        let (gate_up, mut y) = (vec![1.0; 2 * 37], vec![0.0; 37]);
        activate(Activation::SwiGlu, &gate_up, 37, &mut y);
        assert!(y.iter().all(|y| (y - 0.731_058_6).abs() < 1e-6), "{y:?}");
    }
}
