//! The server's HTTP: `/infer`, `/health`, `/ready`, `/status`, `/metrics`. No I/O of its own.
//!
//! Every answer to `/infer` names the digest of the weights, refusals included once there are weights.

use std::{sync::Arc, time::Instant};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State, rejection::BytesRejection},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use codex_engine::{End, PromptError};
use codex_provenance::{ModelDigest, PromotionDigest, Sha256};
use codex_signing::verify::Expected;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::{
    engine::Refusal,
    metrics::Metrics,
    phase::{Model, Phase},
};
use crate::{exposition, model::GenerateError, tasks};

/// Characters that a prompt may have.
const MAX_PROMPT: usize = 16_000;
/// Bytes that a request may have: every character of the longest prompt escaped as `\uXXXX`, twice for those that need it.
const MAX_BODY: usize = 12 * MAX_PROMPT + 1024;

/// What the handlers share.
#[derive(Clone)]
pub(super) struct App(Arc<Shared>);

struct Shared {
    expected: Expected,
    phase: watch::Receiver<Phase>,
    metrics: Arc<Metrics>,
    started: Instant,
}

impl App {
    /// For a server that was told to serve what is `expected`.
    pub(super) fn new(expected: Expected, phase: watch::Receiver<Phase>, metrics: Arc<Metrics>) -> Self {
        Self(Arc::new(Shared { expected, phase, metrics, started: Instant::now() }))
    }

    fn phase(&self) -> Phase {
        self.0.phase.borrow().clone()
    }
}

/// All endpoints.
pub(super) fn router(app: App) -> Router {
    Router::new()
        .route("/infer", post(infer))
        .route("/health", get(health))
        .route("/ready", get(ready))
        .route("/status", get(status))
        .route("/metrics", get(metrics))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(app)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    prompt: String,
    max_new_tokens: Option<usize>,
}

#[derive(Debug, Serialize)]
struct Reply {
    /// The response without its end token.
    completion: String,
    /// Tokens of the response, its end token included.
    tokens: usize,
    /// `stop` when the model ended it, `length` when the limit or the context did.
    finish_reason: &'static str,
    model_digest: ModelDigest,
    /// The answer that the response ends in; none when it was cut off or has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    answer: Option<String>,
    /// The steps before the answer; none without an answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    steps: Option<Vec<String>>,
}

/// A request that gets no completion.
struct Problem {
    status: StatusCode,
    error: String,
    /// Set once there is a model.
    model: Option<ModelDigest>,
}

impl Problem {
    fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, error: error.into(), model: None }
    }

    fn prompt(error: &GenerateError) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, format!("prompt: {error}"))
    }
}

impl IntoResponse for Problem {
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

/// Takes the body as it is, whatever its content type: `kubectl create --raw` names none.
async fn infer(State(app): State<App>, body: Result<Bytes, BytesRejection>) -> Result<Json<Reply>, Problem> {
    let begun = Instant::now();
    app.0.metrics.arrived();
    let phase = app.phase();
    let Some(model) = phase.model() else {
        let told = format!("the model is not ready to answer: {}", phase.name());
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, told));
    };
    let digest = model.verified.signed.model;
    let reply = answer(model, body).await.map_err(|problem| Problem { model: Some(digest), ..problem })?;
    app.0.metrics.completed(begun.elapsed());
    Ok(Json(reply))
}

/// What is asked. Text that is no JSON is a bad request; JSON of another shape cannot be processed.
fn question(body: Result<Bytes, BytesRejection>) -> Result<Question, Problem> {
    const EXAMPLE: &str = r#"send {"prompt": "347+86:"}"#;
    let body = body.map_err(|rejection| Problem::new(rejection.status(), rejection.body_text()))?;
    if body.is_empty() {
        return Err(Problem::new(StatusCode::BAD_REQUEST, format!("the request is empty: {EXAMPLE}")));
    }
    codex_json::from_slice(&body).map_err(|why| {
        let (status, what) = match why.classify() {
            serde_json::error::Category::Data => (StatusCode::UNPROCESSABLE_ENTITY, "is no question"),
            _ => (StatusCode::BAD_REQUEST, "is no JSON"),
        };
        Problem::new(status, format!("the request {what} ({why}): {EXAMPLE}"))
    })
}

async fn answer(model: &Model, body: Result<Bytes, BytesRejection>) -> Result<Reply, Problem> {
    let Question { prompt, max_new_tokens } = question(body)?;
    let length = prompt.chars().count();
    if !(1..=MAX_PROMPT).contains(&length) {
        let told = format!("prompt: it has {length} characters: write 1 to {MAX_PROMPT}");
        return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, told));
    }
    let ids = model.tokenizer.encode(&prompt).map_err(|error| Problem::prompt(&error.into()))?;
    let (tokens, context) = (ids.len(), model.context);
    if tokens >= context {
        return Err(Problem::prompt(&PromptError::TooLong { tokens, context }.into()));
    }
    let limit = max_new_tokens.unwrap_or(context);
    if !(1..=context).contains(&limit) {
        let told = format!("max_new_tokens: {limit} is not between 1 and {context}, the model's context");
        return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, told));
    }
    let answer = model.engine.answer(ids, limit).await.map_err(|refusal| match &refusal {
        Refusal::Overloaded { .. } => Problem::new(StatusCode::TOO_MANY_REQUESTS, refusal.to_string()),
        Refusal::Prompt(error) => Problem::prompt(error),
        Refusal::Gone => Problem::new(StatusCode::SERVICE_UNAVAILABLE, refusal.to_string()),
    })?;
    let text = model
        .tokenizer
        .decode(&answer.tokens)
        .map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    let solution = tasks::answer(&text).map(str::to_owned);
    Ok(Reply {
        tokens: answer.tokens.len(),
        finish_reason: if answer.end == Some(End::Stop) { "stop" } else { "length" },
        model_digest: model.verified.signed.model,
        steps: solution.is_some().then(|| tasks::steps(&text).into_iter().map(str::to_owned).collect()),
        answer: solution,
        completion: text.strip_suffix(tasks::END).unwrap_or(&text).to_owned(),
    })
}

/// Alive as long as there is hope: only an engine that ended asks to be started again.
async fn health(State(app): State<App>) -> Response {
    match app.phase().model() {
        Some(model) if !model.engine.runs() => {
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, Refusal::Gone.to_string()).into_response()
        }
        _ => Json(serde_json::json!({ "status": "ok" })).into_response(),
    }
}

async fn ready(State(app): State<App>) -> Response {
    match app.phase() {
        Phase::Ready(_) => Json(serde_json::json!({ "status": "ready" })).into_response(),
        Phase::Refused(why) => Problem::new(StatusCode::SERVICE_UNAVAILABLE, &*why).into_response(),
        phase => Problem::new(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}", phase.name())).into_response(),
    }
}

#[derive(Serialize)]
struct Status<'a> {
    #[serde(rename = "status")]
    phase: &'static str,
    version: &'static str,
    /// Seconds since the process listens.
    uptime: f64,
    ring: &'a str,
    /// What it was told to serve, and serves when `verified`.
    model_digest: ModelDigest,
    verified: Option<VerifiedStatus>,
    active_sessions: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

#[derive(Serialize)]
struct VerifiedStatus {
    model_digest: ModelDigest,
    promotion_digest: PromotionDigest,
    signer: Sha256,
    evaluations: Vec<String>,
}

async fn status(State(app): State<App>) -> Response {
    let phase = app.phase();
    let verified = phase.model().map(|model| VerifiedStatus {
        model_digest: model.verified.signed.model,
        promotion_digest: model.verified.promoted.digest,
        signer: model.verified.signed.signer,
        evaluations: {
            let evaluations = &model.verified.promoted.promotion.reasons.evaluations;
            evaluations.iter().map(|evaluation| evaluation.name.clone()).collect()
        },
    });
    Json(Status {
        phase: phase.name(),
        version: env!("CARGO_PKG_VERSION"),
        uptime: app.0.started.elapsed().as_secs_f64(),
        ring: &app.0.expected.ring,
        model_digest: app.0.expected.model_digest,
        verified,
        active_sessions: phase.active(),
        error: if let Phase::Refused(why) = &phase { Some(why) } else { None },
    })
    .into_response()
}

async fn metrics(State(app): State<App>) -> Result<Response, Problem> {
    let metrics = &app.0.metrics;
    metrics.set_active(app.phase().active());
    exposition::answer(metrics.registry())
        .map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}
