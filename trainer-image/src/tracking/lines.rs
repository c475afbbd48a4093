//! A file of bytes that is only appended to, all or nothing. Does I/O.

use std::{
    fs::{File, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
};

use crate::atomic_fs::FileError;

/// A file, open for appending. A failed append leaves no partial line or record.
#[derive(Debug)]
pub(super) struct Lines {
    path: PathBuf,
    file: File,
    length: u64,
    /// Whether a part of a failed append may follow.
    torn: bool,
}

impl Lines {
    /// Opens a file at its end, or creates it.
    ///
    /// # Errors
    /// When a file operation fails.
    pub(super) fn open(path: &Path) -> Result<Self, FileError> {
        let file = OpenOptions::new().append(true).create(true).open(path).map_err(FileError::of("opening", path))?;
        let length = file.metadata().map_err(FileError::of("reading", path))?.len();
        Ok(Self { path: path.to_owned(), file, length, torn: false })
    }

    /// Appends bytes, without syncing: they survive this process, but not a crash of the machine.
    ///
    /// # Errors
    /// When a file operation fails.
    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<(), FileError> {
        let whole = if self.torn { self.file.set_len(self.length) } else { Ok(()) };
        let written = whole.and_then(|()| self.file.write_all(bytes));
        self.torn = match written {
            Ok(()) => {
                self.length += bytes.len() as u64;
                false
            }
            // If this fails, too, the next append drops the part.
            Err(_) => self.file.set_len(self.length).is_err(),
        };
        written.map_err(FileError::of("writing", &self.path))
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
        let mut lines = Lines::open(&path).unwrap();
        lines.append(b"one\n").unwrap();
        let file = std::mem::replace(&mut lines.file, File::open(&path).unwrap());
        assert_eq!(lines.append(b"two\n").unwrap_err().action, "writing");
        fs::write(&path, "one\ntw").unwrap();
        lines.file = file;
        lines.append(b"three\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "one\nthree\n");
    }
}
