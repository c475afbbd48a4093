//! Chooses the backend that the settings ask for. Pure.

use std::ops::Range;

use super::{
    Backend, Decoder, Device, Engine, EngineError, EngineState, HEAD_WIDTHS, Isa, Layout, Lora, LoraError, ModelConfig,
    Precision, Settings,
    candle::{self, CandleDecoder, CandleEngine, open},
    cpu::{self, Bf16, CpuDecoder, CpuEngine, Dtype as _},
};

/// Checks that this program was built with CUDA and finds a usable GPU.
///
/// # Errors
/// Neither is so, or the driver refuses the GPU.
pub fn check_cuda() -> Result<(), EngineError> {
    open(Device::Cuda, Precision::F32).map(|_| ())
}

impl Settings {
    /// Returns these settings with a backend that knows the model: candle, if the kernels were not compiled for its heads.
    #[must_use]
    pub fn suited(self, config: &ModelConfig) -> Self {
        match self.backend {
            Backend::Kernels if !HEAD_WIDTHS.contains(&config.head_dim) => {
                Self { backend: Backend::Candle(Device::Cpu), ..self }
            }
            _ => self,
        }
    }

    /// Returns the architecture and the instruction set that decide the bits of sums on this machine, such as `x86_64 avx512`; `None` on
    /// a GPU. Programs that are equal compute equal bits where [`path`](Self::path) and this are equal. candle chooses its instructions
    /// itself, whatever the limit.
    pub fn kernels(self) -> Option<String> {
        let isa = match self.backend {
            Backend::Kernels => Isa::of_kernels(cpu::limit()),
            Backend::Candle(Device::Cpu) => Isa::of_kernels(Isa::Amx),
            Backend::Candle(Device::Cuda) => return None,
        };
        Some(format!("{} {isa}", std::env::consts::ARCH))
    }

    /// Returns the name of the code path that these settings select on this machine.
    pub fn path(self) -> &'static str {
        match (self.backend, self.precision) {
            (Backend::Candle(Device::Cpu), _) => "candle-f32",
            (Backend::Candle(Device::Cuda), Precision::F32) => "candle-cuda-f32",
            (Backend::Candle(Device::Cuda), Precision::Bf16) => "candle-cuda-bf16",
            (Backend::Candle(Device::Cuda), Precision::F16) => "candle-cuda-f16",
            (Backend::Kernels, Precision::F32) => f32::path(),
            (Backend::Kernels, Precision::Bf16) => Bf16::path(),
            // No engine is made for it.
            (Backend::Kernels, Precision::F16) => "cpu-f16",
        }
    }
}

/// Makes the engine for this machine, starting from `state`.
///
/// # Errors
/// The state belongs to another model, or the device is not usable.
pub fn engine(config: ModelConfig, state: EngineState, settings: Settings) -> Result<Box<dyn Engine>, EngineError> {
    let settings = settings.suited(&config);
    Ok(match (settings.backend, settings.precision) {
        (Backend::Candle(device), precision) => Box::new(CandleEngine::new(config, &state, open(device, precision)?)?),
        (Backend::Kernels, Precision::F32) => Box::new(CpuEngine::<f32>::new(&config, state, settings)?),
        (Backend::Kernels, Precision::Bf16) => Box::new(CpuEngine::<Bf16>::new(&config, state, settings)?),
        (Backend::Kernels, Precision::F16) => return Err(EngineError::Half),
    })
}

/// Makes the engine for this machine that trains adapters beside a frozen model, starting from `state`, whose layout is
/// [`Lora::layout`]. Copies what it needs of `base`, which is in the order of [`Layout::of`]; `bf16` keeps it in `bf16`.
///
/// # Errors
/// The base or the state belongs to another model, the model cannot have these adapters, or the device is not usable.
pub fn lora_engine(
    config: ModelConfig,
    base: &[f32],
    lora: Lora,
    state: EngineState,
    settings: Settings,
) -> Result<Box<dyn Engine>, EngineError> {
    check(&config, base)?;
    let settings = settings.suited(&config);
    Ok(match (settings.backend, settings.precision) {
        (Backend::Candle(device), precision) => {
            Box::new(CandleEngine::with_adapters(config, base, lora, &state, open(device, precision)?)?)
        }
        (Backend::Kernels, Precision::F32) => {
            Box::new(CpuEngine::<f32>::with_adapters(&config, base, lora, state, settings)?)
        }
        (Backend::Kernels, Precision::Bf16) => {
            Box::new(CpuEngine::<Bf16>::with_adapters(&config, base, lora, state, settings)?)
        }
        (Backend::Kernels, Precision::F16) => return Err(EngineError::Half),
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
/// [`Layout::of`]. Ranges are at most a tensor, so that little memory is needed beside the decoder's own, and a range may be
/// read twice.
///
/// # Errors
/// The first error of `read`, or the device is not usable.
pub fn load_decoder<E: From<EngineError>>(
    config: &ModelConfig,
    settings: Settings,
    slots: usize,
    mut read: impl FnMut(Range<usize>, &mut [f32]) -> Result<(), E>,
) -> Result<Box<dyn Decoder>, E> {
    let settings = settings.suited(config);
    Ok(match (settings.backend, settings.precision) {
        (Backend::Candle(device), precision) => {
            // candle multiplies no bf16 on a processor; `f32` holds every number of it.
            let precision = if device == Device::Cpu { Precision::F32 } else { precision };
            Box::new(CandleDecoder::load(config, open(device, precision)?, slots, &mut read)?)
        }
        (Backend::Kernels, Precision::F32) => Box::new(CpuDecoder::<f32>::load(config, slots, &mut read)?),
        (Backend::Kernels, Precision::Bf16) => Box::new(CpuDecoder::<Bf16>::load(config, slots, &mut read)?),
        (Backend::Kernels, Precision::F16) => return Err(EngineError::Half.into()),
    })
}

/// Returns the bytes of the buffers of an engine with these settings for a batch of `rows` rows, all of them targets, with a
/// longest sequence of `longest`, on `threads` threads.
pub fn memory(config: &ModelConfig, settings: Settings, rows: usize, longest: usize, threads: usize) -> usize {
    match settings.suited(config).backend {
        Backend::Kernels => cpu::memory(config, settings, rows, longest, threads),
        Backend::Candle(_) => candle::memory(config, settings, rows, longest),
    }
}

/// As [`memory`], for an engine that trains adapters: also counts the frozen weights, but not the trained parameters, their
/// gradients and moments.
///
/// # Errors
/// The model cannot have these adapters.
pub fn lora_memory(
    config: &ModelConfig,
    lora: &Lora,
    settings: Settings,
    (rows, longest): (usize, usize),
    threads: usize,
) -> Result<usize, LoraError> {
    match settings.suited(config).backend {
        Backend::Kernels => cpu::lora_memory(config, lora, settings, (rows, longest), threads),
        Backend::Candle(_) => candle::lora_memory(config, lora, settings, rows, longest),
    }
}
