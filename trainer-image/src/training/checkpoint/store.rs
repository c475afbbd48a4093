//! The checkpoints of one run: writing, retention and removal. Does I/O.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use codex_provenance::{
    Sha256,
    manifest::{File as Listed, Manifest},
};
use codex_reports::Checkpoint;
use serde::Serialize;
use sha2::Digest as _;

use super::{
    CheckpointError, Origin, Retention,
    format::{
        ABOUT, INDEX, LATEST, MANIFEST, ORIGIN, RunIdentity, SCHEMA_VERSION, STATE, StateInfo, canonical_bytes,
        name_of, names, scan, step_of,
    },
    retention::Entry,
};
use crate::{
    atomic_fs::{self, FileError},
    error::chain,
    training::state::{Digests, Snapshot},
};

/// The checkpoints of one run.
#[derive(Debug)]
pub(crate) struct CheckpointStore {
    directory: PathBuf,
    identity: RunIdentity,
    retention: Retention,
    entries: BTreeMap<u64, Entry>,
}

/// A durable checkpoint.
#[derive(Clone, Debug)]
pub(crate) struct SavedCheckpoint {
    /// Step and digest for reports.
    pub(crate) checkpoint: Checkpoint,
    /// Size of all files in bytes.
    pub(crate) size: u64,
    /// Time that writing took.
    pub(crate) took: Duration,
}

/// A writer that hashes the written bytes.
struct Hashing<W> {
    inner: W,
    hasher: sha2::Sha256,
    size: u64,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        #[cfg(test)]
        crate::training::fault_injection::count(&mut self.inner, bytes);
        let count = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        self.size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Writes a new file durably and returns its manifest entry. The file must not exist yet.
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

fn json(value: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec_pretty(value)?;
    bytes.push(b'\n');
    Ok(bytes)
}

impl CheckpointStore {
    /// Opens the store in `directory`, which is created if it is missing. Partly written and partly removed checkpoints of a
    /// killed attempt are removed.
    ///
    /// # Errors
    /// When a file operation fails.
    pub(crate) fn open(
        directory: PathBuf,
        identity: RunIdentity,
        retention: Retention,
    ) -> Result<Self, CheckpointError> {
        atomic_fs::make_directory(&directory)?;
        for name in names(&directory)? {
            if name.starts_with("step-") && step_of(&name).is_none() {
                atomic_fs::remove_directory(&directory.join(name))?;
            }
        }
        let mut store = Self { directory, identity, retention, entries: BTreeMap::new() };
        for (step, path) in scan(&store.directory)? {
            let about: Option<StateInfo> =
                fs::read(path.join(ABOUT)).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
            let (metrics, digest) = about.map_or_else(Default::default, |it| (it.metrics, Some(it.state_digest)));
            store.entries.insert(step, entry(step, metrics, digest));
        }
        Ok(store)
    }

    /// Writes a checkpoint, renames it into place, and removes those that have no reason to stay.
    ///
    /// # Errors
    /// When a file operation fails. A partly written checkpoint is removed if the file system permits it.
    pub(crate) fn save(
        &mut self,
        snapshot: &Snapshot,
        digests: &Digests,
        metrics: BTreeMap<String, f64>,
        origin: &Origin,
    ) -> Result<SavedCheckpoint, CheckpointError> {
        let began = Instant::now();
        let step = snapshot.step;
        let about = StateInfo {
            schema_version: SCHEMA_VERSION,
            step,
            identity: self.identity.clone(),
            metrics,
            state_digest: digests.whole,
            tensors: digests.tensors.clone(),
        };
        let name = name_of(step);
        self.recreate_directory()?;
        let partial = self.directory.join(format!("{name}.partial"));
        atomic_fs::remove_directory(&partial)?;
        let written = write_files(&partial, snapshot, &about, origin);
        let (digest, size) = match written {
            Ok(written) => written,
            Err(error) => {
                // The next attempt removes what could not be removed now.
                drop(atomic_fs::remove_directory(&partial));
                return Err(error);
            }
        };
        let place = self.directory.join(&name);
        // A checkpoint that is already there is damaged, is the same one, or lacks its evaluation.
        self.discard(&place)?;
        #[cfg(test)]
        crate::training::fault_injection::count(&mut io::sink(), &[]);
        fs::rename(&partial, &place).map_err(FileError::of("renaming", &partial))?;
        atomic_fs::sync_directory(&self.directory)?;
        self.entries.insert(step, entry(step, about.metrics, Some(about.state_digest)));
        // The checkpoint is durable. The rest only serves users and later checkpoints.
        if let Err(error) = self.tidy(&name, step) {
            tracing::warn!(error = chain(&error), "old checkpoints cannot be removed, or the index cannot be written");
        }
        Ok(SavedCheckpoint { checkpoint: Checkpoint { step, digest }, size, took: began.elapsed() })
    }

    /// Estimates how long a checkpoint of `size` bytes takes, by writing a part of it.
    ///
    /// # Errors
    /// When a file operation fails.
    pub(crate) fn probe(&self, size: u64) -> Result<Duration, FileError> {
        const LARGEST: u64 = 8 << 20;
        let partial = self.directory.join("step-probe.partial");
        atomic_fs::remove_directory(&partial)?;
        fs::create_dir(&partial).map_err(FileError::of("making directory", &partial))?;
        let part = size.clamp(1, LARGEST);
        // Values without a pattern, because the file system may compress.
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

    /// Removes checkpoints that have no reason to stay, and writes `latest` and the index.
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

    /// Creates the directory again if it was removed during the run. The caller has checked the run lock, whose file lies beside
    /// the directory, so the volume itself is still mounted.
    fn recreate_directory(&mut self) -> Result<(), FileError> {
        if self.directory.exists() {
            return Ok(());
        }
        tracing::warn!("{} was removed and is created again", self.directory.display());
        fs::create_dir(&self.directory).map_err(FileError::of("making directory", &self.directory))?;
        self.entries.clear();
        self.directory.parent().map_or(Ok(()), atomic_fs::sync_directory)
    }

    /// Removes a checkpoint by renaming it first: a kill leaves it whole or gone.
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
        crate::training::fault_injection::count(&mut io::sink(), &[]);
        atomic_fs::sync_directory(&self.directory)?;
        atomic_fs::remove_directory(&gone)
    }
}

fn write_files(
    partial: &Path,
    snapshot: &Snapshot,
    about: &StateInfo,
    origin: &Origin,
) -> Result<(Sha256, u64), CheckpointError> {
    // Not its parents: after an unmount they would be created on the volume beneath.
    fs::create_dir(partial).map_err(FileError::of("making directory", partial))?;
    let state = create(partial, STATE, |out| snapshot.write(out))?;
    let about = create(partial, ABOUT, |out| out.write_all(&json(about)?))?;
    let origin = create(partial, ORIGIN, |out| out.write_all(&json(origin)?))?;
    let size = state.size + about.size + origin.size;
    let manifest = Manifest::of_hashed([state, about])?;
    let manifest = canonical_bytes(&manifest)?;
    let listed = create(partial, MANIFEST, |out| out.write_all(&manifest))?;
    atomic_fs::sync_directory(partial)?;
    Ok((listed.sha256, size + listed.size))
}

fn entry(step: u64, metrics: BTreeMap<String, f64>, state_digest: Option<Sha256>) -> Entry {
    Entry { step, path: name_of(step), state_digest, metrics, kept: Vec::new() }
}

#[cfg(test)]
pub(super) mod testing {
    use std::sync::Arc;

    use codex_engine::{EngineState, Layout};

    use super::*;
    use crate::training::{
        state::{Column, Columns},
        test_support::{both, resolved},
    };

    pub(crate) fn layout() -> Arc<Layout> {
        Arc::new(Layout::new([("model.a.weight".to_owned(), vec![4, 3]), ("model.norm.weight".to_owned(), vec![3])]))
    }

    pub(crate) fn snapshot(step: u64) -> Snapshot {
        let parameters = (0..15).map(|x| (x * step) as f32).collect();
        let rest = Columns::from([("spikes/counts".to_owned(), Column::U64(vec![step, 1]))]);
        Snapshot { step, engine: EngineState::new(layout(), parameters), rest }
    }

    pub(crate) fn identity() -> RunIdentity {
        let run = resolved(&[], both());
        let settings = serde_json::to_value(&run.spec().settings).unwrap();
        RunIdentity { config_digest: run.digest(), settings, base: None, seed: 1, data: BTreeMap::new() }
    }

    pub(crate) fn origin() -> Origin {
        let text = |text: &str| text.to_owned();
        Origin {
            version: text("1"),
            git_commit: None,
            program: None,
            engine: text("e"),
            instructions: text("i"),
            kernels: None,
            gpu: None,
            mixed: false,
            threads: 2,
        }
    }

    pub(crate) fn store(directory: &Path, overrides: &[&str]) -> CheckpointStore {
        let settings = resolved(overrides, both()).spec().settings.training.clone();
        let retention = Retention::of(&settings, settings.max_steps);
        CheckpointStore::open(directory.to_owned(), identity(), retention).unwrap()
    }

    pub(crate) fn save(store: &mut CheckpointStore, step: u64, metrics: &[(&str, f64)]) -> SavedCheckpoint {
        let snapshot = snapshot(step);
        let metrics = metrics.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
        store.save(&snapshot, &snapshot.digests(), metrics, &origin()).unwrap()
    }

    pub(crate) fn steps(directory: &Path) -> Vec<u64> {
        scan(directory).unwrap().into_iter().map(|(step, _)| step).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::newest,
        testing::{layout, origin, save, snapshot, steps, store},
        *,
    };

    #[test]
    fn a_saved_checkpoint_is_found() {
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
    fn checkpoints_without_a_reason_to_stay_are_removed() {
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
                assert_eq!(
                    steps(directory.path()),
                    [27, 20, 10],
                    "a checkpoint by the clock does not count as one of the last"
                );
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
    fn remains_of_a_killed_attempt_are_removed() {
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
    fn a_removed_directory_is_created_again() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("checkpoints");
        let mut store = store(&place, &[]);
        save(&mut store, 100, &[]);
        fs::rename(&place, directory.path().join("away")).unwrap();
        save(&mut store, 200, &[]);
        assert_eq!(steps(&place), [200]);
        let index: serde_json::Value = serde_json::from_slice(&fs::read(place.join(INDEX)).unwrap()).unwrap();
        assert_eq!(index["entries"].as_array().unwrap().len(), 1);
    }
}
