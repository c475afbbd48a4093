//! Which engine computes, and how. Pure.

use super::{
    Engine, EngineError, EngineState, ModelConfig, cpu::CpuEngine, matrix::Number as _, number::Bf16,
    reference::ReferenceEngine,
};

/// How activations are stored. Parameters, gradients and moments are `f32` always, and so are sums of products.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// As `f32`.
    #[default]
    F32,
    /// Rounded to `bf16`.
    Bf16,
}

/// How an engine computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// How activations are stored.
    pub precision: Precision,
    /// Whether a block is computed again on the way back rather than kept: the same results, less memory, a third more time.
    pub gradient_checkpointing: bool,
    /// Whether candle's autograd computes instead: slow, in `f32`, for comparison.
    pub reference: bool,
}

impl Settings {
    /// What the engine with these settings is called in the records of a run, on this machine.
    pub fn path(self) -> &'static str {
        match self {
            Self { reference: true, .. } => "candle-f32",
            Self { precision: Precision::F32, .. } => f32::path(),
            Self { precision: Precision::Bf16, .. } => Bf16::path(),
        }
    }

    /// For how many of so many blocks the way back keeps what it needs.
    pub(crate) fn kept(self, layers: usize) -> usize {
        if self.gradient_checkpointing { 1 } else { layers }
    }
}

/// The engine for this machine, which goes on from `state`.
///
/// # Errors
/// When the state is of another model.
pub fn engine(config: ModelConfig, state: EngineState, settings: Settings) -> Result<Box<dyn Engine>, EngineError> {
    Ok(match settings {
        Settings { reference: true, .. } => Box::new(ReferenceEngine::new(config, state)?),
        Settings { precision: Precision::F32, .. } => Box::new(CpuEngine::<f32>::new(&config, state, settings)?),
        Settings { precision: Precision::Bf16, .. } => Box::new(CpuEngine::<Bf16>::new(&config, state, settings)?),
    })
}
