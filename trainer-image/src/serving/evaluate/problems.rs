//! The problems of a request to `/evaluate`. Pure.

use codex_configs::PromptForm;
use serde_json::{Map, Value};

use crate::{
    error::chain,
    evaluation::Given,
    safety::Direction,
    serving::{
        filter::Check,
        http::{ErrorResponse, MAX_PROMPT},
        phase::ServedModel,
    },
    tasks::{Difficulty, Record},
};

/// The fields of a problem: those of a record, and `answer`.
const FIELDS: [&str; 6] = ["prompt", "response", "answer", "difficulty", "category", "cluster"];
/// The most characters of an unknown field that an error quotes.
const QUOTED: usize = 64;

/// A problem of the request, for errors that name it.
struct Fields<'a> {
    at: usize,
    object: &'a Map<String, Value>,
}

impl Fields<'_> {
    fn wrong(&self, name: &str, why: &str) -> ErrorResponse {
        ErrorResponse::field(&format!("problems[{}].{name}", self.at), why)
    }

    /// Returns a field that is a text; `None` if it is absent.
    fn text(&self, name: &str) -> Result<Option<&str>, ErrorResponse> {
        match self.object.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(name, "send a text")),
        }
    }

    /// Returns the reference, and whether it is the answer itself.
    fn reference(&self) -> Result<(&str, bool), ErrorResponse> {
        match (self.text("response")?, self.text("answer")?) {
            (Some(response), None) => Ok((response, false)),
            (None, Some(answer)) => Ok((answer, true)),
            (None, None) => Err(self.wrong("response", "is missing: send it, or the answer alone as answer")),
            (Some(_), Some(_)) => Err(self.wrong("answer", "response is there, too: send one of them")),
        }
    }

    fn difficulty(&self) -> Result<Difficulty, ErrorResponse> {
        let given = self.object.get("difficulty").filter(|value| !value.is_null());
        let read = given.map(|value| codex_json::from_value(value.clone()));
        let right = "write easy, medium, hard or very_hard";
        read.transpose().map(|read| read.unwrap_or(Difficulty::Easy)).map_err(|_| self.wrong("difficulty", right))
    }
}

/// Reads a problem. Its prompt is what safety rules leave of it.
///
/// # Errors
/// The response to a request with this problem, which names the field.
pub(super) fn asked(at: usize, value: &Value, check: Option<&Check>) -> Result<Given, ErrorResponse> {
    let Some(object) = value.as_object() else {
        return Err(ErrorResponse::field(
            &format!("problems[{at}]"),
            "send an object with prompt and response or answer",
        ));
    };
    let fields = Fields { at, object };
    if let Some(unknown) = object.keys().find(|name| !FIELDS.contains(&name.as_str())) {
        let quoted: String = unknown.chars().take(QUOTED).collect();
        return Err(fields.wrong(&quoted, &format!("is unknown: a problem has {}", FIELDS.join(", "))));
    }
    let prompt = fields.text("prompt")?.ok_or_else(|| fields.wrong("prompt", "is missing"))?;
    let length = prompt.chars().count();
    if !(1..=MAX_PROMPT).contains(&length) {
        return Err(fields.wrong("prompt", &format!("{length} characters: write 1 to {MAX_PROMPT}")));
    }
    let prompt = match check {
        None => prompt.to_owned(),
        Some(check) => {
            let checked = check.text(prompt, Direction::Prompt);
            checked.map_err(|why| ErrorResponse::refusal(&format!("problems[{at}].prompt"), &why))?.0
        }
    };
    let (response, is_answer) = fields.reference()?;
    let record = Record {
        prompt,
        response: response.to_owned(),
        difficulty: fields.difficulty()?,
        category: fields.text("category")?.unwrap_or_default().to_owned(),
        cluster: fields.text("cluster")?.map(str::to_owned),
    };
    Ok(Given { record, is_answer })
}

/// Returns the tokens of a prompt, in the form that the settings name.
///
/// # Errors
/// What is wrong with it, as a sentence continues after the name of the prompt.
pub(super) fn encode(model: &ServedModel, form: PromptForm, prompt: &str) -> Result<Vec<u32>, String> {
    let tokenizer = &model.tokenizer;
    let encoded = match form {
        PromptForm::Plain => tokenizer.encode(prompt),
        PromptForm::Chat if !tokenizer.has_template() => {
            return Err("evaluation.prompt is chat, but the model has no chat template: write auto or plain".to_owned());
        }
        PromptForm::Auto | PromptForm::Chat => tokenizer.encode_prompt(prompt),
    };
    let ids = encoded.map_err(|error| chain(&error))?;
    let (tokens, context) = (ids.len(), model.context);
    if tokens >= context {
        return Err(codex_engine::PromptError::TooLong { tokens, context }.to_string());
    }
    Ok(ids)
}
