//! The command line: flags with their environment, logging, the runtime. Reads the environment and standard output.

use std::{
    io::IsTerminal,
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use tracing::{Level, error};
use tracing_subscriber::{Layer, filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};

use crate::{error::chain, operator};

/// The Codex controller: trains, judges, signs and serves reasoning models on Kubernetes.
#[derive(Debug, Parser)]
#[command(name = "codex-controller", version, about, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// What to do; `run` where nothing is named.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The flags of `run`.
    #[command(flatten)]
    pub run: Run,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the controller (the default).
    Run(Box<Run>),
    /// Write the CRDs as YAML.
    Crds(Crds),
}

/// Where the CRDs go.
#[derive(Debug, Args)]
pub struct Crds {
    /// The folder to write to; it is made if it does not exist.
    #[arg(long)]
    pub out: PathBuf,
}

/// How to run the controller.
#[derive(Clone, Debug, Args)]
pub struct Run {
    /// The namespace of the controller's own objects: its Lease, key and certificates.
    #[arg(long, env = "CODEX_NAMESPACE", default_value = "codex-system")]
    pub namespace: String,
    /// The namespaces to watch, separated by commas; all where none is named.
    #[arg(long, env = "CODEX_WATCH_NAMESPACES", value_delimiter = ',')]
    pub watch_namespaces: Vec<String>,
    /// The image of trainers whose TrainingRun names none.
    #[arg(long, env = "CODEX_TRAINER_IMAGE", default_value = concat!("codex:", env!("CARGO_PKG_VERSION")))]
    pub trainer_image: String,
    /// The image of every evaluator and server; no user names one.
    #[arg(long, env = "CODEX_WORKER_IMAGE", default_value = concat!("codex:", env!("CARGO_PKG_VERSION")))]
    pub worker_image: String,
    /// Where pods report to; `https://codex-controller.<namespace>.svc:8443/v1/reports` where absent.
    #[arg(long, env = "CODEX_REPORT_URL")]
    pub report_url: Option<String>,
    /// Where to take reports (HTTPS).
    #[arg(long, env = "CODEX_LISTEN", default_value = "0.0.0.0:8443")]
    pub listen: SocketAddr,
    /// Where to answer /healthz, /readyz and /metrics (HTTP).
    #[arg(long, env = "CODEX_HEALTH_LISTEN", default_value = "0.0.0.0:8080")]
    pub health_listen: SocketAddr,
    /// The Lease that elects the one controller that acts.
    #[arg(long, env = "CODEX_LEASE_NAME", default_value = "codex-controller")]
    pub lease_name: String,
    /// The name under which this process holds the Lease; made up where absent. A process that is started again under
    /// its old name need not wait for the Lease to expire.
    #[arg(long, env = "CODEX_IDENTITY")]
    pub identity: Option<String>,
    /// How to log: json in pods, compact on a terminal where absent. The environment variable `RUST_LOG` selects what, such as
    /// `info,kube_client=debug`.
    #[arg(long, env = "CODEX_LOG_FORMAT")]
    pub log_format: Option<LogFormat>,
}

impl Run {
    /// Where pods report to.
    pub fn reports(&self) -> String {
        let made = || format!("https://codex-controller.{}.svc:8443{}", self.namespace, codex_reports::PATH);
        self.report_url.clone().unwrap_or_else(made)
    }

    /// The name under which this process holds the Lease.
    pub fn identity(&self) -> String {
        self.identity.clone().unwrap_or_else(|| {
            let host = std::env::var("HOSTNAME").unwrap_or_else(|_| "codex-controller".to_owned());
            let nanos = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
            format!("{host}_{}_{nanos:x}", std::process::id())
        })
    }
}

/// How to log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For a person.
    Compact,
}

/// Does what the command line asks for. Exit code 0: done, or stopped by a signal; 1: anything else.
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
    log(flags.log_format);
    // The controller waits for the network: one thread carries it, and one heap arena keeps it small.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(failure) => {
            error!(error = %failure, "the runtime does not start");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(operator::run(flags)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            error!(category = failure.category(), error = chain(&failure), "the controller stops");
            ExitCode::FAILURE
        }
    }
}

fn log(format: Option<LogFormat>) {
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
