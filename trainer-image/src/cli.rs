//! The command line: a variant for each command, the set-up of logs, and the process's exit code. Does I/O.
//!
//! A command is a struct with clap's `Args` and a `run(self) -> Result<i32, CommandError>`; its `Ok` is the process's
//! exit code (see [`codex_reports::exit`]). To add one, write its `Args` in its own module, and a variant and a line in `run`
//! here. Nothing depends on this file but `main`.

use std::{
    io::{IsTerminal as _, Write as _},
    process::ExitCode,
};

use clap::{Parser, Subcommand};

use crate::error::CommandError;

/// Train, judge, serve and verify small reasoning models.
#[derive(Debug, Parser)]
#[command(name = "codex", version, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train a model; resumes from the newest valid checkpoint in the output directory.
    Train(crate::training::Train),
    /// Take one step of a run again, and show its records, their losses and the gradient.
    ReplayStep(crate::training::ReplayStep),
    /// Find the first step and tensor in which two runs differ.
    Bisect(crate::training::Bisect),
    /// Have a model answer held-out problems and score its answers.
    Evaluate(crate::evaluation::Evaluate),
    /// Write problems of a synthetic reasoning task as JSON lines.
    PrepareData(crate::tasks::PrepareData),
    /// Serve a model, after checking its bytes against its signature, its promotion and its ring.
    Serve(crate::serving::Serve),
    /// Verify that a model directory is exactly what was signed.
    Verify(crate::verify::Verify),
    /// Check that a volume keeps checkpoints, and measure how fast it writes them.
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

/// Parses the command line, runs the command and turns its end into the process's.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    start_logging();
    crate::threads::limit();
    let allowed = codex_engine::Isa::limit().map_err(CommandError::bad_input);
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
        assert!(told.contains("bound \"2\": write a decimal from 0 to 1, such as 0.95"), "{told}");
        let verify = "codex verify m --bundle b --key k --promotion p --ring";
        let told = refused(&format!("{verify} 0E_base_"));
        for ring in codex_verdict::Ring::ALL.map(codex_verdict::Ring::name) {
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
}
