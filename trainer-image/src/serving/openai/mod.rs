//! An API in the shape of OpenAI's: `/v1/models`, `/v1/chat/completions`, `/v1/completions` and `/v1/responses`, whole or
//! as server-sent events. No I/O of its own.

mod budget;
mod chat;
mod error;
mod generation;
mod request;
mod respond;
mod responses;
mod scores;
mod split;
mod structure;
#[cfg(test)]
pub(super) mod tests;
mod verbatim;

use std::{
    sync::Arc,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use axum::{
    Extension, Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Path, State, rejection::BytesRejection},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::{Value, json};

#[cfg(test)]
pub(crate) use request::read_any;

pub(super) use self::{
    error::ApiError,
    split::{CALLS, Markers, Specials, Splitter, reasoning_markers},
};
use self::{
    request::Asked,
    respond::{Answer, identifier, stream, whole},
    responses::Request,
};
use super::{
    access::Client,
    batcher::{Job, Pieces},
    http::App,
    metrics::Endpoint,
    phase::ServedModel,
};

/// The verdict of the evaluations in a valid promotion.
const PASSED: &str = "Passed";

/// The most bytes of a request.
pub(super) const MAX_BODY: usize = 4 << 20;

/// Returns the routes.
pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/v1/models", get(models))
        .route("/v1/models/{*name}", get(model))
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completion))
        .route("/v1/responses", post(response))
        .layer(DefaultBodyLimit::max(MAX_BODY))
}

/// Returns what follows the reasoning of a text; the whole text if it has none.
pub(super) fn after_reasoning(text: &str) -> &str {
    let after = |markers: &Markers| text.rfind(markers.close).map(|at| at + markers.close.len());
    Markers::KNOWN.iter().filter_map(after).max().map_or(text, |at| &text[at..])
}

/// Returns the seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

type Body = Result<Bytes, BytesRejection>;

async fn chat(State(app): State<App>, Extension(client): Extension<Client>, body: Body) -> Response {
    answer(&app, client, Endpoint::Chat, body).await
}

async fn completion(State(app): State<App>, Extension(client): Extension<Client>, body: Body) -> Response {
    answer(&app, client, Endpoint::Completions, body).await
}

async fn response(State(app): State<App>, Extension(client): Extension<Client>, body: Body) -> Response {
    answer(&app, client, Endpoint::Responses, body).await
}

/// Answers a request and counts it.
async fn answer(app: &App, client: Client, endpoint: Endpoint, body: Body) -> Response {
    let begun = Instant::now();
    app.metrics().arrived(endpoint);
    let phase = app.phase();
    let response = match phase.model() {
        Some(model) => match generated(app, model, client, endpoint, body, begun).await {
            Ok(response) => response,
            Err(error) => error.into_response(),
        },
        None => not_ready(phase.name()).into_response(),
    };
    app.metrics().answered(endpoint, response.status());
    response
}

fn not_ready(phase: &str) -> ApiError {
    ApiError::other(StatusCode::SERVICE_UNAVAILABLE, format!("the model is not ready: {phase}"))
}

async fn generated(
    app: &App,
    model: &Arc<ServedModel>,
    client: Client,
    endpoint: Endpoint,
    body: Body,
    begun: Instant,
) -> Result<Response, ApiError> {
    let body = body.map_err(|rejection| ApiError::other(rejection.status(), rejection.body_text()))?;
    let served = app.served_name();
    let check = app.check(endpoint, &client);
    if endpoint == Endpoint::Responses {
        let (request, mut asked) = Request::read(model, served, &body, check)?;
        asked.bind(model).await?;
        let pieces = started(model, &asked, &client)?;
        return request.answer(model, app, asked, pieces, begun).await;
    }
    let is_chat = endpoint == Endpoint::Chat;
    let mut asked = if is_chat {
        chat::chat(model, served, &body, check)?
    } else {
        Asked::completion(model, served, &body, check)?
    };
    asked.bind(model).await?;
    let answer = Answer {
        endpoint,
        id: identifier(if is_chat { "chatcmpl-" } else { "cmpl-" }),
        created: now(),
        model: served.to_owned(),
        fingerprint: model.fingerprint(),
        prompt_tokens: asked.jobs.first().map_or(0, |job| job.prompt.len()),
        begun,
    };
    let choices = started(model, &asked, &client)?;
    if asked.stream {
        return Ok(stream(Arc::clone(model), app.metrics_handle(), answer, choices, asked.form, asked.usage));
    }
    whole(model, app.metrics(), &answer, choices, &asked.form).await
}

/// Starts all choices of a request, or none.
fn started(model: &ServedModel, asked: &Asked, client: &Client) -> Result<Vec<Pieces>, ApiError> {
    let start = |job: &Job| model.batcher.stream(job.clone(), client.clone()).map_err(ApiError::from);
    // Those that were started end with their receivers.
    asked.jobs.iter().map(start).collect()
}

async fn models(State(app): State<App>) -> Response {
    let phase = app.phase();
    match phase.model() {
        Some(model) => Json(json!({ "object": "list", "data": [described(&app, model)] })).into_response(),
        None => not_ready(phase.name()).into_response(),
    }
}

async fn model(State(app): State<App>, Path(name): Path<String>) -> Response {
    let phase = app.phase();
    match phase.model() {
        Some(model) if name == app.served_name() || name == "codex" => Json(described(&app, model)).into_response(),
        Some(_) => ApiError::model(&name, app.served_name()).into_response(),
        None => not_ready(phase.name()).into_response(),
    }
}

/// Returns the entry of a model: OpenAI's fields, vLLM's `max_model_len`, and what the promotion says about it.
fn described(app: &App, model: &ServedModel) -> Value {
    let mut entry = json!({
        "id": app.served_name(),
        "object": "model",
        "created": app.created(),
        "owned_by": "codex",
        "max_model_len": model.context,
        "model_digest": model.digest,
        "ring": model.ring(),
        "verdict": null,
    });
    if let Some(verified) = &model.verified {
        let reasons = &verified.promoted.promotion.reasons;
        let evaluations = reasons.evaluations.iter().map(|evaluation| {
            json!({
                "name": evaluation.name, "preset": evaluation.preset, "verdict": PASSED, "gates": evaluation.gates,
                "completed_at": evaluation.completed_at,
            })
        });
        entry["owned_by"] = json!(reasons.namespace);
        // A promotion is valid only if every gate of every evaluation passed, which the verification judged again.
        entry["verdict"] = json!(PASSED);
        entry["evaluations"] = evaluations.collect();
        entry["signer"] = json!(verified.signed.signer);
        entry["promotion_digest"] = json!(verified.promoted.digest);
        entry["training_run"] = json!(reasons.training.run.name);
        entry["base"] = json!(reasons.training.base);
    }
    entry
}
