//! `manifest.json`: what a tokenizer was made from, and what it is. Reads files.

use std::path::Path;

use codex_provenance::Sha256;
use serde::{Deserialize, Serialize};

use super::TokenizingError;
use crate::atomic_fs;

/// The version of the file's shape.
const SCHEMA_VERSION: u32 = 1;
/// The file's name.
pub(super) const NAME: &str = "manifest.json";

/// `manifest.json`. Holds no time and no path, so that the same input gives the same bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The version of the file's shape.
    pub schema_version: u32,
    /// `bpe`, `unigram` or `whitespace`.
    pub kind: String,
    /// Number of tokens.
    pub vocab_size: usize,
    /// The special tokens in the order of their ids.
    pub special_tokens: Vec<String>,
    /// The digests of the training files, in order.
    pub data: Vec<Sha256>,
    /// The digest of `tokenizer.json`.
    pub tokenizer: Sha256,
}

impl Manifest {
    /// Makes the manifest of a tokenizer.
    pub(super) fn new(
        kind: &str,
        vocab_size: usize,
        special_tokens: Vec<String>,
        data: Vec<Sha256>,
        tokenizer: &[u8],
    ) -> Self {
        let tokenizer = Sha256::of(tokenizer);
        Self { schema_version: SCHEMA_VERSION, kind: kind.to_owned(), vocab_size, special_tokens, data, tokenizer }
    }
}

/// Checks the tokenizer of a directory against its manifest, if there is one.
///
/// # Errors
/// The manifest is invalid, or `tokenizer.json` has another digest.
pub(super) fn check(directory: &Path) -> Result<(), TokenizingError> {
    let path = directory.join(NAME);
    if !path.exists() {
        return Ok(());
    }
    let manifest: Manifest = codex_json::from_slice(&atomic_fs::read(&path)?)
        .map_err(|error| TokenizingError::Manifest(format!("cannot be read: {error}")))?;
    if manifest.schema_version != SCHEMA_VERSION {
        let told = format!("has version {}: use {SCHEMA_VERSION}", manifest.schema_version);
        return Err(TokenizingError::Manifest(told));
    }
    let found = Sha256::of(atomic_fs::read(&directory.join("tokenizer.json"))?);
    if found != manifest.tokenizer {
        let told = format!("names {} for tokenizer.json, which has {found}", manifest.tokenizer);
        return Err(TokenizingError::Manifest(told));
    }
    Ok(())
}
