//! How the rows of a forward pass attend to each other: packed sequences in training, cached ones in generation.

use candle_core::{D, Result, Tensor};

use super::{device::Place, ops};
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
    /// Computes those of `count` positions from `first`.
    pub(super) fn new(config: &ModelConfig, place: &Place, first: usize, count: usize) -> Result<Self> {
        let frequencies = config.inverse_frequencies();
        if frequencies.is_empty() {
            return Ok(Self(None));
        }
        let angles = (first..first + count).flat_map(|row| frequencies.iter().map(move |f| row as f64 * f));
        let (cos, sin): (Vec<f32>, Vec<f32>) = angles.map(|angle| (angle.cos() as f32, angle.sin() as f32)).unzip();
        let shape = [count, frequencies.len()];
        let tensor = |numbers: &[f32]| place.tensor(numbers, &shape)?.to_dtype(place.dtype);
        Ok(Self(Some((tensor(&cos)?, tensor(&sin)?))))
    }

    /// Applies them to [sequences, heads, rows, width].
    pub(super) fn apply(&self, x: &Tensor) -> Result<Tensor> {
        match &self.0 {
            Some((cos, sin)) => ops::rope(x, cos, sin),
            None => Ok(x.clone()),
        }
    }
}

/// Attention inside each sequence of a packed batch. The sequences are padded to the longest for it, and only for it.
pub(super) struct Sequences {
    rope: Rope,
    /// The packed row at each padded place [sequences · longest]. A place after the end of a sequence holds its first row,
    /// which no row of the sequence attends to there.
    padded: Tensor,
    /// The padded place of each packed row [rows].
    packed: Tensor,
    count: usize,
    longest: usize,
}

impl Sequences {
    pub(super) fn new(config: &ModelConfig, place: &Place, batch: &Packed) -> Result<Self> {
        let bounds = || batch.cu_seqlens.windows(2).map(|bounds| (bounds[0], bounds[1] - bounds[0]));
        let longest = bounds().map(|(_, length)| length).max().unwrap_or(0);
        let row = |(first, length): (usize, usize), at: usize| (if at < length { first + at } else { first }) as u32;
        let padded: Vec<u32> = bounds().flat_map(|sequence| (0..longest).map(move |at| row(sequence, at))).collect();
        let places = bounds().enumerate().flat_map(|(at, (_, length))| at * longest..at * longest + length);
        let packed: Vec<u32> = places.map(|place| place as u32).collect();
        Ok(Self {
            rope: Rope::new(config, place, 0, longest)?,
            padded: place.indices(&padded)?,
            packed: place.indices(&packed)?,
            count: bounds().count(),
            longest,
        })
    }

    /// [rows, heads, width] → [sequences, heads, longest, width]
    fn pad(&self, x: &Tensor) -> Result<Tensor> {
        let (_, heads, width) = x.dims3()?;
        x.index_select(&self.padded, 0)?.reshape((self.count, self.longest, heads, width))?.transpose(1, 2)
    }
}

impl Attend for Sequences {
    fn attend(&mut self, _: usize, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let (_, heads, width) = q.dims3()?;
        let (q, k) = (self.rope.apply(&self.pad(q)?)?, self.rope.apply(&self.pad(k)?)?);
        let kv = Tensor::cat(&[k, self.pad(v)?.contiguous()?], D::Minus1)?;
        let out = ops::attention(&q, &kv)?.transpose(1, 2)?;
        out.reshape((self.count * self.longest, heads * width))?.index_select(&self.packed, 0)
    }
}
