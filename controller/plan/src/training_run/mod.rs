//! The plan of a TrainingRun: `View` → `Outcome` → `Stage` → children and status. Pure.

mod base;
mod children;
mod observed;
mod outcome;
mod own_template;
mod reproduction;
mod stage;
mod status;
mod verdict;
pub(crate) mod view;

use codex_crds::TrainingRunStatus;
use jiff::Timestamp;

pub use base::base_cycle;
pub(crate) use children::METRICS_PORT;
pub use observed::ObservedTrainingRun;
pub use reproduction::statement;
pub(crate) use view::configuration;

use crate::{events::events, plan::Plan, throttle::whole_seconds};
use children::children;
use outcome::Outcome;
use stage::Stage;
use view::View;

/// Returns the plan for a TrainingRun.
pub fn plan(observed: &ObservedTrainingRun, now: Timestamp) -> Plan<TrainingRunStatus> {
    let view = View::of(observed, whole_seconds(now));
    let outcome = Outcome::of(&view);
    let stage = Stage::of(&view, &outcome);
    let desired = children(&view, &stage);
    let effects = verdict::effects(&view, &stage);
    let (status, requeue) = status::status(&view, &outcome, &stage);
    let events = events(view.work.conditions, &status.conditions, view.obstruction);
    Plan { desired, effects, status, events, requeue }
}
