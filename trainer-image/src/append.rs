//! A file that is only appended to, all or nothing. Does I/O.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use crate::atomic_fs::FileError;

/// A file, open for appending. A failed append leaves no partial line or record.
#[derive(Debug)]
pub(crate) struct AppendFile {
    path: PathBuf,
    file: File,
    length: u64,
    /// Whether a part of a failed append may follow.
    torn: bool,
}

impl AppendFile {
    /// Opens a file at its end, or creates it.
    ///
    /// # Errors
    /// When a file operation fails.
    pub(crate) fn open(path: PathBuf) -> Result<Self, FileError> {
        let file = OpenOptions::new().append(true).create(true).open(&path).map_err(FileError::of("opening", &path))?;
        let length = file.metadata().map_err(FileError::of("reading", &path))?.len();
        Ok(Self { path, file, length, torn: false })
    }

    /// Drops what follows the first `length` bytes.
    ///
    /// # Errors
    /// When a file operation fails.
    pub(crate) fn truncate(&mut self, length: u64) -> Result<(), FileError> {
        self.file.set_len(length).map_err(FileError::of("writing", &self.path))?;
        self.length = length;
        Ok(())
    }

    /// Returns the number of bytes.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// Makes what was appended durable.
    ///
    /// # Errors
    /// When the file system refuses.
    pub(crate) fn sync(&self) -> Result<(), FileError> {
        self.file.sync_data().map_err(FileError::of("writing", &self.path))
    }

    /// Returns the path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Appends bytes durably, all or none of them.
    ///
    /// # Errors
    /// When a file operation fails.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<(), FileError> {
        self.write(bytes, File::sync_data)
    }

    /// Appends bytes, all or none of them, without syncing: they survive this process, but not a crash of the machine.
    ///
    /// # Errors
    /// When a file operation fails.
    pub(crate) fn append_unsynced(&mut self, bytes: &[u8]) -> Result<(), FileError> {
        self.write(bytes, |_| Ok(()))
    }

    fn write(&mut self, bytes: &[u8], sync: impl Fn(&File) -> io::Result<()>) -> Result<(), FileError> {
        #[cfg(test)]
        crate::training::fault_injection::count(&mut self.file, bytes);
        let whole = if self.torn { self.file.set_len(self.length) } else { Ok(()) };
        let written = whole.and_then(|()| self.file.write_all(bytes)).and_then(|()| sync(&self.file));
        self.torn = match written {
            Ok(()) => {
                self.length += bytes.len() as u64;
                false
            }
            // If this fails, too, the next append or the next attempt drops the part.
            Err(_) => self.file.set_len(self.length).is_err(),
        };
        written.map_err(FileError::of("writing", &self.path))
    }

    /// Puts another file in place of the open one, and returns that.
    #[cfg(test)]
    pub(crate) fn replace(&mut self, file: File) -> File {
        std::mem::replace(&mut self.file, file)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A write that fails after half a line, and a truncation that fails as well: the next append truncates first.
    #[test]
    fn a_failed_append_leaves_no_part() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("lines");
        let mut lines = AppendFile::open(path.clone()).unwrap();
        lines.append_unsynced(b"one\n").unwrap();
        let file = lines.replace(File::open(&path).unwrap());
        assert_eq!(lines.append_unsynced(b"two\n").unwrap_err().action, "writing");
        fs::write(&path, "one\ntw").unwrap();
        lines.replace(file);
        lines.append(b"three\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "one\nthree\n");
    }
}
