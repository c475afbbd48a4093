//! The stage of an Evaluation, derived from its observation and its outcome. Pure.

use codex_crds::Reason;
use kube::ResourceExt;

use super::{
    gates::{Judged, judged, judged_again},
    outcome::Outcome,
    reads,
    reference::{self, NoReference},
    subject::{Model, Subject},
    view::View,
};
use crate::work::{Active, Progress, WaitingForModel, WorkFailure};

/// The stage of an Evaluation.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Stage {
    /// The status already records the result. Run, Job and pods no longer matter. The verdict is computed again.
    Done(Box<Judged>),
    /// The verdict is reached.
    Judged(Box<Judged>),
    /// The verdict is reached, and the read of the problems cannot be counted; the sentence says why.
    Uncounted(String),
    /// The evaluation failed, now or earlier.
    Failed(WorkFailure),
    /// The spec is invalid; the sentence says what to change.
    Invalid(String),
    /// No run is due yet; the sentence says when the first one is.
    Scheduled(String),
    /// The run has no model to evaluate.
    Waiting { run: String, waiting: WaitingForModel },
    /// An Evaluation that a gate compares with has no result, or none to compare with.
    WithoutReference(NoReference),
    /// The recorded status was discarded, and no report can replace it; the sentence says what to do.
    Discarded(WorkFailure),
    /// The evaluation can still reach a verdict.
    Active(Active),
}

impl Stage {
    pub(crate) fn of(view: &View<'_>, outcome: &Outcome) -> Self {
        let status = &view.status;
        if status.completed_at.is_some() {
            let gates = view.gates.as_deref().unwrap_or_default();
            return match judged_again(status, gates) {
                Some(judged) => Self::Done(Box::new(judged)),
                None => Self::Failed(WorkFailure::recorded(&status.conditions)),
            };
        }
        let subject = match (&view.work.config, &view.gates, &view.subject, &view.image) {
            (Err(why), ..) | (_, Err(why), ..) | (_, _, Err(why), _) | (.., Err(why)) => {
                return Self::Invalid(why.clone());
            }
            (Ok(_), Ok(_), Ok(subject), Ok(_)) => *subject,
        };
        if let Some(waits) = &view.turn.waits {
            return Self::Scheduled(waits.clone());
        }
        if let Some(stuck) = view.work.restored(view.discarded) {
            return Self::Discarded(stuck);
        }
        let model = match Self::before_model(view, subject) {
            Ok(model) => model,
            Err(stage) => return stage,
        };
        let references = match &view.references {
            Ok(references) => references,
            Err(_) if view.spec().suspend => return Self::Active(Active::Suspended),
            Err(why) => return Self::WithoutReference(why.clone()),
        };
        if let Some(failure) = &outcome.failure {
            return Self::Failed(failure.clone());
        }
        let claims = [model.claims(), reference::claims(view.observed, references)].concat();
        let progress = Progress::of(&view.work, &claims);
        // A complete result decides once its pod has ended, and if the pod was killed, too, when its termination message
        // confirms the result. The promotion also names the image that produced it, so the verdict waits until the image is
        // known or the Job is complete.
        let image = view.work.worker.status().image_id.is_some() || matches!(progress, Progress::Complete(_));
        if let (Some((counted, ending)), Ok(gates), true) = (&outcome.counted, &view.gates, image)
            && let Some(evidence) = view.evidence(ending)
        {
            return match reads::read(view, counted) {
                Ok(read) => {
                    let judged = judged(gates, counted.clone(), model.expected(), evidence);
                    Self::Judged(Box::new(Judged { read, ..judged }))
                }
                Err(why) => Self::Uncounted(why),
            };
        }
        match progress {
            Progress::Active(active) => Self::Active(active),
            Progress::Failed(failure) => Self::Failed(failure),
            Progress::Complete(at) => view.work.unreported(view.discarded, at).map_or_else(
                || {
                    Active::without_result(&view.work, at, "the evaluator exited 0 without reporting its metrics")
                        .map_or_else(Self::Failed, Self::Active)
                },
                Self::Discarded,
            ),
        }
    }

    /// Whether the next run of a schedule may replace this one. A run whose result is reported is judged first: its measurements are
    /// recorded, so that its read of the problems has to be counted.
    pub(crate) fn gives_way(&self, outcome: &Outcome) -> bool {
        // A pod that exited 0 reports soon, or its run fails.
        let has_ended = matches!(
            self,
            Self::Done(_)
                | Self::Judged(_)
                | Self::Uncounted(_)
                | Self::Failed(_)
                | Self::Scheduled(_)
                | Self::Active(Active::FinalReport(_))
        );
        !has_ended && outcome.counted.is_none()
    }

    /// Returns the model to score.
    ///
    /// # Errors
    /// The stage of an evaluation whose run has no model, or is another run than before.
    fn before_model<'a>(view: &View<'a>, subject: Subject<'a>) -> Result<Model<'a>, Self> {
        let name = match subject {
            Subject::Given(given) => return Ok(Model::Given(given)),
            Subject::Run(name) => name,
        };
        // `spec.suspend` also holds for an evaluation whose run has no model.
        let waits = |waiting| {
            let waits = Self::Waiting { run: name.to_owned(), waiting };
            Err(if view.spec().suspend { Self::Active(Active::Suspended) } else { waits })
        };
        let Some(run) = &view.observed.run else {
            return waits(WaitingForModel::Missing);
        };
        if let Some(why) = view.replaced() {
            return Err(Self::Failed(WorkFailure::new(Reason::Replaced, why)));
        }
        if run.metadata.deletion_timestamp.is_some() {
            return waits(WaitingForModel::Deleting);
        }
        match subject.model(view.observed) {
            Some(model) => match view.work.job.and_then(|job| model.former(job)) {
                Some(folder) => {
                    let uid = run.uid().unwrap_or_default();
                    let why = format!(
                        "TrainingRun {name} was recreated (uid {uid}), and the evaluator of this Evaluation reads {folder}, the \
                         model of the former one: create another Evaluation"
                    );
                    Err(Self::Failed(WorkFailure::new(Reason::Replaced, why)))
                }
                None => Ok(model),
            },
            None => waits(WaitingForModel::for_run(run)),
        }
    }
}
