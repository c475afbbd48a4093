//! `codex-tools ingest`: documents of files, folders, checkouts and commits of git, zip files and web addresses as training data, a line
//! of JSON each. Reads and writes files; uses the network for addresses.
//!
//! Texts are decoded to UTF-8 and, with rules, checked as prompts are: what a rule blocks is left out, what it redacts is
//! replaced.

mod command;
mod document;
#[cfg(test)]
mod fuzz;
mod git;
mod sources;
#[cfg(test)]
mod tests;

pub use self::command::{Ingest, IngestError};
