//! How the rows of a forward pass attend to each other: packed sequences in training, cached ones in generation.

use std::sync::Arc;

use candle_core::{D, Result, Tensor};

use super::{
    device::Place,
    documents::{Documents, SCORES, attention},
    ops,
};
use crate::{ModelConfig, Packed};

/// Attention between the rows of one forward pass.
pub(super) trait Attend {
    /// Returns the attention [rows, heads · width] of a layer's queries [rows, heads, width] over keys and values
    /// [rows, key-value heads, width]. Applies the model's rotary positions.
    fn attend(&mut self, layer: usize, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor>;
}

/// Cosines and sines of rotary positions [rows, width / 2]; `None` if positions are learned.
pub(super) struct Rope(Option<(Tensor, Tensor)>);

impl Rope {
    /// Computes those of rows at `positions`.
    pub(super) fn new(
        config: &ModelConfig,
        place: &Place,
        positions: impl ExactSizeIterator<Item = usize>,
    ) -> Result<Self> {
        let frequencies = config.inverse_frequencies();
        if frequencies.is_empty() {
            return Ok(Self(None));
        }
        let shape = [positions.len(), frequencies.len()];
        let angles = positions.flat_map(|row| frequencies.iter().map(move |f| row as f64 * f));
        let (cos, sin): (Vec<f32>, Vec<f32>) = angles.map(|angle| (angle.cos() as f32, angle.sin() as f32)).unzip();
        let tensor = |numbers: &[f32]| place.tensor(numbers, &shape)?.to_dtype(place.dtype);
        Ok(Self(Some((tensor(&cos)?, tensor(&sin)?))))
    }

    /// Applies them to [1, heads, rows, width].
    pub(super) fn apply(&self, x: &Tensor) -> Result<Tensor> {
        match &self.0 {
            Some((cos, sin)) => ops::rope(x, cos, sin),
            None => Ok(x.clone()),
        }
    }
}

/// Attention inside each sequence of a packed batch.
pub(super) struct Sequences {
    rope: Rope,
    documents: Arc<Documents>,
}

impl Sequences {
    /// Prepares the attention of a batch, whose rows are at `positions`.
    pub(super) fn new(config: &ModelConfig, place: &Place, batch: &Packed, positions: &[u32]) -> Result<Self> {
        let rope = Rope::new(config, place, positions.iter().map(|position| *position as usize))?;
        let documents = Documents::new(place, &batch.cu_seqlens, config.num_attention_heads, SCORES)?;
        Ok(Self { rope, documents: Arc::new(documents) })
    }

    /// Applies the rotary positions to [rows, heads, width]: [heads, rows, width].
    fn turned(&self, x: &Tensor) -> Result<Tensor> {
        self.rope.apply(&x.transpose(0, 1)?.unsqueeze(0)?)?.squeeze(0)
    }
}

impl Attend for Sequences {
    fn attend(&mut self, _: usize, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let (rows, heads, width) = q.dims3()?;
        let kv = Tensor::cat(&[self.turned(k)?.contiguous()?, v.transpose(0, 1)?.contiguous()?], D::Minus1)?;
        let out = attention(&self.turned(q)?, &kv, &self.documents)?;
        out.transpose(0, 1)?.reshape((rows, heads * width))
    }
}
