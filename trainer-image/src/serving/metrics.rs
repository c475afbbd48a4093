//! The Prometheus metrics of a server. Pure.

use std::time::Duration;

use prometheus::{Error, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, Opts, Registry};

/// Buckets in seconds; 0.7 is the latency target of shadow deployments.
const BUCKETS: [f64; 13] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.7, 1.0, 2.5, 5.0, 10.0, 30.0];
/// The value of the label `endpoint`.
const INFER: &str = "/infer";

/// The metrics of one server.
#[derive(Debug)]
pub(super) struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    latency: HistogramVec,
    sessions: IntGauge,
}

impl Metrics {
    /// Registers the metrics in a registry of their own.
    pub(super) fn new() -> Result<Self, Error> {
        let requests = IntCounterVec::new(
            Opts::new("codex_ml_inference_requests_total", "Inference requests, including refused ones."),
            &["endpoint"],
        )?;
        let latency = HistogramVec::new(
            HistogramOpts::new(
                "codex_ml_inference_latency_seconds",
                "Seconds from a request to its completion, without refused requests.",
            )
            .buckets(BUCKETS.to_vec()),
            &["endpoint"],
        )?;
        let sessions = IntGauge::new("codex_ml_active_sessions", "Running and waiting requests.")?;
        let registry = Registry::new();
        registry.register(Box::new(requests.clone()))?;
        registry.register(Box::new(latency.clone()))?;
        registry.register(Box::new(sessions.clone()))?;
        // A new server shows zeros instead of no series.
        requests.with_label_values(&[INFER]).reset();
        latency.with_label_values(&[INFER]);
        Ok(Self { registry, requests, latency, sessions })
    }

    /// Counts a request.
    pub(super) fn arrived(&self) {
        self.requests.with_label_values(&[INFER]).inc();
    }

    /// Records the latency of a completed request.
    pub(super) fn completed(&self, took: Duration) {
        self.latency.with_label_values(&[INFER]).observe(took.as_secs_f64());
    }

    /// Sets the number of running and waiting requests.
    pub(super) fn set_active(&self, active: usize) {
        self.sessions.set(i64::try_from(active).unwrap_or(i64::MAX));
    }

    /// Returns the registry to scrape.
    pub(super) fn registry(&self) -> &Registry {
        &self.registry
    }
}
