//! Model directories, and greedy generation. The numerics are in `codex-engine`.

mod directory;
mod files;
mod generate;
#[cfg(test)]
mod trained;
mod weights;

pub use directory::describe;
pub use files::{ModelError, ModelFiles, read_directory};
pub use generate::{Completion, GenerateError, Generator};
