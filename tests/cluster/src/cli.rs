//! The command line of `codex-cluster`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::layout::Layout;
use crate::{Cluster, Result, Target, lifecycle, privilege, status, volumes};

/// The hidden command that one of the cluster's processes runs.
pub(crate) const KEEP_VOLUMES: &str = "keep-volumes";

/// A real Kubernetes cluster on this machine, for the demo, the tests and the benchmarks.
#[derive(Debug, Parser)]
#[command(name = "codex-cluster", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start the cluster: build missing programs, repair an unhealthy cluster; quick if it is up
    Up,
    /// Stop the cluster and remove everything except the built programs
    Down,
    /// Show the components with their memory and health
    Status,
    /// Load an image into the cluster and print the reference for pods
    Load {
        /// An OCI archive (`buildah push IMAGE oci-archive:FILE:NAME`) or an image in buildah's store
        image: String,
    },
    /// Print the path of the kubeconfig, or its contents
    Kubeconfig {
        /// Print the contents
        #[arg(long)]
        contents: bool,
    },
    /// Show the end of the log of one component, or of all
    Logs {
        /// Name of the component, as `status` prints it
        component: Option<String>,
        /// Follow the log
        #[arg(short, long)]
        follow: bool,
    },
    /// Wipe released volumes and make them available again, until stopped
    #[command(name = KEEP_VOLUMES, hide = true)]
    KeepVolumes,
}

/// Runs the command line. Returns the exit status: 2 for invalid input, 1 for failures.
pub fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("codex-cluster: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(command: Command) -> Result<()> {
    let layout = Layout::system();
    match command {
        Command::Up => {
            lifecycle::up(&layout)?;
            println!("export KUBECONFIG={}", layout.kubeconfig("admin").display());
            Ok(())
        }
        Command::Down => lifecycle::down(&layout),
        Command::Status => status::print(&layout),
        Command::Load { image } => {
            println!("{}", cluster()?.load(&image)?);
            Ok(())
        }
        Command::Kubeconfig { contents } => {
            let path: PathBuf = cluster()?.kubeconfig().into();
            if contents {
                let text = std::fs::read_to_string(&path).map_err(crate::Error::io("read", &path))?;
                print!("{text}");
            } else {
                println!("{}", path.display());
            }
            Ok(())
        }
        Command::Logs { component, follow } => status::logs(&layout, component.as_deref(), follow),
        Command::KeepVolumes => {
            privilege::become_root()?;
            volumes::keep(&layout)
        }
    }
}

/// Finds the cluster that the environment names; a local one must be up.
fn cluster() -> Result<Cluster> {
    match Target::from_env()? {
        Target::Local => Cluster::find(),
        current @ Target::Current { .. } => Cluster::ensure_target(current),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
        assert!(Arguments::try_parse_from(["codex-cluster", KEEP_VOLUMES]).is_ok());
    }
}
