//! Reading of checkpoints: finds the newest undamaged one and reads its tensors. Does I/O.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use codex_engine::Layout;
use codex_provenance::{
    Sha256,
    manifest::{File as Listed, Manifest},
};
use codex_reports::Checkpoint;

use super::{
    CheckpointError, Origin,
    format::{ABOUT, MANIFEST, ORIGIN, SCHEMA_VERSION, STATE, StateInfo, canonical_bytes, hash_file, name_of, scan},
};
use crate::{
    atomic_fs::FileError,
    training::{listing::some_of, state::Snapshot},
};

/// A checkpoint whose files match its manifest. Its tensors are not read yet.
#[derive(Clone, Debug)]
pub(crate) struct ValidCheckpoint {
    /// Directory of the checkpoint.
    pub(crate) path: PathBuf,
    /// Step and digest for reports.
    pub(crate) checkpoint: Checkpoint,
    /// Content of `state.json`.
    pub(crate) info: StateInfo,
    /// Content of `origin.json`; `None` if it is missing or cannot be read.
    pub(crate) origin: Option<Origin>,
}

/// Why a checkpoint is skipped or ends the search.
enum Refusal {
    /// It is damaged; an older one may be usable.
    Damaged(String),
    /// The run cannot resume at all.
    Fatal(Box<CheckpointError>),
}

impl<E: Into<CheckpointError>> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self::Fatal(Box::new(error.into()))
    }
}

/// Returns the newest checkpoint in `directory` whose files match its manifest, at or before step `most`. `notice` is called for
/// every damaged checkpoint. A missing directory has no checkpoints.
///
/// # Errors
/// When a file operation fails, or another version wrote a checkpoint.
pub(crate) fn newest(
    directory: &Path,
    most: u64,
    mut notice: impl FnMut(String),
) -> Result<Option<ValidCheckpoint>, CheckpointError> {
    for (step, path) in scan(directory)? {
        if step > most {
            continue;
        }
        match examine(step, path) {
            Ok(found) => return Ok(Some(found)),
            Err(Refusal::Fatal(error)) => return Err(*error),
            Err(Refusal::Damaged(why)) => {
                notice(format!("checkpoint {} is damaged and is skipped: {why}", name_of(step)));
            }
        }
    }
    Ok(None)
}

/// Returns `state.json` of the newest checkpoint in `directory` without hashing its files; `None` if it cannot be read.
///
/// # Errors
/// When a file operation fails.
pub(crate) fn peek(directory: &Path) -> Result<Option<(PathBuf, StateInfo)>, FileError> {
    let newest = scan(directory)?.into_iter().next();
    Ok(newest.and_then(|(_, path)| {
        let about = serde_json::from_slice(&fs::read(path.join(ABOUT)).ok()?).ok()?;
        Some((path, about))
    }))
}

/// Checks the files of one checkpoint.
fn examine(step: u64, path: PathBuf) -> Result<ValidCheckpoint, Refusal> {
    let damaged = |file: &str, why: &dyn std::fmt::Display| Refusal::Damaged(format!("{file} {why}"));
    let read = |file: &str| match fs::read(path.join(file)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(damaged(file, &"is missing")),
        read => read.map_err(|error| FileError::of("reading", &path.join(file))(error).into()),
    };
    let written = read(MANIFEST)?;
    let digest = Sha256::of(&written);
    let manifest: Manifest =
        codex_json::from_slice(&written).map_err(|error| damaged(MANIFEST, &format!("cannot be read: {error}")))?;
    let about = read(ABOUT)?;
    let listed = Listed { path: ABOUT.to_owned(), size: about.len() as u64, sha256: Sha256::of(&about) };
    let state = hash_file(&path, STATE)?.ok_or_else(|| damaged(STATE, &"is missing"))?;
    let found = Manifest::of_hashed([state, listed]).map_err(|error| Refusal::Damaged(error.to_string()))?;
    if let Some(difference) = manifest.diff(&found).first() {
        return Err(Refusal::Damaged(difference.to_string()));
    }
    if canonical_bytes(&found)? != written {
        return Err(damaged(MANIFEST, &"is not in canonical form"));
    }
    let unreadable = |error: serde_json::Error| damaged(ABOUT, &format!("cannot be read: {error}"));
    // The version comes first: a file of another version may have any shape. It is undamaged, so it must not be overwritten.
    let value: serde_json::Value = codex_json::from_slice(&about).map_err(unreadable)?;
    let version = value["schemaVersion"].as_u64();
    if version != Some(u64::from(SCHEMA_VERSION)) {
        return Err(CheckpointError::Version { path, found: version.unwrap_or_default() }.into());
    }
    let info: StateInfo = codex_json::from_value(value).map_err(unreadable)?;
    if info.step != step {
        return Err(damaged(ABOUT, &format!("has step {}", info.step)));
    }
    let origin = fs::read(path.join(ORIGIN)).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    Ok(ValidCheckpoint { checkpoint: Checkpoint { step, digest }, info, origin, path })
}

impl ValidCheckpoint {
    /// Reads the tensors of a model of `layout`, and checks them against `state.json`.
    ///
    /// # Errors
    /// When the file does not match.
    pub(crate) fn read(&self, layout: &Arc<Layout>) -> Result<Snapshot, CheckpointError> {
        let path = self.path.join(STATE);
        let file = File::open(&path).map_err(FileError::of("reading", &path))?;
        let (snapshot, digests) = Snapshot::read(self.info.step, layout, file)
            .map_err(|source| CheckpointError::State { path: path.clone(), source: Box::new(source) })?;
        if digests.whole != self.info.state_digest {
            let names: BTreeSet<_> = digests.tensors.keys().chain(self.info.tensors.keys()).collect();
            let differs = |name: &&String| digests.tensors.get(*name) != self.info.tensors.get(*name);
            let names: Vec<&str> = names.iter().copied().filter(differs).map(String::as_str).collect();
            return Err(CheckpointError::Digest { path, tensors: some_of(&names, ", ") });
        }
        Ok(snapshot)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::store::testing::{layout, save, snapshot, store},
        *,
    };
    use crate::training::test_support::scratch;

    #[test]
    fn a_checkpoint_of_another_version_is_neither_read_nor_skipped() {
        let directory = tempfile::tempdir().unwrap();
        let written = save(&mut store(directory.path(), &[]), 100, &[]);
        let place = directory.path().join(name_of(written.checkpoint.step));
        let about =
            fs::read_to_string(place.join(ABOUT)).unwrap().replace("\"schemaVersion\": 2", "\"schemaVersion\": 3");
        fs::write(place.join(ABOUT), about).unwrap();
        let listed = [STATE, ABOUT].map(|name| hash_file(&place, name).unwrap().unwrap());
        let manifest = serde_json_canonicalizer::to_vec(&Manifest::of_hashed(listed).unwrap()).unwrap();
        fs::write(place.join(MANIFEST), manifest).unwrap();
        let error = newest(directory.path(), u64::MAX, |_| ()).unwrap_err();
        assert!(matches!(error, CheckpointError::Version { found: 3, .. }), "{error}");
    }

    proptest! {
        /// One changed or missing byte in the manifest or a file that it covers: the previous checkpoint is used, with a notice.
        #[test]
        fn all_damage_is_detected(file in 0_usize..3, at in any::<prop::sample::Index>(), change in prop::option::of(1_u8..)) {
            let directory = tempfile::tempdir_in(scratch()).unwrap();
            let mut store = store(directory.path(), &[]);
            for step in [100, 200] {
                save(&mut store, step, &[]);
            }
            let path = directory.path().join(name_of(200)).join([STATE, ABOUT, MANIFEST][file]);
            let mut bytes = fs::read(&path).unwrap();
            let at = at.index(bytes.len());
            match change {
                Some(change) => bytes[at] ^= change,
                None => bytes.truncate(at),
            }
            fs::write(&path, bytes).unwrap();
            let mut notices = Vec::new();
            let found = newest(directory.path(), u64::MAX, |notice| notices.push(notice)).unwrap().unwrap();
            prop_assert_eq!(found.checkpoint.step, 100);
            prop_assert!(notices.len() == 1 && notices[0].starts_with("checkpoint step-00000200 is damaged"));
        }
    }

    proptest! {
        /// A manifest that was made to match forged files gives one clear message, or the digests of tensors reject the files;
        /// nothing panics.
        #[test]
        fn forged_files_are_refused_with_a_message(
            at in any::<prop::sample::Index>(), to in any::<u8>(), tensors: bool, cut in prop::option::of(0_usize..400),
        ) {
            let directory = tempfile::tempdir_in(scratch()).unwrap();
            save(&mut store(directory.path(), &[]), 100, &[("loss", 1.5)]);
            let place = directory.path().join(name_of(100));
            let path = place.join(if tensors { STATE } else { ABOUT });
            let genuine = fs::read(&path).unwrap();
            let mut bytes = genuine.clone();
            let at = at.index(bytes.len());
            bytes[at] = to;
            bytes.truncate(cut.unwrap_or(usize::MAX));
            fs::write(&path, &bytes).unwrap();
            let listed = [STATE, ABOUT].map(|name| hash_file(&place, name).unwrap().unwrap());
            fs::write(place.join(MANIFEST), canonical_bytes(&Manifest::of_hashed(listed).unwrap()).unwrap()).unwrap();
            let mut notices = Vec::new();
            let said = match newest(directory.path(), u64::MAX, |notice| notices.push(notice)) {
                Ok(None) => notices.concat(),
                Err(error) => crate::error::chain(&error),
                Ok(Some(found)) => match found.read(&layout()) {
                    Err(error) => crate::error::chain(&error),
                    Ok(read) => {
                        // Only changes outside the data, names and digests of tensors are accepted.
                        prop_assert!(read == snapshot(100));
                        String::new()
                    }
                },
            };
            prop_assert!(said.is_empty() || said.contains("state.") || said.contains("of format"), "{}", said);
        }
    }
}
