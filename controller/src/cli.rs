//! The command line of `codex-controller`: subcommands, logging and the runtime.

use std::{io::IsTerminal, path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};
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
                    eprintln!("codex-controller: {}", chain(&failure));
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
    let chosen = std::env::var("RUST_LOG").ok().and_then(|chosen| chosen.parse().ok());
    let filter: Targets = chosen.unwrap_or_else(|| {
        let quiet = ["kube_client", "kube_runtime"].map(|target| (target, Level::WARN));
        Targets::new().with_default(Level::INFO).with_targets(quiet)
    });
    let registry = tracing_subscriber::registry();
    let lines = tracing_subscriber::fmt::layer().with_target(false);
    match format {
        LogFormat::Json => {
            registry.with(lines.json().flatten_event(true).with_current_span(false).with_filter(filter)).init();
        }
        LogFormat::Compact => registry.with(lines.compact().with_ansi(terminal).with_filter(filter)).init(),
    }
}
