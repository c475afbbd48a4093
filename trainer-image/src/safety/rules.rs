//! Rules and the check of a text by them. Pure.

use std::{collections::BTreeMap, io, ops::Range, path::PathBuf};

use codex_configs::SafetySettings;
use regex::{Regex, RegexBuilder};
use serde::{Deserialize, Serialize};

use super::{
    Checked, Hit, MAX_RULES,
    known::{self, FORMS, Group},
};

/// What stands in the place of a redacted text.
const REDACTED: &str = "{REDACTED}";
/// The most characters of an answer, if the rules say nothing else.
const OUTPUT_CAP: usize = 8_000;
/// The most rules of a file.
const MAX: usize = 1_000;
/// The most bytes of a compiled pattern.
const MAX_PATTERN: usize = 1 << 20;

/// What a rule does with a text that it hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Refuses the text.
    Block,
    /// Cancels blocks.
    Allow,
    /// Replaces what it matches.
    Redact,
}

impl Action {
    /// Returns its name in rules and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Block => "block",
            Self::Allow => "allow",
            Self::Redact => "redact",
        }
    }
}

/// Which texts a rule checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// What clients send.
    Prompt,
    /// What the model answers.
    Answer,
}

impl Direction {
    /// Returns its name in rules and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prompt => "prompt",
            Self::Answer => "answer",
        }
    }
}

/// A reason why there are no rules.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    /// The file cannot be read.
    #[error("the safety rules {path:?} cannot be read")]
    Unreadable {
        /// The path.
        path: PathBuf,
        /// The I/O error.
        #[source]
        source: io::Error,
    },
    /// A rule is invalid.
    #[error("the safety rules are invalid: {0}")]
    Invalid(String),
}

impl RulesError {
    /// Returns the error of a file with more bytes than rules may have.
    pub(crate) fn too_large() -> Self {
        Self::Invalid(format!("they have more than {MAX_RULES} bytes"))
    }
}

/// The file of rules.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Written {
    #[serde(default)]
    rules: Vec<WrittenRule>,
    /// Groups of known forms, and what is done with them.
    #[serde(default)]
    known: BTreeMap<Group, Action>,
    output_cap: Option<usize>,
}

/// A rule as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct WrittenRule {
    id: String,
    action: Action,
    literal: Option<String>,
    regex: Option<String>,
    #[serde(default)]
    ignore_case: bool,
    on: Option<Vec<Direction>>,
}

#[derive(Debug)]
struct Rule {
    id: String,
    action: Action,
    pattern: Regex,
    is_real: fn(&str) -> bool,
    on: Option<Direction>,
}

/// Compiled rules.
#[derive(Debug)]
pub struct Rules {
    rules: Vec<Rule>,
    output_cap: usize,
}

impl Rules {
    /// Reads rules from YAML.
    ///
    /// # Errors
    /// The text is no YAML, has other fields, or a rule is invalid.
    pub fn parse(bytes: &[u8]) -> Result<Self, RulesError> {
        Self::of(serde_yaml::from_slice(bytes).map_err(|why| RulesError::Invalid(why.to_string()))?)
    }

    /// Returns the rules over data: those of a file, if there is one, and an action for the groups of known forms that settings name.
    ///
    /// # Errors
    /// As [`parse`](Self::parse), or the file has an action for one of the groups.
    pub(crate) fn of_data(file: Option<&[u8]>, settings: &SafetySettings) -> Result<Self, RulesError> {
        let invalid = |why: serde_yaml::Error| RulesError::Invalid(why.to_string());
        let mut written: Written = file.map(serde_yaml::from_slice).transpose().map_err(invalid)?.unwrap_or_default();
        for (names, action) in [(&settings.block, Action::Block), (&settings.redact, Action::Redact)] {
            for name in names {
                let group = serde_yaml::from_str(name).map_err(invalid)?;
                if written.known.insert(group, action).is_some() {
                    let why =
                        format!("known.{name}: data.safety.{} has it, too: write it in one of them", action.name());
                    return Err(RulesError::Invalid(why));
                }
            }
        }
        Self::of(written)
    }

    fn of(written: Written) -> Result<Self, RulesError> {
        let cap = written.output_cap.unwrap_or(OUTPUT_CAP);
        if cap == 0 {
            return Err(RulesError::Invalid("outputCap: 0 characters: use at least 1".to_owned()));
        }
        if written.rules.len() > MAX {
            return Err(RulesError::Invalid(format!("rules: there are {}: use at most {MAX}", written.rules.len())));
        }
        let mut rules: Vec<Rule> = Vec::new();
        for (at, rule) in written.rules.into_iter().enumerate() {
            let rule = rule.compile().map_err(|why| RulesError::Invalid(format!("rules[{at}].{why}")))?;
            if rules.iter().any(|other| other.id == rule.id) {
                return Err(RulesError::Invalid(format!("rules[{at}].id: {:?} is used twice: rename one", rule.id)));
            }
            rules.push(rule);
        }
        for form in FORMS {
            if let Some(action) = written.known.get(&form.group) {
                let pattern = Regex::new(form.pattern).map_err(|why| RulesError::Invalid(why.to_string()))?;
                rules.push(Rule { id: form.id.to_owned(), action: *action, pattern, is_real: form.is_real, on: None });
            }
        }
        Ok(Self { rules, output_cap: cap })
    }

    /// Returns the number of rules.
    pub(crate) fn len(&self) -> usize {
        self.rules.len()
    }

    /// Checks a text.
    pub fn check(&self, text: &str, direction: Direction) -> Checked {
        let cap = (direction == Direction::Answer).then_some(self.output_cap);
        self.check_up_to(text, Some(direction), cap)
    }

    /// Checks a text of training data, by the rules of both directions without one. It is not cut at the cap of answers.
    pub(crate) fn check_data(&self, text: &str, direction: Option<Direction>) -> Checked {
        self.check_up_to(text, direction, None)
    }

    fn check_up_to(&self, text: &str, direction: Option<Direction>, cap: Option<usize>) -> Checked {
        let mut hits = Vec::new();
        let mut redacted: Vec<Range<usize>> = Vec::new();
        let end = cap.and_then(|cap| text.char_indices().nth(cap)).map_or(text.len(), |(at, _)| at);
        let cut = end < text.len();
        let concerns = |rule: &&Rule| rule.on.is_none() || direction.is_none() || rule.on == direction;
        for rule in self.rules.iter().filter(concerns) {
            let found: Vec<Range<usize>> = known::matches(&rule.pattern, rule.is_real, text).collect();
            if found.is_empty() {
                continue;
            }
            hits.push(Hit { rule: rule.id.clone(), action: rule.action, count: found.len() });
            if rule.action == Action::Redact {
                redacted.extend(found);
            }
        }
        let has = |action| hits.iter().any(|hit: &Hit| hit.action == action);
        if has(Action::Block) && !has(Action::Allow) {
            return Checked { text: None, hits, cut: false };
        }
        let whole = without(text, redacted, end);
        Checked { text: Some(whole), hits, cut }
    }
}

impl WrittenRule {
    fn compile(self) -> Result<Rule, String> {
        let named = |character: char| character.is_ascii_alphanumeric() || "._-".contains(character);
        if self.id.is_empty() || self.id.len() > 63 || !self.id.chars().all(named) {
            return Err(format!("id: {:?}: use 1 to 63 letters, digits, dots, dashes and underscores", self.id));
        }
        if FORMS.iter().any(|form| form.id == self.id) {
            return Err(format!("id: {:?} is the id of a known form: use another", self.id));
        }
        let pattern = match (self.literal, self.regex) {
            (Some(literal), None) if !literal.is_empty() => regex::escape(&literal),
            (None, Some(regex)) if !regex.is_empty() => regex,
            _ => return Err("literal: write either literal or regex, not empty".to_owned()),
        };
        let compiled = RegexBuilder::new(&pattern).case_insensitive(self.ignore_case).size_limit(MAX_PATTERN).build();
        let pattern = compiled.map_err(|why| format!("regex: {}", why.to_string().replace('\n', " ")))?;
        if pattern.is_match("") {
            return Err("regex: it matches the empty text, so that it would hit every text".to_owned());
        }
        let on = match self.on.as_deref() {
            None => None,
            Some([]) => return Err("on: write prompt, answer or both, or leave it out".to_owned()),
            Some([one, rest @ ..]) => rest.iter().all(|other| other == one).then_some(*one),
        };
        Ok(Rule { id: self.id, action: self.action, pattern, is_real: |_| true, on })
    }
}

/// Returns the text up to `end` with the ranges replaced. What is redacted across the end is redacted whole.
fn without(text: &str, mut ranges: Vec<Range<usize>>, end: usize) -> String {
    ranges.sort_by_key(|range| (range.start, range.end));
    let (mut kept, mut done) = (String::with_capacity(text.len()), 0);
    for range in ranges {
        if range.start >= end {
            break;
        }
        if range.start >= done {
            kept.push_str(&text[done..range.start]);
            kept.push_str(REDACTED);
        }
        done = done.max(range.end);
    }
    if done < end {
        kept.push_str(&text[done..end]);
    }
    kept
}
