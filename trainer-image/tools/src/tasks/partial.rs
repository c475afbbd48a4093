//! What interrupted transfers and writes left. Reads and deletes files.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use codex::atomic_fs::{self, FileError};
use jiff::SignedDuration;

/// How the names of what is not complete end.
const ENDING: &str = ".partial";

/// Finds files and directories that end in `.partial` and that nothing has written to for a while, with their sizes. A directory that
/// a process works in is left out, and links are not followed.
///
/// # Errors
/// A folder cannot be read.
pub(super) fn find(folder: &Path, age: SignedDuration) -> Result<Vec<(PathBuf, u64)>, FileError> {
    let mut found = Vec::new();
    let entries: io::Result<Vec<_>> = fs::read_dir(folder).and_then(Iterator::collect);
    let mut entries = entries.map_err(FileError::of("listing", folder))?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        let kind = entry.file_type().map_err(FileError::of("reading", &path))?;
        let ends = entry.file_name().to_string_lossy().ends_with(ENDING);
        if ends && (kind.is_dir() || kind.is_file()) {
            let (newest, bytes) = match measure(&path) {
                // Its writer has renamed it meanwhile.
                Err(error) if error.source.kind() == io::ErrorKind::NotFound => continue,
                measured => measured?,
            };
            let idle = SystemTime::now().duration_since(newest).unwrap_or_default();
            if SignedDuration::try_from(idle).is_ok_and(|idle| idle >= age) && !is_locked(&path) {
                found.push((path, bytes));
            }
        } else if kind.is_dir() {
            found.extend(find(&path, age)?);
        }
    }
    Ok(found)
}

/// Removes what was found, unless a process works in it by now. Returns whether it did.
///
/// # Errors
/// The file system returns an error.
pub(super) fn remove(path: &Path) -> Result<bool, FileError> {
    if is_locked(path) {
        return Ok(false);
    }
    if path.is_dir() {
        atomic_fs::remove_directory(path)?;
    } else {
        fs::remove_file(path).map_err(FileError::of("removing", path))?;
    }
    Ok(true)
}

/// Returns the time of the last write to a file or to anything in a directory, and the size.
fn measure(path: &Path) -> Result<(SystemTime, u64), FileError> {
    let metadata = fs::symlink_metadata(path).map_err(FileError::of("reading", path))?;
    let mut newest = metadata.modified().map_err(FileError::of("reading", path))?;
    if !metadata.is_dir() {
        return Ok((newest, metadata.len()));
    }
    let mut bytes = 0;
    for entry in fs::read_dir(path).map_err(FileError::of("listing", path))? {
        let entry = entry.map_err(FileError::of("listing", path))?;
        let (time, size) = measure(&entry.path())?;
        newest = newest.max(time);
        bytes += size;
    }
    Ok((newest, bytes))
}

/// Whether a process holds the lock that transfers take.
fn is_locked(path: &Path) -> bool {
    File::open(path).is_ok_and(|file| matches!(file.try_lock(), Err(fs::TryLockError::WouldBlock)))
}
