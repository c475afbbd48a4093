//! The plan of a TrainingRun. Pure.

mod children;
mod outcome;
mod stage;
mod status;

use std::sync::Arc;

use codex_crds::{TrainingRun, TrainingRunStatus};
use jiff::Timestamp;
use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};
use serde::{Deserialize, Serialize};

use crate::{Plan, Received, References, Settings, events::events, whole_seconds};
use children::children;
use stage::{Stage, View};

/// Everything that the plan of a TrainingRun depends on, besides the time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ObservedTrainingRun {
    /// The object with its status.
    pub object: TrainingRun,
    /// What the controller was started with.
    pub settings: Arc<Settings>,
    /// What it refers to: its output's claim, its data's claims and `ConfigMap`s.
    #[serde(default)]
    pub references: References,
    /// The Job `<name>-train`, if it exists and the object (by uid) controls it.
    #[serde(default)]
    pub job: Option<Job>,
    /// The Job's pods, in any order.
    #[serde(default)]
    pub pods: Vec<Pod>,
    /// The newest report of each of its pods, also of pods that are gone, in any order.
    #[serde(default)]
    pub reports: Vec<Received>,
    /// When this controller last wrote the object's status; none when it has not since it started.
    #[serde(default)]
    pub status_written_at: Option<Timestamp>,
}

/// What to do about a TrainingRun.
pub fn plan(observed: &ObservedTrainingRun, now: Timestamp) -> Plan<TrainingRunStatus> {
    let now = whole_seconds(now);
    let view = View::of(observed, now);
    let stage = Stage::of(&view);
    let desired = children(&view, &stage);
    let (status, requeue) = status::status(&view, &stage);
    let before = observed.object.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    let events = events(before, &status.conditions);
    Plan { desired, effects: Vec::new(), status, events, requeue }
}
