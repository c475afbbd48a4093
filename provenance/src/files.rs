//! Files of a model on a disk: walking a directory, reading while hashing.

use std::{
    collections::BTreeSet,
    fs::{self, OpenOptions},
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;
use sha2::Digest as _;

use crate::{
    digest::Sha256,
    manifest::{ManifestError, check_paths},
};

/// How many bytes are read at once.
const BUFFER: usize = 1 << 20;

/// What OpenSSF Model Signing leaves out at the top of a model directory.
pub const IGNORED: [&str; 4] = [".git", ".gitattributes", ".github", ".gitignore"];

/// A file of a model directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// POSIX path relative to the model directory, as manifests name it.
    pub path: String,
    /// Where it lies.
    pub location: PathBuf,
}

/// Every regular file below `directory`, in manifest order; [`IGNORED`] names and the relative paths in `except` (a
/// signature that lies beside what it signs) are left out.
///
/// # Errors
/// A symbolic link, a device, socket or pipe, a name that is not UTF-8 or that [`check_paths`] refuses, a directory
/// without a file, and whatever the file system refuses.
pub fn walk(directory: &Path, except: &BTreeSet<String>) -> Result<Vec<Entry>, ManifestError> {
    let mut entries = Vec::new();
    descend(directory, "", except, &mut entries)?;
    entries.sort_by(|a, b| a.path.split('/').cmp(b.path.split('/')));
    check_paths(entries.iter().map(|entry| entry.path.as_str()))?;
    Ok(entries)
}

fn descend(
    directory: &Path,
    prefix: &str,
    except: &BTreeSet<String>,
    entries: &mut Vec<Entry>,
) -> Result<(), ManifestError> {
    let unreadable = |source| ManifestError::Unreadable { path: directory.to_owned(), source };
    for item in fs::read_dir(directory).map_err(unreadable)? {
        let item = item.map_err(unreadable)?;
        let name = item
            .file_name()
            .into_string()
            .map_err(|name| ManifestError::NotUtf8 { path: format!("{prefix}{}", name.display()) })?;
        let path = format!("{prefix}{name}");
        let kind = item.file_type().map_err(unreadable)?;
        if kind.is_symlink() {
            return Err(ManifestError::Symlink { path });
        }
        if (prefix.is_empty() && IGNORED.contains(&name.as_str())) || except.contains(&path) {
            continue;
        }
        if kind.is_dir() {
            descend(&item.path(), &format!("{path}/"), except, entries)?;
        } else if kind.is_file() {
            entries.push(Entry { path, location: item.path() });
        } else {
            return Err(ManifestError::NotAFile { path });
        }
    }
    Ok(())
}

/// Opens a regular file for reading; a symbolic link that took its place since the walk is refused, and a pipe does
/// not block.
///
/// # Errors
/// Whatever the file system refuses, and anything but a regular file.
pub fn open(path: &Path) -> io::Result<fs::File> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    Ok(file)
}

/// Hashes what a reader yields, a buffer at a time: bytes read and their digest.
///
/// # Errors
/// Whatever the reader refuses.
pub fn hash_reader(mut reader: impl Read) -> io::Result<(u64, Sha256)> {
    let mut hasher = sha2::Sha256::new();
    let mut buffer = vec![0; BUFFER];
    let mut size = 0;
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok((size, Sha256::finish(hasher))),
            Ok(count) => {
                hasher.update(&buffer[..count]);
                size += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Reads a file into memory and hashes exactly what it read, while it reads.
///
/// # Errors
/// As [`open`], and whatever the file system refuses while reading.
pub fn read_hashed(path: &Path) -> io::Result<(Vec<u8>, Sha256)> {
    let mut file = open(path)?;
    let mut bytes = Vec::with_capacity(usize::try_from(file.metadata()?.len()).unwrap_or(0));
    let mut hasher = sha2::Sha256::new();
    loop {
        let before = bytes.len();
        if Read::by_ref(&mut file).take(BUFFER as u64).read_to_end(&mut bytes)? == 0 {
            return Ok((bytes, Sha256::finish(hasher)));
        }
        hasher.update(&bytes[before..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_hashes_what_it_read_over_several_buffers() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("weights");
        let contents: Vec<u8> = (0..BUFFER * 2 + 17).map(|i| (i % 251) as u8).collect();
        fs::write(&path, &contents).unwrap();
        let (bytes, digest) = read_hashed(&path).unwrap();
        assert!(bytes == contents);
        assert_eq!(digest, Sha256::of(&contents));
        assert_eq!(hash_reader(&contents[..]).unwrap(), (contents.len() as u64, digest));
    }

    #[test]
    fn a_link_is_not_opened() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("real"), "x").unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink("real", &link).unwrap();
        assert!(open(&link).is_err());
        assert!(open(directory.path()).is_err());
    }
}
