//! The Prometheus metrics of a server. Pure.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::http::StatusCode;
use codex_metrics::{label::CODE, server as contract};
use codex_reports::{INTER_TOKEN_EDGES, LATENCY_EDGES, Rejected, Times, Traffic};
use prometheus::{
    Error, Gauge, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry,
    core::Collector,
    proto::{Bucket, LabelPair, MetricFamily},
};

use super::{capture, thinking::Cause};
use crate::safety::{Direction, Hit};

/// An endpoint that generates: a value of the label `endpoint`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    /// `/infer`
    Infer,
    /// `/evaluate`
    Evaluate,
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completions,
    /// `/v1/responses`
    Responses,
}

impl Endpoint {
    const ALL: [Self; 5] = [Self::Infer, Self::Evaluate, Self::Chat, Self::Completions, Self::Responses];

    /// Returns the endpoint of a path, if it generates.
    pub(super) fn of(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|endpoint| endpoint.path() == path)
    }

    /// Returns its path.
    pub(super) fn path(self) -> &'static str {
        match self {
            Self::Infer => "/infer",
            Self::Evaluate => "/evaluate",
            Self::Chat => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
            Self::Responses => "/v1/responses",
        }
    }
}

/// The tokens of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tokens {
    pub(super) prompt: usize,
    /// Those of the prompt that came from the prefix cache.
    pub(super) cached: usize,
    /// Those of the response, its end token included.
    pub(super) completion: usize,
    /// Those of the response before its answer.
    pub(super) reasoning: usize,
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
    key_requests: IntCounterVec,
    key_tokens: IntCounterVec,
    cached: IntCounter,
    cached_length: Histogram,
    reasoning: IntCounter,
    reasoning_length: Histogram,
    reasoning_closed: IntCounterVec,
    queue_time: Histogram,
    first_token: Histogram,
    inter_token: Histogram,
    batched: Histogram,
    grammar_time: Histogram,
    running: IntGauge,
    waiting: IntGauge,
    cache_usage: Gauge,
    preemptions: IntCounter,
    safety_hits: IntCounterVec,
    copies: IntCounterVec,
    traces: IntCounterVec,
    golden: IntCounterVec,
    compared: IntCounterVec,
    analysed: Analysed,
}

/// What the analysis of canaries needs beside the metrics.
#[derive(Debug)]
struct Analysed {
    /// Requests whose prompt a safety rule refused.
    prompts: AtomicU64,
    /// Requests whose answer a safety rule refused.
    answers: AtomicU64,
    /// Average times between the tokens of responses. Read as one value, so that no number of slow responses ever falls.
    paced: Mutex<Times>,
}

impl Analysed {
    fn new() -> Self {
        let paced = Mutex::new(Times { responses: 0, within: vec![0; INTER_TOKEN_EDGES.len()] });
        Self { prompts: AtomicU64::new(0), answers: AtomicU64::new(0), paced }
    }
}

/// Results of requests with an API key: values of the label `result`.
const RESULTS: [&str; 4] = ["admitted", "forbidden", "rate_limited", "over_budget"];

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
            cached: contract::CACHED_TOKENS.single(&registry)?,
            cached_length: contract::CACHED_LENGTH.single(&registry)?,
            reasoning: contract::REASONING_TOKENS.single(&registry)?,
            reasoning_length: contract::REASONING_LENGTH.single(&registry)?,
            reasoning_closed: contract::REASONING_CLOSED.labelled(&registry)?,
            queue_time: contract::QUEUE_TIME.single(&registry)?,
            first_token: contract::FIRST_TOKEN.single(&registry)?,
            inter_token: contract::INTER_TOKEN.single(&registry)?,
            batched: contract::BATCHED_TOKENS.single(&registry)?,
            grammar_time: contract::GRAMMAR_TIME.single(&registry)?,
            running: contract::RUNNING.single(&registry)?,
            waiting: contract::WAITING.single(&registry)?,
            cache_usage: contract::CACHE_USAGE.float(&registry)?,
            preemptions: contract::PREEMPTIONS.single(&registry)?,
            key_requests: contract::KEY_REQUESTS.labelled(&registry)?,
            key_tokens: contract::KEY_TOKENS.labelled(&registry)?,
            safety_hits: contract::SAFETY_HITS.labelled(&registry)?,
            copies: contract::COPIES.labelled(&registry)?,
            traces: contract::TRACES.labelled(&registry)?,
            golden: contract::GOLDEN_RECORDS.labelled(&registry)?,
            compared: contract::COMPARED.labelled(&registry)?,
            analysed: Analysed::new(),
            registry,
        };
        // A new server shows zeros instead of no series.
        for endpoint in Endpoint::ALL {
            let path = endpoint.path();
            metrics.requests.with_label_values(&[path]).reset();
            metrics.responses.with_label_values(&[path, StatusCode::OK.as_str()]).reset();
            if endpoint != Endpoint::Evaluate {
                metrics.latency.with_label_values(&[path]);
            }
        }
        for kind in ["prompt", "completion"] {
            metrics.tokens.with_label_values(&[kind]).reset();
        }
        for cause in Cause::ALL {
            metrics.reasoning_closed.with_label_values(&[cause.name()]).reset();
        }
        for result in ["sent", "dropped", "busy", "refused", "failed"] {
            metrics.copies.with_label_values(&[result]).reset();
        }
        for result in capture::RESULTS {
            metrics.traces.with_label_values(&[result]).reset();
        }
        for result in ["equal", "near", "different"] {
            metrics.golden.with_label_values(&[result]).reset();
        }
        for result in ["identical", "agreed", "diverged", "skipped"] {
            metrics.compared.with_label_values(&[result]).reset();
        }
        Ok(metrics)
    }

    /// Counts a text that a safety rule hits.
    pub(super) fn hit(&self, hit: &Hit, direction: Direction, refused: bool) {
        let result = if refused { "refused" } else { "passed" };
        self.safety_hits.with_label_values(&[hit.rule.as_str(), hit.action.name(), direction.name(), result]).inc();
    }

    /// Counts a request of which a safety rule refused a text, whatever the number of its texts.
    pub(super) fn refused_by_rule(&self, direction: Direction) {
        let Analysed { prompts, answers, .. } = &self.analysed;
        let counter = match direction {
            Direction::Prompt => prompts,
            Direction::Answer => answers,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a copy of a request by what became of it.
    pub(super) fn copied(&self, result: &'static str) {
        self.copies.with_label_values(&[result]).inc();
    }

    /// Counts a response whose reasoning was closed.
    pub(super) fn closed(&self, cause: Cause) {
        self.reasoning_closed.with_label_values(&[cause.name()]).inc();
    }

    /// Counts a trace of a request by what became of it.
    pub(super) fn traced(&self, result: &'static str) {
        self.traces.with_label_values(&[result]).inc();
    }

    /// Counts a record of golden tokens by how it was reproduced.
    pub(super) fn golden(&self, result: &'static str) {
        self.golden.with_label_values(&[result]).inc();
    }

    /// Counts a copy by how a shadow compared it.
    pub(super) fn compared(&self, result: &'static str) {
        self.compared.with_label_values(&[result]).inc();
    }

    /// Counts a connection that was closed because too many were open.
    pub(super) fn refused(&self) {
        self.refused.inc();
    }

    /// Counts a request with a key by how it was admitted.
    pub(super) fn admitted(&self, key: &str, result: &'static str) {
        self.key_requests.with_label_values(&[key, result]).inc();
    }

    /// Counts tokens of a key: of prompts and of responses.
    pub(super) fn spent(&self, key: &str, tokens: u64) {
        self.key_tokens.with_label_values(&[key]).inc_by(tokens);
    }

    /// Removes the series of a removed key.
    pub(super) fn forget(&self, key: &str) {
        for result in RESULTS {
            // It may have none.
            let _ = self.key_requests.remove_label_values(&[key, result]);
        }
        let _ = self.key_tokens.remove_label_values(&[key]);
    }

    /// Counts a request.
    pub(super) fn arrived(&self, endpoint: Endpoint) {
        self.requests.with_label_values(&[endpoint.path()]).inc();
    }

    /// Counts the answer to a request.
    pub(super) fn answered(&self, endpoint: Endpoint, status: StatusCode) {
        self.responses.with_label_values(&[endpoint.path(), status.as_str()]).inc();
    }

    /// Records the latency of a completed request, and its tokens.
    pub(super) fn completed(&self, endpoint: Endpoint, took: Duration, tokens: Tokens) {
        self.latency.with_label_values(&[endpoint.path()]).observe(took.as_secs_f64());
        self.reasoning_length.observe(tokens.reasoning as f64);
        self.computed(tokens);
    }

    /// Records the tokens of a completed request. Its latency is not recorded if it stands for many responses, as an evaluation does:
    /// it would say nothing about those of other requests.
    pub(super) fn computed(&self, tokens: Tokens) {
        self.tokens.with_label_values(&["prompt"]).inc_by(tokens.prompt as u64);
        self.tokens.with_label_values(&["completion"]).inc_by(tokens.completion as u64);
        self.cached.inc_by(tokens.cached as u64);
        self.reasoning.inc_by(tokens.reasoning as u64);
    }

    /// Records how long a prompt waited for a slot.
    pub(super) fn admitted_after(&self, waited: Duration) {
        self.queue_time.observe(waited.as_secs_f64());
    }

    /// Records how many tokens of a prompt came from the prefix cache.
    pub(super) fn prompt_took_over(&self, tokens: usize) {
        self.cached_length.observe(tokens as f64);
    }

    /// Records the time from the queue to the first token of a response.
    pub(super) fn first_token_after(&self, took: Duration) {
        self.first_token.observe(took.as_secs_f64());
    }

    /// Records the time between two tokens of a response.
    pub(super) fn next_token_after(&self, took: Duration) {
        self.inter_token.observe(took.as_secs_f64());
    }

    /// Records the average time between the tokens of a response.
    pub(super) fn paced_at(&self, average: Duration) {
        let mut paced = self.analysed.paced.lock().unwrap_or_else(PoisonError::into_inner);
        paced.responses += 1;
        for (within, edge) in paced.within.iter_mut().zip(INTER_TOKEN_EDGES) {
            *within += u64::from(average.as_secs_f64() <= edge);
        }
    }

    /// Records how many tokens a step of the engine computed.
    pub(super) fn step_of(&self, tokens: usize) {
        self.batched.observe(tokens as f64);
    }

    /// Records how long the choice of a token took that a grammar binds.
    pub(super) fn bound_in(&self, took: Duration) {
        self.grammar_time.observe(took.as_secs_f64());
    }

    /// Counts a request that was pre-empted.
    pub(super) fn preempted(&self) {
        self.preemptions.inc();
    }

    /// Sets how many prompts run, and the share of the cache that they use.
    pub(super) fn set_running(&self, running: usize, cache_usage: f64) {
        self.running.set(i64::try_from(running).unwrap_or(i64::MAX));
        self.cache_usage.set(cache_usage);
    }

    /// Sets the number of running and waiting requests.
    pub(super) fn set_active(&self, active: usize) {
        let active = i64::try_from(active).unwrap_or(i64::MAX);
        self.sessions.set(active);
        // The engine thread may have taken one since.
        self.waiting.set((active - self.running.get()).max(0));
    }

    /// Returns the number of running and waiting requests.
    pub(super) fn active(&self) -> i64 {
        self.sessions.get()
    }

    /// Returns the number of requests since this server started, refused ones included.
    pub(super) fn arrived_in_all(&self) -> u64 {
        Endpoint::ALL.iter().map(|endpoint| self.requests.with_label_values(&[endpoint.path()]).get()).sum()
    }

    /// Sets the ring and the model of this server, once it serves.
    pub(super) fn serves(&self, ring: &str, model: &str) {
        self.model.with_label_values(&[ring, model]).set(1);
    }

    /// Returns the requests since this server started, over all endpoints.
    pub(super) fn traffic(&self) -> Traffic {
        let Analysed { prompts, answers, paced } = &self.analysed;
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut traffic = Traffic { latency: vec![0; LATENCY_EDGES.len()], ..Traffic::default() };
        let mut rejected = Rejected { keys: 0, prompts: count(prompts), answers: count(answers) };
        for series in self.responses.collect().iter().flat_map(MetricFamily::get_metric) {
            let code = series.get_label().iter().find(|label| label.name() == CODE.name).map(LabelPair::value);
            // The counter holds an integer as a float.
            let count = series.get_counter().get_value() as u64;
            match code.and_then(|code| code.parse::<u16>().ok()).unwrap_or_default() {
                200..=299 => traffic.requests += count,
                401 | 403 => rejected.keys += count,
                429 => traffic.refused += count,
                500..=599 => {
                    traffic.requests += count;
                    traffic.errors += count;
                }
                _ => {}
            }
        }
        for series in self.latency.collect().iter().flat_map(MetricFamily::get_metric) {
            let histogram = series.get_histogram();
            traffic.completed += histogram.get_sample_count();
            for (within, bucket) in traffic.latency.iter_mut().zip(histogram.get_bucket()) {
                *within += bucket.cumulative_count();
            }
        }
        traffic.rejected = Some(rejected);
        traffic.first_token =
            self.first_token.collect().iter().flat_map(MetricFamily::get_metric).next().map(|series| {
                let histogram = series.get_histogram();
                let within = histogram.get_bucket().iter().map(Bucket::cumulative_count).collect();
                Times { responses: histogram.get_sample_count(), within }
            });
        traffic.inter_token = Some(paced.lock().unwrap_or_else(PoisonError::into_inner).clone());
        traffic
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

    use super::{
        Cause, Direction, Endpoint, Hit, INTER_TOKEN_EDGES, LATENCY_EDGES, Metrics, Rejected, Tokens, contract,
    };
    use crate::safety::Action;

    #[test]
    fn traffic_is_counted_over_all_endpoints() {
        assert_eq!(contract::LATENCY.buckets, &LATENCY_EDGES[..], "the edges are those of the metric");
        let metrics = Metrics::new().unwrap();
        for (endpoint, milliseconds) in [(Endpoint::Infer, 600), (Endpoint::Chat, 20), (Endpoint::Chat, 45_000)] {
            metrics.answered(endpoint, StatusCode::OK);
            metrics.completed(endpoint, Duration::from_millis(milliseconds), Tokens::default());
        }
        for status in [
            StatusCode::BAD_REQUEST,
            StatusCode::TOO_MANY_REQUESTS,
            StatusCode::INTERNAL_SERVER_ERROR,
            StatusCode::SERVICE_UNAVAILABLE,
        ] {
            metrics.answered(Endpoint::Completions, status);
        }
        let traffic = metrics.traffic();
        let numbers = (traffic.requests, traffic.errors, traffic.refused, traffic.completed);
        assert_eq!(numbers, (5, 2, 1, 3));
        assert_eq!((traffic.slower_than(0.5), traffic.slower_than(0.7), traffic.slower_than(30.0)), (2, 1, 1));
    }

    #[test]
    fn refusals_and_times_of_tokens_are_reported() {
        assert_eq!(contract::FIRST_TOKEN.buckets, &LATENCY_EDGES[..], "the edges are those of the metric");
        assert_eq!(contract::INTER_TOKEN.buckets, &INTER_TOKEN_EDGES[..], "the edges are those of the metric");
        let metrics = Metrics::new().unwrap();
        let none = metrics.traffic();
        assert_eq!(none.rejected, Some(Rejected::default()), "a number that is 0 is known");
        assert_eq!(none.first_token.map(|it| (it.responses, it.within)), Some((0, vec![0; LATENCY_EDGES.len()])));
        for status in [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN, StatusCode::UNPROCESSABLE_ENTITY] {
            metrics.answered(Endpoint::Chat, status);
        }
        metrics.refused_by_rule(Direction::Prompt);
        metrics.refused_by_rule(Direction::Answer);
        metrics.refused_by_rule(Direction::Answer);
        for milliseconds in [40, 600, 45_000] {
            metrics.first_token_after(Duration::from_millis(milliseconds));
        }
        for milliseconds in [20, 60, 60, 3_000] {
            metrics.paced_at(Duration::from_millis(milliseconds));
        }
        let traffic = metrics.traffic();
        assert_eq!((traffic.requests, traffic.refused), (0, 0), "what is refused is not among the others");
        assert_eq!(traffic.rejected, Some(Rejected { keys: 2, prompts: 1, answers: 2 }));
        let first = traffic.first_token.unwrap();
        assert_eq!((first.responses, first.slower_than(0.05, &LATENCY_EDGES)), (3, 2));
        assert_eq!(first.slower_than(0.7, &LATENCY_EDGES), 1);
        let paced = traffic.inter_token.unwrap();
        assert_eq!(paced.responses, 4);
        let slower = [0.025, 0.05, 0.075, 2.5].map(|edge| paced.slower_than(edge, &INTER_TOKEN_EDGES));
        assert_eq!(slower, [3, 3, 1, 1]);
    }

    #[test]
    fn the_exposition_is_that_of_the_contract() {
        let metrics = Metrics::new().unwrap();
        metrics.arrived(Endpoint::Infer);
        metrics.answered(Endpoint::Infer, StatusCode::TOO_MANY_REQUESTS);
        let tokens = Tokens { prompt: 7, cached: 5, completion: 30, reasoning: 20 };
        metrics.completed(Endpoint::Infer, Duration::from_millis(600), tokens);
        metrics.admitted_after(Duration::from_millis(2));
        metrics.prompt_took_over(0);
        metrics.prompt_took_over(300);
        metrics.first_token_after(Duration::from_millis(700));
        metrics.next_token_after(Duration::from_millis(20));
        metrics.bound_in(Duration::from_micros(80));
        metrics.set_running(2, 0.25);
        metrics.preempted();
        metrics.set_active(5);
        metrics.serves("main", "9f2c41d0a7b3");
        metrics.refused();
        metrics.admitted("gone", "admitted");
        metrics.admitted("alice", "rate_limited");
        metrics.spent("alice", 12);
        metrics.forget("gone");
        let hit = Hit { rule: "pii.card".to_owned(), action: Action::Redact, count: 2 };
        metrics.hit(&hit, Direction::Answer, false);
        metrics.closed(Cause::Reserve);
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
            "codex_ml_inference_prompt_tokens_cached_total 5",
            "codex_ml_inference_prompt_cached_length_tokens_bucket{le=\"0\"} 1",
            "codex_ml_inference_prompt_cached_length_tokens_bucket{le=\"256\"} 1",
            "codex_ml_inference_prompt_cached_length_tokens_bucket{le=\"512\"} 2",
            "codex_ml_inference_reasoning_tokens_total 20",
            "codex_ml_inference_reasoning_length_tokens_bucket{le=\"0\"} 0",
            "codex_ml_inference_reasoning_length_tokens_bucket{le=\"64\"} 1",
            "codex_ml_inference_queue_seconds_bucket{le=\"0.001\"} 0",
            "codex_ml_inference_queue_seconds_bucket{le=\"0.005\"} 1",
            "codex_ml_inference_first_token_seconds_bucket{le=\"0.7\"} 1",
            "codex_ml_inference_inter_token_seconds_bucket{le=\"0.025\"} 1",
            "codex_ml_inference_grammar_seconds_bucket{le=\"0.0001\"} 1",
            "codex_ml_inference_requests_running 2",
            "codex_ml_inference_requests_waiting 3",
            "codex_ml_inference_kv_cache_usage_ratio 0.25",
            "codex_ml_inference_preemptions_total 1",
            "codex_ml_active_sessions 5",
            "codex_ml_inference_safety_hits_total{action=\"redact\",direction=\"answer\",result=\"passed\",rule=\"pii.card\"} 1",
            "codex_ml_inference_reasoning_closed_total{result=\"budget\"} 0",
            "codex_ml_inference_reasoning_closed_total{result=\"reserve\"} 1",
            "codex_ml_inference_connections_refused_total 1",
            "codex_ml_inference_key_requests_total{key=\"alice\",result=\"rate_limited\"} 1",
            "codex_ml_inference_key_tokens_total{key=\"alice\"} 12",
            "codex_ml_model_info{model=\"9f2c41d0a7b3\",ring=\"main\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
        assert!(!text.contains("gone"), "{text}");
    }
}
