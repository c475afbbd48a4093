//! The numerics of training and generation: what a model computes, its gradients, and the optimizer. Pure: no files, no
//! command line, no tokenizer, no clock.
//!
//! - [`Engine`] is a training step, [`Decoder`] generates text; [`engine()`], [`lora_engine`] and [`decoder()`] make the ones
//!   that [`Settings`] ask for.
//! - `model/` describes a model: configuration, tensor names and layout, initialization, FLOPs.
//! - `cpu/` holds hand-written kernels for processors, with activations in `f32` or `bf16`.
//! - `candle/` holds the same models in candle's tensors with candle's autograd: for GPUs, for shapes that the kernels do not
//!   know, and as the oracle that the kernels are tested against.
//! - `optim/` holds AdamW, Muon, moments in 32 and in 8 bits, the gradient norm, and the gradient of a private step.

#![allow(
    clippy::inline_always,
    reason = "a kernel must be inlined into the function that is compiled for an instruction set"
)]
#![allow(clippy::many_single_char_names, reason = "x, y, w, m, n and k are the field's own names")]

mod backend;
mod candle;
mod cpu;
mod decoder;
mod engine;
mod error;
mod model;
mod optim;
mod packed;
mod peak;
mod sampling;
mod settings;
mod state;
#[cfg(test)]
mod tests;
mod widen;

pub use self::engine::Engine;
pub use backend::{check_cuda, decoder, engine, load_decoder, lora_engine, lora_memory, memory};
pub use cpu::{Isa, KERNELS, MAX_CPU_ISA, UnknownIsa, arch, instruction_set, round_to_eight_bits};
pub use decoder::{Decoder, Emitted, End, Logits, PromptError, Slots, Step};
pub use error::EngineError;
pub use model::{
    ConfigError, Family, HEAD_WIDTHS, Layout, Lora, LoraError, ModelConfig, Projection, RopeScaling, Shape, Tensor,
    Vocabulary, add_low_rank, flops, initial,
};
pub use optim::{
    AdamW, ClippedSum, EightBit, MomentFormat, Moments, Muon, Rates, TensorNumbers, TensorNumbersMut, muon_memory,
};
pub use packed::{Packed, Target};
pub use sampling::{LogProbabilities, Sampler, Sampling, SamplingError, surprise};
pub use settings::{Backend, Device, Precision, Settings};
pub use state::EngineState;
pub use widen::{StoredType, first_not_finite, widen};
