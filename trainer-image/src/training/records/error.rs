//! Why the records of a run cannot be read. Pure.

use std::path::PathBuf;

use crate::atomic_fs::FileError;

/// A file of rows that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RecordsError {
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// A line is not a row.
    #[error("{path:?}, line {line} is not a row of this file: it is damaged, or of another version")]
    Line {
        /// The file.
        path: PathBuf,
        /// Number of the line, counted from 1.
        line: usize,
        /// Error of the parser.
        #[source]
        source: serde_json::Error,
    },
    /// The steps do not increase.
    #[error("{path:?}, line {line} has step {step} after step {before}: the file was modified")]
    Order {
        /// The file.
        path: PathBuf,
        /// Number of the line, counted from 1.
        line: usize,
        /// Step of the line.
        step: u64,
        /// Step of the line before.
        before: u64,
    },
    /// The chain does not match its digests.
    #[error("{path:?}, line {line}: the chain does not match the digests up to step {step}: the file was modified")]
    Chain {
        /// The file.
        path: PathBuf,
        /// Number of the line, counted from 1.
        line: usize,
        /// Step of the line.
        step: u64,
    },
}
