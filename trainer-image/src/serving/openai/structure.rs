//! What binds the text of a response: `response_format` and `text.format` of OpenAI, `structured_outputs` and the older `guided_…`
//! fields of vLLM. Pure.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{error::ApiError, split::Markers};
use crate::{
    serving::grammar::{Around, Grammar, checked},
    text::{CALL, CALL_END},
};

/// What binds a text, and the field that says so.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Structure {
    /// The field that errors name.
    pub(super) field: String,
    pub(super) grammar: Grammar,
    /// What a response may have beside the text.
    pub(super) around: Around,
}

/// A form of the text: `response_format`, and `text.format` of responses, which has the fields of `json_schema` in itself.
#[derive(Debug, Deserialize)]
struct Format {
    #[serde(rename = "type")]
    kind: String,
    json_schema: Option<Schema>,
    schema: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct Schema {
    schema: Option<Value>,
}

/// The kinds of grammars that vLLM has, with the names of its older fields.
const KINDS: [(&str, &str); 4] =
    [("json", "guided_json"), ("regex", "guided_regex"), ("choice", "guided_choice"), ("grammar", "guided_grammar")];

impl Structure {
    fn new(field: impl Into<String>, grammar: Grammar) -> Result<Self, ApiError> {
        let field = field.into();
        let grammar = checked(grammar).map_err(|error| ApiError::field(&field, error))?;
        Ok(Self { field, grammar, around: Around::default() })
    }

    /// Binds the arguments of a call that the model must make, and the brace that ends the call.
    ///
    /// # Errors
    /// The schema exceeds a limit.
    pub(super) fn arguments(field: &str, schema: Value) -> Result<Self, ApiError> {
        Self::new(field, Grammar::Arguments(schema))
    }

    /// Lets the model reason before the text, if it does that, and call tools instead.
    #[must_use]
    pub(super) fn around(mut self, reasoning: Option<Markers>, opened: bool, tools: bool) -> Self {
        self.around = Around {
            reasoning: reasoning.map(|markers| (markers.open, markers.close)),
            opened,
            calls: tools.then_some((CALL, CALL_END)),
        };
        self
    }
}

/// Reads what binds the text of a chat or a completion.
///
/// # Errors
/// A field is invalid, or several bind the text.
pub(super) fn of(body: &Value) -> Result<Option<Structure>, ApiError> {
    let format = body.get("response_format").map(|format| format_of(format, "response_format", false)).transpose()?;
    one(body, format.flatten())
}

/// Reads what binds the text of a response of `/v1/responses`.
///
/// # Errors
/// As [`of`].
pub(super) fn of_response(body: &Value) -> Result<Option<Structure>, ApiError> {
    let format = body.get("text").and_then(|text| text.get("format"));
    let format = format.map(|format| format_of(format, "text.format", true)).transpose()?;
    one(body, format.flatten())
}

/// Adds vLLM's fields. There must be one grammar.
fn one(body: &Value, format: Option<Structure>) -> Result<Option<Structure>, ApiError> {
    let mut all: Vec<Structure> = format.into_iter().collect();
    if let Some(outputs) = given(body, "structured_outputs") {
        let Some(outputs) = outputs.as_object() else {
            return Err(ApiError::field("structured_outputs", "send an object, such as {\"regex\": \"[0-9]+\"}"));
        };
        outputs_of(outputs, &mut all)?;
    }
    for (kind, name) in KINDS {
        if let Some(value) = given(body, name) {
            all.push(grammar(kind, name, value)?);
        }
    }
    match all.as_slice() {
        [first, second, ..] => {
            let told = format!("{} binds the text, too: send one of them", first.field);
            Err(ApiError::field(&second.field, told))
        }
        _ => Ok(all.pop()),
    }
}

/// Returns a field that has a value.
fn given<'a>(body: &'a Value, name: &str) -> Option<&'a Value> {
    body.get(name).filter(|value| !value.is_null())
}

/// Reads OpenAI's form. `flat` has the schema in itself.
fn format_of(format: &Value, field: &str, flat: bool) -> Result<Option<Structure>, ApiError> {
    if format.is_null() {
        return Ok(None);
    }
    let wrong = |why: serde_json::Error| {
        ApiError::field(field, format!("it has the wrong shape ({why}): send {{\"type\": \"json_object\"}}"))
    };
    let Format { kind, json_schema, schema } = codex_json::from_value(format.clone()).map_err(wrong)?;
    match kind.as_str() {
        "text" => Ok(None),
        "json_object" => Structure::new(field, Grammar::Json(json!({ "type": "object" }))).map(Some),
        "json_schema" => {
            let field = if flat { format!("{field}.schema") } else { format!("{field}.json_schema.schema") };
            let schema = if flat { schema } else { json_schema.and_then(|it| it.schema) };
            let Some(schema) = schema else { return Err(ApiError::field(&field, "is missing: send a JSON Schema")) };
            Structure::new(field, Grammar::Json(schema)).map(Some)
        }
        other => {
            let told = format!("{other:?}: use \"text\", \"json_object\" or \"json_schema\"");
            Err(ApiError::field(&format!("{field}.type"), told))
        }
    }
}

/// Reads `structured_outputs`.
fn outputs_of(outputs: &Map<String, Value>, all: &mut Vec<Structure>) -> Result<(), ApiError> {
    for (name, value) in outputs.iter().filter(|(_, value)| !value.is_null()) {
        let field = format!("structured_outputs.{name}");
        if KINDS.iter().any(|(kind, _)| kind == name) {
            all.push(grammar(name, &field, value)?);
            continue;
        }
        match (name.as_str(), value) {
            ("json_object", Value::Bool(true)) => {
                all.push(Structure::new(field, Grammar::Json(json!({ "type": "object" })))?);
            }
            // The latter chooses among the compilers of vLLM.
            ("json_object", Value::Bool(false)) | ("disable_fallback", _) => {}
            _ => return Err(ApiError::field(&field, "is not supported: use json, regex, choice or grammar")),
        }
    }
    Ok(())
}

/// Reads a grammar of one of [`KINDS`].
fn grammar(kind: &str, field: &str, value: &Value) -> Result<Structure, ApiError> {
    let text =
        |right: &str| value.as_str().map(str::to_owned).ok_or_else(|| ApiError::field(field, format!("send {right}")));
    let grammar = match kind {
        "json" => {
            match value {
                Value::String(text) => Grammar::Json(codex_json::from_str(text).map_err(|why| {
                    ApiError::field(field, format!("the text is not JSON ({why}): send a JSON Schema"))
                })?),
                schema => Grammar::Json(schema.clone()),
            }
        }
        "regex" => Grammar::Regex(text("a regular expression as a text")?),
        "choice" => {
            let texts = value.as_array().and_then(|all| all.iter().map(|it| it.as_str().map(str::to_owned)).collect());
            Grammar::Choice(texts.ok_or_else(|| ApiError::field(field, "send a list of texts"))?)
        }
        _ => Grammar::Lark(text("a grammar in Lark's form as a text")?),
    };
    Structure::new(field, grammar)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_forms_are_read() {
        let schema = json!({ "type": "object", "properties": { "b": {}, "a": {} } });
        let object = Grammar::Json(json!({ "type": "object" }));
        for (body, field, expected) in [
            (json!({ "response_format": { "type": "json_object" } }), "response_format", object.clone()),
            (
                json!({ "response_format": { "type": "json_schema", "json_schema": { "name": "x", "schema": schema, "strict": true } } }),
                "response_format.json_schema.schema",
                Grammar::Json(schema.clone()),
            ),
            (json!({ "guided_json": schema }), "guided_json", Grammar::Json(schema.clone())),
            (json!({ "guided_json": schema.to_string() }), "guided_json", Grammar::Json(schema.clone())),
            (json!({ "guided_regex": "[0-9]+" }), "guided_regex", Grammar::Regex("[0-9]+".to_owned())),
            (json!({ "guided_choice": ["a", "b"] }), "guided_choice", Grammar::Choice(vec!["a".into(), "b".into()])),
            (json!({ "guided_grammar": "start: \"a\"" }), "guided_grammar", Grammar::Lark("start: \"a\"".to_owned())),
            (
                json!({ "structured_outputs": { "regex": "a|b", "json": null } }),
                "structured_outputs.regex",
                Grammar::Regex("a|b".to_owned()),
            ),
            (
                json!({ "structured_outputs": { "json_object": true } }),
                "structured_outputs.json_object",
                object.clone(),
            ),
        ] {
            let found = of(&body).unwrap().unwrap();
            assert_eq!((found.field.as_str(), &found.grammar), (field, &expected), "{body}");
        }
        let format = json!({ "text": { "format": { "type": "json_schema", "name": "x", "schema": schema } } });
        let found = of_response(&format).unwrap().unwrap();
        assert_eq!((found.field.as_str(), &found.grammar), ("text.format.schema", &Grammar::Json(schema.clone())));
        // Answers have the order of the schema.
        let Grammar::Json(kept) = found.grammar else { panic!("{:?}", found.grammar) };
        assert_eq!(kept.to_string(), schema.to_string());
        assert!(schema.to_string().contains(r#"{"b":{},"a":{}}"#), "{schema}");
    }

    #[test]
    fn what_binds_nothing_is_taken() {
        for body in [
            json!({}),
            json!({ "response_format": null, "guided_json": null, "structured_outputs": null }),
            json!({ "response_format": { "type": "text" } }),
            json!({ "structured_outputs": { "json_object": false, "disable_fallback": true } }),
        ] {
            assert_eq!(of(&body).unwrap(), None, "{body}");
        }
        assert_eq!(of_response(&json!({ "text": { "format": { "type": "text" } } })).unwrap(), None);
        assert_eq!(of_response(&json!({ "text": {} })).unwrap(), None);
    }

    #[test]
    fn refusals_name_the_field_and_what_is_right() {
        let nested = |levels: usize| (0..levels).fold(json!({}), |inner, _| json!({ "items": inner }));
        let schema = |schema: Value| json!({ "response_format": { "type": "json_schema", "json_schema": { "schema": schema } } });
        for (body, told) in [
            (json!({ "response_format": "json" }), "response_format: it has the wrong shape"),
            (json!({ "response_format": { "type": "xml" } }), "response_format.type: \"xml\": use \"text\""),
            (json!({ "response_format": { "type": "json_schema" } }), "response_format.json_schema.schema: is missing"),
            (schema(json!([1])), "response_format.json_schema.schema: send a JSON Schema, which is an object"),
            (schema(nested(70)), "response_format.json_schema.schema: it is nested more than 64 levels deep"),
            (schema(json!({ "x-guidance": {} })), "x-guidance is not supported"),
            (schema(json!({ "description": "a".repeat(140_000) })), "bytes: send at most 131072"),
            (json!({ "guided_json": "{" }), "guided_json: the text is not JSON"),
            (json!({ "guided_regex": 5 }), "guided_regex: send a regular expression as a text"),
            (json!({ "guided_regex": "a".repeat(9000) }), "guided_regex: 9000 bytes: send at most 8192"),
            (json!({ "guided_choice": [] }), "guided_choice: 0 texts: send 1 to 1000"),
            (json!({ "guided_choice": ["a", ""] }), "guided_choice: a text is empty"),
            (json!({ "guided_choice": ["a", 1] }), "guided_choice: send a list of texts"),
            (json!({ "guided_grammar": " " }), "guided_grammar: a text is empty"),
            (json!({ "guided_grammar": "a: b\n".repeat(1001) }), "guided_grammar: 1001 lines: send at most 1000"),
            (json!({ "guided_grammar": "(".repeat(5000) }), "guided_grammar: 5000 opening brackets: send at most 4000"),
            (json!({ "structured_outputs": [] }), "structured_outputs: send an object"),
            (
                json!({ "structured_outputs": { "structural_tag": "x" } }),
                "structured_outputs.structural_tag: is not supported",
            ),
            (
                json!({ "response_format": { "type": "json_object" }, "guided_regex": "a" }),
                "guided_regex: response_format binds the text, too: send one of them",
            ),
            (
                json!({ "structured_outputs": { "json": {}, "choice": ["a"] } }),
                "structured_outputs.choice: structured_outputs.json binds the text, too",
            ),
        ] {
            let refused = of(&body).unwrap_err();
            assert!(refused.message.contains(told), "{told}: {}", refused.message);
            assert_eq!(refused.status, axum::http::StatusCode::BAD_REQUEST);
            assert!(refused.param.is_some(), "{told}");
        }
        let refused = of_response(&json!({ "text": { "format": { "type": "json_schema" } } })).unwrap_err();
        assert!(refused.message.contains("text.format.schema: is missing"), "{}", refused.message);
    }
}
