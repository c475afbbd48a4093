//! Linear layers with an adapter: `y = W x + s · B A x̃`, where x̃ is the input after dropout. W is frozen. Pure.

use super::{
    block::Context,
    buffer::scratch,
    kernels::{add, multiply_all},
    matrix::{Dtype, Out, Weight},
};
use crate::model::{Adapter, Dropout, Linear};

/// The adapters' parameters and settings that a batch is computed with.
pub(crate) struct LoraContext<'a, N: Dtype> {
    /// The vector of matrices.
    pub(crate) matrices: &'a [f32],
    pub(crate) packs: &'a N::Packs,
    /// s = α / r
    pub(crate) scale: f32,
    pub(crate) dropout: Option<Dropout>,
}

#[allow(clippy::expl_impl_clone_on_copy, reason = "derived, it would require the packs to be `Copy`")]
impl<N: Dtype> Clone for LoraContext<'_, N> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<N: Dtype> Copy for LoraContext<'_, N> {}

impl<'a, N: Dtype> LoraContext<'a, N> {
    fn weight(&self, matrix: &'a Linear) -> Weight<'a, N> {
        Weight { matrix, parameters: self.matrices, packs: self.packs }
    }

    /// Computes `low` = s · A x̃ for inputs after dropout.
    fn reduce(&self, adapter: &'a Adapter, dropped: &[N], low: &mut [N]) {
        let width = adapter.a.outputs;
        let mut sum = scratch::<f32>(dropped.len() / N::stride(adapter.a.inputs) * width);
        N::forward(self.weight(&adapter.a), dropped, Out::Set(&mut sum));
        multiply_all(&mut sum, self.scale);
        N::keep(&sum, width, low);
    }
}

/// A linear layer and its adapter, if it has one.
#[derive(Clone, Copy)]
pub(crate) struct Layer<'a> {
    linear: &'a Linear,
    adapter: Option<&'a Adapter>,
}

impl<'a> Layer<'a> {
    pub(crate) fn new(linear: &'a Linear, adapter: Option<&'a Adapter>) -> Self {
        Self { linear, adapter }
    }

    /// Computes the layer for `x`, whose first row has index `row` in the batch, on this thread.
    pub(crate) fn forward<N: Dtype>(self, context: Context<'a, N>, row: usize, x: &[N], out: Out<N>) {
        let weight = context.weight(self.linear);
        let (Some(adapter), Some(lora)) = (self.adapter, context.lora) else { return N::forward(weight, x, out) };
        let rows = x.len() / N::stride(self.linear.inputs);
        let mut low = scratch::<N>(rows * N::stride(adapter.a.outputs));
        if let Some(dropout) = lora.dropout {
            let mut dropped = scratch::<N>(x.len());
            dropped.copy_from_slice(x);
            drop_out(dropout, adapter, row, &mut dropped);
            lora.reduce(adapter, &dropped, &mut low);
        } else {
            lora.reduce(adapter, x, &mut low);
        }
        let expand = |out: &mut [f32]| N::forward(lora.weight(&adapter.b), &low, Out::Add(out));
        match out {
            Out::Store(out) => {
                let mut sum = scratch::<f32>(rows * self.linear.outputs);
                N::forward(weight, x, Out::Set(&mut sum));
                expand(&mut sum);
                N::keep(&sum, self.linear.outputs, out);
            }
            Out::Set(out) => {
                N::forward(weight, x, Out::Set(&mut *out));
                expand(out);
            }
            Out::Add(out) => {
                N::forward(weight, x, Out::Add(&mut *out));
                expand(out);
            }
        }
    }

    /// Computes the gradient by the input, and `dlow`, the gradient by A x̃.
    pub(crate) fn backward<N: Dtype>(self, context: Context<'a, N>, row: usize, dy: &[N], dlow: &mut [N], out: Out<N>) {
        let weight = context.weight(self.linear);
        let (Some(adapter), Some(lora)) = (self.adapter, context.lora) else { return N::backward(weight, dy, out) };
        let (inputs, width) = (self.linear.inputs, adapter.b.inputs);
        let rows = dy.len() / N::stride(self.linear.outputs);
        {
            let mut sum = scratch::<f32>(rows * width);
            N::backward(lora.weight(&adapter.b), dy, Out::Set(&mut sum));
            multiply_all(&mut sum, lora.scale);
            N::keep(&sum, width, dlow);
        }
        let mut dx = scratch::<f32>(rows * inputs);
        N::backward(lora.weight(&adapter.a), dlow, Out::Set(&mut dx));
        if let Some(dropout) = lora.dropout {
            let mut factors = scratch::<f32>(inputs);
            for (at, dx) in dx.chunks_exact_mut(inputs).enumerate() {
                dropout.factors(adapter.stream, row + at, &mut factors);
                dx.iter_mut().zip(&*factors).for_each(|(dx, factor)| *dx *= factor);
            }
        }
        match out {
            Out::Store(out) => {
                N::backward(weight, dy, Out::Add(&mut dx));
                N::keep(&dx, inputs, out);
            }
            Out::Set(out) => {
                N::backward(weight, dy, Out::Set(&mut *out));
                add(&dx, out);
            }
            Out::Add(out) => {
                N::backward(weight, dy, Out::Add(&mut *out));
                add(&dx, out);
            }
        }
    }

    /// Computes what the gradients of the adapter are products of: replaces the input `x` with x̃, and computes `low`.
    pub(crate) fn operands<N: Dtype>(self, context: Context<'a, N>, row: usize, x: &mut [N], low: &mut [N]) {
        let (Some(adapter), Some(lora)) = (self.adapter, context.lora) else { return };
        if let Some(dropout) = lora.dropout {
            drop_out(dropout, adapter, row, x);
        }
        lora.reduce(adapter, x, low);
    }
}

/// Applies dropout to the inputs of an adapter; the first row has index `row` in the batch.
fn drop_out<N: Dtype>(dropout: Dropout, adapter: &Adapter, row: usize, x: &mut [N]) {
    let width = adapter.a.inputs;
    let stride = N::stride(width);
    let (mut factors, mut numbers) = (scratch::<f32>(width), scratch::<f32>(width));
    for (at, x) in x.chunks_exact_mut(stride).enumerate() {
        dropout.factors(adapter.stream, row + at, &mut factors);
        N::gather(x, stride, width, &mut numbers);
        numbers.iter_mut().zip(&*factors).for_each(|(x, factor)| *x *= factor);
        N::keep(&numbers, width, x);
    }
}
