//! Configurations with the layer and the line of each value, and errors with theirs. Pure.

use std::{collections::BTreeMap, fmt};

use serde_json::Value;

use crate::{
    ConfigError, Environment, Evaluation, Origin, Resolved, Training,
    curriculum::CURRICULA,
    defaults::{DEFAULTS, Part, is_header},
    keys::{EVALUATION, Key, TRAINING},
    layers::Layers,
    lines::{items, lines, second},
};

/// What a configuration is composed from.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sources<'a> {
    /// The template or preset.
    pub group: Option<&'a str>,
    /// The text of a template that is not included, of which `group` is the name.
    pub own: Option<&'a str>,
    /// Settings as YAML text.
    pub config: Option<&'a str>,
    /// Overrides, in their order.
    pub overrides: &'a [String],
    /// The variables that values may refer to.
    pub environment: Environment<'a>,
}

/// A value with its origin.
#[derive(Clone, Debug, PartialEq)]
pub struct Leaf {
    /// The key. Entries of mappings have keys of their own, such as `data.weights.mine`.
    pub key: String,
    /// The value.
    pub value: Value,
    /// The layer that it comes from.
    pub origin: Origin,
    /// The line in the text of the layer, counted from 1. `None` for overrides.
    pub line: Option<usize>,
}

/// How much of a configuration comes from a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// The layer.
    pub origin: Origin,
    /// The files whose defaults lists include it, the outermost first, and itself if it has a list.
    pub within: Vec<Origin>,
    /// Number of keys that it sets.
    pub sets: usize,
    /// Number of values that come from it in the end.
    pub in_effect: usize,
}

/// A configuration with the origin of each value.
#[derive(Clone, Debug, PartialEq)]
pub struct Explained<T> {
    /// The configuration.
    pub resolved: Resolved<T>,
    /// Its values, in the order of their keys.
    pub leaves: Vec<Leaf>,
    /// Its layers, weakest first. Every override is a layer.
    pub layers: Vec<Share>,
}

/// A refused configuration with the place of the mistake.
#[derive(Debug)]
pub struct Located {
    /// The error.
    pub error: Box<ConfigError>,
    /// The layer with the mistake, if it is known.
    pub origin: Option<Origin>,
    /// The line in the text of the layer, counted from 1.
    pub line: Option<usize>,
}

impl fmt::Display for Located {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for Located {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.source()
    }
}

impl Located {
    /// An error without a place.
    pub(crate) fn nowhere(error: ConfigError) -> Self {
        Self { error: Box::new(error), origin: None, line: None }
    }

    /// An error of the choice of files, with its line if it is in a file of the user.
    pub(crate) fn chosen(error: ConfigError, sources: &Sources<'_>) -> Self {
        let origin = error.place().0.cloned();
        let text = match origin {
            Some(Origin::Config) => sources.config,
            Some(Origin::Template) => sources.own,
            _ => None,
        };
        let line = text.and_then(|text| line(&error, text, "", ""));
        Self { error: Box::new(error), origin, line }
    }

    /// Finds the place of an error in the texts of layers.
    fn find(error: ConfigError, parts: &[Part<'_>], layers: &Layers) -> Self {
        let (origin, key) = error.place();
        let origin = origin.or_else(|| layers.origin(key?)).cloned();
        let part = parts.iter().find(|part| Some(&part.origin) == origin.as_ref());
        let line = part.and_then(|part| line(&error, part.text, "", &part.package));
        Self { error: Box::new(error), origin, line }
    }
}

/// Returns a key as a file with this package writes it.
fn written<'a>(key: &'a str, package: &str) -> Option<&'a str> {
    if package.is_empty() { Some(key) } else { key.strip_prefix(package)?.strip_prefix('.') }
}

/// Returns the line of an error in a text whose keys have a prefix and stand below a package.
fn line(error: &ConfigError, text: &str, prefix: &str, package: &str) -> Option<usize> {
    match error {
        ConfigError::Mistake { line, .. } => Some(*line),
        ConfigError::NotYaml { source, .. } | ConfigError::NotResolved { source } => {
            source.location().map(|place| place.line()).filter(|line| *line > 0)
        }
        ConfigError::ForeignText { place } => place.map(|(line, _)| line),
        ConfigError::Twice { key, .. } => second(text, key),
        ConfigError::Choice { index, .. } => items(text, DEFAULTS).get((*index)?).copied(),
        ConfigError::Merge { .. } => text.lines().zip(1..).find(|(line, _)| line.contains("<<")).map(|(_, line)| line),
        ConfigError::NotAMapping { .. } | ConfigError::TooLong { .. } => Some(1),
        error => {
            let key = error.place().1?;
            line_of(&lines(text), &format!("{prefix}{}", written(key, package).unwrap_or(key)))
        }
    }
}

/// Returns the line of a key, or of the nearest group above it.
fn line_of(lines: &BTreeMap<String, usize>, key: &str) -> Option<usize> {
    let mut key = key;
    loop {
        if let Some(line) = lines.get(key) {
            return Some(*line);
        }
        key = key.rsplit_once('.')?.0;
    }
}

/// Composes a configuration with the origin of each value. `build` makes it from the layers.
pub(crate) fn explain<T>(
    mut layers: Layers,
    parts: &[Part<'_>],
    sources: &Sources<'_>,
    build: impl FnOnce(&mut Layers) -> Result<Resolved<T>, ConfigError>,
) -> Result<Explained<T>, Located> {
    let composed = layers.all(parts, sources.overrides).and_then(|()| build(&mut layers));
    let resolved = composed.map_err(|error| Located::find(error, parts, &layers))?;
    let files = parts.iter().map(|part| (part.origin.clone(), part.package.as_str(), part.text));
    let curricula = CURRICULA.iter().map(|(_, path, text)| (Origin::Group(path), "", *text));
    let known: Vec<_> = files.chain(curricula).map(|(origin, package, text)| (origin, package, lines(text))).collect();
    let leaves: Vec<Leaf> = layers
        .origins()
        .into_iter()
        .map(|(key, value, origin)| {
            let mut files = known.iter().filter(|(named, ..)| *named == origin);
            let line = files.find_map(|(_, package, lines)| line_of(lines, written(&key, package)?));
            Leaf { key, value, origin, line }
        })
        .collect();
    let share = |origin: &Origin, within: &[Origin], sets| Share {
        origin: origin.clone(),
        within: within.to_vec(),
        sets,
        in_effect: 0,
    };
    let mut shares: Vec<Share> = parts.iter().map(|part| share(&part.origin, &part.within, 0)).collect();
    for (origin, _) in layers.given() {
        match shares.iter_mut().find(|share| share.origin == *origin) {
            Some(share) => share.sets += 1,
            None => shares.push(share(origin, &[], 1)),
        }
    }
    for share in &mut shares {
        share.in_effect = leaves.iter().filter(|leaf| leaf.origin == share.origin).count();
    }
    Ok(Explained { resolved, leaves, layers: shares })
}

/// Returns the names at the top of a YAML text. `None` if it cannot be parsed or is no mapping; an empty text has no names.
pub fn settings_groups(text: &str) -> Option<Vec<String>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    match serde_yaml::from_str(text).ok()? {
        serde_yaml::Value::Null => Some(Vec::new()),
        serde_yaml::Value::Mapping(mapping) => {
            Some(mapping.keys().filter_map(|name| name.as_str().map(str::to_owned)).collect())
        }
        _ => None,
    }
}

/// Whether a text has settings of an evaluation. Those of a training run have at most the name of a preset there.
pub fn is_evaluation(text: &str) -> bool {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let groups: Result<serde_yaml::Mapping, _> = serde_yaml::from_str(text);
    match groups.ok().and_then(|mut groups| groups.remove("evaluation")) {
        Some(serde_yaml::Value::Mapping(keys)) => keys.keys().any(|key| key.as_str() != Some("preset")),
        Some(other) => !other.is_null(),
        None => false,
    }
}

/// Whether a text is one of settings, perhaps with mistakes: it is empty, it names its package, or a name at its top is that of a group of
/// settings.
/// Messages quote only such a text, because another file may be a token or a key.
pub fn is_settings(text: &str) -> bool {
    let known = |name: &str| {
        let group = name.split('.').next().unwrap_or_default();
        group == DEFAULTS || TRAINING.iter().chain(EVALUATION).any(|key| key.path.split('.').next() == Some(group))
    };
    if text.lines().any(is_header) {
        return true;
    }
    match settings_groups(text) {
        Some(names) => names.is_empty() || names.iter().any(|name| known(name)),
        None => text.lines().any(|line| line.split_once(':').is_some_and(|(name, _)| known(name))),
    }
}

/// A resolved configuration file of either kind, with the line of each value.
#[derive(Clone, Debug, PartialEq)]
pub enum ResolvedFile {
    /// That of a training run.
    Training(Box<Resolved<Training>>, Vec<Leaf>),
    /// That of an evaluation.
    Evaluation(Box<Resolved<Evaluation>>, Vec<Leaf>),
}

impl ResolvedFile {
    /// Whether a text says that it is a resolved configuration: it has `schemaVersion`, `kind` and `spec`.
    pub fn is_one(text: &str) -> bool {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let fields: Result<serde_yaml::Mapping, _> = serde_yaml::from_str(text);
        fields.is_ok_and(|fields| ["schemaVersion", "kind", "spec"].iter().all(|field| fields.contains_key(field)))
    }

    /// Reads a resolved configuration file and checks it as [`Resolved::from_yaml`] does.
    ///
    /// # Errors
    /// [`Located`] with the line of the mistake.
    pub fn read(text: &str) -> Result<Self, Located> {
        let located = |error: ConfigError| {
            let line = line(&error, text, "spec.settings.", "");
            Located { error: Box::new(error), origin: Some(Origin::Resolved), line }
        };
        match Resolved::<Training>::from_yaml(text.as_bytes()) {
            Ok(resolved) => {
                let spec = resolved.spec();
                let object = [("template", Value::from(spec.template.as_str())), ("seed", Value::from(spec.seed))];
                let leaves = leaves(TRAINING, &spec.settings, &object, &spec.data, text).map_err(located)?;
                Ok(Self::Training(Box::new(resolved), leaves))
            }
            Err(ConfigError::Kind { .. }) => {
                let resolved = Resolved::<Evaluation>::from_yaml(text.as_bytes()).map_err(located)?;
                let spec = resolved.spec();
                let object = [("preset", Value::from(spec.preset.as_str())), ("seed", Value::from(spec.seed))];
                let leaves = leaves(EVALUATION, &spec.settings, &object, &spec.data, text).map_err(located)?;
                Ok(Self::Evaluation(Box::new(resolved), leaves))
            }
            Err(error) => Err(located(error)),
        }
    }

    /// Returns the values of the file. Those of the object begin with `spec.`: `spec.seed`, `spec.data[NAME]`.
    pub fn leaves(&self) -> &[Leaf] {
        match self {
            Self::Training(_, leaves) | Self::Evaluation(_, leaves) => leaves,
        }
    }
}

/// Returns the values of a resolved file with their lines.
fn leaves(
    keys: &[Key],
    settings: &impl serde::Serialize,
    object: &[(&str, Value)],
    data: &[crate::Data],
    text: &str,
) -> Result<Vec<Leaf>, ConfigError> {
    let canonical = |source| ConfigError::Canonical { source };
    let settings = serde_json::to_value(settings).map_err(canonical)?;
    let lines = lines(text);
    let leaf = |key: String, value: Value, path: &str| {
        let line = line_of(&lines, path);
        Leaf { key, value, origin: Origin::Resolved, line }
    };
    let mut leaves: Vec<Leaf> = Vec::new();
    for key in keys {
        let value = key.value(&settings);
        let path = format!("spec.settings.{}", key.path);
        match value {
            Value::Object(entries) => {
                leaves.extend(entries.iter().map(|(name, value)| {
                    leaf(format!("{}.{name}", key.path), value.clone(), &format!("{path}.{name}"))
                }));
            }
            value => leaves.push(leaf(key.path.to_owned(), value, &path)),
        }
    }
    leaves.sort_by(|a, b| a.key.cmp(&b.key));
    for (field, value) in object {
        leaves.push(leaf(format!("spec.{field}"), value.clone(), &format!("spec.{field}")));
    }
    for item in data {
        let value = serde_json::to_value(item).map_err(canonical)?;
        leaves.push(leaf(format!("spec.data[{}]", item.name), value, "spec.data"));
    }
    Ok(leaves)
}

impl fmt::Display for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.value)
    }
}
