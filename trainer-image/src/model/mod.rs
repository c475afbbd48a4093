//! The model: a Llama-shaped decoder (RMSNorm, RoPE, SwiGLU, tied embeddings), its training graph in candle, and greedy
//! generation without a graph.

mod attention;
mod config;
mod decoder;
mod directory;
mod generate;
mod head;
mod kernels;
mod linear;
mod ops;

pub use config::{ConfigError, ModelConfig, Shape};
pub use decoder::{Decoder, Packed};
pub(crate) use directory::floats;
pub use directory::{ModelError, ModelFiles, describe, read_directory};
pub use generate::{Completion, Emitted, End, GenerateError, Generator};
