//! The kernels as candle operations with gradients. CPU only: there is no fallback that would hide a missing kernel.

use std::sync::Arc;

use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Storage, Tensor, backend::BackendStorage as _,
    bail,
};

use super::{
    attention::{Rotary, Sequences, attention, attention_backward},
    head::{Target, loss, loss_backward},
    kernels::{rms_norm, rms_norm_backward, swiglu, swiglu_backward},
    linear::{linear, linear_backward},
};

/// The numbers of a contiguous float tensor.
fn numbers<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let CpuStorage::F32(data) = storage else { bail!("expected f32, got {:?}", storage.dtype()) };
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&data[start..end]),
        None => bail!("expected a contiguous tensor, got {layout:?}"),
    }
}

/// Runs `work` on the numbers of `tensors`.
fn with<const N: usize, R>(tensors: [&Tensor; N], work: impl FnOnce([&[f32]; N]) -> R) -> Result<R> {
    let guards = tensors.map(Tensor::storage_and_layout);
    let mut slices = [[].as_slice(); N];
    for (slice, (storage, layout)) in slices.iter_mut().zip(&guards) {
        let Storage::Cpu(storage) = &**storage else { bail!("expected a tensor on the CPU") };
        *slice = numbers(storage, layout)?;
    }
    Ok(work(slices))
}

/// A new tensor of `like`'s shape.
fn shaped(data: Vec<f32>, like: &Tensor) -> Result<Tensor> {
    Tensor::from_vec(data, like.shape(), like.device())
}

fn stored(data: Vec<f32>, shape: impl Into<Shape>) -> (CpuStorage, Shape) {
    (CpuStorage::F32(data), shape.into())
}

/// `RMSNorm`: (x [rows, width], weight [width]) → [rows, width].
pub(super) struct RmsNorm {
    pub(super) eps: f32,
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, w: &CpuStorage, lw: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, w) = (numbers(x, lx)?, numbers(w, lw)?);
        let mut y = vec![0.0; x.len()];
        rms_norm(x, w, self.eps, &mut y);
        Ok(stored(y, lx.shape()))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (dx, dw) = with([x, w, dy], |[x, w, dy]| {
            let mut dx = vec![0.0; x.len()];
            let dw = rms_norm_backward(x, w, self.eps, dy, &mut dx);
            (dx, dw)
        })?;
        Ok((Some(shaped(dx, x)?), Some(shaped(dw, w)?)))
    }
}

/// A projection without bias: (x [rows, inputs], weight [outputs, inputs]) → [rows, outputs].
pub(super) struct Linear;

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, w: &CpuStorage, lw: &Layout) -> Result<(CpuStorage, Shape)> {
        let ((rows, inputs), (outputs, _)) = (lx.shape().dims2()?, lw.shape().dims2()?);
        let mut y = vec![0.0; rows * outputs];
        linear(numbers(x, lx)?, numbers(w, lw)?, inputs, &mut y, false);
        Ok(stored(y, (rows, outputs)))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (dx, dw) = linear_gradients(x, w, dy)?;
        Ok((Some(dx), Some(dw)))
    }
}

/// A projection onto the residual stream: (x, weight, residual [rows, outputs]) → residual + x · weightᵀ.
pub(super) struct LinearAdd;

impl CustomOp3 for LinearAdd {
    fn name(&self) -> &'static str {
        "linear-add"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
        residual: &CpuStorage,
        lr: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (_, inputs) = lx.shape().dims2()?;
        let mut y = numbers(residual, lr)?.to_vec();
        linear(numbers(x, lx)?, numbers(w, lw)?, inputs, &mut y, true);
        Ok(stored(y, lr.shape()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (dx, dw) = linear_gradients(x, w, dy)?;
        Ok((Some(dx), Some(dw), Some(dy.clone())))
    }
}

fn linear_gradients(x: &Tensor, w: &Tensor, dy: &Tensor) -> Result<(Tensor, Tensor)> {
    let (_, inputs) = x.dims2()?;
    let (dx, dw) = with([x, w, dy], |[x, w, dy]| {
        let mut dx = vec![0.0; x.len()];
        let dw = linear_backward(x, w, inputs, dy, &mut dx);
        (dx, dw)
    })?;
    Ok((shaped(dx, x)?, shaped(dw, w)?))
}

/// Causal attention over packed sequences: qkv [rows, 3 · hidden] → [rows, hidden].
pub(super) struct Attention {
    pub(super) offsets: Arc<[usize]>,
    pub(super) heads: usize,
    pub(super) width: usize,
    pub(super) rotary: Arc<Rotary>,
}

impl Attention {
    fn sequences(&self) -> Sequences<'_> {
        Sequences { offsets: &self.offsets, heads: self.heads, width: self.width, rotary: &self.rotary }
    }
}

impl CustomOp1 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(&self, qkv: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, triple) = layout.shape().dims2()?;
        let mut out = vec![0.0; rows * triple / 3];
        attention(self.sequences(), numbers(qkv, layout)?, &mut out);
        Ok(stored(out, (rows, triple / 3)))
    }

    fn bwd(&self, qkv: &Tensor, _: &Tensor, dout: &Tensor) -> Result<Option<Tensor>> {
        let dqkv = with([qkv, dout], |[qkv, dout]| {
            let mut dqkv = vec![0.0; qkv.len()];
            attention_backward(self.sequences(), qkv, dout, &mut dqkv);
            dqkv
        })?;
        shaped(dqkv, qkv).map(Some)
    }
}

/// `SwiGLU`: [rows, 2 · width] (gate and up side by side) → [rows, width].
pub(super) struct SwiGlu;

impl CustomOp1 for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, double) = layout.shape().dims2()?;
        let mut y = vec![0.0; rows * double / 2];
        swiglu(numbers(x, layout)?, double / 2, &mut y);
        Ok(stored(y, (rows, double / 2)))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let (_, double) = x.dims2()?;
        let dx = with([x, dy], |[x, dy]| {
            let mut dx = vec![0.0; x.len()];
            swiglu_backward(x, double / 2, dy, &mut dx);
            dx
        })?;
        shaped(dx, x).map(Some)
    }
}

/// The mean of the cross-entropy over `total` targets, of which this batch has some:
/// (hidden [rows, width], weight [vocabulary, width]) → [] in nats.
pub(super) struct Loss {
    pub(super) targets: Arc<[Target]>,
    pub(super) total: usize,
}

impl CustomOp2 for Loss {
    fn name(&self) -> &'static str {
        "loss"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, w: &CpuStorage, lw: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, width) = lx.shape().dims2()?;
        let sum = loss(numbers(x, lx)?, numbers(w, lw)?, width, &self.targets);
        Ok(stored(vec![(sum / self.total as f64) as f32], ()))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _: &Tensor, slope: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (_, width) = x.dims2()?;
        let slope = slope.to_scalar::<f32>()? / self.total as f32;
        let (dx, dw) = with([x, w], |[x, w]| {
            let mut dx = vec![0.0; x.len()];
            let dw = loss_backward(x, w, width, &self.targets, slope, &mut dx);
            (dx, dw)
        })?;
        Ok((Some(shaped(dx, x)?), Some(shaped(dw, w)?)))
    }
}
