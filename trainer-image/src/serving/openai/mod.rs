//! An API in the shape of OpenAI's: `/v1/models`, `/v1/chat/completions` and `/v1/completions`, whole or as server-sent events.
//! No I/O of its own.

mod error;
mod request;
mod respond;
#[cfg(test)]
mod tests;

use std::{
    sync::Arc,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Path, State, rejection::BytesRejection},
    http::{HeaderValue, StatusCode},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::{Value, json};

#[cfg(test)]
pub(crate) use request::read_any;

use self::{
    error::ApiError,
    request::Asked,
    respond::{Answer, stream, whole},
};
use super::{http::App, metrics::Endpoint, phase::ServedModel};

/// The most bytes of a request.
const MAX_BODY: usize = 4 << 20;

/// Returns the routes.
pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/v1/models", get(models))
        .route("/v1/models/{*name}", get(model))
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completion))
        .layer(DefaultBodyLimit::max(MAX_BODY))
}

/// Returns the seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

async fn chat(State(app): State<App>, body: Result<Bytes, BytesRejection>) -> Response {
    answer(&app, Endpoint::Chat, body).await
}

async fn completion(State(app): State<App>, body: Result<Bytes, BytesRejection>) -> Response {
    answer(&app, Endpoint::Completions, body).await
}

/// Answers a request, counts it, and names the model and the ring in the response.
async fn answer(app: &App, endpoint: Endpoint, body: Result<Bytes, BytesRejection>) -> Response {
    let begun = Instant::now();
    app.metrics().arrived(endpoint);
    let phase = app.phase();
    let response = match phase.model() {
        Some(model) => match generated(app, model, endpoint, body, begun).await {
            Ok(response) => response,
            Err(error) => error.into_response(),
        },
        None => not_ready(phase.name()).into_response(),
    };
    app.metrics().answered(endpoint, response.status());
    named(app, phase.model(), response)
}

fn not_ready(phase: &str) -> ApiError {
    ApiError::other(StatusCode::SERVICE_UNAVAILABLE, format!("the model is not ready: {phase}"))
}

/// Adds headers with the digest and the ring of the served model.
fn named(app: &App, model: Option<&Arc<ServedModel>>, mut response: Response) -> Response {
    let digest = model.map(|model| model.verified.signed.model.to_string());
    let ring = model.map(|_| app.expected().ring.clone());
    for (name, value) in [("x-codex-model-digest", digest), ("x-codex-ring", ring)] {
        if let Some(value) = value.and_then(|value| HeaderValue::from_str(&value).ok()) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

async fn generated(
    app: &App,
    model: &Arc<ServedModel>,
    endpoint: Endpoint,
    body: Result<Bytes, BytesRejection>,
    begun: Instant,
) -> Result<Response, ApiError> {
    let body = body.map_err(|rejection| ApiError::other(rejection.status(), rejection.body_text()))?;
    let asked = match endpoint {
        Endpoint::Chat => Asked::chat(model, app.served_name(), &body)?,
        _ => Asked::completion(model, app.served_name(), &body)?,
    };
    let answer = Answer {
        endpoint,
        id: format!("{}-{:032x}", if endpoint == Endpoint::Chat { "chatcmpl" } else { "cmpl" }, rand::random::<u128>()),
        created: now(),
        model: app.served_name().to_owned(),
        fingerprint: model.verified.signed.model.short(),
        prompt_tokens: asked.job.prompt.len(),
        begun,
    };
    let pieces = model.batcher.stream(asked.job)?;
    if asked.stream {
        return Ok(stream(Arc::clone(model), app.metrics_handle(), answer, pieces, asked.stop, asked.usage));
    }
    whole(model, app.metrics(), &answer, pieces, &asked.stop).await
}

async fn models(State(app): State<App>) -> Response {
    let phase = app.phase();
    let response = match phase.model() {
        Some(model) => Json(json!({ "object": "list", "data": [described(&app, model)] })).into_response(),
        None => not_ready(phase.name()).into_response(),
    };
    named(&app, phase.model(), response)
}

async fn model(State(app): State<App>, Path(name): Path<String>) -> Response {
    let phase = app.phase();
    let response = match phase.model() {
        Some(model) if name == app.served_name() || name == "codex" => Json(described(&app, model)).into_response(),
        Some(_) => ApiError::model(&name, app.served_name()).into_response(),
        None => not_ready(phase.name()).into_response(),
    };
    named(&app, phase.model(), response)
}

/// Returns the entry of a model: OpenAI's fields, vLLM's `max_model_len`, and what the promotion says about it.
fn described(app: &App, model: &ServedModel) -> Value {
    let promotion = &model.verified.promoted.promotion;
    let evaluations: Vec<Value> = promotion
        .reasons
        .evaluations
        .iter()
        .map(|evaluation| json!({ "name": evaluation.name, "preset": evaluation.preset, "gates": evaluation.gates }))
        .collect();
    json!({
        "id": app.served_name(),
        "object": "model",
        "created": app.created(),
        "owned_by": promotion.reasons.namespace,
        "max_model_len": model.context,
        "model_digest": model.verified.signed.model,
        "ring": app.expected().ring,
        "signer": model.verified.signed.signer,
        "promotion_digest": model.verified.promoted.digest,
        "training_run": promotion.reasons.training.run.name,
        "base": promotion.reasons.training.base,
        "evaluations": evaluations,
    })
}
