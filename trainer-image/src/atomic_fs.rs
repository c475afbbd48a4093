//! Atomic writes: a file or directory is written under a temporary name, synced and renamed, so that readers see all of it or
//! none. Does I/O.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use codex_provenance::Sha256;

/// A file that could not be written or read.
#[derive(Debug, thiserror::Error)]
#[error("{action} {path:?} failed")]
pub struct FileError {
    /// What was tried.
    pub action: &'static str,
    /// On what.
    pub path: PathBuf,
    /// What the system says.
    #[source]
    pub source: io::Error,
}

impl FileError {
    /// Names the action and the path of an I/O error.
    pub fn of(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self { action, path, source }
    }
}

/// A file or directory that somebody named, and that is none: another attempt is in vain.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {} {wrong}", path.display())]
pub struct Misnamed {
    /// What it was to be, such as `data mine`.
    pub what: String,
    /// The name.
    pub path: PathBuf,
    /// What is there.
    pub wrong: &'static str,
}

impl Misnamed {
    fn of(what: &str, path: &Path, wrong: &'static str) -> Self {
        Self { what: what.to_owned(), path: path.to_owned(), wrong }
    }
}

/// Reads a file that somebody named; `what` it is to be is told where it is none.
///
/// # Errors
/// [`Misnamed`] when there is no such file, [`FileError`] when the file system refuses.
pub fn read_named<E: From<Misnamed> + From<FileError>>(what: &str, path: &Path) -> Result<Vec<u8>, E> {
    read(path).map_err(|error| {
        let wrong = match error.source.kind() {
            io::ErrorKind::NotFound => "does not exist",
            io::ErrorKind::IsADirectory => "is a directory: name a file",
            io::ErrorKind::NotADirectory => "does not exist: what should be its directory is a file",
            _ => return error.into(),
        };
        Misnamed::of(what, path, wrong).into()
    })
}

/// Whether a directory is at a place that somebody named as `--output`, or can be made there.
///
/// # Errors
/// When there is a file.
pub fn check_output(path: &Path) -> Result<(), Misnamed> {
    match fs::metadata(path) {
        Ok(there) if !there.is_dir() => Err(Misnamed::of("--output", path, "is a file: name a directory")),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            Err(Misnamed::of("--output", path, "lies beneath a file: name a directory that can be made"))
        }
        _ => Ok(()),
    }
}

/// What a person can do about a file system that refuses, where its error says enough; looks through all causes.
pub fn advice(error: &(dyn std::error::Error + 'static)) -> Option<&'static str> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return match error.kind() {
                io::ErrorKind::StorageFull => Some("free space on the volume or give the claim more"),
                io::ErrorKind::QuotaExceeded => Some("the quota of the volume is used up: raise it or free space"),
                io::ErrorKind::FileTooLarge => Some("the process may not write files of this size: raise the limit"),
                io::ErrorKind::ReadOnlyFilesystem => {
                    Some("the volume is read-only: mount it for writing, or look why the kernel made it so")
                }
                io::ErrorKind::PermissionDenied => {
                    Some("the process may not write there: look at the owner and fsGroup")
                }
                io::ErrorKind::NotFound | io::ErrorKind::StaleNetworkFileHandle => {
                    Some("the volume has vanished: look whether it is still mounted")
                }
                _ => None,
            };
        }
        cause = error.source();
    }
    None
}

/// Writes `bytes` to `path`, replacing what is there, and returns their digest. The directory is made when it is missing.
///
/// # Errors
/// When the file system refuses.
pub fn write(path: &Path, bytes: &[u8]) -> Result<Sha256, FileError> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    make_directory(directory)?;
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".partial");
    let temporary = PathBuf::from(temporary);
    let put = || {
        let mut file = File::create(&temporary).map_err(FileError::of("creating", &temporary))?;
        file.write_all(bytes).and_then(|()| file.sync_all()).map_err(FileError::of("writing", &temporary))?;
        fs::rename(&temporary, path).map_err(FileError::of("renaming", &temporary))
    };
    // What is half written only takes room, on a volume that may have none.
    put().inspect_err(|_| drop(fs::remove_file(&temporary)))?;
    sync_directory(directory)?;
    Ok(Sha256::of(bytes))
}

/// Writes a value as indented JSON with a final line feed; see [`write`].
///
/// # Errors
/// When the file system refuses.
pub fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<Sha256, FileError> {
    let mut bytes =
        serde_json::to_vec_pretty(value).map_err(io::Error::other).map_err(FileError::of("encoding", path))?;
    bytes.push(b'\n');
    write(path, &bytes)
}

/// Reads a whole file.
///
/// # Errors
/// When the file system refuses.
pub fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    fs::read(path).map_err(FileError::of("reading", path))
}

/// Removes a directory and what is in it, if it is there.
///
/// # Errors
/// When the file system refuses.
pub fn remove_directory(path: &Path) -> Result<(), FileError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(FileError::of("removing", path)(error)),
        _ => Ok(()),
    }
}

/// Makes `path` a directory with exactly these files. Until they are all written, and when they cannot be, it is what it was,
/// save for a moment between two renames.
///
/// # Errors
/// When the file system refuses.
pub fn write_directory(path: &Path, files: &BTreeMap<String, Vec<u8>>) -> Result<(), FileError> {
    let [partial, removed] = ["partial", "removed"].map(|word| path.with_added_extension(word));
    remove_directory(&partial)?;
    remove_directory(&removed)?;
    let written = files.iter().try_for_each(|(name, bytes)| write(&partial.join(name), bytes).map(drop));
    // What is half written takes room and helps nobody.
    written.inspect_err(|_| drop(remove_directory(&partial)))?;
    if path.exists() {
        fs::rename(path, &removed).map_err(FileError::of("renaming", path))?;
    }
    fs::rename(&partial, path).map_err(FileError::of("renaming", &partial))?;
    sync_directory(path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")))?;
    remove_directory(&removed)
}

/// Makes a directory and those above it.
///
/// # Errors
/// When the file system refuses.
pub fn make_directory(path: &Path) -> Result<(), FileError> {
    fs::create_dir_all(path).map_err(FileError::of("making directory", path))
}

/// Makes the names in a directory durable.
///
/// # Errors
/// When the file system refuses.
pub fn sync_directory(path: &Path) -> Result<(), FileError> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(FileError::of("syncing", path))
}

/// Writes a line to standard output.
///
/// # Errors
/// When nobody reads it.
pub fn say(line: &str) -> Result<(), FileError> {
    writeln!(io::stdout().lock(), "{line}").map_err(FileError::of("writing to", Path::new("standard output")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_replaced_whole_or_not_at_all() {
        let place = tempfile::tempdir().unwrap();
        let model = place.path().join("model");
        let files = |files: &[(&str, &str)]| {
            files.iter().map(|(name, text)| ((*name).to_owned(), text.as_bytes().to_vec())).collect()
        };
        let there = || {
            let names = fs::read_dir(place.path()).unwrap().map(|entry| entry.unwrap().file_name());
            assert_eq!(names.collect::<Vec<_>>(), ["model"], "nothing is left beside it");
            let mut there: Vec<_> = fs::read_dir(&model)
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .map(|path| (path.file_name().unwrap().to_owned(), fs::read_to_string(path).unwrap()))
                .collect();
            there.sort();
            there
        };
        write_directory(&model, &files(&[("a", "1"), ("b", "2")])).unwrap();
        assert_eq!(there(), [("a".into(), "1".to_owned()), ("b".into(), "2".to_owned())]);
        // A name that no file system takes fails after the first file is written.
        let long = "x".repeat(300);
        let error = write_directory(&model, &files(&[("a", "3"), (&long, "4")])).unwrap_err();
        assert!(error.to_string().starts_with("creating "), "{error}");
        assert_eq!(there(), [("a".into(), "1".to_owned()), ("b".into(), "2".to_owned())]);
        write_directory(&model, &files(&[("c", "5")])).unwrap();
        assert_eq!(there(), [("c".into(), "5".to_owned())]);
    }
}
