//! Checkpoints on the volume: directories `step-00000400` with `state.safetensors`, `state.json`, `origin.json` and, written
//! last, a manifest with the digests of the first two. Does I/O.
//!
//! A checkpoint is there whole or not at all, and is read only if its bytes hash to what its manifest says and its tensors to
//! what `state.json` says. `origin.json` tells the machine and the version that wrote it; it is no part of the state, so that
//! equal states are equal files. `latest` and `index.json` are hints for people; what counts is a scan.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use codex_engine::Layout;
use codex_provenance::{
    ConfigDigest, DataDigest, Sha256,
    manifest::{File as Listed, Manifest},
};
use codex_reports::Checkpoint;
use serde::{Deserialize, Serialize};
use sha2::Digest as _;

use super::{
    TrainError,
    origin::Origin,
    retention::{Entry, Retention},
    snapshot::{Digests, Snapshot},
};
use crate::atomic_fs::{self, FileError};

pub(super) const STATE: &str = "state.safetensors";
const ABOUT: &str = "state.json";
const ORIGIN: &str = "origin.json";
const MANIFEST: &str = "manifest.json";
const LATEST: &str = "latest";
const INDEX: &str = "index.json";
/// The version of `state.json` and of the tensors' names.
pub(super) const SCHEMA_VERSION: u32 = 2;

/// What a run is: a checkpoint of another one is not gone on from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Identity {
    /// The digest of the resolved configuration.
    pub(super) config_digest: ConfigDigest,
    /// Everything that was configured.
    pub(super) settings: serde_json::Value,
    /// The run's seed.
    pub(super) seed: u64,
    /// The digests of the data by name.
    pub(super) data: BTreeMap<String, DataDigest>,
}

/// `state.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct About {
    /// [`SCHEMA_VERSION`].
    pub(super) schema_version: u32,
    /// Optimiser steps done.
    pub(super) step: u64,
    /// The run.
    pub(super) identity: Identity,
    /// What was measured last, by name.
    pub(super) metrics: BTreeMap<String, f64>,
    /// The digest of the whole state.
    pub(super) state_digest: Sha256,
    /// The digest of each tensor.
    pub(super) tensors: BTreeMap<String, Sha256>,
}

/// The checkpoints of one run.
#[derive(Debug)]
pub(super) struct Store {
    directory: PathBuf,
    identity: Identity,
    retention: Retention,
    entries: BTreeMap<u64, Entry>,
}

/// A checkpoint that is durable.
#[derive(Clone, Debug)]
pub(super) struct Written {
    /// Its name for reports.
    pub(super) checkpoint: Checkpoint,
    /// Bytes of all files.
    pub(super) size: u64,
    /// How long it took.
    pub(super) took: Duration,
}

/// A valid checkpoint that was found, its tensors not read yet.
#[derive(Clone, Debug)]
pub(super) struct Found {
    /// Its directory.
    pub(super) path: PathBuf,
    /// Its name for reports.
    pub(super) checkpoint: Checkpoint,
    /// `state.json`.
    pub(super) about: About,
    /// `origin.json`; none where it is missing or cannot be read.
    pub(super) origin: Option<Origin>,
}

/// Why a checkpoint is passed over.
enum Refusal {
    /// It is damaged: an older one may do.
    Damaged(String),
    /// Nothing can go on from here.
    Fatal(Box<TrainError>),
}

impl<E: Into<TrainError>> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self::Fatal(Box::new(error.into()))
    }
}

/// A writer that hashes what goes through it.
struct Hashing<W> {
    inner: W,
    hasher: sha2::Sha256,
    size: u64,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        #[cfg(test)]
        super::death::count(&mut self.inner, bytes);
        let count = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        self.size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Writes a new file that must not be there yet, durably, and says what a manifest says about it.
fn create(
    directory: &Path,
    name: &str,
    write: impl FnOnce(&mut Hashing<&File>) -> io::Result<()>,
) -> Result<Listed, FileError> {
    let path = directory.join(name);
    let file = File::create_new(&path).map_err(FileError::of("creating", &path))?;
    let mut out = Hashing { inner: &file, hasher: sha2::Sha256::new(), size: 0 };
    write(&mut out).and_then(|()| file.sync_all()).map_err(FileError::of("writing", &path))?;
    Ok(Listed { path: name.to_owned(), size: out.size, sha256: Sha256::finish(out.hasher) })
}

/// What a manifest says about a file, read piece by piece; none when it is not there.
fn hash(directory: &Path, name: &str) -> Result<Option<Listed>, FileError> {
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

fn json(value: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec_pretty(value)?;
    bytes.push(b'\n');
    Ok(bytes)
}

impl Store {
    /// The store in `directory`, which is made when it is missing, to write to. What an attempt that was killed left half
    /// written or half removed is cleared away.
    ///
    /// # Errors
    /// When the file system refuses.
    pub(super) fn open(directory: PathBuf, identity: Identity, retention: Retention) -> Result<Self, TrainError> {
        atomic_fs::make_directory(&directory)?;
        for name in names(&directory)? {
            if name.starts_with("step-") && step_of(&name).is_none() {
                atomic_fs::remove_directory(&directory.join(name))?;
            }
        }
        let mut store = Self { directory, identity, retention, entries: BTreeMap::new() };
        for (step, path) in scan(&store.directory)? {
            let about: Option<About> =
                fs::read(path.join(ABOUT)).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
            let (metrics, digest) = about.map_or_else(Default::default, |it| (it.metrics, Some(it.state_digest)));
            store.entries.insert(step, entry(step, metrics, digest));
        }
        Ok(store)
    }

    /// Writes a checkpoint, renames it into place, and removes those that need not stay.
    ///
    /// # Errors
    /// When the file system refuses; nothing half-written is left, as far as the file system lets us.
    pub(super) fn save(
        &mut self,
        snapshot: &Snapshot,
        digests: &Digests,
        metrics: BTreeMap<String, f64>,
        origin: &Origin,
    ) -> Result<Written, TrainError> {
        let began = Instant::now();
        let step = snapshot.step;
        let about = About {
            schema_version: SCHEMA_VERSION,
            step,
            identity: self.identity.clone(),
            metrics,
            state_digest: digests.whole,
            tensors: digests.tensors.clone(),
        };
        let name = name_of(step);
        let partial = self.directory.join(format!("{name}.partial"));
        atomic_fs::remove_directory(&partial)?;
        let written = write_files(&partial, snapshot, &about, origin);
        let (digest, size) = match written {
            Ok(written) => written,
            Err(error) => {
                // The next attempt clears away what could not be removed now.
                drop(atomic_fs::remove_directory(&partial));
                return Err(error);
            }
        };
        let place = self.directory.join(&name);
        // One that is in the way was found damaged, or is the same again.
        self.discard(&place)?;
        #[cfg(test)]
        super::death::count(&mut io::sink(), &[]);
        fs::rename(&partial, &place).map_err(FileError::of("renaming", &partial))?;
        atomic_fs::sync_directory(&self.directory)?;
        self.entries.insert(step, entry(step, about.metrics, Some(about.state_digest)));
        // The checkpoint is durable; what follows is for people, and for those that come after.
        if let Err(error) = self.tidy(&name, step) {
            tracing::warn!(error = crate::error::chain(&error), "old checkpoints could not be tidied up");
        }
        Ok(Written { checkpoint: Checkpoint { step, digest }, size, took: began.elapsed() })
    }

    /// How long a checkpoint of `size` bytes may take, from writing a part of it.
    ///
    /// # Errors
    /// When the file system refuses.
    pub(super) fn probe(&self, size: u64) -> Result<Duration, FileError> {
        const MOST: u64 = 8 << 20;
        let partial = self.directory.join("step-probe.partial");
        atomic_fs::remove_directory(&partial)?;
        fs::create_dir(&partial).map_err(FileError::of("making directory", &partial))?;
        let part = size.clamp(1, MOST);
        // Numbers without a pattern: a file system may compress what it is given.
        let mut number = 0x9e37_79b9_7f4a_7c15_u64;
        let bytes: Vec<u8> = (0..part.div_ceil(8))
            .flat_map(|_| {
                number ^= number << 13;
                number ^= number >> 7;
                number ^= number << 17;
                number.to_le_bytes()
            })
            .collect();
        let began = Instant::now();
        let written = create(&partial, STATE, |out| out.write_all(&bytes));
        let took = began.elapsed();
        atomic_fs::remove_directory(&partial)?;
        written.map(|_| took.mul_f64(size.max(1) as f64 / part as f64))
    }

    /// Removes checkpoints that need not stay, and writes `latest` and the index.
    fn tidy(&mut self, name: &str, newest: u64) -> Result<(), FileError> {
        atomic_fs::write(&self.directory.join(LATEST), format!("{name}\n").as_bytes())?;
        let kept = self.retention.kept(&self.entries, newest);
        let gone: Vec<u64> =
            self.entries.keys().copied().filter(|step| *step <= newest && !kept.contains_key(step)).collect();
        for step in gone {
            self.discard(&self.directory.join(name_of(step)))?;
            self.entries.remove(&step);
        }
        for (step, reasons) in kept {
            self.entries.entry(step).and_modify(|entry| entry.kept = reasons);
        }
        let index = serde_json::json!({
            "metric_key": self.retention.metric,
            "mode": self.retention.mode,
            "top_k": self.retention.best_k,
            "entries": self.entries.values().collect::<Vec<_>>(),
        });
        atomic_fs::write_json(&self.directory.join(INDEX), &index).map(drop)
    }

    /// Removes a checkpoint in one step: a kill leaves it whole or gone.
    fn discard(&self, place: &Path) -> Result<(), FileError> {
        let mut gone = place.as_os_str().to_owned();
        gone.push(".removed");
        let gone = PathBuf::from(gone);
        atomic_fs::remove_directory(&gone)?;
        match fs::rename(place, &gone) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            renamed => renamed.map_err(FileError::of("removing", place))?,
        }
        #[cfg(test)]
        super::death::count(&mut io::sink(), &[]);
        atomic_fs::sync_directory(&self.directory)?;
        atomic_fs::remove_directory(&gone)
    }
}

fn write_files(
    partial: &Path,
    snapshot: &Snapshot,
    about: &About,
    origin: &Origin,
) -> Result<(Sha256, u64), TrainError> {
    // Not the directories above: on a volume that has vanished they would be made in another one.
    fs::create_dir(partial).map_err(FileError::of("making directory", partial))?;
    let state = create(partial, STATE, |out| snapshot.write(out))?;
    let about = create(partial, ABOUT, |out| out.write_all(&json(about)?))?;
    let origin = create(partial, ORIGIN, |out| out.write_all(&json(origin)?))?;
    let size = state.size + about.size + origin.size;
    let manifest = Manifest::of_hashed([state, about])?;
    let manifest = canonical(&manifest)?;
    let listed = create(partial, MANIFEST, |out| out.write_all(&manifest))?;
    atomic_fs::sync_directory(partial)?;
    Ok((listed.sha256, size + listed.size))
}

fn canonical(manifest: &Manifest) -> Result<Vec<u8>, FileError> {
    serde_json_canonicalizer::to_vec(manifest)
        .map_err(io::Error::other)
        .map_err(FileError::of("encoding", Path::new(MANIFEST)))
}

/// The newest checkpoint of `directory` whose files are what its manifest says, at or before step `most`. `notice` hears of
/// every one that is passed over. A directory that is not there holds none.
///
/// # Errors
/// When the file system refuses, or when a checkpoint was written by another version.
pub(super) fn newest(directory: &Path, most: u64, mut notice: impl FnMut(String)) -> Result<Option<Found>, TrainError> {
    for (step, path) in scan(directory)? {
        if step > most {
            continue;
        }
        match examine(step, path) {
            Ok(found) => return Ok(Some(found)),
            Err(Refusal::Fatal(error)) => return Err(*error),
            Err(Refusal::Damaged(why)) => {
                notice(format!("checkpoint {} is damaged and is passed over: {why}", name_of(step)));
            }
        }
    }
    Ok(None)
}

/// What the newest checkpoint of `directory` says about itself, its files not hashed; none where it says nothing readable.
///
/// # Errors
/// When the file system refuses.
pub(super) fn glance(directory: &Path) -> Result<Option<(PathBuf, About)>, FileError> {
    let newest = scan(directory)?.into_iter().next();
    Ok(newest.and_then(|(_, path)| {
        let about = serde_json::from_slice(&fs::read(path.join(ABOUT)).ok()?).ok()?;
        Some((path, about))
    }))
}

fn examine(step: u64, path: PathBuf) -> Result<Found, Refusal> {
    let damaged = |file: &str, why: &dyn std::fmt::Display| Refusal::Damaged(format!("{file} {why}"));
    let read = |file: &str| match fs::read(path.join(file)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(damaged(file, &"is missing")),
        read => read.map_err(|error| FileError::of("reading", &path.join(file))(error).into()),
    };
    let written = read(MANIFEST)?;
    let digest = Sha256::of(&written);
    let manifest: Manifest =
        serde_json::from_slice(&written).map_err(|error| damaged(MANIFEST, &format!("cannot be read: {error}")))?;
    let about = read(ABOUT)?;
    let listed = Listed { path: ABOUT.to_owned(), size: about.len() as u64, sha256: Sha256::of(&about) };
    let state = hash(&path, STATE)?.ok_or_else(|| damaged(STATE, &"is missing"))?;
    let found = Manifest::of_hashed([state, listed]).map_err(|error| Refusal::Damaged(error.to_string()))?;
    if let Some(difference) = manifest.diff(&found).first() {
        return Err(Refusal::Damaged(difference.to_string()));
    }
    if canonical(&found)? != written {
        return Err(damaged(MANIFEST, &"is not as it was written"));
    }
    let unreadable = |error: serde_json::Error| damaged(ABOUT, &format!("cannot be read: {error}"));
    // The version first: a file of another version may have any shape. It is whole, so nothing may write over it.
    let value: serde_json::Value = serde_json::from_slice(&about).map_err(unreadable)?;
    let version = value["schemaVersion"].as_u64();
    if version != Some(u64::from(SCHEMA_VERSION)) {
        return Err(TrainError::CheckpointVersion { path, found: version.unwrap_or_default() }.into());
    }
    let about: About = serde_json::from_value(value).map_err(unreadable)?;
    if about.step != step {
        return Err(damaged(ABOUT, &format!("is of step {}", about.step)));
    }
    let origin = fs::read(path.join(ORIGIN)).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    Ok(Found { checkpoint: Checkpoint { step, digest }, about, origin, path })
}

impl Found {
    /// Reads the tensors of a model of `layout`, and checks them against `state.json`.
    ///
    /// # Errors
    /// When the file holds something else.
    pub(super) fn read(&self, layout: &Arc<Layout>) -> Result<Snapshot, TrainError> {
        let path = self.path.join(STATE);
        let file = File::open(&path).map_err(FileError::of("reading", &path))?;
        let (snapshot, digests) = Snapshot::read(self.about.step, layout, file)
            .map_err(|source| TrainError::CheckpointState { path: path.clone(), source: Box::new(source) })?;
        if digests.whole != self.about.state_digest {
            let names: BTreeSet<_> = digests.tensors.keys().chain(self.about.tensors.keys()).collect();
            let differs = |name: &&String| digests.tensors.get(*name) != self.about.tensors.get(*name);
            let names: Vec<&str> = names.iter().copied().filter(differs).map(String::as_str).collect();
            return Err(TrainError::CheckpointDigest { path, tensors: names.join(", ") });
        }
        Ok(snapshot)
    }
}

fn entry(step: u64, metrics: BTreeMap<String, f64>, state_digest: Option<Sha256>) -> Entry {
    Entry { step, path: name_of(step), state_digest, metrics, kept: Vec::new() }
}

/// Checkpoints by step, newest first; none where there is no directory.
pub(super) fn scan(directory: &Path) -> Result<Vec<(u64, PathBuf)>, FileError> {
    let found = names(directory)?.into_iter().filter_map(|name| Some((step_of(&name)?, directory.join(name))));
    let mut found: Vec<_> = found.collect();
    found.sort_by_key(|(step, _)| std::cmp::Reverse(*step));
    Ok(found)
}

fn names(directory: &Path) -> Result<Vec<String>, FileError> {
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

/// The name of a checkpoint's directory.
pub(super) fn name_of(step: u64) -> String {
    format!("step-{step:08}")
}

fn step_of(name: &str) -> Option<u64> {
    name.strip_prefix("step-")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use codex_engine::EngineState;
    use proptest::prelude::*;

    use super::{
        super::snapshot::{Column, Rest},
        *,
    };
    use crate::training::tests::{both, resolved};

    fn layout() -> Arc<Layout> {
        Arc::new(Layout::new([("model.a.weight".to_owned(), vec![4, 3]), ("model.norm.weight".to_owned(), vec![3])]))
    }

    fn snapshot(step: u64) -> Snapshot {
        let parameters = (0..15).map(|x| (x * step) as f32).collect();
        let rest = Rest::from([("spikes/counts".to_owned(), Column::U64(vec![step, 1]))]);
        Snapshot { step, engine: EngineState::new(layout(), parameters), rest }
    }

    fn identity() -> Identity {
        let run = resolved(&[], both());
        let settings = serde_json::to_value(&run.spec().settings).unwrap();
        Identity { config_digest: run.digest(), settings, seed: 1, data: BTreeMap::new() }
    }

    fn origin() -> Origin {
        let text = |text: &str| text.to_owned();
        Origin {
            version: text("1"),
            git_commit: None,
            program: None,
            engine: text("e"),
            instructions: text("i"),
            threads: 2,
        }
    }

    fn store(directory: &Path, overrides: &[&str]) -> Store {
        let settings = resolved(overrides, both()).spec().settings.training.clone();
        let retention = Retention::of(&settings, settings.max_steps);
        Store::open(directory.to_owned(), identity(), retention).unwrap()
    }

    fn save(store: &mut Store, step: u64, metrics: &[(&str, f64)]) -> Written {
        let snapshot = snapshot(step);
        let metrics = metrics.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
        store.save(&snapshot, &snapshot.digests(), metrics, &origin()).unwrap()
    }

    fn steps(directory: &Path) -> Vec<u64> {
        scan(directory).unwrap().into_iter().map(|(step, _)| step).collect()
    }

    #[test]
    fn what_is_saved_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let mut store = store(directory.path(), &[]);
        assert!(newest(directory.path(), u64::MAX, |_| unreachable!()).unwrap().is_none());
        let written = save(&mut store, 100, &[]);
        assert!(written.size > 300);
        let found = newest(directory.path(), u64::MAX, |_| unreachable!()).unwrap().unwrap();
        assert_eq!((found.checkpoint.clone(), found.origin.clone()), (written.checkpoint, Some(origin())));
        assert_eq!(found.read(&layout()).unwrap(), snapshot(100));
        assert!(newest(directory.path(), 99, |_| ()).unwrap().is_none());
        assert!(newest(&directory.path().join("nowhere"), 99, |_| ()).unwrap().is_none());
    }

    #[test]
    fn what_need_not_stay_goes() {
        let directory = tempfile::tempdir().unwrap();
        let overrides = [
            "training.checkpoint_every=10",
            "training.keep_last=2",
            "training.keep_every=30",
            "training.best_k=1",
            "training.eval_every=10",
            "training.max_steps=65",
        ];
        let mut kept = store(directory.path(), &overrides);
        for (step, loss) in [(10, 3.0), (20, 1.0), (27, 9.0), (30, 2.0), (40, 2.0), (50, 2.0), (60, 2.0)] {
            save(&mut kept, step, &[("val_loss", loss)]);
            if step == 27 {
                assert_eq!(steps(directory.path()), [27, 20, 10], "one for the clock takes no place of another");
            }
        }
        assert_eq!(steps(directory.path()), [60, 50, 30, 20], "the last two, the permanent ones, the best");
        let index: serde_json::Value =
            serde_json::from_slice(&fs::read(directory.path().join(INDEX)).unwrap()).unwrap();
        assert_eq!(index["entries"][0]["kept"], serde_json::json!(["best"]));
        assert_eq!(index["entries"][3]["kept"], serde_json::json!(["last", "permanent"]));

        // Another attempt knows the metrics again, and the last step counts as scheduled.
        let mut kept = store(directory.path(), &[&overrides[..], &["training.metric_mode=max"]].concat());
        save(&mut kept, 65, &[("val_loss", 1.5)]);
        assert_eq!(steps(directory.path()), [65, 60, 30], "the greatest is the best now, and the earlier of equals");
    }

    #[test]
    fn what_a_kill_left_is_cleared_away() {
        let directory = tempfile::tempdir().unwrap();
        save(&mut store(directory.path(), &[]), 100, &[]);
        for name in ["step-00000200.partial", "step-00000000.removed"] {
            fs::create_dir(directory.path().join(name)).unwrap();
            fs::write(directory.path().join(name).join(STATE), b"half").unwrap();
        }
        assert_eq!(steps(directory.path()), [100]);
        let mut store = store(directory.path(), &[]);
        assert!(!directory.path().join("step-00000200.partial").exists());
        save(&mut store, 200, &[]);
        assert_eq!(steps(directory.path()), [200, 100]);
    }

    #[test]
    fn another_version_s_checkpoint_is_neither_read_nor_passed_over() {
        let directory = tempfile::tempdir().unwrap();
        let written = save(&mut store(directory.path(), &[]), 100, &[]);
        let place = directory.path().join(name_of(written.checkpoint.step));
        let about =
            fs::read_to_string(place.join(ABOUT)).unwrap().replace("\"schemaVersion\": 2", "\"schemaVersion\": 3");
        fs::write(place.join(ABOUT), about).unwrap();
        let listed = [STATE, ABOUT].map(|name| hash(&place, name).unwrap().unwrap());
        let manifest = serde_json_canonicalizer::to_vec(&Manifest::of_hashed(listed).unwrap()).unwrap();
        fs::write(place.join(MANIFEST), manifest).unwrap();
        let error = newest(directory.path(), u64::MAX, |_| ()).unwrap_err();
        assert!(matches!(error, TrainError::CheckpointVersion { found: 3, .. }), "{error}");
    }

    proptest! {
        /// One changed or missing byte in any file that the manifest covers, or in the manifest: the checkpoint before it is
        /// used, and that is said.
        #[test]
        fn every_damage_is_found(file in 0_usize..3, at in any::<prop::sample::Index>(), change in prop::option::of(1_u8..)) {
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
        /// Whoever writes a manifest to go with his own `state.json` or tensors gets one clear sentence, or is refused by the
        /// digests of tensors; nothing panics.
        #[test]
        fn forged_files_are_refused_in_a_sentence(
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
            let listed = [STATE, ABOUT].map(|name| hash(&place, name).unwrap().unwrap());
            fs::write(place.join(MANIFEST), canonical(&Manifest::of_hashed(listed).unwrap()).unwrap()).unwrap();
            let mut notices = Vec::new();
            let said = match newest(directory.path(), u64::MAX, |notice| notices.push(notice)) {
                Ok(None) => notices.concat(),
                Err(error) => crate::error::chain(&error),
                Ok(Some(found)) => match found.read(&layout()) {
                    Err(error) => crate::error::chain(&error),
                    Ok(read) => {
                        // What is changed but in the tensors' own data, their names and digests may be anything.
                        prop_assert!(read == snapshot(100));
                        String::new()
                    }
                },
            };
            prop_assert!(said.is_empty() || said.contains("state.") || said.contains("of format"), "{}", said);
        }
    }

    /// Where many small files are written fast.
    fn scratch() -> PathBuf {
        let memory = PathBuf::from("/dev/shm");
        if memory.is_dir() { memory } else { std::env::temp_dir() }
    }
}
