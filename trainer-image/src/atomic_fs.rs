//! Atomic writes: a file or directory is written under a temporary name, synced and renamed, so that readers see all of it or
//! none. Does I/O.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use codex_provenance::Sha256;
use codex_reports::exit;
use sha2::Digest as _;

use crate::error::CommandError;

/// A file operation failed.
#[derive(Debug, thiserror::Error)]
#[error("{action} {path:?} failed")]
pub struct FileError {
    /// The operation.
    pub action: &'static str,
    /// The file.
    pub path: PathBuf,
    /// The I/O error.
    #[source]
    pub source: io::Error,
}

impl FileError {
    /// Adds the operation and the path to an I/O error.
    pub fn of(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self { action, path, source }
    }

    /// Returns the exit code of a command whose user-supplied file fails like this: bad input if the path is wrong.
    pub fn exit(&self) -> i32 {
        match self.source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::IsADirectory | io::ErrorKind::NotADirectory => exit::BAD_INPUT,
            _ => exit::FAILED,
        }
    }
}

impl From<FileError> for CommandError {
    fn from(error: FileError) -> Self {
        Self { exit: error.exit(), source: error.into() }
    }
}

/// The user-supplied path is missing or wrong; retrying cannot help.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {} {wrong}", path.display())]
pub struct Misnamed {
    /// The role of the file, such as `data mine`.
    pub what: String,
    /// The path.
    pub path: PathBuf,
    /// What is wrong with it.
    pub wrong: &'static str,
}

impl Misnamed {
    fn of(what: &str, path: &Path, wrong: &'static str) -> Self {
        Self { what: what.to_owned(), path: path.to_owned(), wrong }
    }
}

/// Reads a user-supplied file; `what` is its role in errors.
///
/// # Errors
/// [`Misnamed`] if the file does not exist, [`FileError`] if it cannot be read.
pub fn read_named<E: From<Misnamed> + From<FileError>>(what: &str, path: &Path) -> Result<Vec<u8>, E> {
    fs::read(path).map_err(|source| named(what, path, source))
}

/// Returns the error of reading a user-supplied file; see [`read_named`].
pub fn named<E: From<Misnamed> + From<FileError>>(what: &str, path: &Path, source: io::Error) -> E {
    let wrong = match source.kind() {
        io::ErrorKind::NotFound => "does not exist",
        io::ErrorKind::IsADirectory => "is a directory: name a file",
        io::ErrorKind::NotADirectory => "does not exist: its parent is a file",
        _ => return FileError::of("reading", path)(source).into(),
    };
    Misnamed::of(what, path, wrong).into()
}

/// Computes the digest of a file without holding it in memory.
///
/// # Errors
/// When the file system returns an error.
pub fn digest(path: &Path) -> io::Result<Sha256> {
    let mut hasher = sha2::Sha256::new();
    let (mut file, mut block) = (File::open(path)?, vec![0; 1 << 18]);
    loop {
        match file.read(&mut block)? {
            0 => return Ok(Sha256::finish(hasher)),
            count => hasher.update(&block[..count]),
        }
    }
}

/// Checks that `--output` is a directory or can become one.
///
/// # Errors
/// When it, or a parent, is a file.
pub fn check_output(path: &Path) -> Result<(), Misnamed> {
    match fs::metadata(path) {
        Ok(there) if !there.is_dir() => Err(Misnamed::of("--output", path, "is a file: name a directory")),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            Err(Misnamed::of("--output", path, "is below a file: name a directory that can be created"))
        }
        _ => Ok(()),
    }
}

/// Checks that an output can be a file: it is not a directory, nor below a file. `what` is its role in errors.
///
/// # Errors
/// When it is a directory, or a parent is a file.
pub fn check_output_file(what: &str, path: &Path) -> Result<(), Misnamed> {
    match fs::metadata(path) {
        Ok(there) if there.is_dir() => Err(Misnamed::of(what, path, "is a directory: name a file")),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            Err(Misnamed::of(what, path, "is below a file: name a file that can be created"))
        }
        _ => Ok(()),
    }
}

/// Returns what to do about a file system error, if its kind says enough. Looks through all causes.
pub fn advice(error: &(dyn std::error::Error + 'static)) -> Option<&'static str> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return match error.kind() {
                io::ErrorKind::StorageFull => Some("free space on the volume, or enlarge the claim"),
                io::ErrorKind::QuotaExceeded => Some("the quota of the volume is exhausted: raise it or free space"),
                io::ErrorKind::FileTooLarge => Some("the file size limit of the process is exceeded: raise the limit"),
                io::ErrorKind::ReadOnlyFilesystem => Some(
                    "the volume is read-only: mount it for writing, or check the kernel log for file system errors",
                ),
                io::ErrorKind::PermissionDenied => {
                    Some("permission denied: check the owner of the directory and the pod's fsGroup")
                }
                io::ErrorKind::NotFound | io::ErrorKind::StaleNetworkFileHandle => {
                    Some("the directory is gone: check that the volume is still mounted and that nothing moved it")
                }
                _ => None,
            };
        }
        cause = error.source();
    }
    None
}

/// Writes `bytes` to `path` and returns their digest.
///
/// The directory has to exist ([`make_parents`] creates the one of a file that a user names): a run whose volume was unmounted must
/// not create its directories again on the volume beneath.
///
/// A regular file is replaced atomically. A symbolic link stays, and its target is replaced. Devices, pipes and sockets are
/// written to.
///
/// # Errors
/// When the file cannot be written, its directory is missing, `path` is a directory, or it is a dangling link.
pub fn write(path: &Path, bytes: &[u8]) -> Result<Sha256, FileError> {
    write_with(path, |file| file.write_all(bytes))?;
    Ok(Sha256::of(bytes))
}

/// Writes what `fill` writes, as [`write`] does.
///
/// # Errors
/// When the file system or `fill` returns an error.
pub fn write_with(path: &Path, fill: impl FnOnce(&mut File) -> io::Result<()>) -> Result<(), FileError> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_symlink() => {
            let target = fs::canonicalize(path).map_err(FileError::of("following link", path))?;
            return write_with(&target, fill);
        }
        metadata => metadata.ok(),
    };
    match metadata.map(|metadata| metadata.file_type()) {
        Some(kind) if kind.is_dir() => {
            let directory = io::Error::new(io::ErrorKind::IsADirectory, "it is a directory: name a file");
            Err(FileError::of("writing", path)(directory))
        }
        Some(kind) if !kind.is_file() => {
            let open = OpenOptions::new().write(true).open(path);
            open.and_then(|mut file| fill(&mut file)).map_err(FileError::of("writing", path))
        }
        _ => replace(path, fill),
    }
}

/// Replaces a regular file atomically by what `fill` writes, or creates it.
fn replace(path: &Path, fill: impl FnOnce(&mut File) -> io::Result<()>) -> Result<(), FileError> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let temporary = path.with_added_extension("partial");
    let put = || {
        let mut file = File::create(&temporary).map_err(FileError::of("creating", &temporary))?;
        fill(&mut file).and_then(|()| file.sync_all()).map_err(FileError::of("writing", &temporary))?;
        fs::rename(&temporary, path).map_err(FileError::of("replacing", path))
    };
    // A partial file only takes space on a volume that may be full.
    put().inspect_err(|_| drop(fs::remove_file(&temporary)))?;
    sync_directory(directory)
}

/// Writes a value as indented JSON with a final line feed; see [`write`].
///
/// # Errors
/// When the file system returns an error.
pub fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<Sha256, FileError> {
    let mut bytes =
        serde_json::to_vec_pretty(value).map_err(io::Error::other).map_err(FileError::of("encoding", path))?;
    bytes.push(b'\n');
    write(path, &bytes)
}

/// Reads a whole file.
///
/// # Errors
/// When the file system returns an error.
pub fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    fs::read(path).map_err(FileError::of("reading", path))
}

/// Removes a directory and its contents, if it exists.
///
/// # Errors
/// When the file system returns an error.
pub fn remove_directory(path: &Path) -> Result<(), FileError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(FileError::of("removing", path)(error)),
        _ => Ok(()),
    }
}

/// Replaces the directory `path` by one with exactly these files. Its parent has to exist; see [`write`]. If they cannot be
/// written, the old directory stays. Between the two renames, for a moment, neither exists.
///
/// # Errors
/// When the file system returns an error.
pub fn write_directory(path: &Path, files: &BTreeMap<String, Vec<u8>>) -> Result<(), FileError> {
    let [partial, removed] = ["partial", "removed"].map(|word| path.with_added_extension(word));
    remove_directory(&partial)?;
    remove_directory(&removed)?;
    let put = || {
        fs::create_dir(&partial).map_err(FileError::of("creating directory", &partial))?;
        files.iter().try_for_each(|(name, bytes)| {
            if let Some(parent) = Path::new(name).parent() {
                make_directory_in(&partial, parent)?;
            }
            write(&partial.join(name), bytes).map(drop)
        })
    };
    let written = put();
    // A partial directory only takes space.
    written.inspect_err(|_| drop(remove_directory(&partial)))?;
    if path.exists() {
        fs::rename(path, &removed).map_err(FileError::of("renaming", path))?;
    }
    fs::rename(&partial, path).map_err(FileError::of("renaming", &partial))?;
    sync_directory(path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")))?;
    remove_directory(&removed)
}

/// Creates a directory and its parents.
///
/// # Errors
/// When the file system returns an error.
pub fn make_directory(path: &Path) -> Result<(), FileError> {
    fs::create_dir_all(path).map_err(FileError::of("creating directory", path))
}

/// Creates the missing parents of a file.
///
/// # Errors
/// When the file system returns an error.
pub fn make_parents(path: &Path) -> Result<(), FileError> {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).map_or(Ok(()), make_directory)
}

/// Creates the missing directories of `below`, a relative path, in `directory`, which has to exist; see [`write`].
///
/// # Errors
/// When the file system returns an error.
pub fn make_directory_in(directory: &Path, below: impl AsRef<Path>) -> Result<PathBuf, FileError> {
    let mut path = directory.to_owned();
    for part in below.as_ref() {
        path.push(part);
        match fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(FileError::of("creating directory", &path)(error));
            }
            _ => {}
        }
    }
    Ok(path)
}

/// Creates the directory `path` with what `fill` writes into a directory of another name, which is renamed at the end. If `fill`
/// fails, nothing is left.
///
/// # Errors
/// The error of `fill`, or the file system returns one. `path` exists.
pub fn create_directory<E: From<FileError>>(path: &Path, fill: impl FnOnce(&Path) -> Result<(), E>) -> Result<(), E> {
    let partial = path.with_added_extension("partial");
    remove_directory(&partial)?;
    make_directory(&partial)?;
    let filled = fill(&partial).and_then(|()| {
        sync_directory(&partial)?;
        // An empty directory would be replaced.
        if fs::symlink_metadata(path).is_ok() {
            let exists = io::Error::from(io::ErrorKind::AlreadyExists);
            return Err(FileError::of("creating directory", path)(exists).into());
        }
        Ok(fs::rename(&partial, path).map_err(FileError::of("renaming to", path))?)
    });
    // A partial directory only takes space on a volume that may be full.
    filled.inspect_err(|_| drop(fs::remove_dir_all(&partial)))?;
    Ok(match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync_directory(parent),
        _ => sync_directory(Path::new(".")),
    }?)
}

/// Syncs a directory, so that its entries are durable.
///
/// # Errors
/// When the file system returns an error.
pub fn sync_directory(path: &Path) -> Result<(), FileError> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(FileError::of("syncing", path))
}

/// Writes a line to standard output.
///
/// # Errors
/// When standard output is closed or full.
pub fn say(line: &str) -> Result<(), FileError> {
    writeln!(io::stdout().lock(), "{line}").map_err(FileError::of("writing to", Path::new("standard output")))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileTypeExt as _;

    use super::*;

    #[test]
    fn directories_that_were_removed_are_not_made_again() {
        let place = tempfile::tempdir().unwrap();
        let gone = place.path().join("volume/run");
        let files = BTreeMap::from([("a/b".to_owned(), b"1".to_vec())]);
        let refused = [
            write(&gone.join("latest"), b"1").map(drop),
            write_json(&gone.join("index.json"), &1).map(drop),
            write_directory(&gone.join("model"), &files),
            make_directory_in(&gone, "artifacts").map(drop),
        ];
        for refused in refused {
            assert_eq!(refused.unwrap_err().source.kind(), io::ErrorKind::NotFound);
        }
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);

        assert_eq!(make_directory_in(place.path(), "volume/run").unwrap(), gone);
        assert_eq!(make_directory_in(place.path(), "volume/run").unwrap(), gone, "it exists");
        write_directory(&gone.join("model"), &files).unwrap();
        assert_eq!(fs::read(gone.join("model/a/b")).unwrap(), b"1");
        fs::write(place.path().join("file"), "").unwrap();
        assert!(make_directory_in(place.path(), "file/run").is_err());
    }

    #[test]
    fn links_devices_and_pipes_are_never_replaced() {
        let place = tempfile::tempdir().unwrap();
        let path = |name: &str| place.path().join(name);
        fs::write(path("target"), "old").unwrap();
        std::os::unix::fs::symlink("target", path("link")).unwrap();
        write(&path("link"), b"new").unwrap();
        assert!(path("link").is_symlink());
        assert_eq!(fs::read(path("target")).unwrap(), b"new");

        std::os::unix::fs::symlink("nowhere", path("dangling")).unwrap();
        let error = write(&path("dangling"), b"x").unwrap_err();
        assert!(error.to_string().starts_with("following link ") && error.exit() == exit::BAD_INPUT, "{error}");
        assert!(path("dangling").is_symlink());

        let error = CommandError::from(write(place.path(), b"x").unwrap_err());
        assert_eq!(error.exit, exit::BAD_INPUT);
        assert!(error.sentence().ends_with("failed: it is a directory: name a file"), "{}", error.sentence());

        let pipe = path("pipe");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        let reader = {
            let pipe = pipe.clone();
            std::thread::spawn(move || fs::read(pipe).unwrap())
        };
        write(&pipe, b"through").unwrap();
        assert_eq!(reader.join().unwrap(), b"through");
        let reader = {
            let pipe = pipe.clone();
            std::thread::spawn(move || fs::read(pipe).unwrap())
        };
        write_with(&pipe, |file| file.write_all(b"in ").and_then(|()| file.write_all(b"parts"))).unwrap();
        assert_eq!(reader.join().unwrap(), b"in parts");
        write(Path::new("/dev/null"), b"x").unwrap();
        assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device());
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 4, "nothing else is left");
    }

    #[test]
    fn a_directory_is_replaced_whole_or_not_at_all() {
        let place = tempfile::tempdir().unwrap();
        let model = place.path().join("model");
        let files = |files: &[(&str, &str)]| {
            files.iter().map(|(name, text)| ((*name).to_owned(), text.as_bytes().to_vec())).collect()
        };
        let there = || {
            let names = fs::read_dir(place.path()).unwrap().map(|entry| entry.unwrap().file_name());
            assert_eq!(names.collect::<Vec<_>>(), ["model"], "nothing else is left");
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
        // A name that is too long fails after the first file is written.
        let long = "x".repeat(300);
        let error = write_directory(&model, &files(&[("a", "3"), (&long, "4")])).unwrap_err();
        assert!(error.to_string().starts_with("creating "), "{error}");
        assert_eq!(there(), [("a".into(), "1".to_owned()), ("b".into(), "2".to_owned())]);
        write_directory(&model, &files(&[("c", "5")])).unwrap();
        assert_eq!(there(), [("c".into(), "5".to_owned())]);
    }
}
