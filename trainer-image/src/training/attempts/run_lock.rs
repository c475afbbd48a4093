//! The lock of a run's directory. Does I/O.
//!
//! Every attempt claims the next epoch by creating its file in `writers/`, which only one process can do. Of two live attempts
//! (a forced pod deletion can leave both running) the older one sees the newer file and stops. The file holds the attempt's
//! [`AttemptNote`], which is overwritten after every step. It counts the steps of killed attempts, too, and lets the next
//! attempt say where the previous one was killed. While the attempt lives it holds an advisory lock on its file.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::ErrorKind,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use super::{AttemptNote, LockError, Phase};
use crate::{
    atomic_fs::{self, FileError},
    error::chain,
    training::resources::{oom_kills, resident_memory},
};

/// The claimed right to write to a run's directory.
#[derive(Debug)]
pub(crate) struct RunLock {
    handle: LockHandle,
    path: PathBuf,
    file: File,
    own: AttemptNote,
    /// Steps that earlier attempts executed.
    earlier: u64,
    /// Notice about the previous attempt, if it recorded no end.
    previous: Option<String>,
    /// Whether a failed write of the note was logged.
    warned: bool,
}

/// Checks from any thread whether the attempt still holds the directory.
#[derive(Clone, Debug)]
pub(crate) struct LockHandle {
    directory: PathBuf,
    epoch: u32,
}

impl LockHandle {
    /// Checks that this is still the newest attempt, on the volume where it began.
    ///
    /// # Errors
    /// [`LockError::Superseded`] after a newer attempt, [`LockError::Vanished`] when the directory was replaced.
    pub(crate) fn check(&self) -> Result<(), LockError> {
        let vanished = || LockError::Vanished { path: self.directory.join(name_of(self.epoch)) };
        let epochs = match epochs(&self.directory) {
            Err(error) if error.source.kind() == ErrorKind::NotFound => return Err(vanished()),
            epochs => epochs?,
        };
        match epochs.last() {
            Some(newer) if *newer > self.epoch => Err(LockError::Superseded { own: self.epoch, newer: *newer }),
            _ if epochs.contains(&self.epoch) => Ok(()),
            _ => Err(vanished()),
        }
    }
}

impl RunLock {
    /// Claims the next epoch.
    ///
    /// # Errors
    /// When a file operation fails.
    pub(crate) fn claim(directory: PathBuf) -> Result<Self, LockError> {
        atomic_fs::make_directory(&directory)?;
        loop {
            let known = epochs(&directory)?;
            let epoch = known.last().map_or(1, |newest| newest + 1);
            let path = directory.join(name_of(epoch));
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => {
                    // A file system without locks only costs the distinction between a killed and a running attempt.
                    drop(file.try_lock());
                    atomic_fs::sync_directory(&directory)?;
                    let notes = read_notes(&directory, &known)?;
                    let earlier = notes.iter().map(|(_, note)| note.steps).sum();
                    let own = AttemptNote { kills: oom_kills(Path::new("/")), ..AttemptNote::default() };
                    let previous = notes.last().and_then(|(epoch, note)| {
                        if is_running(&directory.join(name_of(*epoch))) {
                            note.running_notice(*epoch)
                        } else {
                            note.killed_notice(*epoch, own.kills)
                        }
                    });
                    let handle = LockHandle { directory, epoch };
                    let mut lock = Self { handle, path, file, own, earlier, previous, warned: false };
                    lock.try_record()?;
                    return Ok(lock);
                }
                // Another attempt claimed this epoch first.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(FileError::of("creating", &path)(error).into()),
            }
        }
    }

    /// Number of this attempt, counted from 1.
    pub(crate) fn epoch(&self) -> u32 {
        self.handle.epoch
    }

    /// Returns a handle for other threads.
    pub(crate) fn handle(&self) -> LockHandle {
        self.handle.clone()
    }

    /// Notice about the previous attempt, if it recorded no end.
    pub(crate) fn previous(&self) -> Option<&str> {
        self.previous.as_deref()
    }

    /// Steps that all attempts executed together.
    pub(crate) fn executed(&self) -> u64 {
        self.earlier + self.own.steps
    }

    /// Records the phase of the attempt.
    pub(crate) fn enter(&mut self, phase: Phase) {
        self.own.phase = phase;
        self.record();
    }

    /// Records the memory estimate and limit of the attempt.
    pub(crate) fn set_memory(&mut self, estimate: u64, limit: Option<u64>) {
        (self.own.estimate, self.own.limit) = (estimate, limit.unwrap_or(0));
        self.record();
    }

    /// Counts an executed step; `next` is the next step of the run, counted from 1.
    pub(crate) fn count_step(&mut self, next: u64) {
        self.own.steps += 1;
        self.begin_step(next);
    }

    /// Records which step of the run comes next, counted from 1.
    pub(crate) fn begin_step(&mut self, next: u64) {
        self.own.step = next;
        self.record();
    }

    /// Checks that this is still the newest attempt.
    ///
    /// # Errors
    /// As for [`LockHandle::check`].
    pub(crate) fn check(&self) -> Result<(), LockError> {
        self.handle.check()
    }

    /// Writes the note. A failure does not stop the attempt: the volume may accept the next checkpoint all the same.
    fn record(&mut self) {
        if let Err(error) = self.try_record()
            && !std::mem::replace(&mut self.warned, true)
        {
            tracing::warn!(
                error = chain(&error),
                "the note of this attempt cannot be written, so its steps are not counted"
            );
        }
    }

    fn try_record(&mut self) -> Result<(), FileError> {
        self.own.peak = self.own.peak.max(resident_memory().1);
        // Not synced: a killed process loses nothing that it wrote.
        let line = format!("{}\n", self.own);
        self.file.write_all_at(line.as_bytes(), 0).map_err(FileError::of("writing", &self.path))
    }
}

/// Whether a process holds the lock on the file of an attempt.
fn is_running(path: &Path) -> bool {
    File::open(path).is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
}

/// Reads the note of the newest attempt, for another process; `None` before the first attempt.
pub(crate) fn newest_note(directory: &Path) -> Option<AttemptNote> {
    let epoch = *epochs(directory).ok()?.last()?;
    let bytes = fs::read(directory.join(name_of(epoch))).ok()?;
    Some(AttemptNote::parse(&String::from_utf8_lossy(&bytes)))
}

fn read_notes(directory: &Path, epochs: &[u32]) -> Result<Vec<(u32, AttemptNote)>, FileError> {
    let read = |epoch: &u32| {
        let path = directory.join(name_of(*epoch));
        let bytes = fs::read(&path).map_err(FileError::of("reading", &path))?;
        Ok((*epoch, AttemptNote::parse(&String::from_utf8_lossy(&bytes))))
    };
    epochs.iter().map(read).collect()
}

fn name_of(epoch: u32) -> String {
    format!("{epoch:08}")
}

/// Returns the claimed epochs in ascending order.
fn epochs(directory: &Path) -> Result<Vec<u32>, FileError> {
    let reading = || FileError::of("reading directory", directory);
    let mut epochs = Vec::new();
    for entry in fs::read_dir(directory).map_err(reading())? {
        epochs.extend(entry.map_err(reading())?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()));
    }
    epochs.sort_unstable();
    Ok(epochs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_older_attempt_stops_and_steps_add_up() {
        let directory = tempfile::tempdir().unwrap();
        let mut first = RunLock::claim(directory.path().join("writers")).unwrap();
        assert_eq!((first.epoch(), first.executed(), first.previous()), (1, 0, None));
        for step in 2..=4 {
            first.count_step(step);
        }
        first.check().unwrap();
        let mut second = RunLock::claim(directory.path().join("writers")).unwrap();
        assert_eq!((second.epoch(), second.executed()), (2, 3));
        second.count_step(5);
        assert_eq!(second.executed(), 4);
        second.check().unwrap();
        assert!(matches!(first.check(), Err(LockError::Superseded { own: 1, newer: 2 })));
        second.enter(Phase::Ended);
        assert_eq!(RunLock::claim(directory.path().join("writers")).unwrap().previous(), None, "it recorded its end");
    }

    #[test]
    fn a_replaced_directory_is_not_written_to() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("writers");
        let lock = RunLock::claim(path.clone()).unwrap();
        fs::rename(&path, directory.path().join("away")).unwrap();
        assert!(matches!(lock.check(), Err(LockError::Vanished { .. })));
        fs::create_dir(&path).unwrap();
        assert!(matches!(lock.check(), Err(LockError::Vanished { .. })));
        fs::remove_dir(&path).unwrap();
        fs::rename(directory.path().join("away"), &path).unwrap();
        lock.check().unwrap();
    }

    #[test]
    fn the_next_attempt_knows_a_killed_one_from_a_running_one() {
        let directory = tempfile::tempdir().unwrap();
        let mut first = RunLock::claim(directory.path().join("writers")).unwrap();
        first.enter(Phase::Training);
        first.set_memory(3 << 30, Some(4 << 30));
        first.begin_step(412);
        let second = RunLock::claim(directory.path().join("writers")).unwrap();
        let running = second.previous().unwrap();
        assert!(
            running.starts_with("attempt 1 is still running") && running.contains("in step 412 of attempt 1"),
            "{running}"
        );
        drop(second);
        fs::remove_file(directory.path().join("writers/00000002")).unwrap();
        drop(first);
        let third = RunLock::claim(directory.path().join("writers")).unwrap();
        let killed = third.previous().unwrap();
        assert!(killed.starts_with("attempt 1 was killed in step 412 (memory peak "), "{killed}");
        assert!(killed.ends_with(", estimate 3.0 GiB, limit 4.0 GiB)"), "{killed}");
    }
}
