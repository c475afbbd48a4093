//! The model as files, and greedy generation. What it computes is in `codex-engine`.

#![allow(
    clippy::inline_always,
    reason = "a kernel must be inlined into the function that is compiled for an instruction set"
)]
#![allow(clippy::many_single_char_names, reason = "x, y, w, m, n and k are the field's own names")]

mod directory;
mod generate;
mod weights;

pub use directory::{ModelError, ModelFiles, describe, read_directory};
pub use generate::{Completion, Emitted, End, GenerateError, Generator};
