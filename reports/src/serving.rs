//! Reports of servers. No I/O.

use codex_provenance::{ModelDigest, PromotionDigest};
use serde::{Deserialize, Serialize};

use crate::{Failure, Stage};

/// Cumulative state of a server.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServingState {
    /// Stage of the work. [`Stage::Running`] once the model is verified and loaded and the server answers.
    pub stage: Stage,
    /// Digest of the model that the server holds in memory, after both bundles were verified against exactly these bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified: Option<ModelDigest>,
    /// Digest of the promotion statement that the server verified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promotion: Option<PromotionDigest>,
    /// How the server reproduced the golden tokens of its promotion.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub golden_tokens: Option<Reproduction>,
    /// Requests since the server started. Only canaries report them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic: Option<Traffic>,
    /// Seconds since 1970, by the clock of the node, at which the last request ended, or the server was ready if none came; `None` while
    /// requests run, and until none has run for a few seconds. Only servers that stop while idle report it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_since: Option<i64>,
    /// Whether requests wait for a server. Only activators report it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub waiting: bool,
    /// Public key (Ed25519, hexadecimal) with which the server signs copies of requests for shadows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copies_key: Option<String>,
    /// Comparisons since the server started, one for each model that it was compared with, at most [`MAX_COMPARISONS`]. Only shadows
    /// report them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub comparisons: Vec<Comparison>,
    /// Reason why the server refuses to serve. `VerificationFailed` names the file, the bundle or the ring, `GoldenTokensDiffer` the
    /// Evaluation, the prompt and the token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
}

/// How a server reproduced the golden tokens of its promotion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reproduction {
    /// The promotion has none: an earlier release signed it, or its evaluators recorded none.
    Absent,
    /// The same tokens with the same log-probabilities: the code path and the instruction set are those of the record.
    Equal,
    /// Log-probabilities within the tolerance of the record: the code path or the instruction set is another one.
    Near,
}

impl Reproduction {
    /// Returns the name in reports, statuses and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Equal => "equal",
            Self::Near => "near",
        }
    }
}

/// The upper ends in seconds of the buckets of [`Traffic::latency`]: those of the metric `codex_ml_inference_latency_seconds`.
pub const LATENCY_EDGES: [f64; 13] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.7, 1.0, 2.5, 5.0, 10.0, 30.0];

/// Numbers of requests since a server started. They only grow.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Traffic {
    /// Requests that were answered with success or a server error. Requests that the client got wrong are left out.
    pub requests: u64,
    /// Those of them that failed with a server error (5xx).
    pub errors: u64,
    /// Requests that were refused because of a limit or a full queue (429).
    pub refused: u64,
    /// Requests that were completed.
    pub completed: u64,
    /// The number of completed requests that took at most as long as each of [`LATENCY_EDGES`].
    pub latency: Vec<u64>,
}

impl Traffic {
    /// Returns the completed requests that surely took longer than `seconds`: those beyond the next edge.
    pub fn slower_than(&self, seconds: f64) -> u64 {
        let bucket = LATENCY_EDGES.iter().position(|edge| *edge >= seconds);
        let within = bucket.and_then(|bucket| self.latency.get(bucket)).copied();
        self.completed.saturating_sub(within.unwrap_or(self.completed))
    }
}

/// The most entries of [`ServingState::comparisons`]. The models that were met last are kept.
pub const MAX_COMPARISONS: usize = 2;

/// What a shadow knows about a model that it is compared with. The numbers only grow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Comparison {
    /// Digest of the other model.
    pub model: ModelDigest,
    /// Requests that both models answered.
    pub compared: u64,
    /// Those of them with the same final answer.
    pub agreed: u64,
    /// Those of them with the same tokens.
    pub identical: u64,
    /// Copies that were not compared, because the shadow was busy, failed or has another tokenizer.
    pub skipped: u64,
    /// The number of compared requests that the shadow answered within each of [`LATENCY_EDGES`].
    pub latency: Vec<u64>,
    /// The same of the server that answered the client.
    pub other_latency: Vec<u64>,
    /// The earliest difference of tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_difference: Option<Difference>,
}

impl Comparison {
    /// Returns a comparison with a model that has not begun.
    pub fn of(model: ModelDigest) -> Self {
        let (latency, other_latency) = (vec![0; LATENCY_EDGES.len()], vec![0; LATENCY_EDGES.len()]);
        Self { model, compared: 0, agreed: 0, identical: 0, skipped: 0, latency, other_latency, first_difference: None }
    }
}

/// Where two responses differ first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Difference {
    /// The number of the first token that differs, from 0.
    pub token: u64,
    /// The distance of the log-probabilities that the shadow gives to its own token and to the other one, in thousandths; `None` if
    /// the other one is not among its likeliest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gap_thousandths: Option<u64>,
}

/// Adds a latency in seconds to buckets that end at [`LATENCY_EDGES`].
pub fn latency_buckets(buckets: &mut [u64], seconds: f64) {
    for (bucket, edge) in buckets.iter_mut().zip(LATENCY_EDGES) {
        *bucket += u64::from(seconds <= edge);
    }
}

/// Returns the edge in seconds within which at least 95 of 100 requests were completed; `None` if that is beyond the last edge, or
/// nothing was completed. `buckets` are cumulative.
pub fn percentile_95(completed: u64, buckets: &[u64]) -> Option<f64> {
    let enough = |within: u64| u128::from(within) * 100 >= u128::from(completed) * 95;
    let found = buckets.iter().zip(LATENCY_EDGES).find(|(within, _)| enough(**within));
    found.filter(|_| completed > 0).map(|(_, edge)| edge)
}

#[cfg(test)]
mod tests {
    use super::{LATENCY_EDGES, Traffic, latency_buckets, percentile_95};

    #[test]
    fn the_percentile_is_an_edge() {
        let mut buckets = vec![0; LATENCY_EDGES.len()];
        assert_eq!(percentile_95(0, &buckets), None);
        for _ in 0..95 {
            latency_buckets(&mut buckets, 0.7);
        }
        for _ in 0..5 {
            latency_buckets(&mut buckets, 60.0);
        }
        assert_eq!(percentile_95(100, &buckets), Some(0.7));
        assert_eq!(percentile_95(101, &buckets), None, "six of 101 are beyond the last edge");
        latency_buckets(&mut buckets, 0.71);
        assert_eq!(percentile_95(101, &buckets), Some(1.0));
    }

    #[test]
    fn only_requests_beyond_the_next_edge_are_surely_slower() {
        // One request in each bucket, and one beyond the last edge.
        let traffic = Traffic { completed: 14, latency: (1..=13).collect(), ..Traffic::default() };
        assert_eq!(LATENCY_EDGES.len(), traffic.latency.len());
        for (seconds, slower) in [(0.7, 6), (0.6, 6), (0.71, 5), (30.0, 1), (31.0, 0), (0.001, 13)] {
            assert_eq!(traffic.slower_than(seconds), slower, "{seconds}");
        }
        assert_eq!(Traffic { completed: 3, ..Traffic::default() }.slower_than(0.7), 0, "no latency is known");
    }
}
