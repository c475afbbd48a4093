//! Responses of chats and completions, whole or in pieces. No I/O of its own.

use std::{convert::Infallible, sync::Arc, time::Instant};

use axum::{
    Json,
    response::{
        IntoResponse as _, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures::{future::join_all, stream::poll_fn};
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use super::{
    error::ApiError,
    generation::{Chunk, Finished, Form, generate},
    scores::{self, Scored},
    split::{Call, Part},
};
use crate::serving::{
    batcher::Pieces,
    metrics::{Endpoint, Metrics, Tokens},
    phase::ServedModel,
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
    /// The beginning of the model's digest, and its ring.
    pub(super) fingerprint: String,
    pub(super) prompt_tokens: usize,
    pub(super) begun: Instant,
}

/// The text of a whole choice.
#[derive(Debug, Default)]
pub(super) struct Text {
    pub(super) reasoning: String,
    pub(super) content: String,
    pub(super) calls: Vec<Call>,
    pub(super) scored: Vec<Scored>,
}

impl Text {
    /// Returns everything as one piece.
    pub(super) fn into_chunk(self) -> Chunk {
        let texts = [Part::Reasoning(self.reasoning), Part::Content(self.content)].into_iter();
        let texts =
            texts.filter(|part| !matches!(part, Part::Reasoning(text) | Part::Content(text) if text.is_empty()));
        Chunk { parts: texts.chain(self.calls.into_iter().map(Part::Call)).collect(), scored: self.scored }
    }

    /// Adds what is new.
    pub(super) fn add(&mut self, chunk: Chunk) {
        self.scored.extend(chunk.scored);
        for part in chunk.parts {
            match part {
                Part::Reasoning(text) => self.reasoning.push_str(&text),
                Part::Content(text) => self.content.push_str(&text),
                Part::Call(call) => self.calls.push(call),
            }
        }
    }
}

/// Returns an identifier that nothing else has.
pub(super) fn identifier(prefix: &str) -> String {
    format!("{prefix}{:032x}", rand::random::<u128>())
}

/// Returns a call in the form of chats.
fn called(index: usize, call: &Call, streamed: bool) -> Value {
    let function = json!({ "name": call.name, "arguments": call.arguments });
    let mut value = json!({ "id": identifier("call_"), "type": "function", "function": function });
    if streamed {
        value["index"] = index.into();
    }
    value
}

/// Returns the sum of the tokens of several choices with one prompt.
pub(super) fn counted(prompt: usize, finished: &[Finished]) -> Tokens {
    Tokens {
        prompt,
        // The other choices take the prompt from the first one, which saves the client nothing.
        cached: finished.iter().map(|it| it.cached).min().unwrap_or_default(),
        completion: finished.iter().map(|it| it.tokens).sum(),
        reasoning: finished.iter().map(|it| it.reasoning).sum(),
    }
}

impl Answer {
    fn with(&self, object: &str, choices: &Value) -> Value {
        json!({
            "id": self.id, "object": object, "created": self.created, "model": self.model,
            "system_fingerprint": self.fingerprint, "choices": choices,
        })
    }

    fn is_chat(&self) -> bool {
        self.endpoint == Endpoint::Chat
    }

    fn usage(tokens: Tokens) -> Value {
        json!({
            "prompt_tokens": tokens.prompt,
            "completion_tokens": tokens.completion,
            "total_tokens": tokens.prompt + tokens.completion,
            "prompt_tokens_details": { "cached_tokens": tokens.cached },
            "completion_tokens_details": { "reasoning_tokens": tokens.reasoning },
            // Where DeepSeek's clients look for it.
            "reasoning_tokens": tokens.reasoning,
        })
    }

    fn scores(&self, scored: &[Scored]) -> Value {
        match scored {
            [] => Value::Null,
            scored if self.is_chat() => scores::chat(scored),
            scored => scores::completion(scored),
        }
    }

    /// Returns a whole choice.
    fn choice(&self, index: usize, mut text: Text, finished: &Finished) -> Value {
        let reason = finished.reason.name();
        if !self.is_chat() {
            // Of a text that was stopped, only tokens that begin in it are shown.
            let length = text.content.chars().count();
            text.scored.retain(|scored| scored.offset < length.max(finished.echoed + 1));
            let scores = self.scores(&text.scored);
            return json!({ "index": index, "text": text.content, "logprobs": scores, "finish_reason": reason });
        }
        let content = if text.content.is_empty() && !text.calls.is_empty() { Value::Null } else { text.content.into() };
        let mut message = json!({ "role": "assistant", "content": content });
        if !text.reasoning.is_empty() {
            // The names of OpenRouter and of DeepSeek and vLLM.
            message["reasoning"] = text.reasoning.as_str().into();
            message["reasoning_content"] = text.reasoning.into();
        }
        if !text.calls.is_empty() {
            message["tool_calls"] = text.calls.iter().enumerate().map(|(at, call)| called(at, call, false)).collect();
        }
        let scores = self.scores(&text.scored);
        json!({ "index": index, "message": message, "logprobs": scores, "finish_reason": reason })
    }

    /// Returns a part of a streamed choice: something new, or how it ended.
    fn part(&self, index: usize, delta: &Value, scores: &Value, reason: Option<&str>) -> Value {
        let choice = if self.is_chat() {
            json!({ "index": index, "delta": delta, "logprobs": scores, "finish_reason": reason })
        } else {
            json!({ "index": index, "text": delta, "logprobs": scores, "finish_reason": reason })
        };
        self.with(self.object(), &json!([choice]))
    }

    /// Returns the parts of a streamed choice for something new. `calls` counts the calls of the choice.
    fn parts(&self, index: usize, chunk: Chunk, calls: &mut usize) -> Vec<Value> {
        let mut scores = self.scores(&chunk.scored);
        let mut deltas: Vec<Value> = Vec::new();
        for part in chunk.parts {
            deltas.push(match part {
                Part::Reasoning(text) => json!({ "reasoning": text, "reasoning_content": text }),
                Part::Content(text) if self.is_chat() => json!({ "content": text }),
                Part::Content(text) => json!(text),
                Part::Call(call) => {
                    let value = called(*calls, &call, true);
                    *calls += 1;
                    json!({ "tool_calls": [value] })
                }
            });
        }
        if deltas.is_empty() && !scores.is_null() {
            deltas.push(self.nothing());
        }
        deltas.into_iter().map(|delta| self.part(index, &delta, &scores.take(), None)).collect()
    }

    fn nothing(&self) -> Value {
        if self.is_chat() { json!({}) } else { json!("") }
    }

    fn object(&self) -> &'static str {
        if self.is_chat() { "chat.completion.chunk" } else { "text_completion" }
    }

    /// Records a completed answer.
    fn completed(&self, metrics: &Metrics, finished: &[Finished]) -> Tokens {
        let tokens = counted(self.prompt_tokens, finished);
        metrics.completed(self.endpoint, self.begun.elapsed(), tokens);
        tokens
    }
}

/// Answers with the whole text of every choice.
///
/// # Errors
/// A generation fails.
pub(super) async fn whole(
    model: &ServedModel,
    metrics: &Metrics,
    answer: &Answer,
    choices: Vec<Pieces>,
    form: &Form,
) -> Result<Response, ApiError> {
    let one = |pieces: Pieces| async move {
        let mut text = Text::default();
        let finished = generate(model, pieces, form.clone(), |chunk| text.add(chunk)).await?;
        Ok::<_, ApiError>((text, finished))
    };
    let mut done = Vec::new();
    for one in join_all(choices.into_iter().map(one)).await {
        done.push(one?);
    }
    let finished: Vec<Finished> = done.iter().map(|(_, finished)| *finished).collect();
    let choices = done.into_iter().enumerate().map(|(index, (text, finished))| answer.choice(index, text, &finished));
    let object = if answer.is_chat() { "chat.completion" } else { "text_completion" };
    let mut body = answer.with(object, &choices.collect());
    body["usage"] = Answer::usage(answer.completed(metrics, &finished));
    Ok(Json(body).into_response())
}

/// The server-sent events of a response.
#[derive(Clone)]
pub(super) struct Events(UnboundedSender<Event>);

impl Events {
    /// Sends an event. The client may have gone, which ends the generation.
    pub(super) fn send(&self, event: Event) {
        let _ = self.0.send(event);
    }

    fn data(&self, data: &Value) {
        self.send(Event::default().data(data.to_string()));
    }

    /// Waits until the client has gone.
    pub(super) async fn closed(&self) {
        self.0.closed().await;
    }
}

/// Answers with server-sent events that a task sends. Holds at most a few events for each token of the response.
pub(super) fn events<F: Future<Output = ()> + Send + 'static>(task: impl FnOnce(Events) -> F) -> Response {
    let (events, mut received) = unbounded_channel::<Event>();
    tokio::spawn(task(Events(events)));
    let events = poll_fn(move |context| received.poll_recv(context).map(|event| event.map(Ok::<_, Infallible>)));
    Sse::new(events).keep_alive(KeepAlive::default()).into_response()
}

/// Answers with an event for each piece of text, and `[DONE]` at the end. The generation ends when the client closes the
/// connection.
pub(super) fn stream(
    model: Arc<ServedModel>,
    metrics: Arc<Metrics>,
    answer: Answer,
    choices: Vec<Pieces>,
    form: Form,
    usage: bool,
) -> Response {
    events(move |events| async move {
        let (told, answer_of, model, form) = (&events, &answer, &*model, &form);
        let one = |(index, pieces): (usize, Pieces)| async move {
            let (events, answer) = (told, answer_of);
            if answer.is_chat() {
                let delta = json!({ "role": "assistant", "content": "" });
                events.data(&answer.part(index, &delta, &Value::Null, None));
            }
            let mut calls = 0;
            let said = |chunk| {
                for part in answer.parts(index, chunk, &mut calls) {
                    events.data(&part);
                }
            };
            let finished = generate(model, pieces, form.clone(), said).await?;
            events.data(&answer.part(index, &answer.nothing(), &Value::Null, Some(finished.reason.name())));
            Ok::<_, ApiError>(finished)
        };
        let all = tokio::select! {
            () = events.closed() => return,
            all = join_all(choices.into_iter().enumerate().map(one)) => all,
        };
        match all.into_iter().collect::<Result<Vec<Finished>, ApiError>>() {
            Ok(finished) => {
                let tokens = answer.completed(&metrics, &finished);
                if usage {
                    let mut last = answer.with(answer.object(), &json!([]));
                    last["usage"] = Answer::usage(tokens);
                    events.data(&last);
                }
            }
            Err(error) => events.data(&error.body()),
        }
        events.send(Event::default().data("[DONE]"));
    })
}
