//! Canaries: how a new model replaces the served one, and what the status says about it. No I/O.

use codex_provenance::{ModelDigest, PromotionDigest};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{MAX_SHADOW_SOURCES, ShadowSource, VerifiedStatus};

/// The most entries of `status.history`.
pub const MAX_HISTORY: usize = 10;

/// Rollout by a canary: new servers start beside the present ones, and replace them once they have answered requests well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = crate::rules::compared_step())]
pub struct Rollout {
    /// Servers of the canary in percent of the present servers, rounded up, in ascending order. At 100 all requests go to the
    /// canary; before, each server gets an equal share, or with gateway the canary this share of all requests. Defaults to 5, 25, 50
    /// and 100.
    #[serde(default = "default_steps")]
    #[schemars(length(min = 1, max = 10), inner(range(min = 1, max = 100)))]
    #[x_kube(
        validation = ("self.all(a, self.exists_one(b, b == a)) && self.exists(step, step == 100)", "spec.rollout.steps[] must be different percents and end with 100: write [5, 25, 50, 100]"),
    )]
    pub steps: Vec<i32>,
    /// When a step ends, and when the canary fails.
    #[serde(default)]
    pub analysis: Analysis,
    /// Exact shares through Gateway API: the controller writes an HTTPRoute whose weights are those of the step. Requests that come
    /// through the Gateway follow them, and the Service of the ReasoningPod answers only with the present servers. Without it, the
    /// Service gives each server an equal share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<RolloutGateway>,
}

impl Rollout {
    /// Whether the canary has a Service of its own, beside that of all servers: for a Gateway, or for copies of requests.
    #[must_use]
    pub fn names_canary(&self) -> bool {
        self.gateway.is_some() || self.analysis.agreement.is_some()
    }
}

/// Where the HTTPRoute of a ReasoningPod is attached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RolloutGateway {
    /// The Gateways that send requests to the servers, as in spec.parentRefs of an HTTPRoute.
    #[schemars(length(min = 1, max = 8))]
    pub parent_refs: Vec<ParentRef>,
    /// Host names of the requests, as in spec.hostnames of an HTTPRoute, such as models.example.com or *.example.com. Without any, the
    /// route takes the requests of every host that its listeners accept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 253)))]
    #[x_kube(
        validation = ("self.all(host, host.matches('^([*][.])?[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$'))", "spec.rollout.gateway.hostnames[] must be host names of lower-case letters, digits, dashes and dots, such as models.example.com or *.example.com")
    )]
    pub hostnames: Vec<String>,
}

/// A Gateway, or one of its listeners.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ParentRef {
    /// Name of the Gateway.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = crate::rules::subdomain("spec.rollout.gateway.parentRefs[].name", "public"))]
    pub name: String,
    /// Namespace of the Gateway. Defaults to that of the ReasoningPod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub namespace: Option<String>,
    /// Name of the listener. Without it, all listeners that allow the route.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub section_name: Option<String>,
    /// Port of the listeners. Without it, all ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_535))]
    pub port: Option<i32>,
}

/// The analysis of a canary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Analysis {
    /// Least duration of a step in seconds, from when all its servers are ready. Defaults to 300.
    #[serde(default = "default_interval")]
    #[schemars(range(min = 1, max = 604_800))]
    pub interval_seconds: i32,
    /// Least number of requests that the canary answers in a step. Without traffic the step does not end. Defaults to 50.
    #[serde(default = "default_requests")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub min_requests: i32,
    /// Greatest share of requests that fail with a server error (5xx), such as 0.01, the default. The canary fails once its lower
    /// confidence bound is above it.
    #[serde(default = "default_errors")]
    #[schemars(length(max = 16))]
    #[x_kube(validation = crate::rules::share("spec.rollout.analysis.maxErrorRate", "0.01"))]
    pub max_error_rate: String,
    /// Seconds within which 95 of 100 requests must be completed, such as 0.7, rounded up to the next edge of the latency
    /// histogram; at most 30. The canary fails once the lower confidence bound of its 95th percentile is above it. Without it, latency
    /// is not analysed.
    #[serde(default, rename = "maxP95Seconds", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    #[x_kube(validation = crate::rules::seconds("spec.rollout.analysis.maxP95Seconds", "0.7"))]
    pub max_p95_seconds: Option<String>,
    /// Greatest share of requests that are refused, such as 0.05: by a limit or a full queue (429), for their API key (401 or 403), or
    /// because a safety rule refuses their prompt or their answer. The canary fails once its lower confidence bound is above it.
    /// Without it, refusals are not analysed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    #[x_kube(validation = crate::rules::share("spec.rollout.analysis.maxRefusalRate", "0.05"))]
    pub max_refusal_rate: Option<String>,
    /// Seconds within which 95 of 100 responses must have their first token, waiting included, such as 0.5, rounded up to the next
    /// edge of the latency histogram; at most 30. The canary fails once the lower confidence bound of its 95th percentile is above
    /// it. Without it, the time to the first token is not analysed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    #[x_kube(validation = crate::rules::first_token_seconds())]
    pub max_first_token_seconds: Option<String>,
    /// Seconds that 95 of 100 responses may take for each token after the first one, on average over the response, such as 0.05,
    /// rounded up to the next edge of the histogram of inter-token times; at most 2.5. The canary fails once the lower confidence
    /// bound of its 95th percentile is above it. Without it, the time between tokens is not analysed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    #[x_kube(validation = crate::rules::inter_token_seconds())]
    pub max_inter_token_seconds: Option<String>,
    /// Agreement with the answers of the present servers, of which the canary gets copies in the steps below 100. Without it, answers
    /// are not compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agreement: Option<Agreement>,
}

/// How many answers of a canary may differ from those of the present servers to the same requests, with the same seeds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Agreement {
    /// Share of the requests to the present servers that are copied to the canary, in percent.
    #[schemars(range(min = 1, max = 100))]
    pub sample_percent: i32,
    /// Greatest share of compared requests that may be answered differently, such as 0.01. The canary fails once its lower confidence
    /// bound is above it. A step below 100 does not end before minRequests requests were compared.
    #[schemars(length(max = 16))]
    #[x_kube(validation = crate::rules::share("spec.rollout.analysis.agreement.maxDivergence", "0.01"))]
    pub max_divergence: String,
}

impl Default for Analysis {
    fn default() -> Self {
        Self {
            interval_seconds: default_interval(),
            min_requests: default_requests(),
            max_error_rate: default_errors(),
            max_p95_seconds: None,
            max_refusal_rate: None,
            max_first_token_seconds: None,
            max_inter_token_seconds: None,
            agreement: None,
        }
    }
}

fn default_steps() -> Vec<i32> {
    vec![5, 25, 50, 100]
}

fn default_interval() -> i32 {
    300
}

fn default_requests() -> i32 {
    50
}

fn default_errors() -> String {
    "0.01".to_owned()
}

/// What a canary does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum RolloutPhase {
    /// The canary answers requests and is analysed.
    Running,
    /// The canary has passed every step, and the servers are being replaced.
    Promoting,
    /// The canary has failed and is stopped. It is not tried again until the spec changes.
    RolledBack,
}

/// How a canary ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum RolloutResult {
    /// Its model and settings are served.
    Promoted,
    /// It failed.
    RolledBack,
    /// It was abandoned, because the spec asked for something else.
    Superseded,
}

/// State of a canary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RolloutStatus {
    /// Phase of the canary: Running, Promoting or RolledBack.
    pub phase: RolloutPhase,
    /// Number of the canary, counted from 1 for each ReasoningPod.
    pub revision: i64,
    /// Digest over the model, its promotion, spec.serving and spec.rollout for which the canary was started.
    #[schemars(length(max = 12))]
    pub attempt: String,
    /// Digest of the model of the canary.
    pub canary_digest: ModelDigest,
    /// Digest of the promotion statement of the canary.
    pub promotion: PromotionDigest,
    /// Current step, in percent.
    pub step: i32,
    /// Share of the requests that the canary gets, as canary/all: its share of the ready servers, such as 1/3, or with
    /// spec.rollout.gateway its weight in the HTTPRoute, such as 5/100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub share: Option<String>,
    /// Number of servers that the step asks for, of how many present ones, as canary/present.
    #[schemars(length(max = 16))]
    pub of: String,
    /// Time at which the canary began.
    pub started: Time,
    /// Time at which all servers of the step were ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step_started: Option<Time>,
    /// Requests that the servers of the canary had answered when the step began.
    pub before: TrafficStatus,
    /// Requests that the canary has answered in the step.
    pub traffic: TrafficStatus,
    /// Model digest that a server of the canary verified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified: Option<VerifiedStatus>,
    /// Present servers whose copies of requests the canary accepts, with their public keys.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_SHADOW_SOURCES))]
    pub sources: Vec<ShadowSource>,
    /// What the canary waits for, or why it was rolled back.
    #[schemars(length(max = 1024))]
    pub reason: String,
}

/// Numbers of requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TrafficStatus {
    /// Requests that were answered, or failed with a server error.
    pub requests: i64,
    /// Requests that failed with a server error.
    pub errors: i64,
    /// Requests that were refused because of a limit or a full queue (429). They are not among the others.
    pub refused: i64,
    /// Requests that were completed, whose latency is known.
    pub completed: i64,
    /// Completed requests that took longer than maxP95Seconds.
    pub slow: i64,
    /// Requests that were refused for another reason than a limit or a full queue. Absent if servers of an earlier version do not
    /// report them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rejected: Option<RejectedStatus>,
    /// Responses by the time to their first token. Present only with maxFirstTokenSeconds, if all servers report it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_token: Option<TimesStatus>,
    /// Responses of two tokens or more by the average time between their tokens. Present only with maxInterTokenSeconds, if all
    /// servers report it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inter_token: Option<TimesStatus>,
    /// Copies of requests to the present servers. Present only with agreement, once all servers have reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agreement: Option<AgreementStatus>,
}

/// Numbers of copies of requests to the present servers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AgreementStatus {
    /// Requests that were compared.
    pub compared: i64,
    /// Compared requests with the same final answer, including those with the same tokens.
    pub agreed: i64,
    /// Copies that were not compared: the canary had no room, or its tokenizer differs.
    pub skipped: i64,
}

/// Numbers of refused requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RejectedStatus {
    /// Requests that were refused before a response began: for their API key (401 or 403), or because a safety rule refused their
    /// prompt. They are not among the answered requests.
    pub before: i64,
    /// Requests whose answer a safety rule refused. They are among the answered requests.
    pub answers: i64,
}

/// Numbers of responses by a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TimesStatus {
    /// Responses whose time is known.
    pub responses: i64,
    /// Those of them that took longer than the limit.
    pub slow: i64,
}

/// A canary that has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RolloutRecord {
    /// Number of the canary.
    pub revision: i64,
    /// Digest of its model.
    pub digest: ModelDigest,
    /// Digest of its promotion statement.
    pub promotion: PromotionDigest,
    /// Time at which it began.
    pub started: Time,
    /// Time at which it ended.
    pub ended: Time,
    /// How it ended: Promoted, RolledBack or Superseded.
    pub result: RolloutResult,
    /// Why it ended so.
    #[schemars(length(max = 1024))]
    pub reason: String,
}

#[cfg(test)]
mod tests {
    use super::{Analysis, Rollout};

    #[test]
    fn an_empty_rollout_has_every_default() {
        let rollout: Rollout = serde_json::from_str("{}").unwrap();
        assert_eq!((rollout.steps, rollout.analysis), (vec![5, 25, 50, 100], Analysis::default()));
    }
}
