//! The forward pass of a model over rows: tokens of one or more sequences, one after another.

use std::collections::BTreeMap;

use candle_core::{DType, Result, Tensor};

use super::{attention::Attend, device::Place, ops};
use crate::{
    Family, ModelConfig, Projection,
    model::{Dropout, adapter_names, stream},
};

/// Tensors by their Hugging Face names.
pub(super) type Weights = BTreeMap<String, Tensor>;

/// Adapters of a forward pass.
#[derive(Clone, Copy, Debug)]
pub(super) struct Adapters {
    /// The factor α / r.
    pub(super) scale: f64,
    /// Dropout of the adapters' inputs.
    pub(super) dropout: Option<Dropout>,
}

/// A model and its weights. Matrices have the type of activations.
pub(super) struct Model<'a> {
    pub(super) config: &'a ModelConfig,
    pub(super) place: &'a Place,
    pub(super) weights: &'a Weights,
    /// Whether the model's own weights are frozen, so that they need no gradients.
    pub(super) frozen: bool,
    pub(super) adapters: Option<Adapters>,
}

impl Model<'_> {
    /// Returns the hidden states after the final norm, [rows, hidden], of tokens at positions.
    pub(super) fn hidden(&self, tokens: &[u32], positions: &[u32], attend: &mut dyn Attend) -> Result<Tensor> {
        let tokens = self.place.indices(tokens)?;
        let layers = 0..self.config.num_hidden_layers;
        match self.config.family {
            Family::Llama => {
                let mut x = self.weight("model.embed_tokens.weight")?.index_select(&tokens, 0)?;
                for layer in layers {
                    x = self.llama_block(layer, &x, attend)?;
                }
                self.rms_norm(&x, "model.norm")
            }
            Family::Gpt2 => {
                let positions = self.place.indices(positions)?;
                let learned = self.weight("transformer.wpe.weight")?.index_select(&positions, 0)?;
                let mut x = (self.weight("transformer.wte.weight")?.index_select(&tokens, 0)? + learned)?;
                for layer in layers {
                    x = self.gpt2_block(layer, &x, attend)?;
                }
                self.layer_norm(&x, "transformer.ln_f")
            }
        }
    }

    /// Returns the weight [vocabulary, hidden] of the output projection, and its name.
    pub(super) fn head(&self) -> Result<(&'static str, &Tensor)> {
        let name = match self.config.family {
            Family::Gpt2 => "transformer.wte.weight",
            Family::Llama if self.config.tie_word_embeddings => "model.embed_tokens.weight",
            Family::Llama => "lm_head.weight",
        };
        Ok((name, self.weight(name)?))
    }

    fn weight(&self, name: &str) -> Result<&Tensor> {
        match self.weights.get(name) {
            Some(weight) => Ok(weight),
            None => candle_core::bail!("the model has no weight {name}"),
        }
    }

    fn llama_block(&self, layer: usize, x: &Tensor, attend: &mut dyn Attend) -> Result<Tensor> {
        let name = format!("model.layers.{layer}");
        let linear = |x: &Tensor, part: &str| self.linear(x, layer, &format!("{name}.{part}"));
        let head = |x: &Tensor, part: &str, heads: usize| {
            let mut y = linear(x, &format!("self_attn.{part}_proj"))?;
            if self.config.qkv_bias {
                y = y.broadcast_add(self.weight(&format!("{name}.self_attn.{part}_proj.bias"))?)?;
            }
            let y = y.reshape((x.dim(0)?, heads, self.config.head_dim))?;
            if self.config.qk_norm && part != "v" {
                return self.rms_norm(&y, &format!("{name}.self_attn.{part}_norm"));
            }
            Ok(y)
        };
        let (heads, kv_heads) = (self.config.num_attention_heads, self.config.num_key_value_heads);
        let n = self.rms_norm(x, &format!("{name}.input_layernorm"))?;
        let attended =
            attend.attend(layer, &head(&n, "q", heads)?, &head(&n, "k", kv_heads)?, &head(&n, "v", kv_heads)?)?;
        let x = (x + linear(&attended, "self_attn.o_proj")?)?;
        let n = self.rms_norm(&x, &format!("{name}.post_attention_layernorm"))?;
        let y = ops::swiglu(&linear(&n, "mlp.gate_proj")?, &linear(&n, "mlp.up_proj")?)?;
        x + linear(&y, "mlp.down_proj")?
    }

    fn gpt2_block(&self, layer: usize, x: &Tensor, attend: &mut dyn Attend) -> Result<Tensor> {
        let name = format!("transformer.h.{layer}");
        // Hugging Face's GPT-2 keeps its matrices as [inputs, outputs].
        let linear = |x: &Tensor, part: &str| {
            let weight = self.weight(&format!("{name}.{part}.weight"))?;
            let y = if self.frozen { ops::frozen_linear(x, &weight.t()?)? } else { x.matmul(weight)? };
            y.broadcast_add(self.weight(&format!("{name}.{part}.bias"))?)
        };
        let (heads, hidden) = (self.config.num_attention_heads, self.config.hidden_size);
        let qkv = linear(&self.layer_norm(x, &format!("{name}.ln_1"))?, "attn.c_attn")?;
        let part = |at: usize| qkv.narrow(1, at * hidden, hidden)?.reshape((x.dim(0)?, heads, self.config.head_dim));
        let x = (x + linear(&attend.attend(layer, &part(0)?, &part(1)?, &part(2)?)?, "attn.c_proj")?)?;
        let y = linear(&self.layer_norm(&x, &format!("{name}.ln_2"))?, "mlp.c_fc")?.gelu()?;
        x + linear(&y, "mlp.c_proj")?
    }

    /// Computes a linear layer without its bias, and its adapter if it has one.
    fn linear(&self, x: &Tensor, layer: usize, module: &str) -> Result<Tensor> {
        let weight = self.weight(&format!("{module}.weight"))?;
        let y = if self.frozen { ops::frozen_linear(x, weight)? } else { x.matmul(&weight.t()?)? };
        let projection = module.rsplit('.').next().and_then(Projection::of);
        let [a, b] = adapter_names(module).map(|name| self.weights.get(&name));
        let (Some(Adapters { scale, dropout }), Some(projection), Some(a), Some(b)) = (self.adapters, projection, a, b)
        else {
            return Ok(y);
        };
        let mut x = x.clone();
        if let Some(dropout) = dropout {
            let (rows, inputs) = x.dims2()?;
            let mut factors = vec![0.0; rows * inputs];
            for (row, factors) in factors.chunks_exact_mut(inputs).enumerate() {
                dropout.factors(stream(layer, projection), row, factors);
            }
            x = (x * self.place.tensor(&factors, &[rows, inputs])?.to_dtype(self.place.dtype)?)?;
        }
        y + (x.matmul(&a.t()?)?.matmul(&b.t()?)? * scale)?
    }

    fn rms_norm(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        ops::rms_norm(x, self.weight(&format!("{name}.weight"))?, self.config.norm_eps)
    }

    fn layer_norm(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let (weight, bias) = (self.weight(&format!("{name}.weight"))?, self.weight(&format!("{name}.bias"))?);
        let (dtype, wide) = (x.dtype(), x.to_dtype(DType::F32)?);
        let centred = wide.broadcast_sub(&wide.mean_keepdim(1)?)?;
        let variance = (centred.sqr()?.mean_keepdim(1)? + self.config.norm_eps)?;
        let normed = centred.broadcast_div(&variance.sqrt()?)?.to_dtype(dtype)?;
        normed.broadcast_mul(weight)?.broadcast_add(bias)
    }
}
