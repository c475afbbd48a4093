//! What a server counts, under the names that dashboards know. Pure.

use std::time::Duration;

use prometheus::{Error, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, Opts, Registry};

/// Seconds; 0.7 is the target that shadow hosting is held to.
const BUCKETS: [f64; 13] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.7, 1.0, 2.5, 5.0, 10.0, 30.0];
/// The label of the one endpoint that infers.
const INFER: &str = "/infer";

/// The counters of one server.
#[derive(Debug)]
pub(super) struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    latency: HistogramVec,
    sessions: IntGauge,
}

impl Metrics {
    /// Fresh counters, registered where only this server sees them.
    pub(super) fn new() -> Result<Self, Error> {
        let requests = IntCounterVec::new(
            Opts::new("codex_ml_inference_requests_total", "Inference requests, refused ones included."),
            &["endpoint"],
        )?;
        let latency = HistogramVec::new(
            HistogramOpts::new(
                "codex_ml_inference_latency_seconds",
                "Seconds from a request to its completion; refused requests are left out.",
            )
            .buckets(BUCKETS.to_vec()),
            &["endpoint"],
        )?;
        let sessions = IntGauge::new("codex_ml_active_sessions", "Requests under way or waiting.")?;
        let registry = Registry::new();
        registry.register(Box::new(requests.clone()))?;
        registry.register(Box::new(latency.clone()))?;
        registry.register(Box::new(sessions.clone()))?;
        // So that a fresh server shows zeros, not nothing.
        requests.with_label_values(&[INFER]).reset();
        latency.with_label_values(&[INFER]);
        Ok(Self { registry, requests, latency, sessions })
    }

    /// A request has arrived.
    pub(super) fn arrived(&self) {
        self.requests.with_label_values(&[INFER]).inc();
    }

    /// A request was answered with a completion after `took`.
    pub(super) fn completed(&self, took: Duration) {
        self.latency.with_label_values(&[INFER]).observe(took.as_secs_f64());
    }

    /// Says how many requests are under way or waiting.
    pub(super) fn set_active(&self, active: usize) {
        self.sessions.set(i64::try_from(active).unwrap_or(i64::MAX));
    }

    /// What there is to scrape.
    pub(super) fn registry(&self) -> &Registry {
        &self.registry
    }
}
