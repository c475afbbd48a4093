//! The groups of files that overrides and defaults lists choose from: `+reasoning=baseline`, `- /replay: rehearsal`. Pure.

use crate::{
    change::{Assignment, Change},
    deployment, evaluation, training,
};

/// A group and its options.
#[derive(Debug)]
pub(crate) struct OptionGroup {
    /// The name of the group.
    pub(crate) name: &'static str,
    /// The options: name, path and text of each file.
    pub(crate) options: &'static [(&'static str, &'static str, &'static str)],
}

/// The files of a kind of object.
#[derive(Debug)]
pub(crate) struct Catalog {
    /// The group that an object chooses from by a field of its own: its templates or presets.
    pub(crate) field: &'static OptionGroup,
    /// The other groups, weakest first.
    pub(crate) groups: &'static [OptionGroup],
}

/// What an override does with a group.
#[derive(Clone, Copy, Debug)]
pub(crate) enum GroupChange<'a> {
    /// `reasoning=baseline`: chooses options.
    Choose {
        /// Whether the choice is added, by a `+`.
        adds: bool,
        /// The group.
        group: &'static OptionGroup,
        /// The package behind an `@`.
        package: Option<&'a str>,
        /// The text of the value.
        raw: &'a str,
    },
    /// `~reasoning` or `~reasoning=baseline`: removes a choice.
    Remove {
        /// The group.
        group: &'static OptionGroup,
        /// The package behind an `@`.
        package: Option<&'a str>,
        /// The option that is removed. `None` for any.
        option: Option<&'a str>,
    },
}

/// The files of training runs.
pub(crate) static TRAINING: Catalog =
    Catalog { field: &OptionGroup { name: "template", options: training::GROUPS }, groups: TRAINING_GROUPS };

/// The files of evaluations.
pub(crate) static EVALUATION: Catalog =
    Catalog { field: &OptionGroup { name: "preset", options: evaluation::GROUPS }, groups: &[] };

/// The files of deployments.
pub(crate) static DEPLOYMENT: Catalog =
    Catalog { field: &OptionGroup { name: "preset", options: deployment::GROUPS }, groups: &[] };

const TRAINING_GROUPS: &[OptionGroup] = &[
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
        name: "continual",
        options: &[
            ("base", "continual/base.yaml", include_str!("../continual/base.yaml")),
            ("interleaved", "continual/interleaved.yaml", include_str!("../continual/interleaved.yaml")),
            ("rehearsal", "continual/rehearsal.yaml", include_str!("../continual/rehearsal.yaml")),
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

    /// Returns path and text of the file of an option.
    pub(crate) fn option(&self, name: &str) -> Option<(&'static str, &'static str)> {
        self.options.iter().find(|(known, ..)| *known == name).map(|(_, path, text)| (*path, *text))
    }
}

impl Catalog {
    /// Returns the group of this name that overrides and lists choose from.
    pub(crate) fn group(&self, name: &str) -> Option<&'static OptionGroup> {
        self.groups.iter().find(|group| group.name == name)
    }

    /// Returns the group of this name, templates and presets included.
    pub(crate) fn directory(&self, name: &str) -> Option<&'static OptionGroup> {
        self.group(name).or_else(|| (self.field.name == name).then_some(self.field))
    }

    /// Returns the place of a choice among those that no list has. Its key is a group, perhaps with a package.
    pub(crate) fn position(&self, key: &str) -> usize {
        let name = key.split('@').next();
        self.groups.iter().position(|group| Some(group.name) == name).unwrap_or(self.groups.len())
    }

    /// Returns what an override does with a group; `None` if it is about a key.
    pub(crate) fn change<'a>(&self, text: &'a str) -> Option<GroupChange<'a>> {
        if let Some(removed) = text.trim().strip_prefix('~') {
            let (key, option) = match removed.split_once('=') {
                Some((key, option)) => (key, Some(option.trim())),
                None => (removed, None),
            };
            let (group, package) = self.named(key.trim())?;
            return Some(GroupChange::Remove { group, package, option });
        }
        let Some(Change::Assign { how, key, raw }) = Change::parse(text) else { return None };
        let (group, package) = self.named(key)?;
        Some(GroupChange::Choose { adds: how == Assignment::Add, group, package, raw })
    }

    /// Returns the group that a key names, and the package behind its `@`.
    fn named<'a>(&self, key: &'a str) -> Option<(&'static OptionGroup, Option<&'a str>)> {
        match key.split_once('@') {
            Some((name, package)) => Some((self.group(name)?, Some(package))),
            None => Some((self.group(key)?, None)),
        }
    }

    /// Returns the groups and their options for a message.
    pub(crate) fn listed(&self) -> String {
        if self.groups.is_empty() {
            return "there are no groups".to_owned();
        }
        format!("the groups are {}", listed(self.groups))
    }
}

/// Returns groups and their options.
fn listed(groups: &[OptionGroup]) -> String {
    let group = |group: &OptionGroup| format!("{} ({})", group.name, group.names().join(", "));
    groups.iter().map(group).collect::<Vec<_>>().join(", ")
}

/// Returns the groups that overrides of a training run choose from, each with the names of its options.
pub fn option_groups() -> impl Iterator<Item = (&'static str, Vec<&'static str>)> {
    TRAINING.groups.iter().map(|group| (group.name, group.names()))
}

/// Returns the groups of training runs and their options for a message.
pub(crate) fn training_groups() -> String {
    listed(TRAINING.groups)
}

/// Whether one of these overrides of a training run chooses an option, such as `+reasoning=baseline`.
pub fn has_options(overrides: &[String]) -> bool {
    overrides.iter().any(|text| matches!(TRAINING.change(text), Some(GroupChange::Choose { .. })))
}
