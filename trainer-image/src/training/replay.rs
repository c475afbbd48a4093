//! A run looked at afterwards: `codex replay-step` redoes one step of it. Reads the run's directory; writes nothing there.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use codex_configs::{Data, Resolved, Training};
use codex_provenance::DataDigest;
use codex_reports::{TrainingState, exit};
use serde::Serialize;

use super::{
    TrainError,
    checkpoint::{self, Found},
    data::Dataset,
    epochs, named_file,
    records::{self, LEDGER, LedgerRow, STATES, StateRow},
    session::{self, CONFIG, Session, StepData, Stepped, model_config},
    state::{self, State},
    validation::Validation,
};
use crate::{atomic_fs, error::CommandError, model::ModelError, reporting::Reporter, tokenizer::Tokenizer};

/// A finished or interrupted run, as it recorded itself.
#[derive(Debug)]
pub(super) struct Past {
    /// Its directory.
    pub(super) directory: PathBuf,
    /// Its configuration.
    pub(super) resolved: Resolved<Training>,
}

/// A run with its data at hand, ready to be gone through again.
pub(super) struct Rerun<'a> {
    past: &'a Past,
    files: Vec<(String, PathBuf)>,
    tokenizer: Tokenizer,
    dataset: Dataset,
    /// Its held-out records, where it looked at any.
    validation: Option<Validation>,
    reporter: Reporter<TrainingState>,
}

impl Past {
    /// Reads a run's configuration.
    ///
    /// # Errors
    /// When the directory holds no run.
    pub(super) fn open(directory: &Path) -> Result<Self, TrainError> {
        let config = directory.join("artifacts").join(CONFIG);
        if !config.exists() {
            return Err(TrainError::Arguments(format!(
                "{} holds no run, for there is no artifacts/{CONFIG}: name what was the --output of a training",
                directory.display()
            )));
        }
        Ok(Self { directory: directory.to_owned(), resolved: Resolved::from_yaml(&atomic_fs::read(&config)?)? })
    }

    /// The run's ledger by step.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) fn ledger(&self) -> Result<BTreeMap<u64, LedgerRow>, TrainError> {
        let rows = records::read::<LedgerRow>(&self.directory.join("artifacts").join(LEDGER))?;
        Ok(rows.into_iter().map(|row| (row.step, row)).collect())
    }

    /// The run's recorded states by step.
    ///
    /// # Errors
    /// When they cannot be read, or their chain is broken.
    pub(super) fn states(&self) -> Result<BTreeMap<u64, StateRow>, TrainError> {
        let rows = records::read_states(&self.directory.join("artifacts").join(STATES))?;
        Ok(rows.into_iter().map(|row| (row.step, row)).collect())
    }

    /// Reads the run's data; `files` gives what it did not make itself.
    ///
    /// # Errors
    /// When a file is missing, or holds other data than the run had.
    pub(super) fn rerun(&self, files: &[(String, PathBuf)]) -> Result<Rerun<'_>, TrainError> {
        let training = self.resolved.spec();
        let own = |data: &&Data| data.synthetic.is_none() && !files.iter().any(|(name, _)| *name == data.name);
        if let Some(Data { name, .. }) = training.data.iter().find(own) {
            return Err(TrainError::Arguments(format!(
                "the run in {} was given a file as data {name}: pass it as --data {name}=FILE",
                self.directory.display()
            )));
        }
        let tokenizer = Tokenizer::characters().map_err(ModelError::from)?;
        let names: Vec<&str> = training.data.iter().map(|data| data.name.as_str()).collect();
        // What another run's data is called is nothing to this one.
        let files: Vec<_> = files.iter().filter(|(name, _)| names.contains(&name.as_str())).cloned().collect();
        let dataset = Dataset::read(training, &files, None, &tokenizer, &|| false, |_| ())?;
        let validation = Validation::read(training, &files, &tokenizer, &|| false, |_| ())?;
        Ok(Rerun { past: self, files, tokenizer, dataset, validation, reporter: Reporter::nowhere() })
    }
}

impl Rerun<'_> {
    /// The session that the run's steps are taken in.
    fn session(&self) -> Session<'_> {
        Session::new(&self.past.resolved, &self.files, &self.past.directory, &self.reporter, &|| false)
    }

    /// The newest valid checkpoint at or before `step`.
    ///
    /// # Errors
    /// When the file system refuses, or the checkpoint was trained on other data.
    pub(super) fn checkpoint(&self, step: u64) -> Result<Option<Found>, TrainError> {
        let notice = |notice: String| tracing::warn!("{notice}");
        let found = checkpoint::newest(&self.past.directory.join("checkpoints"), step, notice)?;
        if let Some(found) = &found {
            let data = session::digests(&self.dataset, self.validation.as_ref());
            if let Some((name, then)) =
                found.about.identity.data.iter().find(|(name, then)| data.get(*name) != Some(then))
            {
                let now = data.get(name).map_or_else(|| "none".to_owned(), DataDigest::short);
                return Err(TrainError::ForeignCheckpoint {
                    path: found.path.clone(),
                    differences: format!("data {name}: {} → {now}", then.short()),
                    right: "pass the file that the run was trained on as --data NAME=FILE",
                });
            }
        }
        Ok(found)
    }

    /// The state that a checkpoint holds, or the initial one.
    ///
    /// # Errors
    /// When the checkpoint is not of this run's model.
    pub(super) fn state(&self, found: Option<&Found>) -> Result<State, TrainError> {
        let training = self.past.resolved.spec();
        let config = model_config(training, &self.tokenizer)?;
        let settings = state::settings(&training.settings.training);
        match found {
            None => State::new(config, training.seed, settings),
            Some(found) => {
                let layout = std::sync::Arc::new(codex_engine::Layout::of(&config));
                State::restore(config, found.read(&layout)?, settings)
            }
        }
    }

    /// Takes one step, and looks at the held-out records where the run did.
    ///
    /// # Errors
    /// As training does.
    pub(super) fn step(&self, state: &mut State) -> Result<LedgerRow, TrainError> {
        let stepped = self.session().step(state, &self.dataset)?;
        let Some(Stepped { row, .. }) = stepped else { return Err(TrainError::Interrupted) };
        if let Some(validation) = &self.validation {
            self.session().evaluate(state, validation)?;
        }
        Ok(row)
    }
}

/// Redo one step of a run, and show its records, their losses and the gradient, tensor by tensor.
///
/// It restores the newest checkpoint before the step, goes on to it, and compares every step with the run's ledger.
#[derive(Debug, clap::Args)]
pub struct ReplayStep {
    /// The run's directory.
    run: PathBuf,
    /// The step, counted from 1.
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    step: u64,
    /// A file of records that the run did not make itself.
    #[arg(long, value_name = "NAME=FILE", value_parser = named_file)]
    data: Vec<(String, PathBuf)>,
    /// Records and tensors that are shown, those with the highest numbers first.
    #[arg(long, default_value_t = 10)]
    show: usize,
    /// Print everything as JSON.
    #[arg(long)]
    json: bool,
}

/// One step, redone.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Replayed {
    step: u64,
    /// The checkpoint that was restored; none when it was the initial state.
    restored: Option<u64>,
    /// What the ledger says.
    recorded: Option<LedgerRow>,
    /// Whether all steps since came out as the ledger says, this one included; none where it has no row of the step.
    pub(super) reproduced: Option<bool>,
    loss: f64,
    grad_norm: Option<f64>,
    /// Records, the highest loss first.
    pub(super) records: Vec<ReplayedRecord>,
    /// The gradient's norm by tensor, the highest first; those that are not finite before all others.
    tensors: Vec<(String, Option<f64>)>,
}

/// One record of a step.
#[derive(Debug, Serialize)]
pub(super) struct ReplayedRecord {
    /// `name[number]`, counted from 1.
    pub(super) record: String,
    /// Its text.
    pub(super) text: String,
    /// Tokens that count.
    targets: usize,
    /// Mean cross-entropy of those, in nats; none where it is not finite.
    pub(super) loss: Option<f64>,
}

impl ReplayStep {
    pub(crate) fn run(self) -> Result<i32, CommandError> {
        let past = Past::open(&self.run)?;
        let replayed = replay(&past.rerun(&self.data)?, self.step)?;
        if self.json {
            let line = serde_json::to_string(&replayed).map_err(CommandError::failed)?;
            atomic_fs::say(&line).map_err(CommandError::failed)?;
        } else {
            self.show(&replayed).map_err(CommandError::failed)?;
        }
        Ok(if replayed.reproduced == Some(false) { exit::FAILED } else { exit::FINISHED })
    }

    fn show(&self, replayed: &Replayed) -> Result<(), atomic_fs::FileError> {
        let Replayed { step, restored, recorded, reproduced, loss, grad_norm, records, tensors } = replayed;
        let number = |number: &Option<f64>| number.map_or_else(|| "not finite".to_owned(), |x| format!("{x:.4}"));
        let from =
            restored.map_or_else(|| "the initial state".to_owned(), |step| format!("the checkpoint of step {step}"));
        atomic_fs::say(&format!(
            "step {step}, redone from {from}: loss {loss:.6}, gradient norm {}",
            number(grad_norm)
        ))?;
        atomic_fs::say(&match (reproduced, recorded) {
            (Some(true), _) => "every step since is, bit for bit, what the run recorded".to_owned(),
            (Some(false), Some(row)) => {
                format!("the run recorded otherwise: loss {}, gradient norm {}", row.loss, row.grad_norm)
            }
            (Some(false), None) => "a step before this one is not what the run recorded".to_owned(),
            (None, _) => "the run has no record of this step".to_owned(),
        })?;
        atomic_fs::say(&format!("\n{} records, the highest losses first:", records.len()))?;
        for ReplayedRecord { record, text, loss, .. } in records.iter().take(self.show) {
            atomic_fs::say(&format!("  {:>10}  {record}  {text}", number(loss)))?;
        }
        atomic_fs::say(&format!("\n{} tensors, the highest gradient norms first:", tensors.len()))?;
        for (name, norm) in tensors.iter().take(self.show) {
            atomic_fs::say(&format!("  {:>10}  {name}", number(norm)))?;
        }
        Ok(())
    }
}

/// Redoes a step.
pub(super) fn replay(rerun: &Rerun, step: u64) -> Result<Replayed, TrainError> {
    let total = epochs::executed(&rerun.past.resolved.spec().settings.training, rerun.dataset.records());
    if step > total {
        return Err(TrainError::Arguments(format!("step {step} is none of this run, which has {total}")));
    }
    let ledger = rerun.past.ledger()?;
    let found = rerun.checkpoint(step - 1)?;
    let mut state = rerun.state(found.as_ref())?;
    let mut agrees = true;
    while state.step < step - 1 {
        let row = rerun.step(&mut state)?;
        if let Some(recorded) = ledger.get(&row.step).filter(|recorded| **recorded != row) {
            agrees = false;
            tracing::warn!(step = row.step, ?recorded, redone = ?row, "a step is not what the run recorded");
        }
    }
    let StepData { addresses, batches, targets, .. } = rerun.session().data_of(state.step, &rerun.dataset);
    let mut records = Vec::new();
    for address in addresses.concat() {
        let packed = rerun.dataset.pack(&[address]);
        let loss = state.engine.loss(&packed)? / packed.targets.len().max(1) as f64;
        records.push(ReplayedRecord {
            record: rerun.dataset.describe(&[address]),
            text: rerun.dataset.text(address, &rerun.tokenizer).map_err(ModelError::from)?,
            targets: packed.targets.len(),
            loss: Some(loss).filter(|loss| loss.is_finite()),
        });
    }
    // What is not finite is the highest of all.
    let height = |number: Option<f64>| number.unwrap_or(f64::INFINITY);
    records.sort_by(|a, b| height(b.loss).total_cmp(&height(a.loss)));
    state.engine.clear_gradients();
    let mut loss = 0.0;
    for batch in &batches {
        loss += state.engine.accumulate(batch, targets)?;
    }
    let gradients = state.engine.gradients();
    let mut tensors: Vec<(String, Option<f64>)> = state
        .engine
        .layout()
        .tensors()
        .iter()
        .map(|tensor| {
            let squares = gradients[tensor.range.clone()].iter().map(|x| f64::from(*x) * f64::from(*x));
            (tensor.name.clone(), Some(squares.sum::<f64>().sqrt()).filter(|norm| norm.is_finite()))
        })
        .collect();
    tensors.sort_by(|a, b| height(b.1).total_cmp(&height(a.1)));
    drop(gradients);
    let grad_norm = state.engine.gradient_norm().ok();
    let recorded = ledger.get(&step).cloned();
    let reproduced = match &recorded {
        Some(row) => Some(agrees && loss.is_finite() && grad_norm.is_some() && rerun.step(&mut state)? == *row),
        None => (!agrees).then_some(false),
    };
    let restored = found.map(|found| found.checkpoint.step);
    Ok(Replayed { step, restored, recorded, reproduced, loss, grad_norm, records, tensors })
}
