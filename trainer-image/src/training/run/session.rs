//! Settings and outcome of an attempt. Pure, except for notices.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use codex_configs::{Resolved, Training};
use codex_reports::{Former, Model, TrainingState};

use super::TrainerMetrics;
use crate::{
    artifacts::segments,
    reporting::Reporter,
    training::{Base, Required, TrainError},
};

/// Settings of an attempt.
pub struct Session<'a> {
    /// Resolved configuration.
    pub resolved: &'a Resolved<Training>,
    /// Model that the run starts from; `None` for random weights.
    pub base: Option<&'a Base>,
    /// Files of data that is not synthetic, by name.
    pub files: &'a [(String, PathBuf)],
    /// Directory of the run.
    pub output: &'a Path,
    /// Receiver of progress.
    pub reporter: &'a Reporter<TrainingState>,
    /// Prometheus metrics, if they are served.
    pub metrics: Option<&'a TrainerMetrics>,
    /// Returns whether the attempt should write a checkpoint and end; checked between any two pieces of work that may take long.
    pub stop: &'a (dyn Fn() -> bool + Sync),
    /// Whether to resume although the configuration has changed so that the bits of the result differ from those of an
    /// uninterrupted run.
    pub accept_other_bits: bool,
    /// What must compute the run.
    pub required: Option<&'a Required>,
    /// Former run with the same inputs, whose model the attempt may take instead of training.
    pub former: Option<&'a Former>,
    /// Time from SIGTERM to SIGKILL, if known.
    pub grace: Option<Duration>,
    /// The most bytes of a file of the ledgers and of the states; then it gets a number, and a new one begins.
    pub ledger_size: u64,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The model is written.
    Finished(Box<Model>),
    /// The attempt was interrupted after a checkpoint.
    Interrupted {
        /// Step of the checkpoint.
        step: u64,
    },
}

/// Name of the resolved configuration among the artifacts of a run.
pub(crate) const CONFIG: &str = "config.yaml";

impl<'a> Session<'a> {
    /// Creates an attempt that resumes only with an unchanged configuration and knows no grace period.
    pub fn new(
        resolved: &'a Resolved<Training>,
        files: &'a [(String, PathBuf)],
        output: &'a Path,
        reporter: &'a Reporter<TrainingState>,
        stop: &'a (dyn Fn() -> bool + Sync),
    ) -> Self {
        Self {
            resolved,
            base: None,
            files,
            output,
            reporter,
            metrics: None,
            stop,
            accept_other_bits: false,
            required: None,
            former: None,
            grace: None,
            ledger_size: segments::SIZE,
        }
    }

    /// Ends the attempt if it was asked to end.
    pub(super) fn check_stop(&self) -> Result<(), TrainError> {
        if (self.stop)() { Err(TrainError::Interrupted) } else { Ok(()) }
    }

    /// Logs and reports a notice.
    pub(super) fn notice(&self, notice: String) {
        tracing::warn!("{notice}");
        self.reporter.update(|state| state.notices.push(notice));
    }
}
