//! The Prometheus metrics of an activator. Pure.

use std::time::Duration;

use codex_metrics::activator as contract;
use prometheus::{Error, Histogram, IntCounter, IntCounterVec, IntGauge, Registry};

/// What becomes of requests: values of the label `result`.
const RESULTS: [&str; 5] = ["forwarded", "full", "late", "invalid", "failed"];

/// The metrics of one activator.
#[derive(Debug)]
pub(super) struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    held: IntGauge,
    hold_time: Histogram,
    activations: IntCounter,
}

impl Metrics {
    /// Registers the metrics in a registry of their own.
    pub(super) fn new() -> Result<Self, Error> {
        let registry = Registry::new();
        let metrics = Self {
            requests: contract::REQUESTS.labelled(&registry)?,
            held: contract::HELD.single(&registry)?,
            hold_time: contract::HOLD_TIME.single(&registry)?,
            activations: contract::ACTIVATIONS.single(&registry)?,
            registry,
        };
        // A new activator shows zeros instead of no series.
        for result in RESULTS {
            metrics.requests.with_label_values(&[result]).reset();
        }
        Ok(metrics)
    }

    /// Counts a request by what became of it.
    pub(super) fn ended(&self, result: &'static str) {
        self.requests.with_label_values(&[result]).inc();
    }

    /// Sets the number of requests that wait for a server.
    pub(super) fn set_held(&self, held: usize) {
        self.held.set(i64::try_from(held).unwrap_or(i64::MAX));
    }

    /// Returns the number of requests that wait for a server.
    pub(super) fn held(&self) -> usize {
        usize::try_from(self.held.get()).unwrap_or(0)
    }

    /// Records how long a request waited for a server.
    pub(super) fn held_for(&self, waited: Duration) {
        self.hold_time.observe(waited.as_secs_f64());
    }

    /// Counts that a server was asked for.
    pub(super) fn activates(&self) {
        self.activations.inc();
    }

    /// Returns the registry to scrape.
    pub(super) fn registry(&self) -> &Registry {
        &self.registry
    }
}
