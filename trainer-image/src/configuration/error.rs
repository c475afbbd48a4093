//! Why `codex config` and `codex sweep` fail. Pure.

use std::path::PathBuf;

use codex_configs::{ConfigError, sweep::SweepError};

use crate::{
    atomic_fs::{FileError, Misnamed},
    error::CommandError,
};

/// A configuration cannot be shown, compared or swept.
#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    /// A named file is missing or of the wrong kind.
    #[error(transparent)]
    Misnamed(#[from] Misnamed),
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file is not UTF-8 text.
    #[error("{} is not UTF-8 text: save it as UTF-8", .0.display())]
    NotText(PathBuf),
    /// A file is larger than any configuration.
    #[error("{} has more than {most} bytes: no configuration is that large", path.display())]
    Large {
        /// The file.
        path: PathBuf,
        /// The most bytes.
        most: usize,
    },
    /// A file has neither settings nor a resolved configuration. Nothing of it is quoted.
    #[error(
        "{} has none of the keys {keys}: name a file of settings, or a resolved configuration such as artifacts/config.yaml of a \
         run",
        path.display()
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// The groups of settings.
        keys: String,
    },
    /// A file holds objects of Kubernetes. Nothing of it is quoted.
    #[error("{} is a manifest: check it with codex validate, or write its settings into a file of their own", .0.display())]
    Manifest(PathBuf),
    /// The configuration is refused.
    #[error("{place}{error}")]
    Refused {
        /// File and line, with a colon behind each.
        place: String,
        /// Why.
        error: Box<ConfigError>,
    },
    /// Arguments contradict each other.
    #[error("{0}")]
    Arguments(String),
    /// The sweep is malformed.
    #[error("{place}{error}")]
    Sweep {
        /// Where the sweep stands, with a colon behind it.
        place: String,
        /// Why.
        error: SweepError,
    },
    /// The file of a run cannot be swept.
    #[error("{}: {why}", path.display())]
    Run {
        /// The file.
        path: PathBuf,
        /// Why, and what to change.
        why: String,
    },
    /// A point of a sweep is refused.
    #[error("the point {name} ({point}) is refused: {why}")]
    Point {
        /// The name of the point.
        name: String,
        /// Its values.
        point: String,
        /// Why.
        why: String,
    },
    /// A file of a sweep exists with other contents.
    #[error("{} exists with other contents: remove it, or name another directory with --output", .0.display())]
    Exists(PathBuf),
    /// The schemas of this program cannot be used.
    #[error(transparent)]
    Validator(#[from] codex_validate::Unreadable),
}

impl From<ConfigurationError> for CommandError {
    fn from(error: ConfigurationError) -> Self {
        match error {
            ConfigurationError::File(error) => error.into(),
            ConfigurationError::Validator(error) => Self::failed(error),
            error => Self::bad_input(error),
        }
    }
}
