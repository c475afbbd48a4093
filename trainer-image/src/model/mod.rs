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
mod written;

pub(crate) use adapter::{ADAPTER_CONFIG, ADAPTER_WEIGHTS, describe_adapter};
pub use directory::describe;
pub(crate) use directory::{check_weights, open, read_parameters};
pub use files::{ModelError, ModelFiles, read_directory};
pub(crate) use files::{WEIGHTS, is_kept};
pub(crate) use generate::Until;
pub use generate::{Completion, GenerateError, Generator};
pub use golden::{Differs, NotReproduced};
pub(crate) use likelihood::Continuation;
pub(crate) use rewrite::rewrite;
pub use size::TooLarge;
pub(crate) use size::check_size;
#[cfg(test)]
pub(crate) use weights::parameters;
pub(crate) use weights::{HEAD, INDEX, convert, shards, short, width};
pub use written::write_hashed;
