//! Why training fails, by what failed, and whether another attempt can succeed. Pure.

use codex_provenance::manifest::ManifestError;
use codex_reports::{Failure, exit};

use super::{
    attempts::LockError,
    base::BaseError,
    checkpoint::{CheckpointError, ResumeError},
    checks::{ProofError, SmokeError},
    data::DataError,
    failure_class::FailureClass,
    privacy::PrivacyError,
    records::RecordsError,
    resources::MemoryError,
    run::{BlockedError, NumericsError},
    schedule::GroupError,
    state::StateError,
};
use crate::{
    atomic_fs::{FileError, Misnamed},
    error::{CommandError, chain},
    exposition::ExpositionError,
    hub::HubError,
    model::ModelError,
    overlap::Overlap,
    reporting::ReportingError,
};

/// A failure of training.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The configuration is invalid.
    #[error(transparent)]
    Config(#[from] codex_configs::ConfigError),
    /// The engine does not support the shape of the model.
    #[error(transparent)]
    Shape(#[from] codex_engine::ConfigError),
    /// The base cannot be trained from.
    #[error(transparent)]
    Base(#[from] BaseError),
    /// The base cannot be downloaded.
    #[error("the base cannot be downloaded")]
    Hub(#[from] HubError),
    /// Arguments contradict each other or the configuration.
    #[error("{0}")]
    Arguments(String),
    /// A parameter group matches no tensor.
    #[error(transparent)]
    Groups(#[from] GroupError),
    /// A named file or directory is missing or of the wrong kind.
    #[error(transparent)]
    Misnamed(#[from] Misnamed),
    /// The run would replace one of its inputs.
    #[error(transparent)]
    Overlap(#[from] Overlap),
    /// The data cannot be trained on.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A checkpoint cannot be written or read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The run cannot resume from its checkpoint.
    #[error(transparent)]
    Resume(#[from] ResumeError),
    /// The state of a checkpoint cannot be restored.
    #[error(transparent)]
    State(#[from] StateError),
    /// The attempt may not write to the run's directory.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The configuration needs more memory than there is.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The run cannot be private as it is configured.
    #[error(transparent)]
    Privacy(#[from] PrivacyError),
    /// The loss or a gradient is not finite.
    #[error(transparent)]
    Numerics(#[from] NumericsError),
    /// A phase of the curriculum cannot be completed.
    #[error(transparent)]
    Blocked(#[from] BlockedError),
    /// The records of a run cannot be read.
    #[error(transparent)]
    RunRecords(#[from] RecordsError),
    /// A resume could not be proven.
    #[error(transparent)]
    Proof(#[from] ProofError),
    /// The volume does not keep checkpoints.
    #[error(transparent)]
    Smoke(#[from] SmokeError),
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// Files cannot be listed in a manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The model cannot be written.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The engine rejected a batch.
    #[error("the engine cannot continue")]
    Engine(#[from] codex_engine::EngineError),
    /// The system refused a process, a thread or a signal handler.
    #[error("the trainer cannot start")]
    System(#[source] std::io::Error),
    /// Metrics cannot be served.
    #[error(transparent)]
    Exposition(#[from] ExpositionError),
    /// Reports cannot be sent.
    #[error(transparent)]
    Reporting(#[from] ReportingError),
    /// The program, engine or kernels are not those of the run that is to be reproduced.
    #[error("{0}")]
    Unreproducible(String),
    /// The attempt was asked to end before there was anything to save.
    #[error("interrupted")]
    Interrupted,
}

impl TrainError {
    fn class(&self) -> FailureClass {
        match self {
            Self::Config(_)
            | Self::Shape(_)
            | Self::Arguments(_)
            | Self::Groups(_)
            | Self::Privacy(_)
            | Self::Misnamed(_)
            | Self::Overlap(_) => FailureClass::INVALID_CONFIGURATION,
            Self::Unreproducible(_) => FailureClass::UNREPRODUCIBLE,
            Self::Base(error) => error.class(),
            Self::Data(error) => error.class(),
            Self::Checkpoint(error) => error.class(),
            Self::Resume(_) => FailureClass::FOREIGN_CHECKPOINT,
            Self::State(error) => error.class(),
            Self::Lock(error) => error.class(),
            Self::Engine(error) => FailureClass::of_engine(error),
            Self::Memory(_) => FailureClass::INSUFFICIENT_MEMORY,
            Self::Numerics(_) => FailureClass::NOT_FINITE,
            Self::Blocked(_) => FailureClass::CURRICULUM_BLOCKED,
            Self::RunRecords(_) => FailureClass::INVALID_RECORDS,
            Self::Proof(_) => FailureClass::NOT_REPRODUCED,
            Self::File(_) | Self::Hub(HubError::File(_) | HubError::Space { .. }) => FailureClass::STORAGE_FAILED,
            Self::Interrupted | Self::Hub(HubError::Interrupted) => FailureClass::INTERRUPTED,
            Self::Hub(error) if error.is_final() => FailureClass::INVALID_CONFIGURATION,
            Self::Hub(_) => FailureClass::DOWNLOAD_FAILED,
            Self::Smoke(_)
            | Self::Manifest(_)
            | Self::Model(_)
            | Self::System(_)
            | Self::Exposition(_)
            | Self::Reporting(_) => FailureClass::TRAINING_FAILED,
        }
    }

    /// Whether the attempt was asked to end before its first step.
    pub(super) fn is_interruption(&self) -> bool {
        self.class() == FailureClass::INTERRUPTED
    }

    /// Whether the volume failed.
    #[cfg(test)]
    pub(super) fn is_storage(&self) -> bool {
        self.class() == FailureClass::STORAGE_FAILED
    }

    /// Returns the failure as a report has it.
    pub fn failure(&self) -> Failure {
        let FailureClass { reason, is_final } = self.class();
        Failure { is_final, reason: reason.to_owned(), message: chain(self) }
    }

    /// Returns the exit code of the process.
    pub fn exit(&self) -> i32 {
        if self.class().is_final { exit::BAD_INPUT } else { exit::FAILED }
    }
}

impl From<TrainError> for CommandError {
    fn from(error: TrainError) -> Self {
        Self { exit: error.exit(), source: Box::new(error) }
    }
}
