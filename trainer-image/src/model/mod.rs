//! The model as files, and greedy generation. What it computes is in `codex-engine`.

#![allow(
    clippy::inline_always,
    reason = "a kernel must be inlined into the function that is compiled for an instruction set"
)]
#![allow(clippy::many_single_char_names, reason = "x, y, w, m, n and k are the field's own names")]

mod directory;
mod files;
mod generate;
mod weights;

pub use directory::describe;
pub use files::{ModelError, ModelFiles, read_directory};
pub use generate::{Completion, Emitted, End, GenerateError, Generator};
