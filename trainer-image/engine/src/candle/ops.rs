//! Operations whose gradients are written here. Their values come from candle-nn's fused kernels, which have no gradient and
//! say nothing about it, or need less memory for the backward pass than candle's composition would.
//!
//! Every operation computes its value outside the graph, then enters the graph as one node that holds its inputs.

use candle_core::{
    CpuStorage, CudaStorage, CustomOp2, CustomOp3, D, DType, Device, Layout, Result, Shape, Tensor,
    backend::BackendStorage as _,
};
use candle_nn::{ops, rotary_emb};

/// A node with one differentiable input `x` and a given value: (x, value) → value.
struct One<F> {
    name: &'static str,
    /// (x, value, gradient of the value) → gradient of x.
    backward: F,
}

/// A node with two differentiable inputs and a given value: (a, b, value) → value.
pub(super) struct Two<F> {
    pub(super) name: &'static str,
    /// (a, b, value, gradient of the value) → gradients of a and b.
    pub(super) backward: F,
}

impl<F: Fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor>> CustomOp2 for One<F> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, value: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((value.try_clone(layout)?, layout.shape().clone()))
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        value: &CudaStorage,
        layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        Ok((value.try_clone(layout)?, layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        _: &Tensor,
        value: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [x, value, gradient] = [x, value, gradient].map(Tensor::detach);
        Ok((Some((self.backward)(&x, &value, &gradient)?), None))
    }
}

impl<F: Fn(&Tensor, &Tensor, &Tensor, &Tensor) -> Result<(Tensor, Tensor)>> CustomOp3 for Two<F> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        value: &CpuStorage,
        layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        Ok((value.try_clone(layout)?, layout.shape().clone()))
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        value: &CudaStorage,
        layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        Ok((value.try_clone(layout)?, layout.shape().clone()))
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        _: &Tensor,
        value: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [a, b, value, gradient] = [a, b, value, gradient].map(Tensor::detach);
        let (a, b) = (self.backward)(&a, &b, &value, &gradient)?;
        Ok((Some(a), Some(b), None))
    }
}

/// Multiplies rows [rows, inputs] by a frozen weight [outputs, inputs]: [rows, outputs]. candle's product would compute the
/// weight's gradient, too.
pub(super) fn frozen_linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let weight = weight.detach();
    let value = x.detach().matmul(&weight.t()?)?;
    let backward = move |_: &Tensor, _: &Tensor, gradient: &Tensor| gradient.matmul(&weight);
    x.apply_op2(&value, One { name: "frozen-linear", backward })
}

/// `RMSNorm` over the last dimension (Zhang and Sennrich 2019): x / √(mean x² + ε) · weight.
pub(super) fn rms_norm(x: &Tensor, weight: &Tensor, epsilon: f64) -> Result<Tensor> {
    let x = x.contiguous()?;
    let value = ops::rms_norm(&x.detach(), &weight.detach(), epsilon as f32)?;
    let backward = move |x: &Tensor, weight: &Tensor, _: &Tensor, gradient: &Tensor| {
        let (from, wide) = (x.dtype(), x.to_dtype(DType::F32)?);
        let gradient = gradient.to_dtype(DType::F32)?;
        let scale = (wide.sqr()?.mean_keepdim(D::Minus1)? + epsilon)?.sqrt()?.recip()?;
        let normed = wide.broadcast_mul(&scale)?;
        let weighted = gradient.broadcast_mul(&weight.to_dtype(DType::F32)?)?;
        let along = (&weighted * &normed)?.mean_keepdim(D::Minus1)?;
        let of_x = (weighted - normed.broadcast_mul(&along)?)?.broadcast_mul(&scale)?;
        let width = x.dim(D::Minus1)?;
        let of_weight = (gradient * normed)?.reshape(((), width))?.sum(0)?;
        Ok((of_x.to_dtype(from)?, of_weight.to_dtype(weight.dtype())?))
    };
    x.apply_op3(weight, &value, Two { name: "rms-norm", backward })
}

/// Rotary positions (Su et al. 2021) of [sequences, heads, rows, width] with cosines and sines [rows, width / 2].
pub(super) fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let x = x.contiguous()?;
    let value = rotary_emb::rope(&x.detach(), cos, sin)?;
    let (cos, back) = (cos.clone(), sin.neg()?);
    let backward =
        move |_: &Tensor, _: &Tensor, gradient: &Tensor| rotary_emb::rope(&gradient.contiguous()?, &cos, &back);
    x.apply_op2(&value, One { name: "rope", backward })
}

/// `SwiGLU` (Shazeer 2020): silu(gate) · up.
pub(super) fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let value = (gate.detach().silu()? * up.detach())?;
    let backward = |gate: &Tensor, up: &Tensor, _: &Tensor, gradient: &Tensor| {
        let sigmoid = ops::sigmoid(gate)?;
        let silu = (gate * &sigmoid)?;
        // silu' = σ + silu · (1 − σ)
        let slope = (&sigmoid + (&silu * (1.0 - &sigmoid)?)?)?;
        Ok(((gradient * up)?.mul(&slope)?, (gradient * silu)?))
    };
    gate.apply_op3(up, &value, Two { name: "swiglu", backward })
}

/// Selects rows of [rows, width], each at most once: [selected, width]. `back` has the place of each row among the selected, or
/// [`NOTHING`](super::documents::NOTHING). candle's own gradient adds the rows up one after another.
pub(super) fn select(x: &Tensor, rows: &Tensor, back: Tensor) -> Result<Tensor> {
    let value = x.detach().index_select(rows, 0)?;
    let backward = move |_: &Tensor, _: &Tensor, gradient: &Tensor| gradient.contiguous()?.index_select(&back, 0);
    x.apply_op2(&value, One { name: "select", backward })
}

/// Splits queries [sequences, heads, rows, width], and keys and values [sequences, key-value heads, columns, 2 · width], into queries
/// [sequences · key-value heads, heads of a group · rows, width], keys and values [sequences · key-value heads, columns, width]. Query
/// heads that share a key-value head are neighbours.
pub(super) fn grouped(q: &Tensor, kv: &Tensor) -> Result<[Tensor; 3]> {
    let (sequences, heads, rows, width) = q.dims4()?;
    let (_, shared, columns, _) = kv.dims4()?;
    let q = q.reshape((sequences * shared, heads / shared * rows, width))?;
    let kv = kv.reshape((sequences * shared, columns, 2 * width))?;
    Ok([q, kv.narrow(2, 0, width)?.contiguous()?, kv.narrow(2, width, width)?.contiguous()?])
}

/// Returns softmax(q kᵀ / √width + mask) of what [`grouped`] returns: [pairs, heads of a group · rows, columns].
pub(super) fn probabilities(q: &Tensor, k: &Tensor, mask: &Tensor) -> Result<Tensor> {
    let (pairs, grouped_rows, width) = q.dims3()?;
    let (rows, columns) = mask.dims2()?;
    // Queries are scaled before they are multiplied, because unscaled scores leave the range of `f16` first.
    let scores = (q * (1.0 / (width as f64).sqrt()))?.matmul(&k.t()?)?.to_dtype(DType::F32)?;
    let scores = scores.reshape((pairs, grouped_rows / rows, rows, columns))?.broadcast_add(mask)?;
    ops::softmax_last_dim(&scores)?.to_dtype(q.dtype())?.reshape((pairs, grouped_rows, columns))
}

/// Returns the mask of the last `rows` of `columns` positions: 0 up to a row's own position, −∞ after it.
pub(super) fn causal(rows: usize, columns: usize, device: &Device) -> Result<Tensor> {
    let hidden = |row: usize, column: usize| column > row + columns - rows;
    let mask: Vec<f32> = (0..rows)
        .flat_map(|row| (0..columns).map(move |column| if hidden(row, column) { f32::NEG_INFINITY } else { 0.0 }))
        .collect();
    Tensor::from_vec(mask, (rows, columns), device)
}
