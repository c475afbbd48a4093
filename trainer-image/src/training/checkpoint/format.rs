//! Names and content of the files of a checkpoint. Does I/O.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use codex_provenance::{
    ConfigDigest, DataDigest, ModelDigest, Sha256,
    manifest::{File as Listed, Manifest},
};
use serde::{Deserialize, Serialize};
use sha2::Digest as _;

use crate::atomic_fs::FileError;

pub(crate) const STATE: &str = "state.safetensors";
pub(crate) const ABOUT: &str = "state.json";
pub(crate) const ORIGIN: &str = "origin.json";
pub(crate) const MANIFEST: &str = "manifest.json";
pub(crate) const LATEST: &str = "latest";
pub(crate) const INDEX: &str = "index.json";
/// Version of `state.json` and of the tensor names.
pub(crate) const SCHEMA_VERSION: u32 = 2;

/// Identity of a run; a run never resumes from the checkpoint of another one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct RunIdentity {
    /// Digest of the resolved configuration.
    pub(crate) config_digest: ConfigDigest,
    /// All settings.
    pub(crate) settings: serde_json::Value,
    /// Digest of the base, if the run starts from one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) base: Option<ModelDigest>,
    /// Seed of the run.
    pub(crate) seed: u64,
    /// Digests of the data by name.
    pub(crate) data: BTreeMap<String, DataDigest>,
}

/// Content of `state.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct StateInfo {
    /// [`SCHEMA_VERSION`].
    pub(crate) schema_version: u32,
    /// Optimizer steps done.
    pub(crate) step: u64,
    /// Identity of the run.
    pub(crate) identity: RunIdentity,
    /// Latest finite measurements by name.
    pub(crate) metrics: BTreeMap<String, f64>,
    /// Digest of the whole state.
    pub(crate) state_digest: Sha256,
    /// Digest of each tensor.
    pub(crate) tensors: BTreeMap<String, Sha256>,
}

/// Hashes a file piece by piece and returns its manifest entry; `None` if it does not exist.
pub(super) fn hash_file(directory: &Path, name: &str) -> Result<Option<Listed>, FileError> {
    let path = directory.join(name);
    let mut file = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(FileError::of("reading", &path))?,
    };
    let (mut hasher, mut buffer, mut size) = (sha2::Sha256::new(), vec![0; 1 << 18], 0);
    loop {
        let count = file.read(&mut buffer).map_err(FileError::of("reading", &path))?;
        if count == 0 {
            return Ok(Some(Listed { path: name.to_owned(), size, sha256: Sha256::finish(hasher) }));
        }
        hasher.update(&buffer[..count]);
        size += count as u64;
    }
}

/// Returns the bytes of a manifest file.
pub(super) fn canonical_bytes(manifest: &Manifest) -> Result<Vec<u8>, FileError> {
    serde_json_canonicalizer::to_vec(manifest)
        .map_err(io::Error::other)
        .map_err(FileError::of("encoding", Path::new(MANIFEST)))
}

/// Lists checkpoints by step, newest first; none if the directory does not exist.
pub(crate) fn scan(directory: &Path) -> Result<Vec<(u64, PathBuf)>, FileError> {
    let found = names(directory)?.into_iter().filter_map(|name| Some((step_of(&name)?, directory.join(name))));
    let mut found: Vec<_> = found.collect();
    found.sort_by_key(|(step, _)| std::cmp::Reverse(*step));
    Ok(found)
}

/// Lists the names in a directory; none if it does not exist.
pub(super) fn names(directory: &Path) -> Result<Vec<String>, FileError> {
    let reading = || FileError::of("reading directory", directory);
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(reading())?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry.map_err(reading())?.file_name().into_string());
    }
    Ok(names)
}

/// Returns the directory name of a checkpoint.
pub(crate) fn name_of(step: u64) -> String {
    format!("step-{step:08}")
}

/// Returns the step of a directory name.
pub(super) fn step_of(name: &str) -> Option<u64> {
    name.strip_prefix("step-")?.parse().ok()
}
