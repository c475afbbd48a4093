//! Why a task is not evaluated. Pure.

use std::path::PathBuf;

use codex_provenance::ModelDigest;
use codex_reports::exit;

use crate::{
    atomic_fs::{FileError, Misnamed},
    error::CommandError,
    evaluation::UnusableModel,
    model::GenerateError,
    overlap::Overlap,
};

/// Why a task is not evaluated.
#[derive(Debug, thiserror::Error)]
pub enum HarnessError {
    /// Arguments that do not go together.
    #[error("{0}")]
    Arguments(String),
    /// Something in a task's file is wrong, or outside of what is supported.
    #[error("{file}:{line}: {what}: {why}")]
    Task {
        /// The file.
        file: String,
        /// The line, counted from 1.
        line: usize,
        /// The key.
        what: String,
        /// What is wrong, and what to write instead.
        why: String,
    },
    /// A document of the task cannot be used.
    #[error("{file}: document {document}: {why}")]
    Document {
        /// The file.
        file: String,
        /// The number of the document, from 0, as in the samples.
        document: usize,
        /// What is wrong with it.
        why: String,
    },
    /// The model cannot be asked about a document; counting it as wrong would judge the document and not the model.
    #[error("{file}: document {document}: the model cannot be asked")]
    Prompt {
        /// The file.
        file: String,
        /// The number of the document, from 0.
        document: usize,
        /// Why.
        #[source]
        source: GenerateError,
    },
    /// Samples that cannot be scored again.
    #[error("--rescore: {}: {why}", path.display())]
    Samples {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A model other than the one that is to be evaluated.
    #[error("the model in {} hashes to {found}, but --model-digest is {expected}", path.display())]
    ModelMismatch {
        /// The model directory.
        path: PathBuf,
        /// What it hashes to.
        found: ModelDigest,
        /// What it must hash to.
        expected: ModelDigest,
    },
    /// A model that cannot be used.
    #[error(transparent)]
    Model(#[from] UnusableModel),
    /// A file that was named and is none.
    #[error(transparent)]
    Misnamed(#[from] Misnamed),
    /// An output would change an input.
    #[error(transparent)]
    Overlap(#[from] Overlap),
    /// The file system refused.
    #[error(transparent)]
    File(#[from] FileError),
}

impl HarnessError {
    /// The process's exit code. It is never [`exit::FAILED`], which says that a gate failed.
    fn exit(&self) -> i32 {
        match self {
            Self::File(_) => exit::NOT_EVALUATED,
            _ => exit::BAD_INPUT,
        }
    }
}

impl From<HarnessError> for CommandError {
    fn from(error: HarnessError) -> Self {
        Self { exit: error.exit(), source: Box::new(error) }
    }
}
