//! The course of an attempt, from claiming the run's directory to writing the model. Does I/O.

use std::{collections::BTreeMap, path::Path};

use codex_configs::Method;
use codex_provenance::DataDigest;
use codex_reports::{Model, Stage};

use super::{
    CONFIG, Outcome, Session,
    inputs::{check_warmup, data_digests},
    observe::source_of,
    preferences::Keep,
    progress::ProgressOutputs,
    resume::compare,
    steps::Evaluation,
    system_metrics::SystemMetrics,
};
use crate::{
    artifacts::{errors::causes, reasoning::Reasoning},
    atomic_fs,
    error::chain,
    model::{ModelFiles, describe, write_hashed},
    text::Tokenizer,
    tracking::{Ended, MLFLOW_SERVER, Trackers, register},
    training::{
        BaseError, TrainError,
        attempts::{LockHandle, Phase, RunLock},
        base::TrainedModel,
        checkpoint::{AsyncWriter, CheckpointPolicy, CheckpointStore, Origin, Retention, Written},
        data::{Caches, Places},
        privacy::Mechanism,
        records::{Artifacts, MODEL_CARD, ModelCard},
        resources::{check_model_size, log_memory, memory_limit, release_memory, resident_memory, snapshot_size},
        schedule::executed_steps,
        state::engine_settings,
    },
};

impl Session<'_> {
    /// Runs the attempt.
    ///
    /// # Errors
    /// When the input is invalid, a file operation fails, or the loss is not finite.
    pub fn run(&self) -> Result<Outcome, TrainError> {
        let mut lock = None;
        self.claim_and_run(&mut lock).inspect_err(|error| match &lock {
            // A directory that belongs to a newer attempt, or lies where the volume was mounted, is not written to.
            Some(lock) if lock.check().is_err() => {}
            claimed => self.record_failure(error, claimed.is_some()),
        })
    }

    /// Appends the error of the attempt to the run's artifacts. The directory is made only if it was not claimed yet.
    fn record_failure(&self, error: &TrainError, claimed: bool) {
        let made = if claimed { Ok(()) } else { atomic_fs::make_directory(self.output) };
        let step = self.reporter.state().progress.map(|progress| progress.step);
        let recorded = made
            .and_then(|()| Artifacts::open(self.output))
            .and_then(|artifacts| artifacts.append_failure(error.failure(), error.exit(), causes(error), step));
        if let Err(why) = recorded {
            tracing::warn!(error = chain(&why), "errors.ndjson cannot be written");
        }
    }

    /// Claims the directory and runs the attempt; `lock` is set as soon as the directory is claimed.
    fn claim_and_run(&self, lock: &mut Option<LockHandle>) -> Result<Outcome, TrainError> {
        let (model, tokenizer) = self.model()?;
        self.refuse_foreign_directory()?;
        atomic_fs::make_directory(self.output)?;
        let mut run_lock = RunLock::claim(self.output.join("writers"))?;
        *lock = Some(run_lock.handle());
        self.reporter.set_attempt(run_lock.epoch());
        if let Some(notice) = run_lock.previous() {
            self.notice(notice.to_owned());
        }
        let ended = self.train(&model, &tokenizer, &mut run_lock);
        run_lock.enter(Phase::Ended);
        match ended {
            // Interrupted before its first step: the checkpoint of an earlier attempt is still the newest state.
            Err(error) if error.is_interruption() => {
                tracing::info!("interrupted before the first step");
                self.reporter.update(|report| report.stage = Stage::Interrupted);
                Ok(Outcome::Interrupted { step: self.reporter.state().resumed_from.unwrap_or(0) })
            }
            ended => ended,
        }
    }

    fn train(&self, model: &TrainedModel, tokenizer: &Tokenizer, lock: &mut RunLock) -> Result<Outcome, TrainError> {
        let training = self.resolved.spec();
        let settings = &training.settings.training;
        let limit = memory_limit(Path::new("/"));
        let origin = Origin::here(engine_settings(settings).suited(&model.config));
        if let Some(required) = self.required {
            required.check(&origin)?;
        }
        self.report_computation(&origin);
        let device = crate::device::announce(settings.device, &origin.engine);
        self.reporter.update(|report| report.device = Some(device));
        if settings.method == Method::None {
            return self.copy_base(lock);
        }
        check_model_size(model, settings, limit.as_ref())?;
        let artifacts = Artifacts::open(self.output)?;
        lock.enter(Phase::Loading);
        let encoder = self.encoder(model, tokenizer);
        let caches = Caches::of_run(self.output, true);
        let mut dataset = self.read_data(&Places { synthetic: Some(artifacts.data()), caches }, encoder)?;
        let mut validation = self.read_validation(&dataset, encoder)?;
        check_warmup(settings, dataset.records())?;
        if let Some(notice) = Mechanism::of(settings, dataset.records())?.and_then(|mechanism| mechanism.notice()) {
            self.notice(notice);
        }
        log_memory("data");
        release_memory();
        let estimate = self.check_memory(model, &dataset, validation.as_ref())?;
        lock.set_memory(estimate, limit.as_ref().map(|limit| limit.bytes));
        self.check_stop()?;
        let identity = self.identity(data_digests(&dataset, validation.as_ref()))?;
        let found = self.newest_checkpoint()?;
        if let Some(adopted) = self.adopt((&origin, found.is_some()), model.config.parameters(), lock)? {
            return Ok(self.finish(adopted));
        }
        self.accept_diff(&compare(found.as_ref(), &identity, &origin), found.as_ref())?;
        let origin = match &found {
            Some(found) => origin.after(found.origin.as_ref()),
            None => origin,
        };
        let exact = !origin.mixed;
        self.report_computation(&origin);
        let data = self.reporter.state().data.into_iter().map(|file| (file.name, file.sha256)).collect();
        artifacts.describe(self.resolved, &data, lock.epoch(), self.base)?;
        artifacts.data_report(&dataset.report())?;
        if let Some(report) = dataset.safety_report() {
            tracing::info!(blocked = report.blocked, redacted = report.redacted, "safety rules over the training data");
            if let Some(metrics) = self.metrics {
                metrics.screened(&report);
            }
            artifacts.safety(report)?;
        }
        let artifacts_directory = self.output.join("artifacts");
        atomic_fs::write(&artifacts_directory.join(CONFIG), self.resolved.to_yaml()?.as_bytes())?;
        self.reference(model, &mut dataset, validation.as_mut(), Keep::Yes)?;
        let rollouts = self.rollouts(model, tokenizer, dataset.reward())?;
        if let Some(rollouts) = &rollouts {
            self.check_rewards(rollouts, &dataset)?;
        }
        let mut state = self.restore(model, found.as_ref(), dataset.records())?;
        log_memory("state");
        self.check_stop()?;
        let total = executed_steps(settings, dataset.records());
        let store = CheckpointStore::open(self.output.join("checkpoints"), identity, Retention::of(settings, total))?;
        let probe = self.grace.map(|_| store.probe(snapshot_size(model, settings))).transpose()?;
        let (writer, ends) =
            AsyncWriter::start(lock.handle(), store, origin, (&artifacts_directory, self.ledger_size), state.step)?;
        ends.notices.into_iter().for_each(|notice| self.notice(notice));
        match ends.ledger {
            Some(row) if row.step == state.step => self.check_order(&row, &state, &dataset)?,
            None if state.step == 0 => {}
            row => self.notice(format!(
                "the ledger ends at step {}, but training resumes from step {}: the order of data cannot be checked",
                row.map_or(0, |row| row.step),
                state.step
            )),
        }
        // The checkpoint of an interrupted evaluation has the state before it, and the chain may have the state after it.
        if let (Some(row), Some(found)) = (&ends.state, &found)
            && row.step == state.step
            && !state.evaluation_pending
            && row.digest != found.info.state_digest
        {
            self.notice(format!(
                "the recorded digest of step {} differs from its checkpoint: one was modified",
                row.step
            ));
        }
        let written = Written {
            durable: found.map(|found| found.checkpoint.step),
            pending: state.evaluation_pending,
            recorded: ends.state.map(|row| row.step),
        };
        let mut policy = CheckpointPolicy::new(self.reporter, writer, settings, total, written, self.grace);
        if let Some(took) = probe {
            policy.expect(took);
        }
        artifacts.environment(training.seed, state.engine.path(), settings.device, exact)?;
        let names: Vec<&str> = training.data.iter().map(|data| data.name.as_str()).collect();
        let (ledger, notice) = artifacts.metrics_ledger(state.step, state.evaluation_pending, names.join("+"))?;
        let ledger = ledger.rotated_at(self.ledger_size);
        if let Some(notice) = notice {
            self.notice(notice);
        }
        if let Some(metrics) = self.metrics {
            metrics.peak(state.engine.peak_flops()?);
        }
        let failures = |tracker: &str| self.metrics.map(|metrics| metrics.tracking_failures(tracker));
        let trackers = Trackers::start(training.settings.tracking, &artifacts_directory, state.step, failures);
        let traced = &training.settings;
        let most = traced.training.reasoning.head.hidden_size;
        let reasoning = Reasoning::of(traced, source_of(state.engine.as_ref(), traced.trace_mode(), most));
        artifacts.reasoning(&reasoning)?;
        let (traces, notice) = artifacts.traces(&reasoning, state.step)?.unzip();
        if let Some(notice) = notice.flatten() {
            self.notice(notice);
        }
        let system = training.settings.tracking.system_metrics;
        let system = system.then(|| SystemMetrics::begin(self.output, state.engine.path()));
        let mut outputs = ProgressOutputs::new(self.reporter, (ledger, trackers), self.metrics, state.step, total)
            .with_traces(traces)
            .with_system(system);
        self.reporter.update(|report| {
            report.stage = Stage::Running;
            report.steps_executed = lock.executed();
        });
        lock.enter(Phase::Training);
        lock.begin_step(state.step + 1);
        let evaluation =
            validation.as_ref().map(|validation| Evaluation { validation, model, tokenizer: Some(tokenizer) });
        let ended =
            self.take_steps(&mut state, (&dataset, rollouts.as_ref()), evaluation, &mut policy, lock, &mut outputs);
        outputs.close(match &ended {
            Ok(None) => Ended::Finished,
            Ok(Some(_)) => Ended::Interrupted,
            Err(_) => Ended::Failed,
        });
        let ended = ended.inspect_err(|_| policy.write_remaining_rows(&state));
        if let Some(privacy) = &state.privacy {
            let report = privacy.report(state.step);
            tracing::info!(epsilon = report.epsilon, delta = report.delta, steps = report.steps, "privacy spent");
            artifacts.privacy(&report)?;
        }
        log_memory("steps");
        tracing::debug!(engine = state.engine.memory(), "memory counted by the engine");
        let (checkpoints, paused) = policy.cost();
        let log_cost = || {
            tracing::info!(
                checkpoints,
                paused_seconds = paused.as_secs_f64(),
                memory_estimate = estimate,
                memory_peak = resident_memory().1,
                "cost of this attempt"
            );
        };
        if let Some(outcome) = ended? {
            log_cost();
            return Ok(outcome);
        }
        lock.check()?;
        lock.enter(Phase::Exporting);
        let trained = policy.into_parameters(&state)?;
        let (steps, mut measured) = (state.step, std::mem::take(&mut state.measured));
        if state.privacy.is_some() {
            // The guarantee does not cover the loss of training records, and a model card is published with the model.
            measured.remove("loss");
        }
        drop(state);
        release_memory();
        let adapter = model.adapter(&trained)?.map(|files| artifacts.adapter(&files)).transpose()?;
        let mut files = match self.base {
            None => describe(&model.config, &trained, tokenizer)?,
            Some(base) => base.trained(model, &trained)?,
        };
        let parameters = model.config.parameters();
        if training.settings.metadata.model_card {
            let (resolved, base) = (self.resolved, self.base);
            let card = ModelCard { resolved, base, data: &data, measured: &measured, steps, parameters };
            files.insert(MODEL_CARD.to_owned(), card.text().into_bytes());
        }
        let written = Model { adapter, ..self.write_model(&files, parameters)? };
        log_memory("model");
        log_cost();
        self.register(&written);
        Ok(self.finish(written))
    }

    /// Registers the written model with MLflow, if the environment asks for it.
    fn register(&self, model: &Model) {
        let counter = self.metrics.map(|metrics| metrics.tracking_failures(MLFLOW_SERVER));
        register(self.resolved.spec().settings.tracking, &self.output.join("artifacts"), model.digest, counter);
    }

    /// Reports what computes.
    fn report_computation(&self, origin: &Origin) {
        self.reporter.update(|report| report.computation = origin.computation());
    }

    /// Copies the base into the model directory.
    fn copy_base(&self, lock: &mut RunLock) -> Result<Outcome, TrainError> {
        let Some(base) = self.base else { return Err(BaseError::None("none").into()) };
        let artifacts = Artifacts::open(self.output)?;
        self.describe_untrained(&artifacts, &BTreeMap::new(), lock.epoch())?;
        lock.check()?;
        lock.enter(Phase::Exporting);
        let written = self.write_model(&base.copy()?, base.config().parameters())?;
        Ok(self.finish(written))
    }

    /// Writes the artifacts of a run that takes no steps.
    pub(super) fn describe_untrained(
        &self,
        artifacts: &Artifacts,
        data: &BTreeMap<String, DataDigest>,
        attempt: u32,
    ) -> Result<(), TrainError> {
        artifacts.describe(self.resolved, data, attempt, self.base)?;
        atomic_fs::write(&self.output.join("artifacts").join(CONFIG), self.resolved.to_yaml()?.as_bytes())?;
        let training = &self.resolved.spec().settings.training;
        artifacts.environment(self.resolved.spec().seed, engine_settings(training).path(), training.device, true)?;
        artifacts.reasoning(&Reasoning::of(&self.resolved.spec().settings, None))?;
        Ok(())
    }

    /// Reports the written model.
    fn finish(&self, model: Model) -> Outcome {
        self.reporter.update(|report| {
            report.model = Some(model.clone());
            report.stage = Stage::Finished;
        });
        Outcome::Finished(Box::new(model))
    }

    /// Writes the model directory, unless it already has exactly these bytes.
    pub(super) fn write_model(&self, files: &ModelFiles, parameters: usize) -> Result<Model, TrainError> {
        let manifest = write_hashed::<TrainError>(&self.output.join("model"), files)?;
        Ok(Model {
            digest: manifest.digest(),
            oms_root: manifest.oms_root(),
            manifest,
            parameters: parameters as u64,
            adapter: None,
        })
    }
}
