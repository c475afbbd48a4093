//! What the evaluators reported as their result, checked before it is used. Pure.

use codex_crds::Reason;
use codex_reports::{EvaluationState, Stage as PodStage};

use super::{
    gates::{Counted, by_name},
    subject::Model,
    view::View,
};
use crate::work::WorkFailure;

/// What the evaluators reported, checked.
pub(crate) struct Outcome {
    /// The complete result.
    pub(crate) counted: Option<Counted>,
    /// Why no attempt can succeed, whatever the Job goes on to do.
    pub(crate) failure: Option<WorkFailure>,
}

impl Outcome {
    pub(crate) fn of(view: &View<'_>) -> Self {
        let wrong = view.model().and_then(|model| wrong_input(view, model));
        match counted(view).transpose() {
            Ok(counted) => Self { counted, failure: wrong },
            Err(failure) => Self { counted: None, failure: wrong.or(Some(failure)) },
        }
    }
}

/// Returns the result of the newest report that is complete.
pub(crate) fn counted(view: &View<'_>) -> Option<Result<Counted, WorkFailure>> {
    let complete = |state: &&EvaluationState| state.stage == PodStage::Finished && !state.metrics.is_empty();
    let state = view.states().map(|(_, state)| state).find(complete)?;
    let data = view.work.digests(&state.data);
    let refuse = |reason, why: String| Some(Err(WorkFailure::new(reason, why)));
    let Some(model) = state.model_digest else {
        return refuse(Reason::ModelMismatch, "the evaluator did not report which model it evaluated".to_owned());
    };
    if let Some(failure) = view.work.unread(&data) {
        return Some(Err(failure));
    }
    if let Err(why) = codex_verdict::accept(&state.metrics) {
        return refuse(Reason::PodFailed, format!("the evaluator's report is refused: {why}"));
    }
    let metrics = state.metrics.clone();
    let digest = codex_verdict::report_digest(model, &by_name(&data), &metrics);
    Some(Ok(Counted { model, data, metrics, digest }))
}

/// Returns a failure if an evaluator read other data, another configuration or another model than it had to.
fn wrong_input(view: &View<'_>, model: Model<'_>) -> Option<WorkFailure> {
    view.states().find_map(|(report, state)| {
        view.work.wrong_input(report, &state.data).or_else(|| {
            let expected = model.expected()?;
            let found = state.model_digest.filter(|found| *found != expected)?;
            Some(WorkFailure::new(Reason::ModelMismatch, model.mismatch(found, expected)))
        })
    })
}
