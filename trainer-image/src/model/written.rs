//! Writes a directory of a model, and hashes it meanwhile. Does I/O.

use std::{panic::resume_unwind, path::Path, thread};

use codex_provenance::manifest::{Manifest, ManifestError};

use super::files::ModelFiles;
use crate::atomic_fs::{self, FileError};

/// Writes the directory `place` with exactly these files, unless it already has their bytes, and returns their manifest. Another
/// thread hashes the files while they are written, so hashing takes no time of its own where the volume is slower than a processor.
///
/// # Errors
/// When a name is not allowed in a model, or the file system returns an error.
pub fn write_hashed<E: From<ManifestError> + From<FileError>>(place: &Path, files: &ModelFiles) -> Result<Manifest, E> {
    if place.exists() {
        let manifest = Manifest::of_files(files)?;
        if Manifest::of_dir(place).ok().as_ref() != Some(&manifest) {
            atomic_fs::write_directory(place, files)?;
        }
        return Ok(manifest);
    }
    let (manifest, written) = thread::scope(|scope| {
        let hashed = scope.spawn(|| Manifest::of_files(files));
        let written = atomic_fs::write_directory(place, files);
        (hashed.join().unwrap_or_else(|panic| resume_unwind(panic)), written)
    });
    written?;
    Ok(manifest?)
}

#[cfg(test)]
mod tests {
    use std::{error::Error, fs, os::unix::fs::MetadataExt as _};

    use super::*;

    #[test]
    fn a_directory_is_hashed_as_it_is_written_and_equal_bytes_are_not_written_again() {
        let parent = tempfile::tempdir().unwrap();
        let place = parent.path().join("model");
        let write = |files: &ModelFiles| write_hashed::<Box<dyn Error>>(&place, files).unwrap();
        let mut files =
            ModelFiles::from([("config.json".to_owned(), b"{}".to_vec()), ("weights".to_owned(), vec![7; 1 << 20])]);
        let first = write(&files);
        assert_eq!(first, Manifest::of_dir(&place).unwrap());
        let file = || fs::metadata(place.join("weights")).unwrap().ino();
        let written = file();
        assert_eq!((write(&files), file()), (first.clone(), written), "nothing is written again");

        files.insert("weights".to_owned(), vec![8; 1 << 20]);
        files.remove("config.json");
        let second = write(&files);
        assert_ne!(second.digest(), first.digest());
        assert_eq!(second, Manifest::of_dir(&place).unwrap(), "the former files are gone");
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_an_error() {
        let parent = tempfile::tempdir().unwrap();
        let place = parent.path().join("missing/model");
        let files = ModelFiles::from([("weights".to_owned(), vec![7; 8])]);
        assert!(write_hashed::<Box<dyn Error>>(&place, &files).is_err());
        assert!(!place.exists());
    }
}
