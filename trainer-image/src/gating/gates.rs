//! The file of gates. Reads files.

use std::path::Path;

use codex_verdict::{Gate, GateSpec, MAX_GATES};
use serde::Deserialize as _;
use serde_yaml::{Mapping, Value};

use super::{GatingError, input};

/// The fields of a gate.
const FIELDS: [&str; 8] = ["metric", "min", "max", "betterThan", "notWorseThan", "minSamples", "confidence", "margin"];
/// The fields of what a gate compares with.
const COMPARISON: [&str; 2] = ["evaluation", "by"];
/// The fields that are decimals in quotes.
const DECIMALS: [&str; 5] = ["min", "max", "by", "confidence", "margin"];

/// Reads the gates of a file: a list, a mapping with `gates`, or the one Evaluation among its objects.
///
/// # Errors
/// The file cannot be read, or a gate is invalid.
pub fn read(path: &Path) -> Result<Vec<Gate>, GatingError> {
    let bytes = input::read("--gates", path)?;
    parse(&bytes).map_err(|why| GatingError::Invalid { argument: "--gates", path: path.to_owned(), why })
}

fn parse(bytes: &[u8]) -> Result<Vec<Gate>, String> {
    let right = "write a list of gates, such as - { metric: exact_match, min: \"0.95\", confidence: \"0.95\" }";
    let documents = serde_yaml::Deserializer::from_slice(bytes).map(Value::deserialize);
    let documents: Vec<Value> = documents.collect::<Result<_, _>>().map_err(|error| match error.location() {
        Some(at) => format!("it is no YAML (line {}, column {}): {right}", at.line(), at.column()),
        None => format!("it is no YAML: {right}"),
    })?;
    let list = match <[Value; 1]>::try_from(documents) {
        Ok([document]) => of_document(&document).unwrap_or(document),
        Err(documents) => {
            let mut lists = documents.iter().filter_map(of_document);
            let first = lists.next().unwrap_or_default();
            if lists.next().is_some() {
                return Err("several of its documents have gates: name a file with those of one Evaluation".to_owned());
            }
            first
        }
    };
    let Value::Sequence(list) = list else { return Err(format!("it has no gates: {right}")) };
    match list.len() {
        0 => return Err(format!("its list of gates is empty: {right}")),
        count if count > MAX_GATES => return Err(format!("it has {count} gates; at most {MAX_GATES} are allowed")),
        _ => {}
    }
    list.into_iter().enumerate().map(|(index, gate)| one(gate).map_err(|why| format!("gates[{index}]{why}"))).collect()
}

/// Returns what a document has as gates.
fn of_document(document: &Value) -> Option<Value> {
    if document.is_sequence() {
        return Some(document.clone());
    }
    let of = |value: &Value, field: &str| value.as_mapping().and_then(|mapping| mapping.get(field)).cloned();
    of(document, "gates").or_else(|| of(&of(document, "spec")?, "gates"))
}

fn one(gate: Value) -> Result<Gate, String> {
    let Value::Mapping(fields) = &gate else { return Err(": write a mapping with metric and min or max".to_owned()) };
    check(fields, &FIELDS, "")?;
    for name in ["betterThan", "notWorseThan"] {
        match fields.get(name) {
            Some(Value::Mapping(below)) => check(below, &COMPARISON, &format!(".{name}"))?,
            Some(_) => return Err(format!(".{name}: write a mapping with evaluation and by")),
            None => {}
        }
    }
    let spec: GateSpec = serde_yaml::from_value(gate).map_err(|error| format!(": {error}"))?;
    Gate::try_from(&spec).map_err(|why| format!(": {why}"))
}

/// Refuses unknown fields, because a misspelt limit would be no limit, and numbers that are not in quotes.
fn check(fields: &Mapping, known: &[&str], below: &str) -> Result<(), String> {
    for (name, value) in fields {
        let Some(name) = name.as_str() else {
            return Err(format!("{below}: a name of a field is no text: use {}", known.join(", ")));
        };
        if !known.contains(&name) {
            return Err(format!("{below}.{name}: there is no such field: use {}", known.join(", ")));
        }
        if DECIMALS.contains(&name) && !value.is_string() {
            return Err(format!("{below}.{name}: write a decimal in quotes, such as \"0.95\""));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use codex_verdict::{ComparisonSpec, Decimal};

    use super::*;

    /// A field that the schema of Evaluations has and this list lacks would be refused here.
    #[test]
    fn the_fields_are_those_of_evaluations() {
        let decimal = || Some(Decimal("0.5".to_owned()));
        let comparison = || Some(ComparisonSpec { evaluation: "before".to_owned(), by: decimal() });
        let spec = GateSpec {
            metric: "exact_match".to_owned(),
            min: decimal(),
            max: decimal(),
            better_than: comparison(),
            not_worse_than: comparison(),
            min_samples: Some(1),
            confidence: decimal(),
            margin: decimal(),
        };
        let value = serde_json::to_value(&spec).unwrap();
        let names = |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&value), FIELDS);
        assert_eq!(names(&value["betterThan"]), COMPARISON);
    }

    #[test]
    fn lists_mappings_and_evaluations_hold_gates() {
        let gate = "{ metric: exact_match, min: \"0.9\", confidence: \"0.95\", margin: \"0.02\", minSamples: 100 }";
        for text in [
            format!("- {gate}\n"),
            format!("---\n- {gate}\n---\n"),
            format!("gates:\n- {gate}\n"),
            format!("kind: Evaluation\nspec:\n  preset: cot-lite\n  gates:\n  - {gate}\n"),
            format!("kind: TrainingRun\nspec: {{ seed: 1 }}\n---\nkind: Evaluation\nspec:\n  gates:\n  - {gate}\n"),
        ] {
            let gates = parse(text.as_bytes()).unwrap();
            let written = "exact_match>=0.9@0.95".parse::<Gate>().unwrap();
            assert_eq!(gates, [Gate { min_samples: Some(100), margin: Some(0.02), ..written }]);
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, told) in [
            (
                "- {metric: exact_match, min: \"0.9\", confidense: \"0.9\"}",
                "gates[0].confidense: there is no such field: use metric, min",
            ),
            ("- {metric: exact_match, min: 0.9}", "gates[0].min: write a decimal in quotes, such as \"0.95\""),
            ("- {metric: exact_match, min: \"0.9\", margin: 0.1}", "gates[0].margin: write a decimal in quotes"),
            ("- {metric: meteor, min: \"0.9\"}", "gates[0]: metric \"meteor\" is unknown"),
            (
                "- {metric: exact_match, betterThan: {evaluation: a, than: b}}",
                "gates[0].betterThan.than: there is no such field",
            ),
            ("- {metric: exact_match, betterThan: before}", "gates[0].betterThan: write a mapping"),
            ("- exact_match", "gates[0]: write a mapping"),
            ("[]", "its list of gates is empty: write a list"),
            ("metric: exact_match", "it has no gates: write a list"),
            ("gates: []\n---\nspec: { gates: [] }", "several of its documents have gates: name a file"),
            ("kind: TrainingRun\n---\nkind: ReasoningPod", "it has no gates: write a list"),
            ("a: [", "it is no YAML"),
            ("", "it has no gates"),
        ] {
            let found = parse(text.as_bytes()).unwrap_err();
            assert!(found.starts_with(told), "{text}: {found}");
        }
        let many = "- {metric: exact_match, min: \"0\"}\n".repeat(MAX_GATES + 1);
        assert_eq!(parse(many.as_bytes()).unwrap_err(), "it has 33 gates; at most 32 are allowed");
    }
}
