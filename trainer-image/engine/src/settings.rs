//! The settings of an engine. Pure.

/// The type of activations. Parameters, gradients, moments and sums of products are always `f32`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// `f32`.
    #[default]
    F32,
    /// `bf16`: rounded to the nearest, ties to even.
    Bf16,
    /// `f16`, on a GPU only. Training needs [`scale_losses`](crate::Engine::scale_losses).
    F16,
}

/// A device on which candle computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The processor.
    #[default]
    Cpu,
    /// The first GPU that CUDA shows.
    Cuda,
}

/// What computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// The hand-written kernels for processors.
    #[default]
    Kernels,
    /// candle, on a device. On a processor it multiplies `f32` only.
    Candle(Device),
}

/// The settings of an engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// The type of activations.
    pub precision: Precision,
    /// Whether the backward pass computes each block's activations again instead of keeping them: the same bits, less
    /// memory, a third more time. The kernels only; candle keeps them.
    pub gradient_checkpointing: bool,
    /// What computes.
    pub backend: Backend,
}

impl Settings {
    /// Returns how many of `layers` blocks keep their activations for the backward pass.
    pub(crate) fn kept(self, layers: usize) -> usize {
        if self.gradient_checkpointing { 1 } else { layers }
    }
}
