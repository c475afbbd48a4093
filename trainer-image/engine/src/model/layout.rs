//! The range of each tensor in the flat vector of parameters. Pure.

use std::{ops::Range, sync::Arc};

use super::{ModelConfig, modules::Model};

/// A tensor under its Hugging Face name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Name, such as `model.layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// Shape: [outputs, inputs], or [inputs, outputs] in a GPT-2, or [width].
    pub shape: Vec<usize>,
    /// Range in the flat vector.
    pub range: Range<usize>,
}

impl Tensor {
    /// Returns the number of elements.
    pub fn count(&self) -> usize {
        self.range.len()
    }
}

/// The tensors of a model, one after another without gaps: embedding, blocks, final norm. Tensors that the kernels multiply
/// as one matrix (query, key and value; gate and up) are adjacent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    tensors: Vec<Tensor>,
}

impl Layout {
    /// Lays out tensors of these names and shapes in this order.
    pub fn new(tensors: impl IntoIterator<Item = (String, Vec<usize>)>) -> Self {
        let mut start = 0;
        let tensors = tensors.into_iter().map(|(name, shape)| {
            let range = start..start + shape.iter().product::<usize>();
            start = range.end;
            Tensor { name, shape, range }
        });
        Self { tensors: tensors.collect() }
    }

    /// Returns the layout of a model.
    pub fn of(config: &ModelConfig) -> Self {
        Arc::unwrap_or_clone(Model::new(config).layout)
    }

    /// Returns the tensors in order.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// Returns the tensor of this name.
    pub fn find(&self, name: &str) -> Option<&Tensor> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }

    /// Returns the number of elements of all tensors.
    pub fn size(&self) -> usize {
        self.tensors.last().map_or(0, |tensor| tensor.range.end)
    }
}
