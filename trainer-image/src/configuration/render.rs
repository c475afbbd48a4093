//! Values as YAML, JSON and text. Pure.

use std::fmt::Write as _;

use codex_configs::Leaf;
use serde_json::{Map, Value};

/// Words that YAML may read as another type than text.
const RESERVED: [&str; 12] = ["null", "true", "false", "yes", "no", "on", "off", "y", "n", "nan", "inf", "infinity"];

/// Writes a value on one line, so that every YAML library reads it as it is.
pub(super) fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => string(text),
        Value::Array(items) => format!("[{}]", items.iter().map(scalar).collect::<Vec<_>>().join(", ")),
        Value::Object(map) => {
            let entry = |(name, value): (&String, &Value)| format!("{}: {}", string(name), scalar(value));
            format!("{{{}}}", map.iter().map(entry).collect::<Vec<_>>().join(", "))
        }
        value => value.to_string(),
    }
}

fn string(text: &str) -> String {
    let plain = |character: char| character.is_ascii_alphanumeric() || "_./-".contains(character);
    let is_plain = text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.chars().all(plain)
        && !RESERVED.contains(&text.to_ascii_lowercase().as_str());
    if is_plain { text.to_owned() } else { Value::from(text).to_string() }
}

/// Writes an object as YAML in blocks.
pub(super) fn yaml(value: &Value) -> String {
    let mut text = String::new();
    block(value, 0, &mut text);
    text
}

fn block(value: &Value, depth: usize, text: &mut String) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (name, value) in map {
                let _ = write!(text, "{indent}{}:", string(name));
                nested(value, depth, text);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                let _ = write!(text, "{indent}-");
                match item {
                    // The first field stands beside the dash.
                    Value::Object(map) if !map.is_empty() => {
                        let mut inner = String::new();
                        block(item, depth + 1, &mut inner);
                        let _ = write!(text, " {}", inner.trim_start());
                    }
                    item => nested(item, depth, text),
                }
            }
        }
        value => {
            let _ = writeln!(text, "{indent}{}", scalar(value));
        }
    }
}

fn nested(value: &Value, depth: usize, text: &mut String) {
    let is_block = match value {
        Value::Object(map) => !map.is_empty(),
        Value::Array(items) => items.iter().any(|item| item.is_object() || item.is_array()),
        _ => false,
    };
    if is_block {
        text.push('\n');
        block(value, depth + 1, text);
    } else {
        let _ = writeln!(text, " {}", scalar(value));
    }
}

/// Writes settings as YAML, each with a note behind it.
pub(super) fn settings(leaves: &[Leaf], note: impl Fn(&Leaf) -> Option<String>) -> String {
    let (mut text, mut open) = (String::new(), Vec::<&str>::new());
    let rows: Vec<(&Leaf, usize, String)> = leaves
        .iter()
        .map(|leaf| {
            let words: Vec<&str> = leaf.key.split('.').collect();
            let depth = words.len() - 1;
            let name = string(words.last().copied().unwrap_or_default());
            (leaf, depth, format!("{}{name}: {}", "  ".repeat(depth), scalar(&leaf.value)))
        })
        .collect();
    let width = rows.iter().map(|(.., row)| row.chars().count()).filter(|width| *width <= 60).max().unwrap_or_default();
    for (leaf, depth, row) in &rows {
        let groups: Vec<&str> = leaf.key.split('.').take(*depth).collect();
        let shared = open.iter().zip(&groups).take_while(|(a, b)| a == b).count();
        for (level, group) in groups.iter().enumerate().skip(shared) {
            let _ = writeln!(text, "{}{}:", "  ".repeat(level), string(group));
        }
        open = groups;
        match note(leaf) {
            Some(note) => {
                let _ = writeln!(text, "{row:width$}  # {note}");
            }
            None => {
                let _ = writeln!(text, "{row}");
            }
        }
    }
    text
}

/// Returns settings as nested objects.
pub(super) fn nest(leaves: &[Leaf]) -> Value {
    let mut root = Map::new();
    for leaf in leaves {
        insert(&mut root, &leaf.key, leaf.value.clone());
    }
    Value::Object(root)
}

fn insert(map: &mut Map<String, Value>, path: &str, value: Value) {
    let Some((group, rest)) = path.split_once('.') else {
        map.insert(path.to_owned(), value);
        return;
    };
    let inner = map.entry(group).or_insert_with(|| Value::Object(Map::new()));
    if let Value::Object(inner) = inner {
        insert(inner, rest, value);
    }
}

/// Writes a value as indented JSON.
pub(super) fn json(value: &Value) -> String {
    format!("{value:#}")
}
