//! What generation shares with training: rotary positions, kernels, and weights laid out for few rows at a time.

pub use super::{
    activation::swiglu,
    attention::Rotary,
    kernels::{exponentials, scale},
    linear::Panels,
    norm::rms_norm,
};
use crate::{ModelConfig, model::Model};

/// A Llama's block as the kernels see it.
#[derive(Clone, Copy, Debug)]
pub struct BlockWeights<'a> {
    /// The norm before attention [hidden].
    pub input_norm: &'a [f32],
    /// Query, key and value [3 · hidden, hidden].
    pub qkv: &'a [f32],
    /// The output of attention [hidden, hidden].
    pub output: &'a [f32],
    /// The norm before the feed-forward part [hidden].
    pub inner_norm: &'a [f32],
    /// Gate and up [2 · inner, hidden].
    pub gate_up: &'a [f32],
    /// Down [hidden, inner].
    pub down: &'a [f32],
}

/// The blocks of a Llama.
///
/// # Panics
/// When `parameters` are not all of the model's.
pub fn blocks<'a>(config: &ModelConfig, parameters: &'a [f32]) -> Vec<BlockWeights<'a>> {
    let blocks = Model::new(config).blocks.into_iter();
    blocks
        .map(|block| BlockWeights {
            input_norm: &parameters[block.input_norm.weight],
            qkv: &parameters[block.qkv.weight],
            output: &parameters[block.output.weight],
            inner_norm: &parameters[block.inner_norm.weight],
            gate_up: &parameters[block.up.weight],
            down: &parameters[block.down.weight],
        })
        .collect()
}
