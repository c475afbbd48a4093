//! `/evaluate`: the loaded model answers a bounded list of problems, and the evaluator's own code scores the answers. No I/O of its
//! own.
//!
//! An evaluation is one request with one deadline. A few of its problems run at a time, so that others keep slots; for the rate limit
//! of the key, each problem counts as a request. Closing the connection drops all of them.

mod problems;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use axum::{
    Extension, Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State, rejection::BytesRejection},
    http::StatusCode,
    response::{IntoResponse as _, Response},
    routing::post,
};
use codex_configs::Generation;
use codex_engine::End;
use codex_provenance::ModelDigest;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use self::problems::{asked, encode};
use super::{
    access::Client,
    batcher::{Job, Piece, RequestError},
    filter::{Check, Refusal},
    http::{App, ErrorResponse, parse},
    metrics::{Endpoint, Tokens},
    phase::ServedModel,
};
use crate::{
    evaluation::{Given, Scored, Scorer, Scores, Shown},
    model::Until,
    safety::Direction,
    text::TokenizerError,
};

/// The most problems of a request: as many as each set of the preset `base` has.
const MAX_PROBLEMS: usize = 50;
/// The most bytes of a request.
const MAX_BODY: usize = 1 << 20;
/// Problems of a request that are answered at the same time, at most.
const AT_ONCE: usize = 4;
/// The preset of a request that names none.
const PRESET: &str = "base";
/// A request, for errors.
const EXAMPLE: &str = r#"{"problems": [{"prompt": "347+86:", "answer": "433"}]}"#;

/// Returns the route.
pub(super) fn routes() -> Router<App> {
    Router::new().route(Endpoint::Evaluate.path(), post(evaluate)).layer(DefaultBodyLimit::max(MAX_BODY))
}

/// The body of a request.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    problems: Vec<Value>,
    preset: Option<String>,
    /// Settings of the preset that are changed.
    evaluation: Option<Map<String, Value>>,
}

/// The body of an answer.
#[derive(Debug, Serialize)]
struct Evaluated {
    model_digest: ModelDigest,
    ring: String,
    preset: String,
    /// How problems were asked and scored.
    evaluation: Generation,
    /// One-sided, of each bound on its own that is not approximate.
    confidence: f64,
    metrics: BTreeMap<String, Option<Shown>>,
    items: Vec<Item>,
    usage: Usage,
    #[serde(skip)]
    cached: usize,
}

/// A problem: a line of the evaluator's `records.ndjson`, and how the response ended.
#[derive(Debug, Serialize)]
struct Item {
    #[serde(flatten)]
    scored: Scored,
    /// Number of tokens of the response, including its end token.
    tokens: usize,
    finish_reason: &'static str,
}

#[derive(Debug, Serialize)]
struct Usage {
    prompt_tokens: usize,
    completion_tokens: usize,
}

/// The response to a problem.
#[derive(Debug)]
struct Answered {
    text: String,
    tokens: usize,
    /// Tokens of the prompt that came from the prefix cache.
    cached: usize,
    finish_reason: &'static str,
}

async fn evaluate(
    State(app): State<App>,
    Extension(client): Extension<Client>,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let metrics = app.metrics();
    metrics.arrived(Endpoint::Evaluate);
    let response = match evaluated(&app, &client, body).await {
        Ok(reply) => {
            let Usage { prompt_tokens: prompt, completion_tokens: completion } = reply.usage;
            metrics.computed(Tokens { prompt, cached: reply.cached, completion, reasoning: 0 });
            Json(reply).into_response()
        }
        Err(error) => error.into_response(),
    };
    metrics.answered(Endpoint::Evaluate, response.status());
    response
}

/// Evaluates if there is a model.
async fn evaluated(
    app: &App,
    client: &Client,
    body: Result<Bytes, BytesRejection>,
) -> Result<Evaluated, ErrorResponse> {
    let model = app.model()?;
    let check = app.check(Endpoint::Evaluate, client);
    let digest = model.digest;
    measured(&model, client, check.as_ref(), body).await.map_err(|problem| problem.of_model(digest))
}

/// Validates the request, has the model answer, and scores the answers.
async fn measured(
    model: &ServedModel,
    client: &Client,
    check: Option<&Check>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Evaluated, ErrorResponse> {
    let Body { problems, preset, evaluation } = parse(body, EXAMPLE)?;
    if !(1..=MAX_PROBLEMS).contains(&problems.len()) {
        return Err(ErrorResponse::field("problems", format!("{}: send 1 to {MAX_PROBLEMS}", problems.len())));
    }
    let scorer = Scorer::compose(preset.as_deref().unwrap_or(PRESET), evaluation.as_ref())
        .map_err(|why| ErrorResponse::new(StatusCode::UNPROCESSABLE_ENTITY, why))?;
    let mut problems: Vec<Given> =
        problems.iter().enumerate().map(|(at, value)| asked(at, value, check)).collect::<Result<_, _>>()?;
    if let Some(limit) = scorer.settings().limit {
        problems.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    }
    if let Err(wrong) = scorer.check(&problems) {
        return Err(ErrorResponse::field(&format!("problems[{}].{}", wrong.at, wrong.field), wrong.why));
    }
    let prompts = problems.iter().enumerate().map(|(at, problem)| {
        let prompt = encode(model, scorer.settings().prompt, &problem.record.prompt);
        prompt.map_err(|why| ErrorResponse::field(&place(at), why))
    });
    let prompts: Vec<Vec<u32>> = prompts.collect::<Result<_, _>>()?;
    let prompt_tokens = prompts.iter().map(Vec::len).sum();
    let answers = answer_all(model, client, scorer.settings(), prompts).await?;
    let (completion_tokens, cached) =
        answers.iter().fold((0, 0), |(tokens, cached), one| (tokens + one.tokens, cached + one.cached));
    let answers = answers.into_iter().map(|answer| checked(check, answer)).collect::<Result<Vec<_>, _>>()?;
    let (scorer, scores, ends) = score(scorer, problems, answers).await?;
    let Scores { scored, metrics, confidence } = scores;
    let item = |(scored, (tokens, finish_reason))| Item { scored, tokens, finish_reason };
    Ok(Evaluated {
        model_digest: model.digest,
        ring: model.ring().to_owned(),
        preset: scorer.preset().to_owned(),
        evaluation: scorer.settings().clone(),
        confidence,
        metrics,
        items: scored.into_iter().zip(ends).map(item).collect(),
        usage: Usage { prompt_tokens, completion_tokens },
        cached,
    })
}

/// Returns the name of the prompt of a problem, for errors.
fn place(at: usize) -> String {
    format!("problems[{at}].prompt")
}

/// Answers all prompts, a few at a time, within the time limit of one request.
async fn answer_all(
    model: &ServedModel,
    client: &Client,
    settings: &Generation,
    prompts: Vec<Vec<u32>>,
) -> Result<Vec<Answered>, ErrorResponse> {
    let answers: Vec<_> =
        prompts.into_iter().enumerate().map(|(at, prompt)| answer(model, client, settings, at, prompt)).collect();
    let all = stream::iter(answers).buffered(AT_ONCE).try_collect::<Vec<_>>();
    match model.batcher.time_limit() {
        None => all.await,
        Some(limit) => tokio::time::timeout(limit, all)
            .await
            .unwrap_or_else(|_| Err(ErrorResponse::request("problems", &RequestError::Late { limit }))),
    }
}

/// Answers one prompt. The first one is refused if the server is overloaded; others wait.
async fn answer(
    model: &ServedModel,
    client: &Client,
    settings: &Generation,
    at: usize,
    prompt: Vec<u32>,
) -> Result<Answered, ErrorResponse> {
    let job = Job::greedy(prompt, settings.max_new_tokens.min(model.context));
    let pieces = if at == 0 {
        model.batcher.stream(job, client.clone())
    } else {
        model.batcher.stream_when_free(job, client.clone()).await
    };
    let failed = |error: RequestError| ErrorResponse::request(&place(at), &error);
    let mut pieces = pieces.map_err(failed)?;
    if at > 0 {
        // The first one was counted when the request was admitted.
        client.count();
    }
    let mut until = (!settings.stop.is_empty()).then(|| Until::new(&model.tokenizer, &settings.stop));
    let (mut tokens, mut cached) = (Vec::new(), 0);
    let undecodable = |error: TokenizerError| {
        ErrorResponse::new(StatusCode::INTERNAL_SERVER_ERROR, format!("{}: {error}", place(at)))
    };
    // Whether the latest token ends the response, and so is no text, is known with the next piece.
    let mut latest: Option<u32> = None;
    let end = loop {
        let piece = pieces.recv().await;
        let ended = matches!(&piece, Some(Piece::End(Ok(Some(End::Stop)))));
        if let (Some(until), Some(token)) = (&mut until, latest.take().filter(|_| !ended))
            && let Some(text) = until.push(token).map_err(undecodable)?
        {
            pieces.stopped();
            return Ok(Answered { text, tokens: tokens.len(), cached, finish_reason: "stop" });
        }
        match piece {
            Some(Piece::Prompt(_)) => {}
            Some(Piece::Token(token)) => {
                latest = Some(token.id);
                cached = token.cached;
                tokens.push(token.id);
            }
            Some(Piece::End(end)) => break end.map_err(|error| failed(error.into()))?,
            Some(Piece::Late(limit)) => return Err(failed(RequestError::Late { limit })),
            None => return Err(failed(RequestError::Ended)),
        }
    };
    let text = model.tokenizer.decode(&tokens).map_err(undecodable)?;
    let finish_reason = if end == Some(End::Stop) { "stop" } else { "length" };
    Ok(Answered { text, tokens: tokens.len(), cached, finish_reason })
}

/// Returns what safety rules leave of a response, which is what is scored: no text that a rule blocks.
fn checked(check: Option<&Check>, answer: Answered) -> Result<Answered, ErrorResponse> {
    let Some(check) = check else { return Ok(answer) };
    match check.text(&answer.text, Direction::Answer) {
        Ok((text, cut)) => {
            let finish_reason = if cut { "length" } else { answer.finish_reason };
            Ok(Answered { text, finish_reason, ..answer })
        }
        Err(Refusal::Blocked(_)) => Ok(Answered { text: String::new(), finish_reason: "content_filter", ..answer }),
        Err(why @ Refusal::Unchecked(_)) => Err(ErrorResponse::refusal("problems", &why)),
    }
}

/// The number of tokens of a response, and how it ended.
type Ended = (usize, &'static str);

/// Scores responses on a thread for blocking work: bounds are computed by resampling.
async fn score(
    scorer: Scorer,
    problems: Vec<Given>,
    answers: Vec<Answered>,
) -> Result<(Scorer, Scores, Vec<Ended>), ErrorResponse> {
    let (texts, ends): (Vec<String>, Vec<Ended>) =
        answers.into_iter().map(|Answered { text, tokens, finish_reason, .. }| (text, (tokens, finish_reason))).unzip();
    let work = move || {
        let scores = scorer.score(problems.into_iter().zip(texts).collect());
        (scorer, scores, ends)
    };
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        ErrorResponse::new(StatusCode::INTERNAL_SERVER_ERROR, format!("the answers cannot be scored: {error}"))
    })
}
