//! Work of the pods of a Job: the part of the status that TrainingRun and Evaluation share. No I/O.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The most attempts that a status lists.
pub const MAX_ATTEMPTS: usize = 5;

/// Attempt of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AttemptStatus {
    /// Name of the pod.
    #[schemars(length(max = 253))]
    pub pod: String,
    /// Node that ran the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub node: Option<String>,
    /// Time at which the container started.
    pub started_at: Time,
    /// Time at which the container ended. Absent until then, and if the end was not observed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Time>,
    /// Exit code of the container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Why the attempt failed, such as OOMKilled or BadInput. Absent if the pod exited 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub reason: Option<String>,
}

/// Work of all pods of a Job together.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkStatus {
    /// Number of pods that have started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempts: Option<i32>,
    /// Active seconds before status.activeSince, added up over suspensions. They count towards spec.activeDeadlineSeconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active_seconds: Option<i64>,
    /// Start of the current active period. Absent while the Job is suspended and after it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active_since: Option<Time>,
    /// Time at which the first pod started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// Image that the latest pod ran, by digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub image_id: Option<String>,
    /// Latest attempts, the newest last. Updated together with other changes of the status.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_ATTEMPTS))]
    pub recent_attempts: Vec<AttemptStatus>,
}
