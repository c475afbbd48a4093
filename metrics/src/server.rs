//! The metrics of `codex serve`.

use crate::{
    label::{CODE, ENDPOINT, MODEL, RING, TYPE},
    metric::metrics,
};

/// The latency in seconds that 95 of 100 requests must not exceed. It is an edge of a bucket.
pub const LATENCY_TARGET: f64 = 0.7;
/// The share of requests that may exceed [`LATENCY_TARGET`].
pub const LATENCY_BUDGET: f64 = 0.05;

metrics! {
    REQUESTS = Counter("codex_ml_inference_requests_total", Count, [ENDPOINT],
        "Inference requests, including refused ones.");
    RESPONSES = Counter("codex_ml_inference_responses_total", Count, [ENDPOINT, CODE],
        "Answered inference requests by status code.");
    LATENCY = Histogram("codex_ml_inference_latency_seconds", Seconds, [ENDPOINT],
        "Seconds from a request to its completion, without refused requests.")
        .more("One bucket ends at 0.7 s.")
        .buckets(&[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, LATENCY_TARGET, 1.0, 2.5, 5.0, 10.0, 30.0]);
    TOKENS = Counter("codex_ml_inference_tokens_total", Count, [TYPE],
        "Tokens of completed requests: of prompts and of completions.");
    SESSIONS = Gauge("codex_ml_active_sessions", Count, [],
        "Running and waiting requests.");
    REFUSED_CONNECTIONS = Counter("codex_ml_inference_connections_refused_total", Count, [],
        "Connections closed because too many were open.")
        .more("At most 1,024 are open.");
    MODEL_INFO = Gauge("codex_ml_model_info", Number, [RING, MODEL],
        "The model that this server verified and serves, and its ring; 1 while it serves.")
        .more("Absent until the model is verified and loaded.").later();
}
