//! What a step takes in memory beside parameters, gradients and moments, before it is taken. Pure.

use super::{
    ModelConfig, Precision, Settings, block::piece, config::Family, head::at_a_time, kernels::Bend, matrix::Number,
    model::Model, number::Bf16,
};

/// Bytes that an engine's buffers take for a batch of `rows` rows, all of them targets, whose longest sequence has `longest`,
/// on `threads` threads. The reference engine takes far more, which is not foretold.
pub fn memory(config: &ModelConfig, settings: Settings, rows: usize, longest: usize, threads: usize) -> usize {
    match settings.precision {
        Precision::F32 => of::<f32>(config, settings, rows) + thread::<f32>(config, rows, longest) * threads,
        Precision::Bf16 => of::<Bf16>(config, settings, rows) + thread::<Bf16>(config, rows, longest) * threads,
    }
}

/// Widths of a row: of its queries; of queries, keys and values; of what is bent.
fn widths(config: &ModelConfig) -> (usize, usize, usize) {
    let (queries, keys) = (config.num_attention_heads, config.num_key_value_heads);
    let bend = if config.family == Family::Llama { Bend::SwiGlu } else { Bend::Gelu };
    (queries * config.head_dim, (queries + 2 * keys) * config.head_dim, bend.inputs(config.intermediate_size))
}

/// The buffers that all threads share.
pub(crate) fn of<N: Number>(config: &ModelConfig, settings: Settings, rows: usize) -> usize {
    let ModelConfig { hidden_size: hidden, intermediate_size: inner, num_hidden_layers: layers, .. } = *config;
    let (queries, all, wide) = widths(config);
    let (float, number) = (size_of::<f32>(), size_of::<N>());
    let stream = (layers + 1) * rows * hidden * float;
    let saved = rows * (number * (N::stride(all) + N::stride(queries) + N::stride(wide)) + float * hidden);
    let copies = if N::COPIES { 2 * N::stride(hidden) } else { 0 };
    let room = N::stride(hidden) + copies + N::stride(wide) + N::stride(inner) + N::stride(queries) + N::stride(all);
    let slopes = 2 * rows * hidden * float + rows.div_ceil(piece(rows)) * 2 * hidden * float;
    let targets = rows.min(at_a_time(config.vocab_size, rows));
    let parts = targets.div_ceil(piece(rows)) * 2 * hidden;
    let head = targets * (number * (N::stride(config.vocab_size) + N::stride(hidden)) + float * hidden) + float * parts;
    stream + settings.kept(layers) * saved + rows * number * room + slopes + head + packs::<N>(config, rows)
}

/// The weights and the right factors of gradients, as products want them.
fn packs<N: Number>(config: &ModelConfig, rows: usize) -> usize {
    let model = Model::new(config);
    let weights: usize = model
        .matrices()
        .map(|matrix| N::packed(matrix.inputs, matrix.outputs) + N::packed(matrix.outputs, matrix.inputs))
        .sum();
    let right = |matrix: &super::model::Matrix| if matrix.inputs_first { matrix.outputs } else { matrix.inputs };
    let block = &model.blocks[0];
    let first = N::packed(rows, right(&block.qkv).max(right(&block.output)));
    let targets = rows.min(at_a_time(config.vocab_size, rows));
    weights
        + first
        + N::packed(rows, right(&block.up))
        + N::packed(rows, right(&block.down))
        + N::packed(targets, config.hidden_size)
}

/// What one thread has at hand, at most: a piece of the head, or of a block, the heads of a sequence, and what products pack of
/// their left factors.
fn thread<N: Number>(config: &ModelConfig, rows: usize, longest: usize) -> usize {
    let ModelConfig { hidden_size: hidden, intermediate_size: inner, vocab_size: vocabulary, .. } = *config;
    let (float, number, piece) = (size_of::<f32>(), size_of::<N>(), piece(rows));
    let head = piece * float * (vocabulary + 2 * hidden);
    let block = piece * (number * (N::stride(hidden) + N::stride(inner)) + float * hidden);
    let attention = longest.next_multiple_of(16) * (float * (10 * config.head_dim + 16) + number * config.head_dim);
    head.max(block) + attention + (1 << 21)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{EngineState, Layout, Packed, engine, initial, tests};

    #[test]
    fn what_is_foretold_is_what_is_taken() {
        for config in [tests::tiny(), tests::gpt2()] {
            for precision in [Precision::F32, Precision::Bf16] {
                for gradient_checkpointing in [false, true] {
                    let settings = Settings { precision, gradient_checkpointing, reference: false };
                    let layout = Layout::of(&config);
                    let state = EngineState::new(layout.clone().into(), initial(&config, &layout, 1));
                    let mut engine = engine(config.clone(), state, settings).unwrap();
                    let ids: Vec<u32> = (0..61).map(|at| at % 37).collect();
                    let batch = Packed::new((0..37).map(|_| (ids.as_slice(), 1)));
                    engine.accumulate(&batch, 1).unwrap();
                    let rows = batch.tokens.len();
                    let foretold = 16 * layout.size() + memory(&config, settings, rows, 60, 0);
                    let taken = engine.memory();
                    // Every buffer has up to 64 bytes more, so that it can be aligned.
                    assert!(foretold <= taken && taken < foretold + 6000, "{settings:?}: {foretold} {taken}");
                }
            }
        }
    }
}
