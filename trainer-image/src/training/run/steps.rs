//! The training loop: optimizer steps, evaluations between them, and the checkpoints and reports that follow. Does I/O through
//! the checkpoint policy and the progress outputs.

use std::time::Instant;

use codex_configs::OptimizerName;
use codex_engine::{AdamW, EngineError, Muon, Packed};
use codex_provenance::text::counted;
use codex_reports::Stage;
use sha2::Digest as _;

use super::{
    BlockedError, NumericsError, Outcome, Rollouts, Session, StepBatches, StepNumbers, accumulate, accumulate_rollouts,
    progress::ProgressOutputs, record_loss, scaled,
};
use crate::{
    artifacts::reasoning::TraceRow,
    text::Tokenizer,
    training::{
        TrainError,
        attempts::RunLock,
        base::TrainedModel,
        checkpoint::CheckpointPolicy,
        data::{Address, DataError, Dataset, Evaluated, SampleMetrics, ValidationSet},
        objective::Measured,
        privacy::Privacy,
        records::LedgerRow,
        resources::log_memory,
        schedule::{
            Curriculum, Examples, examples_of_step, executed_steps, learning_rate, scheduled_steps, tensor_rates,
        },
        state::{BatchNorm, NoiseScale, PhaseProgress, State, TraceHead, first_non_finite_tensor},
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
    /// What was captured of the model, unless the run captures nothing or it was dropped.
    pub(crate) trace: Option<TraceRow>,
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
        let phases = &self.resolved.spec().settings.curriculum.phases;
        let total = executed_steps(settings, dataset.records());
        let completed = |state: &State| state.curriculum.as_ref().is_some_and(|progress| progress.is_finished(phases));
        if state.evaluation_pending {
            if !self.evaluate_and_report(state, evaluation, outputs)? {
                return self.interrupt(state, policy);
            }
            policy.evaluated(state)?;
        }
        self.report_phase(state, false);
        while state.step < total && !completed(state) && !state.early_stopping.should_stop(settings.early_stop_patience)
        {
            let began = Instant::now();
            let result = if (self.stop)() { None } else { self.step(state, dataset, rollouts)? };
            let Some(StepResult { numbers, row, trace }) = result else { return self.interrupt(state, policy) };
            lock.count_step(state.step + 1);
            if let Some(metrics) = self.metrics.filter(|_| row.spike.is_some()) {
                metrics.count_spike();
            }
            outputs.step(numbers, lock.executed());
            if let Some(trace) = trace {
                outputs.trace(&trace, state.traces.as_ref().map_or(0, TraceHead::total));
            }
            let evaluated = self.evaluate_and_report(state, evaluation, outputs)?;
            self.report_phase(state, false);
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
        self.report_phase(state, true);
        self.end_curriculum(state, scheduled_steps(settings, dataset.records()))?;
        let early = state.step < total && !completed(state);
        if let (true, Some((best, value))) = (early, state.early_stopping.best) {
            let (metric, evaluations) = (&settings.best_metric, counted(state.early_stopping.since_best, "evaluation"));
            self.notice(format!(
                "training stopped early at step {}: in {evaluations} {metric} did not improve on {value} of step {best}",
                state.step
            ));
        }
        Ok(None)
    }

    /// Reports the progress of the curriculum, if the run has one. With `over`, no step follows.
    fn report_phase(&self, state: &State, over: bool) {
        let phases = &self.resolved.spec().settings.curriculum.phases;
        let Some(progress) = &state.curriculum else { return };
        let report = progress.report(phases, state.step, over);
        if let Some(metrics) = self.metrics {
            metrics.phase(&report);
        }
        self.reporter.update(|state| state.curriculum = Some(report));
    }

    /// Checks how the curriculum ended, if the run has one, in a run with a schedule of `scheduled` steps.
    ///
    /// # Errors
    /// [`BlockedError`] if all steps are used up while a phase waits for its thresholds.
    fn end_curriculum(&self, state: &State, scheduled: u64) -> Result<(), TrainError> {
        let phases = &self.resolved.spec().settings.curriculum.phases;
        let Some(progress) = state.curriculum.as_ref().filter(|progress| !progress.is_finished(phases)) else {
            return Ok(());
        };
        let active = progress.active(phases);
        let phase = phases[active].id.clone();
        if state.step < scheduled {
            return Ok(());
        }
        if let Some(why) = progress.blocked(phases, state.step) {
            return Err(BlockedError { phase, step: state.step, why }.into());
        }
        let skipped: Vec<&str> = phases[active + 1..].iter().map(|phase| phase.id.as_str()).collect();
        let skipped = if skipped.is_empty() { String::new() } else { format!("; skipped: {}", skipped.join(", ")) };
        self.notice(format!(
            "all {} of the run are done in phase {phase} of the curriculum, after {} of its {}{skipped}",
            counted(state.step, "step"),
            state.step - progress.firsts()[active],
            counted(phases[active].steps, "step"),
        ));
        Ok(())
    }

    /// Begins the next phase of the curriculum if the active one is completed.
    pub(crate) fn advance(&self, state: &mut State) {
        let phases = &self.resolved.spec().settings.curriculum.phases;
        let Some(progress) = &mut state.curriculum else { return };
        if let Some(completed) = progress.advance(phases, state.step) {
            let next = phases.get(completed + 1).map_or("none", |phase| phase.id.as_str());
            tracing::info!(step = state.step, phase = phases[completed].id, next, "phase completed");
        }
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
            self.advance(state);
            return Ok(true);
        };
        match self.evaluate(state, evaluation) {
            Ok(Some(Evaluated { measured, phases, samples })) => {
                let known = self.resolved.spec().settings.curriculum.phases.iter().zip(phases);
                let phases: Vec<(&str, f64)> =
                    known.filter_map(|(phase, loss)| Some((phase.id.as_str(), loss?))).collect();
                outputs.evaluated(state.step, measured, &phases, (&samples, began.elapsed()));
            }
            Ok(None) => {}
            Err(TrainError::Interrupted) => return Ok(false),
            Err(error) => return Err(error),
        }
        Ok(true)
    }

    /// Evaluates the state on the validation records if that is due after the latest step, and begins the next phase of the
    /// curriculum if the active one is then completed.
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
            self.advance(state);
            return Ok(None);
        }
        let known = self.resolved.spec().settings.curriculum.phases.as_slice();
        let phase = state.curriculum.as_ref().map(|progress| progress.active(known));
        let begun = phase.map_or(0, |phase| phase + 1);
        // The average becomes the model, if one is kept, so that is evaluated.
        state.engine.swap_average()?;
        let mut look = || -> Result<_, TrainError> {
            let measured = validation.measure(state.engine.as_mut(), settings.preferences(), begun, self.stop)?;
            let samples = match tokenizer {
                Some(tokenizer) if measured.is_some() && validation.has_samples(phase) => {
                    let trained = state.engine.parameters()?;
                    let merged = model.parameters(self.base, &trained)?;
                    let model = (&model.config, merged.as_deref().unwrap_or(&trained));
                    validation.samples(model, tokenizer, phase, self.stop)?
                }
                _ => Some(Vec::new()),
            };
            Ok((measured, samples))
        };
        let seen = look();
        state.engine.swap_average()?;
        let (measured, samples) = seen?;
        let (measured, phases) = measured.ok_or(TrainError::Interrupted)?;
        let samples = samples.ok_or(TrainError::Interrupted)?;
        state.measured.insert(VAL_LOSS.to_owned(), measured.loss);
        if let (Some(phase), Some(progress)) = (phase, &mut state.curriculum) {
            let SampleMetrics { exact_match, trace_coverage, explanation_depth } = SampleMetrics::of(&samples);
            let sampled = [
                ("exact_match", exact_match),
                ("trace_coverage", trace_coverage),
                ("explanation_depth", explanation_depth),
            ];
            progress.record(known, [(VAL_LOSS, phases[phase])].into_iter().chain(sampled));
        }
        let best = state.measured.get(&settings.best_metric).copied().unwrap_or(f64::NAN);
        state.early_stopping.record(state.step, best, settings.metric_mode);
        state.evaluation_pending = false;
        self.advance(state);
        Ok(Some(Evaluated { measured, phases, samples }))
    }

    /// Returns the records of the step after `done` steps, of a run whose curriculum, if it has one, got as far as `progress`: the
    /// number of the first example, counted over the whole run, the records, and how many of them are in a batch. A private run draws
    /// them; its examples are counted as if every step had as many as it has in the mean.
    ///
    /// # Errors
    /// When the number of a record cannot be read.
    pub(super) fn records_of(
        &self,
        (progress, privacy): (Option<&PhaseProgress>, Option<&Privacy>),
        done: u64,
        dataset: &Dataset,
    ) -> Result<(u64, Vec<Address>, usize), DataError> {
        let settings = &self.resolved.spec().settings;
        if let Some(privacy) = privacy {
            let first = done * privacy.mechanism.expected as u64;
            return Ok((first, dataset.numbered(&privacy.draw(done)), 1));
        }
        if let (Some(curriculum), Some(progress)) = (Curriculum::of(settings), progress) {
            let phase = curriculum.place(progress.firsts(), done).phase;
            let (first, addresses) = dataset.of_phase(&curriculum, progress.firsts(), done)?;
            return Ok((first, addresses, curriculum.batch(phase)));
        }
        let Examples { first, count } = examples_of_step(&settings.training, dataset.records(), done);
        Ok((first, dataset.examples(first, count), settings.training.batch_size))
    }

    /// Returns the data of the step after those of the state.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn data_of(&self, state: &State, dataset: &Dataset) -> Result<StepData, DataError> {
        let done = state.step;
        let (first, addresses, batch) =
            self.records_of((state.curriculum.as_ref(), state.privacy.as_ref()), done, dataset)?;
        let addresses: Vec<Vec<Address>> = addresses.chunks(batch).map(<[_]>::to_vec).collect();
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
        let StepData { first, addresses, batches, targets } = self.data_of(state, dataset)?;
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
        let State { step, engine, spikes, measured, curriculum, noise_scale, loss_scale, privacy, .. } = state;
        let privacy = privacy.as_ref();
        let preferences = training.preferences();
        let private = privacy.map(|privacy| (privacy, *step));
        let of_step = StepBatches { addresses: &addresses, batches: &batches, targets, private };
        let (mut first_norm, measures_noise) = (None, noise_scale.is_some());
        let measured_now = scaled(engine.as_mut(), loss_scale.as_mut(), |engine| match &rolled {
            None => {
                let small = measures_noise.then_some(&mut first_norm);
                accumulate(engine, preferences, dataset, of_step, self.stop, small)
            }
            Some(rolled) => accumulate_rollouts(engine, rolled, self.stop),
        })?;
        let Some(Measured { loss, preferences: compared, sampled }) = measured_now else { return Ok(None) };
        // A private step that drew no record has no loss of its own.
        let loss = if addresses.is_empty() { measured.get("loss").copied().unwrap_or_default() } else { loss };
        let first_batch = addresses.first().map_or(0, Vec::len);
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
        if let (Some(scale), Some(norm)) = (noise_scale.as_mut(), first_norm) {
            let batch = |norm: f64, examples: usize| BatchNorm { squares: norm * norm, examples: examples as f64 };
            scale.observe(batch(norm, first_batch), batch(grad_norm, addresses.len()));
        }
        let spike = spikes.observe(training, loss, grad_norm);
        let phases = Curriculum::of(&self.resolved.spec().settings).zip(curriculum.as_ref());
        let peak = phases.map_or(training.learning_rate, |(phases, progress)| {
            phases.peak(phases.place(progress.firsts(), *step).phase)
        });
        let rate = learning_rate(training, peak, scheduled_steps(training, dataset.records()), *step);
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
            let matrices = match training.optimizer.name {
                OptimizerName::Adamw => None,
                OptimizerName::Muon => Some(Muon::tensors(engine.layout())),
            };
            let momentum = training.optimizer.momentum;
            engine.update(&AdamW {
                // Skipped steps do not advance Adam's bias correction.
                step: *step - spikes.skipped,
                rate,
                beta1: training.beta1,
                beta2: training.beta2,
                epsilon: training.epsilon,
                scale: (training.grad_clip_norm / grad_norm).min(1.0),
                rates: &rates,
                muon: matrices.as_deref().map(|tensors| Muon { momentum, tensors }),
            })?;
            if let Some(decay) = training.ema.decay {
                engine.average(decay)?;
            }
        }
        *step += 1;
        measured.insert("loss".to_owned(), loss);
        if let Some(progress) = curriculum {
            progress.record(&self.resolved.spec().settings.curriculum.phases, [("loss", Some(loss))]);
        }
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
            noise_scale: noise_scale.as_ref().and_then(NoiseScale::value),
            epsilon: privacy.map(|privacy| privacy.epsilon(*step)),
            tokens,
            flops,
            data_wait,
        };
        let trace = self.observe(state, dataset, (addresses.first().copied(), first))?;
        Ok(Some(StepResult { numbers, row, trace }))
    }
}
