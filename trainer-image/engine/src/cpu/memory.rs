//! Estimate of the engine's workspace before a step runs. Pure.

use super::{
    activation::Activation,
    bf16::Bf16,
    head::targets_per_pass,
    matrix::{Dtype, chunk_rows},
};
use crate::{
    Lora, LoraError, ModelConfig, Precision, Settings,
    model::{Adapter, Adapters, Linear, Model},
};

/// Returns the bytes of the engine's buffers for a batch of `rows` rows, all of them targets, with a longest sequence of
/// `longest`, on `threads` threads.
pub(crate) fn memory(config: &ModelConfig, settings: Settings, rows: usize, longest: usize, threads: usize) -> usize {
    match settings.precision {
        Precision::F32 => of::<f32>(config, settings, rows) + thread::<f32>(config, rows, longest) * threads,
        Precision::Bf16 | Precision::F16 => {
            of::<Bf16>(config, settings, rows) + thread::<Bf16>(config, rows, longest) * threads
        }
    }
}

/// As [`memory`], for an engine that trains adapters: also counts the frozen weights, which exist only packed, but not the
/// trained parameters, their gradients and moments.
///
/// # Errors
/// The model cannot have these adapters.
pub(crate) fn lora_memory(
    config: &ModelConfig,
    lora: &Lora,
    settings: Settings,
    (rows, longest): (usize, usize),
    threads: usize,
) -> Result<usize, LoraError> {
    let adapters = lora.adapters(config)?;
    let extra = match settings.precision {
        Precision::F32 => of_adapters::<f32>(config, &adapters, rows, threads),
        Precision::Bf16 | Precision::F16 => of_adapters::<Bf16>(config, &adapters, rows, threads),
    };
    Ok(memory(config, settings, rows, longest, threads) + extra)
}

/// Returns the bytes that adapters and the frozen vectors add. The weight gradients of frozen layers have no buffers, which is
/// not subtracted: those of the adapters take their place.
fn of_adapters<N: Dtype>(config: &ModelConfig, adapters: &Adapters, rows: usize, threads: usize) -> usize {
    let Adapters { blocks, size, .. } = adapters;
    let (queries, all, wide) = widths(config);
    let packs: usize = adapters
        .matrices()
        .iter()
        .map(|matrix| N::packed(matrix.inputs, matrix.outputs) + N::packed(matrix.outputs, matrix.inputs))
        .sum();
    let block = &blocks[0];
    let width = |adapter: &Adapter| N::stride(adapter.a.outputs);
    let lows: usize = block.iter().map(|adapter| 2 * width(adapter)).sum();
    let dropped = block.output.as_ref().map_or(0, |_| N::stride(queries));
    // The packed right factors: the inputs of all layers of a block between two attentions, and what A makes of them.
    let right: usize =
        block.iter().map(|adapter| N::packed(rows, adapter.a.inputs) + N::packed(rows, adapter.b.inputs)).sum();
    // A chunk's sums before they are rounded.
    let widest = all.max(wide).max(config.intermediate_size);
    let chunk = chunk_rows(rows) * (size_of::<f32>() * 2 * widest + size_of::<N>() * N::stride(widest));
    let embedding = size_of::<f32>() * config.vocab_size * config.hidden_size;
    let vectors = size_of::<f32>() * (4 * config.hidden_size + all + 2 * config.head_dim) * config.num_hidden_layers;
    let buffers = size_of::<N>() * rows * (lows + dropped);
    2 * size_of::<f32>() * size + packs + buffers + right + chunk * threads + embedding + vectors
}

/// Returns the widths of a row: of its queries; of queries, keys and values; of the activation's input.
fn widths(config: &ModelConfig) -> (usize, usize, usize) {
    let (queries, keys) = (config.num_attention_heads, config.num_key_value_heads);
    let activation = Activation::of(config);
    (queries * config.head_dim, (queries + 2 * keys) * config.head_dim, activation.inputs(config.intermediate_size))
}

/// Returns the bytes of the buffers that all threads share.
pub(crate) fn of<N: Dtype>(config: &ModelConfig, settings: Settings, rows: usize) -> usize {
    let ModelConfig { hidden_size: hidden, intermediate_size: inner, num_hidden_layers: layers, .. } = *config;
    let (queries, all, wide) = widths(config);
    let (float, number) = (size_of::<f32>(), size_of::<N>());
    let stream = (layers + 1) * rows * hidden * float;
    let saved = rows * (number * (N::stride(all) + N::stride(queries) + N::stride(wide)) + float * hidden);
    let copies = if N::COPIES { 2 * N::stride(hidden) } else { 0 };
    let workspace =
        N::stride(hidden) + copies + N::stride(wide) + N::stride(inner) + N::stride(queries) + N::stride(all);
    let slopes = 2 * rows * hidden * float + rows.div_ceil(chunk_rows(rows)) * 2 * hidden * float;
    let targets = rows.min(targets_per_pass(config.vocab_size, rows));
    let parts = targets.div_ceil(chunk_rows(rows)) * 2 * hidden;
    let head = targets * (number * (N::stride(config.vocab_size) + N::stride(hidden)) + float * hidden) + float * parts;
    stream + settings.kept(layers) * saved + rows * number * workspace + slopes + head + packs::<N>(config, rows)
}

/// Returns the bytes of the packed weights and of the packed right factors of weight gradients.
fn packs<N: Dtype>(config: &ModelConfig, rows: usize) -> usize {
    let model = Model::new(config);
    let weights: usize = model
        .matrices()
        .into_iter()
        .map(|matrix| N::packed(matrix.inputs, matrix.outputs) + N::packed(matrix.outputs, matrix.inputs))
        .sum();
    let right = |matrix: &Linear| if matrix.inputs_first { matrix.outputs } else { matrix.inputs };
    let block = &model.blocks[0];
    let first = N::packed(rows, right(&block.qkv).max(right(&block.output)));
    let targets = rows.min(targets_per_pass(config.vocab_size, rows));
    weights
        + first
        + N::packed(rows, right(&block.up))
        + N::packed(rows, right(&block.down))
        + N::packed(targets, config.hidden_size)
}

/// Returns the maximum bytes of one thread's buffers: a chunk of the head or of a block, the heads of a sequence, and the
/// packed left factors.
fn thread<N: Dtype>(config: &ModelConfig, rows: usize, longest: usize) -> usize {
    let ModelConfig { hidden_size: hidden, intermediate_size: inner, vocab_size: vocabulary, .. } = *config;
    let (float, number, chunk_rows) = (size_of::<f32>(), size_of::<N>(), chunk_rows(rows));
    let head = chunk_rows * float * (vocabulary + 2 * hidden);
    let block = chunk_rows * (number * (N::stride(hidden) + N::stride(inner)) + float * hidden);
    let attention = longest.next_multiple_of(16) * (float * (10 * config.head_dim + 16) + number * config.head_dim);
    head.max(block) + attention + (1 << 21)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{EngineState, Layout, Packed, engine, initial, tests};

    #[test]
    fn the_estimate_is_what_the_engine_holds() {
        for config in [tests::tiny(), tests::gpt2()] {
            for precision in [Precision::F32, Precision::Bf16] {
                for gradient_checkpointing in [false, true] {
                    let settings = Settings { precision, gradient_checkpointing, backend: crate::Backend::Kernels };
                    let layout = Layout::of(&config);
                    let state = EngineState::new(layout.clone().into(), initial(&config, &layout, 1));
                    let mut engine = engine(config.clone(), state, settings).unwrap();
                    let ids: Vec<u32> = (0..61).map(|at| at % 37).collect();
                    let batch = Packed::new((0..37).map(|_| (ids.as_slice(), 1)));
                    engine.accumulate(&batch, 1).unwrap();
                    let rows = batch.tokens.len();
                    let estimated = 16 * layout.size() + memory(&config, settings, rows, 60, 0);
                    let taken = engine.memory();
                    // Every buffer has up to 64 bytes of padding for its alignment.
                    assert!(estimated <= taken && taken < estimated + 6000, "{settings:?}: {estimated} {taken}");
                }
            }
        }
    }
}
