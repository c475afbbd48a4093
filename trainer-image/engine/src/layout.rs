//! Where each weight lies in the one vector that holds them all. Pure.

use std::ops::Range;

use super::ModelConfig;

/// A weight under Hugging Face's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Such as `model.layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// Its shape: [outputs, inputs] or [width].
    pub shape: Vec<usize>,
    /// Where it lies in the flat vector.
    pub range: Range<usize>,
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
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![config.vocab_size, hidden])];
        for layer in 0..config.num_hidden_layers {
            for (part, shape) in [
                ("input_layernorm", vec![hidden]),
                ("self_attn.q_proj", vec![hidden, hidden]),
                ("self_attn.k_proj", vec![hidden, hidden]),
                ("self_attn.v_proj", vec![hidden, hidden]),
                ("self_attn.o_proj", vec![hidden, hidden]),
                ("post_attention_layernorm", vec![hidden]),
                ("mlp.gate_proj", vec![inner, hidden]),
                ("mlp.up_proj", vec![inner, hidden]),
                ("mlp.down_proj", vec![hidden, inner]),
            ] {
                tensors.push((format!("model.layers.{layer}.{part}.weight"), shape));
            }
        }
        tensors.push(("model.norm.weight".to_owned(), vec![hidden]));
        Self::new(tensors)
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

/// Where the parts of a Llama lie.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    pub(crate) embedding: Range<usize>,
    pub(crate) blocks: Vec<Range<usize>>,
    pub(crate) norm: Range<usize>,
}

impl Places {
    pub(crate) fn of(config: &ModelConfig) -> Self {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let embedding = config.vocab_size * hidden;
        let block: usize = block_sizes(hidden, inner).iter().sum();
        let start = |layer| embedding + layer * block;
        let layers = config.num_hidden_layers;
        let norm = start(layers)..start(layers) + hidden;
        Self { embedding: 0..embedding, blocks: (0..layers).map(|at| start(at)..start(at + 1)).collect(), norm }
    }
}

/// The sizes of a block's matrices as the kernels see them: norm, query-key-value, output, norm, gate-up, down.
pub(crate) fn block_sizes(hidden: usize, inner: usize) -> [usize; 6] {
    [hidden, 3 * hidden * hidden, hidden * hidden, hidden, 2 * inner * hidden, hidden * inner]
}

/// A block's weights as the kernels see them.
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

impl<'a> BlockWeights<'a> {
    /// Cuts a block's part of the flat vector.
    pub(crate) fn cut(block: &'a [f32], hidden: usize, inner: usize) -> Self {
        let mut rest = block;
        let [input_norm, qkv, output, inner_norm, gate_up, down] = block_sizes(hidden, inner).map(|size| {
            let (part, tail) = rest.split_at(size);
            rest = tail;
            part
        });
        Self { input_norm, qkv, output, inner_norm, gate_up, down }
    }

    /// The weights of block `layer` in a model's flat vector.
    ///
    /// # Panics
    /// When `parameters` are not all of the model's.
    pub fn of(config: &ModelConfig, parameters: &'a [f32], layer: usize) -> Self {
        let place = Places::of(config).blocks[layer].clone();
        Self::cut(&parameters[place], config.hidden_size, config.intermediate_size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::tiny;

    #[test]
    fn what_the_kernels_see_is_what_the_names_say() {
        let config = tiny();
        let (layout, places) = (Layout::of(&config), Places::of(&config));
        assert_eq!(layout.size(), config.parameters());
        let start = |name: &str| layout.find(name).unwrap().range.start;
        assert_eq!(start("model.norm.weight"), places.norm.start);
        for (layer, place) in places.blocks.iter().enumerate() {
            assert_eq!(start(&format!("model.layers.{layer}.input_layernorm.weight")), place.start);
            let numbers: Vec<f32> = (0..layout.size()).map(|x| x as f32).collect();
            let weights = BlockWeights::of(&config, &numbers, layer);
            for (part, name) in [
                (weights.qkv, "self_attn.q_proj"),
                (weights.output, "self_attn.o_proj"),
                (weights.inner_norm, "post_attention_layernorm"),
                (weights.gate_up, "mlp.gate_proj"),
                (weights.down, "mlp.down_proj"),
            ] {
                let expected = start(&format!("model.layers.{layer}.{name}.weight"));
                assert_eq!(part[0].to_bits(), (expected as f32).to_bits(), "{name}");
            }
        }
    }
}
