//! Numbers of one step, for all outputs of progress. Pure.

use std::time::Duration;

use crate::training::objective::{Preferences, Sampled};

/// Numbers of one step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StepNumbers {
    /// Optimizer steps done, this one included.
    pub(crate) step: u64,
    /// Mean cross-entropy per target token in nats, or mean loss per pair of responses, or the objective of rewards.
    pub(crate) loss: f64,
    /// Measurements of pairs, if preferences are trained.
    pub(crate) preferences: Option<Preferences>,
    /// Measurements of sampled answers, if rewards are learned from.
    pub(crate) sampled: Option<Sampled>,
    /// Norm of the gradient before clipping.
    pub(crate) gradient_norm: f64,
    /// Learning rate of the step.
    pub(crate) learning_rate: f64,
    /// Gradient noise scale in examples, if it is measured and can be estimated yet.
    pub(crate) noise_scale: Option<f64>,
    /// The ε that a private run has spent so far.
    pub(crate) epsilon: Option<f64>,
    /// Number of tokens.
    pub(crate) tokens: usize,
    /// Number of floating-point operations; see [`codex_engine::flops`].
    pub(crate) flops: f64,
    /// Time that the step waited for its data.
    pub(crate) data_wait: Duration,
}
