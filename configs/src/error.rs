//! Why a configuration is refused. Pure. Every error is one sentence that names the field, its value and what is right.

use std::fmt;

use codex_provenance::ConfigDigest;

use crate::Rule;

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A group that this crate embeds.
    Group(&'static str),
    /// The object's `config`.
    Config,
    /// The object's `overrides`, by index.
    Override(usize),
    /// The command line's `--set`, with what it says; empty where the sentence says that itself.
    Set(String),
    /// A resolved file.
    Resolved,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Group(name) => f.write_str(name),
            Self::Config => f.write_str("config"),
            Self::Override(index) => write!(f, "overrides[{index}]"),
            Self::Set(text) if text.is_empty() => f.write_str("--set"),
            Self::Set(text) => write!(f, "--set {text}"),
            Self::Resolved => f.write_str("the resolved configuration"),
        }
    }
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A template or preset that there is not.
    #[error("{field} {name:?} is unknown{}: known are {}", meant(nearest.as_deref()), known.join(", "))]
    UnknownName {
        /// `template` or `preset`.
        field: &'static str,
        /// The name.
        name: String,
        /// The known name that resembles it most.
        nearest: Option<String>,
        /// The names there are.
        known: Vec<&'static str>,
    },
    /// An override that is no `key=value`.
    #[error("{origin} is {text:?}: write key=value, such as {example}")]
    NotAnOverride {
        /// Where.
        origin: Origin,
        /// What it is.
        text: String,
        /// What it could look like.
        example: &'static str,
    },
    /// A key that there is not.
    #[error("{origin} names the key {key}, which does not exist: {}", instead(nearest.as_deref(), known))]
    UnknownKey {
        /// Where.
        origin: Origin,
        /// The key.
        key: String,
        /// The known key that resembles it most.
        nearest: Option<String>,
        /// The keys there are.
        known: Vec<&'static str>,
    },
    /// A key that belongs to the object's spec.
    #[error("{origin} names {key}, which is no configuration: {}", elsewhere(origin, field))]
    Reserved {
        /// Where.
        origin: Origin,
        /// The key.
        key: String,
        /// The field of the object's spec.
        field: &'static str,
    },
    /// A value for a key that has keys of its own.
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
    /// A value outside of what its key takes.
    #[error("{origin} sets {key} to {value}: write {rule}")]
    Refused {
        /// Where.
        origin: Origin,
        /// The key.
        key: String,
        /// The value.
        value: String,
        /// What the key takes.
        rule: Rule,
    },
    /// A key that one layer names twice.
    #[error("{origin} names {key} twice: keep one of the two")]
    Twice {
        /// Where.
        origin: Origin,
        /// The key.
        key: String,
    },
    /// Two values that do not go together.
    #[error("{key} is {value}: {right}")]
    Conflict {
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
        /// What would be right, with the other value.
        right: String,
    },
    /// An override's value that is no YAML.
    #[error("{origin} has the value {value}, which is no valid YAML: close what it opens, or put it in quotes")]
    NotAValue {
        /// Where.
        origin: Origin,
        /// The value.
        value: String,
    },
    /// Text that is no YAML.
    #[error("{origin} is no valid YAML ({source}): write keys and values such as `{example}`")]
    NotYaml {
        /// Where.
        origin: Origin,
        /// What it could look like.
        example: &'static str,
        /// What the parser found.
        #[source]
        source: serde_yaml::Error,
    },
    /// YAML that is no mapping.
    #[error("{origin} is {found}: write keys and values such as `{example}`")]
    NotAMapping {
        /// Where.
        origin: Origin,
        /// What it is.
        found: String,
        /// What it could look like.
        example: &'static str,
    },
    /// A `config` beyond its limit.
    #[error("config has {bytes} bytes: write at most {most}")]
    TooLong {
        /// Its bytes.
        bytes: usize,
        /// Their limit.
        most: usize,
    },
    /// A seed that JSON cannot carry exactly.
    #[error("seed is {0}: write a whole number from 0 to {most}", most = crate::MAX_SEED)]
    Seed(u64),
    /// Data that cannot be used.
    #[error("{field} is {value}: {right}")]
    Data {
        /// Such as `data[1].name`.
        field: String,
        /// Its value.
        value: String,
        /// What would be right.
        right: String,
    },
    /// A resolved file of another shape.
    #[error("the resolved configuration cannot be read: {source}")]
    NotResolved {
        /// What the parser found.
        #[source]
        source: serde_yaml::Error,
    },
    /// Something else than a resolved file.
    #[error(
        "this is no resolved configuration of codex, for it has no schemaVersion: pass what the controller mounts, or the \
         artifacts/config.yaml of a run"
    )]
    Foreign,
    /// A resolved file of another version.
    #[error("the resolved configuration has schemaVersion {found}: this program reads {known}; use an image of the controller's own version", known = crate::SCHEMA_VERSION)]
    Version {
        /// What it says.
        found: u64,
    },
    /// A resolved file of another kind of work.
    #[error("the resolved configuration has kind {found}: this command reads {wanted}")]
    Kind {
        /// What it says.
        found: String,
        /// What was asked for.
        wanted: &'static str,
    },
    /// A resolved file that was changed.
    #[error(
        "the resolved configuration says digest {written} and hashes to {computed}: it was changed after it was composed"
    )]
    Digest {
        /// What it says.
        written: String,
        /// What it is.
        computed: ConfigDigest,
    },
    /// A value that JSON cannot carry.
    #[error("the configuration has no canonical form: {source}")]
    Canonical {
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

impl ConfigError {
    /// The same in the words of the command line, whose `--set` gave the overrides `set`.
    #[must_use]
    pub fn on_command_line(mut self, set: &[String]) -> Self {
        match &mut self {
            // The sentence shows all of it already.
            Self::NotAnOverride { origin, .. } => *origin = Origin::Set(String::new()),
            Self::UnknownKey { origin, .. }
            | Self::Reserved { origin, .. }
            | Self::IsGroup { origin, .. }
            | Self::Refused { origin, .. }
            | Self::Twice { origin, .. }
            | Self::NotAValue { origin, .. } => {
                if let Origin::Override(index) = origin {
                    let text = set.get(*index).map(|text| text.chars().take(MAX_SET).collect());
                    *origin = Origin::Set(text.unwrap_or_default());
                }
            }
            _ => {}
        }
        self
    }
}

/// The most characters of a `--set` that an error repeats.
const MAX_SET: usize = 80;

/// Where a field of an object's spec is set instead.
fn elsewhere(origin: &Origin, field: &str) -> String {
    match (origin, field) {
        (Origin::Set(_), "seed") => "use --seed".to_owned(),
        (Origin::Set(_), "output") => "use --output".to_owned(),
        (Origin::Set(_), "data") => "use --data NAME=FILE".to_owned(),
        (Origin::Set(_), field) => format!("only an object in a cluster has a {field}"),
        (_, field) => format!("set spec.{field} instead"),
    }
}

pub(crate) fn meant(nearest: Option<&str>) -> String {
    nearest.map(|name| format!(" (did you mean {name}?)")).unwrap_or_default()
}

fn instead(nearest: Option<&str>, known: &[&str]) -> String {
    nearest.map_or_else(|| format!("known are {}", known.join(", ")), |name| format!("did you mean {name}?"))
}

/// The known name that resembles `name`, if one does: as a whole, or in its last word, by most of its letters.
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
