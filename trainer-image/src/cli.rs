//! The command line: one variant per command, one way to end, one place where logs are set up. Does I/O.
//!
//! A command is a struct with clap's `Args` and a `run(self) -> Result<i32, CommandError>`; its `Ok` is the process's
//! exit code (see [`codex_reports::exit`]). To add one: its `Args` in its own module, a variant and a line in `run` here.

use std::{
    error::Error,
    io::{IsTerminal as _, Write as _},
    process::ExitCode,
};

use clap::{Parser, Subcommand};
use codex_configs::MAX_SEED;
use codex_reports::exit;

/// Train, judge, serve and verify small reasoning models.
#[derive(Debug, Parser)]
#[command(name = "codex", version, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train a model; goes on from the newest valid checkpoint in the output directory.
    Train(crate::training::Train),
    /// Redo one step of a run, and show its records, their losses and the gradient.
    ReplayStep(crate::training::ReplayStep),
    /// Name the first step and tensor in which two runs differ.
    Bisect(crate::training::Bisect),
    /// Have a model answer held-out problems and score its answers.
    Evaluate(crate::evaluation::Evaluate),
    /// Write problems of a synthetic reasoning task as JSON lines.
    PrepareData(crate::tasks::PrepareData),
    /// Serve a model, after checking its bytes against its signature, its promotion and its ring.
    Serve(crate::serving::Serve),
    /// Verify that a model directory is exactly what was signed.
    Verify(crate::verify::Verify),
    /// Check that a directory's volume keeps checkpoints, and how fast.
    CheckpointSmoke(crate::training::CheckpointSmoke),
    /// Sum up, follow, draw and compare the metrics of runs.
    Metrics(crate::metrics::Metrics),
}

impl Command {
    fn run(self) -> Result<i32, CommandError> {
        match self {
            Self::Train(command) => command.run(),
            Self::ReplayStep(command) => command.run(),
            Self::Bisect(command) => command.run(),
            Self::Evaluate(command) => command.run(),
            Self::PrepareData(command) => command.run(),
            Self::Serve(command) => command.run(),
            Self::Verify(command) => command.run(),
            Self::CheckpointSmoke(command) => command.run(),
            Self::Metrics(command) => command.run(),
        }
    }
}

/// Why a command ended without its result: an error and the exit code that says whether trying again can help.
#[derive(Debug, thiserror::Error)]
#[error("{source}")]
pub struct CommandError {
    /// One of [`codex_reports::exit`].
    pub exit: i32,
    /// What went wrong.
    #[source]
    pub source: Box<dyn Error + Send + Sync>,
}

impl CommandError {
    /// The input is wrong: another attempt cannot succeed (exit code 2).
    pub fn bad_input(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { exit: exit::BAD_INPUT, source: error.into() }
    }

    /// Anything that another attempt may mend (exit code 1).
    pub fn failed(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { exit: exit::FAILED, source: error.into() }
    }

    /// The whole chain of causes as one line.
    pub fn sentence(&self) -> String {
        chain(self.source.as_ref())
    }
}

/// An error and its causes as one line, a cause left out where its effect already says it.
pub fn chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !line.contains(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        cause = error.source();
    }
    line
}

/// A seed: what JSON carries exactly.
///
/// # Errors
/// What would be right.
pub(crate) fn seed(text: &str) -> Result<u64, String> {
    let seed = text.parse().ok().filter(|seed| *seed <= MAX_SEED);
    seed.ok_or_else(|| format!("write a whole number from 0 to {MAX_SEED}"))
}

/// Parses the command line, runs the command and turns its end into the process's.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    start_logging();
    let allowed =
        codex_engine::Isa::most().map_err(|error| CommandError { exit: exit::BAD_INPUT, source: Box::new(error) });
    let code = match allowed.and_then(|_| arguments.command.run()) {
        Ok(code) => code,
        Err(error) => {
            let sentence = error.sentence();
            if std::io::stderr().is_terminal() {
                let _ = writeln!(std::io::stderr(), "codex: {sentence}");
            } else {
                tracing::error!(exit = error.exit, "{sentence}");
            }
            error.exit
        }
    };
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

/// Logs go to standard error: compact on a terminal, JSON lines elsewhere; `CODEX_LOG` filters them (default `info`).
fn start_logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("CODEX_LOG").unwrap_or_else(|_| "info".into());
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if std::io::stderr().is_terminal() {
        builder.compact().with_target(false).init();
    } else {
        builder.json().flatten_event(true).init();
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn what_is_refused_is_named_with_what_would_be_right() {
        let refused = |line: &str| Arguments::try_parse_from(line.split(' ')).unwrap_err().to_string();
        let train = refused("codex train --template cot-starter --output x --seed -1");
        assert!(train.contains("'-1' for '--seed") && train.contains("from 0 to 9007199254740991"), "{train}");
        let evaluate = "codex evaluate --preset cot-lite --model m --output o";
        let told = refused(&format!("{evaluate} --seed 1.5"));
        assert!(told.contains("write a whole number"), "{told}");
        let told = refused(&format!("{evaluate} --gate exact_match>=2"));
        assert!(told.contains("bound \"2\": write a plain decimal from 0 to 1, such as 0.95"), "{told}");
        let verify = "codex verify m --bundle b --key k --promotion p --ring";
        let told = refused(&format!("{verify} 0E_base_"));
        for ring in codex_provenance::promotion::RINGS {
            assert!(told.contains(ring), "{told}");
            Arguments::try_parse_from(format!("{verify} {ring}").split(' ')).unwrap();
        }
    }

    #[test]
    fn the_help_of_prepare_data_lists_every_task() {
        let mut command = Arguments::command();
        let prepare = command.find_subcommand_mut("prepare-data").unwrap();
        let task = prepare.get_arguments().find(|argument| argument.get_id() == "task").unwrap();
        let listed = task.get_help().unwrap().to_string().replace(" or ", ", ");
        let listed: Vec<_> = listed.strip_prefix("The task: ").unwrap().split(", ").collect();
        assert_eq!(listed, codex_configs::TASKS);
    }

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn an_error_is_told_with_its_causes() {
        let error = CommandError::bad_input(Outer(std::io::Error::other("inner")));
        assert_eq!(error.sentence(), "outer: inner");
        assert_eq!(error.exit, 2);
    }
}
