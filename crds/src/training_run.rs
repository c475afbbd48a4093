//! `TrainingRun`: trains one model, once. No I/O.

use codex_provenance::{ConfigDigest, DataDigest, ModelDigest, OmsRoot, Sha256};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{DataItem, Decimal, Ring, TrainerPod, WorkStatus};

/// What to train.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "codex-ml.dev",
    version = "v1alpha1",
    kind = "TrainingRun",
    namespaced,
    status = "TrainingRunStatus",
    derive = "PartialEq",
    doc = "A TrainingRun trains one model from a configuration, a seed and data, in a Job that survives interruptions, and records the model's digest.",
    shortname = "trun",
    category = "codex",
    printcolumn(name = "Ring", type_ = "string", json_path = ".spec.rolloutRing"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Steps", type_ = "string", json_path = ".status.progress.steps"),
    printcolumn(name = "Loss", type_ = "string", json_path = ".status.progress.loss"),
    printcolumn(name = "Tok/s", type_ = "integer", json_path = ".status.progress.tokensPerSecond"),
    printcolumn(name = "Checkpoint", type_ = "integer", json_path = ".status.lastCheckpoint.step"),
    printcolumn(name = "Model", type_ = "string", json_path = ".status.model.short"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = crate::rules::name()
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("self.template == oldSelf.template", "spec.template is immutable, because it defines the result: create another TrainingRun"),
    validation = ("self.overrides == oldSelf.overrides", "spec.overrides is immutable, because it defines the result: create another TrainingRun"),
    validation = ("has(self.config) == has(oldSelf.config) && (!has(self.config) || self.config == oldSelf.config)", "spec.config is immutable, because it defines the result: create another TrainingRun"),
    validation = ("self.seed == oldSelf.seed", "spec.seed is immutable, because it defines the result: create another TrainingRun"),
    validation = ("self.data == oldSelf.data", "spec.data is immutable, because it defines the result: create another TrainingRun"),
    validation = ("self.output == oldSelf.output", "spec.output is immutable, because the checkpoints lie there: create another TrainingRun"),
    validation = ("self.pod == oldSelf.pod", "spec.pod is immutable: create another TrainingRun"),
)]
pub struct TrainingRunSpec {
    /// The rollout ring that this run is meant for. Advancing it does not retrain.
    #[x_kube(validation = crate::rules::ring())]
    pub rollout_ring: Ring,
    /// The configuration template to start from: cot-starter, cot-plus, cot-padded or answers-only.
    #[schemars(length(min = 1, max = 63))]
    pub template: String,
    /// Settings that replace the template's, each `key=value`, such as training.max_steps=500.
    #[serde(default)]
    #[schemars(length(max = 64), inner(length(min = 3, max = 1024)))]
    pub overrides: Vec<String>,
    /// Settings as YAML in a string, laid over the template before the overrides; at most 32 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32768))]
    pub config: Option<String>,
    /// The seed of initial weights and of the order of the data.
    #[serde(default = "default_seed")]
    #[schemars(with = "i64", range(min = 0, max = 9_007_199_254_740_991_i64))]
    pub seed: u64,
    /// The data files, mixed in equal shares. What is named validation is held out: it is looked at every training.eval_every
    /// steps and never trained on.
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(
        validation = ("self.all(a, self.exists_one(b, b.name == a.name))", "spec.data[].name must be unique within the list")
    )]
    pub data: Vec<DataItem>,
    /// Where checkpoints, artefacts and the model go. Deleting the object never deletes them.
    pub output: Output,
    /// The pod that trains.
    #[serde(default)]
    pub pod: TrainerPod,
    /// Stops the pod after a checkpoint while true.
    #[serde(default)]
    pub suspend: bool,
    /// How often a failed pod is tried again. Interruptions and evictions do not count.
    #[serde(default = "default_retries")]
    #[schemars(range(min = 0, max = 100))]
    pub retries: i32,
    /// The most seconds that the Job may take, those in which its pods wait to begin included and suspensions left out. A Job
    /// that takes longer has failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 31_536_000))]
    pub active_deadline_seconds: Option<i64>,
}

pub(crate) fn default_seed() -> u64 {
    42
}

pub(crate) fn default_retries() -> i32 {
    3
}

/// Where a run's output goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    /// A volume of this namespace.
    pub persistent_volume_claim: ClaimOutput,
}

/// A folder on a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClaimOutput {
    /// The PersistentVolumeClaim's name.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = crate::rules::subdomain("claimName", "models"))]
    pub claim_name: String,
    /// The folder on the volume; a folder named by the run's uid is made in it.
    #[serde(default)]
    #[schemars(length(max = 256))]
    #[x_kube(validation = crate::rules::text("!self.startsWith('/') && !self.split('/').exists(part, part == '..')", "subPath must be relative to the volume and have no .., such as runs"))]
    pub sub_path: String,
}

/// What is known about a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TrainingRunStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Where the run stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<TrainingRunPhase>,
    /// The newest numbers of the loop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<ProgressStatus>,
    /// The newest checkpoint on the volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_checkpoint: Option<CheckpointStatus>,
    /// The digest of the resolved configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_digest: Option<ConfigDigest>,
    /// The data files as the trainer read them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub data_digests: Vec<DataStatus>,
    /// The finished model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelStatus>,
    /// What its pods did.
    #[serde(flatten)]
    pub work: WorkStatus,
    /// Steps that all attempts executed together, repeated ones counted again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps_executed: Option<i64>,
    /// When the run succeeded or failed for good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Time>,
    /// The state of the run as conditions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// Where a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum TrainingRunPhase {
    /// No pod has begun to work.
    Pending,
    /// A pod works.
    Running,
    /// Stopped, because `suspend` is true.
    Suspended,
    /// The model is there.
    Succeeded,
    /// Given up for good.
    Failed,
}

/// The newest numbers of a training loop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProgressStatus {
    /// Optimiser steps done.
    pub step: i64,
    /// Optimiser steps that the run has.
    pub total_steps: i64,
    /// Both, as `step/totalSteps`.
    #[schemars(length(max = 64))]
    pub steps: String,
    /// Mean cross-entropy per target token, in nats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<Decimal>,
    /// Tokens that the loop goes through in a second, padding left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_second: Option<i64>,
    /// Seconds that the remaining steps will take at this speed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta_seconds: Option<i64>,
    /// What the newest step was taken with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<Decimal>,
    /// The norm of the newest gradient before clipping.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gradient_norm: Option<Decimal>,
    /// Floating-point operations of the model in a second, in units of 10⁹.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gflops: Option<i64>,
    /// The share of the time, from 0 to 1, that the loop waits for data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_wait: Option<Decimal>,
    /// The memory that the trainer holds, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<i64>,
    /// The newest loss on held-out records, in nats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_loss: Option<Decimal>,
}

/// A checkpoint on the volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CheckpointStatus {
    /// Optimiser steps that it holds.
    pub step: i64,
    /// SHA-256 of its manifest.
    pub digest: Sha256,
}

/// A data file as it was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DataStatus {
    /// Its name in the spec.
    #[schemars(length(max = 40))]
    pub name: String,
    /// SHA-256 of the bytes that were read.
    pub sha256: DataDigest,
}

/// A finished model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelStatus {
    /// SHA-256 of the model's canonical manifest: the model's identity everywhere.
    pub digest: ModelDigest,
    /// The first twelve digits of it.
    #[schemars(length(max = 12))]
    pub short: String,
    /// The root of its OpenSSF Model Signing statement.
    pub oms_root: OmsRoot,
    /// Where it lies: claim name and path.
    #[schemars(length(max = 1024))]
    pub location: String,
    /// Numbers that training chose.
    pub parameters: i64,
    /// Bytes of all files together.
    pub size_bytes: i64,
    /// Its files, in the order of the manifest.
    #[schemars(length(max = 64))]
    pub files: Vec<FileStatus>,
}

/// The most files that a model in a status may have.
pub const MAX_MODEL_FILES: usize = 64;

/// A file of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FileStatus {
    /// Path within the model directory.
    #[schemars(length(max = 1024))]
    pub path: String,
    /// Bytes.
    pub size: i64,
    /// SHA-256 of its contents.
    pub sha256: Sha256,
}
