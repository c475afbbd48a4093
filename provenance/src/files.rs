//! Files of a model: listing a directory, reading and hashing.

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

/// Size of a read buffer in bytes.
pub(crate) const BUFFER: usize = 1 << 20;

/// Names that OpenSSF Model Signing leaves out at the top of a model directory: files, folders and links.
pub const IGNORED: [&str; 4] = [".git", ".gitattributes", ".github", ".gitignore"];

/// A file of a model directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// POSIX path, relative to the model directory, as in a manifest.
    pub path: String,
    /// Path of the file.
    pub location: PathBuf,
    /// Size in bytes when the directory was listed.
    pub size: u64,
}

/// Lists the regular files below `directory` in the order of a manifest, without reading them. Leaves out the names in
/// [`IGNORED`] and the relative paths in `except`, such as a signature inside the directory.
///
/// # Errors
/// Fails for a symbolic link, a device, socket or pipe, a name that is not UTF-8 or that [`check_paths`] refuses, a directory
/// without files, and if the directory cannot be read.
pub fn walk(directory: &Path, except: &BTreeSet<String>) -> Result<Vec<Entry>, ManifestError> {
    let mut entries = Vec::new();
    descend(directory, "", except, &mut entries)?;
    entries.sort_by(|a, b| a.path.split('/').cmp(b.path.split('/')));
    check_paths(entries.iter().map(|entry| entry.path.as_str()))?;
    Ok(entries)
}

/// Lists a model that is a single file, under its own name.
///
/// # Errors
/// Fails for anything but a regular file, for a name that is not UTF-8, and if the file cannot be read.
pub fn single(file: &Path) -> Result<Entry, ManifestError> {
    let unreadable = |source| ManifestError::Unreadable { path: file.to_owned(), source };
    let metadata = fs::symlink_metadata(file).map_err(unreadable)?;
    let name = file.file_name().unwrap_or_default();
    let path = name.to_str().ok_or_else(|| ManifestError::NotUtf8 { path: name.display().to_string() })?.to_owned();
    if metadata.is_symlink() {
        return Err(ManifestError::Symlink { path });
    }
    if !metadata.is_file() {
        return Err(ManifestError::NotAFile { path });
    }
    check_paths([path.as_str()].into_iter())?;
    Ok(Entry { path, location: file.to_owned(), size: metadata.len() })
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
        // Be it a file, a folder or a link: nothing reads it.
        if prefix.is_empty() && IGNORED.contains(&name.as_str()) {
            continue;
        }
        let kind = item.file_type().map_err(unreadable)?;
        if kind.is_symlink() {
            return Err(ManifestError::Symlink { path });
        }
        if except.contains(&path) {
            continue;
        }
        if kind.is_dir() {
            descend(&item.path(), &format!("{path}/"), except, entries)?;
        } else if kind.is_file() {
            let size = item.metadata().map_err(unreadable)?.len();
            entries.push(Entry { path, location: item.path(), size });
        } else {
            return Err(ManifestError::NotAFile { path });
        }
    }
    Ok(())
}

/// Opens a regular file for reading. Refuses a symbolic link, and does not block on a pipe, even if one has replaced the file
/// since the directory was listed.
///
/// # Errors
/// Fails for anything but a regular file, and if the file cannot be opened.
pub fn open(path: &Path) -> io::Result<fs::File> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    Ok(file)
}

/// Hashes the output of a reader and returns its size and digest.
///
/// # Errors
/// The error of the reader.
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

/// Reads a file of at most `limit` bytes into memory and returns its bytes and their digest.
///
/// # Errors
/// As [`open`]; fails if the file cannot be read or has more bytes.
pub fn read_hashed(path: &Path, limit: u64) -> io::Result<(Vec<u8>, Sha256)> {
    let mut file = open(path)?;
    let grown = || io::Error::new(io::ErrorKind::InvalidData, format!("it has more than the {limit} bytes expected"));
    if file.metadata()?.len() > limit {
        return Err(grown());
    }
    let mut bytes = Vec::new();
    // A size beyond the memory of the machine is an error here and not the end of the process.
    bytes.try_reserve_exact(usize::try_from(limit).unwrap_or(usize::MAX))?;
    let mut hasher = sha2::Sha256::new();
    loop {
        let before = bytes.len();
        if Read::by_ref(&mut file).take(BUFFER as u64).read_to_end(&mut bytes)? == 0 {
            return Ok((bytes, Sha256::finish(hasher)));
        }
        if bytes.len() as u64 > limit {
            return Err(grown());
        }
        hasher.update(&bytes[before..]);
    }
}

/// Reads the first `limit` bytes of a file, and one more if there is one, so that the caller can refuse a larger file without
/// having read it. Follows symbolic links.
///
/// # Errors
/// Fails if the file cannot be read.
pub fn read_start(path: &Path, limit: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(limit as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_covers_several_buffers() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("weights");
        let contents: Vec<u8> = (0..BUFFER * 2 + 17).map(|i| (i % 251) as u8).collect();
        fs::write(&path, &contents).unwrap();
        let (bytes, digest) = read_hashed(&path, contents.len() as u64).unwrap();
        assert!(bytes == contents);
        assert_eq!(digest, Sha256::of(&contents));
        assert_eq!(hash_reader(&contents[..]).unwrap(), (contents.len() as u64, digest));
    }

    #[test]
    fn no_more_is_read_than_was_listed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("weights");
        fs::write(&path, "0123456789").unwrap();
        let told = read_hashed(&path, 9).unwrap_err().to_string();
        assert_eq!(told, "it has more than the 9 bytes expected");
        assert_eq!(read_start(&path, 4).unwrap(), b"01234");
        assert_eq!(read_start(&path, 100).unwrap(), b"0123456789");
        // A sparse file of 1 TiB is refused at once.
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(1 << 40).unwrap();
        assert!(read_hashed(&path, 10).is_err());
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
