//! Block and head as candle operations with gradients. CPU only: there is no fallback that would hide a missing kernel.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{
    CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Storage, Tensor, backend::BackendStorage as _, bail,
};

use super::{
    ModelConfig,
    attention::{Rotary, Sequences},
    block::{self, BlockShape, Saved},
    head::{Head, Target},
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
pub(super) fn with<const N: usize, R>(tensors: [&Tensor; N], work: impl FnOnce([&[f32]; N]) -> R) -> Result<R> {
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

/// A decoder block: (x [rows, hidden], the block's weights) → [rows, hidden]. What the way back needs stays in it.
pub(super) struct Block {
    offsets: Arc<[usize]>,
    rotary: Arc<Rotary>,
    config: Arc<ModelConfig>,
    saved: Mutex<Saved>,
}

impl Block {
    pub(super) fn new(offsets: Arc<[usize]>, rotary: Arc<Rotary>, config: Arc<ModelConfig>) -> Self {
        Self { offsets, rotary, config, saved: Mutex::default() }
    }

    fn shape(&self) -> BlockShape<'_> {
        let (heads, width) = (self.config.num_attention_heads, self.config.head_dim);
        BlockShape {
            sequences: Sequences { offsets: &self.offsets, heads, width, rotary: &self.rotary },
            hidden: self.config.hidden_size,
            inner: self.config.intermediate_size,
            eps: self.config.rms_norm_eps as f32,
        }
    }
}

impl CustomOp2 for Block {
    fn name(&self) -> &'static str {
        "block"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, w: &CpuStorage, lw: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, w) = (numbers(x, lx)?, numbers(w, lw)?);
        let mut y = vec![0.0; x.len()];
        let saved = block::forward(self.shape(), w, x, &mut y);
        *self.saved.lock().unwrap_or_else(PoisonError::into_inner) = saved;
        Ok((CpuStorage::F32(y), lx.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let saved = std::mem::take(&mut *self.saved.lock().unwrap_or_else(PoisonError::into_inner));
        let (dx, dw) = with([x, w, dy], |[x, w, dy]| {
            let mut dx = vec![0.0; x.len()];
            let dw = block::backward(self.shape(), w, x, &saved, dy, &mut dx);
            (dx, dw)
        })?;
        Ok((Some(shaped(dx, x)?), Some(shaped(dw, w)?)))
    }
}

/// The mean of the cross-entropy over `total` targets, of which this batch has some:
/// (x [rows, hidden], norm [hidden], embedding [vocabulary · hidden]) → [] in nats.
pub(super) struct Loss {
    pub(super) targets: Arc<[Target]>,
    pub(super) total: usize,
    pub(super) eps: f32,
}

impl CustomOp3 for Loss {
    fn name(&self) -> &'static str {
        "loss"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        norm: &CpuStorage,
        ln: &Layout,
        embedding: &CpuStorage,
        le: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let head = Head { norm: numbers(norm, ln)?, embedding: numbers(embedding, le)?, eps: self.eps };
        let sum = head.loss(numbers(x, lx)?, &self.targets);
        Ok((CpuStorage::F32(vec![(sum / self.total as f64) as f32]), ().into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        norm: &Tensor,
        embedding: &Tensor,
        _: &Tensor,
        slope: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let slope = slope.to_scalar::<f32>()? / self.total as f32;
        let (dx, dnorm, dembedding) = with([x, norm, embedding], |[x, norm, embedding]| {
            let mut dx = vec![0.0; x.len()];
            let head = Head { norm, embedding, eps: self.eps };
            let (dnorm, dembedding) = head.backward(x, &self.targets, slope, &mut dx);
            (dx, dnorm, dembedding)
        })?;
        Ok((Some(shaped(dx, x)?), Some(shaped(dnorm, norm)?), Some(shaped(dembedding, embedding)?)))
    }
}
