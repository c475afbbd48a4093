//! LoRA (Hu et al. 2021): adapters beside frozen projections, `y = W x + (α / r) · B A x`. Their names and shapes are PEFT's. Pure.

use std::{collections::BTreeSet, ops::Range, sync::Arc};

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use sha2::{Digest as _, Sha256};

use super::{
    Family, Layout, ModelConfig,
    modules::{Block, Linear, Model},
};

/// What PEFT puts before the name of a module in the file of an adapter.
const PREFIX: &str = "base_model.model.";

/// A projection of a Llama block that can have an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Projection {
    /// Queries.
    Query,
    /// Keys.
    Key,
    /// Values.
    Value,
    /// The output of attention.
    Output,
    /// The gate of the feed-forward part.
    Gate,
    /// The input of the feed-forward part.
    Up,
    /// The output of the feed-forward part.
    Down,
}

impl Projection {
    /// All projections in the order of a block.
    pub const ALL: [Self; 7] = [Self::Query, Self::Key, Self::Value, Self::Output, Self::Gate, Self::Up, Self::Down];

    /// Returns the name of the module, as in `target_modules` of an `adapter_config.json`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Query => "q_proj",
            Self::Key => "k_proj",
            Self::Value => "v_proj",
            Self::Output => "o_proj",
            Self::Gate => "gate_proj",
            Self::Up => "up_proj",
            Self::Down => "down_proj",
        }
    }

    /// Returns the projection of this name.
    pub fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|projection| projection.name() == name)
    }

    /// Returns the name of the module in a layer.
    fn module(self, layer: usize) -> String {
        let part = match self {
            Self::Query | Self::Key | Self::Value | Self::Output => "self_attn",
            Self::Gate | Self::Up | Self::Down => "mlp",
        };
        format!("model.layers.{layer}.{part}.{}", self.name())
    }
}

/// The settings of LoRA.
#[derive(Clone, Debug, PartialEq)]
pub struct Lora {
    /// Rank of the adapters.
    pub rank: usize,
    /// Alpha: adapters are multiplied by `alpha / rank`.
    pub alpha: f64,
    /// Probability with which an input of an adapter is set to 0 in training. The projections that share an input (queries,
    /// keys and values; gate and up) share its mask.
    pub dropout: f64,
    /// The projections that have adapters, in every block.
    pub targets: BTreeSet<Projection>,
}

/// The reasons for which a model cannot have adapters.
#[derive(Debug, thiserror::Error)]
pub enum LoraError {
    /// The model has other projections.
    #[error("LoRA needs a model with Llama's projections, but the base is a GPT-2: use training.method=sft")]
    Family,
    /// No projection has an adapter.
    #[error(
        "LoRA without a target trains nothing: name at least one of q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"
    )]
    NoTarget,
    /// The rank is 0.
    #[error("a LoRA of rank 0 trains nothing: use at least 1")]
    NoRank,
}

impl Lora {
    /// Returns the factor of the adapters: `alpha / rank`.
    pub fn scale(&self) -> f64 {
        self.alpha / self.rank.max(1) as f64
    }

    /// Returns the layout of the adapters of a model: the trained tensors, under PEFT's names.
    ///
    /// # Errors
    /// The model cannot have these adapters.
    pub fn layout(&self, config: &ModelConfig) -> Result<Layout, LoraError> {
        Ok(Arc::unwrap_or_clone(self.adapters(config)?.layout))
    }

    /// Returns the initial adapters as PEFT makes them: A uniform in ±1/√inputs (Kaiming's with a = √5), B zero. Each tensor
    /// has a random stream of its own, derived from `seed` and its name.
    ///
    /// # Errors
    /// The model cannot have these adapters.
    pub fn initial(&self, config: &ModelConfig, seed: u64) -> Result<Vec<f32>, LoraError> {
        let layout = self.layout(config)?;
        let mut parameters = vec![0.0; layout.size()];
        for tensor in layout.tensors().iter().filter(|tensor| tensor.name.contains("lora_A")) {
            let mut hasher = Sha256::new();
            hasher.update(b"codex lora 1\0");
            hasher.update(&tensor.name);
            hasher.update([0]);
            hasher.update(seed.to_le_bytes());
            let mut rng = ChaCha8Rng::from_seed(hasher.finalize().into());
            let bound = 1.0 / (tensor.shape[1] as f32).sqrt();
            for number in &mut parameters[tensor.range.clone()] {
                *number = rng.random_range(-bound..bound);
            }
        }
        Ok(parameters)
    }

    /// Adds the adapter of a tensor of the base to its `weight`: `W + (α / r) · B A`. Returns whether the tensor has one.
    /// `adapters` are in the order of `layout`, which is [`Lora::layout`].
    ///
    /// # Panics
    /// `weight` or `adapters` have another size.
    pub fn merge(&self, layout: &Layout, adapters: &[f32], name: &str, weight: &mut [f32]) -> bool {
        let Some(module) = name.strip_suffix(".weight") else { return false };
        let find = |part: &str| layout.find(&format!("{PREFIX}{module}.{part}.weight"));
        let (Some(a), Some(b)) = (find("lora_A"), find("lora_B")) else { return false };
        let (inputs, scale) = (a.shape[1], self.scale() as f32);
        let (a, b) = (&adapters[a.range.clone()], &adapters[b.range.clone()]);
        assert_eq!(weight.len(), b.len() / (a.len() / inputs) * inputs, "{name} has the size of its adapter");
        add_low_rank(weight, a, b, inputs, scale);
        true
    }

    /// Returns the adapters of a model.
    ///
    /// # Errors
    /// The model cannot have these adapters.
    pub(crate) fn adapters(&self, config: &ModelConfig) -> Result<Adapters, LoraError> {
        if config.family != Family::Llama {
            return Err(LoraError::Family);
        }
        if self.rank == 0 {
            return Err(LoraError::NoRank);
        }
        if self.targets.is_empty() {
            return Err(LoraError::NoTarget);
        }
        let mut build = Builder { lora: self, tensors: Vec::new(), trained: 0, packed: 0, matrices: 0 };
        let blocks = Model::new(config).blocks;
        let blocks = blocks.iter().enumerate().map(|(layer, block)| build.block(config, layer, block)).collect();
        let Builder { tensors, packed, .. } = build;
        Ok(Adapters { layout: Arc::new(Layout::new(tensors)), blocks, size: packed })
    }
}

/// Adds `scale · B A` to `weight` [outputs, inputs], for `a` [rank, inputs] and `b` [outputs, rank]. Products are summed in `f32` in
/// the order of the rank, so that equal inputs give equal bits on every machine.
///
/// # Panics
/// `a` is empty, or its length is no multiple of `inputs`.
pub fn add_low_rank(weight: &mut [f32], a: &[f32], b: &[f32], inputs: usize, scale: f32) {
    assert!(!a.is_empty() && a.len().is_multiple_of(inputs), "A has rows of {inputs}");
    let rank = a.len() / inputs;
    weight.par_chunks_mut(inputs).zip(b.par_chunks(rank)).for_each(|(weight, b)| {
        let mut delta = vec![0.0_f32; inputs];
        for (b, a) in b.iter().zip(a.chunks_exact(inputs)) {
            delta.iter_mut().zip(a).for_each(|(delta, a)| *delta += b * a);
        }
        weight.iter_mut().zip(delta).for_each(|(weight, delta)| *weight += scale * delta);
    });
}

/// The adapters of a model as the kernels multiply them: those of a fused layer are one pair of matrices.
#[derive(Clone, Debug)]
pub(crate) struct Adapters {
    /// The trained tensors.
    pub(crate) layout: Arc<Layout>,
    pub(crate) blocks: Vec<BlockAdapters>,
    /// Elements of all matrices.
    pub(crate) size: usize,
}

/// The adapters of a block's layers.
#[derive(Clone, Debug)]
pub(crate) struct BlockAdapters {
    pub(crate) qkv: Option<Adapter>,
    pub(crate) output: Option<Adapter>,
    pub(crate) up: Option<Adapter>,
    pub(crate) down: Option<Adapter>,
}

impl BlockAdapters {
    /// A block without adapters.
    pub(crate) const NONE: Self = Self { qkv: None, output: None, up: None, down: None };

    /// Yields the adapters in the order of the block.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Adapter> {
        [&self.qkv, &self.output, &self.up, &self.down].into_iter().flatten()
    }
}

/// The adapter of a fused layer. The ranges of `a` and `b` are in the vector of matrices.
#[derive(Clone, Debug)]
pub(crate) struct Adapter {
    /// [targets · rank, inputs]: A of each target.
    pub(crate) a: Linear,
    /// [outputs, targets · rank]: B of each target in its rows and columns, 0 elsewhere.
    pub(crate) b: Linear,
    parts: Vec<Part>,
    /// Distinguishes the dropout of this adapter from that of the others.
    pub(crate) stream: u64,
}

/// One target of an adapter.
#[derive(Clone, Debug)]
struct Part {
    /// Range of A among the trained tensors.
    a: Range<usize>,
    /// Range of B among the trained tensors.
    b: Range<usize>,
    /// First output in the fused layer.
    row: usize,
}

/// Lays out tensors and matrices, one after another.
struct Builder<'a> {
    lora: &'a Lora,
    tensors: Vec<(String, Vec<usize>)>,
    /// End of the trained tensors.
    trained: usize,
    /// End of the matrices.
    packed: usize,
    matrices: usize,
}

impl Builder<'_> {
    fn block(&mut self, config: &ModelConfig, layer: usize, block: &Block) -> BlockAdapters {
        use Projection::{Down, Gate, Key, Output, Query, Up, Value};
        let (queries, keys) =
            (config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim);
        let inner = config.intermediate_size;
        BlockAdapters {
            qkv: self.adapter(layer, 0, &block.qkv, &[(Query, queries), (Key, keys), (Value, keys)]),
            output: self.adapter(layer, 1, &block.output, &[(Output, config.hidden_size)]),
            up: self.adapter(layer, 2, &block.up, &[(Gate, inner), (Up, inner)]),
            down: self.adapter(layer, 3, &block.down, &[(Down, config.hidden_size)]),
        }
    }

    fn adapter(&mut self, layer: usize, at: usize, linear: &Linear, all: &[(Projection, usize)]) -> Option<Adapter> {
        let (rank, mut row, mut targets) = (self.lora.rank, 0, Vec::new());
        for (projection, outputs) in all {
            if self.lora.targets.contains(projection) {
                targets.push((format!("{PREFIX}{}", projection.module(layer)), row, *outputs));
            }
            row += outputs;
        }
        if targets.is_empty() {
            return None;
        }
        let width = rank * targets.len();
        let a: Vec<_> = targets
            .iter()
            .map(|(name, ..)| self.tensor(format!("{name}.lora_A.weight"), vec![rank, linear.inputs]))
            .collect();
        let b: Vec<_> = targets
            .iter()
            .map(|(name, _, outputs)| self.tensor(format!("{name}.lora_B.weight"), vec![*outputs, rank]))
            .collect();
        let parts = a.into_iter().zip(b).zip(&targets).map(|((a, b), (_, row, _))| Part { a, b, row: *row }).collect();
        let (a, b) = (self.matrix(linear.inputs, width), self.matrix(width, linear.outputs));
        Some(Adapter { a, b, parts, stream: (4 * layer + at) as u64 })
    }

    fn tensor(&mut self, name: String, shape: Vec<usize>) -> Range<usize> {
        let start = self.trained;
        self.trained += shape.iter().product::<usize>();
        self.tensors.push((name, shape));
        start..self.trained
    }

    fn matrix(&mut self, inputs: usize, outputs: usize) -> Linear {
        let start = self.packed;
        self.packed += inputs * outputs;
        self.matrices += 1;
        let weight = start..self.packed;
        Linear { index: self.matrices - 1, inputs, outputs, weight, bias: None, inputs_first: false }
    }
}

impl Adapters {
    /// Yields all adapters.
    fn iter(&self) -> impl Iterator<Item = &Adapter> {
        self.blocks.iter().flat_map(BlockAdapters::iter)
    }

    /// Returns the matrices in the order of their indices.
    pub(crate) fn matrices(&self) -> Vec<&Linear> {
        self.iter().flat_map(|adapter| [&adapter.a, &adapter.b]).collect()
    }

    /// Copies the trained tensors into the matrices. Elements that belong to no tensor are left unchanged.
    pub(crate) fn spread(&self, trained: &[f32], matrices: &mut [f32]) {
        self.each_run(|tensor, matrix| matrices[matrix].copy_from_slice(&trained[tensor]));
    }

    /// Copies the gradients of the matrices to those of the trained tensors.
    pub(crate) fn gather(&self, matrices: &[f32], trained: &mut [f32]) {
        self.each_run(|tensor, matrix| trained[tensor].copy_from_slice(&matrices[matrix]));
    }

    /// Calls `copy` with the range of each run of elements in the trained tensors and in the matrices.
    fn each_run(&self, mut copy: impl FnMut(Range<usize>, Range<usize>)) {
        for Adapter { a, b, parts, .. } in self.iter() {
            let (width, rank) = (b.inputs, b.inputs / parts.len());
            for (at, part) in parts.iter().enumerate() {
                let start = a.weight.start + at * rank * a.inputs;
                copy(part.a.clone(), start..start + rank * a.inputs);
                for (row, tensor) in part.b.clone().step_by(rank).enumerate() {
                    let matrix = b.weight.start + (part.row + row) * width + at * rank;
                    copy(tensor..tensor + rank, matrix..matrix + rank);
                }
            }
        }
    }
}

/// The dropout of a batch: which inputs of the adapters are 0, as a function of the batch's noise, the adapter, the row and
/// the column alone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dropout {
    noise: u64,
    /// Inputs that are kept, of 2¹⁶.
    kept: u64,
    factor: f32,
}

impl Dropout {
    /// Returns the dropout of a batch with this noise; `None` if nothing is dropped.
    pub(crate) fn new(rate: f64, noise: u64) -> Option<Self> {
        let kept = ((1.0 - rate) * 65_536.0).round().clamp(1.0, 65_536.0);
        (kept < 65_536.0).then_some(Self { noise, kept: kept as u64, factor: (65_536.0 / kept) as f32 })
    }

    /// Computes the factor of every input of a row: 0, or what keeps the expectation.
    pub(crate) fn factors(self, stream: u64, row: usize, factors: &mut [f32]) {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let start = mix(self.noise ^ mix(stream.wrapping_mul(STEP) ^ mix(row as u64)));
        for (at, four) in factors.chunks_mut(4).enumerate() {
            let bits = mix(start.wrapping_add((at as u64 + 1).wrapping_mul(STEP)));
            for (lane, factor) in four.iter_mut().enumerate() {
                *factor = if bits >> (16 * lane) & 0xffff < self.kept { self.factor } else { 0.0 };
            }
        }
    }
}

/// Returns a hash of 64 bits (the finalizer of `SplitMix64`; Steele et al. 2014).
fn mix(x: u64) -> u64 {
    let x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

/// Returns the names of the tensors of a module's adapter.
pub(crate) fn adapter_names(module: &str) -> [String; 2] {
    ["lora_A", "lora_B"].map(|part| format!("{PREFIX}{module}.{part}.weight"))
}

/// Returns the index of a module's dropout stream, which the projections of one input share.
pub(crate) fn stream(layer: usize, projection: Projection) -> u64 {
    let at = match projection {
        Projection::Query | Projection::Key | Projection::Value => 0,
        Projection::Output => 1,
        Projection::Gate | Projection::Up => 2,
        Projection::Down => 3,
    };
    (4 * layer + at) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropout_keeps_the_expectation_and_differs_by_row_and_noise() {
        let dropout = Dropout::new(0.25, 7).unwrap();
        let mut factors = vec![0.0; 40_001];
        dropout.factors(3, 5, &mut factors);
        let kept = factors.iter().filter(|factor| **factor > 0.0).count() as f64 / factors.len() as f64;
        assert!((kept - 0.75).abs() < 0.01, "{kept}");
        assert!(factors.iter().all(|factor| *factor == 0.0 || (factor - 4.0 / 3.0).abs() < 1e-4));
        let mut other = factors.clone();
        for (noise, stream, row) in [(8, 3, 5), (7, 4, 5), (7, 3, 6)] {
            Dropout::new(0.25, noise).unwrap().factors(stream, row, &mut other);
            let equal = factors.iter().zip(&other).filter(|(a, b)| a.to_bits() == b.to_bits()).count() as f64
                / factors.len() as f64;
            // Independent masks agree in 0.75² + 0.25² of the places.
            assert!((equal - 0.625).abs() < 0.02, "{equal}");
        }
        assert!(Dropout::new(0.0, 7).is_none());
    }

    #[test]
    fn adapters_have_pefts_names_and_initial_values() {
        let config = crate::tests::shapes()[1].clone();
        let targets = BTreeSet::from([Projection::Value, Projection::Down]);
        let lora = Lora { rank: 3, alpha: 6.0, dropout: 0.0, targets };
        let layout = lora.layout(&config).unwrap();
        let named: Vec<(&str, &[usize])> =
            layout.tensors().iter().map(|tensor| (tensor.name.as_str(), tensor.shape.as_slice())).collect();
        let value = "base_model.model.model.layers.0.self_attn.v_proj";
        let down = "base_model.model.model.layers.0.mlp.down_proj";
        assert_eq!(
            named[..4],
            [
                (&*format!("{value}.lora_A.weight"), &[3, 96][..]),
                (&format!("{value}.lora_B.weight"), &[32, 3]),
                (&format!("{down}.lora_A.weight"), &[3, 48]),
                (&format!("{down}.lora_B.weight"), &[96, 3]),
            ]
        );
        let parameters = lora.initial(&config, 1).unwrap();
        assert_eq!(parameters, lora.initial(&config, 1).unwrap());
        assert_ne!(parameters, lora.initial(&config, 2).unwrap());
        for tensor in layout.tensors() {
            let numbers = &parameters[tensor.range.clone()];
            if tensor.name.contains("lora_B") {
                assert!(numbers.iter().all(|x| *x == 0.0));
            } else {
                let top = numbers.iter().fold(0.0_f32, |top, x| top.max(x.abs()));
                let bound = 1.0 / (tensor.shape[1] as f32).sqrt();
                assert!(top <= bound && top > 0.9 * bound, "{top} {bound}");
            }
        }
    }

    #[test]
    fn adapters_that_cannot_be_are_refused() {
        let lora = Lora { rank: 2, alpha: 4.0, dropout: 0.0, targets: Projection::ALL.into() };
        let told = lora.layout(&crate::tests::gpt2()).unwrap_err().to_string();
        assert!(told.contains("GPT-2"), "{told}");
        let none = Lora { targets: BTreeSet::new(), ..lora.clone() };
        assert!(matches!(none.layout(&crate::tests::tiny()), Err(LoraError::NoTarget)));
        assert!(matches!(Lora { rank: 0, ..lora }.layout(&crate::tests::tiny()), Err(LoraError::NoRank)));
    }
}
