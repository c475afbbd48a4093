//! `SignOff`: a person signs for exactly one model and its reports. It never reports. No I/O.

use codex_provenance::{ModelDigest, Sha256};
use codex_verdict::{Ring, policy::MAX_USER};
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

/// The sign-off of a person for one model and the reports about it.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "codex-ml.dev",
    version = "v1alpha1",
    kind = "SignOff",
    namespaced,
    derive = "PartialEq",
    doc = "A SignOff says that a person approves a model after reading the reports about it. It counts only for the digests that it names, and not after one of them has changed. It is immutable; delete it to withdraw it.",
    shortname = "soff",
    category = "codex",
    printcolumn(name = "By", type_ = "string", json_path = ".spec.by"),
    printcolumn(name = "Pod", type_ = "string", json_path = ".spec.reasoningPod"),
    printcolumn(name = "Evaluation", type_ = "string", json_path = ".spec.evaluation"),
    printcolumn(name = "Ring", type_ = "string", json_path = ".spec.ring"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".spec.reason", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = crate::rules::name()
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("has(self.evaluation) != has(self.reasoningPod)", "spec must have exactly one of evaluation and reasoningPod"),
    validation = ("self == oldSelf", "spec is immutable, because a person has signed it: create another SignOff"),
)]
pub struct SignOffSpec {
    /// Name of the Evaluation in this namespace that the person has read. Exactly one of evaluation and reasoningPod is required.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 52))]
    pub evaluation: Option<String>,
    /// Name of the ReasoningPod in this namespace that may serve the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 52))]
    pub reasoning_pod: Option<String>,
    /// Ring for which the sign-off counts. Without it, it counts in every ring.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ring: Option<Ring>,
    /// User name of the person, as the API server knows it. It must be the user that creates the SignOff, or a GitOps account that
    /// the admission policy codex-sign-offs lists must create it.
    #[schemars(length(min = 1, max = MAX_USER))]
    pub by: String,
    /// Groups of the person in whose name they sign. The admission policy refuses a group that the user is not in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = MAX_USER)))]
    pub groups: Vec<String>,
    /// Whether the person named in by creates the SignOff. The admission policy requires true from that person and false from a
    /// GitOps account. Defaults to false.
    #[serde(default)]
    pub authenticated: bool,
    /// Why the person signs, in one sentence.
    #[schemars(length(min = 1, max = 1024))]
    pub reason: String,
    /// Digest of the model, as status.model.digest of the TrainingRun has it.
    pub model_digest: ModelDigest,
    /// Digest of the report, as status.reportDigest of the Evaluation or of the ReasoningPod has it.
    pub report_digest: Sha256,
}
