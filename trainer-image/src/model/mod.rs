//! Model directories, and generation. The numerics are in `codex-engine`.

mod directory;
mod files;
mod generate;
mod stored;
#[cfg(test)]
mod trained;
mod weights;

pub use directory::describe;
#[cfg(test)]
pub(crate) use weights::parameters;

pub use files::{ModelError, ModelFiles, read_directory};
pub use generate::{Completion, GenerateError, Generator};
