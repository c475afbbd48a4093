//! Reads the text of a layer, finds its mistakes and writes values for messages. Pure.

use serde_json::Value;
use serde_yaml::Value as Yaml;

/// The byte order mark. It is harmless at the beginning of a text.
pub(super) const MARK: char = '\u{feff}';
/// Maximum number of characters of a value in a message.
const MAX_SHOWN: usize = 60;

/// Reads the value of an override. The error of the parser names a line and a column, which mean nothing for a single value. A
/// number that is too large for the parser is a float here, so that the rule of its key names the range.
pub(super) fn scalar(raw: &str) -> Result<Yaml, serde_yaml::Error> {
    let large = || raw.parse::<f64>().ok().filter(|number| number.is_finite()).map(Yaml::from);
    serde_yaml::from_str(raw).or_else(|error| large().ok_or(error))
}

/// Returns the key that a mapping has twice, from the error of the parser.
pub(super) fn repeated(error: &serde_yaml::Error) -> Option<String> {
    let text = error.to_string();
    let (_, rest) = text.split_once("duplicate entry with key \"")?;
    rest.split_once('"').map(|(key, _)| key.to_owned())
}

/// Returns the line, counted from 1, and the mistake of a text that the parser refuses, if it is a common one.
pub(super) fn mistake(text: &str) -> Option<(usize, &'static str)> {
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
pub(super) fn invisible(text: &str) -> Option<(usize, &'static str)> {
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

/// Converts YAML to JSON. Values that JSON lacks (tags, infinities) become text, which numeric keys refuse.
pub(super) fn json(yaml: &Yaml) -> Value {
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
pub(super) fn show(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= MAX_SHOWN {
        return text;
    }
    text.chars().take(MAX_SHOWN).chain(['…']).collect()
}
