//! Files that stay on disk and are authenticated whenever they are read.

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    os::unix::fs::FileExt as _,
    panic::resume_unwind,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, PoisonError},
    thread,
};

use highway::{HighwayHash as _, HighwayHasher, Key};
use sha2::Digest as _;

use crate::{
    digest::Sha256,
    files::{self, Entry, open},
    manifest::{File, Manifest, ManifestError},
    threads::{give_way, in_parallel},
};

/// Bytes that are authenticated together. A read takes up to two pieces more than it needs, so they are small beside a tensor; one that
/// begins and ends at multiples of a piece takes none.
pub const PIECE: usize = 1 << 16;

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

    /// Hashes the other files with all processors, and returns the manifest of all.
    ///
    /// # Errors
    /// A file cannot be read or changed since it was opened, or the manifest is invalid.
    pub fn finish(self) -> Result<Manifest, ManifestError> {
        let hashed = in_parallel(&self.sealed, |(entry, file)| hash(entry, file))?;
        Manifest::of_hashed(self.kept.into_iter().chain(hashed))
    }

    /// As [`finish`](Self::finish), but with one thread of the lowest priority, because others load the files meanwhile: they wait for
    /// each other, so that one that is held up holds up all. Loading leaves processors idle while it reads, and hashing takes those.
    ///
    /// # Errors
    /// As [`finish`](Self::finish).
    pub fn finish_beside_loading(self) -> Result<Manifest, ManifestError> {
        let hashed = thread::scope(|scope| {
            let hashing = scope.spawn(|| {
                give_way();
                self.sealed.iter().map(|(entry, file)| hash(entry, file)).collect::<Result<Vec<File>, _>>()
            });
            hashing.join().unwrap_or_else(|panic| resume_unwind(panic))
        })?;
        Manifest::of_hashed(self.kept.into_iter().chain(hashed))
    }
}

fn hash(entry: &Entry, file: &Sealed) -> Result<File, ManifestError> {
    let Entry { path, location, .. } = entry;
    let sha256 = file.hash().map_err(|source| ManifestError::Unreadable { path: location.clone(), source })?;
    Ok(File { path: path.clone(), size: file.size(), sha256 })
}

impl Manifest {
    /// As [`Manifest::read`], but keeps in memory only the files whose path `kept` names. The others are hashed as they are,
    /// and compared with these hashes when they are read.
    ///
    /// # Errors
    /// As [`Manifest::read`].
    pub fn hold(entries: &[Entry], kept: impl Fn(&str) -> bool) -> Result<(Self, Held), ManifestError> {
        let (held, hashing) = Self::begin(entries, kept)?;
        Ok((hashing.finish()?, held))
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

/// The tag of a piece.
type Tag = [u64; 2];

/// A key of this process that authenticates the pieces of one file by `HighwayHash`, a pseudo-random function of 128 bits
/// (Alakuijala, Cox, Wassenberg: Fast keyed hash/pseudo-random function using SIMD multiply and permute, 2016). Neither key nor tags
/// leave the process, so that nobody can make other bytes with the same tag. A tag takes a twentieth of the time of a digest.
struct PieceKey(Key);

impl fmt::Debug for PieceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PieceKey")
    }
}

impl PieceKey {
    fn new() -> io::Result<Self> {
        let mut words = [0; 4];
        for word in &mut words {
            let mut bytes = [0; 8];
            aws_lc_rs::rand::fill(&mut bytes).map_err(io::Error::other)?;
            *word = u64::from_ne_bytes(bytes);
        }
        Ok(Self(Key(words)))
    }

    /// Returns the tag of a piece and its index: the tag of another piece does not fit.
    fn tag(&self, index: usize, piece: &[u8]) -> Tag {
        let mut hasher = HighwayHasher::new(self.0);
        hasher.append(piece);
        hasher.append(&(index as u64).to_le_bytes());
        hasher.finalize128()
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
    /// The tag of every [`PIECE`] bytes, once they were read.
    pieces: Vec<OnceLock<Tag>>,
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
        let pieces = (0..size.div_ceil(PIECE as u64)).map(|_| OnceLock::new()).collect();
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
            let index = usize::try_from(offset / PIECE as u64).unwrap_or(usize::MAX);
            let from = (offset % PIECE as u64) as usize;
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
        let start = (index as u64).saturating_mul(PIECE as u64);
        self.size.saturating_sub(start).min(PIECE as u64) as usize
    }

    /// Reads a piece, and compares it with its tag if it has one.
    fn fill(&self, index: usize, to: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(to, index as u64 * PIECE as u64)?;
        let tag = self.key.tag(index, to);
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
        let bytes: Vec<u8> = (0..3 * PIECE + 77).map(|at| (at / 3 + at / PIECE) as u8).collect();
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
            (PIECE - 1, PIECE + 2),
            (1, 2 * PIECE),
            (2 * PIECE, PIECE + 77),
            (3 * PIECE + 76, 1),
        ] {
            assert!(read(start, count).unwrap() == bytes[start..start + count], "{start} {count}");
        }
        assert_eq!(read(3 * PIECE, 78).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(read(9 * PIECE, 1).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        // Another byte in the second piece, in place.
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&[!bytes[PIECE + 9]], PIECE as u64 + 9).unwrap();
        assert!(read(0, PIECE).unwrap() == bytes[..PIECE]);
        for (start, count) in [(PIECE, 1), (PIECE, PIECE), (0, 2 * PIECE)] {
            assert!(read(start, count).unwrap_err().to_string().contains("changed after they were first read"));
        }
        file.set_len(10).unwrap();
        assert!(read(2 * PIECE, 1).is_err());
    }

    #[test]
    fn bytes_that_were_read_before_the_file_is_hashed_must_be_those_that_are_hashed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("weights");
        fs::write(&path, vec![1; PIECE + 5]).unwrap();
        let sealed = Sealed::open(&path, u64::MAX).unwrap();
        sealed.read_at(&mut [0; 3], PIECE as u64).unwrap();
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&[2], PIECE as u64 + 4).unwrap();
        assert!(sealed.hash().unwrap_err().to_string().contains("changed after they were first read"));
        file.write_all_at(&[1], PIECE as u64 + 4).unwrap();
        assert_eq!(sealed.hash().unwrap(), Sha256::of(vec![1; PIECE + 5]));
        file.set_len(PIECE as u64 + 6).unwrap();
        assert!(sealed.hash().unwrap_err().to_string().contains("more than the"));
        file.set_len(PIECE as u64).unwrap();
        assert!(sealed.hash().is_err());
    }

    #[test]
    fn the_tag_of_a_piece_fits_no_other_piece_and_no_other_file() {
        let (key, other) = (PieceKey::new().unwrap(), PieceKey::new().unwrap());
        let tag = key.tag(1, b"piece");
        assert_eq!(key.tag(1, b"piece"), tag);
        for another in [key.tag(2, b"piece"), key.tag(1, b"peace"), key.tag(1, b""), other.tag(1, b"piece")] {
            assert_ne!(another, tag);
        }
    }
}
