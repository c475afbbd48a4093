//! The fields that all requests in the shape of OpenAI's API have, and those of `/v1/completions`. Pure.
//!
//! Fields that change what is generated are honoured or refused; all others are ignored, because clients send many.

use std::sync::Arc;

use axum::http::StatusCode;
use codex_engine::{Sampler, Sampling};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{
    budget::{self, Budget},
    error::ApiError,
    generation::Form,
    split::Markers,
    structure::{self, Structure},
};
use crate::{
    safety::Direction,
    serving::{
        batcher::{Bound, Job},
        filter::Check,
        grammar::GrammarError,
        phase::ServedModel,
        thinking::{self, Bounds, Granted, Thinking},
    },
    text::TokenizerError,
};

/// The most texts in `stop`, as at OpenAI.
const MAX_STOPS: usize = 4;

/// The fewest tokens that a response can be limited to.
pub(super) const LEAST: u64 = 1;

/// The most choices of a request.
const MAX_CHOICES: u64 = 16;
/// The most log-probabilities beside that of the chosen token.
const MAX_SCORES: u64 = 20;
/// The most log-probabilities of the tokens of a prompt, those beside them included.
const MAX_PROMPT_SCORES: usize = 1 << 16;

/// What a request asks for.
#[derive(Debug)]
pub(super) struct Asked {
    /// One for each choice; they differ in their seeds.
    pub(super) jobs: Vec<Job>,
    pub(super) form: Form,
    /// Whether the response is sent as it is generated.
    pub(super) stream: bool,
    /// Whether a stream ends with the numbers of tokens.
    pub(super) usage: bool,
    /// What binds the text of each choice.
    pub(super) structure: Option<Structure>,
}

/// The fields that all endpoints have.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Common {
    model: Option<String>,
    max_tokens: Option<u64>,
    max_completion_tokens: Option<u64>,
    pub(super) max_output_tokens: Option<u64>,
    pub(super) temperature: Option<f64>,
    pub(super) top_p: Option<f64>,
    top_k: Option<i64>,
    seed: Option<i64>,
    n: Option<u64>,
    stop: Option<OneOrMany>,
    pub(super) stream: Option<bool>,
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
struct CompletionBody {
    prompt: Prompt,
    logprobs: Option<u64>,
    echo: Option<bool>,
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
const REFUSED: [Refused; 9] = [
    ("best_of", |value| *value == 1, "choices are not compared: send n instead"),
    ("functions", is_empty, "functions are not supported: send tools instead"),
    (
        "function_call",
        |value| *value == "none" || *value == "auto",
        "functions are not supported: send tool_choice instead",
    ),
    ("echo", |value| *value == false, "only /v1/completions repeats the prompt: send false"),
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
    /// Reads a request to `/v1/completions`.
    ///
    /// # Errors
    /// The response to an invalid request.
    pub(super) fn completion(
        model: &ServedModel,
        served: &str,
        bytes: &[u8],
        check: Option<Check>,
    ) -> Result<Self, ApiError> {
        let (body, common) = read(bytes, served, r#"{"prompt": "Once upon a time"}"#, &["echo"])?;
        let structure = structure::of(&body)?;
        let budget = budget::of(&body)?;
        let CompletionBody { prompt, logprobs, echo } = typed(body)?;
        let echo = echo.unwrap_or(false);
        let encode = |text: &str| {
            let text = prompt_text(check.as_ref(), text.to_owned())?;
            model.tokenizer.encode(&text).map_err(|error| refused("prompt", &error))
        };
        let ids = |ids: Vec<u32>| {
            let Some(_) = &check else { return Ok(ids) };
            let text = model.tokenizer.decode(&ids).map_err(|error| refused("prompt", &error))?;
            // Only a text that had to be changed is encoded again.
            if prompt_text(check.as_ref(), text.clone())? == text { Ok(ids) } else { encode(&text) }
        };
        let prompt = match prompt {
            Prompt::Text(text) => encode(&text)?,
            Prompt::Ids(list) if !list.is_empty() => ids(list)?,
            Prompt::Texts(texts) if texts.len() == 1 => encode(&texts[0])?,
            Prompt::Lists(mut lists) if lists.len() == 1 => ids(lists.remove(0))?,
            Prompt::Ids(_) | Prompt::Texts(_) | Prompt::Lists(_) => {
                return Err(ApiError::field("prompt", "send one prompt per request"));
            }
        };
        let scores = logprobs.map(|count| scores("logprobs", count)).transpose()?;
        // With the prompt in it, a completion without a response says something.
        let least = if echo { 0 } else { LEAST };
        let mut asked = Self { structure, ..Self::of(model, &prompt, (common, least), scores, check)? };
        if echo {
            asked.repeat_prompt(&prompt, scores)?;
        }
        // A grammar binds a completion from its first token on, so that it has no reasoning.
        if let Some(budget) = budget.filter(|_| asked.structure.is_none()) {
            let markers = Markers::of(&model.tokenizer).unwrap_or(Markers::KNOWN[0]);
            let opened = model.specials.leaves_open(&model.tokenizer, &prompt, markers);
            asked.end_reasoning(model, markers, opened.map_err(|error| refused("prompt", &error))?, Some(budget))?;
        }
        Ok(asked)
    }

    /// Begins the text of each choice with the prompt, and scores the prompt if log-probabilities are asked for.
    ///
    /// # Errors
    /// More log-probabilities are asked for than a response has room for.
    fn repeat_prompt(&mut self, prompt: &[u32], scores: Option<usize>) -> Result<(), ApiError> {
        self.form.echo = Some(prompt.into());
        let Some(count) = scores else { return Ok(()) };
        if self.jobs.len() > 1 {
            let told =
                format!("{}: with echo and logprobs, the prompt is computed for each choice: send 1", self.jobs.len());
            return Err(ApiError::field("n", told));
        }
        let all = prompt.len().saturating_mul(count + 1);
        if all > MAX_PROMPT_SCORES {
            let told = format!(
                "{count} beside each of the {} tokens of the prompt are {all} log-probabilities; at most {MAX_PROMPT_SCORES} are \
                 returned: use a smaller number, or a shorter prompt",
                prompt.len()
            );
            return Err(ApiError::field("logprobs", told));
        }
        for job in &mut self.jobs {
            job.prompt_scores = Some(count);
        }
        Ok(())
    }

    /// Makes the jobs of a prompt, whose responses may be limited to `least` tokens.
    ///
    /// # Errors
    /// The prompt is too long, or a field is out of range.
    pub(super) fn of(
        model: &ServedModel,
        prompt: &[u32],
        (common, least): (Common, u64),
        scores: Option<usize>,
        check: Option<Check>,
    ) -> Result<Self, ApiError> {
        let context = model.context;
        if prompt.len() >= context {
            let told = format!("the prompt has {} tokens, but the model's context holds {context}", prompt.len());
            return Err(ApiError { code: Some("context_length_exceeded"), ..ApiError::invalid(None, told) });
        }
        let limit = match common.max_completion_tokens.or(common.max_tokens).or(common.max_output_tokens) {
            Some(limit) if limit < least => {
                return Err(ApiError::field("max_tokens", format!("{limit} is out of range; use at least {least}")));
            }
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
        let count = common.n.unwrap_or(1);
        if !(1..=MAX_CHOICES).contains(&count) {
            return Err(ApiError::field("n", format!("{count} is out of range; use 1 to {MAX_CHOICES}")));
        }
        let sampler = |sampling| {
            Sampler::new(sampling).map_err(|error| ApiError::invalid(error.field.to_owned(), error.to_string()))
        };
        // The choice with number 0 is the one that the seed gives alone.
        let samplers =
            (0..count).map(|index| sampler(Sampling { seed: sampling.seed.wrapping_add(index), ..sampling }));
        let job = |sampler| Job { sampler, scores, ..Job::greedy(prompt.to_vec(), limit) };
        let jobs = samplers.map(|sampler| Ok(job(sampler?)));
        let jobs = jobs.collect::<Result<_, ApiError>>()?;
        let stop = match common.stop {
            None => Vec::new(),
            Some(OneOrMany::One(text)) => vec![text],
            Some(OneOrMany::Many(texts)) => texts,
        };
        if stop.len() > MAX_STOPS || stop.iter().any(String::is_empty) {
            return Err(ApiError::field("stop", format!("send at most {MAX_STOPS} texts, none of them empty")));
        }
        Ok(Self {
            jobs,
            form: Form { stop, splitter: None, one_call: false, check, echo: None },
            stream: common.stream.unwrap_or(false),
            usage: common.stream_options.and_then(|options| options.include_usage).unwrap_or(false),
            structure: None,
        })
    }

    /// Ends the reasoning of each choice by what the request asks, or else by what the server grants. If `opened`, the prompt ends in
    /// it.
    ///
    /// # Errors
    /// The budget leaves no token for the answer, or the tokenizer cannot close the reasoning.
    pub(super) fn end_reasoning(
        &mut self,
        model: &ServedModel,
        markers: Markers,
        opened: bool,
        asked: Option<Budget>,
    ) -> Result<(), ApiError> {
        let Granted { budget, reserve } = model.granted;
        let budget = asked.map_or(budget, |asked| asked.tokens);
        if budget.is_none() && reserve == 0 {
            return Ok(());
        }
        let field = asked.map_or("thinking_token_budget", |asked| asked.field);
        let closing = thinking::closing(&model.tokenizer, markers).map_err(|error| refused(field, &error))?;
        for job in &mut self.jobs {
            let (limit, closes) = (job.limit, closing.len());
            // Where only the context is the limit, reasoning ends before it.
            if let Some(tokens) = asked.and_then(|asked| asked.tokens)
                && limit < model.context
                && tokens.saturating_add(closes) >= limit
            {
                let told = format!(
                    "{tokens} and the {closes} tokens that close the reasoning leave none of the {limit} of max_tokens for the answer: \
                     use at most {}, or raise max_tokens",
                    limit.saturating_sub(closes + 1)
                );
                return Err(ApiError::field(field, told));
            }
            let room = limit.min(model.context - job.prompt.len());
            let until = room.saturating_sub(closes.saturating_add(reserve.max(1)));
            let bounds = Bounds { markers, opened, budget, until };
            let specials = Arc::clone(&model.specials);
            job.thinking = Some(Thinking::new(&model.tokenizer, specials, Arc::clone(&closing), bounds));
        }
        Ok(())
    }

    /// Compiles what binds the text, and gives it to the jobs.
    ///
    /// # Errors
    /// It cannot be compiled.
    pub(super) async fn bind(&mut self, model: &ServedModel) -> Result<(), ApiError> {
        let Some(structure) = &self.structure else { return Ok(()) };
        let bound = model.grammars.bind(&structure.grammar, &structure.around).await.map_err(|error| match error {
            GrammarError::Busy => ApiError::other(StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
            _ => ApiError::field(&structure.field, error),
        })?;
        let source = Arc::new(structure.grammar.copied(&structure.around));
        for job in &mut self.jobs {
            job.bound = Some(Bound { constraint: bound.clone(), source: Arc::clone(&source) });
        }
        Ok(())
    }
}

/// Returns what safety rules leave of a text of a prompt.
///
/// # Errors
/// A rule blocks it, or it cannot be checked.
pub(super) fn prompt_text(check: Option<&Check>, text: String) -> Result<String, ApiError> {
    match check {
        None => Ok(text),
        Some(check) => Ok(check.text(&text, Direction::Prompt)?.0),
    }
}

/// Checks how many log-probabilities are asked for.
pub(super) fn scores(param: &str, count: u64) -> Result<usize, ApiError> {
    if count > MAX_SCORES {
        return Err(ApiError::field(param, format!("{count} is out of range; use 0 to {MAX_SCORES}")));
    }
    Ok(count as usize)
}

pub(super) fn refused(param: &str, error: &TokenizerError) -> ApiError {
    ApiError::field(param, crate::error::chain(error))
}

/// Reads a body as a request to either endpoint, without a model.
#[cfg(test)]
pub(crate) fn read_any(bytes: &[u8]) -> usize {
    let Ok((body, _)) = read(bytes, "codex", "", &["echo"]) else { return 0 };
    if structure::of(&body).and(structure::of_response(&body)).is_err() {
        return 0;
    }
    usize::from(super::chat::reads(body.clone())) + usize::from(typed::<CompletionBody>(body).is_ok())
}

/// Reads the body and the fields that all endpoints have. `honoured` names fields that only this endpoint has, and others refuse.
pub(super) fn read(bytes: &[u8], served: &str, example: &str, honoured: &[&str]) -> Result<(Value, Common), ApiError> {
    if bytes.is_empty() {
        return Err(ApiError::invalid(None, format!("the request body is empty: send {example}")));
    }
    let body: Map<String, Value> = codex_json::from_slice(bytes).map_err(|why| {
        ApiError::invalid(None, format!("the request body is not a JSON object ({why}): send {example}"))
    })?;
    for (name, changes_nothing, right) in REFUSED.into_iter().filter(|(name, ..)| !honoured.contains(name)) {
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

/// Reads a type from the body.
pub(super) fn typed<T: serde::de::DeserializeOwned>(body: Value) -> Result<T, ApiError> {
    codex_json::from_value(body)
        .map_err(|why| ApiError::invalid(None, format!("the request has the wrong shape: {why}")))
}
