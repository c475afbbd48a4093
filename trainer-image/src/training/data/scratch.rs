//! Files without a name, which the system removes when they are closed. Does I/O.

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use crate::atomic_fs::{self, FileError};

/// Maps the errors of reading and writing a file without a name.
pub(super) fn failed() -> impl FnOnce(io::Error) -> FileError {
    FileError::of("reading or writing a temporary file in", Path::new("the token cache"))
}

/// Creates an empty file in `directory`, for reading and writing, and removes its name.
///
/// # Errors
/// When a file operation fails.
pub(super) fn scratch_file(directory: &Path) -> Result<File, FileError> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    atomic_fs::make_directory(directory)?;
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let path = directory.join(format!(".scratch-{}-{number}", std::process::id()));
    // A process in another pod may have the same number: its file only loses its name.
    drop(fs::remove_file(&path));
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path);
    let file = file.map_err(FileError::of("creating a temporary file in", directory))?;
    fs::remove_file(&path).map_err(FileError::of("removing", &path))?;
    Ok(file)
}
