//! The trait that a training backend implements. Pure.

use std::{borrow::Cow, sync::Arc};

use super::{AdamW, EngineError, EngineState, Layout, ModelConfig, MomentFormat, Packed};

/// A training backend: it owns the parameters, and the gradients and moments of those that are trained. An engine is deterministic: the
/// same calls give the same bits; with the kernels for any number of threads.
pub trait Engine: Send {
    /// Returns the name of the code path, such as `cpu-f32`, for the records of a run.
    fn path(&self) -> &'static str;

    /// Returns the configuration of the model.
    fn config(&self) -> &ModelConfig;

    /// Returns the layout: the name, shape and range of every trained tensor in the flat vectors.
    fn layout(&self) -> &Arc<Layout>;

    /// Returns the floating-point operations of [`accumulate`](Self::accumulate) over a batch; see [`flops`](crate::flops).
    fn flops(&self, batch: &Packed) -> f64;

    /// Measures the floating-point operations in a second that this engine reaches in a large product, in its precision and on all
    /// its threads: what [`flops`](Self::flops) in a second can be compared with. Takes a fraction of a second.
    ///
    /// # Errors
    /// The device fails.
    fn peak_flops(&self) -> Result<f64, EngineError>;

    /// Sets all gradients to 0.
    ///
    /// # Errors
    /// The device fails.
    fn clear_gradients(&mut self) -> Result<(), EngineError>;

    /// Multiplies losses by `scale` from now on before their gradients are computed, and divides the gradients by it after that, so that
    /// small ones are not rounded to 0 in `f16`; too large a scale makes gradients infinite. What is returned does not depend on it. The
    /// scale is 1 at first. Engines that never compute in `f16` need none, and ignore it.
    fn scale_losses(&mut self, _scale: f64) {}

    /// Adds the gradients of (Σ over the batch's targets of the cross-entropy in nats) / `total_targets`, and returns the
    /// batch's share of the loss. `total_targets` counts the targets of all batches of the step, so that accumulated batches
    /// equal one large batch.
    ///
    /// # Errors
    /// A token id is outside the vocabulary, or a sequence is longer than the context.
    fn accumulate(&mut self, batch: &Packed, total_targets: usize) -> Result<f64, EngineError>;

    /// Adds the gradients of Σ over the sequences of weight · loss, where a sequence's loss is Σ over its targets of the
    /// cross-entropy in nats. `weigh` gets the loss of every sequence and returns their weights, which count as constants: so an
    /// objective that depends on the log-probabilities of whole sequences needs one forward pass. Returns the losses.
    ///
    /// # Errors
    /// A token id is outside the vocabulary, or a sequence is longer than the context.
    ///
    /// # Panics
    /// `weigh` returns another number of weights.
    fn accumulate_weighted(
        &mut self,
        batch: &Packed,
        weigh: &mut dyn FnMut(&[f64]) -> Vec<f64>,
    ) -> Result<Vec<f64>, EngineError>;

    /// Adds the gradients of Σ over the targets of scale · cross-entropy, and returns Σ of the cross-entropies in nats, without the
    /// scales. `scales` has one number for each target of the batch, in their order.
    ///
    /// # Errors
    /// A token id is outside the vocabulary, or a sequence is longer than the context.
    ///
    /// # Panics
    /// There are other than one scale for each target.
    fn accumulate_scaled(&mut self, batch: &Packed, scales: &[f32]) -> Result<f64, EngineError>;

    /// Returns the hidden states after the final norm [rows, hidden]: what the output projection reads. Leaves the gradients
    /// unchanged.
    ///
    /// # Errors
    /// A token id is outside the vocabulary, or a sequence is longer than the context.
    fn hidden_states(&mut self, batch: &Packed) -> Result<Vec<f32>, EngineError>;

    /// Returns Σ over the targets of each sequence of the cross-entropy in nats. Leaves the gradients unchanged.
    ///
    /// # Errors
    /// A token id is outside the vocabulary, or a sequence is longer than the context.
    fn losses(&mut self, batch: &Packed) -> Result<Vec<f64>, EngineError>;

    /// Returns Σ over the batch's targets of the cross-entropy in nats. Leaves the gradients unchanged.
    ///
    /// # Errors
    /// A token id is outside the vocabulary, or a sequence is longer than the context.
    fn loss(&mut self, batch: &Packed) -> Result<f64, EngineError>;

    /// Returns the trained parameters in the order of [`layout`](Self::layout).
    ///
    /// # Errors
    /// The device fails.
    fn parameters(&self) -> Result<Cow<'_, [f32]>, EngineError>;

    /// Returns the first numbers of the first trained tensor, at most `count`.
    ///
    /// # Errors
    /// The device fails.
    fn leading_parameters(&self, count: usize) -> Result<Vec<f32>, EngineError> {
        let first = self.layout().tensors().first().map_or(0, |tensor| tensor.range.len());
        Ok(self.parameters()?[..count.min(first)].to_vec())
    }

    /// Returns the gradients accumulated since they were cleared, in the order of [`layout`](Self::layout).
    ///
    /// # Errors
    /// The device fails.
    fn gradients(&self) -> Result<Cow<'_, [f32]>, EngineError>;

    /// Returns the Euclidean norm of all gradients together.
    ///
    /// # Errors
    /// The norm is not finite; the error names the first such tensor.
    fn gradient_norm(&self) -> Result<f64, EngineError>;

    /// Takes one optimizer step with the accumulated gradients. Leaves the gradients unchanged.
    ///
    /// # Errors
    /// The device fails.
    ///
    /// # Panics
    /// Muon is to update moments in eight bits.
    fn update(&mut self, step: &AdamW) -> Result<(), EngineError>;

    /// Keeps the moments in this format from now on. Eight bits lose some of their precision.
    ///
    /// # Errors
    /// The device fails.
    fn keep_moments(&mut self, format: MomentFormat) -> Result<(), EngineError>;

    /// Replaces the accumulated gradients.
    ///
    /// # Errors
    /// The device fails.
    ///
    /// # Panics
    /// There are other than one for each trained parameter.
    fn set_gradients(&mut self, gradients: &[f32]) -> Result<(), EngineError>;

    /// Keeps a moving average of the parameters from now on, which begins with them unless there is one; or drops it.
    ///
    /// # Errors
    /// The device fails.
    fn keep_average(&mut self, keep: bool) -> Result<(), EngineError>;

    /// Moves the average, if one is kept, towards the parameters: `a ← decay · a + (1 − decay) · w`.
    ///
    /// # Errors
    /// The device fails.
    fn average(&mut self, decay: f64) -> Result<(), EngineError>;

    /// Exchanges the parameters with their average, if one is kept, so that it is what is evaluated. A second call undoes the first.
    ///
    /// # Errors
    /// The device fails.
    fn swap_average(&mut self) -> Result<(), EngineError>;

    /// Returns the bytes that the engine holds: parameters, gradients, moments and workspace.
    fn memory(&self) -> usize;

    /// Copies the state that the engine keeps between steps.
    ///
    /// # Errors
    /// The device fails.
    fn export(&self) -> Result<EngineState, EngineError>;

    /// Copies the state into vectors of an earlier copy.
    ///
    /// # Errors
    /// The device fails.
    fn export_into(&self, state: &mut EngineState) -> Result<(), EngineError>;

    /// Replaces the state with one that [`export`](Self::export) returned.
    ///
    /// # Errors
    /// A vector's length differs from the number of parameters.
    fn import(&mut self, state: &EngineState) -> Result<(), EngineError>;
}
