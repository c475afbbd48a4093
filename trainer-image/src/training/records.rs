//! What can be proven about a run afterwards: `states.ndjson`, digests of its state, chained; and `ledger.ndjson`, which records
//! each step saw and what came of it. Does I/O.
//!
//! Nothing in them holds a time or a machine: a run that was killed and went on leaves the same bytes as one that was not.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use codex_provenance::Sha256;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::Digest as _;

use super::snapshot::Digests;
use crate::atomic_fs::{self, FileError};

/// The file of chained digests, in a run's artefacts.
pub(super) const STATES: &str = "states.ndjson";
/// The file of steps, in a run's artefacts.
pub(super) const LEDGER: &str = "ledger.ndjson";

/// A line of `states.ndjson`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct StateRow {
    /// Steps done.
    pub(super) step: u64,
    /// The digest of the whole state.
    pub(super) digest: Sha256,
    /// Over this digest and the chain before it.
    pub(super) chain: Sha256,
    /// The first digits of each tensor's digest: enough to name the tensor that differs; the whole is what proves.
    pub(super) tensors: BTreeMap<String, String>,
}

impl StateRow {
    /// The row that follows a chain.
    pub(super) fn new(step: u64, digests: &Digests, before: Option<Sha256>) -> Self {
        let tensors = digests.tensors.iter().map(|(name, digest)| (name.clone(), digest.short())).collect();
        Self { step, digest: digests.whole, chain: link(step, digests.whole, before), tensors }
    }
}

/// The chain after one more digest.
pub(super) fn link(step: u64, digest: Sha256, before: Option<Sha256>) -> Sha256 {
    let mut hasher = sha2::Sha256::new();
    hasher.update(b"codex chain 1\0");
    hasher.update(before.as_ref().map_or([0; 32], |before| *before.bytes()));
    hasher.update(step.to_le_bytes());
    hasher.update(digest.bytes());
    Sha256::finish(hasher)
}

/// A line of `ledger.ndjson`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct LedgerRow {
    /// Steps done, this one included.
    pub(super) step: u64,
    /// The first example, counted over the whole run from 0; those after it follow without a gap.
    pub(super) first: u64,
    /// Examples of the step.
    pub(super) examples: u64,
    /// The digest of their names, numbers and tokens, in order.
    pub(super) records: Sha256,
    /// Mean cross-entropy per target token in nats.
    pub(super) loss: f64,
    /// The norm of the gradient before clipping.
    pub(super) grad_norm: f64,
    /// `loss` or `grad_norm` where that was a spike.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) spike: Option<String>,
    /// Whether the step changed no weight because of it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) skipped: bool,
}

/// A line that knows its step.
pub(super) trait Row: Serialize + DeserializeOwned {
    /// Steps done.
    fn step(&self) -> u64;
}

impl Row for StateRow {
    fn step(&self) -> u64 {
        self.step
    }
}

impl Row for LedgerRow {
    fn step(&self) -> u64 {
        self.step
    }
}

/// A file of rows that is only ever appended to. What could not be appended leaves no half line behind.
#[derive(Debug)]
pub(super) struct Tail {
    path: PathBuf,
    file: File,
    length: u64,
    /// Half a line may lie behind the last row.
    torn: bool,
}

impl Tail {
    /// Opens a file for a run that goes on from `step`, and gives its last row: rows of later steps, and a line that a kill
    /// cut short, are dropped, for they will be written again.
    ///
    /// # Errors
    /// When the file system refuses.
    pub(super) fn open<R: Row>(path: PathBuf, step: u64) -> Result<(Self, Option<R>), FileError> {
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            read => read.map_err(FileError::of("reading", &path))?,
        };
        let (mut length, mut last) = (0, None);
        for line in text.split_inclusive(|byte| *byte == b'\n') {
            let row = line.strip_suffix(b"\n").and_then(|line| serde_json::from_slice::<R>(line).ok());
            let Some(row) = row.filter(|row| row.step() <= step) else { break };
            length += line.len() as u64;
            last = Some(row);
        }
        let file = OpenOptions::new().append(true).create(true).open(&path).map_err(FileError::of("opening", &path))?;
        file.set_len(length).map_err(FileError::of("writing", &path))?;
        Ok((Self { path, file, length, torn: false }, last))
    }

    /// Appends rows durably, all or none of them.
    ///
    /// # Errors
    /// When the file system refuses.
    pub(super) fn append<R: Row>(&mut self, rows: &[R]) -> Result<(), FileError> {
        self.write(rows, File::sync_data)
    }

    /// Appends rows, all or none of them; they outlive this process, and a machine that fails may forget them.
    ///
    /// # Errors
    /// When the file system refuses.
    pub(super) fn note<R: Row>(&mut self, rows: &[R]) -> Result<(), FileError> {
        self.write(rows, |_| Ok(()))
    }

    fn write<R: Row>(&mut self, rows: &[R], sync: impl Fn(&File) -> io::Result<()>) -> Result<(), FileError> {
        let mut bytes = Vec::new();
        for row in rows {
            serde_json::to_writer(&mut bytes, row)
                .map_err(io::Error::from)
                .map_err(FileError::of("encoding", &self.path))?;
            bytes.push(b'\n');
        }
        #[cfg(test)]
        super::death::count(&mut self.file, &bytes);
        let whole = if self.torn { self.file.set_len(self.length) } else { Ok(()) };
        let written = whole.and_then(|()| self.file.write_all(&bytes)).and_then(|()| sync(&self.file));
        self.torn = match written {
            Ok(()) => {
                self.length += bytes.len() as u64;
                false
            }
            // Should this fail, too, the next call or the next attempt drops the half line.
            Err(_) => self.file.set_len(self.length).is_err(),
        };
        written.map_err(FileError::of("writing", &self.path))
    }
}

/// A file of rows that cannot be read as such.
#[derive(Debug, thiserror::Error)]
pub enum RecordsError {
    /// The file system refused.
    #[error(transparent)]
    File(#[from] FileError),
    /// A line that is no row.
    #[error("{path:?}, line {line} is no row of this file: it is damaged, or of another version")]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What the parser says.
        #[source]
        source: serde_json::Error,
    },
    /// Steps that do not rise.
    #[error("{path:?}, line {line} is of step {step}, but the line before it of step {before}: the file was changed")]
    Order {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// Its step.
        step: u64,
        /// The step before.
        before: u64,
    },
    /// A chain that does not follow from its digests.
    #[error(
        "{path:?}, line {line}: the chain does not follow from the digests up to step {step}: the file was changed"
    )]
    Chain {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// Its step.
        step: u64,
    },
}

/// All rows of a file, in order, none where there is no file; the last line may be cut short, as a kill leaves it.
///
/// # Errors
/// [`RecordsError`] for every other line that is no row.
pub(super) fn read<R: Row>(path: &Path) -> Result<Vec<R>, RecordsError> {
    match atomic_fs::read(path) {
        Err(error) if error.source.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        read => parse(path, &read?),
    }
}

/// The rows of a run's states, their chain checked.
///
/// # Errors
/// [`RecordsError`], which names the line.
pub(super) fn read_states(path: &Path) -> Result<Vec<StateRow>, RecordsError> {
    let rows = read::<StateRow>(path)?;
    check_chain(path, &rows)?;
    Ok(rows)
}

fn check_chain(path: &Path, rows: &[StateRow]) -> Result<(), RecordsError> {
    let mut before = None;
    for (index, row) in rows.iter().enumerate() {
        if row.chain != link(row.step, row.digest, before) {
            return Err(RecordsError::Chain { path: path.to_owned(), line: index + 1, step: row.step });
        }
        before = Some(row.chain);
    }
    Ok(())
}

fn parse<R: Row>(path: &Path, bytes: &[u8]) -> Result<Vec<R>, RecordsError> {
    let mut rows: Vec<R> = Vec::new();
    for (index, line) in bytes.split_inclusive(|byte| *byte == b'\n').enumerate() {
        let Some(line) = line.strip_suffix(b"\n") else { break };
        let (path, line_number) = (|| path.to_owned(), index + 1);
        let row: R = serde_json::from_slice(line).map_err(|source| RecordsError::Line {
            path: path(),
            line: line_number,
            source,
        })?;
        if let Some(before) = rows.last().map(Row::step).filter(|before| *before >= row.step()) {
            return Err(RecordsError::Order { path: path(), line: line_number, step: row.step(), before });
        }
        rows.push(row);
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ledger_row(step: u64) -> LedgerRow {
        let records = Sha256::of(step.to_le_bytes());
        LedgerRow {
            step,
            first: 64 * (step - 1),
            examples: 64,
            records,
            loss: 1.0 / step as f64,
            grad_norm: 0.1,
            spike: (step == 3).then(|| "loss".to_owned()),
            skipped: step == 3,
        }
    }

    fn states(count: u64) -> Vec<StateRow> {
        let mut before = None;
        let rows = (1..=count).map(|step| {
            let whole = Sha256::of(step.to_le_bytes());
            let digests = Digests { whole, tensors: BTreeMap::from([("first/a".to_owned(), whole)]) };
            let row = StateRow::new(step, &digests, before);
            before = Some(row.chain);
            row
        });
        rows.collect()
    }

    fn lines<R: Row>(rows: &[R]) -> Vec<u8> {
        rows.iter().flat_map(|row| [serde_json::to_vec(row).unwrap(), b"\n".to_vec()].concat()).collect()
    }

    #[test]
    fn a_file_goes_on_from_its_step() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(LEDGER);
        let rows: Vec<LedgerRow> = (1..=6).map(ledger_row).collect();
        let (mut tail, last) = Tail::open::<LedgerRow>(path.clone(), 0).unwrap();
        assert_eq!(last, None);
        tail.append(&rows[..4]).unwrap();
        fs::write(&path, [fs::read(&path).unwrap(), b"{\"step\":5,\"fi".to_vec()].concat()).unwrap();
        assert_eq!(read::<LedgerRow>(&path).unwrap(), rows[..4], "a line that was cut short is left out");
        let (mut tail, last) = Tail::open::<LedgerRow>(path.clone(), 2).unwrap();
        assert_eq!(last.as_ref(), Some(&rows[1]));
        tail.append(&rows[2..]).unwrap();
        assert!(fs::read(&path).unwrap() == lines(&rows));
    }

    /// A file that takes half a row and can then not even be cut: it is cut as soon as it can be.
    #[test]
    fn half_a_row_is_not_joined_to_the_next() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(LEDGER);
        let rows: Vec<LedgerRow> = (1..=3).map(ledger_row).collect();
        let (mut tail, _) = Tail::open::<LedgerRow>(path.clone(), 0).unwrap();
        tail.append(&rows[..1]).unwrap();
        let file = std::mem::replace(&mut tail.file, File::open(&path).unwrap());
        let error = tail.append(&rows[1..2]).unwrap_err();
        assert_eq!(error.action, "writing");
        fs::write(&path, [lines(&rows[..1]), b"{\"step\":2,\"fi\xff".to_vec()].concat()).unwrap();
        tail.file = file;
        tail.note(&rows[1..]).unwrap();
        assert_eq!(read::<LedgerRow>(&path).unwrap(), rows);
        assert_eq!(read::<LedgerRow>(&directory.path().join("nowhere")).unwrap(), []);
    }

    #[test]
    fn a_changed_chain_is_found() {
        let path = Path::new(STATES);
        let rows = states(4);
        check_chain(path, &rows).unwrap();
        let mut changed = rows.clone();
        changed[1].digest = changed[0].digest;
        assert!(matches!(check_chain(path, &changed), Err(RecordsError::Chain { line: 2, step: 2, .. })));
        let without = [&rows[..1], &rows[2..]].concat();
        assert!(matches!(check_chain(path, &without), Err(RecordsError::Chain { line: 2, step: 3, .. })));
        let twice = [&rows[..], &rows[1..2]].concat();
        let error = parse::<StateRow>(path, &lines(&twice)).unwrap_err();
        assert!(matches!(error, RecordsError::Order { line: 5, step: 2, before: 4, .. }), "{error}");
    }

    proptest! {
        #[test]
        fn mutated_lines_never_panic(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            cut in any::<prop::sample::Index>(),
        ) {
            let path = Path::new("records");
            let (ledger, rows) = (lines(&(1..=5).map(ledger_row).collect::<Vec<_>>()), states(5));
            for whole in [ledger, lines(&rows)] {
                let mut bytes = whole.clone();
                for (at, value) in &changes {
                    let at = at.index(bytes.len());
                    bytes[at] = *value;
                }
                bytes.truncate(cut.index(bytes.len()) + 1);
                if let Err(error) = parse::<LedgerRow>(path, &bytes) {
                    prop_assert!(error.to_string().contains("\"records\", line"));
                }
                match parse::<StateRow>(path, &bytes) {
                    // A chain that still holds says that nothing but the short forms of tensors' digests was changed.
                    Ok(read) if check_chain(path, &read).is_ok() => prop_assert!(
                        read.iter().zip(&rows).all(|(a, b)| (a.step, a.digest) == (b.step, b.digest))
                    ),
                    Ok(_) => {}
                    Err(error) => prop_assert!(error.to_string().contains("\"records\", line")),
                }
            }
        }
    }
}
