//! The entries of a defaults list, and the header by which a file names its package. Pure.

use serde_yaml::Value as Yaml;

use crate::options::TRAINING;

/// The key at the top of a file that has its defaults list.
pub(crate) const DEFAULTS: &str = "defaults";
/// The entry that stands for the contents of the file itself.
const OWN: &str = "_self_";
/// An option that has to be chosen elsewhere.
const MISSING: &str = "???";
/// Maximum number of characters of an entry in a message.
const MAX_SHOWN: usize = 60;
/// What a wrong entry should be.
const RIGHT: &str = "write _self_, an option of the same group, or GROUP: OPTION, such as `/replay: rehearsal`";

/// What an entry does with a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Chooses an option, which has to exist.
    Choose,
    /// Chooses an option if it exists.
    Optional,
    /// Replaces the choice of another list.
    Override,
}

/// The options of a group that are chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Options {
    /// These, in their order. Empty for null.
    Chosen(Vec<String>),
    /// One that an override has to choose.
    Missing,
}

/// An entry of a defaults list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// The contents of the file itself.
    Own,
    /// A file that no override can replace.
    File {
        /// The group and the option, or the option alone.
        path: String,
        /// The package behind the `@`.
        package: Option<String>,
    },
    /// A choice of a group.
    Group {
        /// What it does.
        mode: Mode,
        /// The group as it is written; with a `/` before it, it is not relative to the group of the file.
        group: String,
        /// The package behind the `@`.
        package: Option<String>,
        /// What is chosen.
        options: Options,
    },
}

/// Parses an entry.
///
/// # Errors
/// What to write instead, as the end of a sentence.
pub(super) fn entry(item: &Yaml) -> Result<Entry, String> {
    match item {
        Yaml::String(text) if text == OWN => Ok(Entry::Own),
        Yaml::String(text) if text.split_whitespace().count() == 1 && !text.contains("${") => {
            let (path, package) = packaged(text);
            Ok(Entry::File { path, package })
        }
        Yaml::Mapping(fields) if fields.len() == 1 => match fields.iter().next() {
            Some((Yaml::String(key), value)) => choice(key, value),
            _ => Err(RIGHT.to_owned()),
        },
        Yaml::Mapping(_) => Err("write one group in an entry, and each in an entry of its own".to_owned()),
        _ => Err(RIGHT.to_owned()),
    }
}

/// Parses the choice of a group: `[optional|override] GROUP[@PACKAGE]: OPTION`.
fn choice(key: &str, value: &Yaml) -> Result<Entry, String> {
    let words: Vec<&str> = key.split_whitespace().collect();
    let (mode, name) = match words.as_slice() {
        [name] => (Mode::Choose, *name),
        ["optional", name] => (Mode::Optional, *name),
        ["override", name] => (Mode::Override, *name),
        _ => return Err("write GROUP: OPTION, with at most one of optional and override before it".to_owned()),
    };
    let (group, package) = packaged(name);
    Ok(Entry::Group { mode, group, package, options: options(value)? })
}

/// Splits a name from the package behind its `@`.
fn packaged(text: &str) -> (String, Option<String>) {
    match text.split_once('@') {
        Some((name, package)) => (name.to_owned(), Some(package.to_owned())),
        None => (text.to_owned(), None),
    }
}

/// Parses options: a name, a list of names, or null.
///
/// # Errors
/// What to write instead, as the end of a sentence.
pub(super) fn options(value: &Yaml) -> Result<Options, String> {
    let name = |value: &Yaml| match value.as_str().map(str::trim) {
        Some(text) if text.contains("${") => {
            Err("write the name of an option: references are replaced once all files are chosen".to_owned())
        }
        Some(text) if !text.is_empty() => Ok(text.to_owned()),
        _ => Err("write the name of an option, a list of names, or null".to_owned()),
    };
    match value {
        Yaml::Null => Ok(Options::Chosen(Vec::new())),
        Yaml::String(text) if text == MISSING => Ok(Options::Missing),
        Yaml::Sequence(items) => {
            let names = items.iter().map(name).collect::<Result<Vec<String>, String>>()?;
            let mut before = names.iter().enumerate();
            match before.find(|(index, name)| names.iter().take(*index).any(|other| other == *name)) {
                Some((_, name)) => Err(format!("write {name} once")),
                None => Ok(Options::Chosen(names)),
            }
        }
        value => Ok(Options::Chosen(vec![name(value)?])),
    }
}

/// Returns an entry as it is written, on one line.
pub(super) fn shown(item: &Yaml) -> String {
    let text = serde_yaml::to_string(item).unwrap_or_default();
    let line = text.trim().replace('\n', " ");
    if line.chars().count() <= MAX_SHOWN {
        return line;
    }
    line.chars().take(MAX_SHOWN).chain(['…']).collect()
}

/// Returns the value of `defaults` in a file. A text that is not a mapping has none: its mistake is told where its keys are read.
pub(super) fn list(text: &str) -> Option<Yaml> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    match serde_yaml::from_str(text) {
        Ok(Yaml::Mapping(mut fields)) => fields.remove(DEFAULTS),
        _ => None,
    }
}

/// Whether the defaults list of a text names a template of training runs, such as `- cot-starter`. Only that of a template may.
pub fn names_template(text: &str) -> bool {
    let Some(Yaml::Sequence(list)) = list(text) else { return false };
    let named = |entry: Entry| match entry {
        Entry::File { path, .. } => match path.rsplit_once('/') {
            None => true,
            Some((group, _)) => group.trim_start_matches('/') == TRAINING.field.name,
        },
        Entry::Own | Entry::Group { .. } => false,
    };
    list.iter().filter_map(|item| entry(item).ok()).any(named)
}

/// Whether an embedded file has a defaults list. Looking for the key costs less than parsing.
pub(super) fn is_listed(text: &str) -> bool {
    text.lines().any(|line| line.strip_prefix(DEFAULTS).is_some_and(|rest| rest.starts_with(':')))
}

/// Returns the package that the header of a file names: `# @package NAME`.
pub(super) fn header(text: &str) -> Option<&str> {
    let lines = text.trim_start_matches('\u{feff}').lines().map(str::trim);
    let mut head = lines.take_while(|line| line.is_empty() || line.starts_with('#'));
    head.find_map(package)
}

/// Returns the package that a line of a header names.
fn package(line: &str) -> Option<&str> {
    let name = line.strip_prefix('#')?.trim_start().strip_prefix("@package")?;
    name.starts_with(char::is_whitespace).then(|| name.trim())
}

/// Whether a line is the header that names the package, and no description.
pub(crate) fn is_header(line: &str) -> bool {
    package(line).is_some()
}
