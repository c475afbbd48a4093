//! Safety rules on the prompts and answers of a server. Does I/O for its log.

use std::{
    fmt, io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{errors::Errors, metrics::Metrics};
use crate::safety::{Checked, Direction, Guard, Log, RulesError};

/// The rules and the log of a server.
pub(super) struct Filter {
    guard: Guard,
    log: Log,
    errors: Arc<Errors>,
    metrics: Arc<Metrics>,
}

/// Where the rules are, and where events go.
#[derive(Clone, Debug, Default)]
pub(super) struct Settings {
    /// The rule file; `None` checks nothing.
    pub(super) rules: Option<PathBuf>,
    /// The file that events are appended to; `-` is standard output.
    pub(super) events: Option<PathBuf>,
}

/// A reason why texts cannot be checked.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// The rules are invalid or cannot be read.
    #[error(transparent)]
    Rules(#[from] RulesError),
    /// The log cannot be opened.
    #[error("the safety events {path:?} cannot be written")]
    Events {
        /// Its path.
        path: PathBuf,
        /// The I/O error.
        #[source]
        source: io::Error,
    },
}

impl Filter {
    /// Reads the rules; `None` if there are none.
    ///
    /// # Errors
    /// The rules or the log cannot be used.
    pub(super) fn new(
        settings: &Settings,
        errors: Arc<Errors>,
        metrics: Arc<Metrics>,
    ) -> Result<Option<Arc<Self>>, FilterError> {
        let Some(rules) = &settings.rules else { return Ok(None) };
        let guard = Guard::new(rules)?;
        let log = Log::open(settings.events.as_deref()).map_err(|source| {
            let path = settings.events.clone().unwrap_or_default();
            FilterError::Events { path, source }
        })?;
        Ok(Some(Arc::new(Self { guard, log, errors, metrics })))
    }

    /// Reads the rules again.
    ///
    /// # Errors
    /// One sentence: no text is admitted, because the rules are invalid or cannot be read.
    pub(super) fn reload(&self) -> Result<(), String> {
        self.guard.reload();
        self.guard.rules().map(drop)
    }
}

/// The check of the texts of one request.
#[derive(Clone)]
pub(super) struct Check {
    filter: Arc<Filter>,
    /// The path of the request.
    source: &'static str,
    /// The name of the API key.
    key: Arc<str>,
    /// Whether a text of the request was refused.
    refused: Arc<AtomicBool>,
}

impl fmt::Debug for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Check").field("source", &self.source).finish_non_exhaustive()
    }
}

/// Why a text is not used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    /// A rule blocks it.
    #[error("refused by the safety rule {0:?}")]
    Blocked(String),
    /// It cannot be checked.
    #[error("{0}; no text is admitted without a check")]
    Unchecked(String),
}

impl Check {
    pub(super) fn new(filter: Arc<Filter>, source: &'static str, key: &str) -> Self {
        Self { filter, source, key: key.into(), refused: Arc::default() }
    }

    /// Counts the request as refused, once for all its texts.
    pub(super) fn refuse(&self, direction: Direction) {
        if !self.refused.swap(true, Ordering::Relaxed) {
            self.filter.metrics.refused_by_rule(direction);
        }
    }

    /// Returns what is left of a text, and whether it was cut.
    ///
    /// # Errors
    /// A rule blocks it, or it cannot be checked or recorded.
    pub(super) fn text(&self, text: &str, direction: Direction) -> Result<(String, bool), Refusal> {
        let rules = self.filter.guard.rules().map_err(Refusal::Unchecked)?;
        let checked = rules.check(text, direction);
        for hit in &checked.hits {
            self.filter.metrics.hit(hit, direction, checked.text.is_none());
        }
        let recorded = self.filter.log.record(&checked, direction, self.source, &self.key);
        let recorded = recorded.map_err(|error| format!("the safety event cannot be recorded: {error}"));
        if !checked.hits.is_empty() {
            self.filter.errors.safety_events(recorded.clone());
        }
        recorded.map_err(Refusal::Unchecked)?;
        let rule = checked.blocked_by().map(str::to_owned);
        let Checked { text, cut, .. } = checked;
        if text.is_none() {
            self.refuse(direction);
        }
        text.map(|text| (text, cut)).ok_or_else(|| Refusal::Blocked(rule.unwrap_or_default()))
    }
}
