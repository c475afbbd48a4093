//! The JSON Schema of a file of settings, for editors. Generated from the keys, their rules and the comments of the YAML files.
//! Pure.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::{
    defaults::{DEFAULTS, MAX_ENTRIES},
    evaluation,
    keys::{EVALUATION, Key, TRAINING},
    training,
};

/// Returns the schema of settings of a training run: what `spec.config` of a TrainingRun and the files of templates hold.
pub fn training() -> Value {
    let text = training::BASE.1;
    // The tests compose every file.
    let mut layers = training::layers();
    let defaults = layers.group(training::BASE.0, text).map(|()| layers.leaves()).unwrap_or_default();
    let title = "Settings of a training run of codex";
    of(title, TRAINING, &comments(text), &defaults)
}

/// Returns the schema of settings of an evaluation: what the files of presets hold.
pub fn evaluation() -> Value {
    let text = evaluation::GROUPS.iter().find(|(name, ..)| *name == "cot-lite").map_or("", |(_, _, text)| *text);
    of("Settings of an evaluation of codex", EVALUATION, &comments(text), &BTreeMap::new())
}

/// A value that refers to others has its rule only after it was replaced.
fn reference() -> Value {
    json!({ "type": "string", "pattern": "\\$\\{[A-Za-z_]" })
}

fn of(
    title: &str,
    keys: &[Key],
    comments: &BTreeMap<String, String>,
    defaults: &BTreeMap<&'static str, Value>,
) -> Value {
    let mut root = group(None);
    root["type"] = json!(["object", "null"]);
    for key in keys {
        let (mut node, mut path) = (&mut root, String::new());
        let words: Vec<&str> = key.path.split('.').collect();
        for (index, word) in words.iter().enumerate() {
            if index > 0 {
                path.push('.');
            }
            path.push_str(word);
            let comment = comments.get(&path);
            let made = if index + 1 == words.len() {
                let rule = format!("Write {}.", key.rule);
                let text = comment.map_or_else(|| rule.clone(), |comment| format!("{comment} {rule}"));
                let mut leaf = json!({ "description": text, "anyOf": [key.rule.schema(), reference()] });
                if let Some(default) = defaults.get(key.path) {
                    leaf["default"] = default.clone();
                }
                leaf
            } else {
                group(comment)
            };
            let Some(properties) = node["properties"].as_object_mut() else { break };
            node = properties.entry((*word).to_owned()).or_insert(made);
        }
    }
    root["properties"][DEFAULTS] = list();
    root["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    root["title"] = json!(title);
    root
}

/// Returns the schema of a defaults list.
fn list() -> Value {
    let option = json!({ "type": ["string", "null"] });
    let options = json!({ "type": "array", "items": { "type": "string" }, "uniqueItems": true });
    let choice = json!({
        "type": "object", "minProperties": 1, "maxProperties": 1,
        "additionalProperties": { "anyOf": [option, options] },
    });
    json!({
        "description": "The files that these settings are composed with, in their order, by the rules of Hydra. Write entries such as \
                        `/reasoning: baseline`, `override /replay: rehearsal` and _self_.",
        "type": ["array", "null"], "maxItems": MAX_ENTRIES,
        "items": { "anyOf": [{ "type": "string" }, choice] },
    })
}

fn group(comment: Option<&String>) -> Value {
    let mut group = json!({ "type": ["object", "null"], "additionalProperties": false, "properties": Map::new() });
    if let Some(comment) = comment {
        group["description"] = json!(comment);
    }
    group
}

/// Returns the comments of a YAML file by the path of the key below them. The comment at the head of the file is about the file.
fn comments(text: &str) -> BTreeMap<String, String> {
    let (mut comments, mut above, mut comment) = (BTreeMap::new(), Vec::<(usize, &str)>::new(), Vec::<&str>::new());
    let body = text.lines().skip_while(|line| line.starts_with('#'));
    for line in body {
        let content = line.trim_start();
        let indentation = line.len() - content.len();
        if let Some(words) = content.strip_prefix('#') {
            comment.push(words.trim());
        } else if let Some((name, _)) = content.split_once(':') {
            above.retain(|(outer, _)| *outer < indentation);
            above.push((indentation, name));
            if !comment.is_empty() {
                let path: Vec<&str> = above.iter().map(|(_, name)| *name).collect();
                comments.insert(path.join("."), comment.join(" "));
            }
            comment.clear();
        } else {
            comment.clear();
        }
    }
    comments
}
