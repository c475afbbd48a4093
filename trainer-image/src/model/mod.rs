//! The model: a Llama-shaped decoder (`RMSNorm`, RoPE, SwiGLU, tied embeddings), its training graph in candle, and greedy
//! generation without a graph.

#![allow(
    clippy::inline_always,
    reason = "a kernel must be inlined into the function that is compiled for an instruction set"
)]
#![allow(clippy::many_single_char_names, reason = "x, y, w, m, n and k are the field's own names")]

mod attention;
mod block;
mod config;
mod decoder;
mod directory;
mod generate;
mod head;
mod kernels;
mod layout;
mod linear;
mod ops;
mod scratch;

pub use config::{ConfigError, ModelConfig, Shape};
pub use decoder::{Decoder, Exported, Packed};
pub(crate) use directory::floats;
pub use directory::{ModelError, ModelFiles, describe, read_directory};
pub use generate::{Completion, Emitted, End, GenerateError, Generator};
pub(crate) use layout::groups;
pub use layout::{Group, Part};
