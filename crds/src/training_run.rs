//! `TrainingRun`: trains one model, once. No I/O.

use codex_provenance::{ConfigDigest, DataDigest, ModelDigest, OmsRoot, Sha256};
use codex_verdict::{Decimal, Ring};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    AdoptionStatus, Base, BaseStatus, ComputationStatus, ConfigMapKey, DataItem, DeviceStatus, Reproduces,
    ReproductionStatus, TrainerPod, WorkStatus,
};

/// Desired state of a TrainingRun: configuration, seed, data, output and pod.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "codex-ml.dev",
    version = "v1alpha1",
    kind = "TrainingRun",
    namespaced,
    status = "TrainingRunStatus",
    derive = "PartialEq",
    doc = "A TrainingRun trains one model from a configuration, a seed and data. It runs as a Job that resumes after interruptions, and it records the digest of the model.",
    shortname = "trun",
    category = "codex",
    printcolumn(name = "Ring", type_ = "string", json_path = ".spec.rolloutRing"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Steps", type_ = "string", json_path = ".status.progress.steps"),
    printcolumn(name = "Curriculum", type_ = "string", json_path = ".status.curriculum.phase", priority = 1),
    printcolumn(name = "Loss", type_ = "string", json_path = ".status.progress.loss"),
    printcolumn(name = "Tok/s", type_ = "integer", json_path = ".status.progress.tokensPerSecond"),
    printcolumn(name = "Checkpoint", type_ = "integer", json_path = ".status.lastCheckpoint.step"),
    printcolumn(name = "Model", type_ = "string", json_path = ".status.model.short"),
    printcolumn(name = "Base", type_ = "string", json_path = ".status.base.short", priority = 1),
    printcolumn(name = "Reproduces", type_ = "string", json_path = ".spec.reproduces.name", priority = 1),
    printcolumn(name = "Reproduced", type_ = "string", json_path = ".status.conditions[?(@.type==\"Reproduced\")].status", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = crate::rules::name(),
    validation = crate::rules::own_base(),
    validation = crate::rules::own_reproduction(),
    validation = crate::rules::same_pod_once_started()
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("self.template == oldSelf.template", "spec.template is immutable, because it defines the result: create another TrainingRun"),
    validation = ("self.overrides == oldSelf.overrides", "spec.overrides is immutable, because it defines the result: create another TrainingRun"),
    validation = ("has(self.templateFrom) == has(oldSelf.templateFrom) && (!has(self.templateFrom) || self.templateFrom == oldSelf.templateFrom)", "spec.templateFrom is immutable, because it defines the result: create another TrainingRun"),
    validation = crate::rules::same_text("config", "is immutable, because it defines the result: create another TrainingRun"),
    validation = ("self.seed == oldSelf.seed", "spec.seed is immutable, because it defines the result: create another TrainingRun"),
    validation = ("self.data == oldSelf.data", "spec.data is immutable, because it defines the result: create another TrainingRun"),
    validation = crate::rules::same_base("is immutable, because it defines the result: create another TrainingRun"),
    validation = crate::rules::same_folder("output", "subPath", "is immutable, because it holds the checkpoints: create another TrainingRun"),
    validation = ("self.terminationGracePeriodSeconds == oldSelf.terminationGracePeriodSeconds", "spec.terminationGracePeriodSeconds is immutable, because the Job has it already: create another TrainingRun"),
    validation = crate::rules::same_program(),
    validation = crate::rules::same_reproduces("is immutable, because it defines the result: create another TrainingRun"),
    validation = crate::rules::image_of_reproduction(),
)]
pub struct TrainingRunSpec {
    /// Rollout ring that the run is meant for. A ring is a stage of promotion: a model moves through
    /// 0A_base_, 0B_base_, 0C_base_, 0D_base_ and main, in this order. An object may be created in any ring; an update moves
    /// it forward by at most one ring, or back by any number.
    /// A ReasoningPod serves the model only if its own ring is equal. Changing the ring does not retrain.
    #[x_kube(validation = crate::rules::ring())]
    pub rollout_ring: Ring,
    /// Configuration template to start from (lora needs spec.base): cot-starter, cot-plus, cot-padded, answers-only or lora.
    #[schemars(length(min = 1, max = 63))]
    pub template: String,
    /// Template of your own, which spec.template gives a name, instead of an included one. Training starts once the ConfigMap exists, and
    /// never from a text with another digest. Once the trainer has started, changes of the ConfigMap have no effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template_from: Option<TemplateFrom>,
    /// Settings that replace those of template and config, each as key=value, such as training.max_steps=500.
    #[serde(default)]
    #[schemars(length(max = 64), inner(length(min = 3, max = 1024)))]
    pub overrides: Vec<String>,
    /// Settings as YAML text, applied to the template before the overrides. At most 32 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32768))]
    pub config: Option<String>,
    /// Seed of the initial weights and of the order of the training data. Defaults to 42.
    #[serde(default = "default_seed")]
    #[schemars(with = "i64", range(min = 0, max = 9_007_199_254_740_991_i64))]
    pub seed: u64,
    /// Data files, mixed in equal shares. The file named validation is held out: the trainer evaluates it every
    /// training.eval_every steps and never trains on it. The files named plugin-filter and plugin-reward are plugins in
    /// WebAssembly: the first selects the records that are trained on, the second rewards the answers of training.method=grpo. The
    /// file named safety-rules has safety rules, which block records or redact their texts before the model learns from them.
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(
        validation = ("self.all(a, self.exists_one(b, b.name == a.name))", "spec.data[].name must be unique within the list: rename one of the files")
    )]
    pub data: Vec<DataItem>,
    /// Model whose weights training starts from. Without it, the weights are initialized from the seed, in the shape that the
    /// configuration describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<Base>,
    /// TrainingRun of this namespace that this one trains again, to compare the models bit for bit. It starts once that run has its
    /// model, and uses its image, program, engine and instruction set, on another node where that is possible. The condition
    /// Reproduced has the verdict, which is signed if the models are equal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reproduces: Option<Reproduces>,
    /// Volume that receives checkpoints, artifacts and the model. Deleting the TrainingRun does not delete them.
    pub output: Output,
    /// Settings of the trainer pod. Image and environment are immutable. Everything else may change until a pod has started, which
    /// status.startedAt says: a Job that waits is then created anew with the changed settings.
    #[serde(default)]
    #[x_kube(
        validation = ("!has(self.resources) || !has(self.resources.claims) || self.resources.claims.all(claim, has(self.resourceClaims) && self.resourceClaims.exists(given, given.name == claim.name))", "pod.resources.claims must name entries of pod.resourceClaims: add the claim there, or remove it")
    )]
    pub pod: TrainerPod,
    /// While true, the trainer pod is stopped after it has written a checkpoint. Defaults to false.
    #[serde(default)]
    pub suspend: bool,
    /// How often a failed pod is replaced before the run fails. Interruptions and evictions do not count. Defaults to 3.
    #[serde(default = "default_retries")]
    #[schemars(range(min = 0, max = 100))]
    pub retries: i32,
    /// Active deadline of the Job in seconds. Includes the time in which pods wait to start; excludes suspensions. A Job that
    /// exceeds it fails. Without it, there is no deadline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 31_536_000))]
    pub active_deadline_seconds: Option<i64>,
    /// Seconds without a new step after which the condition ProgressStale is true. The pod keeps running. Defaults to 600.
    #[serde(default = "default_progress_deadline")]
    #[schemars(range(min = 60, max = 31_536_000))]
    pub progress_deadline_seconds: i64,
    /// Seconds from the signal to stop until the trainer is killed. It finishes its step and writes a checkpoint in this time.
    /// Defaults to 60.
    #[serde(default = "default_trainer_grace")]
    #[schemars(range(min = 10, max = 86_400))]
    pub termination_grace_period_seconds: i64,
    /// Seconds after which the Job and the pods of a run that succeeded or failed are deleted, with their logs. The TrainingRun,
    /// its status and the files on the volume stay. Without it, Job and pods stay as long as the TrainingRun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 31_536_000))]
    pub ttl_seconds_after_finished: Option<i64>,
}

/// A template of settings in a ConfigMap, pinned by its digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TemplateFrom {
    /// ConfigMap of this namespace, and the key of it that holds the settings as YAML text. At most 32 KiB.
    pub config_map: ConfigMapKey,
    /// SHA-256 of the text, as 64 lower-case hexadecimal digits.
    #[schemars(length(min = 64, max = 64))]
    #[x_kube(validation = crate::rules::text("sha256", "self.matches('^[0-9a-f]{64}$')", "64 lower-case hexadecimal digits, as sha256sum prints them"))]
    pub sha256: String,
}

fn default_trainer_grace() -> i64 {
    60
}

pub(crate) fn default_progress_deadline() -> i64 {
    600
}

pub(crate) fn default_seed() -> u64 {
    42
}

pub(crate) fn default_retries() -> i32 {
    3
}

/// Where the output of a run is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    /// PersistentVolumeClaim of this namespace, and the folder to use on it.
    pub persistent_volume_claim: ClaimOutput,
}

/// A folder on a PersistentVolumeClaim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClaimOutput {
    /// Name of the PersistentVolumeClaim.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = crate::rules::subdomain("claimName", "models"))]
    pub claim_name: String,
    /// Folder on the volume, as a relative path without `..`. A TrainingRun writes into a subfolder named after its uid, an
    /// Evaluation of a given model into evaluations/ and its uid. Defaults to the root of the volume.
    #[serde(default)]
    #[schemars(length(max = 256))]
    #[x_kube(validation = crate::rules::text("subPath", "!self.startsWith('/') && !self.split('/').exists(part, part == '..')", "a path relative to the volume, without .., such as runs"))]
    pub sub_path: String,
}

/// Observed state of a TrainingRun.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TrainingRunStatus {
    /// Generation of the spec that this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Phase of the run: Pending, Running, Suspended, Succeeded, Failed or Unreproducible.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<TrainingRunPhase>,
    /// Time at which the object got its phase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_phase_transition_time: Option<Time>,
    /// Latest numbers of the training loop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<ProgressStatus>,
    /// Progress of the curriculum. Absent if the run has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub curriculum: Option<CurriculumStatus>,
    /// Latest checkpoint on the volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_checkpoint: Option<CheckpointStatus>,
    /// Checkpoint that the volume no longer held when a trainer started, so that steps were trained again: the latest loss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost_checkpoint: Option<LostCheckpointStatus>,
    /// SHA-256 of the resolved configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_digest: Option<ConfigDigest>,
    /// Data files with the digests of the bytes that the trainer read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub data_digests: Vec<DataStatus>,
    /// Base that the run started from. Absent until the trainer has hashed it, and for a run that initialized its weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<BaseStatus>,
    /// Trained model. Absent until training has finished.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelStatus>,
    /// True if the controller's list of attested images names the image that reported the model, and nothing was added to its
    /// pod. Promotion statements then call what it reported about its training attested, else reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attested: Option<bool>,
    /// What computed the model. Absent until the trainer has reported it, and for a run on a GPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub computation: Option<ComputationStatus>,
    /// Device that computed the model, as the trainer reported it. Absent until then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceStatus>,
    /// The run that this one reproduces, as it was recorded when this run began. Absent without spec.reproduces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reproduction: Option<ReproductionStatus>,
    /// The former run whose signed provenance states the same inputs, and whether its model was adopted. Absent if there is no such
    /// run, and until the trainer has looked at its files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adoption: Option<AdoptionStatus>,
    /// Work of the pods.
    #[serde(flatten)]
    pub work: WorkStatus,
    /// Number of optimizer steps executed by all attempts together, including repeated steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps_executed: Option<i64>,
    /// Time at which the run succeeded or failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Time>,
    /// Seal of the controller over the parts of this status that later steps depend on. A status without a valid seal is discarded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub seal: Option<String>,
    /// Conditions of the run: CheckpointLost, ConfigResolved, ProgressStale, Ready, Reconciling, Stalled, StatusDiscarded and
    /// Trained; with spec.reproduces also Reproduced and Signed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// The phase of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum TrainingRunPhase {
    /// No pod is training yet.
    Pending,
    /// A pod is training.
    Running,
    /// Suspended by `spec.suspend`.
    Suspended,
    /// The run cannot proceed until a user changes something.
    Stalled,
    /// The model is complete.
    Succeeded,
    /// The run has failed and is not retried.
    Failed,
    /// The run that it reproduces could not be trained again under the recorded conditions.
    Unreproducible,
}

/// Latest numbers of a training loop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProgressStatus {
    /// Number of optimizer steps completed.
    pub step: i64,
    /// Number of optimizer steps in the whole run.
    pub total_steps: i64,
    /// Completed and total optimizer steps of the run, as completed/total.
    #[schemars(length(max = 64))]
    pub steps: String,
    /// Time at which the controller received the report of the latest step. Without newer ones, the pod has sent no step since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reported_at: Option<Time>,
    /// Training loss: mean cross-entropy per target token, in nats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<Decimal>,
    /// Tokens trained per second, without padding. Absent while no step is being trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_second: Option<i64>,
    /// Estimated seconds until the last step, at the current speed. Absent while no step is being trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta_seconds: Option<i64>,
    /// Learning rate of the latest optimizer step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<Decimal>,
    /// Norm of the latest gradient before clipping.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gradient_norm: Option<Decimal>,
    /// Floating-point operations of the model per second, in units of 10⁹.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gflops: Option<i64>,
    /// Share of the time, from 0 to 1, that the training loop waits for data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_wait: Option<Decimal>,
    /// Resident memory of the trainer, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<i64>,
    /// Latest loss on the validation records, in nats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_loss: Option<Decimal>,
}

/// Progress of a curriculum.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CurriculumStatus {
    /// Id of the active phase; of the last one once all are completed.
    #[schemars(length(max = 63))]
    pub phase: String,
    /// Number of this phase, counted from 1.
    pub index: i64,
    /// Number of phases.
    pub of: i64,
    /// Completed steps of this phase and the number that it has at least, as completed/least.
    #[schemars(length(max = 64))]
    pub steps: String,
    /// Why the phase goes on although its steps are done: each threshold that does not hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub reason: Option<String>,
    /// All phases, in their order.
    #[schemars(length(max = 32))]
    pub phases: Vec<CurriculumPhaseStatus>,
}

/// A phase of a curriculum.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CurriculumPhaseStatus {
    /// Id of the phase.
    #[schemars(length(max = 63))]
    pub id: String,
    /// Where the phase stands: pending, active, completed, failed (the steps of the run were used up while it waited for its
    /// thresholds) or skipped.
    pub status: CurriculumPhaseState,
    /// Number of optimizer steps before its first one. Absent until it begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_step: Option<i64>,
}

/// Where a phase of a curriculum stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum CurriculumPhaseState {
    /// It has not begun.
    Pending,
    /// It is being trained, or the run ended in it.
    Active,
    /// Its steps are done and its thresholds held.
    Completed,
    /// The steps of the run were used up while it waited for its thresholds.
    Failed,
    /// The run ended before it began.
    Skipped,
}

/// Maximum number of phases that a status holds.
pub const MAX_CURRICULUM_PHASES: usize = 32;

/// A checkpoint on the volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CheckpointStatus {
    /// Number of optimizer steps in the checkpoint.
    pub step: i64,
    /// SHA-256 of the checkpoint's manifest.
    pub digest: Sha256,
}

/// A checkpoint that was recorded and that the volume no longer held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LostCheckpointStatus {
    /// Number of optimizer steps in the lost checkpoint.
    pub step: i64,
    /// SHA-256 of the manifest of the lost checkpoint.
    pub digest: Sha256,
    /// Step that training resumed from instead. 0 means that it started over.
    pub resumed_from: i64,
    /// Time at which the controller found the loss.
    pub found_at: Time,
    /// Number of pods that had started before the loss, if the volume lost their count too; else 0.
    pub attempts: i32,
    /// Number of optimizer steps that had been executed before the loss, if the volume lost their count too; else 0.
    pub steps_executed: i64,
}

/// A data file and the digest of the bytes that were read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DataStatus {
    /// Name of the file in spec.data; for the outcomes of an Evaluation that gates compare with, its name after "reference-".
    #[schemars(length(max = 63))]
    pub name: String,
    /// SHA-256 of the bytes that the pod read.
    pub sha256: DataDigest,
}

/// A trained model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelStatus {
    /// Model digest: SHA-256 of the model's canonical manifest. It identifies the model everywhere.
    pub digest: ModelDigest,
    /// First twelve digits of the model digest.
    #[schemars(length(max = 12))]
    pub short: String,
    /// Root of the model's OpenSSF Model Signing statement.
    pub oms_root: OmsRoot,
    /// Location of the model: claim name and path on the volume, as claim/path.
    #[schemars(length(max = 1024))]
    pub location: String,
    /// Number of trainable parameters.
    pub parameters: i64,
    /// Total size of the model files in bytes.
    pub size_bytes: i64,
    /// Digest of the adapter beside the model, in artifacts/adapter: SHA-256 of its canonical manifest, as the trainer reported it. Absent
    /// if no adapter was trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<ModelDigest>,
    /// Files of the model, in the order of its manifest.
    #[schemars(length(max = 64))]
    pub files: Vec<FileStatus>,
}

/// Maximum number of model files that a status holds.
pub const MAX_MODEL_FILES: usize = codex_provenance::manifest::MAX_RECORDED_FILES;

/// A file of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FileStatus {
    /// Path of the file in the model directory.
    #[schemars(length(max = 1024))]
    pub path: String,
    /// Size of the file in bytes.
    pub size: i64,
    /// SHA-256 of the contents of the file.
    pub sha256: Sha256,
}
