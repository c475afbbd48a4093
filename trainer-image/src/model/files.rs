//! The files of a model by their names, and what can be wrong with them. Pure, but for [`read_directory`].

use std::{collections::BTreeMap, path::Path};

use codex_engine::{ConfigError, EngineError};

use crate::{
    atomic_fs::{self, FileError},
    tokenizer::TokenizerError,
};

/// The bytes of a model's files by their names.
pub type ModelFiles = BTreeMap<String, Vec<u8>>;

/// The configuration.
pub(super) const CONFIG: &str = "config.json";
/// The tokenizer.
pub(super) const TOKENIZER: &str = "tokenizer.json";

/// All weights in one file.
pub(super) const WEIGHTS: &str = "model.safetensors";

/// A model that cannot be written or loaded.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file that is not there.
    #[error("the model has no file {0}")]
    Missing(String),
    /// A file that is no JSON of the right shape.
    #[error("{file} cannot be read")]
    Json {
        /// The file.
        file: &'static str,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A shape that is not computed here.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A tokenizer that cannot be used.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// Weights that cannot be read.
    #[error("{file} cannot be read")]
    Weights {
        /// The file.
        file: String,
        /// What is wrong with it.
        source: safetensors::SafeTensorError,
    },
    /// A weight that is not there.
    #[error("{WEIGHTS}: there is no {0}")]
    WeightMissing(String),
    /// A weight of another type or shape.
    #[error("{WEIGHTS}: {name} is {found}, but {CONFIG} asks for {expected}")]
    Weight {
        /// The weight.
        name: String,
        /// What it is.
        found: String,
        /// What it must be.
        expected: String,
    },
    /// The weights do not fit the model.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A directory that cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
}

/// Reads the regular files of a directory, one level deep, into memory.
///
/// # Errors
/// When the directory or a file in it cannot be read.
pub fn read_directory(path: &Path) -> Result<ModelFiles, ModelError> {
    let mut files = ModelFiles::new();
    let entries = std::fs::read_dir(path).map_err(FileError::of("reading directory", path))?;
    for entry in entries {
        let entry = entry.map_err(FileError::of("reading directory", path))?;
        if entry.file_type().map_err(FileError::of("reading", &entry.path()))?.is_file() {
            files.insert(entry.file_name().to_string_lossy().into_owned(), atomic_fs::read(&entry.path())?);
        }
    }
    Ok(files)
}
