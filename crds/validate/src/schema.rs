//! The structural schema of a CRD, as the API server applies it: nulls and defaults first, then types and bounds, and unknown
//! fields as in strict validation.

use std::collections::BTreeSet;

use codex_provenance::text::counted;
use regex::Regex;
use serde_json::{Map, Value};

use crate::document::Path;

/// The keywords that [`check`] applies. A test asserts that the CRDs have no others.
#[cfg(test)]
pub(crate) const KEYWORDS: &[&str] = &[
    "type",
    "properties",
    "additionalProperties",
    "items",
    "required",
    "enum",
    "pattern",
    "format",
    "nullable",
    "default",
    "minLength",
    "maxLength",
    "minimum",
    "maximum",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "uniqueItems",
    "x-kubernetes-int-or-string",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-map-type",
    "x-kubernetes-validations",
    "anyOf",
    "description",
    "title",
    "example",
    "externalDocs",
];

type Found = Vec<(Path, String)>;

/// Checks the metadata of an object: a name, and labels and annotations of strings.
pub(crate) fn metadata(object: &Value, found: &mut Found) {
    let path = Path::default().field("metadata");
    let metadata = &object["metadata"];
    if !metadata.is_object() {
        found.push((path, "the object needs metadata with a name".to_owned()));
        return;
    }
    let name = |field: &str| metadata[field].as_str().filter(|name| !name.is_empty());
    match (name("name"), name("generateName")) {
        (Some(name), _) if !is_subdomain(name) => {
            let message = format!(
                "{name:?} is no name of an object: use lower-case letters, digits, - and ., beginning and ending with a letter or digit"
            );
            found.push((path.field("name"), message));
        }
        (None, None) => found.push((path.field("name"), "the name is missing".to_owned())),
        _ => {}
    }
    for field in ["labels", "annotations"] {
        for (key, value) in metadata[field].as_object().into_iter().flatten() {
            if !value.is_string() {
                let message = format!("{value} is {}: write a string, in quotes", kind_of(value));
                found.push((path.field(field).field(key), message));
            }
        }
    }
}

fn is_subdomain(name: &str) -> bool {
    let label = |label: &str| {
        let ends = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
        let bytes = label.as_bytes();
        ends(bytes.first())
            && ends(bytes.last())
            && bytes.iter().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

/// Checks a value, and fills in the defaults that rules read.
pub(crate) fn check(schema: &Value, value: &mut Value, path: &Path, found: &mut Found) {
    if let Some(wrong) = wrong_type(schema, value) {
        found.push((path.clone(), wrong));
        return;
    }
    let mut report = |message: String| found.push((path.clone(), message));
    if let Some(allowed) = schema["enum"].as_array()
        && !allowed.contains(value)
    {
        report(format!("{} is not allowed: use one of {}", shown(value), list(allowed)));
    }
    if let Some(text) = value.as_str() {
        strings(schema, text, &mut report);
    }
    if let Some(number) = value.as_f64() {
        let bound = |field: &str| schema[field].as_f64();
        if bound("minimum").is_some_and(|minimum| number < minimum) {
            report(format!("{value} is too small: use at least {}", schema["minimum"]));
        }
        if bound("maximum").is_some_and(|maximum| number > maximum) {
            report(format!("{value} is too large: use at most {}", schema["maximum"]));
        }
    }
    match value {
        Value::Array(items) => list_of(schema, items, path, found),
        Value::Object(fields) => fields_of(schema, fields, path, found),
        _ => {}
    }
}

fn wrong_type(schema: &Value, value: &Value) -> Option<String> {
    let of = |right: &str| {
        let hint = match (right, value) {
            ("a string", Value::Bool(_) | Value::Number(_)) => ", in quotes",
            _ => "",
        };
        Some(format!("{} is {}: write {right}{hint}", shown(value), kind_of(value)))
    };
    if schema["x-kubernetes-int-or-string"] == true {
        let right = value.is_string() || value.is_i64() || value.is_u64();
        return if right { None } else { of("a string or a whole number") };
    }
    match schema["type"].as_str() {
        Some("string") if !value.is_string() => of("a string"),
        Some("boolean") if !value.is_boolean() => of("true or false"),
        Some("integer") if !is_whole(value) => of("a whole number"),
        Some("number") if !value.is_number() => of("a number"),
        Some("array") if !value.is_array() => of("a list"),
        Some("object") if !value.is_object() => of("a map of fields"),
        _ => None,
    }
}

fn is_whole(value: &Value) -> bool {
    value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|number| number.fract() == 0.0)
}

fn strings(schema: &Value, text: &str, report: &mut impl FnMut(String)) {
    let length = text.chars().count() as u64;
    if let Some(most) = schema["maxLength"].as_u64().filter(|most| length > *most) {
        report(format!("it has {length} characters: use at most {most}"));
    }
    if let Some(least) = schema["minLength"].as_u64().filter(|least| length < *least) {
        report(format!("it has {}: use at least {least}", counted(length, "character")));
    }
    if let Some(pattern) = schema["pattern"].as_str() {
        match Regex::new(pattern) {
            Ok(regex) if regex.is_match(text) => {}
            Ok(_) => report(format!("{text:?} does not match {pattern}")),
            Err(error) => report(format!("the pattern {pattern} of the CRD cannot be used: {error}")),
        }
    }
    if schema["format"] == "date-time" && text.parse::<jiff::Timestamp>().is_err() {
        report(format!("{text:?} is no time: write one as 2026-01-31T12:00:00Z"));
    }
}

fn list_of(schema: &Value, items: &mut [Value], path: &Path, found: &mut Found) {
    let count = items.len() as u64;
    if let Some(most) = schema["maxItems"].as_u64().filter(|most| count > *most) {
        found.push((path.clone(), format!("the list has {}: use at most {most}", counted(count, "item"))));
    }
    if let Some(least) = schema["minItems"].as_u64().filter(|least| count < *least) {
        found.push((path.clone(), format!("the list has {}: use at least {least}", counted(count, "item"))));
    }
    for (index, item) in items.iter_mut().enumerate() {
        check(&schema["items"], item, &path.index(index), found);
    }
    let key = |item: &Value| match schema["x-kubernetes-list-type"].as_str() {
        Some("set") => Some(item.to_string()),
        Some("map") => {
            let keys = schema["x-kubernetes-list-map-keys"].as_array()?;
            Some(
                keys.iter()
                    .filter_map(Value::as_str)
                    .map(|key| format!("{key} {}", item[key]))
                    .collect::<Vec<_>>()
                    .join(", "),
            )
        }
        _ if schema["uniqueItems"] == true => Some(item.to_string()),
        _ => None,
    };
    let mut seen = BTreeSet::new();
    for (index, item) in items.iter().enumerate() {
        if let Some(key) = key(item)
            && !seen.insert(key.clone())
        {
            found.push((path.index(index), format!("{key} occurs twice in the list")));
        }
    }
}

fn fields_of(schema: &Value, fields: &mut Map<String, Value>, path: &Path, found: &mut Found) {
    let empty = Map::new();
    let known = schema["properties"].as_object().unwrap_or(&empty);
    // A null counts as absent, except where it is allowed.
    fields.retain(|name, value| !value.is_null() || known.get(name).is_none_or(|schema| schema["nullable"] == true));
    for (name, schema) in known {
        if let Some(default) = schema.get("default").filter(|_| !fields.contains_key(name)) {
            fields.insert(name.clone(), default.clone());
        }
    }
    let count = fields.len() as u64;
    if let Some(most) = schema["maxProperties"].as_u64().filter(|most| count > *most) {
        found.push((path.clone(), format!("the map has {}: use at most {most}", counted(count, "key"))));
    }
    if let Some(least) = schema["minProperties"].as_u64().filter(|least| count < *least) {
        found.push((path.clone(), format!("the map has {}: use at least {least}", counted(count, "key"))));
    }
    for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if !fields.contains_key(name) {
            found.push((path.field(name), "this field is required, and it is missing".to_owned()));
        }
    }
    for (name, value) in fields {
        let path = path.field(name);
        if let Some(schema) = known.get(name) {
            if !value.is_null() {
                check(schema, value, &path, found);
            }
        } else if let Some(schema) = schema.get("additionalProperties").filter(|schema| schema.is_object()) {
            check(schema, value, &path, found);
        } else if schema.get("properties").is_some() && schema["x-kubernetes-preserve-unknown-fields"] != true {
            let near = known
                .keys()
                .map(|known| (strsim::damerau_levenshtein(known, name), known))
                .filter(|(distance, known)| *distance <= known.len().max(3) / 3)
                .min()
                .map_or_else(String::new, |(_, known)| format!(": did you mean {known}?"));
            found.push((path, format!("there is no such field{near}")));
        }
    }
}

/// A value as a person would write it, cut if it is long.
fn shown(value: &Value) -> String {
    match value {
        Value::Array(_) => "this list".to_owned(),
        Value::Object(_) => "this map".to_owned(),
        other => {
            let text = other.to_string();
            match text.char_indices().nth(80) {
                Some((end, _)) => format!("{}…", &text[..end]),
                None => text,
            }
        }
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "a map",
    }
}

fn list(values: &[Value]) -> String {
    values
        .iter()
        .map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned))
        .collect::<Vec<_>>()
        .join(", ")
}
