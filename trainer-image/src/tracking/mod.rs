//! Experiment trackers: the metrics of a run in the forms of the tools that teams have. Does I/O.
//!
//! The ledger `metrics.ndjson` stays the record of a run. Each tracker is a pure function of its rows and of the description of the
//! run ([`Described`]) to bytes or requests; a run applies it to its new rows, and `codex metrics export` to those of any ledger. A
//! tracker that fails says so once in the log and is counted. It never ends a run.

mod csv;
mod described;
mod error;
mod event;
mod export;
mod mlflow_files;
mod mlflow_registry;
mod mlflow_server;
mod tensorboard;
#[cfg(test)]
pub(crate) mod tests;
mod wandb;
mod wandb_record;

use std::path::Path;

use codex_configs::TrackingSettings;
use prometheus::IntCounter;

use self::{
    csv::Csv, described::Described, error::Failures, mlflow_files::MlflowFiles, mlflow_server::MlflowServer,
    tensorboard::TensorBoard, wandb::Wandb,
};
pub(crate) use self::{
    error::TrackingError,
    export::{Format, export},
    mlflow_registry::register,
};
use crate::{
    artifacts::{
        environment::variable,
        ledger::{self, Ledger, Row},
    },
    error::chain,
};

/// Names of the trackers, as values of the metric label `tracker`.
pub(crate) const NAMES: [&str; 5] =
    [csv::NAME, tensorboard::NAME, mlflow_files::NAME, mlflow_server::NAME, wandb::NAME];

/// Name of the tracker at MLflow's server, which counts failures of its registry, too.
pub(crate) const MLFLOW_SERVER: &str = mlflow_server::NAME;

/// How an attempt of a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// All steps are done.
    Finished,
    /// The attempt was asked to end. Another one may go on.
    Interrupted,
    /// The attempt failed. Another one may go on.
    Failed,
}

/// Something that rows of the metrics ledger are written to.
trait Tracker {
    /// Writes rows that the ledger has received.
    fn log(&mut self, rows: &[Row]) -> Result<(), TrackingError>;

    /// Records how the attempt ended.
    fn end(&mut self, ended: Ended) -> Result<(), TrackingError>;
}

/// What a tracker knows when an attempt starts.
struct Start<'a> {
    /// The `artifacts` directory of the run.
    artifacts: &'a Path,
    /// The description of the run.
    run: &'a Described,
    /// The rows that the ledger kept.
    history: &'a [Row],
    /// Step at which the attempt starts or resumes.
    step: u64,
}

/// The trackers of an attempt.
pub(crate) struct Trackers {
    active: Vec<(Box<dyn Tracker>, Failures)>,
}

impl Trackers {
    /// Starts the trackers that the settings ask for, in a run that starts or resumes at `step`. `run_metadata.json`,
    /// `config.yaml` and the ledger in `artifacts` must be those of this attempt. `counter` returns the counter of failures of a
    /// tracker, if metrics are served.
    pub(crate) fn start(
        settings: TrackingSettings,
        artifacts: &Path,
        step: u64,
        counter: impl Fn(&str) -> Option<IntCounter>,
    ) -> Self {
        let mut trackers = Self { active: Vec::new() };
        if settings == TrackingSettings::default() {
            return trackers;
        }
        let (run, lacking) = Described::read(artifacts, variable("CODEX_OBJECT_NAME"));
        for part in lacking {
            tracing::warn!("{part}: trackers do not show it");
        }
        let read = Ledger::read(&artifacts.join(ledger::FILE));
        let all: [(bool, &'static str, StartTracker); 5] = [
            (settings.csv, csv::NAME, |start, _| Ok(Box::new(Csv::start(start)?))),
            (settings.tensorboard, tensorboard::NAME, |start, _| Ok(Box::new(TensorBoard::start(start)?))),
            (settings.mlflow.files, mlflow_files::NAME, |start, _| Ok(Box::new(MlflowFiles::start(start)?))),
            (settings.mlflow.server, mlflow_server::NAME, |start, failures| {
                Ok(Box::new(MlflowServer::start(start, failures)?))
            }),
            (settings.wandb, wandb::NAME, |start, _| Ok(Box::new(Wandb::start(start)?))),
        ];
        for (_, name, start) in all.into_iter().filter(|(wanted, ..)| *wanted) {
            let failures = Failures::new(name, counter(name));
            let started = match &read {
                Ok(ledger) => start(&Start { artifacts, run: &run, history: &ledger.rows, step }, &failures),
                Err(error) => Err(TrackingError::Ledger(chain(error))),
            };
            match started {
                Ok(tracker) => trackers.active.push((tracker, failures)),
                Err(error) => failures.unusable(&error),
            }
        }
        trackers
    }

    /// Writes rows that the ledger has received to every tracker.
    pub(crate) fn log(&mut self, rows: &[Row]) {
        for (tracker, failures) in &mut self.active {
            failures.observe(tracker.log(rows));
        }
    }

    /// Records how the attempt ended. May wait a few seconds for a server.
    pub(crate) fn end(&mut self, ended: Ended) {
        for (tracker, failures) in &mut self.active {
            failures.observe(tracker.end(ended));
        }
    }
}

/// Starts a tracker, or says why it cannot be used.
type StartTracker = fn(&Start, &Failures) -> Result<Box<dyn Tracker>, TrackingError>;

/// Returns the settings of the run with these artifacts by their keys; `None` if its configuration is missing or damaged.
pub(crate) fn settings(artifacts: &Path) -> Option<Vec<(String, String)>> {
    Some(Described::read(artifacts, None).0.params).filter(|params| !params.is_empty())
}

/// Returns the name of a series as trackers show it, such as `train/loss`.
fn series(row: &Row) -> String {
    format!("{}/{}", row.split, row.metric)
}
