//! The errors of an import. Pure.

use std::path::PathBuf;

use crate::{atomic_fs::FileError, error::CommandError, text::TokenizerError};

/// A model cannot be imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The output exists.
    #[error("{0:?} exists: name a directory that does not exist yet")]
    Exists(PathBuf),
    /// The file is not GGUF, or damaged.
    #[error("{file:?} cannot be read as GGUF: {why}")]
    Damaged {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A key of the metadata is missing or has the wrong type.
    #[error("the metadata has no {what} {key}: export the model again with a current converter")]
    Key {
        /// The key.
        key: String,
        /// The expected type.
        what: &'static str,
    },
    /// The file asks for something that is not supported.
    #[error("{key} is {value}, which is not supported: {right}")]
    Unsupported {
        /// The key or tensor.
        key: String,
        /// Its value.
        value: String,
        /// What is supported.
        right: &'static str,
    },
    /// A tensor is missing.
    #[error("tensor {0} is missing")]
    Missing(String),
    /// A tensor has another shape.
    #[error("tensor {name} is {found:?}, but the metadata asks for {expected:?}")]
    Shape {
        /// The tensor.
        name: String,
        /// Its shape.
        found: Vec<usize>,
        /// The expected shape.
        expected: Vec<usize>,
    },
    /// A value of a tensor is infinite or NaN.
    #[error("tensor {0} has values that are not finite")]
    NotFinite(String),
    /// The model has no place for a tensor.
    #[error("tensor {0} is not part of a llama model: only models without additional weights are supported")]
    Unused(String),
    /// The shape of the model is not supported.
    #[error(transparent)]
    Config(#[from] codex_engine::ConfigError),
    /// The tokenizer cannot be rebuilt.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
}

impl ImportError {
    /// Makes the error of a key with an unsupported value.
    pub(super) fn unsupported(key: &str, value: impl std::fmt::Display, right: &'static str) -> Self {
        Self::Unsupported { key: key.to_owned(), value: value.to_string(), right }
    }
}

impl From<ImportError> for CommandError {
    fn from(error: ImportError) -> Self {
        match error {
            ImportError::File(error) => error.into(),
            error => Self::bad_input(error),
        }
    }
}
