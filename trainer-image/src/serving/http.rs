//! The HTTP endpoints: `/infer`, `/health`, `/ready`, `/status`, `/metrics`, and those of `evaluate` and `openai/`. No I/O of its own.
//!
//! Every response names the model digest and the ring in its headers once the model is loaded.

use std::{fmt::Display, sync::Arc, time::Instant};

use axum::{
    Extension, Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State, rejection::BytesRejection},
    http::{HeaderValue, StatusCode, Uri, header},
    middleware,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use codex_engine::{End, PromptError};
use codex_http::with_fallbacks_as;
use codex_provenance::{ModelDigest, PromotionDigest, Sha256};
use codex_reports::{COPIES_PATH, Reproduction};
use codex_signing::verify::Expected;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::sync::watch;

use super::{
    access::{self, Access, Client},
    batcher::{Job, RequestError},
    errors::Errors,
    evaluate,
    filter::{Check, Filter, Refusal},
    metrics::{Endpoint, Metrics, Tokens},
    openai::{self, ApiError},
    phase::{Phase, ServedModel, UNSIGNED},
    room::EngineStatus,
    shadow::{self, Shadow},
};
use crate::{exposition, safety::Direction, tasks};

/// The most characters of a prompt.
pub(super) const MAX_PROMPT: usize = 16_000;
/// The most bytes of a request: each character of the longest prompt may be escaped as two `\uXXXX`.
const MAX_BODY: usize = 12 * MAX_PROMPT + 1024;

/// The state that the handlers share.
#[derive(Clone)]
pub(super) struct App(Arc<Shared>);

/// What requests must pass.
pub(super) struct Gates {
    pub(super) access: Arc<Access>,
    pub(super) filter: Option<Arc<Filter>>,
    /// Compares copies of requests: of a shadow, which answers nobody, or of a canary.
    pub(super) shadow: Option<Arc<Shadow>>,
    /// Where failures are recorded.
    pub(super) errors: Arc<Errors>,
}

struct Shared {
    /// What must be served; `None` for an unsigned model.
    expected: Option<Expected>,
    gates: Gates,
    phase: watch::Receiver<Phase>,
    metrics: Arc<Metrics>,
    started: Instant,
    /// Seconds since 1970 when the process began to listen.
    created: u64,
    /// The name of the model in the OpenAI-shaped API.
    name: String,
}

impl App {
    /// Makes the state of a server that must serve the `expected` model, or any if it is unsigned.
    pub(super) fn new(
        expected: Option<Expected>,
        gates: Gates,
        phase: watch::Receiver<Phase>,
        metrics: Arc<Metrics>,
        name: Option<String>,
    ) -> Self {
        let of_digest = || expected.as_ref().map_or_else(|| UNSIGNED.to_owned(), |it| it.model_digest.short());
        let name = name.unwrap_or_else(of_digest);
        let (started, created) = (Instant::now(), openai::now());
        Self(Arc::new(Shared { expected, gates, phase, metrics, started, created, name }))
    }

    pub(super) fn access(&self) -> &Access {
        &self.0.gates.access
    }

    /// Returns the check of a request's texts, if there are safety rules.
    pub(super) fn check(&self, endpoint: Endpoint, client: &Client) -> Option<Check> {
        let filter = self.0.gates.filter.as_ref()?;
        Some(Check::new(Arc::clone(filter), endpoint.path(), client.name()))
    }

    pub(super) fn errors(&self) -> &Errors {
        &self.0.gates.errors
    }

    /// Returns what compares copies of requests.
    pub(super) fn shadow(&self) -> Option<Arc<Shadow>> {
        self.0.gates.shadow.clone()
    }

    /// Whether the server is a shadow, which answers nobody.
    fn is_shadow(&self) -> bool {
        self.0.gates.shadow.as_ref().is_some_and(|shadow| shadow.is_alone())
    }

    pub(super) fn phase(&self) -> Phase {
        self.0.phase.borrow().clone()
    }

    /// Returns the loaded model.
    ///
    /// # Errors
    /// It is not loaded yet.
    pub(super) fn model(&self) -> Result<Arc<ServedModel>, ErrorResponse> {
        let phase = self.phase();
        let told = || format!("the model is not ready: {}", phase.name());
        phase.model().cloned().ok_or_else(|| ErrorResponse::new(StatusCode::SERVICE_UNAVAILABLE, told()))
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    pub(super) fn metrics_handle(&self) -> Arc<Metrics> {
        Arc::clone(&self.0.metrics)
    }

    pub(super) fn created(&self) -> u64 {
        self.0.created
    }

    /// Returns the name of the model in the OpenAI-shaped API.
    pub(super) fn served_name(&self) -> &str {
        &self.0.name
    }
}

/// Which endpoints a listener has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// All of them: no other listener exists.
    Whole,
    /// Those of clients.
    Public,
    /// Those of the cluster, which need no key: probes, metrics and the status.
    Admin,
}

/// Returns the router of one side. A shadow has no endpoint that answers clients.
pub(super) fn router(app: App, side: Side) -> Router {
    let alive = Router::new().route("/health", get(health));
    // The kubelet and Prometheus have no key.
    let open = Router::new().route("/ready", get(ready)).route("/metrics", get(metrics));
    let endpoints = match side {
        Side::Admin if app.is_shadow() => alive.merge(open),
        Side::Admin => alive.merge(open).route("/status", get(status)),
        Side::Whole => alive.merge(open).merge(of_clients(&app)),
        Side::Public => alive.merge(of_clients(&app)),
    };
    let named = middleware::map_response_with_state(app.clone(), named);
    with_fallbacks_as(endpoints.with_state(app), unknown).layer(named)
}

/// Answers an unknown path or method, in the shape of the API that it is about.
fn unknown(status: StatusCode, uri: &Uri, why: &str) -> Response {
    if uri.path().starts_with("/v1/") {
        ApiError::other(status, why).into_response()
    } else {
        ErrorResponse::new(status, why).into_response()
    }
}

/// Returns the endpoints of clients; those of a shadow are the servers whose requests it compares. A canary that is compared has both kinds,
/// and copies need no key of a client, because servers sign them.
fn of_clients(app: &App) -> Router<App> {
    let copies = || Router::new().route(COPIES_PATH, post(shadow::receive));
    if app.is_shadow() {
        return copies();
    }
    let own = Router::new().route("/infer", post(infer)).layer(DefaultBodyLimit::max(MAX_BODY));
    let own = own
        .route("/status", get(status))
        .merge(evaluate::routes())
        .merge(openai::routes())
        .layer(middleware::from_fn_with_state(app.clone(), access::guard));
    if app.shadow().is_some() { own.merge(copies()) } else { own }
}

/// Names the digest and the ring of the served model in the headers of every response.
async fn named(State(app): State<App>, mut response: Response) -> Response {
    if let Some(model) = app.phase().model() {
        for (name, value) in [("x-codex-model-digest", model.digest.to_string()), ("x-codex-ring", model.ring().into())]
        {
            if let Ok(value) = HeaderValue::from_str(&value) {
                response.headers_mut().insert(name, value);
            }
        }
    }
    response
}

/// The body of a request to `/infer`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct InferRequest {
    prompt: String,
    max_new_tokens: Option<usize>,
}

/// The body of a completion.
#[derive(Debug, Serialize)]
struct InferResponse {
    /// The response without its end token.
    completion: String,
    /// The numbers of tokens, for the metrics.
    #[serde(skip)]
    counts: Tokens,
    /// Number of tokens of the response, including its end token.
    tokens: usize,
    /// `stop` if the model ended the response, `length` if it reached the limit or filled the context, `content_filter` if a
    /// safety rule blocks it.
    finish_reason: &'static str,
    model_digest: ModelDigest,
    /// The answer at the end of the response. Absent if the response is incomplete or has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    answer: Option<String>,
    /// The steps before the answer. Absent without an answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    steps: Option<Vec<String>>,
}

/// The response to a request that gets no completion.
#[derive(Debug)]
pub(super) struct ErrorResponse {
    status: StatusCode,
    error: String,
    /// The model digest, once the model is loaded.
    model: Option<ModelDigest>,
}

impl ErrorResponse {
    pub(super) fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, error: error.into(), model: None }
    }

    /// Makes the error of a field, or of a place in one.
    pub(super) fn field(place: &str, why: impl Display) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, format!("{place}: {why}"))
    }

    /// Makes the error of the prompt at a place of the request that safety rules do not admit.
    pub(super) fn refusal(place: &str, why: &Refusal) -> Self {
        match why {
            Refusal::Blocked(_) => Self::field(place, why),
            Refusal::Unchecked(_) => Self::new(StatusCode::SERVICE_UNAVAILABLE, why.to_string()),
        }
    }

    /// Makes the error of the prompt at a place of the request that gets no response.
    pub(super) fn request(place: &str, error: &RequestError) -> Self {
        match error {
            RequestError::Overloaded { .. } => Self::new(StatusCode::TOO_MANY_REQUESTS, error.to_string()),
            RequestError::Generate(error) => Self::field(place, error),
            RequestError::Late { .. } => Self::new(StatusCode::GATEWAY_TIMEOUT, error.to_string()),
            RequestError::Ended | RequestError::Stalled { .. } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
            }
        }
    }

    /// Names the model that would have answered.
    pub(super) fn of_model(self, model: ModelDigest) -> Self {
        Self { model: Some(model), ..self }
    }
}

impl IntoResponse for ErrorResponse {
    fn into_response(self) -> Response {
        #[derive(Serialize)]
        struct Body {
            error: String,
            #[serde(skip_serializing_if = "Option::is_none")]
            model_digest: Option<ModelDigest>,
        }
        let again = matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
        let body = Json(Body { error: self.error, model_digest: self.model });
        let mut response = (self.status, body).into_response();
        if again {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

/// Answers a prompt. Accepts any content type, because `kubectl create --raw` sends none.
async fn infer(
    State(app): State<App>,
    Extension(client): Extension<Client>,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let begun = Instant::now();
    let metrics = &app.0.metrics;
    metrics.arrived(Endpoint::Infer);
    let response = match completion(&app, &client, body).await {
        Ok(reply) => {
            metrics.completed(Endpoint::Infer, begun.elapsed(), reply.counts);
            Json(reply).into_response()
        }
        Err(error) => error.into_response(),
    };
    metrics.answered(Endpoint::Infer, response.status());
    response
}

/// Answers a prompt if there is a model.
async fn completion(
    app: &App,
    client: &Client,
    body: Result<Bytes, BytesRejection>,
) -> Result<InferResponse, ErrorResponse> {
    let model = app.model()?;
    let check = app.check(Endpoint::Infer, client);
    answer(&model, client, check.as_ref(), body).await.map_err(|problem| problem.of_model(model.digest))
}

/// Parses the body, of which `example` is one. Invalid JSON gives 400; valid JSON of another shape gives 422.
pub(super) fn parse<T: DeserializeOwned>(
    body: Result<Bytes, BytesRejection>,
    example: &str,
) -> Result<T, ErrorResponse> {
    let body = body.map_err(|rejection| ErrorResponse::new(rejection.status(), rejection.body_text()))?;
    if body.is_empty() {
        return Err(ErrorResponse::new(StatusCode::BAD_REQUEST, format!("the request body is empty: send {example}")));
    }
    codex_json::from_slice(&body).map_err(|why| {
        let (status, what) = match why.classify() {
            serde_json::error::Category::Data => (StatusCode::UNPROCESSABLE_ENTITY, "has the wrong shape"),
            _ => (StatusCode::BAD_REQUEST, "is not JSON"),
        };
        ErrorResponse::new(status, format!("the request body {what} ({why}): send {example}"))
    })
}

/// Validates the request, generates, and takes the response apart.
async fn answer(
    model: &ServedModel,
    client: &Client,
    check: Option<&Check>,
    body: Result<Bytes, BytesRejection>,
) -> Result<InferResponse, ErrorResponse> {
    let InferRequest { mut prompt, max_new_tokens } = parse(body, r#"{"prompt": "347+86:"}"#)?;
    let length = prompt.chars().count();
    if !(1..=MAX_PROMPT).contains(&length) {
        return Err(ErrorResponse::field("prompt", format!("{length} characters: write 1 to {MAX_PROMPT}")));
    }
    if let Some(check) = check {
        let checked = check.text(&prompt, Direction::Prompt);
        (prompt, _) = checked.map_err(|why| ErrorResponse::refusal("prompt", &why))?;
    }
    let ids = model.tokenizer.encode_prompt(&prompt).map_err(|error| ErrorResponse::field("prompt", error))?;
    let (tokens, context) = (ids.len(), model.context);
    if tokens >= context {
        return Err(ErrorResponse::field("prompt", PromptError::TooLong { tokens, context }));
    }
    let limit = max_new_tokens.unwrap_or(context);
    if !(1..=context).contains(&limit) {
        let told = format!("{limit} is out of range; use 1 to {context}, the model's context");
        return Err(ErrorResponse::field("max_new_tokens", told));
    }
    let answer = model.batcher.answer(Job::greedy(ids, limit), client).await;
    let answer = answer.map_err(|error| ErrorResponse::request("prompt", &error))?;
    let mut text = model
        .tokenizer
        .decode(&answer.tokens)
        .map_err(|error| ErrorResponse::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    let mut reason = if answer.end == Some(End::Stop) { "stop" } else { "length" };
    if let Some(check) = check {
        match check.text(&text, Direction::Answer) {
            Ok((checked, cut)) => {
                text = checked;
                reason = if cut { "length" } else { reason };
            }
            Err(Refusal::Blocked(_)) => (text, reason) = (String::new(), "content_filter"),
            Err(why @ Refusal::Unchecked(_)) => return Err(ErrorResponse::refusal("prompt", &why)),
        }
    }
    let solution = tasks::answer(&text).map(str::to_owned);
    Ok(InferResponse {
        counts: Tokens { prompt: tokens, cached: answer.cached, completion: answer.tokens.len(), reasoning: 0 },
        tokens: answer.tokens.len(),
        finish_reason: reason,
        model_digest: model.digest,
        steps: solution.is_some().then(|| tasks::steps(&text).into_iter().map(str::to_owned).collect()),
        answer: solution,
        completion: text.strip_suffix(tasks::END).unwrap_or(&text).to_owned(),
    })
}

/// Returns 200 unless the engine thread has died.
async fn health(State(app): State<App>) -> Response {
    let checked = app.phase().model().map_or(Ok(()), |model| model.batcher.check());
    app.errors().engine(&checked);
    match checked {
        Err(why) => ErrorResponse::new(StatusCode::SERVICE_UNAVAILABLE, why.to_string()).into_response(),
        Ok(()) => Json(serde_json::json!({ "status": "ok" })).into_response(),
    }
}

async fn ready(State(app): State<App>) -> Response {
    match app.phase() {
        Phase::Ready(_) => Json(serde_json::json!({ "status": "ready" })).into_response(),
        Phase::Refused(why) => ErrorResponse::new(StatusCode::SERVICE_UNAVAILABLE, &*why).into_response(),
        phase => {
            ErrorResponse::new(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}", phase.name())).into_response()
        }
    }
}

#[derive(Serialize)]
struct Status<'a> {
    #[serde(rename = "status")]
    phase: &'static str,
    version: &'static str,
    /// Seconds since the process began to listen.
    uptime: f64,
    ring: &'a str,
    /// The digest that it must serve, and serves once `verified`. That of an unsigned model is known once it is loaded.
    model_digest: Option<ModelDigest>,
    verified: Option<VerifiedStatus>,
    active_sessions: usize,
    /// Once the model is loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    engine: Option<EngineStatus>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

#[derive(Serialize)]
struct VerifiedStatus {
    model_digest: ModelDigest,
    promotion_digest: PromotionDigest,
    signer: Sha256,
    evaluations: Vec<String>,
    /// `equal`, `near` or `absent`.
    golden_tokens: Option<&'static str>,
}

async fn status(State(app): State<App>) -> Response {
    let phase = app.phase();
    let verified = phase.model().and_then(|model| model.verified.as_ref()).map(|verified| VerifiedStatus {
        model_digest: verified.signed.model,
        promotion_digest: verified.promoted.digest,
        signer: verified.signed.signer,
        evaluations: {
            let evaluations = &verified.promoted.promotion.reasons.evaluations;
            evaluations.iter().map(|evaluation| evaluation.name.clone()).collect()
        },
        golden_tokens: phase.model().and_then(|model| model.golden).map(Reproduction::name),
    });
    let expected = app.0.expected.as_ref();
    Json(Status {
        phase: phase.name(),
        version: env!("CARGO_PKG_VERSION"),
        uptime: app.0.started.elapsed().as_secs_f64(),
        ring: expected.map_or(UNSIGNED, |expected| &expected.ring),
        model_digest: expected.map(|it| it.model_digest).or_else(|| phase.model().map(|model| model.digest)),
        verified,
        active_sessions: phase.active(),
        engine: phase.model().map(|model| model.batcher.engine),
        error: if let Phase::Refused(why) = &phase { Some(why) } else { None },
    })
    .into_response()
}

async fn metrics(State(app): State<App>) -> Result<Response, ErrorResponse> {
    let metrics = &app.0.metrics;
    let phase = app.phase();
    metrics.set_active(phase.active());
    if let Some(model) = phase.model() {
        metrics.serves(model.ring(), &model.digest.short());
    }
    exposition::answer(metrics.registry())
        .map_err(|error| ErrorResponse::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}
