//! Model directories, and generation. The numerics are in `codex-engine`.

mod adapter;
mod directory;
#[cfg(test)]
mod families;
mod files;
mod generate;
mod golden;
mod likelihood;
#[cfg(test)]
mod loading;
mod rewrite;
mod size;
mod stored;
#[cfg(test)]
mod trained;
mod weights;

pub(crate) use adapter::describe_adapter;
pub use directory::describe;
pub(crate) use directory::{check_weights, open, read_parameters};
pub(crate) use files::is_kept;
pub use files::{ModelError, ModelFiles, read_directory};
pub(crate) use generate::Until;
pub use generate::{Completion, GenerateError, Generator};
pub use golden::{Differs, NotReproduced};
pub(crate) use rewrite::rewrite;
pub use size::TooLarge;
pub(crate) use size::check_size;
#[cfg(test)]
pub(crate) use weights::parameters;
pub(crate) use weights::{HEAD, convert, shards, short, width};
