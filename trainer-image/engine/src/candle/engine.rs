//! The model in candle's operations, differentiated by candle's autograd, one sequence at a time. Slow and simple: the
//! oracle of the kernels' tests. Pure.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::ops::{log_softmax, softmax};

use crate::{
    AdamW, Engine, EngineError, EngineState, Family, Layout, Lora, ModelConfig, Packed, Projection,
    model::{Dropout, adapter_flops, adapter_names, flops, stream},
    optim::norm,
};

/// An engine on candle's autograd.
#[derive(Debug)]
pub(crate) struct CandleEngine {
    config: ModelConfig,
    state: EngineState,
    gradients: Vec<f32>,
    frozen: Option<Frozen>,
}

/// A frozen model, whose adapters are trained.
#[derive(Debug)]
struct Frozen {
    layout: Layout,
    tensors: BTreeMap<String, Tensor>,
    lora: Lora,
}

impl CandleEngine {
    /// Makes an engine that starts from `state`.
    ///
    /// # Errors
    /// The state belongs to another model.
    pub(crate) fn new(config: ModelConfig, state: EngineState) -> std::result::Result<Self, EngineError> {
        let layout = Arc::new(Layout::of(&config));
        state.check(&layout)?;
        let gradients = vec![0.0; state.parameters.len()];
        Ok(Self { config, state: EngineState { layout, ..state }, gradients, frozen: None })
    }

    /// Makes an engine that trains adapters beside the frozen parameters `base`, starting from `state`.
    ///
    /// # Errors
    /// The state belongs to another model, or the model cannot have these adapters.
    pub(crate) fn with_adapters(
        config: ModelConfig,
        base: &[f32],
        lora: Lora,
        state: EngineState,
    ) -> std::result::Result<Self, EngineError> {
        let trained = Arc::new(lora.layout(&config)?);
        state.check(&trained)?;
        let gradients = vec![0.0; state.parameters.len()];
        let layout = Layout::of(&config);
        let frozen = Some(Frozen { tensors: tensors(&layout, base)?, layout, lora });
        Ok(Self { config, state: EngineState { layout: trained, ..state }, gradients, frozen })
    }

    /// Returns Σ over targets of the cross-entropy. Adapters drop inputs out if `train`.
    fn sum(&self, variables: &BTreeMap<String, Var>, batch: &Packed, train: bool) -> Result<Tensor> {
        let mut weights: BTreeMap<String, Tensor> =
            variables.iter().map(|(name, variable)| (name.clone(), variable.as_tensor().clone())).collect();
        let lora = self.frozen.as_ref().map(|Frozen { tensors, lora, .. }| {
            weights.extend(tensors.iter().map(|(name, tensor)| (name.clone(), tensor.clone())));
            (lora.scale(), Dropout::new(lora.dropout, batch.noise).filter(|_| train))
        });
        let mut sum = Tensor::zeros((), DType::F32, &Device::Cpu)?;
        for bounds in batch.cu_seqlens.windows(2) {
            let (rows, ids): (Vec<u32>, Vec<u32>) = batch
                .targets
                .iter()
                .filter(|target| (bounds[0]..bounds[1]).contains(&target.row))
                .map(|target| ((target.row - bounds[0]) as u32, target.id))
                .unzip();
            if rows.is_empty() {
                continue;
            }
            let graph = Graph { config: &self.config, weights: &weights, lora, first_row: bounds[0] };
            let logits = graph.logits(&batch.tokens[bounds[0]..bounds[1]], &rows)?;
            let ids = Tensor::new(ids.as_slice(), &Device::Cpu)?.unsqueeze(1)?;
            sum = (sum - log_softmax(&logits, 1)?.gather(&ids, 1)?.sum_all()?)?;
        }
        Ok(sum)
    }

    fn accumulate_graph(&mut self, batch: &Packed, total_targets: usize) -> Result<f64> {
        let variables = variables(&self.state.layout, &self.state.parameters)?;
        let loss = (self.sum(&variables, batch, true)? / total_targets as f64)?;
        let store = loss.backward()?;
        let mut gradients = Vec::with_capacity(variables.len());
        for tensor in self.state.layout.tensors() {
            let variable = &variables[&tensor.name];
            let Some(gradient) = store.get(variable) else { candle_core::bail!("{} has no gradient", tensor.name) };
            gradients.push((tensor.range.clone(), gradient.flatten_all()?.to_vec1::<f32>()?));
        }
        for (range, gradient) in gradients {
            self.gradients[range].iter_mut().zip(gradient).for_each(|(sum, part)| *sum += part);
        }
        Ok(f64::from(loss.to_scalar::<f32>()?))
    }
}

/// Returns the parameters as variables by name.
fn variables(layout: &Layout, parameters: &[f32]) -> Result<BTreeMap<String, Var>> {
    let variables = tensors(layout, parameters)?.into_iter();
    variables.map(|(name, tensor)| Ok((name, Var::from_tensor(&tensor)?))).collect()
}

/// Returns the parameters as tensors by name.
pub(super) fn tensors(layout: &Layout, parameters: &[f32]) -> Result<BTreeMap<String, Tensor>> {
    let tensors = layout.tensors().iter();
    tensors
        .map(|tensor| {
            let numbers = &parameters[tensor.range.clone()];
            Ok((tensor.name.clone(), Tensor::from_slice(numbers, tensor.shape.as_slice(), &Device::Cpu)?))
        })
        .collect()
}

/// The forward pass of a model.
pub(super) struct Graph<'a> {
    pub(super) config: &'a ModelConfig,
    pub(super) weights: &'a BTreeMap<String, Tensor>,
    /// Scale and dropout of the adapters, if there are any.
    pub(super) lora: Option<(f64, Option<Dropout>)>,
    /// Index of the sequence's first row in the batch.
    pub(super) first_row: usize,
}

impl Graph<'_> {
    fn weight(&self, name: &str) -> Result<&Tensor> {
        match self.weights.get(name) {
            Some(weight) => Ok(weight),
            None => candle_core::bail!("the model has no weight {name}"),
        }
    }

    /// Computes a linear layer without its bias, and its adapter if it has one.
    fn linear(&self, x: &Tensor, layer: usize, module: &str) -> Result<Tensor> {
        let y = x.matmul(&self.weight(&format!("{module}.weight"))?.t()?)?;
        let projection = module.rsplit('.').next().and_then(Projection::of);
        let [a, b] = adapter_names(module).map(|name| self.weights.get(&name));
        let (Some((scale, dropout)), Some(projection), Some(a), Some(b)) = (self.lora, projection, a, b) else {
            return Ok(y);
        };
        let mut x = x.clone();
        if let Some(dropout) = dropout {
            let (rows, inputs) = x.dims2()?;
            let mut factors = vec![0.0; rows * inputs];
            for (row, factors) in factors.chunks_exact_mut(inputs).enumerate() {
                dropout.factors(stream(layer, projection), self.first_row + row, factors);
            }
            x = (x * Tensor::from_vec(factors, (rows, inputs), &Device::Cpu)?)?;
        }
        y + (x.matmul(&a.t()?)?.matmul(&b.t()?)? * scale)?
    }

    /// Returns the logits of some rows of a sequence.
    pub(super) fn logits(&self, tokens: &[u32], rows: &[u32]) -> Result<Tensor> {
        let count = tokens.len();
        let tokens = Tensor::from_slice(tokens, count, &Device::Cpu)?;
        let rows = Tensor::new(rows, &Device::Cpu)?;
        let layers = 0..self.config.num_hidden_layers;
        match self.config.family {
            Family::Llama => {
                let embedding = self.weight("model.embed_tokens.weight")?;
                let mut x = embedding.index_select(&tokens, 0)?;
                for layer in layers {
                    x = self.llama_block(layer, &x)?;
                }
                let x = self.rms_norm(&x.index_select(&rows, 0)?, "model.norm")?;
                let tied = self.config.tie_word_embeddings;
                x.matmul(&if tied { embedding.t()? } else { self.weight("lm_head.weight")?.t()? })
            }
            Family::Gpt2 => {
                let embedding = self.weight("transformer.wte.weight")?;
                let positions = self.weight("transformer.wpe.weight")?.narrow(0, 0, count)?;
                let mut x = (embedding.index_select(&tokens, 0)? + positions)?;
                for layer in layers {
                    x = self.gpt2_block(&format!("transformer.h.{layer}"), &x)?;
                }
                let x = self.layer_norm(&x.index_select(&rows, 0)?, "transformer.ln_f")?;
                x.matmul(&embedding.t()?)
            }
        }
    }

    fn llama_block(&self, layer: usize, x: &Tensor) -> Result<Tensor> {
        let name = format!("model.layers.{layer}");
        let linear = |x: &Tensor, part: &str| self.linear(x, layer, &format!("{name}.{part}"));
        let biased = |x: &Tensor, part: &str| {
            let y = linear(x, part)?;
            if self.config.qkv_bias { y.broadcast_add(self.weight(&format!("{name}.{part}.bias"))?) } else { Ok(y) }
        };
        let normed = |x: Tensor, part: &str| {
            if self.config.qk_norm { self.rms_norm(&x, &format!("{name}.{part}")) } else { Ok(x) }
        };
        let n = self.rms_norm(x, &format!("{name}.input_layernorm"))?;
        let (heads, kv_heads) = (self.config.num_attention_heads, self.config.num_key_value_heads);
        let q = normed(self.split(&biased(&n, "self_attn.q_proj")?, heads)?, "self_attn.q_norm")?;
        let k = normed(self.split(&biased(&n, "self_attn.k_proj")?, kv_heads)?, "self_attn.k_norm")?;
        let (q, k) = (self.apply_rope(&q)?, self.apply_rope(&k)?);
        let v = self.split(&biased(&n, "self_attn.v_proj")?, kv_heads)?;
        let attn_out = attention(&q, &repeat(&k, heads / kv_heads)?, &repeat(&v, heads / kv_heads)?)?;
        let x = (x + linear(&attn_out, "self_attn.o_proj")?)?;
        let n = self.rms_norm(&x, &format!("{name}.post_attention_layernorm"))?;
        let y = (linear(&n, "mlp.gate_proj")?.silu()? * linear(&n, "mlp.up_proj")?)?;
        x + linear(&y, "mlp.down_proj")?
    }

    fn gpt2_block(&self, name: &str, x: &Tensor) -> Result<Tensor> {
        let linear = |x: &Tensor, part: &str| {
            let y = x.matmul(self.weight(&format!("{name}.{part}.weight"))?)?;
            y.broadcast_add(self.weight(&format!("{name}.{part}.bias"))?)
        };
        let hidden = self.config.hidden_size;
        let qkv = linear(&self.layer_norm(x, &format!("{name}.ln_1"))?, "attn.c_attn")?;
        let part = |at: usize| self.split(&qkv.narrow(1, at * hidden, hidden)?, self.config.num_attention_heads);
        let x = (x + linear(&attention(&part(0)?, &part(1)?, &part(2)?)?, "attn.c_proj")?)?;
        let y = linear(&self.layer_norm(&x, &format!("{name}.ln_2"))?, "mlp.c_fc")?.gelu()?;
        x + linear(&y, "mlp.c_proj")?
    }

    fn rms_norm(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let mean = (x.sqr()?.mean_keepdim(candle_core::D::Minus1)? + self.config.norm_eps)?;
        x.broadcast_div(&mean.sqrt()?)?.broadcast_mul(self.weight(&format!("{name}.weight"))?)
    }

    fn layer_norm(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let x = x.broadcast_sub(&x.mean_keepdim(1)?)?;
        let variance = (x.sqr()?.mean_keepdim(1)? + self.config.norm_eps)?;
        let x = x.broadcast_div(&variance.sqrt()?)?.broadcast_mul(self.weight(&format!("{name}.weight"))?)?;
        x.broadcast_add(self.weight(&format!("{name}.bias"))?)
    }

    /// [rows, heads · width] → [heads, rows, width]
    fn split(&self, x: &Tensor, heads: usize) -> Result<Tensor> {
        x.reshape((x.dim(0)?, heads, self.config.head_dim))?.transpose(0, 1)?.contiguous()
    }

    /// Applies rotary positions to [heads, rows, width].
    fn apply_rope(&self, x: &Tensor) -> Result<Tensor> {
        let (_, rows, width) = x.dims3()?;
        let frequencies = self.config.inverse_frequencies();
        let angles: Vec<f32> = (0..rows)
            .flat_map(|row| (0..width).map(move |i| (row, i % (width / 2))))
            .map(|(row, i)| (row as f64 * frequencies[i]) as f32)
            .collect();
        let angles = Tensor::from_vec(angles, (rows, width), &Device::Cpu)?;
        let (a, b) = (x.narrow(2, 0, width / 2)?, x.narrow(2, width / 2, width / 2)?);
        let rotated = Tensor::cat(&[&b.neg()?, &a], 2)?;
        x.broadcast_mul(&angles.cos()?)? + rotated.broadcast_mul(&angles.sin()?)?
    }
}

/// Repeats each head: [heads, rows, width] → [heads · times, rows, width].
fn repeat(x: &Tensor, times: usize) -> Result<Tensor> {
    let (heads, rows, width) = x.dims3()?;
    x.unsqueeze(1)?.broadcast_as((heads, times, rows, width))?.contiguous()?.reshape((heads * times, rows, width))
}

/// Returns causal attention over [heads, rows, width] as [rows, heads · width].
fn attention(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
    let (heads, rows, width) = q.dims3()?;
    let mask: Vec<f32> = (0..rows * rows).map(|i| if i % rows > i / rows { f32::NEG_INFINITY } else { 0.0 }).collect();
    let mask = Tensor::from_vec(mask, (rows, rows), &Device::Cpu)?;
    let scores = (q.matmul(&k.transpose(1, 2)?)? / (width as f64).sqrt())?.broadcast_add(&mask)?;
    softmax(&scores, 2)?.matmul(v)?.transpose(0, 1)?.reshape((rows, heads * width))
}

impl Engine for CandleEngine {
    fn path(&self) -> &'static str {
        "candle-f32"
    }

    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn layout(&self) -> &Arc<Layout> {
        &self.state.layout
    }

    fn flops(&self, batch: &Packed) -> f64 {
        match &self.frozen {
            None => flops(&self.config, &self.state.layout, batch),
            Some(Frozen { layout, .. }) => adapter_flops(&self.config, layout, &self.state.layout, batch),
        }
    }

    fn clear_gradients(&mut self) {
        self.gradients.fill(0.0);
    }

    fn accumulate(&mut self, batch: &Packed, total_targets: usize) -> std::result::Result<f64, EngineError> {
        batch.check(&self.config)?;
        if batch.targets.is_empty() {
            return Ok(0.0);
        }
        Ok(self.accumulate_graph(batch, total_targets)?)
    }

    fn loss(&mut self, batch: &Packed) -> std::result::Result<f64, EngineError> {
        batch.check(&self.config)?;
        let variables = variables(&self.state.layout, &self.state.parameters)?;
        Ok(f64::from(self.sum(&variables, batch, false)?.to_scalar::<f32>().map_err(EngineError::from)?))
    }

    fn parameters(&self) -> Cow<'_, [f32]> {
        Cow::Borrowed(&self.state.parameters)
    }

    fn gradients(&self) -> Cow<'_, [f32]> {
        Cow::Borrowed(&self.gradients)
    }

    fn gradient_norm(&self) -> std::result::Result<f64, EngineError> {
        norm(&self.state.layout, &self.gradients)
    }

    fn update(&mut self, step: &AdamW) {
        let EngineState { layout, parameters, first, second } = &mut self.state;
        step.apply(layout, parameters, &self.gradients, first, second);
    }

    fn memory(&self) -> usize {
        4 * size_of::<f32>() * self.gradients.len()
    }

    fn export(&self) -> EngineState {
        self.state.clone()
    }

    fn export_into(&self, state: &mut EngineState) {
        state.clone_from(&self.state);
    }

    fn import(&mut self, state: &EngineState) -> std::result::Result<(), EngineError> {
        state.check(&self.state.layout)?;
        self.state = state.clone();
        Ok(())
    }
}
