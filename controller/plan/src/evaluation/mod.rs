//! The plan of an Evaluation: `View` → `Outcome` → `Stage` → children and status. Pure.

mod children;
pub(crate) mod gates;
mod metrics;
mod observed;
mod outcome;
pub(crate) mod proof;
mod reference;
mod stage;
pub(crate) mod statement;
mod status;
mod subject;
mod view;

use codex_crds::EvaluationStatus;
use jiff::Timestamp;

pub use observed::ObservedEvaluation;

use crate::{events::events, plan::Plan, throttle::whole_seconds};
use children::children;
use outcome::Outcome;
use stage::Stage;
use view::View;

/// Returns the plan for an Evaluation.
pub fn plan(observed: &ObservedEvaluation, now: Timestamp) -> Plan<EvaluationStatus> {
    let view = View::of(observed, whole_seconds(now));
    let outcome = Outcome::of(&view);
    let stage = Stage::of(&view, &outcome);
    let desired = children(&view, &stage);
    let (status, requeue) = status::status(&view, &outcome, &stage);
    let events = events(view.work.conditions, &status.conditions, view.obstruction);
    Plan { desired, effects: Vec::new(), status, events, requeue }
}
