//! `codex config show`: the settings that a configuration gives. Prints.

use clap::{Args, ValueEnum};
use codex_configs::Environment;
use codex_provenance::text::Printable;
use serde_json::{Map, Value, json};

use super::{
    error::ConfigurationError,
    render,
    source::{Composition, View},
};
use crate::{atomic_fs, composing::variable};

/// Print the settings that a configuration gives.
#[derive(Debug, Args)]
pub(super) struct Show {
    #[command(flatten)]
    composition: Composition,
    /// Also print where each value comes from: the file and the line, or the override.
    #[arg(long)]
    origins: bool,
    /// How the settings are printed.
    #[arg(long, value_name = "FORMAT", default_value = "yaml")]
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// YAML, which --config reads again.
    Yaml,
    /// JSON.
    Json,
}

impl Show {
    pub(super) fn run(self) -> Result<(), ConfigurationError> {
        let view = self.composition.view(Environment::of(&variable))?;
        Ok(atomic_fs::say(self.text(&view).trim_end())?)
    }

    fn text(&self, view: &View) -> String {
        // What belongs to the object of a resolved file is no setting.
        let leaves: Vec<_> = view.leaves.iter().filter(|leaf| !leaf.key.starts_with("spec.")).cloned().collect();
        if self.format == Format::Yaml {
            let note = |leaf: &_| self.origins.then(|| Printable(&view.place(leaf)).to_string());
            return render::settings(&leaves, note);
        }
        let settings = render::nest(&leaves);
        if !self.origins {
            return render::json(&settings);
        }
        let origins: Map<String, Value> = leaves.iter().map(|leaf| (leaf.key.clone(), origin(view, leaf))).collect();
        render::json(&json!({ "settings": settings, "origins": origins }))
    }
}

/// Describes the origin of a value for programs.
pub(super) fn origin(view: &View, leaf: &codex_configs::Leaf) -> Value {
    let file = view.file(&leaf.origin);
    let set = file.is_none().then(|| view.place(leaf));
    json!({ "layer": leaf.origin.layer(), "file": file, "line": leaf.line, "override": set })
}
