//! The plan of a TrainingRun: `View` → `Outcome` → `Stage` → children and status. Pure.

mod adoption;
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

use codex_crds::{TrainingRun, TrainingRunStatus};
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;

pub use adoption::RecordedTraining;
pub(crate) use adoption::{parameters, stated as stated_adoption};
pub use base::base_cycle;
pub(crate) use children::METRICS_PORT;
pub use observed::ObservedTrainingRun;
pub use reproduction::statement;
pub use view::config_digest;
pub(crate) use view::configuration;

use crate::{events::events, plan::Plan, throttle::whole_seconds, work::pod_settings};
use children::children;
use outcome::Outcome;
use stage::Stage;
use view::View;

/// Whether the Job of a run was created with other settings of its pod than the spec has now. It is replaced unless a pod has started.
pub fn has_other_pod(run: &TrainingRun, job: &Job) -> bool {
    pod_settings::digest(&run.spec.pod.worker).is_some_and(|wanted| pod_settings::differ(job, wanted))
}

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
