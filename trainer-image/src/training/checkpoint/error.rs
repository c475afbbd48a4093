//! Why a checkpoint cannot be written or read, and why a run cannot resume from one. Pure.

use std::path::PathBuf;

use codex_provenance::manifest::ManifestError;

use super::format::SCHEMA_VERSION;
use crate::{
    atomic_fs::FileError,
    training::{attempts::LockError, failure_class::FailureClass},
};

/// A checkpoint that cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// Another version wrote the checkpoint.
    #[error(
        "{path:?} is a checkpoint of format {found}, but this version reads format {SCHEMA_VERSION}: resume with the version that \
         wrote it, or use an empty output directory"
    )]
    Version {
        /// The checkpoint.
        path: PathBuf,
        /// Its format.
        found: u64,
    },
    /// The tensors are not those of this model.
    #[error("{path:?} {source}")]
    State {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The tensors changed while they were read.
    #[error("{path:?} no longer matches its digests, in {tensors}, although it did a moment ago: check the volume")]
    Digest {
        /// The file.
        path: PathBuf,
        /// Names of tensors that differ.
        tensors: String,
    },
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// The files cannot be listed in a manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The attempt may not write any more.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The thread that writes checkpoints could not start or has ended.
    #[error("checkpoints cannot be written")]
    Thread(#[source] std::io::Error),
    /// The state cannot be copied from the engine.
    #[error("the state cannot be copied from the device")]
    Engine(#[from] codex_engine::EngineError),
}

impl CheckpointError {
    pub(crate) fn class(&self) -> FailureClass {
        match self {
            Self::Version { .. } | Self::State { .. } => FailureClass::FOREIGN_CHECKPOINT,
            Self::Digest { .. } | Self::File(_) => FailureClass::STORAGE_FAILED,
            Self::Lock(error) => error.class(),
            Self::Engine(error) => FailureClass::of_engine(error),
            Self::Manifest(_) | Self::Thread(_) => FailureClass::TRAINING_FAILED,
        }
    }

    /// Whether the volume failed, which may recover while training continues.
    pub(crate) fn is_storage(&self) -> bool {
        self.class() == FailureClass::STORAGE_FAILED
    }
}

/// A run that cannot resume from a checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum ResumeError {
    /// The checkpoint belongs to another run.
    #[error("{path:?} is a checkpoint of another run ({differences}): {fix}")]
    ForeignCheckpoint {
        /// The checkpoint.
        path: PathBuf,
        /// What differs, before and now.
        differences: String,
        /// What to do.
        fix: &'static str,
    },
    /// The data is in another order than before the checkpoint.
    #[error(
        "step {step} saw records with digest {found}, but this version would select records with digest {expected}: it orders \
         data differently, so resume with the version that began the run"
    )]
    DataOrder {
        /// The step.
        step: u64,
        /// Digest in the ledger.
        found: String,
        /// Digest computed by this version.
        expected: String,
    },
}
