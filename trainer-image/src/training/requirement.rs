//! What training of a configuration takes in memory, held against what there is. Reads what the kernel says.

use codex_configs::Optimization;
use codex_engine::{ModelConfig, Settings};

use super::{
    TrainError,
    data::Lengths,
    memory::{self, Bytes, Estimate, Limit, Shape},
    state,
    validation::HeldOut,
};

/// Bytes of the vectors that an engine keeps for each parameter: the parameter, its gradient, two moments.
const KEPT: u64 = 16;
/// Bytes of a copy of the state for each parameter: the parameter and two moments.
const COPIED: u64 = 12;

/// Bytes beside those that are counted: what the allocator keeps for buffers that grew, and what huge pages round
/// up. Measured: `make bench-memory` found 24 to 70 MiB on six configurations, before what products pack was counted by itself.
const BESIDE: u64 = 32 << 20;

/// Bytes of a copy of a model's state.
pub(super) fn copied(config: &ModelConfig) -> u64 {
    config.parameters() as u64 * COPIED
}

/// Refuses a model whose state alone is too large, before anything of its size is made.
///
/// # Errors
/// [`TrainError::Memory`].
pub(super) fn before_data(config: &ModelConfig, limit: Option<&Limit>) -> Result<(), TrainError> {
    let parameters = config.parameters() as u64;
    let needed = parameters.saturating_mul(KEPT + COPIED);
    match limit {
        Some(limit) if needed > limit.bytes => Err(refusal(
            &Estimate { parts: vec![("parameters, gradients and moments", needed)] },
            limit,
            format!("a model of {parameters} parameters takes that alone; make it smaller, or give it more memory"),
        )),
        _ => Ok(()),
    }
}

fn refusal(estimate: &Estimate, limit: &Limit, right: String) -> TrainError {
    TrainError::Memory {
        estimate: estimate.to_string(),
        source_of_limit: limit.source.clone(),
        limit: Bytes(limit.bytes).to_string(),
        right,
    }
}

/// What data asks for.
#[derive(Debug)]
pub(super) struct Records<'a> {
    /// How long those are that are trained on.
    pub(super) trained: Lengths<'a>,
    /// How long those are that are held out, where any are looked at.
    pub(super) held_out: Option<HeldOut>,
}

impl Records<'_> {
    /// The rows of the largest batch of so many records.
    fn rows(&self, batch: usize) -> usize {
        let held_out = self.held_out.as_ref().map_or(0, |held_out| held_out.rows(batch));
        self.trained.rows(batch).max(held_out)
    }

    /// Rows of the longest record.
    fn longest(&self) -> usize {
        self.trained.longest().max(self.held_out.as_ref().map_or(0, HeldOut::longest))
    }
}

/// What training will take at most, now that the data is there.
pub(super) fn of(config: &ModelConfig, training: &Optimization, records: &Records) -> Estimate {
    of_shape(config, training, records, shape(training), memory::resident())
}

fn shape(training: &Optimization) -> Shape {
    Shape {
        batch: training.batch_size,
        accumulation: training.gradient_accumulation,
        checkpointing: training.gradient_checkpointing,
    }
}

/// `resident`: what the process has now, and the most that it ever had.
fn of_shape(
    config: &ModelConfig,
    training: &Optimization,
    records: &Records,
    shape: Shape,
    resident: (u64, u64),
) -> Estimate {
    let parameters = config.parameters() as u64;
    let rows = records.rows(shape.batch);
    let threads = rayon::current_num_threads();
    let settings = Settings { gradient_checkpointing: shape.checkpointing, ..state::settings(training) };
    let activations = codex_engine::memory(config, settings, rows, records.longest(), threads) as u64;
    // Tokens and targets of all batches of a step.
    let packed = (rows * shape.accumulation * 32) as u64;
    let mut parts = vec![
        ("program and data", resident.0),
        ("parameters, gradients and moments", parameters * KEPT),
        ("a checkpoint in flight", copied(config)),
        ("activations", activations + packed),
        ("allocator", BESIDE),
    ];
    if let Some(held_out) = records.held_out.as_ref().filter(|_| training.eval_samples > 0) {
        parts.push(("samples of an evaluation", samples(config, training, held_out.longest() + 1)));
    }
    // Reading data may have taken more than training will.
    let total: u64 = parts.iter().map(|(_, bytes)| bytes).sum();
    if let Some(more) = resident.1.checked_sub(total).filter(|more| *more > 0) {
        parts.push(("more while data was read", more));
    }
    Estimate { parts }
}

/// What answering held-out prompts takes: a copy of the weights, and what every answer attends to, in vectors that grow by doubling.
fn samples(config: &ModelConfig, training: &Optimization, longest: usize) -> u64 {
    let positions = (longest + training.eval_max_new_tokens).min(config.max_position_embeddings);
    let attended = 2 * config.num_hidden_layers * config.hidden_size * positions.next_power_of_two();
    let floats = config.parameters() + config.vocab_size * config.hidden_size + training.eval_samples * attended;
    (floats * size_of::<f32>()) as u64
}

/// Refuses a configuration that does not fit, and says what would.
///
/// # Errors
/// [`TrainError::Memory`].
pub(super) fn check(
    config: &ModelConfig,
    training: &Optimization,
    records: &Records,
    limit: Option<&Limit>,
) -> Result<(), TrainError> {
    let Some(limit) = limit else { return Ok(()) };
    let resident = memory::resident();
    let estimate = |shape: Shape| of_shape(config, training, records, shape, resident);
    let asked = shape(training);
    if estimate(asked).total() <= limit.bytes {
        return Ok(());
    }
    let right = match memory::propose(asked, limit.bytes, true, |shape| estimate(shape).total()) {
        Some(shape) => format!("{shape} sees the same examples in a step and would take {}", estimate(shape)),
        None => format!(
            "not even training.batch_size=1 fits; make the model smaller, or give it at least {}",
            Bytes(estimate(Shape { batch: 1, accumulation: asked.batch * asked.accumulation, ..asked }).total())
        ),
    };
    Err(refusal(&estimate(asked), limit, right))
}
