//! Who may write to a run's directory, and how many steps all attempts have executed. Does I/O.
//!
//! Every attempt claims the next epoch by creating its file in `writers/`, which only one process can do. The older of two
//! writers (a forced deletion can leave both alive) sees the newer one's file and stops. The file holds the steps that the
//! attempt has executed, updated after every step, so that a killed attempt's are counted, too.

use std::{
    fs::{self, File, OpenOptions},
    io::ErrorKind,
    os::unix::fs::FileExt as _,
    path::PathBuf,
};

use super::TrainError;
use crate::durable::{self, FileError};

/// The right to write to a run's directory.
#[derive(Debug)]
pub(super) struct Writer {
    directory: PathBuf,
    path: PathBuf,
    file: File,
    epoch: u32,
    /// Steps that this attempt executed.
    own: u64,
    /// Steps that earlier attempts executed.
    earlier: u64,
}

impl Writer {
    /// Claims the next epoch.
    ///
    /// # Errors
    /// When the file system refuses.
    pub(super) fn claim(directory: PathBuf) -> Result<Self, TrainError> {
        durable::make_directory(&directory)?;
        loop {
            let epoch = epochs(&directory)?.last().map_or(1, |newest| newest + 1);
            let path = directory.join(name_of(epoch));
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => {
                    durable::sync_directory(&directory)?;
                    let mut writer = Self { directory, path, file, epoch, own: 0, earlier: 0 };
                    writer.record(0)?;
                    writer.earlier = writer.count()?;
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
        self.epoch
    }

    /// Steps that all attempts executed.
    pub(super) fn executed(&self) -> u64 {
        self.earlier + self.own
    }

    /// Counts a step of this attempt.
    ///
    /// # Errors
    /// When the file system refuses.
    pub(super) fn count_step(&mut self) -> Result<(), TrainError> {
        self.record(self.own + 1)
    }

    /// Whether this is still the newest attempt.
    ///
    /// # Errors
    /// [`TrainError::Superseded`] when it is not.
    pub(super) fn check(&self) -> Result<(), TrainError> {
        match epochs(&self.directory)?.last() {
            Some(newer) if *newer > self.epoch => Err(TrainError::Superseded { own: self.epoch, newer: *newer }),
            _ => Ok(()),
        }
    }

    fn record(&mut self, steps: u64) -> Result<(), TrainError> {
        // A fixed width, so that a write never leaves digits of an older one behind. Not synced: a killed process loses
        // nothing that it wrote.
        let text = format!("{steps:020}\n");
        self.file.write_all_at(text.as_bytes(), 0).map_err(FileError::of("writing", &self.path))?;
        self.own = steps;
        Ok(())
    }

    /// Steps that the attempts before this one executed.
    fn count(&self) -> Result<u64, TrainError> {
        let mut steps = 0;
        for epoch in epochs(&self.directory)?.into_iter().filter(|epoch| *epoch < self.epoch) {
            let path = self.directory.join(name_of(epoch));
            let text = fs::read_to_string(&path).map_err(FileError::of("reading", &path))?;
            // An attempt that was killed between creating its file and writing to it executed nothing.
            steps += text.trim().parse().unwrap_or(0);
        }
        Ok(steps)
    }
}

fn name_of(epoch: u32) -> String {
    format!("{epoch:08}")
}

/// The epochs that were claimed, in order.
fn epochs(directory: &PathBuf) -> Result<Vec<u32>, FileError> {
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
    fn the_older_writer_stops_and_steps_add_up() {
        let directory = tempfile::tempdir().unwrap();
        let mut first = Writer::claim(directory.path().join("writers")).unwrap();
        assert_eq!((first.epoch(), first.executed()), (1, 0));
        for _ in 0..3 {
            first.count_step().unwrap();
        }
        first.check().unwrap();
        let mut second = Writer::claim(directory.path().join("writers")).unwrap();
        assert_eq!((second.epoch(), second.executed()), (2, 3));
        second.count_step().unwrap();
        assert_eq!(second.executed(), 4);
        second.check().unwrap();
        assert!(matches!(first.check(), Err(TrainError::Superseded { own: 1, newer: 2 })));
    }
}
