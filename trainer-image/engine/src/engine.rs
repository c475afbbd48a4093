//! What training asks of the numerics, whatever computes them. Pure.

use std::{borrow::Cow, sync::Arc};

use super::{AdamW, Layout, ModelConfig, Packed};

/// Parameters, their gradients and their moments, and the steps that change them. An engine is deterministic: the same calls
/// give the same bits, for any number of threads.
pub trait Engine: Send {
    /// Which path computes, such as `cpu-f32`: it belongs into the records of a run.
    fn path(&self) -> &'static str;

    /// The shape of the model.
    fn config(&self) -> &ModelConfig;

    /// Every tensor: its name, shape and place in the flat vectors.
    fn layout(&self) -> &Arc<Layout>;

    /// Sets all gradients to 0.
    fn clear_gradients(&mut self);

    /// Adds the gradients of (Σ over the batch's targets of the cross-entropy in nats) / `total_targets`, and returns that
    /// share of the loss. `total_targets` counts the targets of all batches of the step, so that accumulating them equals one
    /// large batch.
    ///
    /// # Errors
    /// When an id is outside the vocabulary or a sequence is longer than the context.
    fn accumulate(&mut self, batch: &Packed, total_targets: usize) -> Result<f64, EngineError>;

    /// Σ over the batch's targets of the cross-entropy in nats. Touches no gradient.
    ///
    /// # Errors
    /// When an id is outside the vocabulary or a sequence is longer than the context.
    fn loss(&mut self, batch: &Packed) -> Result<f64, EngineError>;

    /// The parameters, laid out as [`layout`](Self::layout) says.
    fn parameters(&self) -> Cow<'_, [f32]>;

    /// The gradients accumulated since they were cleared, laid out as [`layout`](Self::layout) says.
    fn gradients(&self) -> Cow<'_, [f32]>;

    /// The Euclidean norm of all gradients together.
    ///
    /// # Errors
    /// When it is not finite; names the first tensor at fault.
    fn gradient_norm(&self) -> Result<f64, EngineError>;

    /// One step of the optimiser over the accumulated gradients, which stay as they are.
    fn update(&mut self, step: &AdamW);

    /// Bytes that it holds: parameters, gradients, moments, and the room that its batches so far needed.
    fn memory(&self) -> usize;

    /// A copy of all that an engine remembers between steps.
    fn export(&self) -> EngineState;

    /// The same copy, into vectors that an earlier one was made in.
    fn export_into(&self, state: &mut EngineState);

    /// Goes on from what [`export`](Self::export) gave.
    ///
    /// # Errors
    /// When a vector has another length than the model has parameters.
    fn import(&mut self, state: &EngineState) -> Result<(), EngineError>;
}

/// What an engine remembers between steps: three vectors, laid out alike.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineState {
    /// Where each tensor lies in the vectors.
    pub layout: Arc<Layout>,
    /// The parameters.
    pub parameters: Vec<f32>,
    /// The running means of gradients.
    pub first: Vec<f32>,
    /// The running means of squared gradients.
    pub second: Vec<f32>,
}

impl EngineState {
    /// The state before the first step: moments of 0.
    pub fn new(layout: Arc<Layout>, parameters: Vec<f32>) -> Self {
        let zero = vec![0.0; parameters.len()];
        Self { layout, parameters, first: zero.clone(), second: zero }
    }

    /// Whether it belongs to a model of `layout`.
    ///
    /// # Errors
    /// When a vector has another length.
    pub(crate) fn check(&self, layout: &Layout) -> Result<(), EngineError> {
        let expected = layout.size();
        for (what, found) in [
            ("parameters", self.parameters.len()),
            ("first moments", self.first.len()),
            ("second moments", self.second.len()),
        ] {
            if found != expected {
                return Err(EngineError::State { what, found, expected });
            }
        }
        Ok(())
    }
}

/// What an engine refuses.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A sequence that is too long.
    #[error("a sequence has {tokens} tokens, but the model's context holds {context}")]
    TooLong {
        /// Its tokens.
        tokens: usize,
        /// Those that fit.
        context: usize,
    },
    /// An id that the embedding has no row for.
    #[error("token id {id} is outside the vocabulary of {vocabulary}")]
    Id {
        /// The id.
        id: u32,
        /// Ids that there are.
        vocabulary: usize,
    },
    /// A gradient that is no number.
    #[error("the gradient of {tensor} is not finite")]
    NotFinite {
        /// The first tensor at fault.
        tensor: String,
    },
    /// A state of another model.
    #[error("the state has {found} {what}, but the model has {expected}")]
    State {
        /// Which vector.
        what: &'static str,
        /// Its length.
        found: usize,
        /// The length it must have.
        expected: usize,
    },
    /// An operation of candle that failed.
    #[error("a tensor operation failed")]
    Tensor(#[from] candle_core::Error),
}
