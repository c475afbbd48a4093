//! Files that stay on disk and are authenticated when they are read again.

use std::{
    fs,
    io::{self, Read as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use sha2::Digest as _;

use crate::{
    digest::Sha256,
    files::{BUFFER, open},
};

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

/// A file that was hashed as a whole, and whose pieces were authenticated. Whatever is read of it later is compared with its pieces, so
/// that a large file need not be held in memory to be sure of its bytes.
#[derive(Debug)]
pub struct Sealed {
    path: PathBuf,
    file: fs::File,
    size: u64,
    sha256: Sha256,
    key: PieceKey,
    /// The tag of every [`BUFFER`] bytes.
    pieces: Vec<[u8; 16]>,
    /// The piece that was read last: reads that follow each other often share one.
    last: Mutex<Option<(usize, Vec<u8>)>>,
}

impl Sealed {
    /// Hashes a file of at most `limit` bytes.
    ///
    /// # Errors
    /// As [`open`]; fails if the file cannot be read or has more bytes.
    pub fn of(path: &Path, limit: u64) -> io::Result<Self> {
        let file = open(path)?;
        let key = PieceKey::new()?;
        let mut whole = sha2::Sha256::new();
        let (mut pieces, mut size) = (Vec::new(), 0);
        let mut piece = Vec::new();
        loop {
            piece.clear();
            let count = (&file).take(BUFFER as u64).read_to_end(&mut piece)? as u64;
            size += count;
            if size > limit {
                let why = format!("it has more than the {limit} bytes expected");
                return Err(io::Error::new(io::ErrorKind::InvalidData, why));
            }
            if count == 0 {
                let (path, sha256) = (path.to_owned(), Sha256::finish(whole));
                return Ok(Self { path, file, size, sha256, key, pieces, last: Mutex::new(None) });
            }
            whole.update(&piece);
            pieces.push(key.tag(pieces.len(), &piece)?);
        }
    }

    /// Returns the path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Returns the digest of the file.
    pub fn sha256(&self) -> Sha256 {
        self.sha256
    }

    /// Reads bytes from `offset` on.
    ///
    /// # Errors
    /// The file cannot be read or ends before, or its bytes are not those that were hashed.
    pub fn read_at(&self, mut to: &mut [u8], mut offset: u64) -> io::Result<()> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        while !to.is_empty() {
            let index = usize::try_from(offset / BUFFER as u64).unwrap_or(usize::MAX);
            let bytes = match last.take() {
                Some((held, bytes)) if held == index => bytes,
                other => self.piece(index, other.map(|(_, bytes)| bytes).unwrap_or_default())?,
            };
            let from = (offset % BUFFER as u64) as usize;
            let count = to.len().min(bytes.len().saturating_sub(from));
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let (now, rest) = to.split_at_mut(count);
            now.copy_from_slice(&bytes[from..from + count]);
            (to, offset) = (rest, offset + count as u64);
            *last = Some((index, bytes));
        }
        Ok(())
    }

    /// Reads a piece into a buffer, and compares it with its tag.
    fn piece(&self, index: usize, mut bytes: Vec<u8>) -> io::Result<Vec<u8>> {
        let expected = self.pieces.get(index).ok_or(io::ErrorKind::UnexpectedEof)?;
        let start = index as u64 * BUFFER as u64;
        bytes.resize((self.size - start).min(BUFFER as u64) as usize, 0);
        self.file.read_exact_at(&mut bytes, start)?;
        if self.key.tag(index, &bytes)? == *expected {
            return Ok(bytes);
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "its bytes changed after they were hashed"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_file_gives_the_bytes_that_were_hashed_or_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("weights");
        let bytes: Vec<u8> = (0..2 * BUFFER + 77).map(|at| (at / 3 + at / BUFFER) as u8).collect();
        fs::write(&path, &bytes).unwrap();
        assert!(Sealed::of(&path, bytes.len() as u64 - 1).is_err());
        let sealed = Sealed::of(&path, bytes.len() as u64).unwrap();
        assert_eq!((sealed.size(), sealed.sha256()), (bytes.len() as u64, Sha256::of(&bytes)));
        let read = |start: usize, count: usize| {
            let mut found = vec![0; count];
            sealed.read_at(&mut found, start as u64).map(|()| found)
        };
        for (start, count) in [(0, 1), (5, 0), (0, bytes.len()), (BUFFER - 1, BUFFER + 2), (2 * BUFFER + 76, 1)] {
            assert!(read(start, count).unwrap() == bytes[start..start + count], "{start} {count}");
        }
        assert_eq!(read(2 * BUFFER, 78).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(read(9 * BUFFER, 1).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        // Another byte in the second piece, in place.
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&[!bytes[BUFFER + 9]], BUFFER as u64 + 9).unwrap();
        assert!(read(0, BUFFER).unwrap() == bytes[..BUFFER]);
        assert!(read(BUFFER, 1).unwrap_err().to_string().contains("changed after they were hashed"));
        file.set_len(10).unwrap();
        assert!(read(2 * BUFFER, 1).is_err());
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
