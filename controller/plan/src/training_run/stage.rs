//! The stage of a TrainingRun, derived from its observation and its outcome. Pure.

use codex_crds::{ModelStatus, TrainingRunPhase};

use super::{outcome::Outcome, view::View};
use crate::work::{Active, Progress, WorkFailure};

/// The stage of a TrainingRun.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Stage {
    /// The status already records the model. Job and pods no longer matter.
    Done(Box<ModelStatus>),
    /// The model is complete.
    Succeeded(Box<ModelStatus>),
    /// The run failed, now or earlier.
    Failed(WorkFailure),
    /// The spec is invalid; the sentence says what to change.
    Invalid(String),
    /// The run can still succeed.
    Active(Active),
}

impl Stage {
    pub(crate) fn of(view: &View<'_>, outcome: &Outcome) -> Self {
        let status = &view.status;
        if status.completed_at.is_some() {
            match (status.phase, &status.model) {
                (Some(TrainingRunPhase::Succeeded), Some(model)) => return Self::Done(Box::new(model.clone())),
                (Some(TrainingRunPhase::Failed), _) => return Self::Failed(WorkFailure::recorded(&status.conditions)),
                _ => {}
            }
        }
        if let Err(why) = &view.work.config {
            return Self::Invalid(why.clone());
        }
        if let Some(failure) = &outcome.failure {
            return Self::Failed(failure.clone());
        }
        let claim = &view.spec().output.persistent_volume_claim.claim_name;
        match Progress::of(&view.work, ("spec.output.persistentVolumeClaim.claimName", claim)) {
            Progress::Active(active) => Self::Active(active),
            Progress::Failed(failure) => Self::Failed(failure),
            Progress::Complete(at) => match &outcome.model {
                Some(model) => Self::Succeeded(Box::new(model.clone())),
                None => Active::without_result(
                    &view.work,
                    at,
                    "the trainer exited 0 without reporting its model: the files on the volume are unverified",
                )
                .map_or_else(Self::Failed, Self::Active),
            },
        }
    }
}
