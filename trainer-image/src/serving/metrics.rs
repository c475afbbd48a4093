//! The Prometheus metrics of a server. Pure.

use std::time::Duration;

use axum::http::StatusCode;
use codex_metrics::server as contract;
use prometheus::{Error, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry};

/// An endpoint that generates: a value of the label `endpoint`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    /// `/infer`
    Infer,
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completions,
}

impl Endpoint {
    const ALL: [Self; 3] = [Self::Infer, Self::Chat, Self::Completions];

    fn path(self) -> &'static str {
        match self {
            Self::Infer => "/infer",
            Self::Chat => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
        }
    }
}

/// The metrics of one server.
#[derive(Debug)]
pub(super) struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    responses: IntCounterVec,
    latency: HistogramVec,
    tokens: IntCounterVec,
    sessions: IntGauge,
    model: IntGaugeVec,
    refused: IntCounter,
}

impl Metrics {
    /// Registers the metrics in a registry of their own.
    pub(super) fn new() -> Result<Self, Error> {
        let registry = Registry::new();
        let metrics = Self {
            requests: contract::REQUESTS.labelled(&registry)?,
            responses: contract::RESPONSES.labelled(&registry)?,
            latency: contract::LATENCY.labelled(&registry)?,
            tokens: contract::TOKENS.labelled(&registry)?,
            sessions: contract::SESSIONS.single(&registry)?,
            refused: contract::REFUSED_CONNECTIONS.single(&registry)?,
            model: contract::MODEL_INFO.labelled(&registry)?,
            registry,
        };
        // A new server shows zeros instead of no series.
        for endpoint in Endpoint::ALL.map(Endpoint::path) {
            metrics.requests.with_label_values(&[endpoint]).reset();
            metrics.responses.with_label_values(&[endpoint, StatusCode::OK.as_str()]).reset();
            metrics.latency.with_label_values(&[endpoint]);
        }
        for kind in ["prompt", "completion"] {
            metrics.tokens.with_label_values(&[kind]).reset();
        }
        Ok(metrics)
    }

    /// Counts a connection that was closed because too many were open.
    pub(super) fn refused(&self) {
        self.refused.inc();
    }

    /// Counts a request.
    pub(super) fn arrived(&self, endpoint: Endpoint) {
        self.requests.with_label_values(&[endpoint.path()]).inc();
    }

    /// Counts the answer to a request.
    pub(super) fn answered(&self, endpoint: Endpoint, status: StatusCode) {
        self.responses.with_label_values(&[endpoint.path(), status.as_str()]).inc();
    }

    /// Records the latency of a completed request, and the tokens of its prompt and of its completion.
    pub(super) fn completed(&self, endpoint: Endpoint, took: Duration, prompt: usize, completion: usize) {
        self.latency.with_label_values(&[endpoint.path()]).observe(took.as_secs_f64());
        self.tokens.with_label_values(&["prompt"]).inc_by(prompt as u64);
        self.tokens.with_label_values(&["completion"]).inc_by(completion as u64);
    }

    /// Sets the number of running and waiting requests.
    pub(super) fn set_active(&self, active: usize) {
        self.sessions.set(i64::try_from(active).unwrap_or(i64::MAX));
    }

    /// Sets the ring and the model of this server, once it serves.
    pub(super) fn serves(&self, ring: &str, model: &str) {
        self.model.with_label_values(&[ring, model]).set(1);
    }

    /// Returns the registry to scrape.
    pub(super) fn registry(&self) -> &Registry {
        &self.registry
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, time::Duration};

    use axum::http::StatusCode;
    use prometheus::TextEncoder;

    use super::{Endpoint, Metrics, contract};

    #[test]
    fn the_exposition_is_that_of_the_contract() {
        let metrics = Metrics::new().unwrap();
        metrics.arrived(Endpoint::Infer);
        metrics.answered(Endpoint::Infer, StatusCode::TOO_MANY_REQUESTS);
        metrics.completed(Endpoint::Infer, Duration::from_millis(600), 7, 30);
        metrics.serves("main", "9f2c41d0a7b3");
        metrics.refused();
        let families = metrics.registry().gather();
        let exposed: BTreeSet<_> = families
            .iter()
            .map(|family| (family.name(), format!("{:?}", family.get_field_type()).to_lowercase()))
            .collect();
        assert_eq!(exposed, contract::ALL.iter().map(|it| (it.name, it.kind.name().to_owned())).collect());
        let text = TextEncoder::new().encode_to_string(&families).unwrap();
        for line in [
            "codex_ml_inference_responses_total{code=\"200\",endpoint=\"/infer\"} 0",
            "codex_ml_inference_responses_total{code=\"429\",endpoint=\"/infer\"} 1",
            "codex_ml_inference_tokens_total{type=\"prompt\"} 7",
            "codex_ml_inference_tokens_total{type=\"completion\"} 30",
            "codex_ml_inference_latency_seconds_bucket{endpoint=\"/infer\",le=\"0.7\"} 1",
            "codex_ml_inference_latency_seconds_bucket{endpoint=\"/infer\",le=\"0.5\"} 0",
            "codex_ml_inference_connections_refused_total 1",
            "codex_ml_model_info{model=\"9f2c41d0a7b3\",ring=\"main\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
    }
}
