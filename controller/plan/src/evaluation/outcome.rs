//! What the evaluators reported as their result, checked before it is used. Pure.

use codex_crds::{OutcomesStatus, PageStatus, Reason};
use codex_provenance::golden::Golden;
use codex_reports::{EvaluationState, Stage as PodStage};

use super::{
    gates::{Counted, by_name, recorded},
    reference,
    subject::Model,
    view::View,
};
use crate::work::{Ending, WorkFailure};

/// The name of the page for people, which the evaluator writes.
const PAGE: &str = "report.html";

/// What the evaluators reported, checked.
pub(crate) struct Outcome {
    /// The complete result, and how its pod ended.
    pub(crate) counted: Option<(Counted, Ending)>,
    /// Why no attempt can succeed, whatever the Job goes on to do.
    pub(crate) failure: Option<WorkFailure>,
}

impl Outcome {
    pub(crate) fn of(view: &View<'_>) -> Self {
        if let Some(failure) = view.work.worker.contradiction() {
            return Self { counted: None, failure: Some(failure.clone()) };
        }
        let wrong = view.model().and_then(|model| wrong_input(view, model));
        match counted(view).transpose() {
            Ok(counted) => Self { counted, failure: wrong },
            Err(failure) => Self { counted: None, failure: wrong.or(Some(failure)) },
        }
    }
}

/// Returns the result of the newest report that is complete and whose pod was not lost, else the one in the status.
fn counted(view: &View<'_>) -> Option<Result<(Counted, Ending), WorkFailure>> {
    let complete = |state: &EvaluationState| state.stage == PodStage::Finished && !state.metrics.is_empty();
    let reported = view.states().filter(|(_, state)| complete(state)).find_map(|(report, state)| {
        let ending = view.work.worker.ending(&report.pod_uid);
        (ending != Ending::Lost).then_some((state, ending))
    });
    let Some((state, ending)) = reported else {
        // The controller restarted after it recorded the report and before it saw the end of the pod.
        let ending = if view.work.worker.is_complete() {
            Ending::Unconfirmed("the controller restarted before it observed the end of the pod")
        } else {
            Ending::Pending
        };
        return recorded(&view.status).map(|counted| Ok((counted, ending)));
    };
    Some(checked(view, state).map(|counted| (counted, ending)))
}

fn checked(view: &View<'_>, state: &EvaluationState) -> Result<Counted, WorkFailure> {
    let data = view.work.digests(&state.data);
    let refuse = |reason, why: String| Err(WorkFailure::new(reason, why));
    let Some(model) = state.model_digest else {
        return refuse(Reason::ModelMismatch, "the evaluator did not report which model it evaluated".to_owned());
    };
    if let Some(failure) = view.work.unread(&data) {
        return Err(failure);
    }
    if let Err(why) = codex_verdict::accept(&state.metrics) {
        return refuse(Reason::PodFailed, format!("the evaluator's report is refused: {why}"));
    }
    if let Some(Err(why)) = state.golden_tokens.as_ref().map(Golden::read) {
        return refuse(Reason::PodFailed, format!("the evaluator's report is refused: golden tokens: {why}"));
    }
    let metrics = state.metrics.clone();
    let references = view.references.as_deref().unwrap_or_default().to_vec();
    let gates = view.gates.as_deref().unwrap_or_default();
    reference::check(gates, &references, &data, &metrics).map_err(|(reason, why)| WorkFailure::new(reason, why))?;
    let files = by_name(&data);
    // A termination message has no room for golden tokens; the status may have them from the report that it confirms.
    let recorded = || {
        let covered = |golden: &Golden| Some(codex_verdict::report_digest(model, &files, &metrics, Some(golden)));
        view.status.golden_tokens.clone().filter(|golden| covered(golden) == view.status.report_digest)
    };
    let golden = state.golden_tokens.clone().or_else(recorded);
    let digest = codex_verdict::report_digest(model, &files, &metrics, golden.as_ref());
    let outcomes = state.outcomes.zip(view.model()).map(|(sha256, model)| {
        let (claim_name, path) = model.results(&view.folder());
        OutcomesStatus { sha256, claim_name: claim_name.to_owned(), path }
    });
    let page = state.page.filter(|_| view.spec().page).zip(view.model()).map(|(sha256, model)| {
        let (claim_name, folder) = model.results(&view.folder());
        PageStatus { sha256, claim_name: claim_name.to_owned(), path: format!("{folder}/{PAGE}") }
    });
    Ok(Counted { model, data, metrics, digest, outcomes, page, golden, references })
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
