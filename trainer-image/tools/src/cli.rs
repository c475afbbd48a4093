//! The command line: a variant for each command, and the process's exit code. Does I/O.
//!
//! Commands, logs and exit codes are as those of `codex`, see [`codex::cli`].

use std::{
    io::{IsTerminal as _, Write as _},
    process::ExitCode,
};

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use codex::{
    cli::{ignore_empty_variables, start_logging},
    error::CommandError,
};

/// Tools around runs, for people: sessions, object stores and registries, an MCP server, maintenance, ingestion.
#[derive(Debug, Parser)]
#[command(name = "codex-tools", version, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "a process has one")]
enum Command {
    /// Log, show, export and rotate the events of sessions.
    Sessions(crate::sessions::Sessions),
    /// Fetch a directory from an object store, or a model from a registry.
    Fetch(crate::stores::Fetch),
    /// Push a directory to an object store, or a model to a registry.
    Push(crate::stores::Push),
    /// Write documents as training data, a line of JSON each.
    Ingest(crate::ingest::Ingest),
    /// Answer a client of the Model Context Protocol about runs, verdicts and signatures.
    Mcp(crate::mcp::Mcp),
    /// Run a maintenance task of a fixed list.
    Tasks(crate::tasks::Tasks),
}

impl Command {
    fn run(self) -> Result<i32, CommandError> {
        match self {
            Self::Sessions(command) => command.run(),
            Self::Fetch(command) => command.run(),
            Self::Push(command) => command.run(),
            Self::Ingest(command) => command.run(),
            Self::Mcp(command) => command.run(),
            Self::Tasks(command) => command.run(),
        }
    }
}

/// Parses the command line, runs the command and returns its exit code.
pub fn main() -> ExitCode {
    let command = ignore_empty_variables(Arguments::command(), &|name| {
        std::env::var_os(name).is_some_and(|value| value.is_empty())
    });
    let arguments = match Arguments::from_arg_matches(&command.get_matches()) {
        Ok(arguments) => arguments,
        Err(error) => error.exit(),
    };
    start_logging();
    let code = match arguments.command.run() {
        Ok(code) => code,
        Err(error) => {
            let sentence = error.sentence();
            if std::io::stderr().is_terminal() {
                let _ = writeln!(std::io::stderr(), "codex-tools: {sentence}");
            } else {
                tracing::error!(exit = error.exit, "{sentence}");
            }
            error.exit
        }
    };
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    fn leaves(command: &clap::Command, path: &str) -> Vec<(String, clap::Command)> {
        let inner: Vec<_> = command.get_subcommands().filter(|inner| inner.get_name() != "help").collect();
        if inner.is_empty() {
            return vec![(path.to_owned(), command.clone())];
        }
        inner.into_iter().flat_map(|inner| leaves(inner, &format!("{path} {}", inner.get_name()))).collect()
    }

    /// Doc comments with links to items of the code become help texts.
    #[test]
    fn no_help_text_shows_the_syntax_of_documentation() {
        let commands = leaves(&Arguments::command(), "codex-tools");
        assert!(commands.len() > 5, "{}", commands.len());
        for (path, mut command) in commands {
            let help = command.render_long_help().to_string();
            for syntax in ["[`", "`]", "::", "](", "Some(", "None"] {
                assert!(!help.contains(syntax), "{path} has {syntax:?} in its help:\n{help}");
            }
        }
    }
}
