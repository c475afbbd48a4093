//! Why a tracker cannot be written to, and what becomes of it: a line in the log and a count.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use prometheus::IntCounter;

use crate::{atomic_fs::FileError, error::chain, hub::HubError};

/// A tracker cannot be written to.
#[derive(Debug, thiserror::Error)]
pub enum TrackingError {
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// The rows of the run so far are unknown.
    #[error("the ledger cannot be read: {0}")]
    Ledger(String),
    /// Rows cannot be written as a table.
    #[error("rows cannot be written as CSV")]
    Csv(#[from] csv::Error),
    /// A variable does not name a server.
    #[error("{variable} {wrong}: {right}")]
    Variable {
        /// The variable.
        variable: &'static str,
        /// What is wrong with it.
        wrong: &'static str,
        /// What to do.
        right: &'static str,
    },
    /// The certificates that are trusted cannot be used.
    #[error(transparent)]
    Certificates(#[from] HubError),
    /// The thread that sends cannot be started.
    #[error("the thread that sends to the server cannot be started")]
    Thread(#[source] std::io::Error),
    /// There is no answer.
    #[error("{url} does not answer")]
    NoAnswer {
        /// The address.
        url: String,
        /// The client's error.
        #[source]
        source: Box<ureq::Error>,
    },
    /// The server refuses a request.
    #[error("{url} answered with status {status}{}", if told.is_empty() { String::new() } else { format!(": {told}") })]
    Refused {
        /// The address.
        url: String,
        /// The HTTP status.
        status: u16,
        /// The server's code and the start of its message.
        told: String,
    },
    /// The answer is not that of MLflow.
    #[error("the answer of {url} has no {field}: it is not a tracking server of MLflow")]
    Answer {
        /// The address.
        url: String,
        /// The missing field.
        field: &'static str,
    },
    /// The server is slower than the run.
    #[error("{0} rows are lost to the server, because it takes them too slowly or not at all")]
    Lost(usize),
    /// The attempt ended before the server had all rows.
    #[error("the server has not received all rows before the attempt ended")]
    Unsent,
    /// The registry did not answer in time.
    #[error("the registry has not answered before the run ended")]
    Unregistered,
    /// MLflow takes directories below one of this name for files of a run, and reads no runs there.
    #[error("{path:?} is below a directory named artifacts, where MLflow reads no runs: name another directory")]
    BelowArtifacts {
        /// The directory.
        path: std::path::PathBuf,
    },
    /// An event file of another run is in the directory.
    #[error("{path:?} has event files of another run or export: name an empty directory")]
    ForeignEvents {
        /// The directory.
        path: std::path::PathBuf,
    },
}

impl TrackingError {
    /// Whether the same request may succeed later.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::NoAnswer { .. } => true,
            Self::Refused { status, .. } => *status == 429 || *status >= 500,
            _ => false,
        }
    }
}

/// Logs and counts the failures of one tracker.
#[derive(Clone, Debug)]
pub(super) struct Failures {
    tracker: &'static str,
    counter: Option<IntCounter>,
    /// Whether the latest write failed.
    failing: Arc<AtomicBool>,
}

impl Failures {
    /// Creates the failures of a tracker that has none yet.
    pub(super) fn new(tracker: &'static str, counter: Option<IntCounter>) -> Self {
        Self { tracker, counter, failing: Arc::default() }
    }

    /// Returns the failures of another part of the tracker, which are counted together and logged apart.
    pub(super) fn apart(&self) -> Self {
        Self { failing: Arc::default(), ..self.clone() }
    }

    /// Counts a failure, and logs the first of several in a row and the end of them.
    pub(super) fn observe(&self, written: Result<(), TrackingError>) {
        match written {
            Ok(()) if self.failing.swap(false, Ordering::Relaxed) => {
                tracing::info!(tracker = self.tracker, "the tracker can be written again");
            }
            Ok(()) => {}
            Err(error) => {
                self.count();
                if !self.failing.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        tracker = self.tracker,
                        error = chain(&error),
                        "the tracker cannot be written; training goes on, and the ledger has all metrics"
                    );
                }
            }
        }
    }

    /// Counts and logs that the tracker cannot be used in this attempt.
    pub(super) fn unusable(&self, error: &TrackingError) {
        self.count();
        tracing::warn!(
            tracker = self.tracker,
            error = chain(error),
            "the tracker is not used in this attempt; training goes on, and the ledger has all metrics"
        );
    }

    /// Counts and logs that the model of the run is not registered.
    pub(super) fn unregistered(&self, error: &TrackingError) {
        self.count();
        tracing::warn!(
            tracker = self.tracker,
            error = chain(error),
            "the model is not registered with MLflow; the run has finished, and its model is written"
        );
    }

    fn count(&self) {
        if let Some(counter) = &self.counter {
            counter.inc();
        }
    }
}
