//! The numerics: what a model computes, forwards and backwards, and how a step of the optimiser changes it. Pure: no files,
//! no command line, no tokenizer, no clock.
//!
//! Training goes through [`Engine`], which [`engine`] makes: the one that is written out by hand for processors, with
//! activations in `f32` or `bf16`; or candle's autograd over candle's own operations, which the others are tested against.
//! Generation uses the kernels in [`inference`].

#![allow(
    clippy::inline_always,
    reason = "a kernel must be inlined into the function that is compiled for an instruction set"
)]
#![allow(clippy::many_single_char_names, reason = "x, y, w, m, n and k are the field's own names")]

mod adamw;
mod attention;
mod block;
mod buffer;
mod config;
mod cpu;
mod engine;
mod flops;
mod head;
pub mod inference;
mod initial;
mod isa;
mod kernels;
mod layout;
mod linear;
mod matrix;
mod memory;
mod model;
mod number;
mod packed;
mod panel;
mod reference;
mod settings;
#[cfg(test)]
mod tests;
mod tile;

pub use self::engine::{Engine, EngineError, EngineState};
pub use adamw::{AdamW, Rates};
pub use attention::HEAD_WIDTHS;
pub use config::{ConfigError, Family, ModelConfig, Shape, Vocabulary};
pub use flops::flops;
pub use initial::initial;
pub use isa::{Isa, UnknownIsa, VARIABLE as MAX_CPU_ISA, arch};
pub use layout::{Layout, Tensor};
pub use memory::memory;
pub use packed::{Packed, Target};
pub use settings::{Precision, Settings, engine};
