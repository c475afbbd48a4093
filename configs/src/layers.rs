//! Layers of a configuration. YAML and overrides become checked values by key; later values replace earlier ones. Pure.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use serde_yaml::Value as Yaml;

use crate::{
    ConfigError, Origin, Rule,
    error::nearest,
    keys::{Key, reserved},
};

/// Maximum size of `spec.config` in bytes.
const MAX_CONFIG: usize = 32 * 1024;
/// The byte order mark. It is harmless at the beginning of a text.
const MARK: char = '\u{feff}';
/// Maximum number of characters of a value in a message.
const MAX_SHOWN: usize = 60;

/// The values of a configuration, after the layers added so far.
pub(crate) struct Layers {
    keys: &'static [Key],
    example: (&'static str, &'static str),
    leaves: BTreeMap<&'static str, Value>,
}

/// Reads the value of an override. The error of the parser names a line and a column, which mean nothing for a single value. A
/// number that is too large for the parser is a float here, so that the rule of its key names the range.
fn scalar(raw: &str) -> Result<Yaml, serde_yaml::Error> {
    let large = || raw.parse::<f64>().ok().filter(|number| number.is_finite()).map(Yaml::from);
    serde_yaml::from_str(raw).or_else(|error| large().ok_or(error))
}

/// Returns the key that a mapping has twice, from the error of the parser.
fn repeated(error: &serde_yaml::Error) -> Option<String> {
    let text = error.to_string();
    let (_, rest) = text.split_once("duplicate entry with key \"")?;
    rest.split_once('"').map(|(key, _)| key.to_owned())
}

/// Returns the line, counted from 1, and the mistake of a text that the parser refuses, if it is a common one.
fn mistake(text: &str) -> Option<(usize, &'static str)> {
    let mut begun = false;
    text.lines().zip(1..).find_map(|(line, number)| {
        let content = line.trim_start();
        let indentation = &line[..line.len() - content.len()];
        let divides =
            ["---", "..."].iter().any(|mark| line.trim_end() == *mark || line.starts_with(&format!("{mark} ")));
        let why = if content.is_empty() || content.starts_with('#') {
            None
        } else if indentation.contains('\t') {
            Some("is indented with a tab: indent with spaces")
        } else if begun && divides {
            Some("begins another document: write one, without --- and ...")
        } else {
            None
        };
        begun |= !(content.is_empty() || content.starts_with(['#', '%']));
        why.map(|why| (number, why))
    })
}

/// Finds invisible characters that would become part of the names of keys. Returns the line, counted from 1, and the mistake.
fn invisible(text: &str) -> Option<(usize, &'static str)> {
    text.lines().zip(1..).filter(|(line, _)| !line.trim_start().starts_with('#')).find_map(|(line, number)| {
        let mut indentation = line.chars().take_while(|character| character.is_whitespace());
        let why = if line.contains(MARK) {
            Some("holds a byte order mark (U+FEFF): remove it")
        } else if indentation.any(|character| ![' ', '\t'].contains(&character)) {
            Some("is indented with another character than a space: indent with spaces")
        } else {
            None
        };
        why.map(|why| (number, why))
    })
}

impl Layers {
    /// Creates an empty configuration. `example` is an override and the same setting in YAML, for messages.
    pub(crate) fn new(keys: &'static [Key], example: (&'static str, &'static str)) -> Self {
        Self { keys, example, leaves: BTreeMap::new() }
    }

    /// Adds an embedded YAML file.
    pub(crate) fn group(&mut self, name: &'static str, text: &str) -> Result<(), ConfigError> {
        self.yaml(Origin::Group(name), text)
    }

    /// Adds `spec.config`.
    pub(crate) fn config(&mut self, text: &str) -> Result<(), ConfigError> {
        if text.len() > MAX_CONFIG {
            return Err(ConfigError::TooLong { bytes: text.len(), most: MAX_CONFIG });
        }
        self.yaml(Origin::Config, text)
    }

    /// Adds `spec.overrides`, in their order.
    pub(crate) fn overrides(&mut self, overrides: &[String]) -> Result<(), ConfigError> {
        for (index, text) in overrides.iter().enumerate() {
            let origin = Origin::Override(index);
            let refuse = || ConfigError::NotAnOverride {
                origin: Origin::Override(index),
                text: text.clone(),
                example: self.example.0,
            };
            let (key, raw) = text.split_once('=').ok_or_else(refuse)?;
            let (key, raw) = (key.trim(), raw.trim());
            if key.is_empty() || raw.is_empty() {
                return Err(refuse());
            }
            let text = self.find(key).is_some_and(|known| known.rule.takes_text());
            let value = match scalar(raw) {
                Ok(value) if text && !value.is_string() => Value::from(raw),
                Ok(value) => json(&value),
                // A regular expression such as `[0-9]+` is no YAML.
                Err(_) if text => Value::from(raw),
                Err(error) => {
                    return Err(match repeated(&error) {
                        Some(inner) => ConfigError::Twice { origin, key: format!("{key}.{inner}") },
                        None => ConfigError::NotAValue { origin, value: show(&Value::from(raw)) },
                    });
                }
            };
            let (path, value) = self.check(&origin, key, &value)?;
            self.put(path, value);
        }
        Ok(())
    }

    /// Returns the values by key.
    pub(crate) fn leaves(self) -> BTreeMap<&'static str, Value> {
        self.leaves
    }

    /// Returns the typed configuration.
    pub(crate) fn finish<T: DeserializeOwned>(self) -> Result<T, ConfigError> {
        let mut root = Map::new();
        for (path, value) in self.leaves {
            insert(&mut root, path, value);
        }
        codex_json::from_value(Value::Object(root)).map_err(|source| ConfigError::Canonical { source })
    }

    fn yaml(&mut self, origin: Origin, text: &str) -> Result<(), ConfigError> {
        let example = self.example.1;
        let text = text.strip_prefix(MARK).unwrap_or(text);
        if let Some((line, why)) = invisible(text) {
            return Err(ConfigError::Mistake { origin, line, why });
        }
        let yaml: Yaml = serde_yaml::from_str(text).map_err(|source| {
            let origin = origin.clone();
            match (repeated(&source), mistake(text)) {
                (Some(key), _) => ConfigError::Twice { origin, key },
                (None, Some((line, why))) => ConfigError::Mistake { origin, line, why },
                (None, None) => ConfigError::NotYaml { origin, example, source },
            }
        })?;
        let mapping = match yaml {
            Yaml::Null => return Ok(()),
            Yaml::Mapping(mapping) => mapping,
            other => return Err(ConfigError::NotAMapping { origin, found: show(&json(&other)), example }),
        };
        let mut layer = BTreeMap::new();
        self.walk(&origin, None, &mapping, &mut layer)?;
        layer.into_iter().for_each(|(path, value)| self.put(path, value));
        Ok(())
    }

    /// Stores a value. Of a mapping, each entry replaces that of an earlier layer.
    fn put(&mut self, path: &'static str, value: Value) {
        match (self.leaves.get_mut(path), value) {
            (Some(Value::Object(before)), Value::Object(entries)) => before.extend(entries),
            (_, value) => drop(self.leaves.insert(path, value)),
        }
    }

    fn walk(
        &self,
        origin: &Origin,
        parent: Option<&str>,
        mapping: &serde_yaml::Mapping,
        layer: &mut BTreeMap<&'static str, Value>,
    ) -> Result<(), ConfigError> {
        for (name, value) in mapping {
            let name = name.as_str().map_or_else(|| show(&json(name)), str::to_owned);
            if name == "<<" {
                return Err(ConfigError::Merge { origin: origin.clone() });
            }
            let path = parent.map_or_else(|| name.clone(), |parent| format!("{parent}.{name}"));
            match value {
                // `data` is a field of the object and a group of settings.
                Yaml::Mapping(inner)
                    if self.is_group(&path) || (reserved(&path).is_none() && self.find(&path).is_none()) =>
                {
                    if !self.is_group(&path) {
                        return Err(self.unknown(origin, path));
                    }
                    self.walk(origin, Some(&path), inner, layer)?;
                }
                Yaml::Null if self.is_group(&path) => {}
                _ => {
                    let (key, value) = self.check(origin, &path, &json(value))?;
                    if layer.insert(key, value).is_some() {
                        return Err(ConfigError::Twice { origin: origin.clone(), key: path });
                    }
                }
            }
        }
        Ok(())
    }

    /// Returns the known key and the value to store.
    fn check(&self, origin: &Origin, path: &str, value: &Value) -> Result<(&'static str, Value), ConfigError> {
        if let Some((key, name)) = self.entry(path) {
            let entry = Map::from_iter([(name.to_owned(), value.clone())]);
            return self.check(origin, key, &Value::Object(entry));
        }
        if let (None, Some(field)) = (self.find(path), reserved(path)) {
            return Err(ConfigError::Reserved { origin: origin.clone(), key: path.to_owned(), field });
        }
        let Some(key) = self.find(path) else {
            return Err(self.group_of(path).map_or_else(
                || self.unknown(origin, path.to_owned()),
                |example| ConfigError::IsGroup {
                    origin: origin.clone(),
                    key: path.to_owned(),
                    value: show(value),
                    example,
                },
            ));
        };
        let accepted = key.rule.accept(value).ok_or_else(|| ConfigError::Refused {
            origin: origin.clone(),
            key: path.to_owned(),
            value: show(value),
            rule: key.rule,
        })?;
        Ok((key.path, accepted))
    }

    fn find(&self, path: &str) -> Option<&'static Key> {
        self.keys.iter().find(|key| key.path == path)
    }

    /// Returns the key of a mapping and the name of an entry in it.
    fn entry<'a>(&self, path: &'a str) -> Option<(&'static str, &'a str)> {
        let mut mappings = self.keys.iter().filter(|key| key.rule == Rule::WeightsOrNull);
        mappings.find_map(|key| Some((key.path, path.strip_prefix(key.path)?.strip_prefix('.')?)))
    }

    fn is_group(&self, path: &str) -> bool {
        self.group_of(path).is_some()
    }

    /// Returns a key of the group `path`.
    fn group_of(&self, path: &str) -> Option<&'static str> {
        self.keys
            .iter()
            .map(|key| key.path)
            .find(|known| known.strip_prefix(path).is_some_and(|rest| rest.starts_with('.')))
    }

    fn unknown(&self, origin: &Origin, key: String) -> ConfigError {
        let known: Vec<_> = self.keys.iter().map(|key| key.path).collect();
        let groups = known.iter().filter_map(|path| path.split_once('.')).map(|(group, _)| group);
        let candidates: Vec<_> = known.iter().copied().chain(groups).collect();
        ConfigError::UnknownKey { origin: origin.clone(), nearest: nearest(&key, &candidates), key, known }
    }
}

/// Checks the settings of a resolved file against the same rules.
pub(crate) fn recheck(keys: &'static [Key], settings: &impl serde::Serialize) -> Result<(), ConfigError> {
    let settings = serde_json::to_value(settings).map_err(|source| ConfigError::Canonical { source })?;
    for key in keys {
        let value = key.path.split('.').fold(&settings, |value, word| &value[word]);
        if key.rule.accept(value).is_none() {
            return Err(ConfigError::Refused {
                origin: Origin::Resolved,
                key: key.path.to_owned(),
                value: show(value),
                rule: key.rule,
            });
        }
    }
    Ok(())
}

/// Inserts a value at a path of groups and a key, separated by dots.
fn insert(group: &mut Map<String, Value>, path: &str, value: Value) {
    let Some((name, rest)) = path.split_once('.') else {
        group.insert(path.to_owned(), value);
        return;
    };
    let inner = group.entry(name).or_insert_with(|| Value::Object(Map::new()));
    if let Value::Object(inner) = inner {
        insert(inner, rest, value);
    }
}

/// Converts YAML to JSON. Values that JSON lacks (tags, infinities) become text, which numeric keys refuse.
fn json(yaml: &Yaml) -> Value {
    match yaml {
        Yaml::Null => Value::Null,
        Yaml::Bool(truth) => Value::Bool(*truth),
        Yaml::Number(number) => serde_json::to_value(number)
            .ok()
            .filter(Value::is_number)
            .unwrap_or_else(|| Value::String(number.to_string())),
        Yaml::String(text) => Value::String(text.clone()),
        Yaml::Sequence(items) => Value::Array(items.iter().map(json).collect()),
        Yaml::Mapping(mapping) => Value::Object(
            mapping
                .iter()
                .map(|(key, value)| (key.as_str().map_or_else(|| show(&json(key)), str::to_owned), json(value)))
                .collect(),
        ),
        Yaml::Tagged(tagged) => Value::String(format!("{} {}", tagged.tag, show(&json(&tagged.value)))),
    }
}

/// Returns a value in the form for messages.
fn show(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= MAX_SHOWN {
        return text;
    }
    text.chars().take(MAX_SHOWN).chain(['…']).collect()
}
