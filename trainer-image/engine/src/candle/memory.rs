//! An upper estimate of what the candle engine holds beside parameters, gradients and moments. Pure.

use super::{documents::SCORES, head::LOGITS};
use crate::{Family, Lora, LoraError, ModelConfig, Precision, Settings};

/// Returns the bytes of a step's tensors for a batch of `rows` rows with a longest sequence of `longest`: the graph's activations,
/// the scores and logits that exist at once, and the gradients of the weights before they are added up.
pub(crate) fn memory(config: &ModelConfig, settings: Settings, rows: usize, longest: usize) -> usize {
    let number = match settings.precision {
        Precision::F32 => 4,
        Precision::Bf16 | Precision::F16 => 2,
    };
    let (heads, width) = (config.num_attention_heads, config.head_dim);
    let (queries, keys) = (heads * width, config.num_key_value_heads * width);
    // Values of the graph's nodes; candle keeps all of them until the backward pass ends.
    let attention = 6 * queries + 8 * keys;
    let inner = match config.family {
        Family::Llama => 3,
        Family::Gpt2 => 4,
    };
    let layer = rows * (10 * config.hidden_size + attention + inner * config.intermediate_size);
    // Scores and probabilities, and their gradients.
    let scores = 4 * SCORES.min(heads * rows * longest);
    let logits = 4 * LOGITS.min(rows * config.vocab_size) + 3 * rows * config.hidden_size;
    let weights = config.parameters();
    number * (config.num_hidden_layers * layer + weights) + 4 * (scores + logits + weights)
}

/// As [`memory`], with the frozen weights, for adapters beside them.
///
/// # Errors
/// The model cannot have these adapters.
pub(crate) fn lora_memory(
    config: &ModelConfig,
    lora: &Lora,
    settings: Settings,
    rows: usize,
    longest: usize,
) -> Result<usize, LoraError> {
    let adapters = lora.layout(config)?.size();
    // Each adapter keeps its dropped-out input and two products.
    let extra = config.num_hidden_layers * rows * (4 * config.hidden_size + 3 * config.intermediate_size);
    Ok(memory(config, settings, rows, longest) + 4 * (adapters + extra))
}
