//! Where a run stands, out of what is observed. Pure.

use codex_configs::{Data, Resolved, Training, compose_training};
use codex_crds::{DataStatus, ModelStatus, Reason, TrainingRunPhase, TrainingRunSpec, TrainingRunStatus};
use codex_provenance::ConfigDigest;
use codex_reports::{Report, State, TrainingState};
use jiff::Timestamp;

use super::{ObservedTrainingRun, outcome};
use crate::{
    data,
    job::{self, Config},
    metadata::Owner,
    refusal::{Granted, Refusal},
    throttle::last_words,
    worker::{Doing, Worker},
};

/// The observation, made handy.
pub(crate) struct View<'a> {
    pub(crate) observed: &'a ObservedTrainingRun,
    pub(crate) status: TrainingRunStatus,
    pub(crate) worker: Worker<'a>,
    /// The configuration, or the sentence that says what is wrong with it.
    pub(crate) config: Result<Config, String>,
    /// What the trainer made, as far as it is known and can be.
    pub(crate) model: Option<Result<ModelStatus, Refusal>>,
}

/// Where a run stands.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Stage {
    /// It succeeded before: the status holds its model, whatever became of Job and pods.
    Done(Box<ModelStatus>),
    /// Its model is there.
    Succeeded(Box<ModelStatus>),
    /// It failed, now or before.
    Failed(Refusal),
    /// It cannot begin as it is written.
    Invalid(String),
    /// A person wants it to stand still.
    Suspended,
    /// Something has to come first.
    Waiting(Waiting),
    /// A pod works.
    Running,
}

/// What a run waits for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Waiting {
    /// Things that it refers to, each in a sentence.
    References(Vec<String>),
    /// A pod; perhaps with what stands in its way.
    Pod(Option<String>),
    /// The report of a pod that ended well, until then.
    LastReport(Timestamp),
}

impl<'a> View<'a> {
    pub(crate) fn of(observed: &'a ObservedTrainingRun, now: Timestamp) -> Self {
        let object = &observed.object;
        let status = object.status.clone().unwrap_or_default();
        let held = status.work.clone();
        let owner = Owner::run(object);
        let worker = Worker::of(owner, observed.job.as_ref(), &observed.pods, &observed.reports, held, now);
        let begun = status.config_digest.filter(|_| worker.begun());
        let config = job::config(compose(&object.spec), observed.job.as_ref(), begun, |training| &training.data);
        let mut view = Self { observed, status, worker, config, model: None };
        view.model = outcome::model(&view);
        view
    }

    pub(crate) fn spec(&self) -> &'a TrainingRunSpec {
        &self.observed.object.spec
    }

    /// What trainers said, the newest first.
    pub(crate) fn states(&self) -> impl Iterator<Item = (&Report, &TrainingState)> {
        self.worker.said.iter().rev().filter_map(|report| match &report.state {
            State::Training(state) => Some((report, state)),
            State::Evaluation(_) | State::Serving(_) => None,
        })
    }

    /// What the spec grants its pods.
    pub(crate) fn granted(&self) -> Granted {
        Granted { retries: self.spec().retries, deadline: self.spec().active_deadline_seconds }
    }

    /// The data files that the trainer is to read.
    pub(crate) fn data(&self) -> &[Data] {
        self.config.as_ref().map(|config| config.data.as_slice()).unwrap_or_default()
    }

    /// What the trainer says that it read, as a status holds it.
    pub(crate) fn read(&self, state: &TrainingState) -> Vec<DataStatus> {
        let named: Vec<_> = self.spec().data.iter().map(|item| item.name.as_str()).collect();
        data::digests(&state.data, &named)
    }

    /// The digest of the configuration that counts.
    pub(crate) fn config_digest(&self, stage: &Stage) -> Option<ConfigDigest> {
        let composed = self.config.as_ref().ok().map(|config| config.digest);
        match stage {
            Stage::Done(_) => self.status.config_digest,
            _ => composed.or(self.status.config_digest),
        }
    }
}

fn compose(spec: &TrainingRunSpec) -> Result<Resolved<Training>, String> {
    let data = data::configured(&spec.data)?;
    compose_training(&spec.template, &spec.overrides, spec.config.as_deref(), spec.seed, data)
        .map_err(|why| why.to_string())
}

impl Stage {
    pub(crate) fn of(view: &View<'_>) -> Self {
        let (status, spec) = (&view.status, view.spec());
        if status.completed_at.is_some() {
            match (status.phase, &status.model) {
                (Some(TrainingRunPhase::Succeeded), Some(model)) => return Self::Done(Box::new(model.clone())),
                (Some(TrainingRunPhase::Failed), _) => return Self::Failed(Refusal::recorded(&status.conditions)),
                _ => {}
            }
        }
        if let Err(why) = &view.config {
            return Self::Invalid(why.clone());
        }
        if let Some(refusal) = outcome::fault(view) {
            return Self::Failed(refusal);
        }
        match view.worker.doing() {
            Doing::Nothing | Doing::Waiting(_) | Doing::Working if spec.suspend => Self::Suspended,
            Doing::Nothing => Self::without_job(view),
            Doing::Waiting(obstacle) => Self::Waiting(Waiting::Pod(obstacle)),
            Doing::Working => Self::Running,
            Doing::Complete(at) => Self::complete(view, at),
            Doing::Failed(ended) => {
                Self::Failed(Refusal::of_job(&ended, &view.worker, view.granted(), &status.conditions))
            }
        }
    }

    fn without_job(view: &View<'_>) -> Self {
        let spec = view.spec();
        if let Some(refusal) = Refusal::spent(view.worker.clock, spec.active_deadline_seconds) {
            return Self::Failed(refusal);
        }
        let claim = &spec.output.persistent_volume_claim.claim_name;
        let output = ("spec.output.persistentVolumeClaim.claimName", claim.as_str());
        let missing = data::missing(&spec.data, Some(output), &view.observed.references);
        if missing.is_empty() { Self::Waiting(Waiting::Pod(None)) } else { Self::Waiting(Waiting::References(missing)) }
    }

    fn complete(view: &View<'_>, at: Option<Timestamp>) -> Self {
        match &view.model {
            Some(Ok(model)) => Self::Succeeded(Box::new(model.clone())),
            Some(Err(refusal)) => Self::Failed(refusal.clone()),
            None => match last_words(at, view.worker.now) {
                Some(until) => Self::Waiting(Waiting::LastReport(until)),
                None => Self::Failed(Refusal::new(
                    Reason::PodFailed,
                    "the trainer ended well and never reported its model: nothing vouches for what lies on the volume",
                )),
            },
        }
    }
}
