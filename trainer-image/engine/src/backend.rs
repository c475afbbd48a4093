//! Chooses the backend that the settings ask for. Pure.

use std::ops::Range;

use super::{
    Decoder, Engine, EngineError, EngineState, Layout, Lora, ModelConfig, Precision, Settings,
    candle::{CandleDecoder, CandleEngine},
    cpu::{Bf16, CpuDecoder, CpuEngine, Dtype as _},
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

/// Makes the engine for this machine that trains adapters beside a frozen model, starting from `state`, whose layout is
/// [`Lora::layout`]. Copies what it needs of `base`, which is in the order of [`Layout::of`]; `bf16` keeps it in `bf16`.
///
/// # Errors
/// The base or the state belongs to another model, or the model cannot have these adapters.
pub fn lora_engine(
    config: ModelConfig,
    base: &[f32],
    lora: Lora,
    state: EngineState,
    settings: Settings,
) -> Result<Box<dyn Engine>, EngineError> {
    check(&config, base)?;
    Ok(match settings {
        Settings { reference: true, .. } => Box::new(CandleEngine::with_adapters(config, base, lora, state)?),
        Settings { precision: Precision::F32, .. } => {
            Box::new(CpuEngine::<f32>::with_adapters(&config, base, lora, state, settings)?)
        }
        Settings { precision: Precision::Bf16, .. } => {
            Box::new(CpuEngine::<Bf16>::with_adapters(&config, base, lora, state, settings)?)
        }
    })
}

/// Checks that `parameters` are as many as the model has.
fn check(config: &ModelConfig, parameters: &[f32]) -> Result<(), EngineError> {
    let expected = Layout::of(config).size();
    if parameters.len() == expected {
        return Ok(());
    }
    Err(EngineError::State { what: "parameters", found: parameters.len(), expected })
}

/// Makes the decoder for this machine, with `slots` free slots. Copies what it needs of `parameters`, which are in the order of
/// [`Layout::of`].
///
/// # Errors
/// `parameters` belong to another model.
pub fn decoder(
    config: &ModelConfig,
    parameters: &[f32],
    settings: Settings,
    slots: usize,
) -> Result<Box<dyn Decoder>, EngineError> {
    check(config, parameters)?;
    load_decoder(config, settings, slots, |range, to| {
        to.copy_from_slice(&parameters[range]);
        Ok(())
    })
}

/// As [`decoder`], for parameters that are not in memory: `read` fills a slice with a range of them, in the order of
/// [`Layout::of`]. Ranges are small, so that little memory is needed beside the decoder's own, and a range may be read twice.
///
/// # Errors
/// The first error of `read`.
pub fn load_decoder<E>(
    config: &ModelConfig,
    settings: Settings,
    slots: usize,
    mut read: impl FnMut(Range<usize>, &mut [f32]) -> Result<(), E>,
) -> Result<Box<dyn Decoder>, E> {
    Ok(match settings {
        Settings { reference: true, .. } => {
            let mut parameters = vec![0.0; Layout::of(config).size()];
            read(0..parameters.len(), &mut parameters)?;
            Box::new(CandleDecoder::new(config.clone(), &parameters, slots))
        }
        Settings { precision: Precision::F32, .. } => Box::new(CpuDecoder::<f32>::load(config, slots, &mut read)?),
        Settings { precision: Precision::Bf16, .. } => Box::new(CpuDecoder::<Bf16>::load(config, slots, &mut read)?),
    })
}
