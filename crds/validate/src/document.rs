//! Reads YAML and JSON files with the position of every field.

use std::{collections::BTreeMap, fmt};

use saphyr::{MarkedYaml, ScalarStyle, YamlData, YamlLoader};
use serde_json::{Map, Number, Value};

use crate::Finding;

/// A place in a file. Line and column begin at 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The column, in characters.
    pub column: usize,
}

/// The path of a field.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Path(Vec<Step>);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Field(String),
    Index(usize),
}

impl Path {
    pub(crate) fn field(&self, name: &str) -> Self {
        self.with(Step::Field(name.to_owned()))
    }

    pub(crate) fn index(&self, index: usize) -> Self {
        self.with(Step::Index(index))
    }

    fn with(&self, step: Step) -> Self {
        Self(self.0.iter().cloned().chain([step]).collect())
    }

    pub(crate) fn join(&self, other: &Self) -> Self {
        Self(self.0.iter().chain(&other.0).cloned().collect())
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, step) in self.0.iter().enumerate() {
            match step {
                Step::Index(index) => write!(f, "[{index}]")?,
                Step::Field(name) if at == 0 => write!(f, "{name}")?,
                Step::Field(name) => write!(f, ".{name}")?,
            }
        }
        Ok(())
    }
}

/// A document of a file.
#[derive(Debug)]
pub(crate) struct Document {
    pub(crate) value: Value,
    positions: BTreeMap<Path, Position>,
}

impl Document {
    /// The value at a path that this document has.
    pub(crate) fn at(&self, path: &Path) -> &Value {
        path.0.iter().fold(&self.value, |value, step| match step {
            Step::Field(name) => &value[name.as_str()],
            Step::Index(index) => &value[*index],
        })
    }

    /// The position of a field, or of the nearest one above it that exists.
    pub(crate) fn position(&self, path: &Path) -> Position {
        (0..=path.0.len())
            .rev()
            .find_map(|length| self.positions.get(&Path(path.0[..length].to_vec())).copied())
            .unwrap_or_default()
    }
}

/// Reads all documents of a file; empty ones are left out.
pub(crate) fn read(text: &str) -> Result<Vec<Document>, Finding> {
    let refused =
        |position, message: String| Finding { position, object: None, field: String::new(), message, is_notice: false };
    // A byte order mark is harmless, and kubectl ignores it.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut loader = YamlLoader::<MarkedYaml>::default();
    loader.early_parse(false);
    let loaded = saphyr_parser::Parser::new_from_str(text).load(&mut loader, true);
    let invalid = |error: &saphyr::ScanError| {
        let at = error.marker();
        refused(Position { line: at.line(), column: at.col() + 1 }, format!("no valid YAML: {}", error.info()))
    };
    loaded.map_err(|error| invalid(&error))?;
    if let Some(error) = loader.error() {
        return Err(invalid(error));
    }
    let mut documents = Vec::new();
    for node in loader.into_documents() {
        let mut positions = BTreeMap::new();
        let value = convert(&node, &Path::default(), &mut positions)
            .map_err(|(position, message)| refused(position, message))?;
        if !value.is_null() {
            documents.push(Document { value, positions });
        }
    }
    Ok(documents)
}

fn position(node: &MarkedYaml) -> Position {
    Position { line: node.span.start.line(), column: node.span.start.col() + 1 }
}

/// Converts a node to JSON, and records where each field begins.
fn convert(
    node: &MarkedYaml,
    path: &Path,
    positions: &mut BTreeMap<Path, Position>,
) -> Result<Value, (Position, String)> {
    positions.entry(path.clone()).or_insert_with(|| position(node));
    match &node.data {
        YamlData::Representation(text, style, tag) => {
            let string = *style != ScalarStyle::Plain || tag.as_ref().is_some_and(|tag| tag.suffix == "str");
            Ok(if string { Value::String(text.to_string()) } else { plain(text) })
        }
        YamlData::Sequence(items) => {
            let item = |(index, item)| convert(item, &path.index(index), positions);
            Ok(Value::Array(items.iter().enumerate().map(item).collect::<Result<_, _>>()?))
        }
        YamlData::Mapping(fields) => {
            let mut map = Map::new();
            for (key, value) in fields {
                let YamlData::Representation(name, ..) = &key.data else {
                    return Err((position(key), "the name of a field must be a string".to_owned()));
                };
                let name = name.to_string();
                if name == "<<" {
                    let message = "the merge key << is not part of YAML 1.2: write the fields out".to_owned();
                    return Err((position(key), message));
                }
                let path = path.field(&name);
                positions.insert(path.clone(), position(key));
                let value = convert(value, &path, positions)?;
                map.insert(name, value);
            }
            Ok(Value::Object(map))
        }
        YamlData::Tagged(_, node) => convert(node, path, positions),
        // The loader leaves scalars as they are written, and replaces aliases.
        YamlData::Value(_) | YamlData::Alias(_) | YamlData::BadValue => {
            Err((position(node), "this value cannot be read".to_owned()))
        }
    }
}

/// A plain scalar by the rules of kubectl's YAML library, where `yes` and `on` are true.
fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" | "y" | "Y" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => return Value::Bool(true),
        "false" | "False" | "FALSE" | "n" | "N" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => {
            return Value::Bool(false);
        }
        _ => {}
    }
    let digits = text.replace('_', "");
    let (sign, magnitude) =
        digits.strip_prefix('-').map_or((1, digits.strip_prefix('+').unwrap_or(&digits)), |it| (-1, it));
    let radix = |prefix: &str, radix| {
        magnitude
            .strip_prefix(prefix)
            .and_then(|it| i64::from_str_radix(it, radix).ok())
            .map(|it| Value::from(sign * it))
    };
    if let Some(number) = radix("0x", 16).or_else(|| radix("0o", 8)).or_else(|| radix("0b", 2)) {
        return number;
    }
    if magnitude.len() > 1 && magnitude.starts_with('0') && magnitude.bytes().all(|byte| (b'0'..=b'7').contains(&byte))
    {
        return radix("0", 8).unwrap_or_else(|| Value::String(text.to_owned()));
    }
    if magnitude.starts_with(|first: char| first.is_ascii_digit() || first == '.') {
        if let Ok(number) = digits.trim_start_matches('+').parse::<i64>() {
            return Value::from(number);
        }
        if let Ok(number) = digits.trim_start_matches('+').parse::<u64>() {
            return Value::from(number);
        }
        if let Some(number) = digits.parse::<f64>().ok().and_then(Number::from_f64) {
            return Value::Number(number);
        }
    }
    Value::String(text.to_owned())
}
