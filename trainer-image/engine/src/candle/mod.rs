//! The same models in candle's tensors, on any device that candle knows: the backend for GPUs, and on CPU for shapes that the
//! kernels do not know. It is also the oracle that the kernels are tested against.
//!
//! - `model.rs` is the forward pass, `attention.rs` connects the rows of sequences, `head.rs` is the loss.
//! - `ops.rs` holds operations with gradients of their own, `documents.rs` that of attention in a packed batch.
//! - `engine.rs` trains, `decoder.rs` generates.

mod attention;
mod decoder;
mod device;
mod documents;
mod engine;
mod head;
mod memory;
mod model;
mod ops;
#[cfg(test)]
mod tests;

pub(crate) use decoder::CandleDecoder;
pub(crate) use device::open;
pub(crate) use engine::CandleEngine;
pub(crate) use memory::{lora_memory, memory};
