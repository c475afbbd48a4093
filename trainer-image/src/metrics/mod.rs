//! `codex metrics`: summarizes, follows, plots, compares and exports the metrics ledgers of runs, and the numbers of evaluations. Does
//! I/O.
//!
//! A run is named by its directory, its `artifacts` directory or the ledger itself, an evaluation by its directory. An invalid line is refused with its file,
//! number and cause, or, with `--skip-bad`, ignored and counted.

mod compare;
mod error;
mod evaluations;
mod export;
mod input;
mod plot;
mod series;
mod summary;
mod table;
mod tail;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use codex_provenance::text::counted;
use codex_reports::exit;

pub use self::error::MetricsError;
pub(crate) use self::plot::{range, round_numbers, short, thin};
use crate::{
    atomic_fs::{self, FileError},
    error::CommandError,
};

/// Summarize, follow, plot, compare and export the metrics of runs and evaluations.
#[derive(Debug, Args)]
pub struct Metrics {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the first, last, least and greatest value of every metric, or the numbers of an evaluation with their bounds.
    Summarize(summary::Summarize),
    /// Check every line; print invalid ones and exit with code 2.
    Validate(Validate),
    /// Print the newest rows; with --follow, also new ones.
    Tail(tail::Tail),
    /// Plot metrics over the steps, as SVG or PNG by the extension of the output.
    Plot(plot::Plot),
    /// Compare two or more runs or evaluations: what differs, and from which step on, or how surely.
    Compare(compare::Compare),
    /// Write the metrics of a run or an evaluation as a table, lines of JSON, or in the form of another tool.
    Export(export::Export),
}

/// Check every line.
#[derive(Debug, Args)]
struct Validate {
    /// Directories of runs or their ledgers, or directories of evaluations, whose results and records are checked.
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
}

impl Metrics {
    pub(crate) fn run(self) -> Result<i32, CommandError> {
        let done = match self.command {
            Command::Summarize(command) => command.run(),
            Command::Validate(command) => command.run(),
            Command::Tail(command) => command.run(),
            Command::Plot(command) => command.run(),
            Command::Compare(command) => command.run(),
            Command::Export(command) => command.run(),
        };
        match done {
            // A reader that closed the pipe (`| head`) has what it wanted.
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
            if let Some(path) = evaluations::results(run) {
                let (refused, records) = evaluations::Evaluated::read(path.clone(), String::new())?.validate()?;
                let counts = format!("{}, {}", counted(records, "record"), counted(refused, "invalid line"));
                atomic_fs::say(&format!("{}: {counts}", path.display()))?;
                (bad, lines) = (bad + refused, lines + records);
                continue;
            }
            let ledger = input::open(run)?;
            for line in &ledger.bad {
                atomic_fs::say(&format!("{}:{}: {}", line.path.display(), line.line, line.why))?;
            }
            let unfinished = if ledger.unfinished { ", the last line incomplete" } else { "" };
            let (rows, refused) = (ledger.rows.len(), ledger.bad.len());
            let counts = format!("{}, {}", counted(rows, "row"), counted(refused, "invalid line"));
            atomic_fs::say(&format!("{}: {counts}{unfinished}", ledger.path.display()))?;
            (bad, lines) = (bad + refused, lines + rows + refused);
        }
        if bad > 0 { Err(MetricsError::Invalid { bad, lines }) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests;
