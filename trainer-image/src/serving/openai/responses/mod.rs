//! `/v1/responses` without a state: text in, items out, whole or as events. Nothing is stored, so that a client sends the whole
//! conversation each time. No I/O of its own.

mod output;

use std::{sync::Arc, time::Instant};

use axum::{
    Json,
    response::{IntoResponse as _, Response, sse::Event},
};
use minijinja::Value as Any;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use self::output::Output;
use super::{
    chat::{self, ChatMessage, Choice, Content, Extras, Tools, WrittenCall, WrittenFunction},
    error::ApiError,
    generation::{Finished, Reason, generate},
    now,
    request::{Asked, read, typed},
    respond::{counted, events, identifier},
    structure,
};
use crate::{
    serving::{
        batcher::Pieces,
        filter::Check,
        http::App,
        metrics::{Endpoint, Tokens},
        phase::ServedModel,
    },
    text::Role,
};

/// Fields that ask for a state, and what to do instead.
const STATEFUL: [(&str, &str); 3] = [
    ("previous_response_id", "this server stores no responses: send the earlier items of the conversation in input"),
    ("conversation", "this server stores no conversations: send the earlier items in input"),
    ("prompt", "this server stores no prompts: send instructions and input"),
];

#[derive(Debug, Deserialize)]
struct Body {
    input: Input,
    instructions: Option<String>,
    background: Option<bool>,
    tool_choice: Option<Choice>,
    parallel_tool_calls: Option<bool>,
    truncation: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Input {
    Text(String),
    Items(Vec<Item>),
}

/// An item of the input; which fields it has depends on its type.
#[derive(Debug, Deserialize)]
struct Item {
    #[serde(rename = "type")]
    kind: Option<String>,
    role: Option<Role>,
    content: Option<Content>,
    call_id: Option<String>,
    name: Option<String>,
    arguments: Option<String>,
    output: Option<Content>,
}

/// What keeps the order of its fields.
#[derive(Debug, Default, Deserialize)]
struct Written {
    #[serde(default)]
    tools: Option<Vec<Any>>,
}

/// A request, as far as its response repeats it.
#[derive(Debug)]
pub(super) struct Request {
    /// The response without output, while it is in progress.
    response: Map<String, Value>,
    prompt_tokens: usize,
}

impl Request {
    /// Reads a request.
    ///
    /// # Errors
    /// The response to an invalid request.
    pub(super) fn read(
        model: &ServedModel,
        served: &str,
        bytes: &[u8],
        check: Option<Check>,
    ) -> Result<(Self, Asked), ApiError> {
        let (value, common) = read(bytes, served, r#"{"input": "Hello"}"#, &[])?;
        for (name, right) in STATEFUL {
            if value.get(name).is_some_and(|value| !value.is_null()) {
                return Err(ApiError::field(name, right));
            }
        }
        let repeated = |name: &str| value.get(name).cloned().unwrap_or_default();
        let mut response = json!({
            "id": identifier("resp_"), "object": "response", "created_at": now(), "status": "in_progress", "background": false,
            "error": null, "incomplete_details": null, "model": served, "output": [], "previous_response_id": null,
            "store": false, "truncation": "disabled", "usage": null, "user": null,
            "system_fingerprint": model.fingerprint(), "model_digest": model.digest, "ring": model.ring(),
        });
        let structure = structure::of_response(&value)?;
        let extras = Extras { check, structure, ..Extras::default() }.with_reasoning(&value)?;
        let format = value.pointer("/text/format").filter(|it| it.is_object()).cloned();
        let format = format.unwrap_or_else(|| json!({ "type": "text" }));
        let settings = json!({
            "text": { "format": format }, "reasoning": { "effort": null, "summary": null },
            "instructions": repeated("instructions"), "max_output_tokens": repeated("max_output_tokens"),
            "metadata": value.get("metadata").filter(|it| it.is_object()).cloned().unwrap_or_else(|| json!({})),
            "temperature": common.temperature.unwrap_or(0.0), "top_p": common.top_p.unwrap_or(1.0),
            "tools": value.get("tools").filter(|it| it.is_array()).cloned().unwrap_or_else(|| json!([])),
            "tool_choice": value.get("tool_choice").filter(|it| !it.is_null()).cloned().unwrap_or_else(|| json!("auto")),
            "parallel_tool_calls": value.get("parallel_tool_calls").and_then(Value::as_bool).unwrap_or(true),
        });
        let mut response = response.as_object_mut().map(std::mem::take).unwrap_or_default();
        response.extend(settings.as_object().cloned().unwrap_or_default());
        let body: Body = typed(value)?;
        if body.background == Some(true) {
            return Err(ApiError::field("background", "true: this server answers at once: send false"));
        }
        if let Some(truncation) = body.truncation.filter(|truncation| truncation != "disabled") {
            return Err(ApiError::field("truncation", format!("{truncation:?}: only \"disabled\" is supported")));
        }
        let written: Written = codex_json::from_slice(bytes)
            .map_err(|why| ApiError::invalid(None, format!("the request has the wrong shape: {why}")))?;
        let tools = written.tools.unwrap_or_default();
        let strict = tools.iter().map(chat::is_strict).collect();
        let all = tools.iter().enumerate().map(|(at, tool)| nested(at, tool)).collect::<Result<_, _>>()?;
        let tools = Tools { all, strict, choice: body.tool_choice, parallel: body.parallel_tool_calls };
        let mut messages = Vec::new();
        if let Some(text) = body.instructions {
            messages.push(message(Role::System, text));
        }
        match body.input {
            Input::Text(text) => messages.push(message(Role::User, text)),
            Input::Items(items) => {
                for (at, item) in items.into_iter().enumerate() {
                    item.add(at, &mut messages)?;
                }
            }
        }
        if messages.is_empty() {
            return Err(ApiError::field("input", "send a text or at least one item"));
        }
        let asked = chat::asked(model, common, messages, tools, extras)?;
        let prompt_tokens = asked.jobs.first().map_or(0, |job| job.prompt.len());
        Ok((Self { response, prompt_tokens }, asked))
    }

    /// Answers the request, whole or as events.
    ///
    /// # Errors
    /// The generation of a whole response fails, or several are asked for.
    pub(super) async fn answer(
        self,
        model: &Arc<ServedModel>,
        app: &App,
        asked: Asked,
        mut choices: Vec<Pieces>,
        begun: Instant,
    ) -> Result<Response, ApiError> {
        let (Some(pieces), true) = (choices.pop(), choices.is_empty()) else {
            return Err(ApiError::field("n", "a response has one choice: send 1"));
        };
        let metrics = app.metrics_handle();
        if !asked.stream {
            let mut output = Output::new(|_: &str, _: Map<String, Value>| ());
            let finished = generate(model, pieces, asked.form, |chunk| output.add(chunk)).await?;
            let (items, tokens) = (output.finish(finished.reason), counted(self.prompt_tokens, &[finished]));
            metrics.completed(Endpoint::Responses, begun.elapsed(), tokens);
            return Ok(Json(self.done(items, &finished, tokens)).into_response());
        }
        let model = Arc::clone(model);
        Ok(events(move |events| async move {
            let mut number = 0_u64;
            let mut emit = |kind: &str, mut data: Map<String, Value>| {
                data.insert("type".to_owned(), kind.into());
                data.insert("sequence_number".to_owned(), number.into());
                number += 1;
                events.send(Event::default().event(kind).data(Value::Object(data).to_string()));
            };
            let whole = |response: Value| Map::from_iter([("response".to_owned(), response)]);
            for kind in ["response.created", "response.in_progress"] {
                emit(kind, whole(Value::Object(self.response.clone())));
            }
            let mut output = Output::new(&mut emit);
            let generation = generate(&model, pieces, asked.form, |chunk| output.add(chunk));
            let finished = tokio::select! {
                () = events.closed() => return,
                finished = generation => finished,
            };
            match finished {
                Ok(finished) => {
                    let items = output.finish(finished.reason);
                    let tokens = counted(self.prompt_tokens, &[finished]);
                    metrics.completed(Endpoint::Responses, begun.elapsed(), tokens);
                    let kind = format!("response.{}", status(finished.reason));
                    emit(&kind, whole(self.done(items, &finished, tokens)));
                }
                Err(error) => {
                    drop(output);
                    let mut failed = self.response;
                    failed.insert("status".to_owned(), "failed".into());
                    failed.insert("error".to_owned(), json!({ "code": "server_error", "message": error.message }));
                    emit("response.failed", whole(Value::Object(failed)));
                }
            }
        }))
    }

    /// Returns the response at its end.
    fn done(&self, items: Vec<Value>, finished: &Finished, tokens: Tokens) -> Value {
        let mut response = Value::Object(self.response.clone());
        response["status"] = status(finished.reason).into();
        if finished.reason == Reason::Length {
            response["incomplete_details"] = json!({ "reason": "max_output_tokens" });
        } else if finished.reason == Reason::Filtered {
            response["incomplete_details"] = json!({ "reason": "content_filter" });
        }
        response["output"] = items.into();
        response["usage"] = json!({
            "input_tokens": tokens.prompt,
            "input_tokens_details": { "cached_tokens": tokens.cached },
            "output_tokens": tokens.completion,
            "output_tokens_details": { "reasoning_tokens": tokens.reasoning },
            "total_tokens": tokens.prompt + tokens.completion,
        });
        response
    }
}

/// Returns the status of a response and of its last item.
fn status(reason: Reason) -> &'static str {
    match reason {
        Reason::Stop | Reason::Calls => "completed",
        Reason::Length | Reason::Filtered => "incomplete",
    }
}

fn message(role: Role, text: String) -> ChatMessage {
    ChatMessage { role: Some(role), content: Some(Content::Text(text)), ..ChatMessage::default() }
}

/// Returns a tool in the form of chats, which templates expect.
fn nested(at: usize, tool: &Any) -> Result<Any, ApiError> {
    let field = |name: &str| tool.get_attr(name).ok().filter(|value| !value.is_undefined());
    let kind = field("type");
    let kind = kind.as_ref().and_then(|kind| kind.as_str()).unwrap_or_default();
    if kind != "function" {
        let told = format!("type {kind:?}: this server runs no tools: send functions that the client runs");
        return Err(ApiError::field(&format!("tools[{at}]"), told));
    }
    let names = ["name", "description", "parameters"];
    let function = Any::from_pairs(names.into_iter().filter_map(|name| Some((name, field(name)?))));
    Ok(Any::from_pairs([("type", Any::from("function")), ("function", function)]))
}

impl Item {
    /// Adds the item to the messages of a chat. Calls that follow each other belong to one message of the model.
    fn add(self, at: usize, messages: &mut Vec<ChatMessage>) -> Result<(), ApiError> {
        let place = format!("input[{at}]");
        let lacks = |field: &str| ApiError::field(&format!("{place}.{field}"), "is missing");
        let kind = self.kind.unwrap_or_else(|| "message".to_owned());
        match kind.as_str() {
            "message" => {
                let role = self.role.ok_or_else(|| lacks("role"))?;
                let content = self.content.ok_or_else(|| lacks("content"))?.plain(&format!("{place}.content"))?;
                // Templates know the system, which is what the developer is elsewhere.
                messages.push(message(if role == Role::Developer { Role::System } else { role }, content));
            }
            "function_call" => {
                let name = self.name.ok_or_else(|| lacks("name"))?;
                let function = WrittenFunction { name, arguments: self.arguments.unwrap_or_default() };
                let call = WrittenCall { id: self.call_id, function };
                match messages.last_mut().filter(|last| last.role == Some(Role::Assistant)) {
                    Some(last) => last.tool_calls.get_or_insert_default().push(call),
                    None => messages.push(ChatMessage {
                        role: Some(Role::Assistant),
                        tool_calls: Some(vec![call]),
                        ..ChatMessage::default()
                    }),
                }
            }
            "function_call_output" => {
                let output = self.output.ok_or_else(|| lacks("output"))?.plain(&format!("{place}.output"))?;
                messages.push(ChatMessage { tool_call_id: self.call_id, ..message(Role::Tool, output) });
            }
            // Templates leave out the reasoning of earlier turns.
            "reasoning" => {}
            other => {
                let told = format!("type {other:?} is not supported: send messages, function calls and their outputs");
                return Err(ApiError::field(&place, told));
            }
        }
        Ok(())
    }
}
