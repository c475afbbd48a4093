//! Training and generation on processors: kernels written by hand, forward and backward, over buffers that are kept between
//! steps. Activations are `f32` or `bf16`; the instruction set is chosen at run time.

mod activation;
mod attention;
mod bf16;
mod block;
mod buffer;
mod cache;
mod decoder;
mod dispatch;
mod eight;
mod embedding;
mod engine;
mod head;
mod isa;
mod kernels;
mod lora;
mod matrix;
mod memory;
mod norm;
mod panel;
mod peak;
mod team;
mod tile;

pub(crate) use bf16::Bf16;
pub(crate) use decoder::CpuDecoder;
pub use eight::round_to_eight_bits;
pub(crate) use engine::CpuEngine;
pub(crate) use head::surprise;
pub(crate) use isa::limit;
pub use isa::{Isa, KERNELS, UnknownIsa, VARIABLE as MAX_CPU_ISA, arch, instruction_set};
pub(crate) use matrix::{Dtype, Panels, product};
pub(crate) use memory::{lora_memory, memory};
