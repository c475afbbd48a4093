//! Reads the mapping of a task's file: known keys with their types, everything else refused by its name and line. Pure.

use serde_yaml::{Mapping, Value};

use super::HarnessError;

/// The file of a task, for messages.
#[derive(Clone, Debug)]
pub(super) struct Source {
    /// The file's name.
    pub(super) file: String,
    /// Its text.
    pub(super) text: String,
}

impl Source {
    /// Returns the error of a key.
    pub(super) fn refuse(&self, key: &str, why: impl Into<String>) -> HarnessError {
        let name = key.rsplit('.').next().unwrap_or(key);
        let is_of = |line: &str| {
            let line = line.trim_start().trim_start_matches(['-', '{', ' ']).trim_start_matches(['"', '\'']);
            let inside = [", ", "{"].iter().any(|before| line.contains(&format!("{before}{name}:")));
            let rest = line.strip_prefix(name).map(|rest| rest.trim_start_matches(['"', '\'']).trim_start());
            inside || rest.is_some_and(|rest| rest.starts_with(':'))
        };
        let line = self.text.lines().position(is_of).unwrap_or(0) + 1;
        HarnessError::Task { file: self.file.clone(), line, what: key.to_owned(), why: why.into() }
    }
}

/// A mapping of a task's file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Section<'a> {
    source: &'a Source,
    /// The key of the mapping; empty for the whole file.
    path: &'a str,
    mapping: &'a Mapping,
}

impl<'a> Section<'a> {
    /// Reads a value as a mapping with no other keys than `known`.
    ///
    /// # Errors
    /// It is no mapping, or has another key.
    pub(super) fn of(
        source: &'a Source,
        path: &'a str,
        value: &'a Value,
        known: &[&str],
    ) -> Result<Self, HarnessError> {
        let Value::Mapping(mapping) = value else {
            let what = if path.is_empty() { "the task" } else { path };
            return Err(source.refuse(what, format!("is no mapping: write keys such as {}", known.join(", "))));
        };
        let section = Self { source, path, mapping };
        for key in mapping.keys() {
            match key.as_str() {
                Some(key) if known.contains(&key) => {}
                Some(key) => {
                    let why = format!("is not supported: remove it, or use one of {}", known.join(", "));
                    return Err(source.refuse(&section.key(key), why));
                }
                None => return Err(source.refuse(path, "has a key that is no text")),
            }
        }
        Ok(section)
    }

    fn key(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// Returns the value of a key; `None` if it is missing or null.
    pub(super) fn value(&self, name: &str) -> Option<&'a Value> {
        self.mapping.get(name).filter(|value| !value.is_null())
    }

    /// Returns the error of one of its keys.
    pub(super) fn refuse(&self, name: &str, why: impl Into<String>) -> HarnessError {
        self.source.refuse(&self.key(name), why)
    }

    fn typed<T>(
        &self,
        name: &str,
        right: &str,
        of: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, HarnessError> {
        let Some(value) = self.value(name) else { return Ok(None) };
        if let Value::Tagged(tagged) = value {
            return Err(self.refuse(name, format!("the tag {} is not supported: write {right}", tagged.tag)));
        }
        of(value).map(Some).ok_or_else(|| self.refuse(name, format!("write {right}")))
    }

    /// Returns a text.
    ///
    /// # Errors
    /// The value has another type.
    pub(super) fn text(&self, name: &str) -> Result<Option<&'a str>, HarnessError> {
        self.typed(name, "a text", Value::as_str)
    }

    /// Returns true or false.
    ///
    /// # Errors
    /// The value has another type.
    pub(super) fn flag(&self, name: &str) -> Result<bool, HarnessError> {
        Ok(self.typed(name, "true or false", Value::as_bool)?.unwrap_or_default())
    }

    /// Returns a whole number.
    ///
    /// # Errors
    /// The value has another type, or is outside of this range.
    pub(super) fn whole(&self, name: &str, least: u64, most: u64) -> Result<Option<u64>, HarnessError> {
        let right = format!("a whole number from {least} to {most}");
        self.typed(name, &right, |value| value.as_u64().filter(|number| (least..=most).contains(number)))
    }

    /// Returns a number.
    ///
    /// # Errors
    /// The value has another type, or is negative.
    pub(super) fn number(&self, name: &str) -> Result<Option<f64>, HarnessError> {
        self.typed(name, "a number from 0", |value| {
            value.as_f64().filter(|number| number.is_finite() && *number >= 0.0)
        })
    }

    /// Returns texts; a single one counts as a list of one.
    ///
    /// # Errors
    /// The value has another type.
    pub(super) fn texts(&self, name: &str) -> Result<Option<Vec<String>>, HarnessError> {
        self.typed(name, "a text or a list of texts", |value| match value {
            Value::Sequence(items) => items.iter().map(|item| item.as_str().map(str::to_owned)).collect(),
            single => single.as_str().map(|text| vec![text.to_owned()]),
        })
    }

    /// Returns a list of mappings, each with no other keys than `known`.
    ///
    /// # Errors
    /// The value has another type, or a mapping has another key.
    pub(super) fn sections(&self, name: &'a str, known: &[&str]) -> Result<Option<Vec<Section<'a>>>, HarnessError> {
        let Some(items) = self.typed(name, "a list of mappings", |value| value.as_sequence())? else { return Ok(None) };
        items.iter().map(|item| Section::of(self.source, name, item, known)).collect::<Result<_, _>>().map(Some)
    }

    /// Returns a mapping with no other keys than `known`.
    ///
    /// # Errors
    /// The value has another type, or another key.
    pub(super) fn section(&self, name: &'a str, known: &[&str]) -> Result<Option<Section<'a>>, HarnessError> {
        self.value(name).map(|value| Section::of(self.source, name, value, known)).transpose()
    }
}
