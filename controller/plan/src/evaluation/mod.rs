//! The plan of an Evaluation: `View` → `Outcome` → `Stage` → children and status. Pure.

mod children;
pub(crate) mod gates;
pub(crate) mod metrics;
mod observed;
mod outcome;
pub(crate) mod proof;
mod reads;
mod reference;
mod stage;
pub(crate) mod statement;
mod status;
mod subject;
mod view;

use codex_crds::EvaluationStatus;
use jiff::Timestamp;

pub use observed::{LedgerRead, ObservedEvaluation};

use crate::{
    events::events,
    plan::{Plan, Read},
    throttle::whole_seconds,
};
use children::children;
use outcome::Outcome;
use stage::Stage;
use view::View;

/// Returns the read whose number the ledger has to give before the plan can publish a verdict; `None` if there is no verdict, or none
/// that reads problems.
pub fn uncounted(observed: &ObservedEvaluation, now: Timestamp) -> Option<Read> {
    // Without a pod or numbers there is no verdict.
    let status = observed.object.status.as_ref();
    let recorded = status.is_some_and(|status| status.report_digest.is_some());
    if observed.pods.is_empty() && observed.reports.is_empty() && !recorded {
        return None;
    }
    let view = View::of(observed, whole_seconds(now));
    let outcome = Outcome::of(&view);
    match Stage::of(&view, &outcome) {
        Stage::Uncounted(_) => reads::wanted(&view, &outcome.counted.as_ref()?.0),
        _ => None,
    }
}

/// Returns the plan for an Evaluation.
pub fn plan(observed: &ObservedEvaluation, now: Timestamp) -> Plan<EvaluationStatus> {
    let view = View::of(observed, whole_seconds(now));
    let outcome = Outcome::of(&view);
    let stage = Stage::of(&view, &outcome);
    let desired = children(&view, &stage);
    let (status, requeue) = status::status(&view, &outcome, &stage);
    let events = events(view.work.conditions, &status.conditions, view.obstruction);
    Plan { desired, effects: reads::effects(&view, &stage), status, events, requeue }
}
