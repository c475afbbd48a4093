//! Requests in the shape of OpenAI's API. Pure.
//!
//! Fields that change what is generated are honoured or refused; all others are ignored, because clients send many.

use codex_engine::{Sampler, Sampling};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::error::ApiError;
use crate::{
    serving::{batcher::Job, phase::ServedModel},
    text::{Message, Role, TokenizerError},
};

/// The most texts in `stop`, as at OpenAI.
const MAX_STOPS: usize = 4;

/// What a request asks for.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) job: Job,
    /// Texts that end the response and are not part of it.
    pub(super) stop: Vec<String>,
    /// Whether the response is sent as it is generated.
    pub(super) stream: bool,
    /// Whether a stream ends with the numbers of tokens.
    pub(super) usage: bool,
}

/// The fields that both endpoints have.
#[derive(Debug, Default, Deserialize)]
struct Common {
    model: Option<String>,
    max_tokens: Option<u64>,
    max_completion_tokens: Option<u64>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    top_k: Option<i64>,
    seed: Option<i64>,
    stop: Option<OneOrMany>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

#[derive(Debug, Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct ChatBody {
    messages: Vec<ChatMessage>,
}

#[derive(Debug, Deserialize)]
struct ChatMessage {
    role: Role,
    content: Option<Content>,
}

/// The content of a message: text, or parts of it.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Debug, Deserialize)]
struct Part {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
}

#[derive(Debug, Deserialize)]
struct CompletionBody {
    prompt: Prompt,
}

/// A prompt: text or token ids, alone or in a list of one.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Prompt {
    Text(String),
    Ids(Vec<u32>),
    Texts(Vec<String>),
    Lists(Vec<Vec<u32>>),
}

/// A field, a test for the values that change nothing, and what to send instead.
type Refused = (&'static str, fn(&Value) -> bool, &'static str);

/// Fields that would change what is generated and are not implemented.
const REFUSED: [Refused; 14] = [
    ("n", |value| *value == 1, "one choice per request is supported: send 1"),
    ("best_of", |value| *value == 1, "one choice per request is supported: send 1"),
    ("tools", is_empty, "tools are not supported: remove them"),
    ("functions", is_empty, "functions are not supported: remove them"),
    ("tool_choice", |value| *value == "none" || *value == "auto", "tools are not supported: remove it"),
    ("response_format", |value| value["type"] == "text", "only {\"type\": \"text\"} is supported"),
    ("logprobs", |value| *value == false || *value == 0, "log-probabilities are not supported: remove it"),
    ("top_logprobs", |value| *value == 0, "log-probabilities are not supported: remove it"),
    ("echo", |value| *value == false, "the prompt is not repeated: send false"),
    ("suffix", |value| *value == "", "text cannot be inserted: remove it"),
    ("logit_bias", is_empty, "logits cannot be biased: remove it"),
    ("presence_penalty", is_zero, "penalties are not supported: send 0"),
    ("frequency_penalty", is_zero, "penalties are not supported: send 0"),
    ("modalities", |value| *value == serde_json::json!(["text"]), "only text is supported: send [\"text\"]"),
];

fn is_empty(value: &Value) -> bool {
    value.as_array().is_some_and(Vec::is_empty) || value.as_object().is_some_and(Map::is_empty)
}

fn is_zero(value: &Value) -> bool {
    value.as_f64() == Some(0.0)
}

impl Asked {
    /// Reads a request to `/v1/chat/completions`.
    ///
    /// # Errors
    /// The response to an invalid request.
    pub(super) fn chat(model: &ServedModel, served: &str, bytes: &[u8]) -> Result<Self, ApiError> {
        let (body, common) = read(bytes, served, r#"{"messages": [{"role": "user", "content": "Hello"}]}"#)?;
        if !model.tokenizer.has_template() {
            let told = "the model has no chat template: use /v1/completions";
            return Err(ApiError::invalid("messages".to_owned(), told));
        }
        let ChatBody { messages } = typed(body)?;
        if messages.is_empty() {
            return Err(ApiError::field("messages", "send at least one"));
        }
        let messages: Vec<Message> =
            messages.into_iter().enumerate().map(|(at, message)| message.plain(at)).collect::<Result<_, _>>()?;
        let prompt = model.tokenizer.encode_chat(&messages).map_err(|error| refused("messages", &error))?;
        Self::of(model, prompt, common)
    }

    /// Reads a request to `/v1/completions`.
    ///
    /// # Errors
    /// The response to an invalid request.
    pub(super) fn completion(model: &ServedModel, served: &str, bytes: &[u8]) -> Result<Self, ApiError> {
        let (body, common) = read(bytes, served, r#"{"prompt": "Once upon a time"}"#)?;
        let CompletionBody { prompt } = typed(body)?;
        let encode = |text: &str| model.tokenizer.encode(text).map_err(|error| refused("prompt", &error));
        let prompt = match prompt {
            Prompt::Text(text) => encode(&text)?,
            Prompt::Ids(ids) if !ids.is_empty() => ids,
            Prompt::Texts(texts) if texts.len() == 1 => encode(&texts[0])?,
            Prompt::Lists(mut lists) if lists.len() == 1 => lists.remove(0),
            Prompt::Ids(_) | Prompt::Texts(_) | Prompt::Lists(_) => {
                return Err(ApiError::field("prompt", "send one prompt per request"));
            }
        };
        Self::of(model, prompt, common)
    }

    fn of(model: &ServedModel, prompt: Vec<u32>, common: Common) -> Result<Self, ApiError> {
        let context = model.context;
        if prompt.len() >= context {
            let told = format!("the prompt has {} tokens, but the model's context holds {context}", prompt.len());
            return Err(ApiError { code: Some("context_length_exceeded"), ..ApiError::invalid(None, told) });
        }
        let limit = match common.max_completion_tokens.or(common.max_tokens) {
            Some(0) => return Err(ApiError::field("max_tokens", "0 is out of range; use at least 1")),
            Some(limit) => usize::try_from(limit).unwrap_or(usize::MAX).min(context),
            None => context,
        };
        let temperature = common.temperature.unwrap_or(0.0);
        let drawn = || if temperature > 0.0 { rand::random() } else { 0 };
        let sampling = Sampling {
            temperature,
            top_p: common.top_p.unwrap_or(1.0),
            // -1 is all at vLLM.
            top_k: usize::try_from(common.top_k.unwrap_or(0).max(0)).unwrap_or(usize::MAX),
            seed: common.seed.map_or_else(drawn, i64::cast_unsigned),
        };
        let sampler =
            Sampler::new(sampling).map_err(|error| ApiError::invalid(error.field.to_owned(), error.to_string()))?;
        let stop = match common.stop {
            None => Vec::new(),
            Some(OneOrMany::One(text)) => vec![text],
            Some(OneOrMany::Many(texts)) => texts,
        };
        if stop.len() > MAX_STOPS || stop.iter().any(String::is_empty) {
            return Err(ApiError::field("stop", format!("send at most {MAX_STOPS} texts, none of them empty")));
        }
        Ok(Self {
            job: Job { prompt, limit, sampler },
            stop,
            stream: common.stream.unwrap_or(false),
            usage: common.stream_options.and_then(|options| options.include_usage).unwrap_or(false),
        })
    }
}

impl ChatMessage {
    /// Returns the message with its parts joined.
    fn plain(self, at: usize) -> Result<Message, ApiError> {
        let content = match self.content {
            None => String::new(),
            Some(Content::Text(text)) => text,
            Some(Content::Parts(parts)) => {
                let texts = parts.into_iter().map(|part| match part {
                    Part { kind, text: Some(text) } if kind == "text" => Ok(text),
                    Part { kind, .. } => {
                        let told = format!("a part of type {kind:?} is not supported: send text");
                        Err(ApiError::field(&format!("messages[{at}].content"), told))
                    }
                });
                texts.collect::<Result<String, _>>()?
            }
        };
        Ok(Message { role: self.role, content })
    }
}

fn refused(param: &str, error: &TokenizerError) -> ApiError {
    ApiError::field(param, crate::error::chain(error))
}

/// Reads a body as a request to either endpoint, without a model.
#[cfg(test)]
pub(crate) fn read_any(bytes: &[u8]) -> usize {
    let Ok((body, _)) = read(bytes, "codex", "") else { return 0 };
    let chat = typed::<ChatBody>(body.clone())
        .is_ok_and(|body| body.messages.into_iter().enumerate().all(|(at, message)| message.plain(at).is_ok()));
    usize::from(chat) + usize::from(typed::<CompletionBody>(body).is_ok())
}

/// Reads the body and the fields that both endpoints have.
fn read(bytes: &[u8], served: &str, example: &str) -> Result<(Value, Common), ApiError> {
    if bytes.is_empty() {
        return Err(ApiError::invalid(None, format!("the request body is empty: send {example}")));
    }
    let body: Map<String, Value> = codex_json::from_slice(bytes).map_err(|why| {
        ApiError::invalid(None, format!("the request body is not a JSON object ({why}): send {example}"))
    })?;
    for (name, changes_nothing, right) in REFUSED {
        if let Some(value) = body.get(name).filter(|value| !value.is_null() && !changes_nothing(value)) {
            return Err(ApiError::field(name, format!("{value}: {right}")));
        }
    }
    let body = Value::Object(body);
    let common: Common = typed(body.clone())?;
    // `codex` names whatever is served, so that a client need not know the object.
    if let Some(asked) = common.model.as_ref().filter(|asked| *asked != served && *asked != "codex") {
        return Err(ApiError::model(asked, served));
    }
    Ok((body, common))
}

fn typed<T: serde::de::DeserializeOwned>(body: Value) -> Result<T, ApiError> {
    codex_json::from_value(body)
        .map_err(|why| ApiError::invalid(None, format!("the request has the wrong shape: {why}")))
}
