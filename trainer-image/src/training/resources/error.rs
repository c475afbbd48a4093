//! Error of a configuration that does not fit into memory. Pure.

/// A configuration that needs more memory than the process may use.
#[derive(Debug, thiserror::Error)]
#[error("training{} needs {estimate}, but {source_of_limit} allows {limit}: {fix}", in_phase(phase.as_deref()))]
pub struct MemoryError {
    /// Id of the phase of the curriculum, if there is one.
    pub(super) phase: Option<String>,
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
    /// Returns the error for a phase of a curriculum. The batch size that fits is then one of the phase.
    #[must_use]
    pub(crate) fn of_phase(self, id: &str) -> Self {
        Self { phase: Some(id.to_owned()), ..self }
    }
}

fn in_phase(phase: Option<&str>) -> String {
    phase.map(|id| format!(" in phase {id}")).unwrap_or_default()
}
