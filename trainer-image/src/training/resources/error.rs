//! Error of a configuration that does not fit into memory. Pure.

use crate::training::failure_class::FailureClass;

/// A configuration that needs more memory than the process may use.
#[derive(Debug, thiserror::Error)]
#[error("training needs {estimate}, but {source_of_limit} allows {limit}: {fix}")]
pub struct MemoryError {
    /// Estimate, part by part.
    pub(super) estimate: String,
    /// Where the limit is set.
    pub(super) source_of_limit: String,
    /// The limit.
    pub(super) limit: String,
    /// What to change.
    pub(super) fix: String,
}

impl MemoryError {
    pub(crate) fn class(&self) -> FailureClass {
        FailureClass::INSUFFICIENT_MEMORY
    }
}
