//! How a command ends without its result: its error, and the exit code that says whether another attempt can succeed. Pure.
//!
//! Every module maps its own error to a [`CommandError`]; nothing here knows the commands.

use std::error::Error;

pub use codex_reports::chain;
use codex_reports::exit;

/// An error that ends a command, with its exit code.
#[derive(Debug, thiserror::Error)]
#[error("{source}")]
pub struct CommandError {
    /// One of [`codex_reports::exit`].
    pub exit: i32,
    /// The error.
    #[source]
    pub source: Box<dyn Error + Send + Sync>,
}

impl CommandError {
    /// The input is wrong, so another attempt cannot succeed (exit code 2).
    pub fn bad_input(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { exit: exit::BAD_INPUT, source: error.into() }
    }

    /// Another attempt may succeed (exit code 1).
    pub fn failed(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { exit: exit::FAILED, source: error.into() }
    }

    /// Returns the error and its causes as one line.
    pub fn sentence(&self) -> String {
        chain(self.source.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn a_sentence_has_the_error_and_its_causes() {
        let error = CommandError::bad_input(Outer(std::io::Error::other("inner")));
        assert_eq!(error.sentence(), "outer: inner");
        assert_eq!(error.exit, 2);
    }
}
