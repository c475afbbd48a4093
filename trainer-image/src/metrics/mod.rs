//! `codex metrics`: reads the metrics ledgers that runs leave, sums them up, follows, draws and compares them. Does I/O.
//!
//! A run is named by its directory, its `artifacts` or the ledger itself. A line that is no row is refused with its file, its
//! number and the reason, or, with `--skip-bad`, left out and counted.

mod compare;
mod plot;
mod series;
mod summary;
mod table;
mod tail;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use codex_reports::exit;

use self::series::Run;
use crate::{
    artifacts::ledger::{self, Ledger, LineError},
    atomic_fs::{self, FileError},
    error::CommandError,
};

/// Sum up, follow, draw and compare the metrics of runs.
#[derive(Debug, Args)]
pub struct Metrics {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// First, last, least and greatest value of every metric.
    Summarize(summary::Summarize),
    /// Check every line; those that are no rows are named, and the exit code is 2.
    Validate(Validate),
    /// The newest rows, and with --follow those to come.
    Tail(tail::Tail),
    /// Draw metrics over the steps, as SVG or PNG by the name of the output.
    Plot(plot::Plot),
    /// Two or more runs beside each other: what differs, and from which step on.
    Compare(compare::Compare),
}

/// Check every line.
#[derive(Debug, Args)]
struct Validate {
    /// Directories of runs, or ledgers.
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
}

/// Which runs are read, and how strictly.
#[derive(Debug, Args)]
struct Input {
    /// Directories of runs, or ledgers (`metrics.ndjson`).
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// Leave lines out that are no rows, and say how many.
    #[arg(long)]
    skip_bad: bool,
}

/// How a result is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A table for people.
    Text,
    /// JSON for programs.
    Json,
}

/// Why metrics cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// A file that cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A directory without a ledger.
    #[error(
        "{0:?} has no metrics ledger: name a run's directory (it holds artifacts/metrics.ndjson) or a metrics.ndjson"
    )]
    NoLedger(PathBuf),
    /// A line that is no row.
    #[error("{}:{line}: no row of the ledger: {why} ({bad} of {lines} lines are bad; --skip-bad leaves them out)", path.display())]
    BadLine {
        /// The ledger.
        path: PathBuf,
        /// The first bad line, counted from 1.
        line: usize,
        /// How many there are.
        bad: usize,
        /// Of how many.
        lines: usize,
        /// Why.
        #[source]
        why: LineError,
    },
    /// `validate` found bad lines and has named them.
    #[error("{bad} of {lines} lines are no rows of the ledger")]
    Invalid {
        /// How many.
        bad: usize,
        /// Of how many.
        lines: usize,
    },
    /// A ledger without a row.
    #[error("{0:?} has no rows yet")]
    Empty(PathBuf),
    /// A metric that no run has.
    #[error("--metric {name:?} is in none of the runs: they have {known}")]
    UnknownMetric {
        /// The metric.
        name: String,
        /// Those that there are.
        known: String,
    },
    /// One run, where it takes two.
    #[error("compare takes two runs or more, and one was named")]
    OneRun,
    /// An output that is neither.
    #[error("--output {0:?} has no known ending: write a name that ends in .svg or .png")]
    Picture(PathBuf),
    /// A logarithm of what has none.
    #[error("--log takes values above 0, but {metric} of {run} is {value} at step {step}: leave --log out")]
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
    #[error("following cannot start")]
    System(#[source] std::io::Error),
}

impl MetricsError {
    /// Another attempt helps where the file system refused, and nowhere else.
    fn exit(&self) -> i32 {
        match self {
            Self::File(error) if error.source.kind() != std::io::ErrorKind::NotFound => exit::FAILED,
            Self::Drawing(_) | Self::System(_) => exit::FAILED,
            _ => exit::BAD_INPUT,
        }
    }
}

impl From<MetricsError> for CommandError {
    fn from(error: MetricsError) -> Self {
        Self { exit: error.exit(), source: Box::new(error) }
    }
}

impl Metrics {
    pub(crate) fn run(self) -> Result<i32, CommandError> {
        let done = match self.command {
            Command::Summarize(command) => command.run(),
            Command::Validate(command) => command.run(),
            Command::Tail(command) => command.run(),
            Command::Plot(command) => command.run(),
            Command::Compare(command) => command.run(),
        };
        match done {
            // Who reads no further (`| head`) has what they wanted.
            Err(MetricsError::File(FileError { source, .. })) if source.kind() == std::io::ErrorKind::BrokenPipe => {
                Ok(exit::FINISHED)
            }
            done => Ok(done.map(|()| exit::FINISHED)?),
        }
    }
}

impl Validate {
    fn run(self) -> Result<(), MetricsError> {
        let (mut bad, mut lines) = (0, 0);
        for run in &self.runs {
            let ledger = open(run)?;
            for line in &ledger.bad {
                atomic_fs::say(&format!("{}:{}: {}", ledger.path.display(), line.line, line.why))?;
            }
            let unfinished = if ledger.unfinished { ", the last line unfinished" } else { "" };
            let (rows, refused) = (ledger.rows.len(), ledger.bad.len());
            atomic_fs::say(&format!("{}: {rows} rows, {refused} bad lines{unfinished}", ledger.path.display()))?;
            (bad, lines) = (bad + refused, lines + rows + refused);
        }
        if bad > 0 { Err(MetricsError::Invalid { bad, lines }) } else { Ok(()) }
    }
}

impl Input {
    /// Reads the runs, and gives each the shortest name that tells them apart.
    fn read(&self) -> Result<Vec<Run>, MetricsError> {
        let ledgers: Vec<Ledger> = self.runs.iter().map(|run| self.ledger(run)).collect::<Result<_, _>>()?;
        let names: Vec<String> = ledgers.iter().map(|ledger| name(&ledger.path)).collect();
        let label = |index: usize| {
            let once = names.iter().filter(|name| **name == names[index]).count() == 1;
            if once { names[index].clone() } else { self.runs[index].display().to_string() }
        };
        Ok(ledgers.iter().enumerate().map(|(index, ledger)| Run::of(label(index), ledger)).collect())
    }

    fn ledger(&self, run: &Path) -> Result<Ledger, MetricsError> {
        let mut ledger = open(run)?;
        if self.skip_bad && !ledger.bad.is_empty() {
            let numbers: Vec<String> = ledger.bad.iter().take(5).map(|bad| bad.line.to_string()).collect();
            let more = if ledger.bad.len() > numbers.len() { ", …" } else { "" };
            tracing::warn!(
                "{}: {} bad lines were left out (line {}{more})",
                ledger.path.display(),
                ledger.bad.len(),
                numbers.join(", ")
            );
        } else if !ledger.bad.is_empty() {
            let bad = ledger.bad.len();
            let lines = bad + ledger.rows.len();
            let first = ledger.bad.swap_remove(0);
            return Err(MetricsError::BadLine { path: ledger.path, line: first.line, bad, lines, why: first.why });
        }
        if ledger.rows.is_empty() {
            return Err(MetricsError::Empty(ledger.path));
        }
        Ok(ledger)
    }
}

/// Reads the ledger that a person means.
fn open(run: &Path) -> Result<Ledger, MetricsError> {
    let path = ledger::locate(run);
    if run.is_dir() && !path.exists() {
        return Err(MetricsError::NoLedger(run.to_owned()));
    }
    Ok(Ledger::read(&path)?)
}

/// What a person calls the run with this ledger: its directory's name.
fn name(path: &Path) -> String {
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let parent = path.parent();
    let inside = parent.filter(|parent| parent.ends_with("artifacts")).and_then(Path::parent).or(parent);
    let called = if path.ends_with(ledger::FILE) { inside.and_then(Path::file_name) } else { path.file_stem() };
    called.map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}

/// JSON on standard output.
fn say_json(value: &impl serde::Serialize) -> Result<(), MetricsError> {
    let text = serde_json::to_string_pretty(value)
        .map_err(std::io::Error::other)
        .map_err(FileError::of("encoding", Path::new("the result")))?;
    Ok(atomic_fs::say(&text)?)
}

/// The chosen metrics that the runs have, in the order they were named; all of the first choice when none was.
fn chosen(runs: &[Run], named: &[String], otherwise: &str) -> Result<Vec<String>, MetricsError> {
    let mut known: Vec<&str> = runs.iter().flat_map(|run| run.series.keys()).map(|name| name.metric.as_str()).collect();
    known.sort_unstable();
    known.dedup();
    let wanted = if named.is_empty() { vec![otherwise.to_owned()] } else { named.to_vec() };
    match wanted.iter().find(|name| !known.contains(&name.as_str())) {
        Some(name) => Err(MetricsError::UnknownMetric { name: name.clone(), known: known.join(", ") }),
        None => Ok(wanted),
    }
}

#[cfg(test)]
mod tests;
