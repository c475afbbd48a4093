//! `codex config defaults-tree`: the layers of a configuration. Prints.

use std::fmt::Write as _;

use clap::Args;
use codex_configs::{Environment, PRESETS, TEMPLATES};
use codex_provenance::text::Printable;

use super::{
    Kind,
    error::ConfigurationError,
    source::{Composition, View},
};
use crate::{atomic_fs, composing::variable, wording::counted};

/// Print the layers of a configuration, weakest first, and how much each sets.
#[derive(Debug, Args)]
pub(super) struct DefaultsTree {
    #[command(flatten)]
    composition: Composition,
}

impl DefaultsTree {
    pub(super) fn run(self) -> Result<(), ConfigurationError> {
        let view = self.composition.view(Environment::of(&variable))?;
        Ok(atomic_fs::say(text(&view).trim_end())?)
    }
}

/// Writes the layers, and the groups that can be chosen.
pub(super) fn text(view: &View) -> String {
    let (kind, group, names) = match view.kind {
        Kind::Training => ("training", "template", TEMPLATES),
        Kind::Evaluation => ("evaluation", "preset", PRESETS),
    };
    let mut text = format!("{kind}\n");
    for (index, share) in view.layers.iter().enumerate() {
        let branch = if index + 1 == view.layers.len() { "└─" } else { "├─" };
        let name = view.name(&share.origin);
        let (sets, in_effect) = (counted(share.sets, "key"), share.in_effect);
        let _ = writeln!(text, "{branch} {}: sets {sets}, {in_effect} in effect", Printable(&name));
    }
    let _ = write!(text, "\n{group}={}", names.join("|"));
    text
}
