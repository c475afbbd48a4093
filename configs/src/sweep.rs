//! Sweeps: every combination of the values of several keys, and a name for each. Pure. The forms are those of Hydra.

use std::collections::BTreeMap;

use codex_provenance::Sha256;

use crate::{
    Rule, TEMPLATES,
    error::nearest,
    keys::{Key, TRAINING},
};

/// The most points of a sweep, unless another bound is given.
pub const MAX_POINTS: usize = 256;
/// The most values of one key.
const MAX_VALUES: usize = 4096;
/// The most characters of the name of a point: that of an object of codex-ml.dev, which is also a valid DNS label.
pub const MAX_NAME: usize = 52;
/// Number of hexadecimal digits that tell cut names apart.
const SUFFIX: usize = 8;
/// The most digits after the point in a range.
const MAX_SCALE: i32 = 18;
/// Fields of the object that can be swept.
const FIELDS: [&str; 2] = ["seed", "template"];

/// A key with the values that it takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Axis {
    /// The key: a setting, `seed` or `template`.
    pub key: String,
    /// The values as overrides write them. At least one, each once.
    pub values: Vec<String>,
}

/// One combination of values, by key, in the order of the axes.
pub type Point = Vec<(String, String)>;

/// Why a sweep is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SweepError {
    /// It has no key or no values.
    #[error("{0:?} is no part of a sweep: write KEY=choice(A,B), KEY=range(START,STOP,STEP) or KEY=glob(PATTERN)")]
    NotAnAxis(String),
    /// The key does not exist.
    #[error("the key {key} does not exist{}: use seed, template or a setting", crate::error::meant(nearest.as_deref()))]
    UnknownKey {
        /// The key.
        key: String,
        /// The most similar known key.
        nearest: Option<String>,
    },
    /// A key has no value, or one is empty.
    #[error("{key} has an empty value: write at least one value, with commas between them")]
    Empty {
        /// The key.
        key: String,
    },
    /// A key has a value twice.
    #[error("{key} has the value {value} twice: remove one of the two")]
    TwiceValue {
        /// The key.
        key: String,
        /// The value.
        value: String,
    },
    /// A key is swept twice.
    #[error("{key} is swept twice: keep one of the two")]
    Twice {
        /// The key.
        key: String,
    },
    /// A range is malformed.
    #[error("{key} has the range {text:?}: {right}")]
    Range {
        /// The key.
        key: String,
        /// What stands in the brackets.
        text: String,
        /// What to write instead.
        right: String,
    },
    /// A pattern matches nothing, or the key has no list of values.
    #[error("{key} has the pattern {pattern:?}: {right}")]
    Glob {
        /// The key.
        key: String,
        /// The pattern.
        pattern: String,
        /// What to write instead.
        right: String,
    },
    /// There are too many points.
    #[error("the sweep has {points} points: write at most {most}, or raise the bound with --most")]
    TooMany {
        /// Number of points.
        points: String,
        /// The most.
        most: usize,
    },
}

/// What is known of a key.
enum Known {
    Setting(&'static Key),
    Field(&'static str),
    /// An entry of a mapping, such as `data.weights.mine`.
    Entry,
}

fn find(key: &str) -> Result<Known, SweepError> {
    if let Some(field) = FIELDS.iter().find(|field| **field == key) {
        return Ok(Known::Field(field));
    }
    if let Some(known) = TRAINING.iter().find(|known| known.path == key) {
        return Ok(Known::Setting(known));
    }
    let within = |known: &&Key| {
        let rest = key.strip_prefix(known.path).and_then(|rest| rest.strip_prefix('.'));
        known.rule == Rule::WeightsOrNull && rest.is_some_and(|name| !name.is_empty())
    };
    if TRAINING.iter().any(|known| within(&known)) {
        return Ok(Known::Entry);
    }
    let known: Vec<&'static str> = TRAINING.iter().map(|known| known.path).chain(FIELDS).collect();
    Err(SweepError::UnknownKey { key: key.to_owned(), nearest: nearest(key, &known) })
}

impl Axis {
    /// Parses `key=choice(a,b)`, `key=range(start,stop,step)` or `key=glob(pattern)`.
    ///
    /// # Errors
    /// [`SweepError`] names what is wrong and what to write instead.
    pub fn parse(text: &str) -> Result<Self, SweepError> {
        let refuse = || SweepError::NotAnAxis(text.to_owned());
        let (key, form) = text.split_once('=').ok_or_else(refuse)?;
        Self::of(key.trim(), form.trim()).map_err(|error| match error {
            SweepError::NotAnAxis(_) => refuse(),
            error => error,
        })
    }

    /// Parses the values of a key: `choice(…)`, `range(…)` or `glob(…)`.
    ///
    /// # Errors
    /// [`SweepError`] names what is wrong and what to write instead.
    pub fn of(key: &str, form: &str) -> Result<Self, SweepError> {
        let refuse = || SweepError::NotAnAxis(format!("{key}={form}"));
        let (function, rest) = form.split_once('(').ok_or_else(refuse)?;
        let inside = rest.strip_suffix(')').ok_or_else(refuse)?;
        if key.is_empty() {
            return Err(refuse());
        }
        let known = find(key)?;
        let values = match function.trim() {
            "choice" => split(inside).into_iter().map(|value| value.trim().to_owned()).collect(),
            "range" => range(key, inside)?,
            "glob" => glob(key, &known, inside.trim())?,
            _ => return Err(refuse()),
        };
        Self::listed(key, values)
    }

    /// Returns the axis of a key with these values.
    ///
    /// # Errors
    /// [`SweepError`] if the key does not exist, a value is empty, or one occurs twice.
    pub fn listed(key: &str, values: Vec<String>) -> Result<Self, SweepError> {
        find(key)?;
        if values.is_empty() || values.iter().any(String::is_empty) {
            return Err(SweepError::Empty { key: key.to_owned() });
        }
        for (index, value) in values.iter().enumerate() {
            if values[..index].contains(value) {
                return Err(SweepError::TwiceValue { key: key.to_owned(), value: value.clone() });
            }
        }
        Ok(Self { key: key.to_owned(), values })
    }
}

/// Splits a text at the commas outside of brackets and quotes.
fn split(text: &str) -> Vec<&str> {
    let (mut items, mut depth, mut quote, mut from) = (Vec::new(), 0_usize, None, 0);
    for (at, character) in text.char_indices() {
        match (quote, character) {
            (Some(open), character) if open == character => quote = None,
            (None, '"' | '\'') => quote = Some(character),
            (None, '(' | '[' | '{') => depth += 1,
            (None, ')' | ']' | '}') => depth = depth.saturating_sub(1),
            (None, ',') if depth == 0 => {
                items.push(&text[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    items.push(&text[from..]);
    items
}

/// A decimal number: `digits / 10^scale`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Exact {
    digits: i128,
    scale: u32,
}

impl Exact {
    fn parse(text: &str) -> Option<Self> {
        let (mantissa, exponent) = match text.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
            None => (text, 0),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let bare = whole.strip_prefix(['-', '+']).unwrap_or(whole);
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if bare.len() + fraction.len() == 0 || bare.len() + fraction.len() > 18 || !digits(bare) || !digits(fraction) {
            return None;
        }
        let magnitude: i128 = format!("{bare}{fraction}").parse().ok()?;
        let digits = if whole.starts_with('-') { -magnitude } else { magnitude };
        let scale = i32::try_from(fraction.len()).ok()?.checked_sub(exponent)?;
        if !(-12..=MAX_SCALE).contains(&scale) {
            return None;
        }
        Some(match u32::try_from(scale) {
            Ok(scale) => Self { digits, scale },
            Err(_) => Self { digits: digits.checked_mul(10_i128.pow(scale.unsigned_abs()))?, scale: 0 },
        })
    }

    fn at(self, scale: u32) -> Option<i128> {
        self.digits.checked_mul(10_i128.checked_pow(scale.checked_sub(self.scale)?)?)
    }
}

/// Writes `digits / 10^scale` without an exponent.
fn decimal(digits: i128, scale: u32) -> String {
    let sign = if digits < 0 { "-" } else { "" };
    let text = format!("{:0>width$}", digits.unsigned_abs(), width = scale as usize + 1);
    let (whole, fraction) = text.split_at(text.len() - scale as usize);
    let fraction = fraction.trim_end_matches('0');
    if fraction.is_empty() { format!("{sign}{whole}") } else { format!("{sign}{whole}.{fraction}") }
}

/// Lists `start`, `start + step`, … below `stop` (above it, if the step is negative), exactly.
fn range(key: &str, inside: &str) -> Result<Vec<String>, SweepError> {
    let refuse =
        |right: &str| SweepError::Range { key: key.to_owned(), text: inside.to_owned(), right: right.to_owned() };
    let form = "write range(STOP), range(START,STOP) or range(START,STOP,STEP) with decimal numbers";
    let numbers: Option<Vec<Exact>> = split(inside).into_iter().map(|text| Exact::parse(text.trim())).collect();
    let one = Exact { digits: 1, scale: 0 };
    let zero = Exact { digits: 0, scale: 0 };
    let (start, stop, step) = match numbers.as_deref() {
        Some([stop]) => (zero, *stop, one),
        Some([start, stop]) => (*start, *stop, one),
        Some([start, stop, step]) => (*start, *stop, *step),
        _ => return Err(refuse(form)),
    };
    if step.digits == 0 {
        return Err(refuse("write a step that is not 0"));
    }
    let scale = start.scale.max(stop.scale).max(step.scale);
    let (Some(start), Some(stop), Some(step)) = (start.at(scale), stop.at(scale), step.at(scale)) else {
        return Err(refuse("write numbers with fewer digits"));
    };
    let inside = |value: i128| if step > 0 { value < stop } else { value > stop };
    let (mut values, mut value) = (Vec::new(), start);
    while inside(value) {
        if values.len() == MAX_VALUES {
            return Err(refuse("write fewer than 4096 values"));
        }
        values.push(decimal(value, scale));
        value += step;
    }
    if values.is_empty() {
        return Err(refuse("it is empty, because the stop is excluded; write a stop beyond the start"));
    }
    Ok(values)
}

/// Lists the values of a key that match a pattern, in which `*` matches any characters.
fn glob(key: &str, known: &Known, pattern: &str) -> Result<Vec<String>, SweepError> {
    let refuse = |right: String| SweepError::Glob { key: key.to_owned(), pattern: pattern.to_owned(), right };
    let words: &[&str] = match known {
        Known::Field("template") => TEMPLATES,
        Known::Setting(Key { rule: Rule::Choice(words), .. }) => words,
        Known::Setting(Key { rule: Rule::Flag, .. }) => &["true", "false"],
        Known::Setting(_) | Known::Field(_) | Known::Entry => {
            return Err(refuse("the key has no list of values; write choice(A,B)".to_owned()));
        }
    };
    let found: Vec<String> =
        words.iter().filter(|word| matches(pattern, word)).map(|word| (*word).to_owned()).collect();
    if found.is_empty() {
        return Err(refuse(format!("it matches none of {}", words.join(", "))));
    }
    Ok(found)
}

/// Whether a word matches a pattern, in which `*` stands for any characters or none.
fn matches(pattern: &str, word: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == word };
    let Some(mut word) = word.strip_prefix(first) else { return false };
    let mut pieces: Vec<&str> = rest.split('*').collect();
    let last = pieces.pop().unwrap_or_default();
    for piece in pieces {
        let Some(at) = word.find(piece) else { return false };
        word = &word[at + piece.len()..];
    }
    word.len() >= last.len() && word.ends_with(last)
}

/// Lists every combination of the values of the axes; the last axis varies fastest.
///
/// # Errors
/// [`SweepError`] if a key occurs twice, or there are more than `most` points.
pub fn points(axes: &[Axis], most: usize) -> Result<Vec<Point>, SweepError> {
    for (index, axis) in axes.iter().enumerate() {
        if axes[..index].iter().any(|other| other.key == axis.key) {
            return Err(SweepError::Twice { key: axis.key.clone() });
        }
    }
    let count = axes.iter().try_fold(1_usize, |count, axis| count.checked_mul(axis.values.len()));
    if count.is_none_or(|count| count > most) {
        let points = count.map_or_else(|| "too many".to_owned(), |count| count.to_string());
        return Err(SweepError::TooMany { points, most });
    }
    let mut points = vec![Point::new()];
    for axis in axes {
        let extended = |point: &Point| {
            let point = point.clone();
            axis.values.iter().map(move |value| {
                let mut point = point.clone();
                point.push((axis.key.clone(), value.clone()));
                point
            })
        };
        points = points.iter().flat_map(extended).collect();
    }
    Ok(points)
}

/// Returns a name for each point, which begins with `base` and has the last words of the keys and the values. It is a valid DNS
/// label of at most [`MAX_NAME`] characters. A name that is cut, or that several points would have, ends with digits of the
/// SHA-256 of `base` and the point. The same points have the same names.
pub fn names(base: &str, points: &[Point]) -> Vec<String> {
    let whole: Vec<String> = points
        .iter()
        .map(|point| {
            let words = point.iter().flat_map(|(key, value)| [key.rsplit('.').next().unwrap_or(key), value.as_str()]);
            let words: Vec<String> = std::iter::once(base).chain(words).map(label).collect();
            words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join("-")
        })
        .collect();
    let mut counts = BTreeMap::<&str, usize>::new();
    for name in &whole {
        *counts.entry(name).or_default() += 1;
    }
    whole
        .iter()
        .zip(points)
        .map(|(name, point)| {
            let starts_well = name.starts_with(|first: char| first.is_ascii_lowercase());
            if name.len() <= MAX_NAME && counts[name.as_str()] == 1 && starts_well {
                return name.clone();
            }
            let settings: Vec<String> = point.iter().map(|(key, value)| format!("{key}={value}\n")).collect();
            let digest = Sha256::of(format!("{base}\n{}", settings.concat())).to_string();
            let start = if starts_well { name.clone() } else { format!("s-{name}") };
            let start: String = start.chars().take(MAX_NAME - SUFFIX - 1).collect();
            format!("{}-{}", start.trim_end_matches('-'), &digest[..SUFFIX])
        })
        .collect()
}

/// Returns a text in lower-case letters, digits and inner dashes.
fn label(text: &str) -> String {
    let plain = |character: char| {
        let character = character.to_ascii_lowercase();
        if character.is_ascii_lowercase() || character.is_ascii_digit() { character } else { '-' }
    };
    let dashed: String = text.chars().map(plain).collect();
    dashed.split('-').filter(|word| !word.is_empty()).collect::<Vec<_>>().join("-")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn axis(text: &str) -> Vec<String> {
        Axis::parse(text).expect("an axis").values
    }

    fn refused(text: &str) -> String {
        Axis::parse(text).expect_err("must be refused").to_string()
    }

    #[test]
    fn forms_of_axes() {
        assert_eq!(axis("training.learning_rate=choice(0.001, 3e-3)"), ["0.001", "3e-3"]);
        assert_eq!(axis(" seed = range(1,4) "), ["1", "2", "3"]);
        assert_eq!(axis("seed=range(3)"), ["0", "1", "2"]);
        assert_eq!(axis("training.weight_decay=range(0,0.3,0.1)"), ["0", "0.1", "0.2"]);
        assert_eq!(axis("training.learning_rate=range(1e-3,3e-3,5e-4)"), ["0.001", "0.0015", "0.002", "0.0025"]);
        assert_eq!(axis("seed=range(5,0,-2)"), ["5", "3", "1"]);
        assert_eq!(axis("template=glob(cot-*)"), ["cot-padded", "cot-plus", "cot-starter"]);
        assert_eq!(axis("training.dtype=glob(*)"), ["fp32", "bf16", "fp16"]);
        assert_eq!(axis("training.shuffle=glob(*)"), ["true", "false"]);
        assert_eq!(axis("training.lora.targets=choice([q_proj, v_proj],[q_proj])"), ["[q_proj, v_proj]", "[q_proj]"]);
        assert_eq!(axis("metadata.owner=choice('a,b',c)"), ["'a,b'", "c"]);
        assert_eq!(axis("data.weights.mine=choice(1,2)"), ["1", "2"]);
    }

    #[test]
    fn refused_axes() {
        for text in ["seed", "seed=1,2", "seed=choice(1", "=choice(1)", "seed=grid(1)"] {
            assert!(refused(text).contains("is no part of a sweep: write KEY=choice(A,B)"), "{text}");
        }
        assert_eq!(
            refused("training.learning_rat=choice(1)"),
            "the key training.learning_rat does not exist (did you mean training.learning_rate?): use seed, template or a setting"
        );
        assert!(refused("training=choice(1)").contains("does not exist"));
        assert!(refused("seed=choice()").starts_with("seed has an empty value"));
        assert!(refused("seed=choice(1,,2)").starts_with("seed has an empty value"));
        assert!(refused("seed=choice(1,1)").starts_with("seed has the value 1 twice"));
        for text in ["range()", "range(a)", "range(1,2,3,4)", "range(1e99)", "range(1.5.2)"] {
            assert!(refused(&format!("seed={text}")).contains("write range(STOP)"), "{text}");
        }
        assert!(refused("seed=range(0,1,0)").ends_with("write a step that is not 0"));
        assert!(refused("seed=range(2,1)").contains("it is empty"));
        assert!(refused("seed=range(1000000)").ends_with("write fewer than 4096 values"));
        assert!(refused("seed=glob(*)").contains("has no list of values"));
        assert!(refused("template=glob(bert*)").contains("it matches none of answers-only"));
    }

    #[test]
    fn every_combination_is_a_point() {
        let axes = [
            Axis::parse("seed=range(2)").expect("good"),
            Axis::parse("training.dtype=choice(fp32,bf16)").expect("good"),
        ];
        let found = points(&axes, 4).expect("four points");
        let written: Vec<String> = found
            .iter()
            .map(|point| point.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(
            written,
            [
                "seed=0 training.dtype=fp32",
                "seed=0 training.dtype=bf16",
                "seed=1 training.dtype=fp32",
                "seed=1 training.dtype=bf16"
            ]
        );
        assert_eq!(
            points(&axes, 3).expect_err("one too many").to_string(),
            "the sweep has 4 points: write at most 3, or raise the bound with --most"
        );
        let twice = [axes[0].clone(), axes[0].clone()];
        assert_eq!(points(&twice, 99).expect_err("twice").to_string(), "seed is swept twice: keep one of the two");
    }

    #[test]
    fn names_have_keys_and_values() {
        let point = |items: &[(&str, &str)]| -> Point {
            items.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let found = names(
            "cot",
            &[
                point(&[("training.learning_rate", "0.001"), ("seed", "1")]),
                point(&[("training.learning_rate", "3e-3")]),
            ],
        );
        assert_eq!(found, ["cot-learning-rate-0-001-seed-1", "cot-learning-rate-3e-3"]);
        let alike = names("cot", &[point(&[("seed", "1.0")]), point(&[("seed", "1-0")])]);
        assert!(alike.iter().all(|name| name.starts_with("cot-seed-1-0-") && name.len() == "cot-seed-1-0-".len() + 8));
        assert_ne!(alike[0], alike[1]);
        let long = names("cot", &[point(&[("metadata.owner", &"x".repeat(60))])]);
        assert_eq!((long.len(), long[0].len()), (1, MAX_NAME));
        assert!(names("7.b", &[point(&[("seed", "1")])])[0].starts_with("s-7-b-seed-1-"));
    }

    #[test]
    fn patterns() {
        for (pattern, word, holds) in [
            ("*", "", true),
            ("*", "a", true),
            ("a*", "abc", true),
            ("*c", "abc", true),
            ("a*c", "ac", true),
            ("a*b*c", "aXbYc", true),
            ("ab*ba", "aba", false),
            ("a", "ab", false),
            ("", "", true),
        ] {
            assert_eq!(matches(pattern, word), holds, "{pattern} {word}");
        }
    }

    proptest! {
        #[test]
        fn names_are_labels_and_differ(
            base in "[a-zA-Z0-9._-]{0,60}",
            values in prop::collection::btree_set("[ -~é]{0,40}", 1..12),
        ) {
            let points: Vec<Point> =
                values.iter().map(|value| vec![("metadata.owner".to_owned(), value.clone())]).collect();
            let found = names(&base, &points);
            let distinct: std::collections::BTreeSet<_> = found.iter().collect();
            prop_assert_eq!(distinct.len(), found.len());
            for name in &found {
                let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
                prop_assert!((1..=MAX_NAME).contains(&name.len()) && name.bytes().all(good), "{}", name);
                prop_assert!(name.starts_with(|first: char| first.is_ascii_lowercase()) && !name.ends_with('-'), "{}", name);
            }
            prop_assert_eq!(&found, &names(&base, &points), "the same points have the same names");
        }

        #[test]
        fn any_text_is_an_axis_or_refused(text in "[-a-z0-9_.=,()*\"' ]{0,40}", inside in "[-0-9.e,+ ]{0,30}") {
            for text in [text, format!("seed=range({inside})"), format!("training.dtype=glob({inside}*)")] {
                if let Ok(axis) = Axis::parse(&text) {
                    prop_assert!(!axis.values.is_empty() && axis.values.iter().all(|value| !value.is_empty()));
                }
            }
        }

        #[test]
        fn ranges_are_those_of_whole_numbers(
            start in -50_i64..50,
            stop in -50_i64..50,
            step in prop_oneof![-7_i64..=-1, 1_i64..=7],
        ) {
            let mut wanted = Vec::new();
            let mut value = start;
            while if step > 0 { value < stop } else { value > stop } {
                wanted.push(value.to_string());
                value += step;
            }
            let values = |form: String| Axis::parse(&form).map(|axis| axis.values).unwrap_or_default();
            prop_assert_eq!(values(format!("seed=range({start},{stop},{step})")), wanted.clone());
            // The same, a hundred times smaller.
            let small = values(format!("seed=range({start}e-2,{stop}e-2,{step}e-2)"));
            prop_assert_eq!(small.len(), wanted.len());
            for (found, wanted) in small.iter().zip(&wanted) {
                let (found, wanted): (f64, f64) = (found.parse().expect("a number"), wanted.parse().expect("a number"));
                prop_assert!((found * 100.0 - wanted).abs() < 1e-9, "{} {}", found, wanted);
            }
        }
    }
}
