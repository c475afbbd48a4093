//! A file of lines that is renamed when it is full. Does I/O.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{
    append::AppendFile,
    atomic_fs::{self, FileError},
};

/// An open file of lines. At its size it is renamed to `FILE.1`, in place of an earlier one, and begins anew.
#[derive(Debug)]
pub(super) struct BoundedFile {
    path: PathBuf,
    file: AppendFile,
    length: u64,
    /// The most bytes.
    size: u64,
}

impl BoundedFile {
    /// Opens the file at its end, or creates it.
    ///
    /// # Errors
    /// A file operation fails.
    pub(super) fn open(path: &Path, size: u64) -> Result<Self, FileError> {
        atomic_fs::make_parents(path)?;
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
    ///
    /// # Errors
    /// A file operation fails.
    pub(super) fn append(&mut self, line: &[u8]) -> Result<(), FileError> {
        let added = line.len() as u64;
        if self.length > 0 && self.length + added > self.size {
            let former = self.path.with_added_extension("1");
            fs::rename(&self.path, &former).map_err(FileError::of("renaming to", &former))?;
            *self = Self::open(&self.path, self.size)?;
        }
        self.file.append_unsynced(line)?;
        self.length += added;
        Ok(())
    }
}
