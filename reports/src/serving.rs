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
    /// Requests since the server started. Only canaries report them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic: Option<Traffic>,
    /// Reason why the server refuses to serve. `VerificationFailed` names the file, the bundle or the ring.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
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

#[cfg(test)]
mod tests {
    use super::{LATENCY_EDGES, Traffic};

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
