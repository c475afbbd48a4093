//! Repeated evaluations: when an Evaluation runs, and what became of its runs. No I/O.

use codex_provenance::{ConfigDigest, ReportDigest, golden::Golden};
use codex_verdict::{MAX_METRICS, MAX_REFERENCES, Verdict};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    DeviceStatus, WorkStatus,
    evaluation::{JudgedModel, MetricStatus, OutcomesStatus, PageStatus, ReadStatus, ReferenceStatus},
    training_run::DataStatus,
};

/// The most ended runs that a status lists.
pub const MAX_FINISHED: usize = 10;

/// When an Evaluation is repeated, as a CronJob is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Schedule {
    /// Times as five fields of cron (minute, hour, day of the month, month, day of the week), such as "0 3 * * 1", or one of
    /// @hourly, @daily, @weekly, @monthly and @yearly.
    #[schemars(length(min = 1, max = 128))]
    #[x_kube(validation = crate::rules::cron())]
    pub cron: String,
    /// Time zone of these times, by its name in the IANA database, such as Europe/Berlin. Defaults to Etc/UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(validation = crate::rules::time_zone())]
    pub time_zone: Option<String>,
    /// What happens at a time at which the former run has not finished. Forbid: no run starts until it has. Replace: it is ended without
    /// a verdict, and the next run starts; one whose result is reported is judged first. The Allow of CronJobs is not supported,
    /// because runs that overlap would share one status and one verdict. Defaults to Forbid, unlike that of CronJobs.
    #[serde(default)]
    #[schemars(with = "String", length(max = 16))]
    #[x_kube(validation = crate::rules::concurrency_policy())]
    pub concurrency_policy: ConcurrencyPolicy,
    /// How many seconds late a run may start. A time that is missed by more starts no run. Without it, the latest missed time
    /// starts a run as soon as possible.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 10, max = 31_536_000))]
    pub starting_deadline_seconds: Option<i64>,
    /// While true, no further run starts; spec.suspend stops a run that has started. Defaults to false.
    #[serde(default)]
    pub suspend: bool,
}

/// What happens at a time at which the former run has not finished.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConcurrencyPolicy {
    /// No run starts until the former one has finished.
    #[default]
    Forbid,
    /// The former run is ended without a verdict, and the next one starts.
    Replace,
}

/// Runs of a repeated Evaluation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScheduleStatus {
    /// Number of runs that were started. It is the number of the latest one.
    #[schemars(range(min = 0))]
    pub runs: i64,
    /// Run that has not finished. The other fields of the status describe the latest finished run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<ActiveRun>,
    /// Time for which the latest run was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_schedule_time: Option<Time>,
    /// Time for which the next run starts. Absent while spec.schedule.suspend is true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_schedule_time: Option<Time>,
    /// Times since the latest run, or before it, for which no run was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missed: Option<MissedRuns>,
    /// Runs that have ended, the latest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_FINISHED))]
    pub history: Vec<FinishedRun>,
}

/// Times for which no run was started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MissedRuns {
    /// Number of these times. Counted up to 100; 101 means more.
    #[schemars(range(min = 1))]
    pub count: i64,
    /// Latest of these times.
    pub last: Time,
}

/// Run of a repeated Evaluation that has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FinishedRun {
    /// Number of the run. Its files are in evaluations/UID/NUMBER.
    #[schemars(range(min = 1))]
    pub number: i64,
    /// Time for which it was started.
    pub scheduled: Time,
    /// Time at which its verdict was reached, it failed, or it was replaced.
    pub completed_at: Time,
    /// Verdict. Absent if the run ended without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
    /// Why the run ended without a verdict: the reason of its failure, such as RetriesExhausted, or RunReplaced, if the next run
    /// replaced it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub reason: Option<String>,
    /// SHA-256 over the reported model digest, data digests, metrics and golden tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report_digest: Option<ReportDigest>,
    /// Read of the problems that the verdict was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reads: Option<ReadStatus>,
}

/// Run of a repeated Evaluation that has not finished.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ActiveRun {
    /// Number of the run. Its files are in evaluations/UID/NUMBER.
    #[schemars(range(min = 1))]
    pub number: i64,
    /// Time for which it was started.
    pub scheduled: Time,
    /// Time at which the controller started it.
    pub since: Time,
    /// SHA-256 of the resolved configuration file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_digest: Option<ConfigDigest>,
    /// Model that was scored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<JudgedModel>,
    /// Measurements that the evaluator reported.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_METRICS))]
    pub metrics: Vec<MetricStatus>,
    /// File of the outcome of each problem.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcomes: Option<OutcomesStatus>,
    /// Page for people about the model and its results.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page: Option<PageStatus>,
    /// Device that scores the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceStatus>,
    /// What the model generated for a few of the problems.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub golden_tokens: Option<Golden>,
    /// Evaluations that the gates compare with, as they were when the evaluator was started.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_REFERENCES))]
    pub references: Vec<ReferenceStatus>,
    /// SHA-256 over the reported model digest, data digests and metrics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report_digest: Option<ReportDigest>,
    /// Data files with the digests of the bytes that the evaluator read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub data_digests: Vec<DataStatus>,
    /// Work of the pods.
    #[serde(flatten)]
    pub work: WorkStatus,
}
