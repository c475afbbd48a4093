//! `codex config defaults-tree`: the layers of a configuration, and the defaults lists that they come from. Prints.

use std::fmt::Write as _;

use clap::Args;
use codex_configs::{Environment, PRESETS, Share, TEMPLATES, option_groups};
use codex_provenance::text::{Printable, counted};

use super::{
    Kind,
    error::ConfigurationError,
    source::{Composition, View},
};
use crate::{atomic_fs, composing::variable};

/// Print the layers of a configuration, weakest first, and how much each sets.
///
/// Files that a defaults list names stand below the file with the list; `_self_` is the place of its own settings among them.
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
    branches(view, &view.layers, 0, "", &mut text);
    let _ = write!(text, "\n{group}={}", names.join("|"));
    if view.kind == Kind::Training {
        for (group, names) in option_groups() {
            let _ = write!(text, "\n+{group}={}", names.join("|"));
        }
    }
    text
}

/// Writes layers that have `depth` files above them in common.
fn branches(view: &View, mut layers: &[Share], depth: usize, indentation: &str, text: &mut String) {
    while let Some(first) = layers.first() {
        let above = first.within.get(depth);
        // A layer of no list is a branch of its own; those of one list are one branch.
        let same = layers.iter().take_while(|share| above.is_some() && share.within.get(depth) == above).count();
        let (these, rest) = layers.split_at(same.max(1));
        let (branch, inner) = if rest.is_empty() { ("└─", "   ") } else { ("├─", "│  ") };
        let _ = if let Some(file) = above {
            writeln!(text, "{indentation}{branch} {}", Printable(&view.name(file)))
        } else {
            let is_own = first.within.last() == Some(&first.origin);
            let name = if is_own { "_self_".to_owned() } else { view.name(&first.origin) };
            let (sets, in_effect) = (counted(first.sets, "key"), first.in_effect);
            writeln!(text, "{indentation}{branch} {}: sets {sets}, {in_effect} in effect", Printable(&name))
        };
        if above.is_some() {
            branches(view, these, depth + 1, &format!("{indentation}{inner}"), text);
        }
        layers = rest;
    }
}
