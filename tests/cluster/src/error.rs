//! The errors of the cluster.

use std::path::{Path, PathBuf};

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of the cluster.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An argument or a variable has an invalid value.
    #[error("{field} is {value:?}; it must be {expected}")]
    Input {
        /// The argument or variable.
        field: &'static str,
        /// Its value.
        value: String,
        /// The valid values.
        expected: String,
    },
    /// The machine lacks a requirement that this command does not install.
    #[error("{0}")]
    Prerequisite(String),
    /// A file, directory or socket could not be used.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// The operation, as a verb.
        action: &'static str,
        /// The path.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// A program failed.
    #[error("`{command}` failed ({status}): {stderr}")]
    Command {
        /// The program and its arguments.
        command: String,
        /// Its exit status, or why it did not start.
        status: String,
        /// The end of its standard error.
        stderr: String,
    },
    /// A component exited unexpectedly.
    #[error("{component} exited; the end of its log:\n{log}")]
    Component {
        /// Its name, as `codex-cluster logs` takes it.
        component: &'static str,
        /// The end of its log.
        log: String,
    },
    /// A condition did not become true in time.
    #[error("{what} after {seconds} s; `codex-cluster logs` shows the logs of the components")]
    Timeout {
        /// The condition that does not hold.
        what: String,
        /// The time limit.
        seconds: u64,
    },
    /// A response could not be parsed.
    #[error("cannot parse the response of {what}: {source}")]
    Json {
        /// The source of the response.
        what: &'static str,
        /// The parser's error.
        source: serde_json::Error,
    },
    /// A certificate could not be made.
    #[error("cannot make a certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// A process could not be stopped.
    #[error("{component} (pid {pid}) does not exit")]
    Stuck {
        /// Its name.
        component: String,
        /// Its process id.
        pid: u32,
    },
    /// No cluster is running.
    #[error("no cluster is running; start one with `codex-cluster up`")]
    Down,
    /// The cluster runs, and a component is unhealthy.
    #[error("the cluster is not healthy: {0}; `codex-cluster up` repairs it")]
    Unhealthy(String),
}

impl Error {
    /// Returns the exit status of the command: 2 for input that a user must change, 1 for everything else.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Input { .. } | Self::Prerequisite(_) => 2,
            _ => 1,
        }
    }

    pub(crate) fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::Io { action, path, source }
    }
}
