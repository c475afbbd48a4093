//! Arguments that the `codex metrics` commands share, and the ledgers that they name. Reads files and prints results.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use super::{
    error::MetricsError,
    evaluations::{self, Evaluated},
    series::Run,
};
use crate::{
    artifacts::ledger::{self, Ledger},
    atomic_fs::{self, FileError},
    run_folder::EVALUATION,
};

/// The runs to read, and how strictly.
#[derive(Debug, Args)]
pub(super) struct Input {
    /// Directories of runs or their ledgers (`metrics.ndjson`), or directories of evaluations.
    #[arg(required = true, value_name = "RUN")]
    pub(super) runs: Vec<PathBuf>,
    /// Ignore invalid lines, and log how many there are.
    #[arg(long)]
    pub(super) skip_bad: bool,
}

/// The format of a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// A table for people.
    Text,
    /// JSON for programs.
    Json,
}

impl Input {
    /// Reads the runs, and labels each with the shortest name that is unique.
    pub(super) fn read(&self) -> Result<Vec<Run>, MetricsError> {
        let ledgers: Vec<Ledger> = self.runs.iter().map(|run| self.ledger(run)).collect::<Result<_, _>>()?;
        let labels = self.labels(ledgers.iter().map(|ledger| ledger.path.as_path()));
        Ok(labels.into_iter().zip(&ledgers).map(|(label, ledger)| Run::of(label, ledger)).collect())
    }

    /// Reads the evaluations, labelled as runs are; `None` if the arguments name runs.
    pub(super) fn evaluations(&self) -> Result<Option<Vec<Evaluated>>, MetricsError> {
        let found: Vec<Option<PathBuf>> = self.runs.iter().map(|named| evaluations::results(named)).collect();
        let Some(evaluation) = found.iter().flatten().next().cloned() else { return Ok(None) };
        if let Some(other) = found.iter().position(Option::is_none) {
            return Err(MetricsError::Mixed { evaluation, other: self.runs[other].clone() });
        }
        let paths: Vec<PathBuf> = found.into_iter().flatten().collect();
        let labels = self.labels(paths.iter().map(PathBuf::as_path));
        paths
            .into_iter()
            .zip(labels)
            .map(|(path, label)| Evaluated::read(path, label))
            .collect::<Result<_, _>>()
            .map(Some)
    }

    /// Returns the shortest unique name for each file.
    fn labels<'a>(&self, paths: impl Iterator<Item = &'a Path>) -> Vec<String> {
        let names: Vec<String> = paths.map(name).collect();
        let label = |(name, named): (&String, &PathBuf)| {
            let is_unique = names.iter().filter(|other| *other == name).count() == 1;
            if is_unique { name.clone() } else { named.display().to_string() }
        };
        names.iter().zip(&self.runs).map(label).collect()
    }

    fn ledger(&self, run: &Path) -> Result<Ledger, MetricsError> {
        read(run, self.skip_bad)
    }
}

/// Reads the ledger of a run, which must have rows, and no invalid lines unless `skip_bad` ignores them.
pub(super) fn read(run: &Path, skip_bad: bool) -> Result<Ledger, MetricsError> {
    let mut ledger = open(run)?;
    if skip_bad && !ledger.bad.is_empty() {
        let numbers: Vec<String> = ledger.bad.iter().take(5).map(|bad| bad.line.to_string()).collect();
        let more = if ledger.bad.len() > numbers.len() { ", …" } else { "" };
        tracing::warn!(
            lines = numbers.join(", ") + more,
            bad = ledger.bad.len(),
            "{}: ignored invalid lines",
            ledger.path.display()
        );
    } else if !ledger.bad.is_empty() {
        let bad = ledger.bad.len();
        let lines = bad + ledger.rows.len();
        let first = ledger.bad.swap_remove(0);
        return Err(MetricsError::BadLine { path: first.path, line: first.line, bad, lines, why: first.why });
    }
    if ledger.rows.is_empty() {
        return Err(MetricsError::Empty(ledger.path));
    }
    Ok(ledger)
}

/// Reads the ledger of a run, named by its directory or by the ledger itself.
pub(super) fn open(run: &Path) -> Result<Ledger, MetricsError> {
    let path = ledger::locate(run);
    if run.is_dir() && !ledger::exists(&path) {
        return Err(MetricsError::NoLedger(run.to_owned()));
    }
    Ok(Ledger::read(&path)?)
}

/// Returns the name of the run with this ledger, or of the evaluation with these results: its directory's name.
pub(super) fn name(path: &Path) -> String {
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let parent = path.parent();
    let inside = parent.filter(|parent| parent.ends_with("artifacts")).and_then(Path::parent).or(parent);
    let called = if path.ends_with(ledger::FILE) || path.ends_with(EVALUATION) {
        inside.and_then(Path::file_name)
    } else {
        path.file_stem()
    };
    called.map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}

/// Prints a value as JSON on standard output.
pub(super) fn print_json(value: &impl serde::Serialize) -> Result<(), MetricsError> {
    let text = serde_json::to_string_pretty(value)
        .map_err(std::io::Error::other)
        .map_err(FileError::of("encoding", Path::new("the result")))?;
    Ok(atomic_fs::say(&text)?)
}

/// Returns the metrics in `named`, or `default` when it is empty. Every one must be a metric of a run.
pub(super) fn chosen(runs: &[Run], named: &[String], default: &str) -> Result<Vec<String>, MetricsError> {
    let mut known: Vec<&str> = runs.iter().flat_map(|run| run.series.keys()).map(|name| name.metric.as_str()).collect();
    known.sort_unstable();
    known.dedup();
    let wanted = if named.is_empty() { vec![default.to_owned()] } else { named.to_vec() };
    match wanted.iter().find(|name| !known.contains(&name.as_str())) {
        Some(name) => Err(MetricsError::UnknownMetric { name: name.clone(), known: known.join(", ") }),
        None => Ok(wanted),
    }
}
