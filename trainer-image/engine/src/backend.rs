//! Chooses the backend that the settings ask for. Pure.

use super::{
    Engine, EngineError, EngineState, ModelConfig, Precision, Settings,
    candle::CandleEngine,
    cpu::{Bf16, CpuEngine, Dtype as _},
};

impl Settings {
    /// Returns the name of the code path that these settings select on this machine.
    pub fn path(self) -> &'static str {
        match self {
            Self { reference: true, .. } => "candle-f32",
            Self { precision: Precision::F32, .. } => f32::path(),
            Self { precision: Precision::Bf16, .. } => Bf16::path(),
        }
    }
}

/// Makes the engine for this machine, starting from `state`.
///
/// # Errors
/// The state belongs to another model.
pub fn engine(config: ModelConfig, state: EngineState, settings: Settings) -> Result<Box<dyn Engine>, EngineError> {
    Ok(match settings {
        Settings { reference: true, .. } => Box::new(CandleEngine::new(config, state)?),
        Settings { precision: Precision::F32, .. } => Box::new(CpuEngine::<f32>::new(&config, state, settings)?),
        Settings { precision: Precision::Bf16, .. } => Box::new(CpuEngine::<Bf16>::new(&config, state, settings)?),
    })
}
