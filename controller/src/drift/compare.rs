//! Comparing JSON values, exactly or as a subset.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use codex_checklist::Quantity;
use codex_plan::text::truncate_chars;
use serde_json::Value;

/// The first field in which two objects differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The path of the field, such as `spec.template.spec.containers[trainer].image`.
    pub path: String,
    /// The live value.
    pub found: String,
    /// The planned value.
    pub wanted: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {}, expected {}", self.path, self.found, self.wanted)
    }
}

/// Returns the first difference between two values.
pub(super) fn equal(wanted: &Value, found: &Value, path: &str) -> Option<Difference> {
    match (wanted, found) {
        (Value::Object(wanted), Value::Object(found)) => {
            let names: BTreeSet<_> = wanted.keys().chain(found.keys()).collect();
            names.into_iter().find_map(|name| {
                let path = join(path, name);
                match (wanted.get(name), found.get(name)) {
                    (Some(wanted), Some(found)) => equal(wanted, found, &path),
                    (wanted, found) => Some(differs(&path, found, wanted)),
                }
            })
        }
        (Value::Array(wanted), Value::Array(found)) => lists(wanted, found, path, equal),
        (wanted, found) if wanted == found => None,
        (wanted, found) => Some(differs(path, Some(found), Some(wanted))),
    }
}

/// Returns the first planned field, by name, that `live` does not hold. Objects may hold further fields; lists may not hold
/// further elements.
pub(super) fn holds(wanted: &Value, live: &Value, path: &str) -> Option<Difference> {
    match (wanted, live) {
        (Value::Object(wanted), Value::Object(live)) => {
            wanted.iter().collect::<BTreeMap<_, _>>().into_iter().find_map(|(name, wanted)| {
                let path = join(path, name);
                match live.get(name) {
                    Some(live) => holds(wanted, live, &path),
                    None if is_zero(wanted) => None,
                    None => Some(differs(&path, None, Some(wanted))),
                }
            })
        }
        (Value::Array(wanted), Value::Array(live)) => lists(wanted, live, path, holds),
        (Value::String(a), Value::String(b))
            if is_quantity(path) && Quantity::parse(a).is_some() && Quantity::parse(a) == Quantity::parse(b) =>
        {
            None
        }
        (wanted, live) if wanted == live => None,
        (wanted, live) => Some(differs(path, Some(live), Some(wanted))),
    }
}

/// Compares lists. Elements with distinct names are paired by name, all others by position.
fn lists(
    wanted: &[Value],
    live: &[Value],
    path: &str,
    compare: fn(&Value, &Value, &str) -> Option<Difference>,
) -> Option<Difference> {
    let names = |list: &[Value]| {
        let names: Option<Vec<_>> = list.iter().map(|value| Some(value.get("name")?.as_str()?.to_owned())).collect();
        names.filter(|names| names.iter().collect::<BTreeSet<_>>().len() == names.len())
    };
    let paired = names(wanted).zip(names(live));
    let label = |index: usize, names: Option<&Vec<String>>| {
        let label = names.map_or_else(|| index.to_string(), |names| names[index].clone());
        format!("{path}[{label}]")
    };
    for (index, wanted) in wanted.iter().enumerate() {
        let found = match &paired {
            Some((names, live)) => live.iter().position(|name| *name == names[index]),
            None => Some(index),
        };
        let path = label(index, paired.as_ref().map(|(wanted, _)| wanted));
        let differs = match found.and_then(|found| live.get(found)) {
            Some(live) => compare(wanted, live, &path),
            None => Some(differs(&path, None, Some(wanted))),
        };
        if differs.is_some() {
            return differs;
        }
    }
    let added = match &paired {
        Some((wanted, live)) => live.iter().position(|name| !wanted.contains(name)),
        None => (live.len() > wanted.len()).then_some(wanted.len()),
    }?;
    Some(differs(&label(added, paired.as_ref().map(|(_, live)| live)), live.get(added), None))
}

pub(super) fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

pub(super) fn differs(path: &str, found: Option<&Value>, wanted: Option<&Value>) -> Difference {
    let found = found.map_or_else(|| "absent".to_owned(), brief);
    let wanted = wanted.map_or_else(|| "absent".to_owned(), brief);
    Difference { path: path.to_owned(), found, wanted }
}

/// Returns the start of a value as text.
fn brief(value: &Value) -> String {
    let mut value = value.clone();
    value.sort_all_objects();
    truncate_chars(&value.to_string(), 120)
}

/// Returns whether the API server may omit a planned value.
pub(super) fn is_zero(wanted: &Value) -> bool {
    match wanted {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(fields) => fields.values().all(is_zero),
    }
}

/// Returns whether the string at this path is a quantity, which the API server normalizes.
fn is_quantity(path: &str) -> bool {
    const NAMES: [&str; 4] = [".sizeLimit", ".resourceFieldRef.divisor", ".averageValue", ".tolerance"];
    path.contains(".resources.") || NAMES.iter().any(|name| path.ends_with(name))
}
