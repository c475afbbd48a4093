//! Classes of training failures: the reason that reports and `status` show, and whether another attempt can succeed. Pure.

use codex_engine::EngineError;

/// Class of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FailureClass {
    /// Reason for reports and `status`.
    pub(crate) reason: &'static str,
    /// Whether every further attempt fails in the same way.
    pub(crate) is_final: bool,
}

impl FailureClass {
    pub(crate) const INVALID_CONFIGURATION: Self = Self::last("InvalidConfiguration");
    pub(crate) const INVALID_DATA: Self = Self::last("InvalidData");
    pub(crate) const DATA_MISMATCH: Self = Self::last("DataMismatch");
    pub(crate) const BASE_MISMATCH: Self = Self::last("BaseMismatch");
    pub(crate) const FOREIGN_CHECKPOINT: Self = Self::last("ForeignCheckpoint");
    pub(crate) const INSUFFICIENT_MEMORY: Self = Self::last("InsufficientMemory");
    /// Final, because the same seed and data lead to the same step again.
    pub(crate) const NOT_FINITE: Self = Self::last("NotFinite");
    /// Final for the same reason.
    pub(crate) const CURRICULUM_BLOCKED: Self = Self::last("CurriculumBlocked");
    pub(crate) const INVALID_RECORDS: Self = Self::last("InvalidRecords");
    pub(crate) const UNREPRODUCIBLE: Self = Self::last("Unreproducible");
    pub(crate) const SUPERSEDED: Self = Self::retryable("Superseded");
    pub(crate) const DOWNLOAD_FAILED: Self = Self::retryable("DownloadFailed");
    pub(crate) const STORAGE_FAILED: Self = Self::retryable("StorageFailed");
    /// Never reported as a failure: the session turns it into its outcome.
    pub(crate) const INTERRUPTED: Self = Self::retryable("Interrupted");
    pub(crate) const NOT_REPRODUCED: Self = Self::retryable("NotReproduced");
    pub(crate) const TRAINING_FAILED: Self = Self::retryable("TrainingFailed");

    /// Returns the class of an engine's failure. Another attempt finds the same program, processor and GPU.
    pub(crate) fn of_engine(error: &EngineError) -> Self {
        match error {
            EngineError::WithoutCuda | EngineError::Cuda(_) | EngineError::Precision | EngineError::Half => {
                Self::INVALID_CONFIGURATION
            }
            _ => Self::TRAINING_FAILED,
        }
    }

    const fn last(reason: &'static str) -> Self {
        Self { reason, is_final: true }
    }

    const fn retryable(reason: &'static str) -> Self {
        Self { reason, is_final: false }
    }
}
