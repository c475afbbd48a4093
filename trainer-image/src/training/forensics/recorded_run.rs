//! A run read from its directory, with what it recorded, and the means to take its steps again. Reads files.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use codex_configs::{Data, Phase, Randomness, Resolved, Training};
use codex_provenance::DataDigest;
use codex_reports::TrainingState;

use crate::{
    atomic_fs,
    reporting::Reporter,
    text::Tokenizer,
    training::{
        Base, ResumeError, Session, TrainError,
        base::TrainedModel,
        checkpoint::{ValidCheckpoint, newest},
        data::{Caches, Dataset, Places, ValidationSet},
        privacy::Mechanism,
        records::{Artifacts, LEDGER, LedgerRow, STATES, StateRow, read_rows, read_states},
        run::{CONFIG, Evaluation, Keep, Rollouts, StepResult, data_digests},
        state::{State, engine_settings},
    },
};

/// A finished or interrupted run, read from its directory.
#[derive(Debug)]
pub(crate) struct RecordedRun {
    /// Directory of the run.
    pub(crate) directory: PathBuf,
    /// Configuration of the run.
    pub(crate) resolved: Resolved<Training>,
}

/// A run with its data, whose steps can be taken again.
pub(crate) struct Rerun<'a> {
    pub(super) run: &'a RecordedRun,
    files: Vec<(String, PathBuf)>,
    base: Option<Base>,
    model: TrainedModel,
    pub(super) tokenizer: Tokenizer,
    pub(super) dataset: Dataset,
    /// Validation records, if the run evaluated.
    validation: Option<ValidationSet>,
    reporter: Reporter<TrainingState>,
}

impl RecordedRun {
    /// Opens a run and reads its configuration.
    ///
    /// # Errors
    /// When the directory does not hold a run.
    pub(crate) fn open(directory: &Path) -> Result<Self, TrainError> {
        let config = directory.join("artifacts").join(CONFIG);
        if !config.exists() {
            return Err(TrainError::Arguments(format!(
                "{} does not hold a run: artifacts/{CONFIG} does not exist there; pass the --output directory of a training",
                directory.display()
            )));
        }
        Ok(Self { directory: directory.to_owned(), resolved: Resolved::from_yaml(&atomic_fs::read(&config)?)? })
    }

    /// Reads the ledger of the run by step.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn ledger(&self) -> Result<BTreeMap<u64, LedgerRow>, TrainError> {
        let rows = read_rows::<LedgerRow>(&self.directory.join("artifacts").join(LEDGER))?;
        Ok(rows.into_iter().map(|row| (row.step, row)).collect())
    }

    /// Reads the recorded states of the run by step.
    ///
    /// # Errors
    /// When they cannot be read, or the chain is broken.
    pub(crate) fn states(&self) -> Result<BTreeMap<u64, StateRow>, TrainError> {
        let rows = read_states(&self.directory.join("artifacts").join(STATES))?;
        Ok(rows.into_iter().map(|row| (row.step, row)).collect())
    }

    /// Reads the data of the run; `files` has the files that are not synthetic.
    ///
    /// # Errors
    /// When a file is missing, or has another digest than in the run.
    pub(crate) fn rerun(&self, files: &[(String, PathBuf)]) -> Result<Rerun<'_>, TrainError> {
        let training = self.resolved.spec();
        let own = |data: &&Data| data.synthetic.is_none() && !files.iter().any(|(name, _)| *name == data.name);
        if let Some(Data { name, .. }) = training.data.iter().find(own) {
            return Err(TrainError::Arguments(format!(
                "the run in {} used a file as data {name}: pass it as --data {name}=FILE",
                self.directory.display()
            )));
        }
        let base = Artifacts::base(&self.directory)?;
        let base = base.map(|base| Base::open(&base.source, Some(base.digest))).transpose()?;
        let names: Vec<&str> = training.data.iter().map(|data| data.name.as_str()).collect();
        // Files for the other run of a comparison are ignored.
        let files: Vec<_> = files.iter().filter(|(name, _)| names.contains(&name.as_str())).cloned().collect();
        let reporter = Reporter::nowhere();
        let session = Session {
            base: base.as_ref(),
            ..Session::new(&self.resolved, &files, &self.directory, &reporter, &|| false)
        };
        let (model, tokenizer) = session.model()?;
        let encoder = session.encoder(&model, &tokenizer);
        let places = Places { synthetic: None, caches: Caches::of_run(&self.directory, false) };
        let mut dataset = Dataset::read(training, &files, &places, encoder, &|| false, |_| ())?;
        let mut validation = ValidationSet::read(training, &files, &dataset, encoder, &|| false, |_| ())?;
        session.reference(&model, &mut dataset, validation.as_mut(), Keep::No)?;
        Ok(Rerun { run: self, files, base, model, tokenizer, dataset, validation, reporter })
    }
}

impl Rerun<'_> {
    /// Returns a session for taking the steps of the run.
    pub(super) fn session(&self) -> Session<'_> {
        let base = self.base.as_ref();
        Session {
            base,
            ..Session::new(&self.run.resolved, &self.files, &self.run.directory, &self.reporter, &|| false)
        }
    }

    /// Returns the newest valid checkpoint at or before `step`.
    ///
    /// # Errors
    /// When a file operation fails, or the checkpoint was trained on other data.
    pub(crate) fn checkpoint(&self, step: u64) -> Result<Option<ValidCheckpoint>, TrainError> {
        let notice = |notice: String| tracing::warn!("{notice}");
        let found = newest(&self.run.directory.join("checkpoints"), step, notice)?;
        if let Some(found) = &found {
            let data = data_digests(&self.dataset, self.validation.as_ref());
            if let Some((name, then)) =
                found.info.identity.data.iter().find(|(name, then)| data.get(*name) != Some(then))
            {
                let now = data.get(name).map_or_else(|| "none".to_owned(), DataDigest::short);
                return Err(ResumeError::ForeignCheckpoint {
                    path: found.path.clone(),
                    differences: format!("data {name}: {} → {now}", then.short()),
                    fix: "pass the training data of the run as --data NAME=FILE",
                }
                .into());
            }
        }
        Ok(found)
    }

    /// Restores the state of a checkpoint, or creates the initial one. A pending evaluation is completed.
    ///
    /// # Errors
    /// When the checkpoint does not match the model of the run.
    pub(crate) fn state(&self, found: Option<&ValidCheckpoint>) -> Result<State, TrainError> {
        let training = self.run.resolved.spec();
        let settings = engine_settings(&training.settings.training);
        let read = |layout: &_| Ok(found.map(|found| found.read(layout)).transpose()?);
        let mut state = self.model.state(self.base.as_ref(), training.seed, settings, read)?;
        state.begin_curriculum(&training.settings.curriculum.phases);
        state.begin_traces(&training.settings, training.seed);
        let optimization = &training.settings.training;
        if state.step == 0 && optimization.private().is_some_and(|privacy| privacy.randomness == Randomness::Secret) {
            return Err(TrainError::Arguments(
                "no checkpoint before this step is left, and only checkpoints hold the key that a private run draws from: name a \
                 later step"
                    .to_owned(),
            ));
        }
        let mechanism = Mechanism::of(optimization, self.dataset.records())?;
        state.begin_optimization(optimization, mechanism, training.seed)?;
        if let (true, Some(evaluation)) = (state.evaluation_pending, self.evaluation()) {
            self.session().evaluate(&mut state, evaluation)?;
        }
        Ok(state)
    }

    /// Returns what rollouts need, if the run learns from rewards.
    ///
    /// # Errors
    /// As for training.
    pub(super) fn rollouts(&self) -> Result<Option<Rollouts<'_>>, TrainError> {
        self.session().rollouts(&self.model, &self.tokenizer, self.dataset.reward())
    }

    /// Returns what evaluations need, without samples unless a phase of the curriculum is measured by them.
    fn evaluation(&self) -> Option<Evaluation<'_>> {
        let validation = self.validation.as_ref()?;
        let phases = &self.run.resolved.spec().settings.curriculum.phases;
        let tokenizer = phases.iter().any(Phase::is_sampled).then_some(&self.tokenizer);
        Some(Evaluation { validation, model: &self.model, tokenizer })
    }

    /// Takes one step, evaluates where the run did, and begins the next phase of a curriculum where the run did.
    ///
    /// # Errors
    /// As for training.
    pub(crate) fn step(&self, state: &mut State) -> Result<LedgerRow, TrainError> {
        let result = self.session().step(state, &self.dataset, self.rollouts()?.as_ref())?;
        let Some(StepResult { row, .. }) = result else { return Err(TrainError::Interrupted) };
        match self.evaluation() {
            Some(evaluation) => drop(self.session().evaluate(state, evaluation)?),
            None => self.session().advance(state),
        }
        Ok(row)
    }
}
