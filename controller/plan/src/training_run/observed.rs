//! What the plan of a TrainingRun depends on. Pure.

use std::sync::Arc;

use codex_crds::TrainingRun;
use codex_provenance::Sha256;
use jiff::Timestamp;
use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};
use serde::{Deserialize, Serialize};

use super::adoption::RecordedTraining;
use crate::{
    obstruction::Obstruction,
    pods::{ClusterWarning, Received, References, RefusedPod},
    reasoning_pod::{Bundle, Signer},
    seal::StatusSeal,
    settings::Settings,
};

/// Everything that the plan of a TrainingRun depends on, besides the time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ObservedTrainingRun {
    /// The object with its status.
    pub object: TrainingRun,
    /// The settings of the controller.
    pub settings: Arc<Settings>,
    /// The text under the key that `spec.templateFrom` names, if it exists. `None` once there is a Job, which has its configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// The TrainingRun that `spec.base.trainingRun` names, if it exists in the object's namespace.
    #[serde(default)]
    pub base: Option<TrainingRun>,
    /// The names of the runs through which `spec.base` leads back to the object, as [`base_cycle`](super::base_cycle)
    /// returns them.
    #[serde(default)]
    pub base_cycle: Vec<String>,
    /// The TrainingRun that `spec.reproduces` names, if it exists in the object's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reproduced: Option<TrainingRun>,
    /// The configuration file in the ConfigMap `codex-t-<name>` of that run, if it exists and the run (by uid) controls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reproduced_config: Option<String>,
    /// The signer. `None` without `spec.reproduces`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signer: Option<Signer>,
    /// The bundle with the [`statement`](super::statement) of the recorded status, verified with all listed keys; the value is the
    /// fingerprint of who signed it.
    #[serde(default)]
    pub verdict: Bundle<Sha256>,
    /// The signed records of trainings with the configuration of the object, in its namespace. Empty once there is a Job.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub records: Vec<RecordedTraining>,
    /// The claims of its output and its base, and the claims and `ConfigMap`s of its data, as far as they exist.
    #[serde(default)]
    pub references: Option<References>,
    /// The Job `codex-t-<name>`, if it exists and the object (by uid) controls it.
    #[serde(default)]
    pub job: Option<Job>,
    /// The Job's pods, in any order.
    #[serde(default)]
    pub pods: Vec<Pod>,
    /// What the cluster says about the Job or about pods that do not start.
    #[serde(default)]
    pub warnings: Vec<ClusterWarning>,
    /// The newest report of each pod, including pods that no longer exist, in any order.
    #[serde(default)]
    pub reports: Vec<Received>,
    /// Pods of the object whose reports are refused.
    #[serde(default)]
    pub refused: Vec<RefusedPod>,
    /// What the seal of the object's status says. The statuses of other objects here are without the parts that were
    /// discarded.
    #[serde(default)]
    pub seal: StatusSeal,
    /// When this process last wrote the object's status.
    #[serde(default)]
    pub status_written_at: Option<Timestamp>,
    /// What kept this reconciliation from carrying out the plan without it.
    #[serde(default)]
    pub obstruction: Option<Obstruction>,
}
