//! Why an attempt may not write to the run's directory. Pure.

use std::path::PathBuf;

use crate::{atomic_fs::FileError, training::failure_class::FailureClass};

/// An attempt that may not, or cannot, write to the run's directory.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// A newer attempt claimed the directory.
    #[error("attempt {newer} has taken over the output directory, so attempt {own} stops writing to it")]
    Superseded {
        /// This attempt.
        own: u32,
        /// The newest attempt.
        newer: u32,
    },
    /// The directory is no longer the one in which the attempt began.
    #[error("{path:?} is gone: the volume was unmounted or replaced, so nothing is written there")]
    Vanished {
        /// The attempt's own file.
        path: PathBuf,
    },
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
}

impl LockError {
    pub(crate) fn class(&self) -> FailureClass {
        match self {
            Self::Superseded { .. } => FailureClass::SUPERSEDED,
            Self::Vanished { .. } | Self::File(_) => FailureClass::STORAGE_FAILED,
        }
    }
}
