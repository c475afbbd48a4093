//! The stage of an Evaluation, derived from its observation and its outcome. Pure.

use codex_crds::{ConditionType, Reason, TrainingRun};
use kube::ResourceExt;

use super::{
    gates::{Judged, judged},
    outcome::Outcome,
    view::View,
};
use crate::{
    conditions::is_true,
    work::{Active, Progress, WorkFailure},
};

/// The stage of an Evaluation.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Stage {
    /// The status already records the verdict. Run, Job and pods no longer matter.
    Done,
    /// The verdict is reached.
    Judged(Box<Judged>),
    /// The evaluation failed, now or earlier.
    Failed(WorkFailure),
    /// The spec is invalid; the sentence says what to change.
    Invalid(String),
    /// The run has no model to evaluate.
    Waiting(Waiting),
    /// The evaluation can still reach a verdict.
    Active(Active),
}

/// What an evaluation waits for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Waiting {
    /// The run does not exist.
    Run,
    /// The run is being deleted.
    RunDeleted,
    /// The run has not finished.
    Training,
    /// The run stalled, with this message. It can still succeed once its spec is corrected.
    StalledTraining(String),
}

impl Waiting {
    /// Returns what to wait for when `run` has no model.
    fn for_model(run: &TrainingRun) -> Self {
        let conditions = run.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        if !is_true(conditions, ConditionType::Stalled) {
            return Self::Training;
        }
        Self::StalledTraining(WorkFailure::recorded(conditions).message)
    }
}

impl Stage {
    pub(crate) fn of(view: &View<'_>, outcome: &Outcome) -> Self {
        let (status, spec) = (&view.status, view.spec());
        if status.completed_at.is_some() {
            return match status.verdict {
                Some(_) => Self::Done,
                None => Self::Failed(WorkFailure::recorded(&status.conditions)),
            };
        }
        if let Err(why) = view.work.config.as_ref().map(|_| ()).and(view.gates.as_ref().map(|_| ())) {
            return Self::Invalid(why.clone());
        }
        // `spec.suspend` also holds for an evaluation whose run has no model.
        let waits = |waiting| if spec.suspend { Self::Active(Active::Suspended) } else { Self::Waiting(waiting) };
        let Some(run) = &view.observed.run else {
            return waits(Waiting::Run);
        };
        let uid = run.uid().unwrap_or_default();
        if let Some(pinned) = status.training_run_uid.as_ref().filter(|pinned| **pinned != uid) {
            let why = format!(
                "TrainingRun {} was recreated (uid {uid}, formerly {pinned}), and this Evaluation belongs to the former one: \
                 create another Evaluation",
                spec.training_run
            );
            return Self::Failed(WorkFailure::new(Reason::Replaced, why));
        }
        if run.metadata.deletion_timestamp.is_some() {
            return waits(Waiting::RunDeleted);
        }
        let Some((_, model)) = view.trained() else {
            return waits(Waiting::for_model(run));
        };
        if let Some(failure) = &outcome.failure {
            return Self::Failed(failure.clone());
        }
        let claim = &run.spec.output.persistent_volume_claim.claim_name;
        let field = format!("spec.output.persistentVolumeClaim.claimName of TrainingRun {}", spec.training_run);
        let progress = Progress::of(&view.work, (&field, claim));
        // A complete result decides, however its pod ends. The promotion also names the image that produced it, so the
        // verdict waits until the image is known or the Job is complete.
        let image = view.work.worker.status().image_id.is_some() || matches!(progress, Progress::Complete(_));
        if let (Some(counted), Ok(gates), true) = (&outcome.counted, &view.gates, image) {
            return Self::Judged(Box::new(judged(gates, counted.clone(), model.digest)));
        }
        match progress {
            Progress::Active(active) => Self::Active(active),
            Progress::Failed(failure) => Self::Failed(failure),
            Progress::Complete(at) => {
                Active::without_result(&view.work, at, "the evaluator exited 0 without reporting its metrics")
                    .map_or_else(Self::Failed, Self::Active)
            }
        }
    }
}
