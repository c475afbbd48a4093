//! The templates of training runs. Pure.

use std::collections::BTreeMap;

use codex_provenance::Sha256;
use serde_json::Value;

use super::{base, layers};
use crate::{
    ConfigError, Origin,
    defaults::{is_header, parts},
    error::nearest,
    options::TRAINING,
};

/// The templates by name.
pub(crate) const GROUPS: &[(&str, &str, &str)] = &[
    ("answers-only", "templates/answers-only.yaml", include_str!("../../templates/answers-only.yaml")),
    ("cot-padded", "templates/cot-padded.yaml", include_str!("../../templates/cot-padded.yaml")),
    ("cot-plus", "templates/cot-plus.yaml", include_str!("../../templates/cot-plus.yaml")),
    ("cot-starter", "templates/cot-starter.yaml", include_str!("../../templates/cot-starter.yaml")),
    ("lora", "templates/lora.yaml", include_str!("../../templates/lora.yaml")),
];

/// The names of the templates.
pub const TEMPLATES: &[&str] = &["answers-only", "cot-padded", "cot-plus", "cot-starter", "lora"];

/// The group of options that begin a run for a kind of reasoning.
const REASONING: &str = "reasoning";

/// A template of training runs, or an option of `+reasoning=`.
#[derive(Clone, Debug, PartialEq)]
pub struct Template {
    /// The template's name.
    pub name: &'static str,
    /// The override by which a run chooses it, such as `template=cot-starter`.
    pub choice: String,
    /// What it is for: the comment at the head of its file.
    pub description: String,
    /// The synthetic tasks that it trains on if no data is named.
    pub tasks: &'static [&'static str],
    /// The settings of its file and of those that its defaults list names, by key.
    pub settings: Vec<TemplateSetting>,
}

/// A setting of a template.
#[derive(Clone, Debug, PartialEq)]
pub struct TemplateSetting {
    /// The key, such as `training.max_steps`.
    pub key: &'static str,
    /// The template's value.
    pub value: Value,
    /// The default, which `training/base.yaml` has; `null` also stands for no value.
    pub default: Value,
}

/// Returns the options of `+reasoning=`: name, path and text of each file.
fn options() -> &'static [(&'static str, &'static str, &'static str)] {
    TRAINING.group(REASONING).map_or(&[], |group| group.options)
}

/// Returns the names of all templates, and then those of the options of `+reasoning=`.
pub fn template_names() -> Vec<&'static str> {
    TEMPLATES.iter().copied().chain(options().iter().map(|(name, ..)| *name)).collect()
}

/// Returns what a template, or an option of `+reasoning=`, is and sets.
///
/// # Errors
/// [`ConfigError::UnknownName`] with the nearest name.
pub fn template(name: &str) -> Result<Template, ConfigError> {
    if let Some((option, _, text)) = options().iter().find(|(option, ..)| *option == name) {
        let choice = format!("+{REASONING}={option}");
        let settings = leaves(&[], std::slice::from_ref(&choice))?;
        // Synthetic tasks call no tools.
        let calls = settings.get("training.reasoning.objective.mode").is_some_and(|mode| mode == "tool_execution");
        return described(option, choice, text, if calls { &[] } else { template_tasks(option) }, settings);
    }
    let (name, path, text) = group(name).map_err(|_| unknown(name, template_names()))?;
    let settings = leaves(&[(Origin::Group(path), text)], &[])?;
    described(name, format!("template={name}"), text, template_tasks(name), settings)
}

/// Returns what files and options set, by key.
fn leaves(
    files: &[(Origin, &'static str)],
    overrides: &[String],
) -> Result<BTreeMap<&'static str, Value>, ConfigError> {
    let mut layers = layers();
    layers.all(&parts(&TRAINING, files, None, overrides)?, overrides)?;
    Ok(layers.leaves())
}

/// Describes a template by its text and by what it sets.
fn described(
    name: &'static str,
    choice: String,
    text: &str,
    tasks: &'static [&'static str],
    own: BTreeMap<&'static str, Value>,
) -> Result<Template, ConfigError> {
    let defaults = leaves(&[base()], &[])?;
    let settings = own.into_iter().map(|(key, value)| {
        let default = defaults.get(key).cloned().unwrap_or_default();
        TemplateSetting { key, value, default }
    });
    let head = text.lines().filter(|line| !is_header(line));
    let comment = head.map_while(|line| line.strip_prefix('#')).map(str::trim);
    let description = comment.collect::<Vec<_>>().join(" ");
    Ok(Template { name, choice, description, tasks, settings: settings.collect() })
}

/// Returns the template of this name: name, path and text.
pub(super) fn group(template: &str) -> Result<(&'static str, &'static str, &'static str), ConfigError> {
    let found = GROUPS.iter().find(|(name, ..)| *name == template).copied();
    found.ok_or_else(|| unknown(template, TEMPLATES.to_vec()))
}

/// Returns the error for a template name that is not known.
fn unknown(template: &str, known: Vec<&'static str>) -> ConfigError {
    let nearest = nearest(template, &known);
    ConfigError::UnknownName { field: "template", name: template.to_owned(), nearest, known }
}

/// Returns the synthetic tasks that a template trains on if no data is named.
pub fn template_tasks(template: &str) -> &'static [&'static str] {
    match template {
        "cot-padded" => &["arithmetic-padded"],
        "cot-plus" => &["arithmetic-5", "multiplication", "word-problems-3"],
        "lora" => &[],
        _ => &["arithmetic", "word-problems"],
    }
}

/// Returns the digest by which `spec.templateFrom` pins the text of a template, as `sha256sum` prints it.
pub fn template_digest(text: &str) -> String {
    Sha256::of(text).to_string()
}

/// Returns a template that is not included, with its text.
pub(super) fn own<'a>(name: &str, text: &'a str) -> Result<(Origin, &'a str), ConfigError> {
    if TEMPLATES.contains(&name) {
        return Err(ConfigError::Conflict {
            key: "template",
            value: name.to_owned(),
            right: "an included template has this name; give yours another one".to_owned(),
        });
    }
    Ok((Origin::Template, text))
}
