//! The decoder as a candle graph over packed sequences: what training differentiates. Pure.
//!
//! A block's weights are one variable; [`Decoder::export`] writes its parts under the names that Hugging Face gives them.

use std::{collections::BTreeMap, sync::Arc};

use candle_core::{Device, Result, Tensor, Var};
use candle_nn::{Embedding, Module as _};
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution as _, StandardNormal};
use sha2::{Digest as _, Sha256};

use super::{
    ModelConfig,
    attention::Rotary,
    head::Target,
    layout::{EMBEDDING, Group, NORM, Part, block, groups},
    ops,
};

/// Sequences packed one after another, without padding, and what is to be predicted.
#[derive(Clone, Debug)]
pub struct Packed {
    /// Input ids [rows].
    pub tokens: Vec<u32>,
    /// Where each sequence begins, and the number of rows.
    pub offsets: Arc<[usize]>,
    /// The rows that count for the loss, in order.
    pub targets: Arc<[Target]>,
}

impl Packed {
    /// Packs sequences of (ids, length of the prompt): each id is predicted from those before it, and counts from the first
    /// one after the prompt on.
    pub fn new<'a>(sequences: impl IntoIterator<Item = (&'a [u32], usize)>) -> Self {
        let (mut tokens, mut offsets, mut targets) = (Vec::new(), vec![0], Vec::new());
        for (ids, prompt) in sequences {
            let Some((_, inputs)) = ids.split_last() else { continue };
            let start = tokens.len();
            tokens.extend_from_slice(inputs);
            targets.extend((prompt.max(1)..ids.len()).map(|at| Target { row: start + at - 1, id: ids[at] }));
            offsets.push(tokens.len());
        }
        Self { tokens, offsets: offsets.into(), targets: targets.into() }
    }
}

/// The weights, as variables in the order of their groups' names, and how they are wired.
#[derive(Debug)]
pub struct Decoder {
    config: Arc<ModelConfig>,
    groups: Vec<Group>,
    weights: BTreeMap<String, Var>,
    rotary: Arc<Rotary>,
}

impl Decoder {
    /// A new model: normal weights of deviation 1/√width, output projections by another 1/√(2 · layers), norms of 1. Every
    /// matrix has its own stream of random numbers, named by `seed` and its name.
    ///
    /// # Errors
    /// When candle cannot allocate.
    pub fn new(config: ModelConfig, seed: u64) -> Result<Self> {
        let numbers = groups(&config).into_iter().map(|group| {
            let parts = group.parts.iter().flat_map(|part| initial(&config, part, seed));
            (group.name.clone(), parts.collect())
        });
        let numbers = numbers.collect();
        Self::from_numbers(config, numbers)
    }

    /// A model of given weights, by the names of their groups.
    ///
    /// # Errors
    /// When one is missing or has another size.
    pub fn from_numbers(config: ModelConfig, mut numbers: BTreeMap<String, Vec<f32>>) -> Result<Self> {
        let groups = groups(&config);
        let mut weights = BTreeMap::new();
        for group in &groups {
            let Some(numbers) = numbers.remove(&group.name) else { candle_core::bail!("{} is missing", group.name) };
            weights.insert(group.name.clone(), Var::from_vec(numbers, group.size(), &Device::Cpu)?);
        }
        let rotary = Rotary::new(config.max_position_embeddings, config.head_dim, config.rope_theta);
        Ok(Self { config: Arc::new(config), groups, weights, rotary: Arc::new(rotary) })
    }

    /// How the weights of a model are grouped, in the order of names.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// The shape of the model.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The variables by the names of their groups.
    pub fn weights(&self) -> &BTreeMap<String, Var> {
        &self.weights
    }

    /// Mean cross-entropy of `batch`'s targets in nats, when all batches of the step have `total` of them.
    ///
    /// # Errors
    /// When an id is outside the vocabulary or a sequence is longer than the context.
    pub fn loss(&self, batch: &Packed, total: usize) -> Result<Tensor> {
        let longest = batch.offsets.windows(2).map(|bounds| bounds[1] - bounds[0]).max().unwrap_or(0);
        if longest > self.config.max_position_embeddings {
            candle_core::bail!("{longest} tokens, but {} fit", self.config.max_position_embeddings);
        }
        let (vocabulary, hidden) = (self.config.vocab_size, self.config.hidden_size);
        if let Some(id) = batch.tokens.iter().chain(batch.targets.iter().map(|target| &target.id)).max()
            && *id as usize >= vocabulary
        {
            candle_core::bail!("id {id} is outside the vocabulary of {vocabulary}");
        }
        let tokens = Tensor::from_slice(&batch.tokens, batch.tokens.len(), &Device::Cpu)?;
        let embedding = self.weight(EMBEDDING)?;
        let mut x = Embedding::new(embedding.reshape((vocabulary, hidden))?, hidden).forward(&tokens)?;
        for layer in 0..self.config.num_hidden_layers {
            let op = ops::Block::new(batch.offsets.clone(), self.rotary.clone(), self.config.clone());
            x = x.apply_op2(self.weight(&block(layer))?, op)?;
        }
        let eps = self.config.rms_norm_eps as f32;
        x.apply_op3(self.weight(NORM)?, embedding, ops::Loss { targets: batch.targets.clone(), total, eps })
    }

    fn weight(&self, name: &str) -> Result<&Tensor> {
        match self.weights.get(name) {
            Some(var) => Ok(var.as_tensor()),
            None => candle_core::bail!("the model has no weight {name}"),
        }
    }

    /// The weights under the names of Hugging Face's Llama, in order.
    ///
    /// # Errors
    /// When candle cannot read them.
    pub fn export(&self) -> Result<Exported> {
        let mut tensors = BTreeMap::new();
        for group in &self.groups {
            let numbers = self.weight(&group.name)?.to_vec1::<f32>()?;
            for part in &group.parts {
                tensors.insert(part.name.clone(), (part.shape.clone(), numbers[part.range.clone()].to_vec()));
            }
        }
        Ok(tensors)
    }
}

/// Weights by name: their shapes and numbers.
pub type Exported = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn initial(config: &ModelConfig, part: &Part, seed: u64) -> Vec<f32> {
    let count = part.range.len();
    if part.shape.len() == 1 {
        return vec![1.0; count];
    }
    let mut deviation = 1.0 / (config.hidden_size as f32).sqrt();
    if part.name.contains("o_proj") || part.name.contains("down_proj") {
        deviation /= ((2 * config.num_hidden_layers) as f32).sqrt();
    }
    let mut hasher = Sha256::new();
    hasher.update(b"codex weights 1\0");
    hasher.update(&part.name);
    hasher.update([0]);
    hasher.update(seed.to_le_bytes());
    let mut rng = ChaCha8Rng::from_seed(hasher.finalize().into());
    let draw = |_| {
        let normal: f32 = StandardNormal.sample(&mut rng);
        deviation * normal
    };
    (0..count).map(draw).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{model::Shape, tokenizer::Tokenizer};

    fn config() -> ModelConfig {
        let shape = Shape {
            hidden_size: 32,
            intermediate_size: 48,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            max_position_embeddings: 64,
            rope_theta: 10_000.0,
        };
        ModelConfig::new(shape, &Tokenizer::characters().unwrap()).unwrap()
    }

    fn batch() -> Packed {
        let tokenizer = Tokenizer::characters().unwrap();
        let sequences: Vec<(Vec<u32>, usize)> = ["12+9:2+9+0=11 1+0+1=02 #21$", "7-7:07-7-0=0 #0$", "1+1:#2$"]
            .map(|text| (tokenizer.encode(text).unwrap(), text.find(':').unwrap() + 1))
            .into();
        Packed::new(sequences.iter().map(|(ids, prompt)| (ids.as_slice(), *prompt)))
    }

    /// The same model written with candle's own operations, sequence by sequence.
    fn plain_loss(decoder: &Decoder, batch: &Packed) -> Result<Tensor> {
        let config = decoder.config();
        let weight = |name: &str| -> Result<Tensor> {
            let group = decoder.groups().iter().find(|group| group.parts.iter().any(|part| part.name == name)).unwrap();
            let part = group.parts.iter().find(|part| part.name == name).unwrap();
            let flat = decoder.weight(&group.name)?.narrow(0, part.range.start, part.range.len())?;
            flat.reshape(part.shape.as_slice())
        };
        let embedding = weight("model.embed_tokens.weight")?;
        let norm = |x: &Tensor, w: &Tensor| -> Result<Tensor> {
            let mean = (x.sqr()?.mean_keepdim(1)? + config.rms_norm_eps)?;
            x.broadcast_div(&mean.sqrt()?)?.broadcast_mul(w)
        };
        let (heads, width) = (config.num_attention_heads, config.head_dim);
        let mut sum = Tensor::zeros((), candle_core::DType::F32, &Device::Cpu)?;
        for bounds in batch.offsets.windows(2) {
            let rows = bounds[1] - bounds[0];
            let tokens = Tensor::from_slice(&batch.tokens[bounds[0]..bounds[1]], rows, &Device::Cpu)?;
            let mut x = embedding.index_select(&tokens, 0)?;
            let angles: Vec<f32> = (0..rows)
                .flat_map(|row| (0..width).map(move |i| (row, i % (width / 2))))
                .map(|(row, i)| row as f32 * 10_000_f32.powf(-2.0 * i as f32 / width as f32))
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
                let n = norm(&x, &weight("input_layernorm")?)?;
                let part = |name: &str| -> Result<Tensor> {
                    let projected = n.matmul(&weight(&format!("self_attn.{name}_proj"))?.t()?)?;
                    projected.reshape((rows, heads, width))?.transpose(0, 1)?.contiguous()
                };
                let (q, k, v) = (turn(&part("q")?)?, turn(&part("k")?)?, part("v")?);
                let scores = (q.matmul(&k.transpose(1, 2)?)? / (width as f64).sqrt())?.broadcast_add(&mask)?;
                let p = candle_nn::ops::softmax(&scores, 2)?;
                let mixed = p.matmul(&v)?.transpose(0, 1)?.reshape((rows, heads * width))?;
                x = (x + mixed.matmul(&weight("self_attn.o_proj")?.t()?)?)?;
                let n = norm(&x, &weight("post_attention_layernorm")?)?;
                let (gate, up) = (weight("mlp.gate_proj")?, weight("mlp.up_proj")?);
                let y = (n.matmul(&gate.t()?)?.silu()? * n.matmul(&up.t()?)?)?;
                x = (x + y.matmul(&weight("mlp.down_proj")?.t()?)?)?;
            }
            let logits = norm(&x, &weight("model.norm.weight")?)?.matmul(&embedding.t()?)?;
            let log = candle_nn::ops::log_softmax(&logits, 1)?;
            for target in batch.targets.iter().filter(|t| (bounds[0]..bounds[1]).contains(&t.row)) {
                sum = (sum - log.get(target.row - bounds[0])?.get(target.id as usize)?)?;
            }
        }
        sum / batch.targets.len() as f64
    }

    #[test]
    fn loss_and_every_gradient_equal_plain_tensor_operations() {
        let decoder = Decoder::new(config(), 3).unwrap();
        let batch = batch();
        let fused = decoder.loss(&batch, batch.targets.len()).unwrap();
        let plain = plain_loss(&decoder, &batch).unwrap();
        let (a, b) = (fused.to_scalar::<f32>().unwrap(), plain.to_scalar::<f32>().unwrap());
        assert!((a - b).abs() < 1e-5, "{a} {b}");
        let (fused, plain) = (fused.backward().unwrap(), plain.backward().unwrap());
        for (name, var) in decoder.weights() {
            let numbers = |store: &candle_core::backprop::GradStore| {
                let gradient = store.get(var).unwrap_or_else(|| panic!("{name} has no gradient"));
                gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap()
            };
            let (fused, plain) = (numbers(&fused), numbers(&plain));
            let size = plain.iter().fold(0.0_f32, |top, x| top.max(x.abs()));
            assert!(size > 1e-6, "{name} has a zero gradient");
            for (a, b) in fused.iter().zip(&plain) {
                assert!((a - b).abs() < 2e-4 * size + 1e-7, "{name}: {a} {b} of {size}");
            }
        }
    }

    #[test]
    fn any_number_of_threads_gives_the_same_bits() {
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let decoder = Decoder::new(config(), 3).unwrap();
                let one = batch();
                // Enough rows for several pieces of work.
                let many: Vec<Vec<u32>> = (0..60).map(|i| one.tokens[..5 + i % 20].to_vec()).collect();
                let batch = Packed::new(many.iter().map(|ids| (ids.as_slice(), 2)));
                let loss = decoder.loss(&batch, batch.targets.len()).unwrap();
                let gradients = loss.backward().unwrap();
                let mut bits = vec![loss.to_scalar::<f32>().unwrap().to_bits()];
                for var in decoder.weights().values() {
                    let numbers = gradients.get(var).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
                    bits.extend(numbers.iter().map(|x| x.to_bits()));
                }
                bits
            })
        };
        let one = run(1);
        assert!(one == run(2) && one == run(3));
    }

    #[test]
    fn a_slope_is_what_the_loss_does() {
        let decoder = Decoder::new(config(), 5).unwrap();
        let batch = batch();
        let value = || f64::from(decoder.loss(&batch, 10).unwrap().to_scalar::<f32>().unwrap());
        let gradients = decoder.loss(&batch, 10).unwrap().backward().unwrap();
        for (name, var) in decoder.weights() {
            let before = var.as_tensor().copy().unwrap();
            let gradient = gradients.get(var).unwrap();
            let length = f64::from(gradient.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap()).sqrt();
            let step = 2e-3 / length;
            var.set(&(&before + (gradient * step).unwrap()).unwrap()).unwrap();
            let up = value();
            var.set(&(&before - (gradient * step).unwrap()).unwrap()).unwrap();
            let down = value();
            var.set(&before).unwrap();
            let slope = (up - down) / (2.0 * 2e-3);
            assert!((slope - length).abs() < 0.03 * length + 2e-3, "{name}: {slope} {length}");
        }
    }
}
