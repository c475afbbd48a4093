//! Errors of steps: a loss or gradient that is not finite, and a curriculum that cannot go on. Pure.

/// A loss or gradient that is not finite.
#[derive(Debug, thiserror::Error)]
#[error(
    "{what} of step {step} is not finite{}: lower training.learning_rate, or check the records of the step: {records}",
    tensor.as_ref().map(|tensor| format!(", nor is {tensor}")).unwrap_or_default()
)]
pub struct NumericsError {
    /// `the loss`, or `the gradient of` a tensor.
    pub(crate) what: String,
    /// First tensor that is not finite, as `parameters/NAME` or `gradients/NAME`.
    pub(crate) tensor: Option<String>,
    /// Number of the step, counted from 1.
    pub(crate) step: u64,
    /// Records of the step as `name[number]`, at most the first few.
    pub(crate) records: String,
}

/// All steps of a run are used up while a phase of its curriculum waits for its thresholds.
#[derive(Debug, thiserror::Error)]
#[error(
    "phase {phase} of the curriculum is not completed after step {step}, the last of training.max_steps: {why}; change its \
     thresholds, or raise training.max_steps"
)]
pub struct BlockedError {
    /// Id of the phase.
    pub(crate) phase: String,
    /// Optimizer steps done.
    pub(crate) step: u64,
    /// Thresholds that do not hold.
    pub(crate) why: String,
}
