//! Reports of servers. No I/O.

use codex_provenance::{Device, ModelDigest, PromotionDigest};
use serde::{Deserialize, Serialize};

use crate::{Failure, Stage};

/// The length of [`ServingState::copies_key`].
const COPIES_KEY_DIGITS: usize = 64;

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
    /// Device that computes. `None` until the model is loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<Device>,
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
    /// Public key (Ed25519, hexadecimal) with which the server signs copies of requests for shadows and canaries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copies_key: Option<String>,
    /// Comparisons since the server started, one for each model that it was compared with, at most [`MAX_COMPARISONS`]. Only shadows
    /// and canaries that are compared report them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub comparisons: Vec<Comparison>,
    /// Reason why the server refuses to serve. `VerificationFailed` names the file, the bundle or the ring, `GoldenTokensDiffer` the
    /// Evaluation, the prompt and the token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
}

impl ServingState {
    /// Returns [`Self::copies_key`] if it has the form of a key.
    pub fn valid_copies_key(&self) -> Option<&str> {
        let key = self.copies_key.as_deref()?;
        (key.len() == COPIES_KEY_DIGITS && key.bytes().all(|digit| digit.is_ascii_hexdigit())).then_some(key)
    }
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

/// The upper ends in seconds of the buckets of [`Traffic::inter_token`]: those of the metric `codex_ml_inference_inter_token_seconds`.
pub const INTER_TOKEN_EDGES: [f64; 13] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.7, 1.0, 2.5];

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
    /// Requests that were refused for other reasons than a limit or a full queue. `None` from servers of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rejected: Option<Rejected>,
    /// Times from the queue to the first token of a response, by [`LATENCY_EDGES`]. `None` from servers of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_token: Option<Times>,
    /// Times between the tokens of a response, on average over the response, by [`INTER_TOKEN_EDGES`]. Responses of one token have none.
    /// `None` from servers of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inter_token: Option<Times>,
}

impl Traffic {
    /// Returns the completed requests that surely took longer than `seconds`: those beyond the next edge.
    pub fn slower_than(&self, seconds: f64) -> u64 {
        beyond(self.completed, &self.latency, &LATENCY_EDGES, seconds)
    }
}

/// Numbers of refused requests, each counted once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rejected {
    /// Requests with no valid API key, or with one that must not call the path (401 and 403).
    pub keys: u64,
    /// Requests whose prompt a safety rule refused.
    pub prompts: u64,
    /// Requests whose answer a safety rule refused. They are among [`Traffic::requests`], because a response was generated.
    pub answers: u64,
}

/// Numbers of responses by a time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Times {
    /// Responses whose time is known.
    pub responses: u64,
    /// The number of them within each edge.
    pub within: Vec<u64>,
}

impl Times {
    /// Returns the responses that surely took longer than `seconds`: those beyond the next of the `edges`.
    pub fn slower_than(&self, seconds: f64, edges: &[f64]) -> u64 {
        beyond(self.responses, &self.within, edges, seconds)
    }
}

/// Returns how many of `all` are beyond the edge that is at least `seconds`. `within` are the cumulative numbers by edge.
fn beyond(all: u64, within: &[u64], edges: &[f64], seconds: f64) -> u64 {
    let bucket = edges.iter().position(|edge| *edge >= seconds);
    let within = bucket.and_then(|bucket| within.get(bucket)).copied();
    all.saturating_sub(within.unwrap_or(all))
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
    use super::{INTER_TOKEN_EDGES, LATENCY_EDGES, Times, Traffic, latency_buckets, percentile_95};

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
        let times = Times { responses: 14, within: (1..=13).collect() };
        for (seconds, slower) in [(0.05, 8), (0.051, 7), (2.5, 1), (2.6, 0)] {
            assert_eq!(times.slower_than(seconds, &INTER_TOKEN_EDGES), slower, "{seconds}");
        }
    }

    #[test]
    fn reports_of_earlier_servers_lack_what_they_do_not_know() {
        let earlier = r#"{"requests":5,"errors":2,"refused":1,"completed":3,"latency":[3]}"#;
        let traffic: Traffic = serde_json::from_str(earlier).unwrap();
        assert_eq!((traffic.rejected, &traffic.first_token, &traffic.inter_token), (None, &None, &None));
        assert_eq!(serde_json::to_string(&traffic).unwrap(), earlier);
    }
}
