//! The stage of a TrainingRun, derived from its observation and its outcome. Pure.

use codex_crds::ModelStatus;

use super::{base::Base, outcome::Outcome, view::View};
use crate::work::{Active, Progress, WaitingForModel, WorkFailure};

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
    /// The run that is the base has no model. There is no Job.
    Waiting { run: String, waiting: WaitingForModel },
    /// The recorded status was discarded, and no report can replace it; the sentence says what to do.
    Discarded(WorkFailure),
    /// The run can still succeed.
    Active(Active),
}

impl Stage {
    /// Returns the stage of a run whose Job cannot be created with this base.
    fn before_job(base: &Base<'_>) -> Option<Self> {
        match base.waiting() {
            Some((run, waiting)) => Some(Self::Waiting { run: run.to_owned(), waiting: waiting.clone() }),
            None => base.unusable().map(Self::Failed),
        }
    }

    pub(crate) fn of(view: &View<'_>, outcome: &Outcome) -> Self {
        let status = &view.status;
        if status.completed_at.is_some() {
            return match &status.model {
                Some(model) => Self::Done(Box::new(model.clone())),
                None => Self::Failed(WorkFailure::recorded(&status.conditions)),
            };
        }
        if let Some(stuck) = view.work.restored(view.discarded) {
            return Self::Discarded(stuck);
        }
        let base = match (&view.work.config, &view.base, &view.image) {
            (Err(why), ..) | (_, Err(why), _) | (.., Err(why)) => return Self::Invalid(why.clone()),
            (Ok(_), Ok(base), Ok(_)) => base.as_ref(),
        };
        if let Some(failure) = &outcome.failure {
            return Self::Failed(failure.clone());
        }
        let output = &view.spec().output.persistent_volume_claim.claim_name;
        let mut claims = vec![("spec.output.persistentVolumeClaim.claimName".to_owned(), output.as_str())];
        claims.extend(base.and_then(Base::claim));
        match Progress::of(&view.work, &claims) {
            Progress::Active(Active::Pending(_) | Active::MissingReferences(_))
                if let Some(base) = base.filter(|_| view.work.job.is_none())
                    && let Some(stage) = Self::before_job(base) =>
            {
                stage
            }
            Progress::Active(active) => Self::Active(active),
            Progress::Failed(failure) => Self::Failed(failure),
            Progress::Complete(at) => match &outcome.model {
                Some(model) => Self::Succeeded(Box::new(model.clone())),
                None => view.work.unreported(view.discarded, at).map_or_else(
                    || {
                        Active::without_result(
                            &view.work,
                            at,
                            "the trainer exited 0 without reporting its model: the files on the volume are unverified",
                        )
                        .map_or_else(Self::Failed, Self::Active)
                    },
                    Self::Discarded,
                ),
            },
        }
    }
}
