//! One attempt at a run: claim the directory, read the data, find the newest checkpoint, step until done or told to stop, write
//! the model. Does I/O.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use codex_configs::{Optimization, Resolved, Training, VALIDATION};
use codex_engine::{AdamW, EngineError, ModelConfig, Packed, Shape};
use codex_provenance::{DataDigest, manifest::Manifest};
use codex_reports::{DataFile, Model, Stage, TrainingState};

use super::{
    TrainError,
    artifacts::Artifacts,
    checkpoint::{self, Found, Identity, Store},
    data::{Address, Dataset},
    epochs::{self, Examples},
    groups,
    keep::{self, Keep},
    memory,
    meter::Meter,
    origin::Origin,
    plan::{Class, Plan},
    progress::{StepNumbers, Watchers},
    records::LedgerRow,
    requirement,
    retention::Retention,
    saver::Saver,
    schedule::learning_rate,
    state::{self, State},
    validation::Validation,
    writer::{Lock, Phase, Writer},
};
use crate::{
    atomic_fs::{self, FileError},
    model::describe,
    reporting::Reporter,
    tokenizer::Tokenizer,
};

/// What an attempt is told.
pub struct Session<'a> {
    /// The configuration.
    pub resolved: &'a Resolved<Training>,
    /// The files of data that is not synthetic, by name.
    pub files: &'a [(String, PathBuf)],
    /// The run's directory.
    pub output: &'a Path,
    /// Where progress goes.
    pub reporter: &'a Reporter<TrainingState>,
    /// What Prometheus reads, where somebody listens.
    pub meter: Option<&'a Meter>,
    /// Says when the attempt should write a checkpoint and end; asked between any two pieces of work that may take long.
    pub stop: &'a (dyn Fn() -> bool + Sync),
    /// Whether to go on where the configuration has changed so that the result will have other bits than an uninterrupted
    /// run's.
    pub accept_other_bits: bool,
    /// From the signal to the kill, where somebody said.
    pub grace: Option<Duration>,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The model is written.
    Finished(Box<Model>),
    /// Asked to stop; a checkpoint of this step is written.
    Interrupted {
        /// Steps that it holds.
        step: u64,
    },
}

/// What is looked at between steps, and what reads it.
#[derive(Clone, Copy)]
struct Looking<'a> {
    validation: &'a Validation,
    tokenizer: &'a Tokenizer,
}

/// The loss on held-out records among what is measured.
const VAL_LOSS: &str = "val_loss";

/// What a step sees.
pub(super) struct StepData {
    /// The first example, counted over the whole run.
    pub(super) first: u64,
    /// The records of each batch.
    pub(super) addresses: Vec<Vec<Address>>,
    /// The batches.
    pub(super) batches: Vec<Packed>,
    /// Targets of all batches.
    pub(super) targets: usize,
}

/// What a step came to.
pub(super) struct Stepped {
    /// For those who watch.
    pub(super) numbers: StepNumbers,
    /// For the ledger.
    pub(super) row: LedgerRow,
}

impl<'a> Session<'a> {
    /// An attempt that goes on only with what it began with, and was told no grace period.
    pub fn new(
        resolved: &'a Resolved<Training>,
        files: &'a [(String, PathBuf)],
        output: &'a Path,
        reporter: &'a Reporter<TrainingState>,
        stop: &'a (dyn Fn() -> bool + Sync),
    ) -> Self {
        Self { resolved, files, output, reporter, meter: None, stop, accept_other_bits: false, grace: None }
    }

    /// Runs the attempt.
    ///
    /// # Errors
    /// When the input is wrong, the file system refuses, or the loss is not finite.
    pub fn run(&self) -> Result<Outcome, TrainError> {
        let mut lock = None;
        self.work(&mut lock).inspect_err(|error| {
            // What is another attempt's by now, or lies where the volume was, is not written to.
            if lock.is_none_or(|lock| lock.check().is_ok()) {
                self.record(error);
            }
        })
    }

    /// Leaves the error of an attempt beside its results.
    fn record(&self, error: &TrainError) {
        let step = self.reporter.state().progress.map(|progress| progress.step);
        let recorded = Artifacts::open(self.output).and_then(|artifacts| artifacts.failed(error, step));
        if let Err(why) = recorded {
            tracing::warn!(error = crate::error::chain(&why), "errors.ndjson was not written");
        }
    }

    /// `lock`: what this attempt holds, as soon as it does.
    fn work(&self, lock: &mut Option<Lock>) -> Result<Outcome, TrainError> {
        let tokenizer = Tokenizer::characters().map_err(crate::model::ModelError::from)?;
        let config = model_config(self.resolved.spec(), &tokenizer)?;
        self.glance()?;
        atomic_fs::make_directory(self.output)?;
        let mut writer = Writer::claim(self.output.join("writers"))?;
        *lock = Some(writer.lock());
        self.reporter.set_attempt(writer.epoch());
        if let Some(epitaph) = writer.epitaph() {
            self.notice(epitaph);
        }
        let ended = self.attempt(config, &tokenizer, &mut writer);
        writer.enter(Phase::Ended);
        match ended {
            // Before the first step of this attempt: what an earlier one saved is all there is.
            Err(TrainError::Interrupted) => {
                tracing::info!("interrupted before a step");
                self.reporter.update(|report| report.stage = Stage::Interrupted);
                Ok(Outcome::Interrupted { step: self.reporter.state().resumed_from.unwrap_or(0) })
            }
            ended => ended,
        }
    }

    fn attempt(&self, config: ModelConfig, tokenizer: &Tokenizer, writer: &mut Writer) -> Result<Outcome, TrainError> {
        let training = self.resolved.spec();
        let settings = &training.settings.training;
        let limit = memory::limit(Path::new("/"));
        requirement::before_data(&config, limit.as_ref())?;
        let artifacts = Artifacts::open(self.output)?;
        writer.enter(Phase::Loading);
        let dataset = self.read_data(Some(&artifacts.data()), tokenizer)?;
        let validation = Validation::read(training, self.files, tokenizer, self.stop, |file| self.seen(file))?;
        check_warmup(settings, dataset.records())?;
        memory::note("data");
        memory::release();
        let held_out = validation.as_ref().map(Validation::lengths);
        let records = requirement::Records { trained: dataset.lengths(), held_out };
        let estimate = requirement::of(&config, settings, &records);
        tracing::info!("memory: {estimate} at most");
        requirement::check(&config, settings, &records, limit.as_ref())?;
        writer.expect(estimate.total(), limit.as_ref().map(|limit| limit.bytes));
        self.pause()?;
        let identity = self.identity(digests(&dataset, validation.as_ref()))?;
        let found = self.newest()?;
        let origin = Origin::here(settings);
        let plan = plan(found.as_ref(), &identity, &origin);
        self.follow(&plan, found.as_ref())?;
        let files = self.reporter.state().data.into_iter().map(|file| (file.name, file.sha256)).collect();
        artifacts.describe(self.resolved, &files, writer.epoch())?;
        atomic_fs::write(&self.output.join("artifacts").join(CONFIG), self.resolved.to_yaml()?.as_bytes())?;
        let mut state = self.restore(config, found.as_ref())?;
        memory::note("state");
        self.pause()?;
        let total = epochs::executed(settings, dataset.records());
        let retention = Retention::of(settings, total);
        let store = Store::open(self.output.join("checkpoints"), identity, retention)?;
        let probe = self.grace.map(|_| store.probe(requirement::copied(state.engine.config()))).transpose()?;
        let artifacts_directory = self.output.join("artifacts");
        let (saver, ends) = Saver::start(writer.lock(), store, origin, &artifacts_directory, state.step)?;
        match ends.ledger {
            Some(row) if row.step == state.step => check_order(&row, &dataset)?,
            None if state.step == 0 => {}
            row => self.notice(format!(
                "the ledger ends with step {}, and training goes on from step {}: whether it sees data in the same order is \
                 not checked",
                row.map_or(0, |row| row.step),
                state.step
            )),
        }
        if let (Some(row), Some(found)) = (&ends.state, &found)
            && row.step == state.step
            && row.digest != found.about.state_digest
        {
            self.notice(format!(
                "the recorded digest of step {} is not that of its checkpoint: one was changed",
                row.step
            ));
        }
        let recorded = ends.state.map(|row| row.step);
        let durable = found.map(|found| found.checkpoint.step);
        let mut keep = Keep::new(self.reporter, saver, settings, total, durable, recorded, self.grace);
        if let Some(took) = probe {
            keep.expect(took);
        }
        artifacts.environment(training.seed, state.engine.path())?;
        let names: Vec<&str> = training.data.iter().map(|data| data.name.as_str()).collect();
        let ledger = artifacts.ledger(state.step, names.join("+"))?;
        let mut watchers = Watchers::new(self.reporter, ledger, self.meter, state.step, total);
        self.reporter.update(|report| {
            report.stage = Stage::Running;
            report.steps_executed = writer.executed();
        });
        writer.enter(Phase::Training);
        writer.begin_step(state.step + 1);
        let looking = validation.as_ref().map(|validation| Looking { validation, tokenizer });
        let walked = self.walk(&mut state, &dataset, looking, &mut keep, writer, &mut watchers);
        watchers.close();
        let walked = walked.inspect_err(|_| keep.leave(&state));
        memory::note("steps");
        tracing::debug!(engine = state.engine.memory(), "the engine's own count of memory");
        let (checkpoints, paused) = keep.cost();
        let say_cost = || {
            tracing::info!(
                checkpoints,
                paused_seconds = paused.as_secs_f64(),
                memory_estimate = estimate.total(),
                memory_peak = memory::resident().1,
                "what this attempt took"
            );
        };
        if let Some(outcome) = walked? {
            say_cost();
            return Ok(outcome);
        }
        writer.check()?;
        writer.enter(Phase::Exporting);
        let model = self.write_model(state.engine.config(), &keep.into_parameters(&state), tokenizer)?;
        memory::note("model");
        say_cost();
        self.reporter.update(|report| {
            report.model = Some(model.clone());
            report.stage = Stage::Finished;
        });
        Ok(Outcome::Finished(Box::new(model)))
    }

    /// What a resume would change, without changing anything.
    ///
    /// # Errors
    /// As [`run`](Self::run), as far as that comes.
    pub(super) fn look(&self) -> Result<Plan, TrainError> {
        let tokenizer = Tokenizer::characters().map_err(crate::model::ModelError::from)?;
        model_config(self.resolved.spec(), &tokenizer)?;
        let training = self.resolved.spec();
        let dataset = self.read_data(None, &tokenizer)?;
        let validation = Validation::read(training, self.files, &tokenizer, self.stop, |_| ())?;
        let identity = self.identity(digests(&dataset, validation.as_ref()))?;
        Ok(plan(self.newest()?.as_ref(), &identity, &Origin::here(&training.settings.training)))
    }

    /// Refuses a directory whose newest checkpoint is of another run, before it is taken over from an attempt that may be alive.
    /// No data is read for it, so that everything is looked at once more afterwards.
    fn glance(&self) -> Result<(), TrainError> {
        let Some((path, about)) = checkpoint::glance(&self.output.join("checkpoints"))? else { return Ok(()) };
        let identity = self.identity(about.identity.data.clone())?;
        let now = Origin::here(&self.resolved.spec().settings.training);
        self.refuse(&Plan::resume(&about, None, &identity, &now), &path)
    }

    /// Ends the attempt where it has been asked to.
    fn pause(&self) -> Result<(), TrainError> {
        if (self.stop)() { Err(TrainError::Interrupted) } else { Ok(()) }
    }

    fn notice(&self, notice: String) {
        tracing::warn!("{notice}");
        self.reporter.update(|state| state.notices.push(notice));
    }

    /// The data of the run, hashed as it is read; synthetic data is also written to `keep`.
    pub(super) fn read_data(&self, keep: Option<&Path>, tokenizer: &Tokenizer) -> Result<Dataset, TrainError> {
        let training = self.resolved.spec();
        if let Some((name, _)) =
            self.files.iter().find(|(name, _)| !training.data.iter().any(|data| data.name == *name))
        {
            let known: Vec<&str> = training.data.iter().map(|data| data.name.as_str()).collect();
            let known = known.join(", ");
            return Err(TrainError::Arguments(format!("--data {name} is not in the configuration, which has {known}")));
        }
        Dataset::read(training, self.files, keep, tokenizer, self.stop, |file| {
            self.seen(file);
        })
    }

    /// Reports a file of data.
    fn seen(&self, file: DataFile) {
        self.reporter.update(|state| {
            state.data.retain(|known| known.name != file.name);
            state.data.push(file);
        });
    }

    /// `data`: the digest of each file by its name.
    fn identity(&self, data: BTreeMap<String, DataDigest>) -> Result<Identity, TrainError> {
        let training = self.resolved.spec();
        let settings = serde_json::to_value(&training.settings)
            .map_err(std::io::Error::from)
            .map_err(FileError::of("encoding the configuration for", self.output))?;
        Ok(Identity { config_digest: self.resolved.digest(), settings, seed: training.seed, data })
    }

    /// The newest valid checkpoint; damaged ones are passed over, and that is said.
    fn newest(&self) -> Result<Option<Found>, TrainError> {
        let mut notices = Vec::new();
        let found = checkpoint::newest(&self.output.join("checkpoints"), u64::MAX, |notice| notices.push(notice))?;
        let step = found.as_ref().map(|found| found.checkpoint.step);
        for notice in notices {
            if let Some(meter) = self.meter {
                meter.damaged();
            }
            let goes_on = step.map_or_else(|| "from the beginning".to_owned(), |step| format!("from step {step}"));
            self.notice(format!("{notice}; training goes on {goes_on}"));
        }
        Ok(found)
    }

    /// Whether training would go on.
    pub(super) fn permits(&self, plan: &Plan) -> bool {
        let least = if self.accept_other_bits { Class::Refused } else { Class::Other };
        plan.asked(least).is_empty()
    }

    /// Says what the plan of a resume is, and refuses what it refuses.
    fn follow(&self, plan: &Plan, found: Option<&Found>) -> Result<(), TrainError> {
        let Some(found) = found else { return Ok(()) };
        for line in plan.to_string().lines() {
            tracing::info!("{}", line.trim());
        }
        self.refuse(plan, &found.path)?;
        for line in plan.differences().filter(|line| line.class == Class::Other) {
            self.notice(format!(
                "{} is {} and was {} before step {}: the result is valid, but may have other bits than an uninterrupted run's",
                line.what, line.now, line.then, found.checkpoint.step,
            ));
        }
        Ok(())
    }

    /// Refuses to go on from the checkpoint at `path` where `plan` does.
    fn refuse(&self, plan: &Plan, path: &Path) -> Result<(), TrainError> {
        let list = |class: Class| {
            let lines: Vec<String> =
                plan.asked(class).iter().map(|line| format!("{}: {} → {}", line.what, line.then, line.now)).collect();
            lines.join("; ")
        };
        let (path, refused) = (path.to_owned(), list(Class::Refused));
        if !refused.is_empty() {
            let right = "use an empty output directory";
            return Err(TrainError::ForeignCheckpoint { path, differences: refused, right });
        }
        let other = list(Class::Other);
        if !other.is_empty() && !self.accept_other_bits {
            let right = "use an empty output directory, or pass --accept-other-bits to go on with what has changed";
            return Err(TrainError::ForeignCheckpoint { path, differences: other, right });
        }
        Ok(())
    }

    /// The checkpoint's state, or the initial one.
    fn restore(&self, config: ModelConfig, found: Option<&Found>) -> Result<State, TrainError> {
        let settings = state::settings(&self.resolved.spec().settings.training);
        let Some(found) = found else { return State::new(config, self.resolved.spec().seed, settings) };
        let state = State::restore(config.clone(), found.read(&layout_of(&config))?, settings)?;
        tracing::info!(step = state.step, "training goes on from a checkpoint");
        keep::reported(self.reporter, &found.checkpoint);
        Ok(state)
    }

    /// Steps until the run is done (none) or told to stop. The last step is always a checkpoint.
    fn walk(
        &self,
        state: &mut State,
        dataset: &Dataset,
        looking: Option<Looking>,
        keep: &mut Keep,
        writer: &mut Writer,
        watchers: &mut Watchers,
    ) -> Result<Option<Outcome>, TrainError> {
        let settings = &self.resolved.spec().settings.training;
        let total = epochs::executed(settings, dataset.records());
        while state.step < total && !state.patience.is_over(settings.early_stop_patience) {
            let began = Instant::now();
            let stepped = if (self.stop)() { None } else { self.step(state, dataset)? };
            let Some(Stepped { numbers, row }) = stepped else {
                keep.finish(state, true, self.stop)?;
                tracing::info!(step = state.step, "interrupted after a checkpoint");
                self.reporter.update(|report| report.stage = Stage::Interrupted);
                return Ok(Some(Outcome::Interrupted { step: state.step }));
            };
            writer.count_step(state.step + 1);
            if let Some(meter) = self.meter.filter(|_| row.spike.is_some()) {
                meter.spiked();
            }
            watchers.step(numbers, writer.executed());
            let evaluating = Instant::now();
            if let Some(looking) = looking
                && let Some(loss) = self.evaluate(state, looking.validation)?
            {
                let samples = if (self.stop)() {
                    Vec::new()
                } else {
                    looking.validation.samples(state.engine.as_ref(), looking.tokenizer)?
                };
                watchers.evaluated(state.step, loss, &samples, evaluating.elapsed());
            }
            if state.step == 1 {
                memory::note("first step");
            }
            keep.step(state, row, began.elapsed())?;
        }
        keep.finish(state, false, self.stop)?;
        if let (true, Some((best, value))) = (state.step < total, state.patience.best) {
            let (metric, waited) = (&settings.best_metric, state.patience.waited);
            self.notice(format!(
                "training ended early at step {}: in {waited} evaluations {metric} was no better than {value} of step {best}",
                state.step
            ));
        }
        Ok(None)
    }

    /// Looks at the held-out records where that is due after the newest step; gives their loss.
    ///
    /// # Errors
    /// When the engine refuses a batch.
    pub(super) fn evaluate(&self, state: &mut State, validation: &Validation) -> Result<Option<f64>, TrainError> {
        let settings = &self.resolved.spec().settings.training;
        // What an earlier step measured is none of this one's.
        state.measured.remove(VAL_LOSS);
        if !settings.eval_every.is_some_and(|every| state.step.is_multiple_of(every)) {
            return Ok(None);
        }
        let loss = validation.loss(state.engine.as_mut())?;
        state.measured.insert(VAL_LOSS.to_owned(), loss);
        let best = state.measured.get(&settings.best_metric).copied().unwrap_or(f64::NAN);
        state.patience.hear(state.step, best, settings.metric_mode);
        Ok(Some(loss))
    }

    /// What the step after `done` steps sees.
    pub(super) fn data_of(&self, done: u64, dataset: &Dataset) -> StepData {
        let training = &self.resolved.spec().settings.training;
        let Examples { first, count } = epochs::examples(training, dataset.records(), done);
        let addresses = dataset.examples(first, count);
        let addresses: Vec<Vec<Address>> = addresses.chunks(training.batch_size).map(<[_]>::to_vec).collect();
        let batches: Vec<Packed> = addresses.iter().map(|addresses| dataset.pack(addresses)).collect();
        let targets = batches.iter().map(|batch| batch.targets.len()).sum();
        StepData { first, addresses, batches, targets }
    }

    /// One optimiser step: the gradients of all its batches together, then AdamW. None when the attempt was asked to end
    /// between two batches; the state is then as it was before.
    pub(super) fn step(&self, state: &mut State, dataset: &Dataset) -> Result<Option<Stepped>, TrainError> {
        let training = &self.resolved.spec().settings.training;
        let began = Instant::now();
        let StepData { first, addresses, batches, targets } = self.data_of(state.step, dataset);
        let data_wait = began.elapsed();
        let State { step, engine, spikes, measured, patience: _ } = state;
        engine.clear_gradients();
        let mut loss = 0.0;
        for (index, batch) in batches.iter().enumerate() {
            if index > 0 && (self.stop)() {
                return Ok(None);
            }
            loss += engine.accumulate(batch, targets)?;
        }
        let addresses = addresses.concat();
        if !loss.is_finite() {
            // Which records it is that have no finite loss of their own; all of them, where each alone has one.
            let mut guilty = Vec::new();
            for address in &addresses {
                if !engine.loss(&dataset.pack(&[*address]))?.is_finite() {
                    guilty.push(*address);
                }
            }
            let guilty = if guilty.is_empty() { &addresses } else { &guilty };
            let records = dataset.describe(guilty);
            let tensor = state::not_finite(engine.as_ref());
            return Err(TrainError::NotFinite { what: "the loss".to_owned(), tensor, step: *step + 1, records });
        }
        let grad_norm = engine.gradient_norm().map_err(|error| match error {
            EngineError::NotFinite { tensor } => TrainError::NotFinite {
                what: format!("the gradient of {tensor}"),
                tensor: None,
                step: *step + 1,
                records: dataset.describe(&addresses),
            },
            other => other.into(),
        })?;
        let spike = spikes.judge(training, loss, grad_norm);
        let rate = learning_rate(training, epochs::steps(training, dataset.records()), *step);
        let skipped = spike.is_some_and(|spike| spike.skip);
        if let Some(spike) = spike {
            tracing::warn!(
                step = *step + 1,
                what = spike.what,
                value = spike.value,
                median = spike.median,
                score = spike.score,
                skipped,
                "a spike; `codex replay-step` shows its records"
            );
        }
        if !skipped {
            let rates = groups::rates(engine.layout(), training)?;
            engine.update(&AdamW {
                // A step that changed nothing is none to the moments' corrections.
                step: *step - spikes.skipped,
                rate,
                beta1: training.beta1,
                beta2: training.beta2,
                epsilon: training.epsilon,
                scale: (training.grad_clip_norm / grad_norm).min(1.0),
                rates: &rates,
            });
        }
        *step += 1;
        measured.insert("loss".to_owned(), loss);
        let row = LedgerRow {
            step: *step,
            first,
            examples: addresses.len() as u64,
            records: dataset.digest(&addresses),
            loss,
            grad_norm,
            spike: spike.map(|spike| spike.what.to_owned()),
            skipped,
        };
        let tokens = batches.iter().map(|batch| batch.tokens.len()).sum();
        let flops = batches.iter().map(|batch| codex_engine::flops(engine.config(), engine.layout(), batch)).sum();
        let numbers =
            StepNumbers { step: *step, loss, gradient_norm: grad_norm, learning_rate: rate, tokens, flops, data_wait };
        Ok(Some(Stepped { numbers, row }))
    }

    /// Writes the model directory, unless it is there with exactly these bytes.
    fn write_model(
        &self,
        config: &ModelConfig,
        parameters: &[f32],
        tokenizer: &Tokenizer,
    ) -> Result<Model, TrainError> {
        let files = describe(config, parameters, tokenizer)?;
        let manifest = Manifest::of_files(&files)?;
        let place = self.output.join("model");
        if Manifest::of_dir(&place).ok().as_ref() != Some(&manifest) {
            atomic_fs::write_directory(&place, &files)?;
        }
        Ok(Model {
            digest: manifest.digest(),
            oms_root: manifest.oms_root(),
            manifest,
            parameters: config.parameters() as u64,
        })
    }
}

fn plan(found: Option<&Found>, identity: &Identity, origin: &Origin) -> Plan {
    found.map_or_else(Plan::fresh, |found| Plan::resume(&found.about, found.origin.as_ref(), identity, origin))
}

/// The digest of each file by its name; held-out data is among them where it is looked at.
pub(super) fn digests(dataset: &Dataset, validation: Option<&Validation>) -> BTreeMap<String, DataDigest> {
    let held_out = validation.and_then(Validation::file).map(|digest| (VALIDATION.to_owned(), digest));
    dataset.files().map(|file| (file.name.clone(), file.sha256)).chain(held_out).collect()
}

/// Whether the step that the ledger names would see the same records here.
fn check_order(row: &LedgerRow, dataset: &Dataset) -> Result<(), TrainError> {
    // Examples are counted over the whole run, so this holds for another batch size, too.
    let addresses = dataset.examples(row.first, row.examples);
    let expected = dataset.digest(&addresses);
    if expected == row.records {
        return Ok(());
    }
    Err(TrainError::DataOrder { step: row.step, found: row.records.short(), expected: expected.short() })
}

/// The resolved configuration, in a run's artefacts.
pub(super) const CONFIG: &str = "config.yaml";

fn layout_of(config: &ModelConfig) -> std::sync::Arc<codex_engine::Layout> {
    std::sync::Arc::new(codex_engine::Layout::of(config))
}

/// Whether warm-up ends before the schedule does; without epochs, the configuration was checked for that.
fn check_warmup(training: &Optimization, records: u64) -> Result<(), TrainError> {
    let (steps, warmup) = (epochs::steps(training, records), training.warmup_steps);
    if warmup <= steps {
        return Ok(());
    }
    Err(TrainError::Arguments(format!(
        "training.warmup_steps is {warmup}, but training.max_epochs comes to {steps} steps of this data: write at most {steps}"
    )))
}

/// The shape that a configuration asks for.
pub(super) fn model_config(training: &Training, tokenizer: &Tokenizer) -> Result<ModelConfig, TrainError> {
    let model = &training.settings.model;
    let shape = Shape {
        hidden_size: model.hidden_size,
        intermediate_size: model.intermediate_size,
        num_hidden_layers: model.num_hidden_layers,
        num_attention_heads: model.num_attention_heads,
        max_position_embeddings: model.max_position_embeddings,
        rope_theta: model.rope_theta,
    };
    Ok(ModelConfig::new(shape, tokenizer.for_model())?)
}
