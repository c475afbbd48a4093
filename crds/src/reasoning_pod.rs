//! `ReasoningPod`: serves one model, once it passed in its ring. No I/O.

use codex_provenance::{EvidenceStrength, ModelDigest, PromotionDigest, Sha256, attestation::AttestationKind};
use codex_verdict::Ring;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    Autoscaling, Device, DeviceStatus, MAX_HISTORY, Redeploy, RedeployStatus, Rollout, RolloutRecord, RolloutStatus,
    ServedStatus, Shadow, ShadowStatus, WorkerPod,
};

/// The most SignOffs in a status.
pub(crate) const MAX_SIGN_OFFS: usize = 64;

/// Desired state of a ReasoningPod: ring, model, required Evaluations, replicas and pods.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "codex-ml.dev",
    version = "v1alpha1",
    kind = "ReasoningPod",
    namespaced,
    status = "ReasoningPodStatus",
    derive = "PartialEq",
    doc = "A ReasoningPod serves the model of a TrainingRun if the ring of the run equals its own and every named Evaluation has passed for exactly that model. By default it is a dry run, which checks everything and creates nothing.",
    shortname = "rpod",
    category = "codex",
    scale(spec_replicas_path = ".spec.replicas", status_replicas_path = ".status.replicas", label_selector_path = ".status.selector"),
    printcolumn(name = "Ring", type_ = "string", json_path = ".spec.rolloutRing"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.ready"),
    printcolumn(name = "Signer", type_ = "string", json_path = ".status.manifest.signer"),
    printcolumn(name = "Model", type_ = "string", json_path = ".status.model"),
    printcolumn(name = "Blocked by", type_ = "string", json_path = ".status.blockedBy[0]", priority = 1),
    printcolumn(name = "Evidence", type_ = "string", json_path = ".status.evidence", priority = 1),
    printcolumn(name = "Cycle", type_ = "string", json_path = ".status.redeploy.phase", priority = 1),
    printcolumn(name = "Next cycle", type_ = "string", json_path = ".status.redeploy.nextScheduleTime", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = crate::rules::name(),
    validation = crate::rules::own_shadow(),
    validation = crate::rules::redeployed_name()
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = crate::rules::same_pod("ReasoningPod"),
    validation = crate::rules::scaled_by_cpu(),
    validation = crate::rules::shadow(),
    validation = crate::rules::served(),
    validation = crate::rules::redeployed_ring(),
    validation = crate::rules::no_redeployed_shadow(),
    validation = crate::rules::no_encrypted_gateway(),
    validation = crate::rules::no_encrypted_shadow(),
    validation = crate::rules::no_encrypted_agreement(),
    validation = crate::rules::stops_while_idle(),
)]
pub struct ReasoningPodSpec {
    /// Rollout ring in which the model is served. A ring is a stage of promotion: a model moves through
    /// 0A_base_, 0B_base_, 0C_base_, 0D_base_ and main, in this order. An object may be created in any ring; an update moves
    /// it forward by at most one ring, or back by any number. It must equal the ring of the TrainingRun.
    #[x_kube(validation = crate::rules::ring())]
    pub rollout_ring: Ring,
    /// Name of the TrainingRun in this namespace whose model is served; with spec.redeploy, until the first cycle is promoted.
    /// Required without spec.redeploy.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(min = 1, max = 52))]
    pub training_run: String,
    /// Names of the Evaluations in this namespace that must have passed for exactly the model that is served. Required with
    /// spec.trainingRun.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 52)))]
    #[x_kube(
        validation = ("self.all(a, self.exists_one(b, b == a))", "spec.evaluations[] must name each Evaluation once: remove the duplicates")
    )]
    pub evaluations: Vec<String>,
    /// While true, everything is checked, and nothing is signed or created. Defaults to true.
    #[serde(default = "default_dry_run")]
    pub dry_run: bool,
    /// Number of server pods. Defaults to 1. With spec.autoscaling the HorizontalPodAutoscaler sets the number, and this one counts
    /// only if it is 0, which stops the servers; it counts again once spec.autoscaling is removed.
    #[serde(default = "default_replicas")]
    #[schemars(range(min = 0, max = 1000))]
    pub replicas: i32,
    /// Automatic scaling of the servers. Without it, spec.replicas is their number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autoscaling: Option<Autoscaling>,
    /// Rollout by a canary. Without it, a new model replaces the served one as soon as its servers are ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<Rollout>,
    /// Regular redeployment: a cycle trains, evaluates and promotes another model at each time of a schedule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redeploy: Option<Box<Redeploy>>,
    /// Makes this ReasoningPod a shadow of another one: its servers get copies of the other's requests, and their answers are compared
    /// with those of the other and sent to no client. Without it, the servers answer clients.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadow: Option<Shadow>,
    /// Settings of the server pods. Their image is the one that the controller is configured with.
    #[serde(default)]
    #[x_kube(
        validation = ("!has(self.resources) || !has(self.resources.claims) || self.resources.claims.all(claim, has(self.resourceClaims) && self.resourceClaims.exists(given, given.name == claim.name))", "pod.resources.claims must name entries of pod.resourceClaims: add the claim there, or remove it")
    )]
    pub pod: WorkerPod,
    /// Who may send requests to the servers, which texts they refuse, and how many requests they run at once.
    #[serde(default, skip_serializing_if = "Serving::is_default")]
    #[x_kube(validation = crate::rules::batched_tokens())]
    pub serving: Serving,
}

/// What the servers of a ReasoningPod grant their clients, and how they generate. A change replaces the server pods.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Serving {
    /// API keys that requests need. Without it, everybody who reaches the Service may use it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_keys: Option<ApiKeys>,
    /// Certificate of the servers: their port then speaks HTTPS. Without it, plain HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// Most requests of an API key within a time, as number/time, such as 30/60s, the default with apiKeys. Without apiKeys, the
    /// most of all clients together. Each server pod counts for itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = crate::rules::quota("spec.serving.rateLimit", "30/60s"))]
    pub rate_limit: Option<String>,
    /// Most tokens of an API key within a time, those of prompts included, as number/time, such as 1000000/1d. Without apiKeys,
    /// the most of all clients together. Each server pod counts for itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = crate::rules::quota("spec.serving.tokenBudget", "1000000/1d"))]
    pub token_budget: Option<String>,
    /// Most seconds from the arrival of a request to the end of its response; then it is answered with 504. Without it, there is no
    /// limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86_400))]
    pub request_timeout_seconds: Option<i32>,
    /// Tokens that a chat may reason before its reasoning is closed and the answer begins, unless the request says otherwise. Without
    /// it, reasoning may take all tokens of the response.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_048_576))]
    pub thinking_budget: Option<i32>,
    /// Tokens of the response of a chat that are kept for its answer: reasoning is closed before it takes them. Defaults to 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_048_576))]
    pub answer_reserve: Option<i32>,
    /// ConfigMap with the safety rules of prompts and answers. Without it, texts are not checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub safety: Option<SafetyRules>,
    /// Device that generates: auto, cpu or cuda. auto takes a GPU if spec.pod gives the servers one and they can use it, else the
    /// processor; cuda refuses to serve without a usable GPU. Defaults to auto.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<Device>,
    /// Most requests that are generated at the same time. Defaults to 8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_535))]
    pub max_num_seqs: Option<i32>,
    /// Most requests that wait; further ones are refused with 429. Defaults to 64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 65_535))]
    pub max_queued_requests: Option<i32>,
    /// Most tokens that one step computes: one for each response, and chunks of prompts. At least maxNumSeqs. Defaults to 256, to
    /// 2048 on a GPU, or to maxNumSeqs if that is more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_048_576))]
    pub max_num_batched_tokens: Option<i32>,
    /// Most tokens whose keys and values running requests have together. At least a whole context of the model, or the servers
    /// refuse to start. When they are full, the request that came last waits and is computed again. Defaults to a whole context for
    /// each of maxNumSeqs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_099_511_627_776_i64))]
    pub kv_cache_tokens: Option<i64>,
    /// Most tokens whose keys and values are kept for later prompts that begin alike; 0 keeps none. Defaults to 16384.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_099_511_627_776_i64))]
    pub prefix_cache_tokens: Option<i64>,
}

impl Serving {
    /// Returns the settings of how servers generate, without what clients are granted.
    #[must_use]
    pub fn of_engine(&self) -> Self {
        let Self {
            device,
            max_num_seqs,
            max_queued_requests,
            max_num_batched_tokens,
            kv_cache_tokens,
            prefix_cache_tokens,
            ..
        } = *self;
        Self {
            device,
            max_num_seqs,
            max_queued_requests,
            max_num_batched_tokens,
            kv_cache_tokens,
            prefix_cache_tokens,
            ..Self::default()
        }
    }

    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// The API keys of the servers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ApiKeys {
    /// Name of the Secret with the keys: each entry is a key, by the name of its client. Changes reach running servers.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = crate::rules::subdomain("spec.serving.apiKeys.secret", "team-keys"))]
    pub secret: String,
}

/// The certificate of the servers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Tls {
    /// Name of the Secret with the certificate and its key as tls.crt and tls.key, as those of the type kubernetes.io/tls have them.
    /// Changes reach running servers.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = crate::rules::subdomain("spec.serving.tls.secret", "team-tls"))]
    pub secret: String,
}

/// The safety rules of the servers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SafetyRules {
    /// Name of the ConfigMap whose key rules.yaml holds the rules. Changes reach running servers.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = crate::rules::subdomain("spec.serving.safety.configMap", "team-rules"))]
    pub config_map: String,
}

fn default_dry_run() -> bool {
    true
}

fn default_replicas() -> i32 {
    1
}

/// Observed state of a ReasoningPod.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReasoningPodStatus {
    /// Generation of the spec that this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Label selector of the server pods, for the scale subresource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub selector: Option<String>,
    /// Phase of the rollout: Pending, DryRun, Blocked, RollingOut, Serving or Idle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<ReasoningPodPhase>,
    /// Time at which the object got its phase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_phase_transition_time: Option<Time>,
    /// Everything that blocks the rollout, one sentence each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 1024)))]
    pub blocked_by: Vec<String>,
    /// Uid of the TrainingRun whose model is served. A run that is deleted and created again under the same name is another run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub training_run_uid: Option<String>,
    /// First twelve digits of the digest of the model that is served or about to be served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 12))]
    pub model: Option<String>,
    /// Signed manifest of the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<ManifestStatus>,
    /// Signed promotion of the model into spec.rolloutRing, or of a shadow into the ring before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promotion: Option<PromotionStatus>,
    /// Model digest that the servers verified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified: Option<VerifiedStatus>,
    /// Device that the server named in status.verified.by computes on, as that server reported it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceStatus>,
    /// Number of server pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,
    /// Number of server pods that are ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_replicas: Option<i32>,
    /// Number of ready and of desired server pods, as ready/desired.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub ready: Option<String>,
    /// URL of the Service inside the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub url: Option<String>,
    /// Strength of the evidence: strong if admission policies protected every Evaluation from start to end, else weak.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence: Option<EvidenceStrength>,
    /// Reason why the evidence is weak.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub evidence_reason: Option<String>,
    /// Digest over the reports of all Evaluations in spec.evaluations, which a SignOff for this ReasoningPod names. With one
    /// Evaluation it is the digest of its report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report_digest: Option<Sha256>,
    /// SignOffs that concern this ReasoningPod, and whether each counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_SIGN_OFFS))]
    pub sign_offs: Vec<SignOffStatus>,
    /// Canary that runs or has failed. Absent while what the spec describes is served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutStatus>,
    /// Comparison with the ReasoningPod in spec.shadow.of. Without spec.shadow, that of a former shadow until its servers are replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadow: Option<ShadowStatus>,
    /// Canaries that have ended, newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_HISTORY))]
    pub history: Vec<RolloutRecord>,
    /// What is served: the TrainingRun and the Evaluations of the latest promoted cycle. Present only with spec.redeploy, once a cycle
    /// was promoted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<ServedStatus>,
    /// State of the redeployments. Present only with spec.redeploy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redeploy: Option<RedeployStatus>,
    /// Seal of the controller over the parts of this status that later steps depend on. A status without a valid seal is discarded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub seal: Option<String>,
    /// Conditions of the rollout: Canary, EndpointsWritten, EvidenceStrong, ForeignPods, GatesPassed, Idle, KeyExpires,
    /// ParityHolding, PolicyMet, Ready, Reconciling, RedeploysOnTime, Revoked, RingMatched, RouteAccepted, ScalingActive, Signed, SignedOff, Stalled, StatusDiscarded,
    /// Trained and Verified.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 24))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// The phase of a rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum ReasoningPodPhase {
    /// Waiting for an object that is expected to appear or to finish.
    Pending,
    /// `spec.dryRun` is true, and nothing blocks the rollout.
    DryRun,
    /// Something blocks the rollout; `status.blockedBy` lists it.
    Blocked,
    /// Server pods are being started or replaced.
    RollingOut,
    /// All server pods are ready.
    Serving,
    /// No server runs, and a request starts one.
    Idle,
}

/// A signed manifest of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ManifestStatus {
    /// Digest of the model whose manifest is signed.
    pub digest: ModelDigest,
    /// First twelve digits of the digest of the model.
    #[schemars(length(max = 12))]
    pub short: String,
    /// First twelve digits of the fingerprint of the signing key.
    #[schemars(length(max = 64))]
    pub signer: String,
    /// Name of the ConfigMap that holds the OpenSSF Model Signing bundle.
    #[schemars(length(max = 253))]
    pub bundle: String,
    /// Location of the model: claim name and path on the volume, as claim/path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub location: Option<String>,
}

/// A SignOff that concerns a ReasoningPod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SignOffStatus {
    /// Name of the SignOff.
    #[schemars(length(max = 253))]
    pub name: String,
    /// User who signed.
    #[schemars(length(max = 256))]
    pub by: String,
    /// Whether the user created the SignOff while admission policies were in place. Otherwise another account, such as one of
    /// GitOps, created it for the user.
    pub authenticated: bool,
    /// Whether it counts for the model and the reports of now.
    pub counts: bool,
    /// Reason why it does not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub void: Option<String>,
}

/// A signed promotion of a model into a ring.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PromotionStatus {
    /// Ring that the promotion statement names.
    pub ring: Ring,
    /// SHA-256 of the promotion statement.
    pub digest: PromotionDigest,
    /// Name of the ConfigMap that holds the promotion bundle.
    #[schemars(length(max = 253))]
    pub bundle: String,
    /// First twelve digits of the fingerprint of the key that signed the promotion, if it is another key than status.manifest.signer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub signer: Option<String>,
    /// The attestations beside it that promotion policies demand. Servers verify them before they load the model.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub attestations: Vec<AttestationKind>,
}

/// Result of the verification that a server makes before it loads a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VerifiedStatus {
    /// Digest of the model that the server pod with the latest report verified and holds in memory.
    pub digest: ModelDigest,
    /// Name of the server pod that reported status.verified.digest.
    #[schemars(length(max = 253))]
    pub by: String,
    /// Time at which the server pod named in status.verified.by first reported status.verified.digest.
    pub at: Time,
    /// How that server reproduced the golden tokens of the promotion: equal, near (within the tolerance, on another code path or
    /// instruction set) or absent (the promotion has none).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub golden_tokens: Option<String>,
}
