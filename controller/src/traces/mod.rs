//! Export of spans to an OpenTelemetry collector over OTLP/HTTP with JSON, <https://opentelemetry.io/docs/specs/otlp/>. I/O.
//!
//! Spans wait in a bounded queue, and are sent together. Nothing waits for them: what does not fit, or is refused, is dropped and
//! counted.

mod config;
mod otlp;

use std::time::Duration;

use bytes::Bytes;
use codex_plan::trace::Span;
use http_body_util::Full;
use hyper::{Request, StatusCode, header};
use tokio::{
    sync::mpsc::{Receiver, Sender, channel},
    time::sleep,
};
use tracing::{debug, warn};

pub use config::{Config, config};

use crate::{https::Https, metrics::Metrics};

/// The number of spans that wait to be sent.
const WAITING: usize = 2048;
/// The most spans in one request.
const TOGETHER: usize = 512;
/// How long spans are collected before they are sent.
const COLLECTED: Duration = Duration::from_secs(2);
/// The pauses before a request is sent again that the collector refused for now.
const PAUSES: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(15)];
/// The longest pause that a collector may ask for.
const LONGEST: Duration = Duration::from_mins(1);
/// The most bytes of an answer.
const MAX_ANSWER: usize = 64 << 10;

/// Where spans go that have ended.
#[derive(Clone)]
pub struct Traces {
    queue: Sender<Span>,
    metrics: Metrics,
}

impl Traces {
    /// Returns the queue, and the task that sends what is in it.
    ///
    /// # Errors
    /// A sentence that says which certificate is invalid.
    pub fn new(config: Config, metrics: Metrics) -> Result<(Self, impl Future<Output = ()>), String> {
        let client = Https::new(config.authorities.as_deref(), "OTEL_EXPORTER_OTLP_CERTIFICATE")?;
        let (queue, spans) = channel(WAITING);
        let exporter = Exporter { config, client, metrics: metrics.clone() };
        Ok((Self { queue, metrics }, exporter.run(spans)))
    }

    /// Adds spans to the queue. Those that do not fit are dropped and counted.
    pub fn ended(&self, spans: Vec<Span>) {
        for span in spans {
            if self.queue.try_send(span).is_err() {
                self.metrics.spans("dropped", 1);
            }
        }
    }
}

/// Sends spans.
struct Exporter {
    config: Config,
    client: Https,
    metrics: Metrics,
}

impl Exporter {
    async fn run(self, mut spans: Receiver<Span>) {
        loop {
            let mut together = Vec::new();
            if spans.recv_many(&mut together, TOGETHER).await == 0 {
                return;
            }
            if together.len() < TOGETHER {
                sleep(COLLECTED).await;
            }
            while together.len() < TOGETHER
                && let Ok(span) = spans.try_recv()
            {
                together.push(span);
            }
            let sent = together.len();
            match self.export(&together).await {
                Ok(rejected) => {
                    self.metrics.spans("exported", sent.saturating_sub(rejected));
                    self.metrics.spans("rejected", rejected);
                }
                Err(why) => {
                    warn!(spans = sent, url = self.config.url, "spans are lost: {why}");
                    self.metrics.spans("failed", sent);
                }
            }
        }
    }

    /// Sends spans and returns how many the collector rejected.
    async fn export(&self, spans: &[Span]) -> Result<usize, String> {
        let body = Bytes::from(otlp::request(&self.config.resource, spans).to_string());
        let mut pauses = PAUSES.into_iter();
        loop {
            let mut request = Request::post(&self.config.url)
                .header(header::CONTENT_TYPE, "application/json")
                .header(header::USER_AGENT, concat!("codex-controller/", env!("CARGO_PKG_VERSION")));
            for (name, value) in &self.config.headers {
                request = request.header(name, value);
            }
            let request = request.body(Full::from(body.clone())).map_err(|why| why.to_string())?;
            let (why, asked) = match self.client.send(request, MAX_ANSWER, self.config.timeout).await {
                Ok(answer) if answer.status.is_success() => {
                    let (rejected, told) = otlp::partial_success(&answer.body);
                    if let Some(told) = told {
                        warn!(rejected, "the collector says: {told}");
                    }
                    return Ok(rejected);
                }
                Ok(answer) => {
                    let why = format!("the collector answers {}", answer.status);
                    if !again(answer.status) {
                        return Err(why);
                    }
                    let after =
                        answer.headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
                    (why, after.map(Duration::from_secs))
                }
                Err(why) => (why, None),
            };
            let Some(pause) = pauses.next() else { return Err(why) };
            debug!("spans are sent again: {why}");
            sleep(asked.unwrap_or(pause).min(LONGEST)).await;
        }
    }
}

/// Whether the protocol lets a client send the same request again after this status.
fn again(status: StatusCode) -> bool {
    matches!(status.as_u16(), 429 | 502 | 503 | 504)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use axum::{Router, http::HeaderMap, routing::post};
    use codex_plan::trace::{Attribute, Span, SpanId, TraceId};
    use jiff::Timestamp;
    use serde_json::Value;
    use tokio::net::TcpListener;

    use super::{Metrics, Traces, config};

    fn span(id: u8) -> Span {
        let at = |second| Timestamp::from_second(second).unwrap();
        Span {
            trace: TraceId([1; 16]),
            id: SpanId([id; 8]),
            parent: None,
            name: "TrainingRun",
            start: at(100),
            end: at(160),
            attributes: vec![("codex.steps", Attribute::Number(4))],
            link: None,
            failure: None,
        }
    }

    type Requests = Arc<Mutex<Vec<(HeaderMap, Value)>>>;

    /// Starts a collector that answers with one status after the other, the last one for ever, and returns its URL.
    async fn collector(answers: &'static [(u16, &'static str)]) -> (String, Requests) {
        let requests = Requests::default();
        let known = requests.clone();
        let app = Router::new().route(
            "/v1/traces",
            post(move |headers: HeaderMap, body: String| async move {
                let mut known = known.lock().unwrap();
                let (status, text) = answers[known.len().min(answers.len() - 1)];
                known.push((headers, serde_json::from_str(&body).unwrap()));
                (axum::http::StatusCode::from_u16(status).unwrap(), text)
            }),
        );
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        (url, requests)
    }

    async fn export(url: &str, spans: Vec<Span>) -> String {
        let vars = [("OTEL_EXPORTER_OTLP_ENDPOINT", url), ("OTEL_EXPORTER_OTLP_HEADERS", "x-team=a%20b")];
        let settings = config(|name| vars.iter().find(|it| it.0 == name).map(|it| it.1.to_owned())).unwrap().unwrap();
        let metrics = Metrics::new().unwrap();
        let (traces, task) = Traces::new(settings, metrics.clone()).unwrap();
        traces.ended(spans);
        drop(traces);
        task.await;
        metrics.shown()
    }

    #[tokio::test]
    async fn spans_are_sent_together_and_again_if_the_collector_is_busy() {
        let (url, requests) =
            collector(&[(503, ""), (200, r#"{"partialSuccess":{"rejectedSpans":"1","errorMessage":"old"}}"#)]).await;
        let shown = export(&url, vec![span(1), span(2), span(3)]).await;
        let requests = requests.lock().unwrap();
        assert_eq!(requests.len(), 2);
        assert_eq!(requests[0].1, requests[1].1);
        let (headers, body) = &requests[1];
        assert_eq!(
            (&headers["content-type"], &headers["x-team"]),
            (&"application/json".parse().unwrap(), &"a b".parse().unwrap())
        );
        assert_eq!(body["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().unwrap().len(), 3);
        assert!(shown.contains("codex_controller_spans_total{result=\"exported\"} 2"), "{shown}");
        assert!(shown.contains("codex_controller_spans_total{result=\"rejected\"} 1"), "{shown}");
    }

    /// A real collector prints what it was sent.
    #[tokio::test]
    #[ignore = "needs COLLECTOR, a collector of OpenTelemetry: make test-clients"]
    async fn opentelemetry_collector() {
        let folder = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let (settings, output) = (folder.path().join("config.yaml"), folder.path().join("output"));
        let written = format!(
            "receivers: {{otlp: {{protocols: {{http: {{endpoint: \"127.0.0.1:{port}\"}}}}}}}}\n\
             exporters: {{debug: {{verbosity: detailed}}}}\n\
             service:\n  telemetry: {{metrics: {{level: none}}}}\n  pipelines: {{traces: {{receivers: [otlp], exporters: [debug]}}}}\n"
        );
        std::fs::write(&settings, written).unwrap();
        let log = std::fs::File::create(&output).unwrap();
        let mut collector = std::process::Command::new(std::env::var("COLLECTOR").unwrap())
            .arg("--config")
            .arg(&settings)
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let url = format!("http://127.0.0.1:{port}");
        let failed = Span { failure: Some("no space".to_owned()), parent: Some(SpanId([1; 8])), ..span(2) };
        // The first request may come before the collector listens, and is sent again.
        let shown = export(&url, vec![span(1), failed]).await;
        let mut printed = String::new();
        for _ in 0..100 {
            printed = std::fs::read_to_string(&output).unwrap();
            if printed.contains("no space") {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        collector.kill().unwrap();
        collector.wait().unwrap();
        assert!(shown.contains("codex_controller_spans_total{result=\"exported\"} 2"), "{shown}\n{printed}");
        for line in [
            "service.name: Str(codex-controller)",
            "Trace ID       : 01010101010101010101010101010101",
            "Parent ID      : 0101010101010101",
            "ID             : 0202020202020202",
            "Name           : TrainingRun",
            "Start time     : 1970-01-01 00:01:40",
            "End time       : 1970-01-01 00:02:40",
            "codex.steps: Int(4)",
            "Status message : no space",
        ] {
            assert!(printed.contains(line), "{line} is missing in {printed}");
        }
    }

    #[tokio::test]
    async fn refused_spans_are_counted() {
        let (url, requests) = collector(&[(400, "")]).await;
        let shown = export(&url, vec![span(1)]).await;
        assert_eq!(requests.lock().unwrap().len(), 1);
        assert!(shown.contains("codex_controller_spans_total{result=\"failed\"} 1"), "{shown}");
    }
}
