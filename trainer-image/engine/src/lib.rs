//! The numerics: what a model computes, forwards and backwards, and how a step of the optimiser changes it. Pure: no files,
//! no command line, no tokenizer, no clock.
//!
//! Training goes through [`Engine`], of which there are two: [`CpuEngine`], written out by hand over flat buffers, and
//! [`ReferenceEngine`], candle's autograd over candle's own operations, which the first one is tested against. Generation
//! uses the kernels in [`inference`].

#![allow(
    clippy::inline_always,
    reason = "a kernel must be inlined into the function that is compiled for an instruction set"
)]
#![allow(clippy::many_single_char_names, reason = "x, y, w, m, n and k are the field's own names")]

mod adamw;
mod attention;
mod block;
mod config;
mod cpu;
mod engine;
mod head;
pub mod inference;
mod initial;
mod kernels;
mod layout;
mod linear;
mod packed;
mod reference;
mod scratch;
#[cfg(test)]
mod tests;

pub use adamw::{AdamW, Rates};
pub use config::{ConfigError, ModelConfig, RopeParameters, Shape, Vocabulary};
pub use cpu::CpuEngine;
pub use engine::{Engine, EngineError, EngineState};
pub use initial::initial;
pub use layout::{Layout, Tensor};
pub use packed::{Packed, Target};
pub use reference::ReferenceEngine;
