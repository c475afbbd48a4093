//! Groups of settings that overrides add: `+reasoning=baseline`, `replay=rehearsal`. Pure.

use crate::{ConfigError, change::Change, error::nearest};

/// A group and its options.
#[derive(Debug)]
pub(crate) struct OptionGroup {
    /// The name of the group.
    pub(crate) name: &'static str,
    /// The options: name, path and text of each file.
    options: &'static [(&'static str, &'static str, &'static str)],
}

/// The groups of training runs, weakest first.
pub(crate) const TRAINING_GROUPS: &[OptionGroup] = &[
    OptionGroup {
        name: "reasoning",
        options: &[
            ("baseline", "training/reasoning/baseline.yaml", include_str!("../training/reasoning/baseline.yaml")),
            (
                "chain_of_thought",
                "training/reasoning/chain_of_thought.yaml",
                include_str!("../training/reasoning/chain_of_thought.yaml"),
            ),
            (
                "tool_execution",
                "training/reasoning/tool_execution.yaml",
                include_str!("../training/reasoning/tool_execution.yaml"),
            ),
        ],
    },
    OptionGroup {
        name: "replay",
        options: &[
            ("base", "replay/base.yaml", include_str!("../replay/base.yaml")),
            (
                "difficulty_curriculum",
                "replay/difficulty_curriculum.yaml",
                include_str!("../replay/difficulty_curriculum.yaml"),
            ),
            ("difficulty_scaling", "replay/difficulty_scaling.yaml", include_str!("../replay/difficulty_scaling.yaml")),
            ("interleaved", "replay/interleaved.yaml", include_str!("../replay/interleaved.yaml")),
            ("rehearsal", "replay/rehearsal.yaml", include_str!("../replay/rehearsal.yaml")),
        ],
    },
];

impl OptionGroup {
    /// Returns the names of the options.
    pub(crate) fn names(&self) -> Vec<&'static str> {
        self.options.iter().map(|(name, ..)| *name).collect()
    }
}

/// Returns the group that an override chooses an option of.
fn chosen<'a>(groups: &'static [OptionGroup], text: &'a str) -> Option<(&'static OptionGroup, &'a str)> {
    let Some(Change::Assign { key, raw, .. }) = Change::parse(text) else { return None };
    groups.iter().find(|group| group.name == key).map(|group| (group, raw))
}

/// Whether an override chooses an option, and sets no key.
pub(crate) fn is_choice(groups: &'static [OptionGroup], text: &str) -> bool {
    chosen(groups, text).is_some()
}

/// Whether one of these overrides of a training run chooses an option, such as `+reasoning=baseline`.
pub fn has_options(overrides: &[String]) -> bool {
    overrides.iter().any(|text| is_choice(TRAINING_GROUPS, text))
}

/// Returns the files of the options that overrides choose, path and text of each, in the order of the groups. Of several choices
/// of a group the last one counts.
///
/// # Errors
/// [`ConfigError::UnknownName`] with the nearest option.
pub(crate) fn options(
    groups: &'static [OptionGroup],
    overrides: &[String],
) -> Result<Vec<(&'static str, &'static str)>, ConfigError> {
    let mut files = Vec::new();
    for group in groups {
        let mut latest_first = overrides.iter().rev().filter_map(|text| chosen(groups, text));
        let Some((_, name)) = latest_first.find(|(of, _)| of.name == group.name) else { continue };
        let found = group.options.iter().find(|(known, ..)| *known == name);
        let (_, path, text) = found.ok_or_else(|| ConfigError::UnknownName {
            field: group.name,
            name: name.to_owned(),
            nearest: nearest(name, &group.names()),
            known: group.names(),
        })?;
        files.push((*path, *text));
    }
    Ok(files)
}

/// Returns the groups and their options for a message.
pub(crate) fn listed(groups: &'static [OptionGroup]) -> String {
    let group = |group: &OptionGroup| format!("{} ({})", group.name, group.names().join(", "));
    groups.iter().map(group).collect::<Vec<_>>().join(" and ")
}
