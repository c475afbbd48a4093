//! `codex config diff`: the settings in which two configurations differ. Reads files; prints.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use clap::Args;
use codex_configs::{Environment, Leaf, PRESETS, ResolvedFile, TEMPLATES, names_template, template};
use codex_provenance::text::{Printable, counted};
use serde_json::{Value, json};

use super::{
    error::ConfigurationError,
    render, show,
    source::{Composition, View, check, of_template, read, resolved},
};
use crate::{arguments::Format, atomic_fs, training::CONFIG};

/// The defaults of training, without a template.
const BASE: &str = "base";

/// Print the settings in which two configurations differ, with their origins.
#[derive(Debug, Args)]
pub(super) struct Diff {
    /// A template, included or in a file whose defaults list names another one; a preset; a resolved configuration, or the directory of
    /// a run that has one; or a file of settings above the defaults of training. Beside settings of training, `base` means their
    /// defaults.
    #[arg(value_name = "A")]
    first: String,
    /// The other one.
    #[arg(value_name = "B")]
    second: String,
    /// How differences are printed.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: Format,
}

/// A key whose values differ. A side without the key has none.
struct Difference<'a> {
    key: &'a str,
    first: Option<&'a Leaf>,
    second: Option<&'a Leaf>,
}

impl Diff {
    pub(super) fn run(self) -> Result<(), ConfigurationError> {
        Ok(atomic_fs::say(&self.text()?)?)
    }

    pub(super) fn text(&self) -> Result<String, ConfigurationError> {
        let (mut first, mut second) = (side(&self.first)?, side(&self.second)?);
        // `base` is the defaults of training and a preset: it means what the other one is.
        if first.kind != second.kind {
            for (name, view) in [(&self.first, &mut first), (&self.second, &mut second)] {
                if name == BASE {
                    *view = Composition::default().view(Environment::ABSENT)?;
                }
            }
        }
        if first.kind != second.kind {
            let why = format!(
                "{} and {} are settings of a training run and of an evaluation: name two of a kind",
                Printable(&self.first),
                Printable(&self.second)
            );
            return Err(ConfigurationError::Arguments(why));
        }
        let differences = differences(&first, &second);
        if self.format == Format::Json {
            let value = |view: &View, leaf: Option<&Leaf>| {
                leaf.map(|leaf| json!({ "value": leaf.value, "origin": show::origin(view, leaf) }))
            };
            let each = differences
                .iter()
                .map(|it| json!({ "key": it.key, "a": value(&first, it.first), "b": value(&second, it.second) }));
            return Ok(render::json(&Value::Array(each.collect())));
        }
        let told = |view: &View, leaf: Option<&Leaf>| {
            let value = leaf.map(|leaf| format!("{} ({})", render::scalar(&leaf.value), view.place(leaf)));
            value.unwrap_or_else(|| "unset".to_owned())
        };
        let mut lines: Vec<String> = differences
            .iter()
            .map(|it| format!("{}: {} -> {}", it.key, told(&first, it.first), told(&second, it.second)))
            .map(|line| Printable(&line).to_string())
            .collect();
        lines.push(if lines.is_empty() { "no difference".to_owned() } else { counted(lines.len(), "difference") });
        Ok(lines.join("\n"))
    }
}

fn differences<'a>(first: &'a View, second: &'a View) -> Vec<Difference<'a>> {
    // A template has no seed and no data to compare with.
    let of_object = |view: &View| view.leaves.iter().any(|leaf| leaf.key.starts_with("spec."));
    let both = of_object(first) && of_object(second);
    let keys: BTreeSet<&str> = first
        .leaves
        .iter()
        .chain(&second.leaves)
        .map(|leaf| leaf.key.as_str())
        .filter(|key| both || !key.starts_with("spec."))
        .collect();
    let find = |view: &'a View, key: &str| view.leaves.iter().find(|leaf| leaf.key == key);
    let value = |leaf: Option<&Leaf>| leaf.map(|leaf| leaf.value.clone());
    let each = keys.into_iter().map(|key| Difference { key, first: find(first, key), second: find(second, key) });
    each.filter(|it| value(it.first) != value(it.second)).collect()
}

/// Composes or reads one side.
fn side(name: &str) -> Result<View, ConfigurationError> {
    let composition = if TEMPLATES.contains(&name) {
        Composition { template: Some(name.to_owned()), ..Composition::default() }
    } else if PRESETS.contains(&name) {
        Composition { preset: Some(name.to_owned()), ..Composition::default() }
    } else {
        let mut path = PathBuf::from(name);
        if path.is_dir() {
            path = [path.join("artifacts").join(CONFIG), path.join(CONFIG)]
                .into_iter()
                .find(|path| path.is_file())
                .unwrap_or(path);
        }
        if !path.exists() {
            let unknown = template(name).err().map(|error| error.to_string()).unwrap_or_default();
            let why = format!(
                "{unknown}, one of the presets {}, or a file or the directory of a run that exists",
                PRESETS.join(", ")
            );
            return Err(ConfigurationError::Arguments(why));
        }
        let text = read("the configuration", &path)?;
        if ResolvedFile::is_one(&text) {
            return resolved(&path, &text);
        }
        if names_template(&text) {
            return of_template("the configuration", &path);
        }
        check(Path::new(&path), &text)?;
        Composition { config: Some(path), ..Composition::default() }
    };
    composition.view(Environment::ABSENT)
}
