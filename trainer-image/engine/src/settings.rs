//! The settings of an engine. Pure.

/// The type of activations. Parameters, gradients, moments and sums of products are always `f32`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// `f32`.
    #[default]
    F32,
    /// `bf16`: rounded to the nearest, ties to even.
    Bf16,
}

/// The settings of an engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// The type of activations.
    pub precision: Precision,
    /// Whether the backward pass computes each block's activations again instead of keeping them: the same bits, less
    /// memory, a third more time.
    pub gradient_checkpointing: bool,
    /// Whether candle's autograd computes the gradients: slow, `f32` only, for comparison.
    pub reference: bool,
}

impl Settings {
    /// Returns how many of `layers` blocks keep their activations for the backward pass.
    pub(crate) fn kept(self, layers: usize) -> usize {
        if self.gradient_checkpointing { 1 } else { layers }
    }
}
