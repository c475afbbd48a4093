//! Checkpoints on the volume: directories `step-00000400` with `state.safetensors`, `state.json` and, written last, a manifest
//! with the digests of both. Does I/O.
//!
//! A checkpoint is there whole or not at all, and is read only if its bytes hash to what its manifest says. `latest` is a
//! hint for people; what counts is a scan.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use codex_engine::ModelConfig;
use codex_provenance::{ConfigDigest, DataDigest, Sha256, manifest::Manifest};
use codex_reports::Checkpoint;
use serde::{Deserialize, Serialize};

use super::{State, TrainError};
use crate::durable::{self, FileError};

const STATE: &str = "state.safetensors";
const ABOUT: &str = "state.json";
const MANIFEST: &str = "manifest.json";
const LATEST: &str = "latest";
/// The version of `state.json`.
const SCHEMA_VERSION: u32 = 1;

/// What a run is: a checkpoint of another one is not gone on from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Identity {
    /// The digest of the resolved configuration.
    pub(super) config_digest: ConfigDigest,
    /// The run's seed.
    pub(super) seed: u64,
    /// The digests of the data by name.
    pub(super) data: BTreeMap<String, DataDigest>,
}

/// `state.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct About {
    schema_version: u32,
    step: u64,
    #[serde(flatten)]
    identity: Identity,
}

/// The checkpoints of one run.
#[derive(Debug)]
pub(super) struct Store {
    directory: PathBuf,
    identity: Identity,
    keep_last: usize,
}

/// What a scan found.
#[derive(Debug)]
pub(super) struct Found {
    /// The newest valid checkpoint's state.
    pub(super) state: State,
    /// Its name for reports.
    pub(super) checkpoint: Checkpoint,
}

/// Why a checkpoint is passed over.
enum Refusal {
    /// It is damaged: an older one may do.
    Damaged(String),
    /// It is not this run's.
    Fatal(Box<TrainError>),
}

impl<E: Into<TrainError>> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self::Fatal(Box::new(error.into()))
    }
}

impl Store {
    /// The store in `directory`, which keeps the `keep_last` newest.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub(super) fn open(directory: PathBuf, identity: Identity, keep_last: usize) -> Result<Self, TrainError> {
        durable::make_directory(&directory)?;
        Ok(Self { directory, identity, keep_last: keep_last.max(1) })
    }

    /// Writes a checkpoint, renames it into place, and removes those that are too old.
    ///
    /// # Errors
    /// When the file system refuses.
    pub(super) fn save(&self, state: &State) -> Result<Checkpoint, TrainError> {
        let about = About { schema_version: SCHEMA_VERSION, step: state.step, identity: self.identity.clone() };
        let mut about = serde_json::to_vec_pretty(&about)
            .map_err(std::io::Error::other)
            .map_err(FileError::of("encoding", Path::new(ABOUT)))?;
        about.push(b'\n');
        let files = BTreeMap::from([(STATE.to_owned(), state.to_bytes()?), (ABOUT.to_owned(), about)]);
        let name = name_of(state.step);
        let partial = self.directory.join(format!("{name}.partial"));
        remove(&partial)?;
        for (file, bytes) in &files {
            durable::write(&partial.join(file), bytes)?;
        }
        let manifest = serde_json_canonicalizer::to_vec(&Manifest::of_files(&files)?)
            .map_err(std::io::Error::other)
            .map_err(FileError::of("encoding", Path::new(MANIFEST)))?;
        let digest = durable::write(&partial.join(MANIFEST), &manifest)?;
        let place = self.directory.join(&name);
        // One that is in the way was found damaged, or is the same again.
        remove(&place)?;
        fs::rename(&partial, &place).map_err(FileError::of("renaming", &partial))?;
        durable::sync_directory(&self.directory)?;
        durable::write(&self.directory.join(LATEST), format!("{name}\n").as_bytes())?;
        let newest = self.scan()?.into_iter().filter(|(step, _)| *step <= state.step);
        for (_, old) in newest.skip(self.keep_last) {
            remove(&old)?;
        }
        Ok(Checkpoint { step: state.step, digest })
    }

    /// The newest checkpoint whose bytes are what its manifest says. `notice` hears of every one that is passed over.
    ///
    /// # Errors
    /// When the file system refuses, or when a valid checkpoint belongs to another run.
    pub(super) fn load(
        &self,
        config: &ModelConfig,
        mut notice: impl FnMut(String),
    ) -> Result<Option<Found>, TrainError> {
        for (step, path) in self.scan()? {
            match self.read(config, step, &path) {
                Ok(found) => return Ok(Some(found)),
                Err(Refusal::Fatal(error)) => return Err(*error),
                Err(Refusal::Damaged(why)) => {
                    notice(format!("checkpoint {} is damaged and is passed over: {why}", name_of(step)));
                }
            }
        }
        Ok(None)
    }

    fn read(&self, config: &ModelConfig, step: u64, path: &Path) -> Result<Found, Refusal> {
        let damaged = |file: &str, why: &dyn std::fmt::Display| Refusal::Damaged(format!("{file} {why}"));
        let read = |file: &str| match fs::read(path.join(file)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(damaged(file, &"is missing")),
            read => read.map_err(|error| FileError::of("reading", &path.join(file))(error).into()),
        };
        let manifest = read(MANIFEST)?;
        let digest = Sha256::of(&manifest);
        let manifest: Manifest = serde_json::from_slice(&manifest)
            .map_err(|error| damaged(MANIFEST, &format!("cannot be read: {error}")))?;
        let files = BTreeMap::from([(STATE.to_owned(), read(STATE)?), (ABOUT.to_owned(), read(ABOUT)?)]);
        let found = Manifest::of_files(&files).map_err(|error| Refusal::Damaged(error.to_string()))?;
        if let Some(difference) = manifest.diff(&found).first() {
            return Err(Refusal::Damaged(difference.to_string()));
        }
        let about: About = serde_json::from_slice(&files[ABOUT])
            .map_err(|error| damaged(ABOUT, &format!("cannot be read: {error}")))?;
        if about.schema_version != SCHEMA_VERSION || about.step != step {
            return Err(damaged(ABOUT, &format!("has version {} and step {}", about.schema_version, about.step)));
        }
        if about.identity.config_digest != self.identity.config_digest {
            let (found, expected) = (about.identity.config_digest, self.identity.config_digest);
            return Err(TrainError::ForeignCheckpoint { path: path.to_owned(), found, expected }.into());
        }
        if about.identity != self.identity {
            return Err(TrainError::ForeignData { path: path.to_owned() }.into());
        }
        let state = State::from_bytes(config.clone(), step, &files[STATE])?;
        Ok(Found { state, checkpoint: Checkpoint { step, digest } })
    }

    /// Checkpoints by step, newest first.
    fn scan(&self) -> Result<Vec<(u64, PathBuf)>, TrainError> {
        let reading = || FileError::of("reading directory", &self.directory);
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(reading())? {
            let path = entry.map_err(reading())?.path();
            let step = path.file_name().and_then(|name| name.to_str()?.strip_prefix("step-")?.parse().ok());
            if let Some(step) = step {
                found.push((step, path));
            }
        }
        found.sort_by_key(|(step, _)| std::cmp::Reverse(*step));
        Ok(found)
    }
}

fn name_of(step: u64) -> String {
    format!("step-{step:08}")
}

/// Removes a directory that may be there.
fn remove(path: &Path) -> Result<(), FileError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(FileError::of("removing", path)(error)),
        _ => Ok(()),
    }
}
