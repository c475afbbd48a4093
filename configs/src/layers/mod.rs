//! Layers of a configuration. YAML and overrides become checked values by key; later values replace earlier ones. Pure.

mod settled;
mod text;

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use serde_yaml::Value as Yaml;

use self::text::{MARK, invisible, json, mistake, repeated, scalar, show};
use crate::{
    ConfigError, Origin, Rule,
    change::{Assignment, Change},
    defaults::{DEFAULTS, Part},
    error::nearest,
    keys::{Key, reserved},
    options::Catalog,
    references::refers,
};

/// Maximum size in bytes of `spec.config`, and of a template that is not included.
pub(crate) const MAX_CONFIG: usize = 32 * 1024;

/// The values of a configuration, after the layers added so far.
pub(crate) struct Layers {
    keys: &'static [Key],
    example: (&'static str, &'static str),
    /// The groups that overrides choose options of. The caller adds their files.
    catalog: &'static Catalog,
    leaves: BTreeMap<&'static str, Stored>,
    /// What each layer sets, in order.
    given: Vec<(Origin, &'static str)>,
}

/// What a layer gives for a key.
#[derive(Clone, Debug, PartialEq)]
enum Given {
    /// A value that the rule of the key accepts.
    Value(Value),
    /// Text with references, which are replaced once every layer is known.
    Text(String),
}

/// The value of a key with the layer that it comes from.
#[derive(Clone, Debug)]
struct Stored {
    given: Given,
    origin: Origin,
    /// Where entries of a mapping come from.
    entries: BTreeMap<String, Origin>,
}

impl Layers {
    /// Creates an empty configuration. `example` is an override and the same setting in YAML, for messages.
    pub(crate) fn new(keys: &'static [Key], example: (&'static str, &'static str), catalog: &'static Catalog) -> Self {
        Self { keys, example, catalog, leaves: BTreeMap::new(), given: Vec::new() }
    }

    /// Adds files, in their order, and `spec.overrides`.
    pub(crate) fn all(&mut self, parts: &[Part<'_>], overrides: &[String]) -> Result<(), ConfigError> {
        for part in parts {
            self.part(part)?;
        }
        self.overrides(overrides)
    }

    /// Adds an embedded YAML file.
    pub(crate) fn group(&mut self, name: &'static str, text: &str) -> Result<(), ConfigError> {
        self.yaml(Origin::Group(name), text, "")
    }

    /// Adds a file.
    pub(crate) fn part(&mut self, part: &Part<'_>) -> Result<(), ConfigError> {
        let Part { origin, text, package, .. } = part;
        if matches!(origin, Origin::Config | Origin::Template) && text.len() > MAX_CONFIG {
            return Err(ConfigError::TooLong { origin: origin.clone(), bytes: text.len(), most: MAX_CONFIG });
        }
        self.yaml(origin.clone(), text, package)
    }

    /// Adds `spec.overrides`, in their order. Choices of options are skipped: their files are layers of their own.
    pub(crate) fn overrides(&mut self, overrides: &[String]) -> Result<(), ConfigError> {
        let catalog = self.catalog;
        for (index, text) in overrides.iter().enumerate().filter(|(_, text)| catalog.change(text).is_none()) {
            let origin = Origin::Override(index);
            let change = Change::parse(text).ok_or_else(|| ConfigError::NotAnOverride {
                origin: Origin::Override(index),
                text: text.clone(),
                example: self.example.0,
            })?;
            match change {
                Change::Remove(key) => self.remove(origin, key)?,
                Change::Assign { how, key, raw } => {
                    self.check_assignment(&origin, how, key)?;
                    let value = self.read(&origin, key, raw)?;
                    let (path, given) = self.check(&origin, key, &value)?;
                    self.put(path, given, origin);
                }
            }
        }
        Ok(())
    }

    /// Reads the text of a value.
    fn read(&self, origin: &Origin, key: &str, raw: &str) -> Result<Value, ConfigError> {
        let text = self.find(key).is_some_and(|known| known.rule.takes_text());
        match scalar(raw) {
            Ok(value) if text && !value.is_string() => Ok(Value::from(raw)),
            Ok(value) => Ok(json(&value)),
            // A regular expression such as `[0-9]+` is no YAML.
            Err(_) if text => Ok(Value::from(raw)),
            Err(error) => {
                let origin = origin.clone();
                Err(match repeated(&error) {
                    Some(inner) => ConfigError::Twice { origin, key: format!("{key}.{inner}") },
                    None => ConfigError::NotAValue { origin, value: show(&Value::from(raw)) },
                })
            }
        }
    }

    /// Checks that a key that is added does not exist, and that a group does.
    fn check_assignment(&self, origin: &Origin, how: Assignment, key: &str) -> Result<(), ConfigError> {
        if how == Assignment::Replace {
            return Ok(());
        }
        if !key.contains('.') && reserved(key).is_none() && self.group_of(key).is_none() && self.find(key).is_none() {
            return Err(ConfigError::NoGroup { origin: origin.clone(), group: key.to_owned() });
        }
        match self.current(key) {
            Some(value) if how == Assignment::Add => {
                Err(ConfigError::Exists { origin: origin.clone(), key: key.to_owned(), value: show(&value) })
            }
            _ => Ok(()),
        }
    }

    /// Returns the value of a key, or of an entry of a mapping, as the layers so far give it.
    fn current(&self, key: &str) -> Option<Value> {
        let value = |path| match &self.leaves.get(path)?.given {
            Given::Value(value) => Some(value.clone()),
            Given::Text(text) => Some(Value::from(text.as_str())),
        };
        match self.entry(key) {
            Some((path, name)) => value(path)?.get(name).cloned(),
            None => value(self.find(key)?.path),
        }
    }

    /// Removes an entry of a mapping, or sets a key to null.
    fn remove(&mut self, origin: Origin, key: &str) -> Result<(), ConfigError> {
        if let Some((path, name)) = self.entry(key) {
            let stored = self.leaves.get_mut(path);
            if let Some(Stored { given: Given::Value(Value::Object(map)), entries, .. }) = stored
                && map.remove(name).is_some()
            {
                entries.remove(name);
                if map.is_empty() {
                    self.put(path, Given::Value(Value::Null), origin);
                }
                return Ok(());
            }
            return Err(ConfigError::Absent { origin, key: key.to_owned() });
        }
        let Some(known) = self.find(key) else {
            return self.check(&origin, key, &Value::Null).map(drop);
        };
        let Some(null) = known.rule.accept(&Value::Null) else {
            return Err(ConfigError::NotNull { origin, key: key.to_owned(), rule: known.rule });
        };
        self.put(known.path, Given::Value(null), origin);
        Ok(())
    }

    /// Returns the values by key. Text with references stays as it is.
    pub(crate) fn leaves(self) -> BTreeMap<&'static str, Value> {
        let value = |stored: Stored| match stored.given {
            Given::Value(value) => value,
            Given::Text(text) => Value::from(text),
        };
        self.leaves.into_iter().map(|(path, stored)| (path, value(stored))).collect()
    }

    /// Returns every value with the layer that it comes from. Entries of mappings are values of their own.
    pub(crate) fn origins(&self) -> Vec<(String, Value, Origin)> {
        let mut origins = Vec::new();
        for (path, stored) in &self.leaves {
            match &stored.given {
                Given::Value(Value::Object(map)) => origins.extend(map.iter().map(|(name, value)| {
                    let origin = stored.entries.get(name).unwrap_or(&stored.origin);
                    (format!("{path}.{name}"), value.clone(), origin.clone())
                })),
                Given::Value(value) => origins.push(((*path).to_owned(), value.clone(), stored.origin.clone())),
                Given::Text(text) => {
                    origins.push(((*path).to_owned(), Value::from(text.as_str()), stored.origin.clone()));
                }
            }
        }
        origins
    }

    /// Returns the layer that a key comes from.
    pub(crate) fn origin(&self, key: &str) -> Option<&Origin> {
        match self.entry(key) {
            Some((path, name)) => {
                let stored = self.leaves.get(path)?;
                Some(stored.entries.get(name).unwrap_or(&stored.origin))
            }
            None => self.leaves.get(key).map(|stored| &stored.origin),
        }
    }

    /// Returns what each layer sets, in order.
    pub(crate) fn given(&self) -> &[(Origin, &'static str)] {
        &self.given
    }

    /// Adds the keys of a text, which stand below `package`. Its defaults list was followed before.
    fn yaml(&mut self, origin: Origin, text: &str, package: &str) -> Result<(), ConfigError> {
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
        let mut mapping = match yaml {
            Yaml::Null => return Ok(()),
            Yaml::Mapping(mapping) => mapping,
            other => return Err(ConfigError::NotAMapping { origin, found: show(&json(&other)), example }),
        };
        mapping.retain(|name, _| name.as_str() != Some(DEFAULTS));
        let mut layer = BTreeMap::new();
        self.walk(&origin, Some(package).filter(|package| !package.is_empty()), &mapping, &mut layer)?;
        for (path, given) in layer {
            self.put(path, given, origin.clone());
        }
        Ok(())
    }

    /// Stores a value. Of a mapping, each entry replaces that of an earlier layer.
    fn put(&mut self, path: &'static str, given: Given, origin: Origin) {
        self.given.push((origin.clone(), path));
        let names = |given: &Given| match given {
            Given::Value(Value::Object(map)) => map.keys().cloned().collect(),
            _ => Vec::new(),
        };
        let entries = names(&given).into_iter().map(|name| (name, origin.clone()));
        match (self.leaves.get_mut(path), given) {
            (
                Some(Stored { given: Given::Value(Value::Object(before)), entries: known, .. }),
                Given::Value(Value::Object(after)),
            ) => {
                known.extend(entries);
                before.extend(after);
            }
            (_, given) => {
                let entries = entries.collect();
                self.leaves.insert(path, Stored { given, origin, entries });
            }
        }
    }

    fn walk(
        &self,
        origin: &Origin,
        parent: Option<&str>,
        mapping: &serde_yaml::Mapping,
        layer: &mut BTreeMap<&'static str, Given>,
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
                    let (key, given) = self.check(origin, &path, &json(value))?;
                    if layer.insert(key, given).is_some() {
                        return Err(ConfigError::Twice { origin: origin.clone(), key: path });
                    }
                }
            }
        }
        Ok(())
    }

    /// Returns the known key and the value to store.
    fn check(&self, origin: &Origin, path: &str, value: &Value) -> Result<(&'static str, Given), ConfigError> {
        if let Some((key, name)) = self.entry(path) {
            let entry = Map::from_iter([(name.to_owned(), value.clone())]);
            return self.check(origin, key, &Value::Object(entry));
        }
        // In a group whose name is also that of a field, as data is, the rest of the key decides.
        let inner = path.split_once('.').filter(|(group, _)| self.is_group(group)).map_or(path, |(_, rest)| rest);
        if let (None, Some(field)) = (self.find(path), reserved(inner)) {
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
        if let Some(text) = value.as_str().filter(|text| refers(text)) {
            return Ok((key.path, Given::Text(text.to_owned())));
        }
        let accepted = key.rule.accept(value).ok_or_else(|| ConfigError::Refused {
            origin: origin.clone(),
            key: path.to_owned(),
            value: show(value),
            rule: key.rule,
        })?;
        Ok((key.path, Given::Value(accepted)))
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
        let value = key.value(&settings);
        if key.rule.accept(&value).is_none() {
            return Err(ConfigError::Refused {
                origin: Origin::Resolved,
                key: key.path.to_owned(),
                value: show(&value),
                rule: key.rule,
            });
        }
    }
    Ok(())
}
