//! The errors of `codex tokenizer`. Pure.

use std::path::PathBuf;

use crate::{
    atomic_fs::{FileError, Misnamed},
    error::CommandError,
    overlap::Overlap,
    text::TokenizerError,
};

/// A tokenizer cannot be trained, read or used.
#[derive(Debug, thiserror::Error)]
pub enum TokenizingError {
    /// The tokenizer is invalid, or refuses a text.
    #[error(transparent)]
    Tokenizer(TokenizerError),
    /// The tokenizer refuses a line.
    #[error("{}:{line}", file.display())]
    Line {
        /// The file.
        file: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// Why.
        source: TokenizerError,
    },
    /// A line does not come back as it was.
    #[error("{}:{line}: the tokens of this line give another text from character {at} on: the tokenizer loses text", file.display())]
    Lossy {
        /// The file.
        file: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// The first character that differs, counted from 1.
        at: usize,
    },
    /// A text file is not UTF-8.
    #[error("{}:{line}: not UTF-8: save the file as UTF-8", file.display())]
    Encoding {
        /// The file.
        file: PathBuf,
        /// The line, counted from 1.
        line: usize,
    },
    /// A token id is outside the vocabulary.
    #[error("token id {id} is outside the vocabulary of {vocabulary}")]
    Id {
        /// The id.
        id: u32,
        /// Size of the vocabulary.
        vocabulary: usize,
    },
    /// Padding is impossible.
    #[error("{0}")]
    Padding(&'static str),
    /// The output exists.
    #[error("{0:?} exists: name a directory that does not exist yet")]
    Exists(PathBuf),
    /// The training data has no text.
    #[error("--data has no text: name files with at least one line that is not blank")]
    Empty,
    /// The trainer failed, or made another vocabulary than possible.
    #[error("training the tokenizer failed: {0}")]
    Training(String),
    /// The vocabulary is too small.
    #[error("--vocab-size {size} is too small: the special tokens and the alphabet need {needed}")]
    Small {
        /// The size.
        size: usize,
        /// The smallest size.
        needed: usize,
    },
    /// `manifest.json` is invalid, or names another digest.
    #[error("manifest.json {0}")]
    Manifest(String),
    /// A named file is missing or of the wrong kind.
    #[error(transparent)]
    Misnamed(#[from] Misnamed),
    /// The output would change the input.
    #[error(transparent)]
    Overlap(#[from] Overlap),
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
}

impl From<TokenizingError> for CommandError {
    fn from(error: TokenizingError) -> Self {
        match error {
            TokenizingError::File(error) | TokenizingError::Tokenizer(TokenizerError::File(error)) => error.into(),
            error => Self::bad_input(error),
        }
    }
}
