//! Responses in the shape of OpenAI's API, whole or in pieces. No I/O of its own.

use std::{convert::Infallible, sync::Arc, time::Instant};

use axum::{
    Json,
    http::StatusCode,
    response::{
        IntoResponse as _, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use codex_engine::End;
use futures::stream::poll_fn;
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::error::ApiError;
use crate::{
    serving::{
        batcher::{Piece, RequestError},
        metrics::{Endpoint, Metrics},
        phase::ServedModel,
    },
    text::Stops,
};

/// What all parts of an answer have in common.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) endpoint: Endpoint,
    pub(super) id: String,
    /// Seconds since 1970.
    pub(super) created: u64,
    /// The name of the model.
    pub(super) model: String,
    /// The beginning of the model's digest.
    pub(super) fingerprint: String,
    pub(super) prompt_tokens: usize,
    pub(super) begun: Instant,
}

/// How a generation ended.
struct Finished {
    /// Generated tokens, including the end token.
    tokens: usize,
    reason: &'static str,
}

impl Answer {
    fn with(&self, object: &str, choices: &Value) -> Value {
        json!({
            "id": self.id, "object": object, "created": self.created, "model": self.model,
            "system_fingerprint": self.fingerprint, "choices": choices,
        })
    }

    fn usage(&self, tokens: usize) -> Value {
        let prompt = self.prompt_tokens;
        json!({ "prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens })
    }

    /// Returns the whole answer.
    fn whole(&self, text: &str, finished: &Finished) -> Value {
        let reason = finished.reason;
        let mut body = if self.endpoint == Endpoint::Chat {
            let message = json!({ "role": "assistant", "content": text });
            let choice = json!({ "index": 0, "message": message, "logprobs": null, "finish_reason": reason });
            self.with("chat.completion", &json!([choice]))
        } else {
            let choice = json!({ "index": 0, "text": text, "logprobs": null, "finish_reason": reason });
            self.with("text_completion", &json!([choice]))
        };
        body["usage"] = self.usage(finished.tokens);
        body
    }

    /// Returns a part of a streamed answer: more text, or how it ended.
    fn part(&self, text: Option<&str>, reason: Option<&str>) -> Value {
        let choice = if self.endpoint == Endpoint::Chat {
            let delta = text.map_or_else(|| json!({}), |text| json!({ "content": text }));
            json!({ "index": 0, "delta": delta, "logprobs": null, "finish_reason": reason })
        } else {
            json!({ "index": 0, "text": text.unwrap_or_default(), "logprobs": null, "finish_reason": reason })
        };
        self.with(self.object(), &json!([choice]))
    }

    /// Returns the first part of a chat, which names the author.
    fn opening(&self) -> Value {
        let mut part = self.part(Some(""), None);
        part["choices"][0]["delta"]["role"] = "assistant".into();
        part
    }

    fn object(&self) -> &'static str {
        if self.endpoint == Endpoint::Chat { "chat.completion.chunk" } else { "text_completion" }
    }
}

/// Turns tokens into text until the response ends or one of the texts in `stop` is reached, and passes it on in pieces.
async fn texts(
    model: &ServedModel,
    mut pieces: UnboundedReceiver<Piece>,
    stop: &[String],
    mut said: impl FnMut(String) + Send,
) -> Result<Finished, ApiError> {
    let failed = |error: crate::text::TokenizerError| {
        ApiError::other(StatusCode::INTERNAL_SERVER_ERROR, format!("the response cannot be decoded: {error}"))
    };
    let mut stream = model.tokenizer.stream();
    let mut stops = Stops::new(stop);
    let mut say = |text: String| {
        if !text.is_empty() {
            said(text);
        }
    };
    let mut tokens = 0;
    loop {
        match pieces.recv().await {
            Some(Piece::Token(token)) => {
                tokens += 1;
                // An end token has no text.
                if !model.ends.contains(&token) {
                    say(stops.push(&stream.push(token).map_err(failed)?));
                }
                if stops.reached() {
                    // Dropping the receiver ends the generation.
                    return Ok(Finished { tokens, reason: "stop" });
                }
            }
            Some(Piece::End(end)) => {
                let end = end.map_err(RequestError::from)?;
                say(stops.push(&stream.finish().map_err(failed)?));
                if stops.reached() {
                    return Ok(Finished { tokens, reason: "stop" });
                }
                say(stops.finish());
                return Ok(Finished { tokens, reason: if end == Some(End::Stop) { "stop" } else { "length" } });
            }
            None => return Err(RequestError::Ended.into()),
        }
    }
}

/// Answers with the whole text.
///
/// # Errors
/// The generation fails.
pub(super) async fn whole(
    model: &ServedModel,
    metrics: &Metrics,
    answer: &Answer,
    pieces: UnboundedReceiver<Piece>,
    stop: &[String],
) -> Result<Response, ApiError> {
    let mut text = String::new();
    let finished = texts(model, pieces, stop, |piece| text.push_str(&piece)).await?;
    metrics.completed(answer.endpoint, answer.begun.elapsed(), answer.prompt_tokens, finished.tokens);
    Ok(Json(answer.whole(&text, &finished)).into_response())
}

/// Answers with server-sent events, one for each piece of text, and `[DONE]` at the end. The generation ends when the client
/// closes the connection.
pub(super) fn stream(
    model: Arc<ServedModel>,
    metrics: Arc<Metrics>,
    answer: Answer,
    pieces: UnboundedReceiver<Piece>,
    stop: Vec<String>,
    usage: bool,
) -> Response {
    // Holds at most one event for each token of the response.
    let (events, mut received) = unbounded_channel::<Event>();
    let send = move |events: &tokio::sync::mpsc::UnboundedSender<Event>, data: &Value| {
        // The client may have gone, which ends the generation below.
        let _ = events.send(Event::default().data(data.to_string()));
    };
    tokio::spawn(async move {
        if answer.endpoint == Endpoint::Chat {
            send(&events, &answer.opening());
        }
        let generation = texts(&model, pieces, &stop, |text| send(&events, &answer.part(Some(&text), None)));
        let finished = tokio::select! {
            () = events.closed() => return,
            finished = generation => finished,
        };
        match finished {
            Ok(finished) => {
                metrics.completed(answer.endpoint, answer.begun.elapsed(), answer.prompt_tokens, finished.tokens);
                send(&events, &answer.part(None, Some(finished.reason)));
                if usage {
                    let mut last = answer.with(answer.object(), &json!([]));
                    last["usage"] = answer.usage(finished.tokens);
                    send(&events, &last);
                }
            }
            Err(error) => send(&events, &error.body()),
        }
        let _ = events.send(Event::default().data("[DONE]"));
    });
    let events = poll_fn(move |context| received.poll_recv(context).map(|event| event.map(Ok::<_, Infallible>)));
    Sse::new(events).keep_alive(KeepAlive::default()).into_response()
}
