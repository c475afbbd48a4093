//! Rules on the values of keys. Pure. Ranges are defined only here; messages are derived from the rules.

use std::{collections::BTreeSet, fmt};

use serde_json::{Value, json};

use crate::{DIFFICULTIES, PHASE_METRICS, Phase, TASKS, reasoning::MAX_TOOL};

/// The smallest weight of a source of data.
const LEAST_WEIGHT: f64 = 0.000_001;
/// The largest weight of a source of data.
const MOST_WEIGHT: f64 = 1_000_000.0;

/// Maximum number of characters of a pattern of tensor names.
const MAX_PATTERN: usize = 200;

/// Matches a text without control characters, in which one character is no space.
const ONE_LINE: &str = r"^[^\u0000-\u001f\u007f-\u009f]*[^\u0000-\u0020\u007f-\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000][^\u0000-\u001f\u007f-\u009f]*$";

/// A rule on the values of a key.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// A whole number in a range, both ends included.
    Whole {
        /// The minimum.
        min: u64,
        /// The maximum.
        max: u64,
    },
    /// A whole number in a range, or null.
    WholeOrNull {
        /// The minimum.
        min: u64,
        /// The maximum.
        max: u64,
        /// The meaning of null.
        null: &'static str,
    },
    /// A number above `above` and at most `most`.
    Above {
        /// The exclusive lower bound.
        above: f64,
        /// The maximum.
        most: f64,
    },
    /// A number above `above` and at most `most`, or null.
    AboveOrNull {
        /// The exclusive lower bound.
        above: f64,
        /// The maximum.
        most: f64,
        /// The meaning of null.
        null: &'static str,
    },
    /// A number of at least `min` and below `below`.
    From {
        /// The minimum.
        min: f64,
        /// The exclusive upper bound.
        below: f64,
    },
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A list of distinct words of these, at least one. It is stored in this order.
    Choices(&'static [&'static str]),
    /// As [`Choices`](Self::Choices), or null.
    ChoicesOrNull {
        /// The words.
        words: &'static [&'static str],
        /// The meaning of null.
        null: &'static str,
    },
    /// A list of distinct words of these, which may be empty. It is stored in this order.
    AnyOf(&'static [&'static str]),
    /// A list of distinct names of letters, digits, `-`, `_` and `.`, at least one.
    Names {
        /// Maximum number of names.
        max: usize,
    },
    /// A list of distinct texts, which may be empty. A text may have line feeds and spaces, and may consist of them.
    Texts {
        /// Maximum number of texts.
        most: usize,
        /// Maximum number of characters of a text.
        max: usize,
    },
    /// A mapping of names to weights, or null.
    WeightsOrNull,
    /// True or false.
    Flag,
    /// A list of parameter groups; see [`ParameterGroup`](crate::ParameterGroup).
    ParameterGroups {
        /// Maximum number of groups.
        max: usize,
    },
    /// A list of the phases of a curriculum; see [`Phase`]. Their values are checked against each other and the data elsewhere.
    Phases {
        /// Maximum number of phases.
        max: usize,
    },
    /// Text on one line.
    Text {
        /// Maximum number of characters.
        max: usize,
    },
    /// Text on one line, or null.
    TextOrNull {
        /// Maximum number of characters.
        max: usize,
        /// The meaning of null.
        null: &'static str,
    },
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole { min, max } => write!(f, "a whole number from {min} to {max}"),
            Self::WholeOrNull { min, max, null } => {
                write!(f, "a whole number from {min} to {max}, or null for {null}")
            }
            Self::Above { above, most } => write!(f, "a number above {above} and at most {most}"),
            Self::AboveOrNull { above, most, null } => {
                write!(f, "{}, or null for {null}", Self::Above { above: *above, most: *most })
            }
            Self::From { min, below } => write!(f, "a number of at least {min} and below {below}"),
            Self::Choice(words) => write!(f, "one of {}", words.join(", ")),
            Self::Choices(words) => {
                write!(f, "a list of at least one of {}, each once, such as [{}]", words.join(", "), words[0])
            }
            Self::ChoicesOrNull { words, null } => write!(f, "{}, or null for {null}", Self::Choices(words)),
            Self::AnyOf(words) => {
                write!(f, "a list of any of {}, each once, such as [{}], or []", words.join(", "), words[0])
            }
            Self::Names { max } => write!(
                f,
                "a list of 1 to {max} different names of letters, digits, -, _ and ., each of at most {MAX_TOOL} characters, such as \
                 [calculator]"
            ),
            Self::Texts { most, max } => write!(
                f,
                "a list of at most {most} different texts of 1 to {max} characters, such as [\"\\n\\n\"], or [] for none"
            ),
            Self::WeightsOrNull => write!(
                f,
                "names of data, each with a number from {LEAST_WEIGHT} to {MOST_WEIGHT}, such as {{mine: 2}}, or null for equal \
                 weights"
            ),
            Self::Flag => f.write_str("true or false"),
            Self::ParameterGroups { max } => write!(
                f,
                "a list of at most {max} groups, each with a pattern of tensor names and at least one of \
                 learning_rate_multiplier (a number from 0 to 1000) and weight_decay (a number of at least 0 and below 1), \
                 such as [{{pattern: \"*.embed_tokens.*\", weight_decay: 0}}]"
            ),
            Self::Phases { max } => write!(
                f,
                "a list of at most {max} phases, each with id and steps and any of dataset (sources, tasks, difficulties and \
                 categories, each a list), metrics (a list), min_metric_threshold and max_metric_threshold (numbers by metric), \
                 learning_rate, batch_size and description, such as [{{id: first, steps: 200, dataset: {{difficulties: [easy]}}}}]"
            ),
            Self::Text { max } => write!(f, "one line of 1 to {max} characters"),
            Self::TextOrNull { max, null } => write!(f, "one line of 1 to {max} characters, or null for {null}"),
        }
    }
}

impl Rule {
    /// Returns the value to store, or `None` if the rule refuses it.
    pub fn accept(&self, value: &Value) -> Option<Value> {
        let whole = |min: u64, max: u64| value.as_u64().filter(|n| (min..=max).contains(n)).map(Value::from);
        let real = |holds: &dyn Fn(f64) -> bool| value.as_f64().filter(|x| x.is_finite() && holds(*x)).map(Value::from);
        match *self {
            Self::Whole { min, max } => whole(min, max),
            Self::WholeOrNull { min, max, .. } => value.is_null().then_some(Value::Null).or_else(|| whole(min, max)),
            Self::Above { above, most } => real(&|x| x > above && x <= most),
            Self::AboveOrNull { above, most, .. } => {
                value.is_null().then_some(Value::Null).or_else(|| Self::Above { above, most }.accept(value))
            }
            Self::From { min, below } => real(&|x| x >= min && x < below),
            Self::Choice(words) => value.as_str().filter(|word| words.contains(word)).map(Value::from),
            Self::Choices(words) => {
                let named: Vec<&str> = value.as_array()?.iter().map(Value::as_str).collect::<Option<_>>()?;
                let chosen: Vec<&str> = words.iter().copied().filter(|word| named.contains(word)).collect();
                (!chosen.is_empty() && chosen.len() == named.len()).then(|| Value::from(chosen))
            }
            Self::ChoicesOrNull { .. } | Self::WeightsOrNull if value.is_null() => Some(Value::Null),
            Self::ChoicesOrNull { words, .. } => Self::Choices(words).accept(value),
            Self::AnyOf(words) => {
                let named: Vec<&str> = value.as_array()?.iter().map(Value::as_str).collect::<Option<_>>()?;
                let chosen: Vec<&str> = words.iter().copied().filter(|word| named.contains(word)).collect();
                (chosen.len() == named.len()).then(|| Value::from(chosen))
            }
            Self::Names { max } => {
                let names: Vec<&str> = value.as_array()?.iter().map(Value::as_str).collect::<Option<_>>()?;
                let distinct: BTreeSet<&str> = names.iter().copied().collect();
                let possible = (1..=max).contains(&names.len()) && distinct.len() == names.len();
                (possible && names.iter().all(|name| is_name(name))).then(|| Value::from(names))
            }
            Self::Texts { most, max } => {
                let texts: Vec<&str> = value.as_array()?.iter().map(Value::as_str).collect::<Option<_>>()?;
                let distinct: BTreeSet<&str> = texts.iter().copied().collect();
                let possible = texts.len() <= most && distinct.len() == texts.len();
                let fits = |text: &str| (1..=max).contains(&text.chars().count());
                (possible && texts.iter().all(|text| fits(text))).then(|| Value::from(texts))
            }
            Self::WeightsOrNull => {
                let weight = |value: &Value| {
                    value.as_f64().filter(|weight| (LEAST_WEIGHT..=MOST_WEIGHT).contains(weight)).map(Value::from)
                };
                let weights = value.as_object().filter(|weights| !weights.is_empty())?;
                let weights = weights.iter().map(|(name, value)| Some((name.clone(), weight(value)?)));
                weights.collect::<Option<serde_json::Map<_, _>>>().map(Value::Object)
            }
            Self::Flag => value.as_bool().map(Value::from),
            Self::ParameterGroups { max } => {
                let groups = value.as_array().filter(|groups| groups.len() <= max)?;
                groups.iter().map(parameter_group).collect::<Option<Vec<_>>>().map(Value::from)
            }
            Self::Phases { max } => {
                let items = value.as_array().filter(|items| items.len() <= max)?;
                let phases: Option<Vec<Phase>> =
                    items.iter().map(|item| codex_json::from_value(item.clone()).ok()).collect();
                serde_json::to_value(phases?).ok()
            }
            Self::Text { max } => value.as_str().filter(|text| is_line(text, max)).map(Value::from),
            // An override takes every word as text.
            Self::TextOrNull { .. } if value.is_null() || value.as_str() == Some("null") => Some(Value::Null),
            Self::TextOrNull { max, .. } => value.as_str().filter(|text| is_line(text, max)).map(Value::from),
        }
    }

    /// Returns the JSON Schema of the values that the rule accepts. It also accepts whole numbers with a fraction of zero.
    pub fn schema(&self) -> Value {
        let or_null = |schema: Value| json!({ "anyOf": [schema, { "type": "null" }] });
        let list = |words: &[&str], least: usize| json!({ "type": "array", "items": { "enum": words }, "uniqueItems": true, "minItems": least });
        match *self {
            Self::Whole { min, max } => json!({ "type": "integer", "minimum": min, "maximum": max }),
            Self::WholeOrNull { min, max, .. } => or_null(Self::Whole { min, max }.schema()),
            Self::Above { above, most } => json!({ "type": "number", "exclusiveMinimum": above, "maximum": most }),
            Self::AboveOrNull { above, most, .. } => or_null(Self::Above { above, most }.schema()),
            Self::From { min, below } => json!({ "type": "number", "minimum": min, "exclusiveMaximum": below }),
            Self::Choice(words) => json!({ "enum": words }),
            Self::Choices(words) => list(words, 1),
            Self::ChoicesOrNull { words, .. } => or_null(list(words, 1)),
            Self::AnyOf(words) => list(words, 0),
            Self::Names { max } => json!({
                "type": "array", "minItems": 1, "maxItems": max, "uniqueItems": true,
                "items": { "type": "string", "maxLength": MAX_TOOL, "pattern": "^[A-Za-z0-9._-]+$" },
            }),
            Self::Texts { most, max } => json!({
                "type": "array", "maxItems": most, "uniqueItems": true,
                "items": { "type": "string", "minLength": 1, "maxLength": max },
            }),
            Self::WeightsOrNull => or_null(json!({
                "type": "object", "minProperties": 1,
                "additionalProperties": { "type": "number", "minimum": LEAST_WEIGHT, "maximum": MOST_WEIGHT },
            })),
            Self::Flag => json!({ "type": "boolean" }),
            Self::ParameterGroups { max } => json!({
                "type": "array", "maxItems": max,
                "items": {
                    "type": "object", "required": ["pattern"], "minProperties": 2, "additionalProperties": false,
                    "properties": {
                        "pattern": Self::Text { max: MAX_PATTERN }.schema(),
                        "learning_rate_multiplier": { "type": "number", "minimum": 0, "maximum": 1000 },
                        "weight_decay": Self::From { min: 0.0, below: 1.0 }.schema(),
                    },
                },
            }),
            Self::Phases { max } => {
                let names = json!({ "type": "array", "items": { "type": "string" } });
                let words = |words: &[&str]| json!({ "type": "array", "items": { "enum": words } });
                let bounds = json!({
                    "type": "object", "propertyNames": { "enum": PHASE_METRICS },
                    "additionalProperties": { "type": "number" },
                });
                json!({
                    "type": "array", "maxItems": max,
                    "items": {
                        "type": "object", "required": ["id", "steps"], "additionalProperties": false,
                        "properties": {
                            "id": { "type": "string", "maxLength": 63 },
                            "dataset": {
                                "type": "object", "additionalProperties": false,
                                "properties": {
                                    "sources": names, "tasks": words(TASKS), "difficulties": words(DIFFICULTIES),
                                    "categories": names,
                                },
                            },
                            "steps": { "type": "integer", "minimum": 1 },
                            "metrics": words(PHASE_METRICS),
                            "min_metric_threshold": bounds, "max_metric_threshold": bounds,
                            "learning_rate": Self::Above { above: 0.0, most: 1.0 }.schema(),
                            "batch_size": Self::Whole { min: 1, max: 65_536 }.schema(),
                            "description": { "type": "string" },
                        },
                    },
                })
            }
            // One line, with a character that is no space.
            Self::Text { max } => json!({
                "type": "string", "maxLength": max,
                "pattern": ONE_LINE,
            }),
            Self::TextOrNull { max, .. } => or_null(Self::Text { max }.schema()),
        }
    }

    /// Whether an unquoted word is text even if YAML reads it as another type (`7`, `yes`, `null`).
    pub fn takes_text(&self) -> bool {
        matches!(self, Self::Choice(_) | Self::Text { .. } | Self::TextOrNull { .. })
    }
}

fn is_line(text: &str, max: usize) -> bool {
    !text.trim().is_empty() && text.chars().count() <= max && !text.chars().any(char::is_control)
}

fn is_name(name: &str) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || ['-', '_', '.'].contains(&c);
    !name.is_empty() && name.len() <= MAX_TOOL && name.chars().all(is_part)
}

/// Returns the parameter group to store, or `None` if it is malformed.
fn parameter_group(value: &Value) -> Option<Value> {
    let mut group = serde_json::Map::new();
    for (key, value) in value.as_object()? {
        let accepted = match key.as_str() {
            "pattern" => Rule::Text { max: MAX_PATTERN }.accept(value)?,
            "learning_rate_multiplier" => value.as_f64().filter(|x| (0.0..=1000.0).contains(x)).map(Value::from)?,
            "weight_decay" => Rule::From { min: 0.0, below: 1.0 }.accept(value)?,
            _ => return None,
        };
        group.insert(key.clone(), accepted);
    }
    (group.contains_key("pattern") && group.len() > 1).then_some(Value::Object(group))
}
