//! Inputs: files that are read and checked against their digests, and synthetic records. An input is hashed before anything is
//! read from it, and hashed again as it is read; it is never in memory as a whole. Reads files.

use std::{
    fs::File,
    io::{self, Read},
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use codex_configs::{Data, Synthetic};
use codex_provenance::{DataDigest, Sha256};
use codex_reports::DataFile;
use sha2::Digest as _;

use super::DataError;
use crate::{
    atomic_fs::{self, FileError},
    plugins::{Kind, MAX_BYTES, Plugin},
    signals::Stop,
    tasks::{Split, Task, materialise, training_lines},
};

/// Number of synthetic training records between two checks of the stop flag.
const CHUNK: u64 = 4096;
/// Bytes that are hashed at once.
const BLOCK: usize = 1 << 18;
/// Blocks between two checks of the stop flag.
const BLOCKS: u64 = 64;

/// Data whose digest is known and as configured.
#[derive(Clone, Debug)]
pub(crate) struct Input {
    pub(super) file: DataFile,
    /// The name in error messages. Its ending tells some formats.
    pub(super) label: String,
    content: Content,
    /// Directory of a copy that is needed while the input is read.
    scratch: PathBuf,
}

#[derive(Clone, Debug)]
enum Content {
    File(PathBuf),
    /// Training records of a task: its seed and their number.
    Training(Task, u64, u64),
    Bytes(Arc<[u8]>),
}

impl Input {
    /// Hashes data and checks its digest. Synthetic records are those of `split`. `seen` is called before the data can be
    /// refused.
    ///
    /// # Errors
    /// When a file cannot be read or has another digest, a task cannot provide its records, and [`DataError::Interrupted`] soon
    /// after `stop` returns true.
    pub(crate) fn open(
        data: &Data,
        split: Split,
        files: &[(String, PathBuf)],
        stop: Stop,
        seen: &mut impl FnMut(DataFile),
    ) -> Result<Self, DataError> {
        let given = files.iter().find(|(name, _)| *name == data.name);
        let (content, label) = match (&data.synthetic, given) {
            (None, Some((_, path))) => (Content::File(path.clone()), path.display().to_string()),
            (Some(Synthetic { task, seed, count }), None) => {
                let task: Task = task.parse()?;
                let content = match split {
                    Split::Train => Content::Training(task, *seed, *count),
                    Split::HeldOut => Content::Bytes(materialise(task, split, *seed, *count as usize)?.into()),
                };
                (content, data.name.clone())
            }
            (None, None) => return Err(DataError::NoFile(data.name.clone())),
            (Some(_), Some(_)) => return Err(DataError::Synthetic(data.name.clone())),
        };
        let input = Self::hashed(&data.name, label, content, stop)?;
        seen(input.file.clone());
        let found = input.file.sha256;
        match data.sha256.filter(|expected| *expected != found) {
            Some(expected) => Err(DataError::Mismatch { name: data.name.clone(), found, expected }),
            None => Ok(input),
        }
    }

    /// Opens a file whose first records are looked at. It is not hashed, so that reading to its end fails.
    pub(super) fn unhashed(name: &str, path: &Path) -> Self {
        let file = DataFile { name: name.to_owned(), sha256: DataDigest(Sha256::of("")), size: 0, records: None };
        let label = path.display().to_string();
        Self { file, label, content: Content::File(path.to_owned()), scratch: std::env::temp_dir() }
    }

    /// Hashes a file that no configuration names.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(crate) fn of_file(name: &str, path: &Path, stop: Stop) -> Result<Self, DataError> {
        Self::hashed(name, path.display().to_string(), Content::File(path.to_owned()), stop)
    }

    /// Returns the data `name` with these bytes, which are called `label` in errors.
    pub(super) fn of_bytes(name: &str, label: &str, bytes: impl Into<Arc<[u8]>>) -> Self {
        let bytes: Arc<[u8]> = bytes.into();
        let sha256 = DataDigest(Sha256::of(&bytes));
        let file = DataFile { name: name.to_owned(), sha256, size: bytes.len() as u64, records: None };
        let (label, scratch) = (label.to_owned(), std::env::temp_dir());
        Self { file, label, content: Content::Bytes(bytes), scratch }
    }

    fn hashed(name: &str, label: String, content: Content, stop: Stop) -> Result<Self, DataError> {
        let mut hasher = sha2::Sha256::new();
        let mut size = 0;
        match &content {
            Content::File(path) => {
                let what = format!("data {name}");
                let failed = |source| atomic_fs::named::<DataError>(&what, path, source);
                let mut file = File::open(path).map_err(failed)?;
                let mut block = vec![0; BLOCK];
                for number in 1_u64.. {
                    let count = file.read(&mut block).map_err(failed)?;
                    if count == 0 {
                        break;
                    }
                    if number.is_multiple_of(BLOCKS) && stop() {
                        return Err(DataError::Interrupted);
                    }
                    hasher.update(&block[..count]);
                    size += count as u64;
                }
            }
            Content::Training(task, seed, count) => {
                for range in chunks(*count) {
                    if stop() {
                        return Err(DataError::Interrupted);
                    }
                    let lines = training_lines(*task, *seed, range)?;
                    hasher.update(&lines);
                    size += lines.len() as u64;
                }
            }
            Content::Bytes(bytes) => {
                hasher.update(bytes);
                size = bytes.len() as u64;
            }
        }
        let file = DataFile { name: name.to_owned(), sha256: DataDigest(Sha256::finish(hasher)), size, records: None };
        Ok(Self { file, label, content, scratch: std::env::temp_dir() })
    }

    /// Returns the input with another directory for copies. The root of a pod may be read-only.
    #[must_use]
    pub(super) fn with_scratch(self, scratch: &Path) -> Self {
        Self { scratch: scratch.to_owned(), ..self }
    }

    /// Directory of a copy that is needed while the input is read.
    pub(super) fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// Identity of the data.
    pub(crate) fn file(&self) -> &DataFile {
        &self.file
    }

    /// Reads the file of a plugin.
    ///
    /// # Errors
    /// When it cannot be read, is not the file that was hashed, or is no plugin of this kind.
    pub(super) fn plugin(&self, kind: Kind) -> Result<Plugin, DataError> {
        let unusable = |source| DataError::Plugin { name: self.file.name.clone(), file: self.label.clone(), source };
        Plugin::load(&self.start(MAX_BYTES)?, kind).map_err(unusable)
    }

    /// Reads a file of at most `most` bytes; of a larger one, a byte more, so that it is refused and not read.
    ///
    /// # Errors
    /// When it cannot be read, or is not the file that was hashed.
    pub(super) fn start(&self, most: usize) -> Result<Vec<u8>, DataError> {
        let mut bytes = Vec::new();
        let read = self.reader()?.take(most as u64 + 1).read_to_end(&mut bytes);
        read.map_err(FileError::of("reading", Path::new(&self.label)))?;
        let changed = bytes.len() <= most && DataDigest(Sha256::of(&bytes)) != self.file.sha256;
        if changed { Err(DataError::Changed { name: self.file.name.clone() }) } else { Ok(bytes) }
    }

    /// Opens the data for reading from its beginning.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub(super) fn reader(&self) -> Result<Checked<'_>, FileError> {
        let inner: Box<dyn Read> = match &self.content {
            Content::File(path) => Box::new(File::open(path).map_err(FileError::of("reading", path))?),
            Content::Training(task, seed, count) => Box::new(Lines {
                task: *task,
                seed: *seed,
                left: chunks(*count).collect::<Vec<_>>().into_iter(),
                bytes: io::Cursor::new(Vec::new()),
            }),
            Content::Bytes(bytes) => Box::new(io::Cursor::new(Arc::clone(bytes))),
        };
        Ok(Checked { input: self, inner, hasher: sha2::Sha256::new(), failed: None })
    }

    /// Returns the path of a file.
    pub(super) fn path(&self) -> Option<&Path> {
        match &self.content {
            Content::File(path) => Some(path),
            Content::Training(..) | Content::Bytes(_) => None,
        }
    }

    /// Writes the data to `path`, unless a file with its digest is there.
    ///
    /// # Errors
    /// When a file operation fails.
    pub(super) fn keep(&self, path: &Path) -> Result<(), FileError> {
        if atomic_fs::digest(path).ok() == Some(self.file.sha256.0) {
            return Ok(());
        }
        let mut reader = self.reader()?;
        atomic_fs::make_parents(path)?;
        atomic_fs::write_with(path, |file| io::copy(&mut reader, file).map(drop))
    }
}

fn chunks(count: u64) -> impl Iterator<Item = Range<u64>> {
    (0..count).step_by(CHUNK as usize).map(move |start| start..count.min(start + CHUNK))
}

/// Lines of the training records of a task, generated as they are read.
struct Lines {
    task: Task,
    seed: u64,
    left: std::vec::IntoIter<Range<u64>>,
    bytes: io::Cursor<Vec<u8>>,
}

impl Read for Lines {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            let count = self.bytes.read(into)?;
            if count > 0 || into.is_empty() {
                return Ok(count);
            }
            let Some(range) = self.left.next() else { return Ok(0) };
            let lines = training_lines(self.task, self.seed, range).map_err(io::Error::other)?;
            self.bytes = io::Cursor::new(lines);
        }
    }
}

/// Reads an input and hashes what is read.
pub(super) struct Checked<'a> {
    input: &'a Input,
    inner: Box<dyn Read>,
    hasher: sha2::Sha256,
    failed: Option<io::Error>,
}

impl Checked<'_> {
    /// Returns the error of the file system, if there was one. A decoder that reads from here reports it as its own.
    pub(super) fn failure(&mut self) -> Option<FileError> {
        let source = self.failed.take()?;
        Some(FileError { action: "reading", path: PathBuf::from(&self.input.label), source })
    }

    /// Reads the rest, and checks that all bytes are those that were hashed before.
    ///
    /// # Errors
    /// [`DataError::Changed`] if they are not, [`DataError::File`] if they cannot be read.
    pub(super) fn finish(mut self) -> Result<(), DataError> {
        let rest = io::copy(&mut self, &mut io::sink());
        if let Some(error) = self.failure() {
            return Err(error.into());
        }
        rest.map_err(FileError::of("reading", Path::new(&self.input.label)))?;
        if Sha256::finish(self.hasher) == self.input.file.sha256.0 {
            return Ok(());
        }
        Err(DataError::Changed { name: self.input.file.name.clone() })
    }
}

impl Read for Checked<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self.inner.read(into) {
            Ok(count) => {
                self.hasher.update(&into[..count]);
                Ok(count)
            }
            Err(error) => {
                if error.kind() != io::ErrorKind::Interrupted {
                    self.failed = Some(io::Error::new(error.kind(), error.to_string()));
                }
                Err(error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_changes_after_it_was_hashed_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.jsonl");
        std::fs::write(&path, "one").unwrap();
        let input = Input::of_file("a", &path, &|| false).unwrap();
        assert_eq!((input.file.sha256.0, input.file.size), (Sha256::of("one"), 3));
        input.reader().unwrap().finish().unwrap();
        std::fs::write(&path, "two").unwrap();
        let changed = input.reader().unwrap().finish().unwrap_err().to_string();
        assert_eq!(changed, "data a changed while it was read: use a file that nothing writes to");
    }

    #[test]
    fn synthetic_records_are_generated_as_they_are_read() {
        let data = crate::training::test_support::synthetic("arithmetic", 10_000);
        let input = Input::open(&data, Split::Train, &[], &|| false, &mut |_| ()).unwrap();
        let whole = materialise(Task::Arithmetic, Split::Train, 1, 10_000).unwrap();
        assert_eq!(input.file.sha256.0, Sha256::of(&whole));
        let mut read = Vec::new();
        input.reader().unwrap().read_to_end(&mut read).unwrap();
        assert!(read == whole);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/a.jsonl");
        for _ in 0..2 {
            input.keep(&path).unwrap();
            assert!(std::fs::read(&path).unwrap() == whole);
        }
        std::fs::write(&path, "damaged").unwrap();
        input.keep(&path).unwrap();
        assert!(std::fs::read(&path).unwrap() == whole);
    }
}
