//! Errors of configurations. Pure. Each message is one sentence that names the field, its value and what to write instead.

use std::fmt;

use codex_provenance::ConfigDigest;

use crate::Rule;

/// The directories of files that overrides and defaults lists choose.
const OPTIONS: [&str; 3] = ["continual/", "replay/", "training/reasoning/"];

/// The source of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// An embedded YAML file of this crate.
    Group(&'static str),
    /// A template that is not included: that of `spec.templateFrom`, or a file.
    Template,
    /// `spec.config`.
    Config,
    /// An item of `spec.overrides`, by index.
    Override(usize),
    /// A `--set` argument of the command line, with its text; empty if the message quotes the text itself.
    Set(String),
    /// A resolved configuration file.
    Resolved,
}

impl Origin {
    /// Returns the origin for a command line, where the overrides are the `--set` arguments `set`.
    #[must_use]
    pub fn on_command_line(self, set: &[String]) -> Self {
        match self {
            Self::Override(index) => {
                let text = set.get(index).map(|text| text.chars().take(MAX_SET).collect());
                Self::Set(text.unwrap_or_default())
            }
            origin => origin,
        }
    }

    /// Whether this is the file with the default of every key.
    pub(crate) fn is_base(&self) -> bool {
        matches!(self, Self::Group(name) if *name == crate::training::BASE.0)
    }

    /// Returns the kind of the layer: base, template, option, curriculum, preset, config, override or resolved.
    pub fn layer(&self) -> &'static str {
        match self {
            Self::Group(_) if self.is_base() => "base",
            Self::Group(name) if name.starts_with("templates/") => "template",
            Self::Template => "template",
            Self::Group(name) if name.starts_with("curriculum/") => "curriculum",
            Self::Group(name) if OPTIONS.iter().any(|directory| name.starts_with(directory)) => "option",
            Self::Group(_) => "preset",
            Self::Config => "config",
            Self::Override(_) | Self::Set(_) => "override",
            Self::Resolved => "resolved",
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Group(name) => f.write_str(name),
            Self::Template => f.write_str("template"),
            Self::Config => f.write_str("config"),
            Self::Override(index) => write!(f, "overrides[{index}]"),
            Self::Set(text) if text.is_empty() => f.write_str("--set"),
            Self::Set(text) => write!(f, "--set {text}"),
            Self::Resolved => f.write_str("the resolved configuration"),
        }
    }
}

/// Reasons why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The template or preset does not exist.
    #[error("{field} {name:?} is unknown{}: use one of {}", meant(nearest.as_deref()), known.join(", "))]
    UnknownName {
        /// `template`, `preset` or another group.
        field: &'static str,
        /// The name.
        name: String,
        /// The most similar known name.
        nearest: Option<String>,
        /// All known names.
        known: Vec<&'static str>,
    },
    /// An override is not of the form `key=value`.
    #[error("{origin} is {text:?}: write key=value, such as {example}")]
    NotAnOverride {
        /// Where.
        origin: Origin,
        /// The text of the override.
        text: String,
        /// A valid example.
        example: &'static str,
    },
    /// A key does not exist.
    #[error("{origin} names the key {key}, which does not exist: {}", instead(nearest.as_deref(), known))]
    UnknownKey {
        /// Where.
        origin: Origin,
        /// The key.
        key: String,
        /// The most similar known key.
        nearest: Option<String>,
        /// All known keys.
        known: Vec<&'static str>,
    },
    /// A key is a field of the object and not a setting.
    #[error("{origin} names {key}, which is not a setting: {}", elsewhere(origin, field))]
    Reserved {
        /// Where.
        origin: Origin,
        /// The key.
        key: String,
        /// The field of the object's spec.
        field: &'static str,
    },
    /// A value is given for a group of keys.
    #[error("{origin} sets {key} to {value}, but {key} is a group: set one of its keys, such as {example}")]
    IsGroup {
        /// Where.
        origin: Origin,
        /// The key.
        key: String,
        /// The value.
        value: String,
        /// One of the group's keys.
        example: &'static str,
    },
    /// A value is not valid for its key.
    #[error("{origin} sets {key} to {value}: write {rule}")]
    Refused {
        /// Where.
        origin: Origin,
        /// The key.
        key: String,
        /// The value.
        value: String,
        /// The values that the key accepts.
        rule: Rule,
    },
    /// A source names a key twice.
    #[error("{origin} names {key} twice: keep one of the two")]
    Twice {
        /// Where.
        origin: Origin,
        /// The key.
        key: String,
    },
    /// An override adds a key that exists.
    #[error("{origin} adds {key}, which exists and is {value}: write {key}=… to replace it")]
    Exists {
        /// Where.
        origin: Origin,
        /// The key.
        key: String,
        /// Its value.
        value: String,
    },
    /// An override removes an entry that does not exist.
    #[error("{origin} removes {key}, which is not set: leave it out")]
    Absent {
        /// Where.
        origin: Origin,
        /// The key.
        key: String,
    },
    /// An override removes a value that is required.
    #[error("{origin} removes {key}, which cannot be null: write {key}= and {rule}")]
    NotNull {
        /// Where.
        origin: Origin,
        /// The key.
        key: String,
        /// The values that the key accepts.
        rule: Rule,
    },
    /// An override adds a group that does not exist.
    #[error(
        "{origin} adds {group}, which is neither a group nor a key: the groups are template ({}), {} of training and preset ({}) \
         of evaluations, such as template=lora",
        crate::TEMPLATES.join(", "),
        crate::options::training_groups(),
        crate::PRESETS.join(", ")
    )]
    NoGroup {
        /// Where.
        origin: Origin,
        /// The name of the group.
        group: String,
    },
    /// An entry of a defaults list, or an override that chooses from a group, is wrong.
    #[error("{}: {right}", chooses(origin, *index, text))]
    Choice {
        /// Where.
        origin: Origin,
        /// The index of the entry in the list. `None` for an override.
        index: Option<usize>,
        /// The entry or the override.
        text: String,
        /// What is wrong, and what to write instead.
        right: String,
    },
    /// What stands under `defaults` is not a list, or is too long.
    #[error(
        "{origin} has {found} under defaults: write a list of at most {most} entries, such as `- /reasoning: baseline`"
    )]
    NotAList {
        /// Where.
        origin: Origin,
        /// What was found.
        found: String,
        /// Maximum number of entries.
        most: usize,
    },
    /// A value refers to something that does not exist, or that it must not read.
    #[error("{origin} sets {key} to {text}: {right}")]
    Reference {
        /// Where.
        origin: Origin,
        /// The key.
        key: String,
        /// The text with the reference.
        text: String,
        /// What is wrong, and what to write instead.
        right: String,
    },
    /// Two values contradict each other.
    #[error("{key} is {value}: {right}")]
    Conflict {
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
        /// What to write instead.
        right: String,
    },
    /// The value of an override is not valid YAML.
    #[error(
        "{origin} has the value {value}, which is not valid YAML: close open brackets and quotes, or put the value in quotes"
    )]
    NotAValue {
        /// Where.
        origin: Origin,
        /// The value.
        value: String,
    },
    /// The text is not valid YAML.
    #[error("{origin} is not valid YAML ({source}): write keys and values such as `{example}`")]
    NotYaml {
        /// Where.
        origin: Origin,
        /// A valid example.
        example: &'static str,
        /// The error of the parser.
        #[source]
        source: serde_yaml::Error,
    },
    /// The text has a common mistake, which the parser does not name.
    #[error("{origin}: line {line} {why}")]
    Mistake {
        /// Where.
        origin: Origin,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong and how to correct it.
        why: &'static str,
    },
    /// The text uses YAML's merge key.
    #[error("{origin} uses the merge key <<, which is not supported: write its keys out")]
    Merge {
        /// Where.
        origin: Origin,
    },
    /// The YAML document is not a mapping.
    #[error("{origin} is {found}: write keys and values such as `{example}`")]
    NotAMapping {
        /// Where.
        origin: Origin,
        /// The document.
        found: String,
        /// A valid example.
        example: &'static str,
    },
    /// `spec.config` or a template that is not included is too long.
    #[error("{origin} has {bytes} bytes: write at most {most}")]
    TooLong {
        /// Where.
        origin: Origin,
        /// Its size in bytes.
        bytes: usize,
        /// The maximum size in bytes.
        most: usize,
    },
    /// The seed is too large for a JSON number.
    #[error("seed is {0}: write a whole number from 0 to {most}", most = crate::MAX_SEED)]
    Seed(u64),
    /// An item of `spec.data` is invalid.
    #[error("{field} is {value}: {right}")]
    Data {
        /// The field, such as `data[1].name`.
        field: String,
        /// Its value.
        value: String,
        /// What to write instead.
        right: String,
    },
    /// A resolved configuration file cannot be parsed.
    #[error("the resolved configuration cannot be read: {source}")]
    NotResolved {
        /// The error of the parser.
        #[source]
        source: serde_yaml::Error,
    },
    /// The file is UTF-16 text.
    #[error("the configuration is UTF-16 text: save the file as UTF-8")]
    Utf16,
    /// The file is not YAML. Nothing of it is quoted.
    #[error(
        "the file is not YAML{}, so it is not a resolved configuration of codex: pass the file that the controller mounts, or \
         artifacts/config.yaml of a run",
        place.map(|(line, column)| format!(" at line {line} column {column}")).unwrap_or_default()
    )]
    ForeignText {
        /// The line and the column, counted from 1.
        place: Option<(usize, usize)>,
    },
    /// The file is not a resolved configuration. Nothing of it is quoted.
    #[error(
        "the file has no schemaVersion and kind, so it is not a resolved configuration of codex: pass the file that the \
         controller mounts, or artifacts/config.yaml of a run"
    )]
    Foreign,
    /// A resolved configuration file has another version.
    #[error("the resolved configuration has schemaVersion {found}: this program reads {known}; use an image of the controller's own version", known = crate::SCHEMA_VERSION)]
    Version {
        /// The version of the file.
        found: u64,
    },
    /// A resolved configuration file is for another kind of object.
    #[error("the resolved configuration has kind {found}: this command reads {wanted}")]
    Kind {
        /// The kind in the file.
        found: &'static str,
        /// The kind that the command reads.
        wanted: &'static str,
    },
    /// A resolved configuration file was changed.
    #[error(
        "the resolved configuration names the digest {written} but hashes to {computed}: it was changed after it was \
         composed; pass the original file"
    )]
    Digest {
        /// The digest in the file.
        written: String,
        /// The digest of the contents.
        computed: ConfigDigest,
    },
    /// A value cannot be represented in JSON.
    #[error("the configuration has no canonical form: {source}")]
    Canonical {
        /// The error of the serializer.
        #[source]
        source: serde_json::Error,
    },
}

impl ConfigError {
    /// Rewrites the error for a command line, where the overrides are the `--set` arguments `set`.
    #[must_use]
    pub fn on_command_line(mut self, set: &[String]) -> Self {
        match &mut self {
            // The value that the sentence quotes tells several files apart.
            Self::Data { field, .. } if field == "data" || field.starts_with("data[") => {
                let place = match field.rsplit_once('.') {
                    Some((_, "name")) => "the name in --data",
                    _ => "--data",
                };
                place.clone_into(field);
            }
            // The message quotes the whole argument already.
            Self::NotAnOverride { origin, .. } => *origin = Origin::Set(String::new()),
            Self::UnknownKey { origin, .. }
            | Self::Reserved { origin, .. }
            | Self::IsGroup { origin, .. }
            | Self::Refused { origin, .. }
            | Self::Twice { origin, .. }
            | Self::NotAValue { origin, .. }
            | Self::Exists { origin, .. }
            | Self::Absent { origin, .. }
            | Self::NotNull { origin, .. }
            | Self::NoGroup { origin, .. }
            | Self::Choice { origin, .. }
            | Self::Reference { origin, .. } => *origin = origin.clone().on_command_line(set),
            _ => {}
        }
        self
    }

    /// Returns the layer and the key that the error is about, as far as it knows them.
    pub(crate) fn place(&self) -> (Option<&Origin>, Option<&str>) {
        match self {
            Self::UnknownKey { origin, key, .. }
            | Self::Reserved { origin, key, .. }
            | Self::IsGroup { origin, key, .. }
            | Self::Refused { origin, key, .. }
            | Self::Twice { origin, key }
            | Self::Exists { origin, key, .. }
            | Self::Absent { origin, key }
            | Self::NotNull { origin, key, .. }
            | Self::Reference { origin, key, .. } => (Some(origin), Some(key)),
            Self::NotAList { origin, .. } => (Some(origin), Some(crate::defaults::DEFAULTS)),
            Self::NoGroup { origin, .. }
            | Self::Choice { origin, .. }
            | Self::NotAnOverride { origin, .. }
            | Self::NotAValue { origin, .. }
            | Self::NotYaml { origin, .. }
            | Self::Mistake { origin, .. }
            | Self::Merge { origin }
            | Self::NotAMapping { origin, .. }
            | Self::TooLong { origin, .. } => (Some(origin), None),
            Self::Conflict { key, .. } => (None, Some(key)),
            Self::Data { field, .. } => (None, Some(field)),
            _ => (None, None),
        }
    }
}

/// Returns what an entry of a defaults list, or an override, is.
fn chooses(origin: &Origin, index: Option<usize>, text: &str) -> String {
    match (index, origin) {
        (Some(_), _) => format!("{origin} has `{text}` in its defaults list"),
        (None, Origin::Set(_)) => origin.to_string(),
        (None, _) => format!("{origin} is `{text}`"),
    }
}

/// Maximum number of characters of a `--set` argument in a message.
const MAX_SET: usize = 80;

/// Returns where a field of the object is set instead.
fn elsewhere(origin: &Origin, field: &str) -> String {
    match (origin, field) {
        (Origin::Set(_), "seed") => "use --seed".to_owned(),
        (Origin::Set(_), "output") => "use --output".to_owned(),
        (Origin::Set(_), "template") => "use --template".to_owned(),
        (Origin::Set(_), "preset") => "use --preset".to_owned(),
        (Origin::Set(_), "data") => "use --data NAME=FILE".to_owned(),
        (Origin::Set(_), field) => format!("{field} is a field of an object in a cluster"),
        (_, field) => format!("set spec.{field} instead"),
    }
}

pub(crate) fn meant(nearest: Option<&str>) -> String {
    nearest.map(|name| format!(" (did you mean {name}?)")).unwrap_or_default()
}

fn instead(nearest: Option<&str>, known: &[&str]) -> String {
    nearest.map_or_else(|| format!("use one of {}", known.join(", ")), |name| format!("did you mean {name}?"))
}

/// Returns the known name that is most similar to `name`, as a whole or in the part after the last dot, if any is
/// similar enough.
pub(crate) fn nearest(name: &str, known: &[&'static str]) -> Option<String> {
    let leaf = |path: &str| path.rsplit('.').next().unwrap_or_default().to_owned();
    let alike = strsim::normalized_damerau_levenshtein;
    let score = |candidate: &str| alike(name, candidate).max(0.98 * alike(&leaf(name), &leaf(candidate)));
    // The group that two paths share makes them alike already.
    let enough = if name.contains('.') { 0.7 } else { 0.66 };
    known
        .iter()
        .map(|candidate| (score(candidate), *candidate))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|(score, _)| *score >= enough)
        .map(|(_, candidate)| candidate.to_owned())
}
