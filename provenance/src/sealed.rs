//! Files that stay on disk and are authenticated whenever they are read.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use sha2::Digest as _;

use crate::{
    digest::Sha256,
    files::{self, BUFFER, Entry, open},
    manifest::{File, Manifest, ManifestError},
};

/// Files of a model that give exactly the bytes of a manifest, by path.
#[derive(Debug, Default)]
pub struct Held {
    /// Files in memory.
    pub files: BTreeMap<String, Vec<u8>>,
    /// Files that are read when they are needed.
    pub sealed: BTreeMap<String, Arc<Sealed>>,
}

/// Files of a model of which only those in memory are hashed yet; see [`Manifest::begin`].
#[derive(Debug)]
pub struct Hashing {
    kept: Vec<File>,
    sealed: Vec<(Entry, Arc<Sealed>)>,
}

impl Hashing {
    /// Returns the files in memory.
    pub fn kept(&self) -> &[File] {
        &self.kept
    }

    /// Hashes the other files, and returns the manifest of all. Leaves as many processors free as `loading` says, which read the files
    /// meanwhile.
    ///
    /// # Errors
    /// A file cannot be read or changed since it was opened, or the manifest is invalid.
    pub fn finish(self, loading: usize) -> Result<Manifest, ManifestError> {
        let Self { kept, sealed } = self;
        let hashed = files::in_parallel(&sealed, loading, |(Entry { path, location, .. }, file)| {
            let sha256 = file.hash().map_err(|source| ManifestError::Unreadable { path: location.clone(), source })?;
            Ok(File { path: path.clone(), size: file.size(), sha256 })
        })?;
        Manifest::of_hashed(kept.into_iter().chain(hashed))
    }
}

impl Manifest {
    /// As [`Manifest::read`], but keeps in memory only the files whose path `kept` names. The others are hashed as they are,
    /// and compared with these hashes when they are read.
    ///
    /// # Errors
    /// As [`Manifest::read`].
    pub fn hold(entries: &[Entry], kept: impl Fn(&str) -> bool) -> Result<(Self, Held), ManifestError> {
        let (held, hashing) = Self::begin(entries, kept)?;
        Ok((hashing.finish(0)?, held))
    }

    /// As [`Manifest::hold`], but leaves it to the caller when the files that are not kept are hashed. Until then they can be
    /// read already. What was read is trusted only once [`Hashing::finish`] returns the right manifest.
    ///
    /// # Errors
    /// A file cannot be read, or has grown.
    pub fn begin(entries: &[Entry], kept: impl Fn(&str) -> bool) -> Result<(Held, Hashing), ManifestError> {
        let (mut held, mut hashing) = (Held::default(), Hashing { kept: Vec::new(), sealed: Vec::new() });
        for entry in entries {
            let Entry { path, location, size } = entry;
            let unreadable = |source| ManifestError::Unreadable { path: location.clone(), source };
            if kept(path) {
                let (bytes, sha256) = files::read_hashed(location, *size).map_err(unreadable)?;
                hashing.kept.push(File { path: path.clone(), size: bytes.len() as u64, sha256 });
                held.files.insert(path.clone(), bytes);
            } else {
                let sealed = Arc::new(Sealed::open(location, *size).map_err(unreadable)?);
                held.sealed.insert(path.clone(), Arc::clone(&sealed));
                hashing.sealed.push((entry.clone(), sealed));
            }
        }
        Ok((held, hashing))
    }
}

/// A key of this process that authenticates the pieces of one file (AES-GMAC). Its tags never leave the process, so a file that is
/// replaced cannot fit them; they take a tenth of the time of a digest.
#[derive(Debug)]
struct PieceKey(LessSafeKey);

impl PieceKey {
    fn new() -> io::Result<Self> {
        let mut bytes = [0; 32];
        aws_lc_rs::rand::fill(&mut bytes).map_err(io::Error::other)?;
        Ok(Self(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &bytes).map_err(io::Error::other)?)))
    }

    /// Returns the tag of a piece. The index is the nonce: the tag of another piece does not fit.
    fn tag(&self, index: usize, piece: &[u8]) -> io::Result<[u8; 16]> {
        let mut nonce = [0; NONCE_LEN];
        nonce[..8].copy_from_slice(&(index as u64).to_be_bytes());
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = self.0.seal_in_place_separate_tag(nonce, Aad::from(piece), &mut []).map_err(io::Error::other)?;
        tag.as_ref().try_into().map_err(io::Error::other)
    }
}

/// A file whose pieces are authenticated when they are first read, be it by [`hash`](Self::hash) or by [`read_at`](Self::read_at). Whatever
/// is read of it later is compared with its pieces, so that a large file need not be held in memory to be sure of its bytes, and can
/// be loaded while it is hashed: both get the same bytes, or one of them fails.
#[derive(Debug)]
pub struct Sealed {
    path: PathBuf,
    file: fs::File,
    size: u64,
    key: PieceKey,
    /// The tag of every [`BUFFER`] bytes, once they were read.
    pieces: Vec<OnceLock<[u8; 16]>>,
    /// The piece that was read last in part: reads that follow each other often share one.
    last: Mutex<Option<(usize, Vec<u8>)>>,
}

impl Sealed {
    /// Opens a file of at most `limit` bytes.
    ///
    /// # Errors
    /// As [`open`]; fails if the file has more bytes.
    pub fn open(path: &Path, limit: u64) -> io::Result<Self> {
        let file = open(path)?;
        let size = file.metadata()?.len();
        if size > limit {
            let why = format!("it has more than the {limit} bytes expected");
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        let pieces = (0..size.div_ceil(BUFFER as u64)).map(|_| OnceLock::new()).collect();
        Ok(Self { path: path.to_owned(), file, size, key: PieceKey::new()?, pieces, last: Mutex::new(None) })
    }

    /// Reads the whole file, and returns its digest.
    ///
    /// # Errors
    /// The file cannot be read, has another size than when it was opened, or its bytes are not those that were read before.
    pub fn hash(&self) -> io::Result<Sha256> {
        let (mut whole, mut bytes) = (sha2::Sha256::new(), Vec::new());
        for index in 0..self.pieces.len() {
            bytes.resize(self.length(index), 0);
            self.fill(index, &mut bytes)?;
            whole.update(&bytes);
        }
        if self.file.read_at(&mut [0], self.size)? > 0 {
            let why = format!("it has more than the {} bytes expected", self.size);
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        Ok(Sha256::finish(whole))
    }

    /// Returns the path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Reads bytes from `offset` on.
    ///
    /// # Errors
    /// The file cannot be read or ends before, or its bytes are not those that were read before.
    pub fn read_at(&self, mut to: &mut [u8], mut offset: u64) -> io::Result<()> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        while !to.is_empty() {
            let index = usize::try_from(offset / BUFFER as u64).unwrap_or(usize::MAX);
            let from = (offset % BUFFER as u64) as usize;
            let count = to.len().min(self.length(index).saturating_sub(from));
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let (now, rest) = to.split_at_mut(count);
            if count == self.length(index) {
                self.fill(index, now)?;
            } else {
                let bytes = match last.take() {
                    Some((held, bytes)) if held == index => bytes,
                    other => {
                        let mut bytes = other.map(|(_, bytes)| bytes).unwrap_or_default();
                        bytes.resize(self.length(index), 0);
                        self.fill(index, &mut bytes)?;
                        bytes
                    }
                };
                now.copy_from_slice(&bytes[from..from + count]);
                *last = Some((index, bytes));
            }
            (to, offset) = (rest, offset + count as u64);
        }
        Ok(())
    }

    /// Returns the bytes of a piece; 0 beyond the last one.
    fn length(&self, index: usize) -> usize {
        let start = (index as u64).saturating_mul(BUFFER as u64);
        self.size.saturating_sub(start).min(BUFFER as u64) as usize
    }

    /// Reads a piece, and compares it with its tag if it has one.
    fn fill(&self, index: usize, to: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(to, index as u64 * BUFFER as u64)?;
        let tag = self.key.tag(index, to)?;
        if *self.pieces[index].get_or_init(|| tag) == tag {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "its bytes changed after they were first read"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_file_gives_the_bytes_that_were_first_read_or_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("weights");
        let bytes: Vec<u8> = (0..3 * BUFFER + 77).map(|at| (at / 3 + at / BUFFER) as u8).collect();
        fs::write(&path, &bytes).unwrap();
        assert!(Sealed::open(&path, bytes.len() as u64 - 1).is_err());
        let sealed = Sealed::open(&path, bytes.len() as u64).unwrap();
        assert_eq!(sealed.size(), bytes.len() as u64);
        let read = |start: usize, count: usize| {
            let mut found = vec![0; count];
            sealed.read_at(&mut found, start as u64).map(|()| found)
        };
        // The first piece before the file is hashed, the others after it.
        assert!(read(7, 9).unwrap() == bytes[7..16]);
        assert_eq!(sealed.hash().unwrap(), Sha256::of(&bytes));
        for (start, count) in [
            (0, 1),
            (5, 0),
            (0, bytes.len()),
            (BUFFER - 1, BUFFER + 2),
            (1, 2 * BUFFER),
            (2 * BUFFER, BUFFER + 77),
            (3 * BUFFER + 76, 1),
        ] {
            assert!(read(start, count).unwrap() == bytes[start..start + count], "{start} {count}");
        }
        assert_eq!(read(3 * BUFFER, 78).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(read(9 * BUFFER, 1).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        // Another byte in the second piece, in place.
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&[!bytes[BUFFER + 9]], BUFFER as u64 + 9).unwrap();
        assert!(read(0, BUFFER).unwrap() == bytes[..BUFFER]);
        for (start, count) in [(BUFFER, 1), (BUFFER, BUFFER), (0, 2 * BUFFER)] {
            assert!(read(start, count).unwrap_err().to_string().contains("changed after they were first read"));
        }
        file.set_len(10).unwrap();
        assert!(read(2 * BUFFER, 1).is_err());
    }

    #[test]
    fn bytes_that_were_read_before_the_file_is_hashed_must_be_those_that_are_hashed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("weights");
        fs::write(&path, vec![1; BUFFER + 5]).unwrap();
        let sealed = Sealed::open(&path, u64::MAX).unwrap();
        sealed.read_at(&mut [0; 3], BUFFER as u64).unwrap();
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&[2], BUFFER as u64 + 4).unwrap();
        assert!(sealed.hash().unwrap_err().to_string().contains("changed after they were first read"));
        file.write_all_at(&[1], BUFFER as u64 + 4).unwrap();
        assert_eq!(sealed.hash().unwrap(), Sha256::of(vec![1; BUFFER + 5]));
        file.set_len(BUFFER as u64 + 6).unwrap();
        assert!(sealed.hash().unwrap_err().to_string().contains("more than the"));
        file.set_len(BUFFER as u64).unwrap();
        assert!(sealed.hash().is_err());
    }

    #[test]
    fn the_tag_of_a_piece_fits_no_other_piece_and_no_other_file() {
        let (key, other) = (PieceKey::new().unwrap(), PieceKey::new().unwrap());
        let tag = key.tag(1, b"piece").unwrap();
        assert_eq!(key.tag(1, b"piece").unwrap(), tag);
        for another in [key.tag(2, b"piece"), key.tag(1, b"peace"), key.tag(1, b""), other.tag(1, b"piece")] {
            assert_ne!(another.unwrap(), tag);
        }
    }
}
