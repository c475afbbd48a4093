//! Shadows: ReasoningPods that answer copies of another one's requests, and what the comparison says. No I/O.

use codex_provenance::ModelDigest;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The most servers of the incumbent whose copies a shadow accepts.
pub const MAX_SHADOW_SOURCES: usize = 64;

/// Makes a ReasoningPod a shadow: it answers copies of the requests that another ReasoningPod answers, and is compared with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Shadow {
    /// Name of the ReasoningPod in this namespace whose requests are copied. It must not be a shadow itself.
    #[schemars(length(min = 1, max = 52))]
    #[x_kube(validation = crate::rules::subdomain("spec.shadow.of", "cot-rc"))]
    pub of: String,
    /// Share of the requests that are copied, in percent.
    #[schemars(range(min = 1, max = 100))]
    pub sample_percent: i32,
    /// Greatest share of requests that may be answered differently, such as 0.01. Parity holds once the upper confidence bound of
    /// the share is at most this, and is lost once the lower one is above it.
    #[schemars(length(max = 16))]
    #[x_kube(
        validation = crate::rules::share("spec.shadow.maxDivergence", "0.01"),
        validation = ("self.matches('[1-9]')", "spec.shadow.maxDivergence must be above 0, because no number of requests proves that nothing differs: write 0.01")
    )]
    pub max_divergence: String,
    /// Least number of compared requests before parity holds. Without it, as many as the bounds need.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub min_requests: Option<i32>,
}

/// What is known about parity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum Parity {
    /// The answers certainly differ in at most spec.shadow.maxDivergence of the requests.
    Holds,
    /// The answers certainly differ in more than spec.shadow.maxDivergence of the requests.
    Lost,
}

/// Comparison of a shadow with the ReasoningPod that it shadows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ShadowStatus {
    /// Name of the ReasoningPod whose requests are copied.
    #[schemars(length(max = 52))]
    pub of: String,
    /// Digest of its model. With another one the comparison begins again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of_digest: Option<ModelDigest>,
    /// Digest of the shadow's model. With another one the comparison begins again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<ModelDigest>,
    /// spec.shadow.maxDivergence as it is compared with. With another one the judgement begins again.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub max_divergence: String,
    /// Requests that were compared.
    #[serde(default)]
    pub compared: i64,
    /// Compared requests with the same final answer, including those with the same tokens.
    #[serde(default)]
    pub agreed: i64,
    /// Compared requests with the same tokens.
    #[serde(default)]
    pub identical: i64,
    /// Copies that were not compared: the shadow had no room, or its tokenizer differs.
    #[serde(default)]
    pub skipped: i64,
    /// Milliseconds within which the shadow completed 95 of 100 compared requests, rounded up to the next edge of the latency
    /// histogram. Absent above 30 s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p95_milliseconds: Option<i64>,
    /// The same of the ReasoningPod that it shadows, for the same requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of_p95_milliseconds: Option<i64>,
    /// Whether the 95th percentile of the shadow is at most 700 ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub within_target: Option<bool>,
    /// Earliest difference in a response.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_difference: Option<DifferenceStatus>,
    /// What the comparison has proved: Holds or Lost. Absent until it has. It stays until the opposite is proved, also when servers
    /// start again and count from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parity: Option<Parity>,
    /// Servers whose copies the shadow accepts, with their public keys.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_SHADOW_SOURCES))]
    pub sources: Vec<ShadowSource>,
}

/// A difference between two responses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DifferenceStatus {
    /// Number of the first token that differs, from 0.
    pub token: i64,
    /// Distance of the natural logarithms of the probabilities that the shadow gives to its own token and to the other one. Absent if
    /// the other one is not among its likeliest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub log_probability_gap: Option<String>,
}

/// A server whose copies of requests a shadow accepts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ShadowSource {
    /// Uid of its pod.
    #[schemars(length(max = 64))]
    pub pod: String,
    /// Public key (Ed25519, hexadecimal) that verifies its copies.
    #[schemars(length(max = 64))]
    pub key: String,
}
