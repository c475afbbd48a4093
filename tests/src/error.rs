//! The error of a test. Its `Debug` is its message, because the test harness shows `Debug`.

use std::{fmt, io, path::PathBuf, time::Duration};

/// The result of the functions that tests use.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error that ends a test.
#[derive(thiserror::Error)]
pub enum Error {
    /// The cluster failed.
    #[error(transparent)]
    Cluster(#[from] codex_cluster::Error),
    /// The operator could not be installed, which every test needs.
    #[error("the operator could not be installed: {0}")]
    NotInstalled(String),
    /// A request to the API server failed.
    #[error("the request to the API server failed: {0}")]
    Client(#[from] kube::Error),
    /// The kubeconfig is invalid.
    #[error("the kubeconfig cannot be used: {0}")]
    Kubeconfig(String),
    /// A watch failed.
    #[error("the watch failed: {0}")]
    Watch(#[from] kube::runtime::watcher::Error),
    /// Prometheus did not start, or refused a request.
    #[error("Prometheus: {0}")]
    Prometheus(String),
    /// A command failed.
    #[error("`{command}` failed ({status}):\n{output}")]
    Command {
        /// The command line.
        command: String,
        /// Its exit status.
        status: String,
        /// Its output.
        output: String,
    },
    /// An operation on this machine failed.
    #[error("{what}: {source}")]
    Io {
        /// The operation.
        what: String,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// A condition did not become true in time.
    #[error("timed out after {patience:?}: {what}; {state}")]
    Timeout {
        /// The condition.
        what: String,
        /// The time limit.
        patience: Duration,
        /// The state instead.
        state: String,
    },
    /// A condition can no longer become true.
    #[error("{what}: impossible, because {why}; {state}")]
    Impossible {
        /// The condition.
        what: String,
        /// The reason.
        why: String,
        /// The state instead.
        state: String,
    },
    /// A file has unexpected content.
    #[error("{path:?}: {why}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

impl Error {
    /// Adds the operation to an I/O error.
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
