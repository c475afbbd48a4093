//! The training loop: optimizer steps, evaluations between them, and the checkpoints and reports that follow. Does I/O through
//! the checkpoint policy and the progress outputs.

use std::time::Instant;

use codex_engine::{AdamW, EngineError, Packed};
use codex_reports::Stage;
use sha2::Digest as _;

use super::{
    NumericsError, Outcome, Rollouts, Session, StepBatches, StepNumbers, accumulate, accumulate_rollouts,
    progress::ProgressOutputs, record_loss,
};
use crate::{
    text::Tokenizer,
    training::{
        TrainError,
        attempts::RunLock,
        base::TrainedModel,
        checkpoint::CheckpointPolicy,
        data::{Address, DataError, Dataset, Evaluated, ValidationSet},
        listing::counted,
        objective::Measured,
        records::LedgerRow,
        resources::log_memory,
        schedule::{Examples, examples_of_step, executed_steps, learning_rate, scheduled_steps, tensor_rates},
        state::{State, first_non_finite_tensor},
    },
};

/// Name of the validation loss among the measurements.
const VAL_LOSS: &str = "val_loss";

/// Data of one step.
pub(crate) struct StepData {
    /// Index of the first example, counted over the whole run.
    pub(crate) first: u64,
    /// Records of each batch.
    pub(crate) addresses: Vec<Vec<Address>>,
    /// Batches.
    pub(crate) batches: Vec<Packed>,
    /// Number of target tokens in all batches.
    pub(crate) targets: usize,
}

/// Result of one step.
pub(crate) struct StepResult {
    /// Numbers for the progress outputs.
    pub(crate) numbers: StepNumbers,
    /// Row for the ledger.
    pub(crate) row: LedgerRow,
}

/// Returns a seed that is a hash of these numbers, for this purpose, so that a resumed run draws the same.
pub(super) fn seed_of(purpose: &[u8], numbers: &[u64]) -> u64 {
    let mut hasher = sha2::Sha256::new();
    hasher.update(purpose);
    for number in numbers {
        hasher.update(number.to_le_bytes());
    }
    let digest = hasher.finalize();
    digest.iter().take(8).fold(0, |seed, byte| seed << 8 | u64::from(*byte))
}

/// What an evaluation needs beside the state.
#[derive(Clone, Copy)]
pub(crate) struct Evaluation<'a> {
    /// The validation records.
    pub(crate) validation: &'a ValidationSet,
    /// The trained model.
    pub(crate) model: &'a TrainedModel,
    /// The tokenizer, if prompts are completed. No state depends on them.
    pub(crate) tokenizer: Option<&'a Tokenizer>,
}

impl Session<'_> {
    /// Takes steps until the run is done (`None`) or interrupted. The last step always has a checkpoint.
    pub(super) fn take_steps(
        &self,
        state: &mut State,
        (dataset, rollouts): (&Dataset, Option<&Rollouts>),
        evaluation: Option<Evaluation>,
        policy: &mut CheckpointPolicy,
        lock: &mut RunLock,
        outputs: &mut ProgressOutputs,
    ) -> Result<Option<Outcome>, TrainError> {
        let settings = &self.resolved.spec().settings.training;
        let total = executed_steps(settings, dataset.records());
        if state.evaluation_pending {
            if !self.evaluate_and_report(state, evaluation, outputs)? {
                return self.interrupt(state, policy);
            }
            policy.evaluated(state)?;
        }
        while state.step < total && !state.early_stopping.should_stop(settings.early_stop_patience) {
            let began = Instant::now();
            let result = if (self.stop)() { None } else { self.step(state, dataset, rollouts)? };
            let Some(StepResult { numbers, row }) = result else { return self.interrupt(state, policy) };
            lock.count_step(state.step + 1);
            if let Some(metrics) = self.metrics.filter(|_| row.spike.is_some()) {
                metrics.count_spike();
            }
            outputs.step(numbers, lock.executed());
            let evaluated = self.evaluate_and_report(state, evaluation, outputs)?;
            if state.step == 1 {
                log_memory("first step");
            }
            if !evaluated {
                policy.add_unevaluated(row);
                return self.interrupt(state, policy);
            }
            policy.step(state, row, began.elapsed())?;
        }
        policy.finish(state, false, self.stop)?;
        if let (true, Some((best, value))) = (state.step < total, state.early_stopping.best) {
            let (metric, evaluations) = (&settings.best_metric, counted(state.early_stopping.since_best, "evaluation"));
            self.notice(format!(
                "training stopped early at step {}: in {evaluations} {metric} did not improve on {value} of step {best}",
                state.step
            ));
        }
        Ok(None)
    }

    /// Writes a checkpoint of an interrupted attempt and reports the interruption.
    fn interrupt(&self, state: &State, policy: &mut CheckpointPolicy) -> Result<Option<Outcome>, TrainError> {
        policy.finish(state, true, self.stop)?;
        tracing::info!(step = state.step, "interrupted after a checkpoint");
        self.reporter.update(|report| report.stage = Stage::Interrupted);
        Ok(Some(Outcome::Interrupted { step: state.step }))
    }

    /// Evaluates the state if that is due, and reports the result. Returns false if the attempt was interrupted during the
    /// evaluation, which is then pending.
    fn evaluate_and_report(
        &self,
        state: &mut State,
        evaluation: Option<Evaluation>,
        outputs: &mut ProgressOutputs,
    ) -> Result<bool, TrainError> {
        let began = Instant::now();
        let Some(evaluation) = evaluation else {
            state.evaluation_pending = false;
            return Ok(true);
        };
        match self.evaluate(state, evaluation) {
            Ok(Some(Evaluated { measured, samples })) => {
                outputs.evaluated(state.step, measured, &samples, began.elapsed());
            }
            Ok(None) => {}
            Err(TrainError::Interrupted) => return Ok(false),
            Err(error) => return Err(error),
        }
        Ok(true)
    }

    /// Evaluates the state on the validation records if that is due after the latest step.
    ///
    /// # Errors
    /// When the engine rejects a batch, and [`TrainError::Interrupted`] when the attempt is interrupted. The evaluation is then
    /// pending, and the state is otherwise unchanged.
    pub(crate) fn evaluate(
        &self,
        state: &mut State,
        Evaluation { validation, model, tokenizer }: Evaluation,
    ) -> Result<Option<Evaluated>, TrainError> {
        let settings = &self.resolved.spec().settings.training;
        // The loss of an earlier step is not a measurement of this one.
        state.measured.remove(VAL_LOSS);
        state.evaluation_pending = settings.eval_every.is_some_and(|every| state.step.is_multiple_of(every));
        if !state.evaluation_pending {
            return Ok(None);
        }
        let measured = validation.measure(state.engine.as_mut(), settings.preferences(), self.stop)?;
        let measured = measured.ok_or(TrainError::Interrupted)?;
        let samples = match tokenizer {
            Some(tokenizer) if validation.has_samples() => {
                let trained = state.engine.parameters()?;
                let merged = model.parameters(self.base, &trained)?;
                validation.samples(&model.config, merged.as_deref().unwrap_or(&trained), tokenizer, self.stop)?
            }
            _ => Some(Vec::new()),
        };
        let samples = samples.ok_or(TrainError::Interrupted)?;
        state.measured.insert(VAL_LOSS.to_owned(), measured.loss);
        let best = state.measured.get(&settings.best_metric).copied().unwrap_or(f64::NAN);
        state.early_stopping.record(state.step, best, settings.metric_mode);
        state.evaluation_pending = false;
        Ok(Some(Evaluated { measured, samples }))
    }

    /// Returns the data of the step after `done` steps.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn data_of(&self, done: u64, dataset: &Dataset) -> Result<StepData, DataError> {
        let training = &self.resolved.spec().settings.training;
        let Examples { first, count } = examples_of_step(training, dataset.records(), done);
        let addresses = dataset.examples(first, count);
        let addresses: Vec<Vec<Address>> = addresses.chunks(training.batch_size).map(<[_]>::to_vec).collect();
        let seed = self.resolved.spec().seed;
        let noisy = |(index, addresses): (usize, &Vec<Address>)| {
            let noise = seed_of(b"codex noise 1\0", &[seed, done, index as u64]);
            Ok(Packed { noise, ..dataset.pack(addresses)? })
        };
        let batches: Vec<Packed> = addresses.iter().enumerate().map(noisy).collect::<Result<_, DataError>>()?;
        let targets = batches.iter().map(|batch| batch.targets.len()).sum();
        Ok(StepData { first, addresses, batches, targets })
    }

    /// Takes one optimizer step: the gradients of all its batches together, then AdamW. Returns `None` if the attempt is
    /// interrupted between two batches; the state is then as it was before the step.
    ///
    /// # Errors
    /// When the loss or a gradient is not finite, or the engine rejects a batch.
    pub(crate) fn step(
        &self,
        state: &mut State,
        dataset: &Dataset,
        rollouts: Option<&Rollouts>,
    ) -> Result<Option<StepResult>, TrainError> {
        let training = &self.resolved.spec().settings.training;
        let began = Instant::now();
        let StepData { first, addresses, batches, targets } = self.data_of(state.step, dataset)?;
        let data_wait = began.elapsed();
        let rolled = match rollouts {
            None => None,
            Some(rollouts) => {
                let of_step = (state.step, addresses.as_slice());
                match self.roll_out(rollouts, state.engine.as_ref(), dataset, of_step)? {
                    None => return Ok(None),
                    rolled => rolled,
                }
            }
        };
        let State { step, engine, spikes, measured, early_stopping: _, evaluation_pending: _ } = state;
        engine.clear_gradients()?;
        let preferences = training.preferences();
        let of_step = StepBatches { addresses: &addresses, batches: &batches, targets };
        let measured_now = match &rolled {
            None => accumulate(engine.as_mut(), preferences, dataset, of_step, self.stop)?,
            Some(rolled) => accumulate_rollouts(engine.as_mut(), rolled, self.stop)?,
        };
        let Some(Measured { loss, preferences: compared, sampled }) = measured_now else { return Ok(None) };
        let addresses = addresses.concat();
        if !loss.is_finite() {
            // Name the records whose own loss is not finite, or all of them if each alone is finite.
            let mut guilty = Vec::new();
            for address in &addresses {
                if !record_loss(engine.as_mut(), preferences, dataset, *address)?.is_finite() {
                    guilty.push(*address);
                }
            }
            let guilty = if guilty.is_empty() { &addresses } else { &guilty };
            let records = dataset.describe(guilty)?;
            let tensor = first_non_finite_tensor(engine.as_ref())?;
            return Err(NumericsError { what: "the loss".to_owned(), tensor, step: *step + 1, records }.into());
        }
        let grad_norm = engine.gradient_norm().map_err(|error| match error {
            EngineError::NotFinite { tensor } => match dataset.describe(&addresses) {
                Ok(records) => {
                    let what = format!("the gradient of {tensor}");
                    TrainError::from(NumericsError { what, tensor: None, step: *step + 1, records })
                }
                Err(error) => error.into(),
            },
            other => other.into(),
        })?;
        let spike = spikes.observe(training, loss, grad_norm);
        let rate = learning_rate(training, scheduled_steps(training, dataset.records()), *step);
        let skipped = spike.is_some_and(|spike| spike.skip);
        if let Some(spike) = spike {
            tracing::warn!(
                step = *step + 1,
                what = spike.what,
                value = spike.value,
                median = spike.median,
                score = spike.score,
                skipped,
                "spike; `codex replay-step` shows the records of the step"
            );
        }
        if !skipped {
            let rates = tensor_rates(engine.layout(), training)?;
            engine.update(&AdamW {
                // Skipped steps do not advance Adam's bias correction.
                step: *step - spikes.skipped,
                rate,
                beta1: training.beta1,
                beta2: training.beta2,
                epsilon: training.epsilon,
                scale: (training.grad_clip_norm / grad_norm).min(1.0),
                rates: &rates,
            })?;
        }
        *step += 1;
        measured.insert("loss".to_owned(), loss);
        let row = LedgerRow {
            step: *step,
            first,
            examples: addresses.len() as u64,
            records: dataset.digest(&addresses)?,
            loss,
            grad_norm,
            spike: spike.map(|spike| spike.what.to_owned()),
            skipped,
        };
        let learned: Vec<&Packed> = match &rolled {
            None => batches.iter().collect(),
            Some(rolled) => rolled.batches.iter().map(|(batch, _)| batch).collect(),
        };
        let tokens = learned.iter().map(|batch| batch.tokens.len()).sum();
        let flops = learned.iter().map(|batch| engine.flops(batch)).sum();
        let numbers = StepNumbers {
            step: *step,
            loss,
            preferences: compared,
            sampled,
            gradient_norm: grad_norm,
            learning_rate: rate,
            tokens,
            flops,
            data_wait,
        };
        Ok(Some(StepResult { numbers, row }))
    }
}
