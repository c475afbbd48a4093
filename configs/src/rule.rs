//! What values a key takes. Pure. The one place that knows ranges; the sentence of an error is written from it.

use std::fmt;

use serde_json::Value;

/// What values a key takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// A whole number in a range, both ends included.
    Whole {
        /// The least.
        min: u64,
        /// The most.
        max: u64,
    },
    /// A whole number in a range, or null.
    WholeOrNull {
        /// The least.
        min: u64,
        /// The most.
        max: u64,
        /// What null means.
        null: &'static str,
    },
    /// A number above `above` (which is left out) and at most `most`.
    Above {
        /// The number below all others, left out itself.
        above: f64,
        /// The most.
        most: f64,
    },
    /// A number from `min` (included) to `below` (left out).
    From {
        /// The least.
        min: f64,
        /// The number above all others, left out itself.
        below: f64,
    },
    /// One of these words.
    Choice(&'static [&'static str]),
    /// True or false.
    Flag,
    /// A list of parameter groups; see [`ParameterGroup`](crate::ParameterGroup).
    ParameterGroups {
        /// The most groups.
        max: usize,
    },
    /// Text on one line.
    Text {
        /// The most characters.
        max: usize,
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
            Self::From { min, below } => write!(f, "a number of at least {min} and below {below}"),
            Self::Choice(words) => write!(f, "one of {}", words.join(", ")),
            Self::Flag => f.write_str("true or false"),
            Self::ParameterGroups { max } => write!(
                f,
                "a list of at most {max} groups, each with a pattern of tensor names and at least one of \
                 learning_rate_multiplier (a number from 0 to 1000) and weight_decay (a number of at least 0 and below 1), \
                 such as [{{pattern: \"*.embed_tokens.*\", weight_decay: 0}}]"
            ),
            Self::Text { max } => write!(f, "one line of 1 to {max} characters"),
        }
    }
}

impl Rule {
    /// The value as the key stores it, or `None` where the key does not take it.
    pub fn accept(&self, value: &Value) -> Option<Value> {
        let whole = |min: u64, max: u64| value.as_u64().filter(|n| (min..=max).contains(n)).map(Value::from);
        let real = |holds: &dyn Fn(f64) -> bool| value.as_f64().filter(|x| x.is_finite() && holds(*x)).map(Value::from);
        match *self {
            Self::Whole { min, max } => whole(min, max),
            Self::WholeOrNull { min, max, .. } => value.is_null().then_some(Value::Null).or_else(|| whole(min, max)),
            Self::Above { above, most } => real(&|x| x > above && x <= most),
            Self::From { min, below } => real(&|x| x >= min && x < below),
            Self::Choice(words) => value.as_str().filter(|word| words.contains(word)).map(Value::from),
            Self::Flag => value.as_bool().map(Value::from),
            Self::ParameterGroups { max } => {
                let groups = value.as_array().filter(|groups| groups.len() <= max)?;
                groups.iter().map(parameter_group).collect::<Option<Vec<_>>>().map(Value::from)
            }
            Self::Text { max } => value.as_str().filter(|text| is_line(text, max)).map(Value::from),
        }
    }

    /// True where a bare word is text, whatever YAML would make of it (`7`, `yes`, `null`).
    pub fn takes_text(&self) -> bool {
        matches!(self, Self::Choice(_) | Self::Text { .. })
    }
}

fn is_line(text: &str, max: usize) -> bool {
    !text.trim().is_empty() && text.chars().count() <= max && !text.chars().any(char::is_control)
}

/// A parameter group as it is stored, or `None` where it is none.
fn parameter_group(value: &Value) -> Option<Value> {
    let mut group = serde_json::Map::new();
    for (key, value) in value.as_object()? {
        let accepted = match key.as_str() {
            "pattern" => Rule::Text { max: 200 }.accept(value)?,
            "learning_rate_multiplier" => value.as_f64().filter(|x| (0.0..=1000.0).contains(x)).map(Value::from)?,
            "weight_decay" => Rule::From { min: 0.0, below: 1.0 }.accept(value)?,
            _ => return None,
        };
        group.insert(key.clone(), accepted);
    }
    (group.contains_key("pattern") && group.len() > 1).then_some(Value::Object(group))
}
