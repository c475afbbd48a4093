//! Where each weight lies in the one vector that holds them all. Pure.

use std::{ops::Range, sync::Arc};

use super::{ModelConfig, model::Model};

/// A weight under Hugging Face's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Such as `model.layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// Its shape: [outputs, inputs], or [inputs, outputs] in a GPT-2, or [width].
    pub shape: Vec<usize>,
    /// Where it lies in the flat vector.
    pub range: Range<usize>,
}

impl Tensor {
    /// How many numbers it has.
    pub fn count(&self) -> usize {
        self.range.len()
    }
}

/// All weights of a model, one after another without gaps: the embedding, the blocks, the final norm. What the kernels see as
/// one matrix (query, key and value; gate and up) lies side by side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    tensors: Vec<Tensor>,
}

impl Layout {
    /// Tensors of these names and shapes, in this order.
    pub fn new(tensors: impl IntoIterator<Item = (String, Vec<usize>)>) -> Self {
        let mut start = 0;
        let tensors = tensors.into_iter().map(|(name, shape)| {
            let range = start..start + shape.iter().product::<usize>();
            start = range.end;
            Tensor { name, shape, range }
        });
        Self { tensors: tensors.collect() }
    }

    /// The tensors of a model.
    pub fn of(config: &ModelConfig) -> Self {
        Arc::unwrap_or_clone(Model::new(config).layout)
    }

    /// The tensors in the order in which they lie.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// The tensor of a name.
    pub fn find(&self, name: &str) -> Option<&Tensor> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }

    /// How many numbers there are.
    pub fn size(&self) -> usize {
        self.tensors.last().map_or(0, |tensor| tensor.range.end)
    }
}
