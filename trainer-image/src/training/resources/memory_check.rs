//! The memory estimate of a configuration and its data, checked against the limit. Reads the memory of this process.

use codex_configs::{GrpoSettings, MomentType, Optimization, OptimizerName};
use codex_engine::{ModelConfig, Precision, Settings};

use super::{
    MemoryError,
    estimate::{BatchShape, Bytes, Estimate, propose},
    limits::{MemoryLimit, resident_memory},
};
use crate::training::{
    base::TrainedModel,
    data::{HeldOutLengths, RecordLengths},
    run::MAX_SLOTS,
    state::engine_settings,
};

/// Bytes that an engine keeps per parameter: the parameter, its gradient, two moments, and the moving average if there is one.
fn kept(training: &Optimization) -> u64 {
    8 + moments(training) + averaged(training)
}

/// Bytes of a snapshot per parameter: the parameter, two moments, and the moving average if there is one.
fn copied(training: &Optimization) -> u64 {
    4 + moments(training) + averaged(training)
}

/// Bytes of both moments. In eight bits they are two codes and the parts of two scales, which blocks of 256 share. Tensors of fewer than
/// 4096 parameters stay in 32 bits, which is less than what is not counted.
fn moments(training: &Optimization) -> u64 {
    match training.optimizer.moments {
        MomentType::Fp32 => 8,
        MomentType::EightBit => 3,
    }
}

fn averaged(training: &Optimization) -> u64 {
    if training.ema.decay.is_some() { 4 } else { 0 }
}

/// Bytes that no other part counts: the allocator's reserve for buffers that grew, and the rounding of huge pages. Measured:
/// `make bench-memory` found 24 to 70 MiB on six configurations, before packed matrices were a part of their own.
const UNCOUNTED: u64 = 32 << 20;

/// Bytes of a snapshot of a model's state.
pub(crate) fn snapshot_size(model: &TrainedModel, training: &Optimization) -> u64 {
    model.trained as u64 * copied(training)
}

/// Refuses a model whose state alone is too large, before anything of its size is allocated.
///
/// # Errors
/// [`MemoryError`] with a configuration that fits.
pub(crate) fn check_model_size(
    model: &TrainedModel,
    training: &Optimization,
    limit: Option<&MemoryLimit>,
) -> Result<(), MemoryError> {
    let parameters = model.config.parameters() as u64;
    let trained = (model.trained as u64).saturating_mul(kept(training) + copied(training));
    let frozen = if model.lora.is_some() { parameters.saturating_mul(packed(training)) } else { 0 };
    let needed = trained.saturating_add(frozen);
    match limit {
        Some(limit) if needed > limit.bytes => Err(refusal(
            &Estimate { parts: vec![(state_part(model), needed)] },
            limit,
            format!("the state of {parameters} parameters alone needs that; use a smaller model or more memory"),
        )),
        _ => Ok(()),
    }
}

/// Bytes that a frozen parameter takes, packed for the forward and for the backward pass.
fn packed(training: &Optimization) -> u64 {
    match engine_settings(training).precision {
        Precision::F32 => 8,
        Precision::Bf16 | Precision::F16 => 4,
    }
}

/// Returns the name of what an engine keeps per trained parameter.
fn state_part(model: &TrainedModel) -> &'static str {
    if model.lora.is_some() { "adapters, gradients and moments" } else { "parameters, gradients and moments" }
}

fn refusal(estimate: &Estimate, limit: &MemoryLimit, fix: String) -> MemoryError {
    MemoryError {
        phase: None,
        estimate: estimate.to_string(),
        source_of_limit: limit.source.clone(),
        limit: Bytes(limit.bytes).to_string(),
        fix,
    }
}

/// Rows of the records that a run reads.
#[derive(Debug)]
pub(crate) struct RecordRows<'a> {
    /// Lengths of training records.
    pub(crate) trained: RecordLengths<'a>,
    /// Lengths of validation records, if the run evaluates.
    pub(crate) held_out: Option<HeldOutLengths>,
}

impl RecordRows<'_> {
    /// Rows of the largest batch of `batch` records.
    fn rows(&self, batch: usize) -> usize {
        let held_out = self.held_out.as_ref().map_or(0, |held_out| held_out.rows(batch));
        self.trained.rows(batch).max(held_out)
    }

    /// Rows of the longest record.
    fn longest(&self) -> usize {
        self.trained.longest().max(self.held_out.as_ref().map_or(0, HeldOutLengths::longest))
    }
}

/// Returns the upper estimate of the memory of a training, once its data is read.
pub(crate) fn estimate(model: &TrainedModel, training: &Optimization, records: &RecordRows) -> Estimate {
    estimate_shape(model, training, records, shape(training), resident_memory())
}

fn shape(training: &Optimization) -> BatchShape {
    let (batch, accumulation) = (training.batch_size, training.gradient_accumulation);
    // Forward passes of a private run have a record each.
    let private = training.private().is_some();
    BatchShape {
        batch: if private { 1 } else { batch },
        accumulation: if private { batch * accumulation } else { accumulation },
        checkpointing: training.gradient_checkpointing,
    }
}

/// `resident`: memory of the process now, and its peak.
fn estimate_shape(
    model: &TrainedModel,
    training: &Optimization,
    records: &RecordRows,
    shape: BatchShape,
    resident: (u64, u64),
) -> Estimate {
    let config = &model.config;
    // The rows of a group: its answers, each with the prompt, which is shorter than a record.
    let grouped = |rewards: &GrpoSettings| {
        let longest = (records.trained.longest() + rewards.max_new_tokens).min(config.max_position_embeddings);
        let trained = records.trained.rows(shape.batch) + shape.batch * rewards.max_new_tokens;
        let trained = rewards.group * trained.min(shape.batch * longest);
        (trained.max(records.rows(shape.batch)), longest.max(records.longest()))
    };
    let (rows, longest) = training.rewards().map_or_else(|| (records.rows(shape.batch), records.longest()), grouped);
    let threads = rayon::current_num_threads();
    let settings = Settings { gradient_checkpointing: shape.checkpointing, ..engine_settings(training) };
    // An adapter that a model cannot have has been refused.
    let adapted = model
        .lora
        .as_ref()
        .and_then(|lora| codex_engine::lora_memory(config, lora, settings, (rows, longest), threads).ok());
    let activations = adapted.unwrap_or_else(|| codex_engine::memory(config, settings, rows, longest, threads)) as u64;
    // Tokens and targets of all batches of a step.
    let batches = (rows * shape.accumulation * 32) as u64;
    let mut parts = vec![
        ("program and data", resident.0),
        (state_part(model), model.trained as u64 * kept(training)),
        ("a checkpoint in flight", snapshot_size(model, training)),
        (if model.lora.is_some() { "frozen weights and activations" } else { "activations" }, activations + batches),
        ("allocator", UNCOUNTED),
    ];
    if training.private().is_some() {
        parts.push(("clipped gradients", model.trained as u64 * 8));
    }
    if training.optimizer.name == OptimizerName::Muon {
        let widest = config.intermediate_size.max(config.num_attention_heads * config.head_dim);
        parts.push(("Muon", (codex_engine::muon_memory(config.hidden_size, widest) * threads) as u64));
    }
    if let Some(rewards) = training.rewards() {
        let answers = (shape.batch * shape.accumulation * rewards.group).min(MAX_SLOTS);
        parts.push(("sampled answers", generation(model, answers, longest + 1)));
    }
    if let Some(held_out) = records.held_out.as_ref().filter(|_| training.eval_samples > 0) {
        parts.push(("samples of an evaluation", samples(model, training, held_out.longest() + 1)));
    }
    if model.lora.is_some() {
        // While the engine packs the weights of the base, all of them are also there in fp32.
        let parameters = config.parameters() as u64;
        let loading = resident.0 + parameters * (4 + packed(training));
        let total: u64 = parts.iter().map(|(_, bytes)| bytes).sum();
        if let Some(more) = loading.checked_sub(total).filter(|more| *more > 0) {
            parts.push(("peak while reading the base", more));
        }
    }
    // Reading the data may have needed more than training will.
    let total: u64 = parts.iter().map(|(_, bytes)| bytes).sum();
    if let Some(more) = resident.1.checked_sub(total).filter(|more| *more > 0) {
        parts.push(("peak while reading data", more));
    }
    Estimate { parts }
}

/// Memory for completing held-out prompts: a copy of the weights, and keys and values in vectors that grow by doubling.
fn samples(model: &TrainedModel, training: &Optimization, longest: usize) -> u64 {
    let config: &ModelConfig = &model.config;
    let positions = (longest + training.eval_max_new_tokens).min(config.max_position_embeddings);
    generation(model, training.eval_samples, positions)
}

/// Memory for generating `sequences` sequences of at most `positions` tokens at the same time.
fn generation(model: &TrainedModel, sequences: usize, positions: usize) -> u64 {
    let config: &ModelConfig = &model.config;
    let attended = 2 * config.num_hidden_layers * config.hidden_size * positions.next_power_of_two();
    let floats = config.parameters() + config.vocab_size * config.hidden_size + sequences * attended;
    // Adapters are merged into a copy of the base, which is read again.
    let merged = if model.lora.is_some() { config.parameters() } else { 0 };
    ((floats + merged) * size_of::<f32>()) as u64
}

/// Refuses a configuration that does not fit, and names one that does.
///
/// # Errors
/// [`MemoryError`] with a configuration that fits.
pub(crate) fn check_estimate(
    model: &TrainedModel,
    training: &Optimization,
    records: &RecordRows,
    limit: Option<&MemoryLimit>,
) -> Result<(), MemoryError> {
    let Some(limit) = limit else { return Ok(()) };
    let resident = resident_memory();
    let estimate = |shape: BatchShape| estimate_shape(model, training, records, shape, resident);
    let asked = shape(training);
    if estimate(asked).total() <= limit.bytes {
        return Ok(());
    }
    let fix = match propose(asked, limit.bytes, true, |shape| estimate(shape).total()) {
        Some(shape) => format!("{shape} has the same examples per step and needs {}", estimate(shape)),
        None => format!(
            "even training.batch_size=1 does not fit; use a smaller model or at least {} of memory",
            Bytes(estimate(BatchShape { batch: 1, accumulation: asked.batch * asked.accumulation, ..asked }).total())
        ),
    };
    Err(refusal(&estimate(asked), limit, fix))
}
