//! Requests to `/v1/chat/completions`: messages, tools and the prompt that the chat template makes of them. Pure.

use std::collections::BTreeSet;

use minijinja::Value as Any;
use serde::Deserialize;
use serde_json::Value;

use super::{
    budget::{self, Budget},
    error::ApiError,
    request::{Asked, Common, LEAST, prompt_text, read, refused, scores, typed},
    split::{Markers, Splitter},
    structure::{self, Structure},
    verbatim,
};
use crate::{
    serving::{filter::Check, phase::ServedModel},
    text::{CALL, Conversation, Role},
};

/// The variable of chat templates that says whether the model reasons.
const ENABLE_THINKING: &str = "enable_thinking";

/// The most tools of a request.
const MAX_TOOLS: usize = 128;

#[derive(Debug, Deserialize)]
struct ChatBody {
    messages: Vec<ChatMessage>,
    logprobs: Option<bool>,
    top_logprobs: Option<u64>,
    tool_choice: Option<Choice>,
    parallel_tool_calls: Option<bool>,
}

/// What a template gets as it was written, with its fields in order.
#[derive(Debug, Default, Deserialize)]
struct Written {
    #[serde(default)]
    tools: Option<Vec<Any>>,
    #[serde(default)]
    chat_template_kwargs: Option<std::collections::BTreeMap<String, Any>>,
}

/// A message.
#[derive(Debug, Default, Deserialize)]
pub(super) struct ChatMessage {
    pub(super) role: Option<Role>,
    pub(super) content: Option<Content>,
    pub(super) name: Option<String>,
    pub(super) reasoning_content: Option<String>,
    pub(super) tool_calls: Option<Vec<WrittenCall>>,
    pub(super) tool_call_id: Option<String>,
}

/// The content of a message: text, or parts of it.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Content {
    /// Text.
    Text(String),
    /// Parts.
    Parts(Vec<ContentPart>),
}

/// A part of a content.
#[derive(Debug, Deserialize)]
pub(super) struct ContentPart {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
}

/// A call that the model made earlier.
#[derive(Debug, Deserialize)]
pub(super) struct WrittenCall {
    pub(super) id: Option<String>,
    pub(super) function: WrittenFunction,
}

/// The function of a call.
#[derive(Debug, Deserialize)]
pub(super) struct WrittenFunction {
    pub(super) name: String,
    #[serde(default)]
    pub(super) arguments: String,
}

/// Whether the model may or must call tools.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Choice {
    /// `auto`, `none` or `required`.
    Mode(String),
    /// One function, in the form of chats: `{"type": "function", "function": {"name": …}}`.
    Function {
        /// The function.
        function: Named,
    },
    /// One function, in the form of responses: `{"type": "function", "name": …}`.
    Flat(Named),
}

/// The name of a function.
#[derive(Debug, Deserialize)]
pub(super) struct Named {
    name: String,
}

/// What a request says about tools.
#[derive(Debug, Default)]
pub(super) struct Tools {
    /// In the form of chats.
    pub(super) all: Vec<Any>,
    /// For each tool, whether its arguments must follow its schema.
    pub(super) strict: Vec<bool>,
    pub(super) choice: Option<Choice>,
    pub(super) parallel: Option<bool>,
}

/// What else a prompt is made with.
#[derive(Debug, Default)]
pub(super) struct Extras {
    /// Variables of the template.
    pub(super) variables: Vec<(String, Any)>,
    /// How many log-probabilities are asked for.
    pub(super) scores: Option<usize>,
    /// Safety rules.
    pub(super) check: Option<Check>,
    /// What binds the text.
    pub(super) structure: Option<Structure>,
    /// How many tokens the model may reason.
    pub(super) budget: Option<Budget>,
}

impl Extras {
    /// Reads what a request says about reasoning.
    ///
    /// # Errors
    /// A field is invalid.
    pub(super) fn with_reasoning(mut self, body: &Value) -> Result<Self, ApiError> {
        self.budget = budget::of(body)?;
        let named = self.variables.iter().any(|(name, _)| name == ENABLE_THINKING);
        if let Some(enabled) = budget::enabled(body)?.filter(|_| !named) {
            self.variables.push((ENABLE_THINKING.to_owned(), enabled.into()));
        }
        Ok(self)
    }
}

/// Returns a field of an object; nothing if there is none.
fn field(value: &Any, name: &str) -> Any {
    value.get_attr(name).unwrap_or_default()
}

/// Returns whether the arguments of a function must follow its schema.
pub(super) fn is_strict(function: &Any) -> bool {
    field(function, "strict").is_true()
}

/// Reads a request to `/v1/chat/completions`.
///
/// # Errors
/// The response to an invalid request.
pub(super) fn chat(model: &ServedModel, served: &str, bytes: &[u8], check: Option<Check>) -> Result<Asked, ApiError> {
    let (body, common) = read(bytes, served, r#"{"messages": [{"role": "user", "content": "Hello"}]}"#, &[])?;
    let structure = structure::of(&body)?;
    // Read from the bytes: a template's values are not those of JSON.
    let written: Written = codex_json::from_slice(bytes)
        .map_err(|why| ApiError::invalid(None, format!("the request has the wrong shape: {why}")))?;
    let variables = written.chat_template_kwargs.unwrap_or_default().into_iter().collect();
    let extras = Extras { variables, check, structure, ..Extras::default() }.with_reasoning(&body)?;
    let body: ChatBody = typed(body)?;
    if body.messages.is_empty() {
        return Err(ApiError::field("messages", "send at least one"));
    }
    let count = match (body.logprobs, body.top_logprobs) {
        (Some(true), count) => Some(scores("top_logprobs", count.unwrap_or(0))?),
        (_, Some(1..)) => return Err(ApiError::field("top_logprobs", "send \"logprobs\": true with it")),
        _ => None,
    };
    let all = written.tools.unwrap_or_default();
    let strict = all.iter().map(|tool| is_strict(&field(tool, "function"))).collect();
    let tools = Tools { all, strict, choice: body.tool_choice, parallel: body.parallel_tool_calls };
    asked(model, common, body.messages, tools, Extras { scores: count, ..extras })
}

/// Makes the prompt of a conversation, and says how its response is taken apart.
///
/// # Errors
/// The response to an invalid request.
pub(super) fn asked(
    model: &ServedModel,
    common: Common,
    messages: Vec<ChatMessage>,
    tools: Tools,
    extras: Extras,
) -> Result<Asked, ApiError> {
    let Extras { variables, scores, check, structure, budget } = extras;
    let tokenizer = &model.tokenizer;
    if !tokenizer.has_template() {
        let told = "the model has no chat template: use /v1/completions";
        return Err(ApiError::invalid("messages".to_owned(), told));
    }
    let names = names(&tools.all)?;
    let forced = forced(&tools, &names)?;
    let structure = match (&forced, structure) {
        (Some(_), Some(structure)) => {
            let told = "the model must call a tool: send \"tool_choice\": \"auto\", or remove it";
            return Err(ApiError::field(&structure.field, told));
        }
        (Some(_), None) => strict_arguments(&tools)?,
        (None, structure) => structure,
    };
    let none = matches!(&tools.choice, Some(Choice::Mode(mode)) if mode == "none");
    let with_tools = !tools.all.is_empty() && !none;
    if with_tools && !tokenizer.template_has("tools") {
        let told = "the model's chat template has no place for tools: remove them, or serve a model that was trained with tools";
        return Err(ApiError::field("tools", told));
    }
    let messages = messages
        .into_iter()
        .enumerate()
        .map(|(at, message)| message.value(at, check.as_ref()))
        .collect::<Result<_, _>>()?;
    let tools_shown = if with_tools { tools.all } else { Vec::new() };
    check_beside_messages(check.as_ref(), &tools_shown, &variables)?;
    let conversation = Conversation { messages, tools: tools_shown, variables };
    let rendered = tokenizer.encode_conversation(&conversation).map_err(|error| refused("messages", &error))?;
    let known = Markers::of(tokenizer);
    let markers = known.unwrap_or(Markers::KNOWN[0]);
    let prompted = rendered.text.trim_end();
    let opened = prompted.ends_with(markers.open);
    // The template may have ended the reasoning already.
    let reasoning = known.filter(|markers| !prompted.ends_with(markers.close)).or(opened.then_some(markers));
    let structure = structure.map(|it| if forced.is_some() { it } else { it.around(reasoning, opened, with_tools) });
    let mut prompt = rendered.ids;
    let splitter = match &forced {
        Some(start) => {
            let text = format!("{CALL}{start}");
            prompt.extend(tokenizer.encode_more(&text).map_err(|error| refused("tool_choice", &error))?);
            Splitter::in_call(markers, start)
        }
        None => Splitter::new(markers, opened, with_tools),
    };
    let mut asked = Asked::of(model, &prompt, (common, LEAST), scores, check)?;
    // A call that must come and a grammar from the first token on leave no place for reasoning.
    if forced.is_none() && (structure.is_none() || reasoning.is_some()) {
        asked.end_reasoning(model, markers, opened, budget)?;
    }
    asked.form.splitter = Some(splitter);
    let named = matches!(&tools.choice, Some(Choice::Function { .. } | Choice::Flat(_)));
    asked.form.one_call = named || tools.parallel == Some(false);
    asked.structure = structure;
    Ok(asked)
}

/// Checks what stands in the prompt beside the messages.
///
/// # Errors
/// A safety rule hits it, or it cannot be checked.
fn check_beside_messages(check: Option<&Check>, tools: &[Any], variables: &[(String, Any)]) -> Result<(), ApiError> {
    for (at, tool) in tools.iter().enumerate() {
        verbatim::value(check, &format!("tools[{at}]"), tool)?;
    }
    for (name, value) in variables {
        verbatim::value(check, &format!("chat_template_kwargs.{name}"), value)?;
    }
    Ok(())
}

/// Returns what binds the arguments of the one function that the model must call, if the function is strict.
fn strict_arguments(tools: &Tools) -> Result<Option<Structure>, ApiError> {
    let Some(Choice::Function { function: named } | Choice::Flat(named)) = &tools.choice else { return Ok(None) };
    let name = |tool: &Any| field(&field(tool, "function"), "name");
    let Some(at) = tools.all.iter().position(|tool| name(tool).as_str() == Some(&named.name)) else { return Ok(None) };
    if tools.strict.get(at) != Some(&true) {
        return Ok(None);
    }
    let parameters = field(&field(&tools.all[at], "function"), "parameters");
    let place = format!("tools[{at}].function.parameters");
    let schema = if parameters.is_undefined() || parameters.is_none() {
        serde_json::json!({ "type": "object" })
    } else {
        serde_json::to_value(&parameters).map_err(|why| ApiError::field(&place, format!("it is not JSON: {why}")))?
    };
    Structure::arguments(&place, schema).map(Some)
}

/// Returns whether a body is a chat whose messages are text.
#[cfg(test)]
pub(super) fn reads(body: Value) -> bool {
    let text = |(at, message): (usize, ChatMessage)| {
        message.content.is_none_or(|content| content.plain(&format!("messages[{at}].content")).is_ok())
    };
    typed::<ChatBody>(body).is_ok_and(|body| body.messages.into_iter().enumerate().all(text))
}

/// Returns the names of the tools.
fn names(tools: &[Any]) -> Result<BTreeSet<String>, ApiError> {
    if tools.len() > MAX_TOOLS {
        return Err(ApiError::field("tools", format!("{} tools: send at most {MAX_TOOLS}", tools.len())));
    }
    let name = |(at, tool): (usize, &Any)| {
        let name = field(&field(tool, "function"), "name");
        let is_function = field(tool, "type").as_str() == Some("function");
        name.as_str().filter(|name| is_function && !name.is_empty()).map(str::to_owned).ok_or_else(|| {
            let told = "send {\"type\": \"function\", \"function\": {\"name\": …, \"parameters\": {…}}}";
            ApiError::field(&format!("tools[{at}]"), told)
        })
    };
    tools.iter().enumerate().map(name).collect()
}

/// Returns how the response begins after the marker of a call, if the model must call a tool.
fn forced(tools: &Tools, names: &BTreeSet<String>) -> Result<Option<String>, ApiError> {
    let name = match &tools.choice {
        None => return Ok(None),
        Some(Choice::Mode(mode)) => match mode.as_str() {
            "auto" | "none" => return Ok(None),
            "required" if names.is_empty() => return Err(ApiError::field("tool_choice", "\"required\" needs tools")),
            "required" => return Ok(Some("\n{\"name\": \"".to_owned())),
            other => {
                let told = format!("{other:?}: use \"auto\", \"none\", \"required\" or a function");
                return Err(ApiError::field("tool_choice", told));
            }
        },
        Some(Choice::Function { function: named } | Choice::Flat(named)) => &named.name,
    };
    if !names.contains(name) {
        return Err(ApiError::field("tool_choice", format!("{name:?} is not among the tools")));
    }
    let name = Value::from(name.as_str());
    Ok(Some(format!("\n{{\"name\": {name}, \"arguments\": ")))
}

impl Content {
    /// Returns the text, with parts joined.
    ///
    /// # Errors
    /// A part is no text.
    pub(super) fn plain(self, place: &str) -> Result<String, ApiError> {
        match self {
            Self::Text(text) => Ok(text),
            Self::Parts(parts) => parts
                .into_iter()
                .map(|part| match part {
                    ContentPart { kind, text: Some(text) } if kind == "text" || kind.ends_with("put_text") => Ok(text),
                    ContentPart { kind, .. } => {
                        Err(ApiError::field(place, format!("a part of type {kind:?} is not supported: send text")))
                    }
                })
                .collect(),
        }
    }
}

impl ChatMessage {
    /// Returns the message as templates expect it.
    fn value(self, at: usize, check: Option<&Check>) -> Result<Any, ApiError> {
        let Some(role) = self.role else {
            return Err(ApiError::field(&format!("messages[{at}].role"), "send the author, such as \"user\""));
        };
        let content = self.content.map(|content| content.plain(&format!("messages[{at}].content"))).transpose()?;
        let content = content.map(|content| prompt_text(check, content)).transpose()?;
        let reasoning = self.reasoning_content.map(|text| prompt_text(check, text)).transpose()?;
        for (name, text) in [("name", &self.name), ("tool_call_id", &self.tool_call_id)] {
            if let Some(text) = text {
                verbatim::text(check, &format!("messages[{at}].{name}"), text)?;
            }
        }
        let mut pairs = vec![("role", Any::from(role.name())), ("content", Any::from(content.unwrap_or_default()))];
        let texts = [("name", self.name), ("reasoning_content", reasoning), ("tool_call_id", self.tool_call_id)];
        pairs.extend(texts.into_iter().filter_map(|(name, text)| Some((name, Any::from(text?)))));
        if let Some(calls) = self.tool_calls.filter(|calls| !calls.is_empty()) {
            let place = |number: usize| format!("messages[{at}].tool_calls[{number}]");
            let calls = calls.into_iter().enumerate().map(|(number, call)| call.value(&place(number), check));
            let calls = calls.collect::<Result<Any, _>>()?;
            pairs.push(("tool_calls", calls));
        }
        Ok(Any::from_pairs(pairs))
    }
}

impl WrittenCall {
    /// Returns the call as templates expect it: with its arguments as a map, if they are one.
    fn value(self, place: &str, check: Option<&Check>) -> Result<Any, ApiError> {
        let WrittenFunction { name, arguments } = self.function;
        verbatim::text(check, &format!("{place}.function.name"), &name)?;
        if let Some(id) = &self.id {
            verbatim::text(check, &format!("{place}.id"), id)?;
        }
        let arguments = prompt_text(check, arguments)?;
        let parsed = codex_json::from_str::<Any>(&arguments).ok();
        let parsed = parsed.filter(|it| it.kind() == minijinja::value::ValueKind::Map);
        // A template writes what escapes stand for, which a rule does not see in the text.
        if let Some(parsed) = parsed.as_ref().filter(|_| arguments.contains('\\')) {
            verbatim::value(check, &format!("{place}.function.arguments"), parsed)?;
        }
        let arguments = parsed.unwrap_or_else(|| arguments.into());
        let function = Any::from_pairs([("name", Any::from(name)), ("arguments", arguments)]);
        let mut pairs = vec![("type", Any::from("function")), ("function", function)];
        pairs.extend(self.id.map(|id| ("id", Any::from(id))));
        Ok(Any::from_pairs(pairs))
    }
}
