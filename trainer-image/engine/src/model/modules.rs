//! The modules of a model (linear layers, norms, blocks) and the ranges of their parameters. Pure.

use std::{convert::Infallible, ops::Range, sync::Arc};

use super::{Family, Layout, ModelConfig};

/// Fills a slice with a range of the parameters.
pub(crate) type Read<'a, E> = dyn FnMut(Range<usize>, &mut [f32]) -> Result<(), E> + 'a;

/// A linear layer: `y = x · Wᵀ + b`.
#[derive(Clone, Debug)]
pub(crate) struct Linear {
    /// Index among the model's linear layers.
    pub(crate) index: usize,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    /// Range of its weight.
    pub(crate) weight: Range<usize>,
    /// Range of its bias, if it has one.
    pub(crate) bias: Option<Range<usize>>,
    /// Whether the weight is stored [inputs, outputs], as in GPT-2, instead of [outputs, inputs].
    pub(crate) inputs_first: bool,
}

/// A norm: `RMSNorm` without a bias, `LayerNorm` with one.
#[derive(Clone, Debug)]
pub(crate) struct Norm {
    pub(crate) weight: Range<usize>,
    pub(crate) bias: Option<Range<usize>>,
}

/// A decoder block.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    pub(crate) input_norm: Norm,
    /// Queries of all heads, then keys, then values: one fused layer.
    pub(crate) qkv: Linear,
    /// The norms of each head of queries and keys, if the model has them.
    pub(crate) qk_norm: Option<[Norm; 2]>,
    pub(crate) output: Linear,
    pub(crate) inner_norm: Norm,
    /// Gate and up as one fused layer, or up alone.
    pub(crate) up: Linear,
    pub(crate) down: Linear,
}

/// The modules of a model.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    pub(crate) config: ModelConfig,
    pub(crate) layout: Arc<Layout>,
    /// Range of the token embedding.
    pub(crate) embedding: Range<usize>,
    /// Range of the learned position embedding, if the model has one.
    pub(crate) positions: Option<Range<usize>>,
    pub(crate) blocks: Vec<Block>,
    pub(crate) norm: Norm,
    /// The output projection; shares the embedding's range if they are tied.
    pub(crate) head: Linear,
}

/// Assigns ranges to tensors, one after another.
#[derive(Default)]
struct Builder {
    tensors: Vec<(String, Vec<usize>)>,
    end: usize,
    matrices: usize,
}

impl Builder {
    fn tensor(&mut self, name: String, shape: &[usize]) -> Range<usize> {
        let start = self.end;
        self.end += shape.iter().product::<usize>();
        self.tensors.push((name, shape.to_vec()));
        start..self.end
    }

    /// Adds a linear layer of several adjacent tensors, given as (name, outputs).
    fn matrix(&mut self, inputs: usize, parts: &[(String, usize)], bias: bool) -> Linear {
        let start = self.end;
        for (name, outputs) in parts {
            self.tensor(format!("{name}.weight"), &[*outputs, inputs]);
        }
        let weight = start..self.end;
        let outputs = parts.iter().map(|(_, outputs)| outputs).sum();
        if bias {
            for (name, outputs) in parts {
                self.tensor(format!("{name}.bias"), &[*outputs]);
            }
        }
        let bias = bias.then_some(weight.end..self.end);
        self.numbered(inputs, outputs, weight, bias, false)
    }

    /// Adds a GPT-2 layer, stored [inputs, outputs].
    fn projection(&mut self, name: &str, inputs: usize, outputs: usize) -> Linear {
        let weight = self.tensor(format!("{name}.weight"), &[inputs, outputs]);
        let bias = self.tensor(format!("{name}.bias"), &[outputs]);
        self.numbered(inputs, outputs, weight, Some(bias), true)
    }

    fn numbered(
        &mut self,
        inputs: usize,
        outputs: usize,
        weight: Range<usize>,
        bias: Option<Range<usize>>,
        inputs_first: bool,
    ) -> Linear {
        self.matrices += 1;
        Linear { index: self.matrices - 1, inputs, outputs, weight, bias, inputs_first }
    }

    fn norm(&mut self, name: &str, width: usize, bias: bool) -> Norm {
        let weight = self.tensor(format!("{name}.weight"), &[width]);
        let bias = bias.then(|| self.tensor(format!("{name}.bias"), &[width]));
        Norm { weight, bias }
    }
}

impl Model {
    /// Returns the modules of `config`.
    pub(crate) fn new(config: &ModelConfig) -> Self {
        match config.family {
            Family::Llama => Self::llama(config),
            Family::Gpt2 => Self::gpt2(config),
        }
    }

    fn llama(config: &ModelConfig) -> Self {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let (queries, keys) =
            (config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim);
        let mut build = Builder::default();
        let embedding = build.tensor("model.embed_tokens.weight".to_owned(), &[config.vocab_size, hidden]);
        let block = |layer: usize| {
            let build = &mut build;
            let name = |part: &str| format!("model.layers.{layer}.{part}");
            Block {
                input_norm: build.norm(&name("input_layernorm"), hidden, false),
                qkv: build.matrix(
                    hidden,
                    &[
                        (name("self_attn.q_proj"), queries),
                        (name("self_attn.k_proj"), keys),
                        (name("self_attn.v_proj"), keys),
                    ],
                    config.qkv_bias,
                ),
                qk_norm: config.qk_norm.then(|| {
                    ["self_attn.q_norm", "self_attn.k_norm"].map(|part| build.norm(&name(part), config.head_dim, false))
                }),
                output: build.matrix(queries, &[(name("self_attn.o_proj"), hidden)], false),
                inner_norm: build.norm(&name("post_attention_layernorm"), hidden, false),
                up: build.matrix(hidden, &[(name("mlp.gate_proj"), inner), (name("mlp.up_proj"), inner)], false),
                down: build.matrix(inner, &[(name("mlp.down_proj"), hidden)], false),
            }
        };
        let blocks = (0..config.num_hidden_layers).map(block).collect();
        let norm = build.norm("model.norm", hidden, false);
        let head = if config.tie_word_embeddings {
            build.numbered(hidden, config.vocab_size, embedding.clone(), None, false)
        } else {
            build.matrix(hidden, &[("lm_head".to_owned(), config.vocab_size)], false)
        };
        let layout = Arc::new(Layout::new(build.tensors));
        Self { config: config.clone(), layout, embedding, positions: None, blocks, norm, head }
    }

    fn gpt2(config: &ModelConfig) -> Self {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let mut build = Builder::default();
        let embedding = build.tensor("transformer.wte.weight".to_owned(), &[config.vocab_size, hidden]);
        let positions = build.tensor("transformer.wpe.weight".to_owned(), &[config.max_position_embeddings, hidden]);
        let block = |layer: usize| {
            let build = &mut build;
            let name = |part: &str| format!("transformer.h.{layer}.{part}");
            Block {
                input_norm: build.norm(&name("ln_1"), hidden, true),
                qkv: build.projection(&name("attn.c_attn"), hidden, 3 * hidden),
                qk_norm: None,
                output: build.projection(&name("attn.c_proj"), hidden, hidden),
                inner_norm: build.norm(&name("ln_2"), hidden, true),
                up: build.projection(&name("mlp.c_fc"), hidden, inner),
                down: build.projection(&name("mlp.c_proj"), inner, hidden),
            }
        };
        let blocks = (0..config.num_hidden_layers).map(block).collect();
        let norm = build.norm("transformer.ln_f", hidden, true);
        let head = build.numbered(hidden, config.vocab_size, embedding.clone(), None, false);
        let layout = Arc::new(Layout::new(build.tensors));
        Self { config: config.clone(), layout, embedding, positions: Some(positions), blocks, norm, head }
    }

    /// As [`read_vectors`](Self::read_vectors), from parameters in memory.
    pub(crate) fn extract_vectors(&mut self, parameters: &[f32]) -> Vec<f32> {
        let mut read = |range: Range<usize>, to: &mut [f32]| -> Result<(), Infallible> {
            to.copy_from_slice(&parameters[range]);
            Ok(())
        };
        let Ok(vectors) = self.read_vectors(&mut read);
        vectors
    }

    /// Reads norms, biases and position embeddings, and points their ranges into the vector that it returns.
    ///
    /// # Errors
    /// The first error of `read`.
    pub(crate) fn read_vectors<E>(&mut self, read: &mut Read<E>) -> Result<Vec<f32>, E> {
        let mut vectors = Vec::new();
        let mut wanted = Vec::new();
        let mut extract = |range: &mut Range<usize>| {
            let start = wanted.last().map_or(0, |(_, end)| *end);
            wanted.push((range.clone(), start + range.len()));
            *range = start..start + range.len();
        };
        for block in &mut self.blocks {
            for norm in
                [&mut block.input_norm, &mut block.inner_norm].into_iter().chain(block.qk_norm.iter_mut().flatten())
            {
                extract(&mut norm.weight);
                norm.bias.iter_mut().for_each(&mut extract);
            }
            for linear in [&mut block.qkv, &mut block.output, &mut block.up, &mut block.down] {
                linear.bias.iter_mut().for_each(&mut extract);
            }
        }
        extract(&mut self.norm.weight);
        self.norm.bias.iter_mut().for_each(&mut extract);
        self.head.bias.iter_mut().for_each(&mut extract);
        self.positions.iter_mut().for_each(&mut extract);
        for (range, end) in wanted {
            let start = vectors.len();
            vectors.resize(end, 0.0);
            read(range, &mut vectors[start..])?;
        }
        Ok(vectors)
    }

    /// Returns the linear layers in the order of their indices.
    pub(crate) fn matrices(&self) -> Vec<&Linear> {
        let blocks = self.blocks.iter().flat_map(|block| [&block.qkv, &block.output, &block.up, &block.down]);
        blocks.chain([&self.head]).collect()
    }
}
