//! The stage of a TrainingRun, derived from its observation and its outcome. Pure.

use codex_crds::ModelStatus;

use super::{
    base::{Base, RUN_FIELD},
    outcome::Outcome,
    own_template,
    reproduction::{self, Reproduction},
    view::View,
};
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
    /// The run that it reproduces could not be trained again under the recorded conditions, now or earlier; the sentence says why.
    Unreproducible(String),
    /// The spec is invalid; the sentence says what to change.
    Invalid(String),
    /// The run that the field names has no model. There is no Job.
    Waiting { field: &'static str, run: String, waiting: WaitingForModel },
    /// The recorded result was discarded or emptied, and no report can replace it; the sentence says what to do.
    Discarded(WorkFailure),
    /// The run can still succeed.
    Active(Active),
}

impl Stage {
    /// Returns the stage of a run whose Job cannot be created with this base, or because of the run that it reproduces.
    fn before_job(view: &View<'_>, base: Option<&Base<'_>>) -> Option<Self> {
        let waits = |field, (run, waiting): (&str, &WaitingForModel)| Self::Waiting {
            field,
            run: run.to_owned(),
            waiting: waiting.clone(),
        };
        if let Some(base) = base
            && let Some(stage) = match base.waiting() {
                Some(waiting) => Some(waits(RUN_FIELD, waiting)),
                None => base.unusable().map(Self::Failed),
            }
        {
            return Some(stage);
        }
        let reproduction = view.reproduction.as_ref()?;
        match reproduction.waiting() {
            Some(waiting) => Some(waits(reproduction::FIELD, waiting)),
            None => reproduction.impossible(view.work.config_digest()).map(Self::Unreproducible),
        }
    }

    /// Returns the stage after a failure. A run that cannot be reproduced has not failed.
    fn failed(view: &View<'_>, failure: &WorkFailure) -> Self {
        let started = view.work.worker.has_started();
        let excused = view.reproduction.as_ref().and_then(|_| Reproduction::excused(failure, started));
        excused.map_or_else(|| Self::Failed(failure.clone()), Self::Unreproducible)
    }

    pub(crate) fn of(view: &View<'_>, outcome: &Outcome) -> Self {
        let status = &view.status;
        if status.completed_at.is_some() {
            let unreproducible = status.reproduction.as_ref().and_then(|it| it.unreproducible.clone());
            return match (&status.model, unreproducible) {
                (Some(model), _) => Self::Done(Box::new(model.clone())),
                (None, Some(why)) => Self::Unreproducible(why),
                (None, None) => Self::Failed(WorkFailure::recorded(&status.conditions)),
            };
        }
        if let Some(stuck) = view.work.restored(view.discarded) {
            return Self::Discarded(stuck);
        }
        if let Some(missing) = own_template::missing(view) {
            return Self::Active(Active::MissingReferences(missing));
        }
        let base = match (&view.work.config, &view.base, &view.image) {
            (Err(why), ..) | (_, Err(why), _) | (.., Err(why)) => return Self::Invalid(why.clone()),
            (Ok(_), Ok(base), Ok(_)) => base.as_ref(),
        };
        if let Some(why) =
            view.reproduction.as_ref().filter(|_| view.work.job.is_none()).and_then(Reproduction::invalid)
        {
            return Self::Invalid(why);
        }
        if let Some(failure) = &outcome.failure {
            return Self::failed(view, failure);
        }
        if let Some(why) = view.deviation() {
            return Self::Unreproducible(why);
        }
        let output = &view.spec().output.persistent_volume_claim.claim_name;
        let mut claims = vec![("spec.output.persistentVolumeClaim.claimName".to_owned(), output.as_str())];
        claims.extend(base.and_then(Base::claim));
        match Progress::of(&view.work, &claims) {
            Progress::Active(Active::Pending(_) | Active::MissingReferences(_))
                if view.work.job.is_none()
                    && let Some(stage) = Self::before_job(view, base) =>
            {
                stage
            }
            Progress::Active(active) => Self::Active(active),
            Progress::Failed(failure) => Self::failed(view, &failure),
            Progress::Complete(at) => match &outcome.model {
                Some(_) if view.reproduction.is_some() && view.computation().is_none() => {
                    let why = "the trainer did not report which program and instructions computed its model";
                    Self::Unreproducible(why.to_owned())
                }
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
