//! `ReasoningPod`: serves one model, once it passed in its ring. No I/O.

use codex_provenance::{ModelDigest, PromotionDigest};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Ring, WorkerPod};

/// What to serve, and on which evidence.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "codex-ml.dev",
    version = "v1alpha1",
    kind = "ReasoningPod",
    namespaced,
    status = "ReasoningPodStatus",
    derive = "PartialEq",
    doc = "A ReasoningPod serves the model of a TrainingRun once the run's ring equals its own and every named Evaluation passed for exactly that model. By default it is a dry run, which checks everything and creates nothing.",
    shortname = "rpod",
    category = "codex",
    scale(spec_replicas_path = ".spec.replicas", status_replicas_path = ".status.replicas", label_selector_path = ".status.selector"),
    printcolumn(name = "Ring", type_ = "string", json_path = ".spec.rolloutRing"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.ready"),
    printcolumn(name = "Signer", type_ = "string", json_path = ".status.manifest.signer"),
    printcolumn(name = "Model", type_ = "string", json_path = ".status.model"),
    printcolumn(name = "Blocked by", type_ = "string", json_path = ".status.blockedBy[0]", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = crate::rules::name()
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("self.pod == oldSelf.pod", "spec.pod is immutable: create another ReasoningPod"),
)]
pub struct ReasoningPodSpec {
    /// The rollout ring that this pod serves. It must equal the run's ring.
    #[x_kube(validation = crate::rules::ring())]
    pub rollout_ring: Ring,
    /// The TrainingRun of this namespace whose model is served.
    #[schemars(length(min = 1, max = 52))]
    pub training_run: String,
    /// The Evaluations of this namespace that must have passed for exactly that model.
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 52)))]
    #[x_kube(
        validation = ("self.all(a, self.exists_one(b, b == a))", "spec.evaluations[] names each Evaluation once")
    )]
    pub evaluations: Vec<String>,
    /// Checks everything, signs nothing and creates nothing while true.
    #[serde(default = "default_dry_run")]
    pub dry_run: bool,
    /// How many servers to run.
    #[serde(default = "default_replicas")]
    #[schemars(range(min = 0, max = 1000))]
    pub replicas: i32,
    /// The pods that serve; they run the controller's own image.
    #[serde(default)]
    pub pod: WorkerPod,
}

fn default_dry_run() -> bool {
    true
}

fn default_replicas() -> i32 {
    1
}

/// What is known about a served model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReasoningPodStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Selects the serving pods, for the scale subresource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub selector: Option<String>,
    /// Where the rollout stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<ReasoningPodPhase>,
    /// All that is missing before anything new may roll out, in plain words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 1024)))]
    pub blocked_by: Vec<String>,
    /// The uid of the run whose model is served; a run created again under the same name is another run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub training_run_uid: Option<String>,
    /// The first twelve digits of the digest of the model that is, or is to be, served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 12))]
    pub model: Option<String>,
    /// The signed manifest of the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<ManifestStatus>,
    /// The signed promotion of that model into this ring.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promotion: Option<PromotionStatus>,
    /// What the servers verified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified: Option<VerifiedStatus>,
    /// Servers that exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,
    /// Servers that are ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_replicas: Option<i32>,
    /// Ready and wanted servers, as `ready/wanted`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub ready: Option<String>,
    /// Where the model answers, inside the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub url: Option<String>,
    /// The state of the rollout as conditions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// Where a rollout stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum ReasoningPodPhase {
    /// Waiting for something that comes by itself.
    Pending,
    /// The dry run found nothing that blocks.
    DryRun,
    /// Something blocks the rollout; `blockedBy` says what.
    Blocked,
    /// Servers are being started.
    RollingOut,
    /// All servers are ready.
    Serving,
}

/// The signed manifest of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ManifestStatus {
    /// The model's digest.
    pub digest: ModelDigest,
    /// The first twelve digits of it.
    #[schemars(length(max = 12))]
    pub short: String,
    /// The first twelve digits of the signing key's fingerprint.
    #[schemars(length(max = 64))]
    pub signer: String,
    /// The ConfigMap that holds the OMS bundle.
    #[schemars(length(max = 253))]
    pub bundle: String,
    /// Where the model lies: claim name and path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub location: Option<String>,
}

/// The signed promotion of a model into a ring.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PromotionStatus {
    /// The ring.
    pub ring: Ring,
    /// The digest of the promotion statement.
    pub digest: PromotionDigest,
    /// The ConfigMap that holds the bundle.
    #[schemars(length(max = 253))]
    pub bundle: String,
}

/// What the servers verified.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VerifiedStatus {
    /// The digest of the bytes that the newest reporting server holds.
    pub digest: ModelDigest,
    /// That server's pod.
    #[schemars(length(max = 253))]
    pub by: String,
    /// When it reported so first.
    pub at: Time,
}
