//! Errors of `codex metrics`, and their exit codes. Pure.

use std::path::PathBuf;

use codex_provenance::text::counted;
use codex_reports::exit;

use crate::{
    artifacts::ledger::LineError, atomic_fs::FileError, error::CommandError, gating::GatingError, overlap::Overlap,
    tracking::TrackingError,
};

/// Metrics cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The directory has no ledger.
    #[error(
        "{0:?} has no metrics ledger: name a run's directory (it holds artifacts/metrics.ndjson) or a metrics.ndjson; all commands \
         but tail also take an evaluation's directory (it holds evaluation.json)"
    )]
    NoLedger(PathBuf),
    /// A line of the ledger is invalid.
    #[error("{}:{line}: invalid ledger row: {why} ({bad} of {lines} lines are invalid; --skip-bad ignores them)", path.display())]
    BadLine {
        /// The ledger.
        path: PathBuf,
        /// The first invalid line, counted from 1.
        line: usize,
        /// Number of invalid lines.
        bad: usize,
        /// Number of lines.
        lines: usize,
        /// What is wrong with the first one.
        #[source]
        why: LineError,
    },
    /// `validate` found invalid lines and has printed them.
    #[error("{bad} of {lines} lines are invalid")]
    Invalid {
        /// Number of invalid lines.
        bad: usize,
        /// Number of lines.
        lines: usize,
    },
    /// The ledger has no rows.
    #[error("{0:?} has no rows yet")]
    Empty(PathBuf),
    /// No run has the metric.
    #[error("--metric {name:?} is unknown: use one of {known}")]
    UnknownMetric {
        /// The metric.
        name: String,
        /// The metrics of the runs.
        known: String,
    },
    /// `compare` was given one run.
    #[error("compare needs at least two runs; one was given")]
    OneRun,
    /// Runs and evaluations are named together.
    #[error("{} is an evaluation, but {} is not: name runs only, or evaluations only", evaluation.display(), other.display())]
    Mixed {
        /// An evaluation.
        evaluation: PathBuf,
        /// A path that is not an evaluation.
        other: PathBuf,
    },
    /// An evaluation cannot be read, or contradicts its digest or its outcomes.
    #[error(transparent)]
    Evaluation(#[from] GatingError),
    /// The records of an evaluation are not those that were counted.
    #[error("{}: {right} of {} are right, but evaluation.json counts {successes} of {n}: evaluate again", path.display(), counted(*records, "record"))]
    Records {
        /// The records.
        path: PathBuf,
        /// Number of right ones.
        right: u64,
        /// Number of records.
        records: usize,
        /// Number of right answers in the results.
        successes: u64,
        /// Number of problems in the results.
        n: u64,
    },
    /// The records of an evaluation over clusters are not as many as were counted.
    #[error("{}: it has {}, but evaluation.json counts {items}: evaluate again", path.display(), counted(*records, "record"))]
    Clustered {
        /// The records.
        path: PathBuf,
        /// Number of records.
        records: usize,
        /// Number of problems in the clusters of the results.
        items: u64,
    },
    /// An option is for runs only.
    #[error("{0} is for runs: evaluations are ordered by the bound that counts against the model; remove {0}")]
    RunsOnly(&'static str),
    /// The output is neither SVG nor PNG.
    #[error("--output {0:?} has an unknown extension: use .svg or .png")]
    Picture(PathBuf),
    /// The picture would replace a ledger, or change a model or checkpoint.
    #[error(transparent)]
    Overlap(#[from] Overlap),
    /// The metrics cannot be written in another form.
    #[error(transparent)]
    Export(TrackingError),
    /// A logarithmic axis cannot show the value.
    #[error("--log needs values above 0, but {metric} of {run} is {value} at step {step}: omit --log")]
    NotPositive {
        /// The metric.
        metric: String,
        /// The run.
        run: String,
        /// The step.
        step: u64,
        /// The value.
        value: f64,
    },
    /// The picture cannot be drawn.
    #[error("the picture cannot be drawn: {0}")]
    Drawing(String),
    /// The system refused a signal handler.
    #[error("--follow cannot install its signal handlers")]
    Signals(#[source] std::io::Error),
}

impl MetricsError {
    /// Returns the exit code: another attempt helps only if the file system or the drawing failed.
    pub(super) fn exit(&self) -> i32 {
        match self {
            Self::File(error) => error.exit(),
            Self::Drawing(_) | Self::Signals(_) | Self::Export(TrackingError::Csv(_)) => exit::FAILED,
            _ => exit::BAD_INPUT,
        }
    }
}

impl From<TrackingError> for MetricsError {
    fn from(error: TrackingError) -> Self {
        match error {
            TrackingError::File(error) => Self::File(error),
            error => Self::Export(error),
        }
    }
}

impl From<MetricsError> for CommandError {
    fn from(error: MetricsError) -> Self {
        Self { exit: error.exit(), source: Box::new(error) }
    }
}
