//! The files of a model by their names, and the errors in them. Pure, but for [`read_directory`].

use std::{collections::BTreeMap, path::Path};

use codex_engine::{ConfigError, EngineError};
use safetensors::SafeTensorError;

use crate::{
    atomic_fs::{self, FileError},
    text::TokenizerError,
};

/// The bytes of a model's files by their names.
pub type ModelFiles = BTreeMap<String, Vec<u8>>;

/// The configuration.
pub(super) const CONFIG: &str = "config.json";
/// Defaults of generation.
pub(super) const GENERATION: &str = "generation_config.json";

/// All weights in one file.
pub(crate) const WEIGHTS: &str = "model.safetensors";

/// A model cannot be written or loaded.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file is missing.
    #[error("the model has no file {0}")]
    Missing(String),
    /// A file is not JSON of the right shape.
    #[error("{file} cannot be read")]
    Json {
        /// The file.
        file: &'static str,
        /// The parser's error.
        source: serde_json::Error,
    },
    /// The configuration is not supported.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The tokenizer is not supported.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The header of a file of weights is damaged.
    #[error("{file} cannot be read: {why}")]
    Header {
        /// The file.
        file: String,
        /// What is wrong.
        why: String,
    },
    /// A tensor is missing.
    #[error("{WEIGHTS}: {0} is missing")]
    WeightMissing(String),
    /// A tensor has an unsupported type or another shape.
    #[error("{WEIGHTS}: {name} is {found}, but {CONFIG} asks for {expected}")]
    Weight {
        /// The tensor.
        name: String,
        /// Its type and shape.
        found: String,
        /// The required type and shape.
        expected: String,
    },
    /// A value of a tensor is infinite or NaN.
    #[error("{WEIGHTS}: {name} is not finite: value {at} is {value}")]
    NotFinite {
        /// The tensor.
        name: String,
        /// The index of the first such value.
        at: usize,
        /// The value.
        value: f32,
    },
    /// A tensor is not part of the model that the configuration describes.
    #[error("{WEIGHTS}: {CONFIG} has no place for {0}")]
    WeightUnused(String),
    /// Two files have the same tensor.
    #[error("{file}: {name} is in another file, too")]
    WeightRepeated {
        /// The second file.
        file: String,
        /// The tensor.
        name: String,
    },
    /// The id of a special token is not in the vocabulary.
    #[error("{file}: {field} {id} is out of range; the vocabulary has {size} tokens")]
    TokenId {
        /// The file.
        file: &'static str,
        /// The field of the configuration.
        field: &'static str,
        /// The id.
        id: u32,
        /// Size of the vocabulary.
        size: usize,
    },
    /// The tokenizer has ids that the model has no embedding for.
    #[error("tokenizer.json has {tokens} tokens, but vocab_size of {CONFIG} is {size}: it belongs to another model")]
    Vocabulary {
        /// Tokens of the tokenizer.
        tokens: usize,
        /// Size of the vocabulary.
        size: usize,
    },
    /// The weights do not fit the model.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A directory or file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
}

impl ModelError {
    /// Makes the error of a file of weights. What the library says about a header that is not JSON would quote it.
    pub(super) fn weights(file: &str, error: &SafeTensorError) -> Self {
        let why = match error {
            SafeTensorError::InvalidHeaderDeserialization(_) => {
                "its header is not that of a safetensors file".to_owned()
            }
            other => other.to_string(),
        };
        Self::Header { file: file.to_owned(), why }
    }
}

/// Whether a file is held in memory when a model is loaded. Weights are read from their files, a few at a time.
pub(crate) fn is_kept(name: &str) -> bool {
    !name.ends_with(".safetensors")
}

/// Reads the regular files of a directory, one level deep, into memory.
///
/// # Errors
/// When the directory or a file in it cannot be read.
pub fn read_directory(path: &Path) -> Result<ModelFiles, ModelError> {
    read_some(path, |_| true)
}

/// As [`read_directory`], for the files that `wanted` names.
pub(super) fn read_some(path: &Path, wanted: impl Fn(&str) -> bool) -> Result<ModelFiles, ModelError> {
    let mut files = ModelFiles::new();
    let entries = std::fs::read_dir(path).map_err(FileError::of("reading directory", path))?;
    for entry in entries {
        let entry = entry.map_err(FileError::of("reading directory", path))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type().map_err(FileError::of("reading", &entry.path()))?.is_file() && wanted(&name) {
            files.insert(name, atomic_fs::read(&entry.path())?);
        }
    }
    Ok(files)
}
