//! What can go wrong with a cluster, each as one sentence for a person.

use std::path::{Path, PathBuf};

/// The result of everything in this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why the cluster could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An argument or a variable holds something that cannot work.
    #[error("{field} is {value:?}; it must be {expected}")]
    Input {
        /// The argument or variable.
        field: &'static str,
        /// What it holds.
        value: String,
        /// What would be right.
        expected: String,
    },
    /// The machine lacks something that this command does not install itself.
    #[error("{0}")]
    Prerequisite(String),
    /// A file, directory or socket could not be used.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A program ended with an error.
    #[error("`{command}` failed ({status}): {stderr}")]
    Command {
        /// The program and its arguments.
        command: String,
        /// Its exit status, or why it did not start.
        status: String,
        /// The end of what it said.
        stderr: String,
    },
    /// A component ended although it should run.
    #[error("{component} ended; the end of its log:\n{log}")]
    Component {
        /// Its name, as `codex-cluster logs` takes it.
        component: &'static str,
        /// Its last words.
        log: String,
    },
    /// Something did not happen in time.
    #[error("{what} after {seconds} s; `codex-cluster logs` shows what the components say")]
    Timeout {
        /// What is still not so.
        what: String,
        /// How long it was waited for.
        seconds: u64,
    },
    /// An answer could not be read.
    #[error("cannot read the answer of {what}: {source}")]
    Json {
        /// Who answered.
        what: &'static str,
        /// Why it is not understood.
        source: serde_json::Error,
    },
    /// A certificate could not be made.
    #[error("cannot make a certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// A process could not be stopped.
    #[error("{component} (pid {pid}) does not end")]
    Stuck {
        /// Its name.
        component: String,
        /// Its process id.
        pid: u32,
    },
    /// There is no cluster to talk to.
    #[error("no cluster is running; start one with `codex-cluster up`")]
    Down,
    /// The cluster runs but not all of it is well.
    #[error("the cluster is not healthy: {0}; `codex-cluster up` repairs it")]
    Unhealthy(String),
}

impl Error {
    /// The exit status a command ends with: 2 for input a person must change, 1 for everything else.
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
