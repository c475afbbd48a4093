//! How the weights lie in memory: one vector for the embedding, one for the final norm, one for each block, so that a block's
//! gradient is one vector, too. Pure.

use std::ops::Range;

use super::ModelConfig;

/// A weight inside a group, under Hugging Face's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Such as `model.layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// Its shape: [outputs, inputs] or [width].
    pub shape: Vec<usize>,
    /// Where it lies in its group.
    pub range: Range<usize>,
}

/// Weights that lie one after another in one vector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Such as `model.layers.0`.
    pub name: String,
    /// What it is made of, in order, without gaps.
    pub parts: Vec<Part>,
}

impl Group {
    fn new(name: &str, parts: &[(&str, &[usize])]) -> Self {
        let mut start = 0;
        let parts = parts.iter().map(|(part, shape)| {
            let range = start..start + shape.iter().product::<usize>();
            start = range.end;
            Part { name: format!("{name}{part}.weight"), shape: shape.to_vec(), range }
        });
        Self { parts: parts.collect(), name: name.to_owned() }
    }

    /// How many numbers it has.
    pub fn size(&self) -> usize {
        self.parts.last().map_or(0, |part| part.range.end)
    }
}

/// The name of the embedding's group.
pub(super) const EMBEDDING: &str = "model.embed_tokens";
/// The name of the final norm's group.
pub(super) const NORM: &str = "model.norm";

/// The name of a block's group.
pub(super) fn block(layer: usize) -> String {
    format!("model.layers.{layer}")
}

/// Every group of a model, in the order of their names.
pub(crate) fn groups(config: &ModelConfig) -> Vec<Group> {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let square: &[usize] = &[hidden, hidden];
    let mut groups =
        vec![Group::new(EMBEDDING, &[("", &[config.vocab_size, hidden])]), Group::new(NORM, &[("", &[hidden])])];
    for layer in 0..config.num_hidden_layers {
        // Query, key and value are one matrix to the kernels, and so are gate and up.
        groups.push(Group::new(
            &block(layer),
            &[
                (".input_layernorm", &[hidden]),
                (".self_attn.q_proj", square),
                (".self_attn.k_proj", square),
                (".self_attn.v_proj", square),
                (".self_attn.o_proj", square),
                (".post_attention_layernorm", &[hidden]),
                (".mlp.gate_proj", &[inner, hidden]),
                (".mlp.up_proj", &[inner, hidden]),
                (".mlp.down_proj", &[hidden, inner]),
            ],
        ));
    }
    groups.sort_by(|a, b| a.name.cmp(&b.name));
    groups
}

/// The sizes of a block's matrices as the kernels see them: norm, query-key-value, output, norm, gate-up, down.
pub(super) fn block_sizes(hidden: usize, inner: usize) -> [usize; 6] {
    [hidden, 3 * hidden * hidden, hidden * hidden, hidden, 2 * inner * hidden, hidden * inner]
}

/// A block's weights as the kernels see them.
#[derive(Clone, Copy)]
pub(super) struct BlockWeights<'a> {
    pub(super) input_norm: &'a [f32],
    pub(super) qkv: &'a [f32],
    pub(super) output: &'a [f32],
    pub(super) inner_norm: &'a [f32],
    pub(super) gate_up: &'a [f32],
    pub(super) down: &'a [f32],
}

impl<'a> BlockWeights<'a> {
    /// Cuts a block's group.
    pub(super) fn of(group: &'a [f32], hidden: usize, inner: usize) -> Self {
        let mut rest = group;
        let [input_norm, qkv, output, inner_norm, gate_up, down] = block_sizes(hidden, inner).map(|size| {
            let (part, tail) = rest.split_at(size);
            rest = tail;
            part
        });
        Self { input_norm, qkv, output, inner_norm, gate_up, down }
    }
}
