//! Safety rules over prompts, answers and training data: block, allow or redact texts, by literals, regular expressions and known forms of
//! secrets and personal data. Reads rule files; the checks are pure.
//!
//! A text is blocked if a rule that blocks hits and none that allows; matches of rules that redact are replaced by `{REDACTED}`
//! in any case. What cannot be checked is refused: rules that cannot be read or compiled admit no text.

mod command;
mod events;
mod known;
mod rules;
#[cfg(test)]
mod tests;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use codex_provenance::files;

pub(crate) use self::events::Log;
pub use self::{
    command::Safety,
    rules::{Action, Direction, Rules, RulesError},
};

/// The most bytes of a rule file; a ConfigMap holds no more.
pub(crate) const MAX_RULES: usize = 1 << 20;

/// What the rules say about a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// The text without what was redacted; `None` if it is blocked.
    pub text: Option<String>,
    /// The rules that hit, with the number of matches.
    pub hits: Vec<Hit>,
    /// Whether the text was cut at the cap of answers.
    pub cut: bool,
}

/// A rule that hit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hit {
    /// The id of the rule.
    pub rule: String,
    /// What the rule does.
    pub action: Action,
    /// The number of matches.
    pub count: usize,
}

impl Checked {
    /// Returns the rule that blocks the text.
    pub fn blocked_by(&self) -> Option<&str> {
        let block = self.hits.iter().find(|hit| hit.action == Action::Block);
        block.filter(|_| self.text.is_none()).map(|hit| hit.rule.as_str())
    }
}

/// Rules, or why there are none.
type Parsed = Result<Arc<Rules>, String>;

/// Rules of a file that may change.
pub(crate) struct Guard {
    path: PathBuf,
    /// The bytes that were read last, and the rules that they are; or why they are none.
    state: RwLock<(Vec<u8>, Parsed)>,
}

impl Guard {
    /// Reads rules.
    ///
    /// # Errors
    /// The file cannot be read, or a rule is invalid.
    pub(crate) fn new(path: &Path) -> Result<Self, RulesError> {
        let bytes = read(path)?;
        let rules = Rules::parse(&bytes)?;
        tracing::info!(rules = rules.len(), "prompts and answers are checked by safety rules");
        Ok(Self { path: path.to_owned(), state: RwLock::new((bytes, Ok(Arc::new(rules)))) })
    }

    /// Returns the rules, or why no text is admitted.
    pub(crate) fn rules(&self) -> Parsed {
        self.state.read().unwrap_or_else(PoisonError::into_inner).1.clone()
    }

    /// Reads the file again. Until it is valid again, no text is admitted.
    pub(crate) fn reload(&self) {
        let read = read(&self.path);
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        match read {
            Ok(bytes) if bytes == state.0 && state.1.is_ok() => {}
            Ok(bytes) => {
                let changed = bytes != state.0;
                let rules = Rules::parse(&bytes).map(Arc::new).map_err(|error| crate::error::chain(&error));
                match &rules {
                    Ok(rules) => tracing::info!(rules = rules.len(), "the safety rules changed"),
                    Err(why) if changed => tracing::error!("{why}; no text is admitted until they are valid"),
                    Err(_) => {}
                }
                *state = (bytes, rules);
            }
            Err(error) => {
                let why = crate::error::chain(&error);
                if state.1.is_ok() {
                    tracing::error!("{why}; no text is admitted until they can be read");
                }
                state.1 = Err(why);
            }
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, RulesError> {
    let unreadable = |source| RulesError::Unreadable { path: path.to_owned(), source };
    let bytes = files::read_start(path, MAX_RULES).map_err(unreadable)?;
    if bytes.len() > MAX_RULES {
        return Err(RulesError::too_large());
    }
    Ok(bytes)
}
