//! Why a run cannot be private as it is configured. Pure.

use codex_provenance::text::counted;

/// A mechanism that does not exist.
#[derive(Debug, thiserror::Error)]
pub enum PrivacyError {
    /// A step would take more records than there are.
    #[error(
        "training.batch_size times training.gradient_accumulation is {expected}, but there {} only {} to draw from: \
         with training.privacy, use at most {records}",
        if *records == 1 { "is" } else { "are" },
        counted(*records, "record")
    )]
    Records {
        /// Number of records of a step in the mean.
        expected: u64,
        /// Number of records.
        records: u64,
    },
    /// No noise is enough.
    #[error(
        "training.privacy.target_epsilon is {epsilon}: no noise is enough for it in {} at training.privacy.target_delta \
         {delta}; write a larger epsilon",
        counted(*steps, "step")
    )]
    Target {
        /// The epsilon.
        epsilon: f64,
        /// The delta.
        delta: f64,
        /// Number of steps of the schedule.
        steps: u64,
    },
}
