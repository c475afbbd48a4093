//! Where an evaluation stands, out of what is observed. Pure.

use codex_configs::{Data, Evaluation as Configured, Resolved, compose_evaluation};
use codex_crds::{ConditionType, DataStatus, EvaluationSpec, EvaluationStatus, ModelStatus, Reason, TrainingRun};
use codex_provenance::ConfigDigest;
use codex_reports::{EvaluationState, Report, State};
use jiff::Timestamp;
use kube::ResourceExt;

use super::{
    ObservedEvaluation,
    outcome::{self, Counted, Judged},
};
use crate::{
    conditions::is_true,
    data,
    job::{self, Config},
    metadata::Owner,
    refusal::{Granted, Refusal},
    throttle::last_words,
    worker::{Doing, Worker},
};

/// The observation, made handy.
pub(crate) struct View<'a> {
    pub(crate) observed: &'a ObservedEvaluation,
    pub(crate) status: EvaluationStatus,
    pub(crate) worker: Worker<'a>,
    /// The configuration, or the sentence that says what is wrong with it.
    pub(crate) config: Result<Config, String>,
    /// The gates, or the sentence that says what is wrong with one.
    pub(crate) gates: Result<Vec<codex_verdict::Gate>, String>,
    /// What the evaluator counted, as far as it is known and can be.
    pub(crate) counted: Option<Result<Counted, Refusal>>,
}

/// Where an evaluation stands.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Stage {
    /// Its verdict was reached before: the status holds it, whatever became of run, Job and pods.
    Done,
    /// Its verdict is reached.
    Judged(Box<Judged>),
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

/// What an evaluation waits for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Waiting {
    /// The run, which does not exist.
    Run,
    /// The end of the run, which is being deleted: nothing is done for it any more.
    RunEnding,
    /// The run's model.
    Training,
    /// A run that can still come right, and has failed as it is.
    FailedTraining(String),
    /// Things that it refers to, each in a sentence.
    References(Vec<String>),
    /// A pod; perhaps with what stands in its way.
    Pod(Option<String>),
    /// The report of a pod that ended well, until then.
    LastReport(Timestamp),
}

impl Waiting {
    /// For the model of a run that has none.
    fn untrained(run: &TrainingRun) -> Self {
        let conditions = run.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        if !is_true(conditions, ConditionType::Stalled) {
            return Self::Training;
        }
        Self::FailedTraining(Refusal::recorded(conditions).message)
    }
}

impl<'a> View<'a> {
    pub(crate) fn of(observed: &'a ObservedEvaluation, now: Timestamp) -> Self {
        let object = &observed.object;
        let status = object.status.clone().unwrap_or_default();
        let held = status.work.clone();
        let owner = Owner::evaluation(object);
        let worker = Worker::of(owner, observed.job.as_ref(), &observed.pods, &observed.reports, held, now);
        let config = job::config(compose(&object.spec), observed.job.as_ref(), None, |evaluation| &evaluation.data);
        let gates = outcome::gates(&object.spec.gates);
        let mut view = Self { observed, status, worker, config, gates, counted: None };
        view.counted = outcome::counted(&view);
        view
    }

    pub(crate) fn spec(&self) -> &'a EvaluationSpec {
        &self.observed.object.spec
    }

    /// What evaluators said, the newest first.
    pub(crate) fn states(&self) -> impl Iterator<Item = (&Report, &EvaluationState)> {
        self.worker.said.iter().rev().filter_map(|report| match &report.state {
            State::Evaluation(state) => Some((report, state)),
            State::Training(_) | State::Serving(_) => None,
        })
    }

    /// The run and its finished model.
    pub(crate) fn trained(&self) -> Option<(&'a TrainingRun, &'a ModelStatus)> {
        let run = self.observed.run.as_ref()?;
        let status = run.status.as_ref()?;
        let model = status.model.as_ref()?;
        is_true(&status.conditions, ConditionType::Trained).then_some((run, model))
    }

    /// What the spec grants its pods.
    pub(crate) fn granted(&self) -> Granted {
        Granted { retries: self.spec().retries, deadline: self.spec().active_deadline_seconds }
    }

    /// The data files that the evaluator is to read.
    pub(crate) fn data(&self) -> &[Data] {
        self.config.as_ref().map(|config| config.data.as_slice()).unwrap_or_default()
    }

    /// What the evaluator says that it read, as a status holds it: files of the spec, and of the preset.
    pub(crate) fn read(&self, state: &EvaluationState) -> Vec<DataStatus> {
        let spec = self.spec();
        let preset = codex_configs::benchmark(&spec.preset).iter().map(|file| file.name);
        let named: Vec<_> = spec.data.iter().map(|item| item.name.as_str()).chain(preset).collect();
        data::digests(&state.data, &named)
    }

    /// The digest of the configuration that counts.
    pub(crate) fn config_digest(&self) -> Option<ConfigDigest> {
        self.config.as_ref().ok().map(|config| config.digest)
    }
}

fn compose(spec: &EvaluationSpec) -> Result<Resolved<Configured>, String> {
    let data = data::configured(&spec.data)?;
    let resolved = compose_evaluation(&spec.preset, &spec.overrides, spec.seed, data).map_err(|why| why.to_string())?;
    // A gate that nothing will measure is known before anything runs.
    let mut gates = spec.gates.iter().enumerate();
    match gates.find_map(|(index, gate)| Some((index, resolved.spec().unmeasurable(&gate.metric)?))) {
        Some((index, why)) => Err(format!("spec.gates[{index}].metric: {why}")),
        None => Ok(resolved),
    }
}

impl Stage {
    pub(crate) fn of(view: &View<'_>) -> Self {
        let (status, spec) = (&view.status, view.spec());
        if status.completed_at.is_some() {
            return match status.verdict {
                Some(_) => Self::Done,
                None => Self::Failed(Refusal::recorded(&status.conditions)),
            };
        }
        if let Err(why) = view.config.as_ref().map(|_| ()).and(view.gates.as_ref().map(|_| ())) {
            return Self::Invalid(why.clone());
        }
        // What waits for a run can stand still as well as what works for it.
        let waits = |waiting| if spec.suspend { Self::Suspended } else { Self::Waiting(waiting) };
        let Some(run) = &view.observed.run else {
            return waits(Waiting::Run);
        };
        let uid = run.uid().unwrap_or_default();
        if let Some(pinned) = status.training_run_uid.as_ref().filter(|pinned| **pinned != uid) {
            let why = format!(
                "TrainingRun {} was created again (uid {uid}, formerly {pinned}), and this evaluation is about the former \
                 one: create another Evaluation",
                spec.training_run
            );
            return Self::Failed(Refusal::new(Reason::Replaced, why));
        }
        if run.metadata.deletion_timestamp.is_some() {
            return waits(Waiting::RunEnding);
        }
        let Some((_, model)) = view.trained() else {
            return waits(Waiting::untrained(run));
        };
        if let Some(refusal) = outcome::fault(view, model.digest) {
            return Self::Failed(refusal);
        }
        // What was counted decides, however its pod ends; but what counted it has to be known, too, because the promotion
        // names it.
        let doing = view.worker.doing();
        let image = view.worker.tally().image_id.is_some() || matches!(doing, Doing::Complete(_));
        if let (Some(Ok(counted)), Ok(gates), true) = (&view.counted, &view.gates, image) {
            return Self::Judged(Box::new(outcome::judged(gates, counted.clone(), model.digest)));
        }
        match doing {
            Doing::Nothing | Doing::Waiting(_) | Doing::Working if spec.suspend => Self::Suspended,
            Doing::Nothing => Self::without_job(view, run),
            Doing::Waiting(obstacle) => Self::Waiting(Waiting::Pod(obstacle)),
            Doing::Working => Self::Running,
            Doing::Complete(at) => Self::complete(view, at),
            Doing::Failed(ended) => {
                Self::Failed(Refusal::of_job(&ended, &view.worker, view.granted(), &status.conditions))
            }
        }
    }

    fn without_job(view: &View<'_>, run: &TrainingRun) -> Self {
        let spec = view.spec();
        if let Some(refusal) = Refusal::spent(view.worker.clock, spec.active_deadline_seconds) {
            return Self::Failed(refusal);
        }
        let claim = &run.spec.output.persistent_volume_claim.claim_name;
        let field = format!("spec.output.persistentVolumeClaim.claimName of TrainingRun {}", spec.training_run);
        let missing = data::missing(&spec.data, Some((&field, claim)), &view.observed.references);
        if missing.is_empty() { Self::Waiting(Waiting::Pod(None)) } else { Self::Waiting(Waiting::References(missing)) }
    }

    fn complete(view: &View<'_>, at: Option<Timestamp>) -> Self {
        match last_words(at, view.worker.now) {
            Some(until) => Self::Waiting(Waiting::LastReport(until)),
            None => Self::Failed(Refusal::new(
                Reason::PodFailed,
                "the evaluator ended well and never reported its numbers: there is nothing to judge",
            )),
        }
    }
}
