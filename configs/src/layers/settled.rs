//! Replaces the references in the values of a configuration, once every layer is known. Pure.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::{Given, Layers, Stored, text::show};
use crate::{
    ConfigError, Environment, Origin,
    error::nearest,
    references::{Piece, Reference, pieces},
};

impl Layers {
    /// Replaces the references in all values.
    pub(crate) fn settle(&mut self, environment: Environment<'_>) -> Result<(), ConfigError> {
        let waits = |stored: &Stored| matches!(stored.given, Given::Text(_));
        let waiting: Vec<_> = self.leaves.iter().filter(|(_, it)| waits(it)).map(|(path, _)| *path).collect();
        let settled: Vec<_> = waiting
            .into_iter()
            .map(|path| Ok((path, self.settled(path, environment, &mut Vec::new())?)))
            .collect::<Result<_, ConfigError>>()?;
        for (path, value) in settled {
            if let Some(stored) = self.leaves.get_mut(path) {
                stored.given = Given::Value(value);
            }
        }
        Ok(())
    }

    /// Returns the value of a key without references. `above` are the keys whose values refer to it.
    fn settled(
        &self,
        path: &'static str,
        environment: Environment<'_>,
        above: &mut Vec<&'static str>,
    ) -> Result<Value, ConfigError> {
        let Some(stored) = self.leaves.get(path) else { return Ok(Value::Null) };
        let text = match &stored.given {
            Given::Value(value) => return Ok(value.clone()),
            Given::Text(text) => text,
        };
        let origin = &stored.origin;
        let wrong = |right: String| ConfigError::Reference {
            origin: origin.clone(),
            key: path.to_owned(),
            text: show(&Value::from(text.as_str())),
            right,
        };
        if above.contains(&path) {
            let circle = above.iter().chain([&path]).copied().collect::<Vec<_>>().join(" to ");
            return Err(wrong(format!("the references go in a circle, from {circle}; write the value of one of them")));
        }
        above.push(path);
        let value = self.expand(text, origin, path, environment, above, &wrong)?;
        above.pop();
        let Some(key) = self.find(path) else { return Ok(value) };
        let value = match value {
            Value::Number(_) | Value::Bool(_) if key.rule.takes_text() => Value::from(value.to_string()),
            value => value,
        };
        key.rule.accept(&value).ok_or_else(|| ConfigError::Refused {
            origin: origin.clone(),
            key: path.to_owned(),
            value: show(&value),
            rule: key.rule,
        })
    }

    /// Replaces the references in a text. A text that is one reference has the value that it refers to; every other one is read
    /// again as the value of an override.
    fn expand(
        &self,
        text: &str,
        origin: &Origin,
        path: &'static str,
        environment: Environment<'_>,
        above: &mut Vec<&'static str>,
        wrong: &dyn Fn(String) -> ConfigError,
    ) -> Result<Value, ConfigError> {
        let pieces = pieces(text);
        if let [Piece::Reference(Reference::Key(key))] = pieces.as_slice() {
            return self.referred(key, environment, above, wrong);
        }
        let mut written = String::new();
        for piece in pieces {
            match piece {
                Piece::Text(text) => written.push_str(text),
                Piece::Reference(Reference::Key(key)) => {
                    written.push_str(&plain(&self.referred(key, environment, above, wrong)?));
                }
                Piece::Reference(Reference::Variable { name, default }) => {
                    match (environment.get(name).map_err(wrong)?, default) {
                        (Some(value), _) => written.push_str(&value),
                        (None, Some(default)) => {
                            let value = self.expand(default, origin, path, environment, above, wrong)?;
                            written.push_str(&plain(&value));
                        }
                        (None, None) => {
                            return Err(wrong(format!(
                                "the variable {name} is not set; set it, or write ${{oc.env:{name},default}}"
                            )));
                        }
                    }
                }
                Piece::Reference(Reference::Resolver(resolver)) => {
                    return Err(wrong(format!(
                        "there is no resolver {resolver}; write ${{key}} or ${{oc.env:NAME,default}}"
                    )));
                }
            }
        }
        // YAML would take ` #` for a comment and drop quotes.
        if self.find(path).is_some_and(|known| known.rule.takes_text()) {
            return Ok(Value::from(written));
        }
        self.read(origin, path, &written)
    }

    /// Returns the value of a key that a reference names.
    fn referred(
        &self,
        key: &str,
        environment: Environment<'_>,
        above: &mut Vec<&'static str>,
        wrong: &dyn Fn(String) -> ConfigError,
    ) -> Result<Value, ConfigError> {
        if let Some((path, name)) = self.entry(key) {
            let value = self.settled(path, environment, above)?;
            return value.get(name).cloned().ok_or_else(|| wrong(format!("{path} has no entry {name}")));
        }
        if let Some(known) = self.find(key) {
            return self.settled(known.path, environment, above);
        }
        if let Some(example) = self.group_of(key) {
            return Err(wrong(format!("{key} is a group; refer to one of its keys, such as ${{{example}}}")));
        }
        let known: Vec<_> = self.keys.iter().map(|key| key.path).collect();
        let meant = nearest(key, &known).map(|name| format!("; did you mean ${{{name}}}?"));
        Err(wrong(format!("the key {key} does not exist{}", meant.unwrap_or_default())))
    }

    /// Returns the value of a key, with its references replaced.
    ///
    /// # Errors
    /// As for [`finish`](Self::finish).
    pub(crate) fn value(&self, key: &'static str, environment: Environment<'_>) -> Result<Value, ConfigError> {
        self.settled(key, environment, &mut Vec::new())
    }

    /// Returns the typed configuration.
    pub(crate) fn finish<T: DeserializeOwned>(&mut self, environment: Environment<'_>) -> Result<T, ConfigError> {
        self.settle(environment)?;
        let mut root = Map::new();
        for (path, stored) in &self.leaves {
            if let Given::Value(value) = &stored.given {
                insert(&mut root, path, value.clone());
            }
        }
        codex_json::from_value(Value::Object(root)).map_err(|source| ConfigError::Canonical { source })
    }
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

/// Returns a value as it is written inside a text.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
