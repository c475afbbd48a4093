//! The model card of a trained model: `README.md` in the model directory, in the form of Hugging Face's model cards. Pure.
//!
//! It is one of the files of the model: it is signed, and the model digest depends on it. So it holds only what defines the result, and
//! what training measured: no time, no machine, no name of a run. The same run gives the same bytes, also if it is resumed or
//! reproduced. Verdicts are not part of it, because evaluations judge the finished model.

use std::{collections::BTreeMap, fmt::Write as _};

use codex_configs::{Resolved, Training, VALIDATION};
use codex_provenance::DataDigest;
use serde_json::json;

use crate::training::{Base, base::needs_base};

/// The name of the file.
pub(crate) const MODEL_CARD: &str = "README.md";

/// What a model card says.
#[derive(Debug)]
pub(crate) struct ModelCard<'a> {
    /// Configuration of the run.
    pub(crate) resolved: &'a Resolved<Training>,
    /// Base that it started from; `None` for initial weights.
    pub(crate) base: Option<&'a Base>,
    /// Data that it read, by name.
    pub(crate) data: &'a BTreeMap<String, DataDigest>,
    /// Measurements of the last step by name.
    pub(crate) measured: &'a BTreeMap<String, f64>,
    /// Optimizer steps done.
    pub(crate) steps: u64,
    /// Number of parameters of the model.
    pub(crate) parameters: usize,
}

impl ModelCard<'_> {
    /// Returns the text of the file.
    pub(crate) fn text(&self) -> String {
        format!("---\n{}---\n\n{}", self.front_matter(), self.body())
    }

    /// Returns the metadata that model hubs read. Texts are written as JSON, which is YAML, too.
    fn front_matter(&self) -> String {
        let mut lines = vec!["library_name: transformers".to_owned(), "pipeline_tag: text-generation".to_owned()];
        let repository = self.base.and_then(|base| base.described().repository);
        lines.extend(repository.map(|repository| format!("base_model: {}", json!(repository))));
        let languages = &self.resolved.spec().settings.data.languages;
        if !languages.is_empty() {
            lines.push("language:".to_owned());
            lines.extend(languages.iter().map(|language| format!("- {language}")));
        }
        lines.push("tags:".to_owned());
        lines.extend(["codex", self.method()].map(|tag| format!("- {tag}")));
        let results: Vec<String> = self.metrics().map(|(metric, value)| self.result(metric, value)).collect();
        if !results.is_empty() {
            lines.push(format!("model-index:\n- name: {}\n  results:", json!(self.resolved.spec().template)));
            lines.extend(results);
        }
        lines.into_iter().fold(String::new(), |text, line| text + &line + "\n")
    }

    /// Returns the entry of a measurement in `model-index`.
    fn result(&self, metric: &str, value: f64) -> String {
        let (split, names) = match metric {
            "val_loss" => ("validation", VALIDATION.to_owned()),
            _ => ("train", self.trained_on().collect::<Vec<_>>().join("+")),
        };
        format!(
            "  - task:\n      type: text-generation\n    dataset:\n      name: {}\n      type: codex\n      split: {split}\n    \
             metrics:\n    - type: {}\n      name: {}\n      value: {}",
            json!(names),
            json!(metric),
            json!(described(metric)),
            json!(value)
        )
    }

    fn body(&self) -> String {
        let spec = self.resolved.spec();
        let mut text = format!("# {}\n\n", spec.template);
        text +=
            "A causal language model that `codex train` has trained. `transformers` loads its directory as it is.\n\n";
        let base = self.base.map_or_else(
            || "none: the weights were initialized from the seed".to_owned(),
            |base| format!("the model with the digest `{}`", base.digest()),
        );
        let rows = [
            ("Template", format!("`{}`", spec.template)),
            ("Method", format!("`{}`", self.method())),
            ("Base", base),
            ("Seed", spec.seed.to_string()),
            ("Optimizer steps", self.steps.to_string()),
            ("Parameters", self.parameters.to_string()),
            ("Configuration digest", format!("`{}`", self.resolved.digest())),
        ];
        table(&mut text, ("", ""), rows);
        text += "\n## Data\n\n";
        let data = self.data.iter().map(|(name, digest)| (name.as_str(), format!("`{digest}`")));
        table(&mut text, ("Name", "SHA-256"), data);
        if self.metrics().next().is_some() {
            text += "\n## Measured while training\n\n";
            table(
                &mut text,
                ("", "Value"),
                self.metrics().map(|(name, value)| (described(name), json!(value).to_string())),
            );
        }
        text += VERIFYING;
        text
    }

    fn method(&self) -> &'static str {
        needs_base(self.resolved.spec().settings.training.method).unwrap_or("sft")
    }

    fn trained_on(&self) -> impl Iterator<Item = &str> {
        self.resolved.spec().data.iter().filter(|data| data.is_trained_on()).map(|data| data.name.as_str())
    }

    /// Returns the measurements that are numbers.
    fn metrics(&self) -> impl Iterator<Item = (&str, f64)> {
        let finite = self.measured.iter().filter(|(_, value)| value.is_finite());
        finite.map(|(name, value)| (name.as_str(), *value))
    }
}

/// The last part of every card.
const VERIFYING: &str = "
## Whether it may be used

This file is one of the files of the model: it is signed with them, and the model digest depends on it. It holds no verdict. Evaluations
judge the finished model, and the signed promotion statement has their gates with values and bounds, and the ring in which the model may
be served. Verify both before you use the model:

    codex verify MODEL_DIR --bundle oms.json --key key.pem --fingerprint SHA256 --promotion promotion.json --ring RING
";

/// Returns what a measurement is called.
fn described(metric: &str) -> &str {
    match metric {
        "loss" => "training loss of the last step",
        "val_loss" => "validation loss after the last step",
        other => other,
    }
}

/// Appends a table with two columns.
fn table<'r>(text: &mut String, head: (&str, &str), rows: impl IntoIterator<Item = (&'r str, String)>) {
    // Writing to a string does not fail.
    let _ = writeln!(text, "| {} | {} |\n|---|---|", head.0, head.1);
    for (name, value) in rows {
        let _ = writeln!(text, "| {name} | {value} |");
    }
}
