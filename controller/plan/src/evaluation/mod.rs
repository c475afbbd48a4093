//! The plan of an Evaluation: `View` → `Outcome` → `Stage` → children and status. An Evaluation with a schedule is planned run by run. Pure.

mod children;
pub(crate) mod gates;
pub(crate) mod metrics;
mod observed;
mod outcome;
pub(crate) mod proof;
mod reads;
mod reference;
mod runs;
mod stage;
pub(crate) mod statement;
mod status;
mod subject;
pub(crate) mod view;

use codex_crds::EvaluationStatus;
use jiff::Timestamp;

pub use observed::{LedgerRead, ObservedEvaluation};
pub use runs::job_name;

use crate::{
    events::events,
    plan::{Plan, Read},
    throttle::whole_seconds,
};
use children::children;
use outcome::Outcome;
use runs::{Scheduled, Turn};
use stage::Stage;
use view::View;

/// Returns the read whose number the ledger has to give before the plan can publish a verdict; `None` if there is no verdict, or none
/// that reads problems.
pub fn uncounted(observed: &ObservedEvaluation, now: Timestamp) -> Option<Read> {
    // Without a pod or numbers there is no verdict.
    let recorded = observed.object.status.as_ref().is_some_and(|status| {
        let active = status.schedule.as_ref().and_then(|schedule| schedule.active.as_ref());
        status.report_digest.is_some() || active.is_some_and(|run| run.report_digest.is_some())
    });
    if observed.pods.is_empty() && observed.reports.is_empty() && !recorded {
        return None;
    }
    let now = whole_seconds(now);
    let of = |observed: &ObservedEvaluation, turn: Turn| {
        let view = View::of(observed, turn, now);
        let outcome = Outcome::of(&view);
        match Stage::of(&view, &outcome) {
            Stage::Uncounted(_) => reads::wanted(&view, &outcome.counted.as_ref()?.0),
            _ => None,
        }
    };
    match &observed.object.spec.schedule {
        None => of(observed, Turn::default()),
        Some(schedule) => {
            let Scheduled { observed, turn, .. } = Scheduled::of(observed, schedule, now);
            of(&observed, turn)
        }
    }
}

/// Returns the plan for an Evaluation.
pub fn plan(observed: &ObservedEvaluation, now: Timestamp) -> Plan<EvaluationStatus> {
    let now = whole_seconds(now);
    let Some(schedule) = &observed.object.spec.schedule else { return once(observed, Turn::default(), now).0 };
    let scheduled = Scheduled::of(observed, schedule, now);
    let (run, gives_way) = once(&scheduled.observed, scheduled.turn.clone(), now);
    match scheduled.replacing(schedule, now).filter(|_| gives_way) {
        // The conditions of the run that is at work say that it is replaced.
        Some(replaced) => {
            let (run, _) = once(&replaced.observed, replaced.turn.clone(), now);
            replaced.plan(run)
        }
        None => scheduled.plan(run),
    }
}

/// Returns the plan for one run, and whether the run gives way to the next one of its schedule.
fn once(observed: &ObservedEvaluation, turn: Turn, now: Timestamp) -> (Plan<EvaluationStatus>, bool) {
    let view = View::of(observed, turn, now);
    let outcome = Outcome::of(&view);
    let stage = Stage::of(&view, &outcome);
    let desired = children(&view, &stage);
    let (status, requeue) = status::status(&view, &outcome, &stage);
    let events = events(view.work.conditions, &status.conditions, view.obstruction);
    let plan = Plan { desired, effects: reads::effects(&view, &stage), status, events, requeue };
    (plan, stage.gives_way(&outcome))
}
