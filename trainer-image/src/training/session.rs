//! One attempt at a run: claim the directory, read the data, find the newest checkpoint, step until done or told to stop, write
//! the model. Does I/O.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use codex_configs::{Resolved, Training};
use codex_engine::{AdamW, EngineError, ModelConfig, Rates, Shape};
use codex_provenance::{DataDigest, manifest::Manifest};
use codex_reports::{Checkpoint, Model, Stage, TrainingState};

use super::{
    TrainError,
    artifacts::Artifacts,
    checkpoint::{Identity, Store},
    data::{Address, Dataset},
    optimizer::learning_rate,
    progress::{StepNumbers, Watchers},
    state::State,
    writer::Writer,
};
use crate::{
    durable::{self, FileError},
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
    /// Set when the attempt should write a checkpoint and end.
    pub stop: Arc<AtomicBool>,
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

impl Session<'_> {
    /// Runs the attempt.
    ///
    /// # Errors
    /// When the input is wrong, the file system refuses, or the loss is not finite.
    pub fn run(&self) -> Result<Outcome, TrainError> {
        let training = self.resolved.spec();
        let tokenizer = Tokenizer::characters().map_err(crate::model::ModelError::from)?;
        let config = model_config(training, &tokenizer)?;
        durable::make_directory(self.output)?;
        let mut writer = Writer::claim(self.output.join("writers"))?;
        self.reporter.set_attempt(writer.epoch());
        let artifacts = Artifacts::open(self.output)?;
        let dataset = self.read_data(&artifacts, &tokenizer)?;
        let digests: BTreeMap<String, DataDigest> =
            dataset.files().map(|file| (file.name.clone(), file.sha256)).collect();
        artifacts.describe(self.resolved, &digests, writer.epoch())?;
        let identity = Identity { config_digest: self.resolved.digest(), seed: training.seed, data: digests };
        let names: Vec<&str> = training.data.iter().map(|data| data.name.as_str()).collect();
        let store = Store::open(self.output.join("checkpoints"), identity, training.settings.training.keep_last)?;
        let mut state = self.restore(&store, config)?;
        let total = training.settings.training.steps();
        let ledger = artifacts.ledger(state.step, names.join("+"))?;
        let mut watchers = Watchers::new(self.reporter, ledger, state.step, total);
        self.reporter.update(|report| {
            report.stage = Stage::Running;
            report.steps_executed = writer.executed();
        });
        let walked = self.walk(&mut state, &dataset, &store, &mut writer, &mut watchers);
        watchers.close();
        if let Some(outcome) = walked? {
            return Ok(outcome);
        }
        writer.check()?;
        let model = self.write_model(&state, &tokenizer)?;
        self.reporter.update(|report| {
            report.model = Some(model.clone());
            report.stage = Stage::Finished;
        });
        Ok(Outcome::Finished(Box::new(model)))
    }

    fn read_data(&self, artifacts: &Artifacts, tokenizer: &Tokenizer) -> Result<Dataset, TrainError> {
        let training = self.resolved.spec();
        if let Some((name, _)) =
            self.files.iter().find(|(name, _)| !training.data.iter().any(|data| data.name == *name))
        {
            let known: Vec<&str> = training.data.iter().map(|data| data.name.as_str()).collect();
            let known = known.join(", ");
            return Err(TrainError::Arguments(format!("--data {name} is not in the configuration, which has {known}")));
        }
        Dataset::read(training, self.files, &artifacts.data(), tokenizer, |file| {
            self.reporter.update(|state| {
                state.data.retain(|known| known.name != file.name);
                state.data.push(file);
            });
        })
    }

    /// The newest valid checkpoint's state, or the initial one.
    fn restore(&self, store: &Store, config: ModelConfig) -> Result<State, TrainError> {
        let mut notices = Vec::new();
        let found = store.load(&config, |notice| notices.push(notice))?;
        let step = found.as_ref().map(|found| found.checkpoint.step);
        for notice in notices {
            let goes_on = step.map_or_else(|| "from the beginning".to_owned(), |step| format!("from step {step}"));
            let notice = format!("{notice}; training goes on {goes_on}");
            tracing::warn!("{notice}");
            self.reporter.update(|state| state.notices.push(notice));
        }
        if let Some(found) = found {
            tracing::info!(step, "training goes on from a checkpoint");
            self.reporter.update(|state| {
                state.resumed_from = step;
                state.last_checkpoint = Some(found.checkpoint);
            });
            return Ok(found.state);
        }
        State::new(config, self.resolved.spec().seed)
    }

    /// Steps until the run is done (none) or told to stop. The last step is always a checkpoint.
    fn walk(
        &self,
        state: &mut State,
        dataset: &Dataset,
        store: &Store,
        writer: &mut Writer,
        watchers: &mut Watchers,
    ) -> Result<Option<Outcome>, TrainError> {
        let training = &self.resolved.spec().settings.training;
        let total = training.steps();
        let mut saved = self.reporter.state().last_checkpoint.map(|Checkpoint { step, .. }| step);
        while state.step < total {
            if self.stop.load(Ordering::Relaxed) {
                if saved != Some(state.step) {
                    self.save(state, store, writer)?;
                }
                tracing::info!(step = state.step, "interrupted after a checkpoint");
                self.reporter.update(|report| report.stage = Stage::Interrupted);
                return Ok(Some(Outcome::Interrupted { step: state.step }));
            }
            let numbers = self.step(state, dataset)?;
            writer.count_step()?;
            watchers.step(numbers, writer.executed())?;
            if state.step.is_multiple_of(training.checkpoint_every) {
                self.save(state, store, writer)?;
                saved = Some(state.step);
            }
        }
        if saved != Some(state.step) {
            self.save(state, store, writer)?;
        }
        Ok(None)
    }

    fn save(&self, state: &State, store: &Store, writer: &Writer) -> Result<(), TrainError> {
        writer.check()?;
        let checkpoint = store.save(state)?;
        tracing::debug!(step = checkpoint.step, digest = %checkpoint.digest, "checkpoint");
        self.reporter.update(|report| report.last_checkpoint = Some(checkpoint));
        Ok(())
    }

    /// One optimiser step: the gradients of all its batches together, then AdamW.
    pub(super) fn step(&self, state: &mut State, dataset: &Dataset) -> Result<StepNumbers, TrainError> {
        let training = &self.resolved.spec().settings.training;
        let accumulation = training.gradient_accumulation as u64;
        let addresses: Vec<Vec<Address>> =
            (0..accumulation).map(|batch| dataset.batch(state.step * accumulation + batch)).collect();
        let batches: Vec<_> = addresses.iter().map(|addresses| dataset.pack(addresses)).collect();
        let targets: usize = batches.iter().map(|batch| batch.targets.len()).sum();
        let not_finite = |what: String| TrainError::NotFinite {
            what,
            step: state.step + 1,
            records: dataset.describe(&addresses.concat()),
        };
        let engine = state.engine.as_mut();
        engine.clear_gradients();
        let mut loss = 0.0;
        for batch in &batches {
            loss += engine.accumulate(batch, targets)?;
        }
        if !loss.is_finite() {
            return Err(not_finite("the loss".to_owned()));
        }
        let gradient_norm = engine.gradient_norm().map_err(|error| match error {
            EngineError::NotFinite { tensor } => not_finite(format!("the gradient of {tensor}")),
            other => other.into(),
        })?;
        let rate = learning_rate(training, state.step);
        let rates = Rates::standard(engine.layout(), training.weight_decay);
        engine.update(&AdamW {
            step: state.step,
            rate,
            beta1: training.beta1,
            beta2: training.beta2,
            epsilon: training.epsilon,
            scale: (training.grad_clip_norm / gradient_norm).min(1.0),
            rates: &rates,
        });
        state.step += 1;
        Ok(StepNumbers {
            step: state.step,
            loss,
            gradient_norm,
            learning_rate: rate,
            tokens: batches.iter().map(|batch| batch.tokens.len()).sum(),
        })
    }

    /// Writes the model directory, unless it is there with exactly these bytes.
    fn write_model(&self, state: &State, tokenizer: &Tokenizer) -> Result<Model, TrainError> {
        let config = state.engine.config();
        let files = describe(config, &state.engine.export().parameters, tokenizer)?;
        let manifest = Manifest::of_files(&files)?;
        let place = self.output.join("model");
        if Manifest::of_dir(&place).ok().as_ref() != Some(&manifest) {
            let partial = self.output.join("model.partial");
            for old in [&partial, &place] {
                match fs::remove_dir_all(old) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        return Err(FileError::of("removing", old)(error).into());
                    }
                    _ => {}
                }
            }
            for (name, bytes) in &files {
                durable::write(&partial.join(name), bytes)?;
            }
            fs::rename(&partial, &place).map_err(FileError::of("renaming", &partial))?;
            durable::sync_directory(self.output)?;
        }
        Ok(Model {
            digest: manifest.digest(),
            oms_root: manifest.oms_root(),
            manifest,
            parameters: config.parameters() as u64,
        })
    }
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
