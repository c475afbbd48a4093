//! The same model in candle's own operations, differentiated by candle's autograd, sequence by sequence. Slow and plain: what
//! the other engines are compared with. Pure.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::ops::{log_softmax, softmax};

use super::{AdamW, Engine, EngineError, EngineState, Layout, ModelConfig, Packed, adamw::norm};

/// The engine that candle's autograd drives.
#[derive(Debug)]
pub struct ReferenceEngine {
    config: ModelConfig,
    state: EngineState,
    gradients: Vec<f32>,
}

impl ReferenceEngine {
    /// An engine that goes on from `state`.
    ///
    /// # Errors
    /// When the state is of another model.
    pub fn new(config: ModelConfig, state: EngineState) -> std::result::Result<Self, EngineError> {
        state.check(&Layout::of(&config))?;
        let gradients = vec![0.0; state.parameters.len()];
        Ok(Self { config, state, gradients })
    }

    /// The parameters as variables, by name.
    fn variables(&self) -> Result<BTreeMap<&str, Var>> {
        let tensors = self.state.layout.tensors().iter();
        tensors
            .map(|tensor| {
                let numbers = &self.state.parameters[tensor.range.clone()];
                Ok((tensor.name.as_str(), Var::from_slice(numbers, tensor.shape.as_slice(), &Device::Cpu)?))
            })
            .collect()
    }

    /// Σ over targets of the cross-entropy.
    fn sum(&self, variables: &BTreeMap<&str, Var>, batch: &Packed) -> Result<Tensor> {
        let config = &self.config;
        let weight = |name: &str| -> Result<&Tensor> {
            match variables.get(name) {
                Some(variable) => Ok(variable.as_tensor()),
                None => candle_core::bail!("the model has no weight {name}"),
            }
        };
        let embedding = weight("model.embed_tokens.weight")?;
        let norm = |x: &Tensor, w: &Tensor| -> Result<Tensor> {
            let mean = (x.sqr()?.mean_keepdim(1)? + config.rms_norm_eps)?;
            x.broadcast_div(&mean.sqrt()?)?.broadcast_mul(w)
        };
        let (heads, width) = (config.num_attention_heads, config.head_dim);
        let mut sum = Tensor::zeros((), DType::F32, &Device::Cpu)?;
        for bounds in batch.offsets.windows(2) {
            let rows = bounds[1] - bounds[0];
            if rows == 0 {
                continue;
            }
            let tokens = Tensor::from_slice(&batch.tokens[bounds[0]..bounds[1]], rows, &Device::Cpu)?;
            let mut x = embedding.index_select(&tokens, 0)?;
            let angles: Vec<f32> = (0..rows)
                .flat_map(|row| (0..width).map(move |i| (row, i % (width / 2))))
                .map(|(row, i)| (row as f64 * config.rope_theta.powf(-2.0 * i as f64 / width as f64)) as f32)
                .collect();
            let angles = Tensor::from_vec(angles, (rows, width), &Device::Cpu)?;
            let turn = |x: &Tensor| -> Result<Tensor> {
                let (a, b) = (x.narrow(2, 0, width / 2)?, x.narrow(2, width / 2, width / 2)?);
                let turned = Tensor::cat(&[&b.neg()?, &a], 2)?;
                x.broadcast_mul(&angles.cos()?)? + turned.broadcast_mul(&angles.sin()?)?
            };
            let mask: Vec<f32> =
                (0..rows * rows).map(|i| if i % rows > i / rows { f32::NEG_INFINITY } else { 0.0 }).collect();
            let mask = Tensor::from_vec(mask, (rows, rows), &Device::Cpu)?;
            for layer in 0..config.num_hidden_layers {
                let weight = |name: &str| weight(&format!("model.layers.{layer}.{name}.weight"));
                let n = norm(&x, weight("input_layernorm")?)?;
                let part = |name: &str| -> Result<Tensor> {
                    let projected = n.matmul(&weight(&format!("self_attn.{name}_proj"))?.t()?)?;
                    projected.reshape((rows, heads, width))?.transpose(0, 1)?.contiguous()
                };
                let (q, k, v) = (turn(&part("q")?)?, turn(&part("k")?)?, part("v")?);
                let scores = (q.matmul(&k.transpose(1, 2)?)? / (width as f64).sqrt())?.broadcast_add(&mask)?;
                let mixed = softmax(&scores, 2)?.matmul(&v)?.transpose(0, 1)?.reshape((rows, heads * width))?;
                x = (x + mixed.matmul(&weight("self_attn.o_proj")?.t()?)?)?;
                let n = norm(&x, weight("post_attention_layernorm")?)?;
                let (gate, up) = (weight("mlp.gate_proj")?, weight("mlp.up_proj")?);
                let y = (n.matmul(&gate.t()?)?.silu()? * n.matmul(&up.t()?)?)?;
                x = (x + y.matmul(&weight("mlp.down_proj")?.t()?)?)?;
            }
            let (rows, ids): (Vec<u32>, Vec<u32>) = batch
                .targets
                .iter()
                .filter(|target| (bounds[0]..bounds[1]).contains(&target.row))
                .map(|target| ((target.row - bounds[0]) as u32, target.id))
                .unzip();
            if rows.is_empty() {
                continue;
            }
            let x = x.index_select(&Tensor::new(rows.as_slice(), &Device::Cpu)?, 0)?;
            let logits = norm(&x, weight("model.norm.weight")?)?.matmul(&embedding.t()?)?;
            let ids = Tensor::new(ids.as_slice(), &Device::Cpu)?.unsqueeze(1)?;
            sum = (sum - log_softmax(&logits, 1)?.gather(&ids, 1)?.sum_all()?)?;
        }
        Ok(sum)
    }

    fn accumulate_graph(&mut self, batch: &Packed, total_targets: usize) -> Result<f64> {
        let variables = self.variables()?;
        let loss = (self.sum(&variables, batch)? / total_targets as f64)?;
        let store = loss.backward()?;
        let mut gradients = Vec::with_capacity(variables.len());
        for tensor in self.state.layout.tensors() {
            let variable = &variables[tensor.name.as_str()];
            let Some(gradient) = store.get(variable) else { candle_core::bail!("{} has no gradient", tensor.name) };
            gradients.push((tensor.range.clone(), gradient.flatten_all()?.to_vec1::<f32>()?));
        }
        for (range, gradient) in gradients {
            self.gradients[range].iter_mut().zip(gradient).for_each(|(sum, part)| *sum += part);
        }
        Ok(f64::from(loss.to_scalar::<f32>()?))
    }
}

impl Engine for ReferenceEngine {
    fn path(&self) -> &'static str {
        "candle-f32"
    }

    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn layout(&self) -> &Arc<Layout> {
        &self.state.layout
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
        let variables = self.variables()?;
        Ok(f64::from(self.sum(&variables, batch)?.to_scalar::<f32>().map_err(EngineError::from)?))
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

    fn export(&self) -> EngineState {
        self.state.clone()
    }

    fn import(&mut self, state: &EngineState) -> std::result::Result<(), EngineError> {
        state.check(&self.state.layout)?;
        self.state = state.clone();
        Ok(())
    }
}
