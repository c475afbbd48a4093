//! The command line of `codex-controller`: subcommands, logging and the runtime.

use std::{
    ffi::OsStr,
    io::{self, IsTerminal, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, builder::Resettable};
use tracing::{Level, error};
use tracing_subscriber::{Layer, filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};

use crate::{
    error::chain,
    flags::{Flags, LogFormat},
    operator,
};

/// The Codex controller: trains, evaluates, signs and serves reasoning models on Kubernetes.
#[derive(Debug, Parser)]
#[command(name = "codex-controller", version, about, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// The subcommand; `run` by default.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The flags of `run`, for a command line without a subcommand.
    #[command(flatten)]
    pub run: Flags,
}

impl Cli {
    /// Reads the command line and the environment. Exits with a message if they are invalid. Variables that are set and empty
    /// count as absent.
    pub fn read() -> Self {
        let command =
            without_empty(Self::command(), &|name| std::env::var_os(name).is_some_and(|value| value.is_empty()));
        let matches = command.get_matches();
        Self::from_arg_matches(&matches).unwrap_or_else(|failure| failure.exit())
    }
}

/// Returns the command without the environment variables that are set and empty.
fn without_empty(command: clap::Command, is_empty: &dyn Fn(&OsStr) -> bool) -> clap::Command {
    let names: Vec<_> = command.get_subcommands().map(|subcommand| subcommand.get_name().to_owned()).collect();
    let command = command.mut_args(|arg| match arg.get_env() {
        Some(name) if is_empty(name) => arg.env(Resettable::Reset),
        _ => arg,
    });
    names
        .into_iter()
        .fold(command, |command, name| command.mut_subcommand(name, |subcommand| without_empty(subcommand, is_empty)))
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the controller (the default).
    Run(Box<Flags>),
    /// Write the CRDs as YAML.
    Crds(Crds),
}

/// The flags of `crds`.
#[derive(Debug, Args)]
pub struct Crds {
    /// The directory to write to; it is created if it does not exist.
    #[arg(long)]
    pub out: PathBuf,
}

/// Runs the subcommand. Returns exit code 0 when it finished or a signal stopped it, and 1 when it failed.
pub fn run(cli: Cli) -> ExitCode {
    let flags = match cli.command {
        Some(Command::Crds(Crds { out })) => {
            return match codex_crds::manifests::write(&out) {
                Ok(()) => ExitCode::SUCCESS,
                Err(failure) => {
                    // A full standard error is no reason to panic.
                    drop(writeln!(io::stderr(), "codex-controller: {}", chain(&failure)));
                    ExitCode::FAILURE
                }
            };
        }
        Some(Command::Run(flags)) => *flags,
        None => cli.run,
    };
    init_logging(flags.log_format);
    // The controller mostly waits for the network: one thread is enough, and its single heap arena keeps memory low.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(failure) => {
            error!(error = %failure, "the async runtime cannot be started");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(operator::run(flags)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            error!(category = failure.category(), error = chain(&failure), "the controller failed");
            ExitCode::FAILURE
        }
    }
}

fn init_logging(format: Option<LogFormat>) {
    let terminal = std::io::stdout().is_terminal();
    let format = format.unwrap_or(if terminal { LogFormat::Compact } else { LogFormat::Json });
    let filter = filter(std::env::var("RUST_LOG").ok().as_deref());
    let registry = tracing_subscriber::registry();
    let lines = tracing_subscriber::fmt::layer().with_target(false);
    match format {
        LogFormat::Json => {
            registry.with(lines.json().flatten_event(true).with_current_span(false).with_filter(filter)).init();
        }
        LogFormat::Compact => registry.with(lines.compact().with_ansi(terminal).with_filter(filter)).init(),
    }
}

/// Returns the filter for log lines that `RUST_LOG` chooses. An empty or unreadable choice counts as none.
fn filter(chosen: Option<&str>) -> Targets {
    let chosen = chosen.filter(|chosen| !chosen.trim().is_empty()).and_then(|chosen| chosen.parse().ok());
    chosen.unwrap_or_else(|| {
        // The controller logs the failures of its watches itself.
        let quiet = [("kube_client", Level::WARN), ("kube_runtime", Level::ERROR)];
        Targets::new().with_default(Level::INFO).with_targets(quiet)
    })
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use clap::CommandFactory;

    use tracing::Level;

    use super::{Cli, filter, without_empty};

    #[test]
    fn an_empty_choice_of_log_lines_is_none() {
        for none in [None, Some(""), Some(" ")] {
            let filter = filter(none);
            assert!(filter.would_enable("codex_controller", &Level::INFO), "{none:?}");
            assert!(!filter.would_enable("kube_runtime", &Level::WARN), "{none:?}");
        }
        assert!(!filter(Some("error")).would_enable("codex_controller", &Level::INFO));
    }

    #[test]
    fn an_empty_variable_is_absent_everywhere() {
        let variables = |command: &clap::Command| -> Vec<_> {
            let all = std::iter::once(command).chain(command.get_subcommands());
            all.flat_map(clap::Command::get_arguments).filter_map(|arg| arg.get_env().map(OsStr::to_owned)).collect()
        };
        let (image, all) = (OsStr::new("CODEX_WORKER_IMAGE"), Cli::command());
        assert_eq!(variables(&all).iter().filter(|name| *name == image).count(), 2);
        let some = without_empty(all.clone(), &|name| name == image);
        assert!(!variables(&some).iter().any(|name| name == image));
        assert_eq!(variables(&some).len(), variables(&all).len() - 2);
        assert!(variables(&without_empty(all, &|_| true)).is_empty());
    }
}
