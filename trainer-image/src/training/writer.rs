//! Who may write to a run's directory, and what became of every attempt. Does I/O.
//!
//! Every attempt claims the next epoch by creating its file in `writers/`, which only one process can do. The older of two
//! writers (a forced deletion can leave both alive) sees the newer one's file and stops. The file is one line of fixed width,
//! written over after every step: the steps that the attempt has executed, what it was at, its memory and what it expected to
//! take, and how it ended. So a killed attempt's steps are counted, and the next one can say what it was killed at.

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io::ErrorKind,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use super::{
    TrainError,
    memory::{self, Bytes},
};
use crate::atomic_fs::{self, FileError};

/// The right to write to a run's directory.
#[derive(Debug)]
pub(super) struct Writer {
    lock: Lock,
    path: PathBuf,
    file: File,
    own: Note,
    /// Steps that earlier attempts executed.
    earlier: u64,
    previous: Option<(u32, Note)>,
    /// The file could not be written; said once.
    silent: bool,
}

/// Which attempt holds the directory; can be asked from another thread.
#[derive(Clone, Debug)]
pub(super) struct Lock {
    directory: PathBuf,
    epoch: u32,
}

/// What an attempt is at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nothing that takes long.
    #[default]
    Starting,
    /// Reading data.
    Loading,
    /// At its steps.
    Training,
    /// Writing the model.
    Exporting,
    /// Over.
    Ended,
}

/// What an attempt leaves behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Note {
    /// Steps that it executed.
    pub(super) steps: u64,
    /// What it was at.
    pub(super) phase: Phase,
    /// The last step it began, counted from 1 over the whole run; 0 before the first.
    pub(super) step: u64,
    /// The most memory that it was seen to use, in bytes.
    pub(super) peak: u64,
    /// The most that it expected to use, in bytes; 0 before it knew.
    pub(super) estimate: u64,
    /// The most that it might use, in bytes; 0 where nobody said.
    pub(super) limit: u64,
    /// Processes that the kernel had killed for memory in its control group before.
    pub(super) kills: u64,
}

const PHASES: [(Phase, &str); 5] = [
    (Phase::Starting, "starting"),
    (Phase::Loading, "loading"),
    (Phase::Training, "training"),
    (Phase::Exporting, "exporting"),
    (Phase::Ended, "ended"),
];

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(PHASES.iter().find(|(phase, _)| phase == self).map_or("", |(_, name)| name))
    }
}

impl fmt::Display for Note {
    /// One line; a fixed width, so that writing over it never leaves digits of an older one behind.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { steps, phase, step, peak, estimate, limit, kills } = self;
        write!(f, "{steps:020} {phase:<10} {step:020} {peak:020} {estimate:020} {limit:020} {kills:020}")
    }
}

impl Note {
    /// Reads a line, as far as it goes: an attempt that was killed between creating its file and writing to it did nothing.
    fn parse(text: &str) -> Self {
        let mut words = text.split_whitespace();
        let steps = words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
        let phase = words.next().and_then(|word| PHASES.iter().find(|(_, name)| *name == word));
        let phase = phase.map_or(Phase::Starting, |(phase, _)| *phase);
        let mut number = || words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
        Self { steps, phase, step: number(), peak: number(), estimate: number(), limit: number(), kills: number() }
    }

    /// What a person should know about an attempt that ended without saying how; none when it did. `kills` as the control
    /// group counts them now.
    pub(super) fn epitaph(&self, epoch: u32, kills: u64) -> Option<String> {
        let Self { phase, step, peak, estimate, limit, .. } = *self;
        let at = match phase {
            Phase::Ended => return None,
            Phase::Starting => "while it started".to_owned(),
            Phase::Loading => "while it read data".to_owned(),
            Phase::Training => format!("in step {step}"),
            Phase::Exporting => "while it wrote the model".to_owned(),
        };
        let known = |what: &str, bytes: u64| if bytes > 0 { format!("{what}{}", Bytes(bytes)) } else { String::new() };
        let near = limit > 0 && peak.max(estimate) >= limit / 10 * 9;
        let cause = if kills > self.kills {
            ": the kernel says that it killed a process of this control group for its memory"
        } else if near {
            ": it was probably killed for its memory"
        } else {
            ""
        };
        Some(format!(
            "attempt {epoch} was killed {at}; it was last seen with {} of memory{}{}{cause}",
            Bytes(peak),
            known(", had expected at most ", estimate),
            known(", and might use ", limit),
        ))
    }
}

impl Lock {
    /// Whether this is still the newest attempt, on the volume that it began on.
    ///
    /// # Errors
    /// [`TrainError::Superseded`] when there is a newer one, [`TrainError::Vanished`] when the directory is another one.
    pub(super) fn check(&self) -> Result<(), TrainError> {
        let vanished = || TrainError::Vanished { path: self.directory.join(name_of(self.epoch)) };
        let epochs = match epochs(&self.directory) {
            Err(error) if error.source.kind() == ErrorKind::NotFound => return Err(vanished()),
            epochs => epochs?,
        };
        match epochs.last() {
            Some(newer) if *newer > self.epoch => Err(TrainError::Superseded { own: self.epoch, newer: *newer }),
            _ if epochs.contains(&self.epoch) => Ok(()),
            _ => Err(vanished()),
        }
    }
}

impl Writer {
    /// Claims the next epoch.
    ///
    /// # Errors
    /// When the file system refuses.
    pub(super) fn claim(directory: PathBuf) -> Result<Self, TrainError> {
        atomic_fs::make_directory(&directory)?;
        loop {
            let known = epochs(&directory)?;
            let epoch = known.last().map_or(1, |newest| newest + 1);
            let path = directory.join(name_of(epoch));
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => {
                    atomic_fs::sync_directory(&directory)?;
                    let notes = read_notes(&directory, &known)?;
                    let earlier = notes.iter().map(|(_, note)| note.steps).sum();
                    let previous = notes.last().copied();
                    let own = Note { kills: memory::kills(Path::new("/")), ..Note::default() };
                    let lock = Lock { directory, epoch };
                    let mut writer = Self { lock, path, file, own, earlier, previous, silent: false };
                    writer.try_record()?;
                    return Ok(writer);
                }
                // Another attempt was faster: the next epoch, then.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(FileError::of("creating", &path)(error).into()),
            }
        }
    }

    /// Which attempt this is, counted from 1.
    pub(super) fn epoch(&self) -> u32 {
        self.lock.epoch
    }

    /// What other threads ask.
    pub(super) fn lock(&self) -> Lock {
        self.lock.clone()
    }

    /// What became of the attempt before this one, where it did not say so itself.
    pub(super) fn epitaph(&self) -> Option<String> {
        let (epoch, note) = self.previous?;
        note.epitaph(epoch, self.own.kills)
    }

    /// Steps that all attempts executed.
    pub(super) fn executed(&self) -> u64 {
        self.earlier + self.own.steps
    }

    /// Says what the attempt is at.
    pub(super) fn enter(&mut self, phase: Phase) {
        self.own.phase = phase;
        self.record();
    }

    /// Says how much memory the attempt may take, and how much it expects to.
    pub(super) fn expect(&mut self, estimate: u64, limit: Option<u64>) {
        (self.own.estimate, self.own.limit) = (estimate, limit.unwrap_or(0));
        self.record();
    }

    /// Counts a step of this attempt; `step` is the next one of the run, counted from 1.
    pub(super) fn count_step(&mut self, step: u64) {
        self.own.steps += 1;
        self.begin_step(step);
    }

    /// Says which step of the run comes next, counted from 1.
    pub(super) fn begin_step(&mut self, step: u64) {
        self.own.step = step;
        self.record();
    }

    /// Whether this is still the newest attempt.
    ///
    /// # Errors
    /// As [`Lock::check`].
    pub(super) fn check(&self) -> Result<(), TrainError> {
        self.lock.check()
    }

    /// Writes the note. A volume that takes no note now may take the checkpoint later, so this stops nothing.
    fn record(&mut self) {
        if let Err(error) = self.try_record()
            && !std::mem::replace(&mut self.silent, true)
        {
            tracing::warn!(error = crate::error::chain(&error), "the steps of this attempt are not counted");
        }
    }

    fn try_record(&mut self) -> Result<(), FileError> {
        self.own.peak = self.own.peak.max(memory::resident().1);
        // Not synced: a killed process loses nothing that it wrote.
        let line = format!("{}\n", self.own);
        self.file.write_all_at(line.as_bytes(), 0).map_err(FileError::of("writing", &self.path))
    }
}

/// The note of the newest attempt at a run, for another process; none where there is no attempt.
pub(super) fn newest_note(directory: &Path) -> Option<Note> {
    let epoch = *epochs(directory).ok()?.last()?;
    let bytes = fs::read(directory.join(name_of(epoch))).ok()?;
    Some(Note::parse(&String::from_utf8_lossy(&bytes)))
}

fn read_notes(directory: &Path, epochs: &[u32]) -> Result<Vec<(u32, Note)>, FileError> {
    let read = |epoch: &u32| {
        let path = directory.join(name_of(*epoch));
        let bytes = fs::read(&path).map_err(FileError::of("reading", &path))?;
        Ok((*epoch, Note::parse(&String::from_utf8_lossy(&bytes))))
    };
    epochs.iter().map(read).collect()
}

fn name_of(epoch: u32) -> String {
    format!("{epoch:08}")
}

/// The epochs that were claimed, in order.
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
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_older_writer_stops_and_steps_add_up() {
        let directory = tempfile::tempdir().unwrap();
        let mut first = Writer::claim(directory.path().join("writers")).unwrap();
        assert_eq!((first.epoch(), first.executed(), first.epitaph()), (1, 0, None));
        for step in 2..=4 {
            first.count_step(step);
        }
        first.check().unwrap();
        let mut second = Writer::claim(directory.path().join("writers")).unwrap();
        assert_eq!((second.epoch(), second.executed()), (2, 3));
        second.count_step(5);
        assert_eq!(second.executed(), 4);
        second.check().unwrap();
        assert!(matches!(first.check(), Err(TrainError::Superseded { own: 1, newer: 2 })));
        second.enter(Phase::Ended);
        assert_eq!(Writer::claim(directory.path().join("writers")).unwrap().epitaph(), None, "it said that it ended");
    }

    #[test]
    fn a_directory_that_is_another_one_is_not_written_to() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("writers");
        let writer = Writer::claim(path.clone()).unwrap();
        fs::rename(&path, directory.path().join("away")).unwrap();
        assert!(matches!(writer.check(), Err(TrainError::Vanished { .. })));
        fs::create_dir(&path).unwrap();
        assert!(matches!(writer.check(), Err(TrainError::Vanished { .. })));
        fs::remove_dir(&path).unwrap();
        fs::rename(directory.path().join("away"), &path).unwrap();
        writer.check().unwrap();
    }

    #[test]
    fn the_next_attempt_says_what_the_last_was_killed_at() {
        let directory = tempfile::tempdir().unwrap();
        let mut first = Writer::claim(directory.path().join("writers")).unwrap();
        first.enter(Phase::Training);
        first.expect(3 << 30, Some(4 << 30));
        first.begin_step(412);
        let said = Writer::claim(directory.path().join("writers")).unwrap().epitaph().unwrap();
        assert!(said.starts_with("attempt 1 was killed in step 412; it was last seen with "), "{said}");
        assert!(said.contains("had expected at most 3.0 GiB, and might use 4.0 GiB") && !said.contains("memory:"));
        let note = Note { phase: Phase::Loading, peak: (4 << 30) - 5, limit: 4 << 30, ..Note::default() };
        assert!(note.epitaph(2, 0).unwrap().ends_with(": it was probably killed for its memory"));
        assert!(note.epitaph(2, 1).unwrap().contains("the kernel says"));
        assert_eq!(Note { phase: Phase::Ended, ..note }.epitaph(2, 1), None);
    }

    proptest! {
        #[test]
        fn a_note_reads_back_and_no_line_panics(
            numbers: [u64; 6], phase in 0_usize..5, cut in any::<prop::sample::Index>(), text in "\\PC*",
        ) {
            let [steps, step, peak, estimate, limit, kills] = numbers;
            let note = Note { steps, phase: PHASES[phase].0, step, peak, estimate, limit, kills };
            let line = note.to_string();
            prop_assert_eq!(Note::parse(&line), note);
            prop_assert_eq!(line.len(), Note::default().to_string().len());
            prop_assert!(Note::parse(&line[..cut.index(line.len())]).steps <= steps);
            Note::parse(&text).epitaph(1, 0);
        }
    }
}
