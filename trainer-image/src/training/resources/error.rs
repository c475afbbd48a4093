//! Error of a configuration that does not fit into memory. Pure.

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
