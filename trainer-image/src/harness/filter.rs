//! Filters: what of a response is compared. Pure. Names and effects are those of lm-evaluation-harness.

use std::collections::BTreeMap;

use regex::Regex;

use super::{HarnessError, read::Section};

/// The largest compiled size of a regular expression, in bytes.
const MAX_REGEX: usize = 1 << 20;
/// The functions.
const FUNCTIONS: &str =
    "regex, remove_whitespace, lowercase, uppercase, map, take_first, take_first_k and majority_vote";

/// One function of a filter. It maps the responses to a document.
#[derive(Clone, Debug)]
enum Function {
    /// The match of a regular expression.
    Regex {
        pattern: Regex,
        group_select: i64,
        fallback: String,
    },
    /// The text without white space at its beginning.
    RemoveWhitespace,
    Lowercase,
    Uppercase,
    Map {
        mapping: BTreeMap<String, String>,
        default: Option<String>,
    },
    TakeFirst,
    TakeFirstK(usize),
    /// The most frequent response, the first of equally frequent ones.
    MajorityVote,
}

/// A filter.
#[derive(Clone, Debug)]
pub(super) struct Filter {
    pub(super) name: String,
    functions: Vec<Function>,
}

/// Compiles a regular expression.
///
/// # Errors
/// What to write instead.
pub(super) fn regex(pattern: &str) -> Result<Regex, &'static str> {
    let compiled = regex::RegexBuilder::new(pattern).size_limit(MAX_REGEX).build();
    compiled.map_err(|_| "write a regular expression without look-around and back-references, such as (-?[0-9.,]+)")
}

impl Filter {
    /// Returns the filter of a task that lists none: the first response.
    pub(super) fn none() -> Self {
        Self { name: "none".to_owned(), functions: vec![Function::TakeFirst] }
    }

    /// Reads a filter.
    ///
    /// # Errors
    /// A function is unknown, has a wrong argument, or the last one leaves several responses.
    pub(super) fn read(section: Section<'_>) -> Result<Self, HarnessError> {
        let Some(name) = section.text("name")? else {
            return Err(section.refuse("name", "is missing: name the filter"));
        };
        let known = ["function", "regex_pattern", "group_select", "fallback", "mapping_dict", "default_value", "k"];
        let steps = section.sections("filter", &known)?.unwrap_or_default();
        let functions = steps.into_iter().map(Function::read).collect::<Result<Vec<_>, _>>()?;
        if !matches!(functions.last(), Some(Function::TakeFirst)) {
            return Err(
                section.refuse("filter", "must end with {function: take_first}, so that one response is compared")
            );
        }
        Ok(Self { name: name.to_owned(), functions })
    }

    /// Returns what is compared of the responses to a document.
    pub(super) fn apply(&self, responses: &[String]) -> String {
        let left = self.functions.iter().fold(responses.to_vec(), |responses, function| function.apply(responses));
        left.into_iter().next().unwrap_or_default()
    }
}

impl Function {
    fn read(section: Section<'_>) -> Result<Self, HarnessError> {
        let unused = |allowed: &[&str]| {
            let arguments = ["regex_pattern", "group_select", "fallback", "mapping_dict", "default_value", "k"];
            let other = arguments.into_iter().find(|name| section.value(name).is_some() && !allowed.contains(name));
            other.map_or(Ok(()), |name| Err(section.refuse(name, "has no effect on this function: remove it")))
        };
        let function = section.text("function")?.unwrap_or_default();
        let (read, allowed): (Self, &[&str]) = match function {
            "regex" => {
                // The default of the harness.
                let text = section.text("regex_pattern")?.unwrap_or(r"#### (\-?[0-9\.\,]+)");
                let pattern = regex(text).map_err(|why| section.refuse("regex_pattern", why))?;
                let group_select = match section.value("group_select") {
                    None => 0,
                    Some(value) => {
                        value.as_i64().ok_or_else(|| section.refuse("group_select", "write a whole number"))?
                    }
                };
                let fallback = section.text("fallback")?.unwrap_or("[invalid]").to_owned();
                (Self::Regex { pattern, group_select, fallback }, &["regex_pattern", "group_select", "fallback"])
            }
            "remove_whitespace" => (Self::RemoveWhitespace, &[]),
            "lowercase" => (Self::Lowercase, &[]),
            "uppercase" => (Self::Uppercase, &[]),
            "take_first" => (Self::TakeFirst, &[]),
            "take_first_k" => {
                let k =
                    section.whole("k", 1, 1024)?.ok_or_else(|| section.refuse("k", "is missing: write a number"))?;
                (Self::TakeFirstK(usize::try_from(k).unwrap_or(usize::MAX)), &["k"])
            }
            "majority_vote" => (Self::MajorityVote, &[]),
            "map" => {
                let wrong = || section.refuse("mapping_dict", "write a mapping of texts to texts");
                let mapping = section.value("mapping_dict").and_then(|value| value.as_mapping()).ok_or_else(wrong)?;
                let pair = |(key, value): (&serde_yaml::Value, &serde_yaml::Value)| {
                    Some((key.as_str()?.to_owned(), value.as_str()?.to_owned()))
                };
                let mapping = mapping.iter().map(pair).collect::<Option<_>>().ok_or_else(wrong)?;
                let default = section.text("default_value")?.map(str::to_owned);
                (Self::Map { mapping, default }, &["mapping_dict", "default_value"])
            }
            "" => return Err(section.refuse("function", format!("is missing: use {FUNCTIONS}"))),
            other => {
                return Err(section.refuse("function", format!("{other:?} is not supported: use {FUNCTIONS}")));
            }
        };
        unused(allowed)?;
        Ok(read)
    }

    fn apply(&self, responses: Vec<String>) -> Vec<String> {
        let each = |change: &dyn Fn(&str) -> String| responses.iter().map(|text| change(text)).collect();
        match self {
            Self::Regex { pattern, group_select, fallback } => {
                each(&|text| matched(pattern, *group_select, text).unwrap_or_else(|| fallback.clone()))
            }
            Self::RemoveWhitespace => each(&|text| text.trim_start().to_owned()),
            Self::Lowercase => each(&str::to_lowercase),
            Self::Uppercase => each(&str::to_uppercase),
            Self::Map { mapping, default } => {
                each(&|text| mapping.get(text).or(default.as_ref()).cloned().unwrap_or_default())
            }
            Self::TakeFirst => responses.into_iter().take(1).collect(),
            Self::TakeFirstK(k) => responses.into_iter().take(*k).collect(),
            Self::MajorityVote => {
                let count = |text: &String| responses.iter().filter(|other| *other == text).count();
                let most = responses.iter().map(&count).max().unwrap_or_default();
                responses.iter().find(|text| count(text) == most).cloned().into_iter().collect()
            }
        }
    }
}

/// Returns the match number `select` of a pattern, counted from the end if it is negative: of a pattern with one group, that group; of one
/// with more, the first that is not empty.
fn matched(pattern: &Regex, select: i64, text: &str) -> Option<String> {
    let all: Vec<_> = pattern.captures_iter(text).collect();
    let at = if select < 0 {
        all.len().checked_sub(usize::try_from(-select).ok()?)?
    } else {
        usize::try_from(select).ok()?
    };
    let found = all.get(at)?;
    let text = if found.len() <= 2 {
        found.get(found.len() - 1).map_or("", |group| group.as_str())
    } else {
        found.iter().skip(1).flatten().map(|group| group.as_str()).find(|group| !group.is_empty())?
    };
    Some(text.trim().to_owned())
}
