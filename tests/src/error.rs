//! Why a test could not go on. Its `Debug` is the sentence, because that is what the test harness shows.

use std::{fmt, io, path::PathBuf, time::Duration};

/// What goes wrong on the way.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a test could not go on.
#[derive(thiserror::Error)]
pub enum Error {
    /// The cluster.
    #[error(transparent)]
    Cluster(#[from] codex_cluster::Error),
    /// What every test needs first.
    #[error("the operator could not be installed: {0}")]
    NotInstalled(String),
    /// The API server, or the way to it.
    #[error("the API server: {0}")]
    Client(#[from] kube::Error),
    /// The kubeconfig.
    #[error("the kubeconfig cannot be used: {0}")]
    Kubeconfig(String),
    /// A watch.
    #[error("watching: {0}")]
    Watch(#[from] kube::runtime::watcher::Error),
    /// A command.
    #[error("`{command}` ended with {status}:\n{output}")]
    Command {
        /// The command line.
        command: String,
        /// How it ended.
        status: String,
        /// What it wrote.
        output: String,
    },
    /// A file, or another thing of this machine.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// Something that did not come.
    #[error("after {patience:?} {what} had not come true; {state}")]
    Timeout {
        /// What was awaited.
        what: String,
        /// For how long.
        patience: Duration,
        /// What there was instead.
        state: String,
    },
    /// Something that can no longer come.
    #[error("{what} cannot come true: {why}; {state}")]
    Impossible {
        /// What was awaited.
        what: String,
        /// Why it cannot come.
        why: String,
        /// What there was instead.
        state: String,
    },
    /// Text of an unexpected shape.
    #[error("{path:?}: {why}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

impl Error {
    /// Names what was tried when an I/O error came.
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
