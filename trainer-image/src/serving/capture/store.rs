//! The file of traces, which is renamed when it is full. Does I/O.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::mpsc::Receiver,
};

use super::{FAILED, ServeError, Settings, WRITTEN};
use crate::{
    append::AppendFile,
    artifacts::reasoning::ServedTrace,
    atomic_fs::{self, FileError},
    error::chain,
    serving::metrics::Metrics,
};

/// An open file of traces.
#[derive(Debug)]
pub(in crate::serving) struct Store {
    path: PathBuf,
    file: AppendFile,
    length: u64,
    /// The most bytes.
    size: u64,
}

impl Store {
    /// Opens the file at its end, or creates it.
    ///
    /// # Errors
    /// A file operation fails.
    pub(in crate::serving) fn open(settings: &Settings) -> Result<Self, ServeError> {
        Self::at(&settings.path, settings.size).map_err(ServeError::Traces)
    }

    fn at(path: &Path, size: u64) -> Result<Self, FileError> {
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            atomic_fs::make_directory(parent)?;
        }
        let mut file = AppendFile::open(path.to_owned())?;
        let mut length = fs::metadata(path).map_err(FileError::of("reading", path))?.len();
        if length > 0 && !atomic_fs::read(path)?.ends_with(b"\n") {
            // A crash left a part of a line.
            file.append_unsynced(b"\n")?;
            length += 1;
        }
        Ok(Self { path: path.to_owned(), file, length, size })
    }

    /// Appends a line, in a new file if this one has no room.
    pub(super) fn append(&mut self, line: &[u8]) -> Result<(), FileError> {
        let added = line.len() as u64;
        if self.length > 0 && self.length + added > self.size {
            let former = self.path.with_added_extension("1");
            fs::rename(&self.path, &former).map_err(FileError::of("renaming to", &former))?;
            *self = Self::at(&self.path, self.size)?;
        }
        self.file.append_unsynced(line)?;
        self.length += added;
        Ok(())
    }
}

/// Writes traces until nothing can send any.
pub(super) fn write(mut store: Store, traces: &Receiver<ServedTrace>, metrics: &Metrics) {
    let mut is_failing = false;
    for trace in traces {
        let mut line = serde_json::to_vec(&trace).unwrap_or_default();
        line.push(b'\n');
        match store.append(&line) {
            Ok(()) => {
                metrics.traced(WRITTEN);
                is_failing = false;
            }
            Err(error) => {
                metrics.traced(FAILED);
                if !std::mem::replace(&mut is_failing, true) {
                    tracing::warn!(error = chain(&error), "traces cannot be written; requests are answered as before");
                }
            }
        }
    }
}
