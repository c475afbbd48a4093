//! Rows of `states.ndjson`, the chained digests of the state, and of `ledger.ndjson`, the records and results of each step. Does I/O.
//!
//! No row holds a time or a machine, so a run that was killed and resumed leaves the same bytes as one that was not.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use codex_provenance::Sha256;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::Digest as _;

use super::RecordsError;
use crate::{
    artifacts::segments::{Segment, segments},
    atomic_fs::{self, FileError},
    training::state::Digests,
};

/// Name of the file of chained digests.
pub(crate) const STATES: &str = "states.ndjson";
/// Name of the file of steps.
pub(crate) const LEDGER: &str = "ledger.ndjson";

/// A line of `states.ndjson`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct StateRow {
    /// Optimizer steps done.
    pub(crate) step: u64,
    /// Digest of the whole state.
    pub(crate) digest: Sha256,
    /// Digest of this digest and the previous chain value.
    pub(crate) chain: Sha256,
    /// Short digest of each tensor: enough to name a tensor that differs. The whole digest is the proof.
    pub(crate) tensors: BTreeMap<String, String>,
}

impl StateRow {
    /// Creates the row that follows the chain value `before`.
    pub(crate) fn new(step: u64, digests: &Digests, before: Option<Sha256>) -> Self {
        let tensors = digests.tensors.iter().map(|(name, digest)| (name.clone(), digest.short())).collect();
        Self { step, digest: digests.whole, chain: link(step, digests.whole, before), tensors }
    }
}

/// Returns the chain value after one more digest.
pub(crate) fn link(step: u64, digest: Sha256, before: Option<Sha256>) -> Sha256 {
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
pub(crate) struct LedgerRow {
    /// Optimizer steps done, this one included.
    pub(crate) step: u64,
    /// Index of the first example, counted over the whole run from 0; the others follow without a gap.
    pub(crate) first: u64,
    /// Number of examples.
    pub(crate) examples: u64,
    /// Digest of their names, numbers and tokens, in order.
    pub(crate) records: Sha256,
    /// Mean cross-entropy per target token in nats, or mean loss per pair of responses.
    pub(crate) loss: f64,
    /// Norm of the gradient before clipping.
    pub(crate) grad_norm: f64,
    /// `loss` or `grad_norm` if that was a spike.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) spike: Option<String>,
    /// Whether the optimizer step was skipped because of the spike.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) skipped: bool,
}

/// A row that belongs to a step.
pub(crate) trait Row: Serialize + DeserializeOwned {
    /// Optimizer steps done.
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

/// Reads all rows of a file and of those that were full before it, in order; none if it does not exist. The last line may be cut short,
/// as a kill leaves it.
///
/// # Errors
/// [`RecordsError`] for every other line that is not a row.
pub(crate) fn read_rows<R: Row>(path: &Path) -> Result<Vec<R>, RecordsError> {
    Ok(read_files(path)?.into_iter().flat_map(|(_, rows)| rows).collect())
}

/// Does the same for each file.
fn read_files<R: Row>(path: &Path) -> Result<Vec<(PathBuf, Vec<R>)>, RecordsError> {
    let mut files: Vec<(PathBuf, Vec<R>)> = Vec::new();
    let mut before = None;
    for Segment { path, .. } in segments(path).map_err(FileError::of("listing", path))? {
        let rows = parse(&path, &atomic_fs::read(&path)?, before)?;
        before = rows.last().map(Row::step).or(before);
        files.push((path, rows));
    }
    Ok(files)
}

/// Reads the rows of a run's states and checks their chain.
///
/// # Errors
/// [`RecordsError`] with the line.
pub(crate) fn read_states(path: &Path) -> Result<Vec<StateRow>, RecordsError> {
    let (mut all, mut before) = (Vec::new(), None);
    for (path, rows) in read_files::<StateRow>(path)? {
        check_chain(&path, &rows, before)?;
        before = rows.last().map(|row| row.chain).or(before);
        all.extend(rows);
    }
    Ok(all)
}

/// Checks the chain of the rows of a file that follow the chain value `before`.
fn check_chain(path: &Path, rows: &[StateRow], mut before: Option<Sha256>) -> Result<(), RecordsError> {
    for (index, row) in rows.iter().enumerate() {
        if row.chain != link(row.step, row.digest, before) {
            return Err(RecordsError::Chain { path: path.to_owned(), line: index + 1, step: row.step });
        }
        before = Some(row.chain);
    }
    Ok(())
}

/// Parses the rows of a file, which follow a row of the step `before`.
fn parse<R: Row>(path: &Path, bytes: &[u8], before: Option<u64>) -> Result<Vec<R>, RecordsError> {
    let mut rows: Vec<R> = Vec::new();
    for (index, line) in bytes.split_inclusive(|byte| *byte == b'\n').enumerate() {
        let Some(line) = line.strip_suffix(b"\n") else { break };
        let (path, line_number) = (|| path.to_owned(), index + 1);
        let row: R = codex_json::from_slice(line).map_err(|source| RecordsError::Line {
            path: path(),
            line: line_number,
            source,
        })?;
        if let Some(before) = rows.last().map(Row::step).or(before).filter(|before| *before >= row.step()) {
            return Err(RecordsError::Order { path: path(), line: line_number, step: row.step(), before });
        }
        rows.push(row);
    }
    Ok(rows)
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;

    pub(crate) fn ledger_row(step: u64) -> LedgerRow {
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

    pub(crate) fn lines<R: Row>(rows: &[R]) -> Vec<u8> {
        rows.iter().flat_map(|row| [serde_json::to_vec(row).unwrap(), b"\n".to_vec()].concat()).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        testing::{ledger_row, lines},
        *,
    };

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

    #[test]
    fn a_modified_chain_is_detected() {
        let path = Path::new(STATES);
        let rows = states(4);
        check_chain(path, &rows, None).unwrap();
        let mut changed = rows.clone();
        changed[1].digest = changed[0].digest;
        assert!(matches!(check_chain(path, &changed, None), Err(RecordsError::Chain { line: 2, step: 2, .. })));
        let without = [&rows[..1], &rows[2..]].concat();
        assert!(matches!(check_chain(path, &without, None), Err(RecordsError::Chain { line: 2, step: 3, .. })));
        let twice = [&rows[..], &rows[1..2]].concat();
        let error = parse::<StateRow>(path, &lines(&twice), None).unwrap_err();
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
                if let Err(error) = parse::<LedgerRow>(path, &bytes, None) {
                    prop_assert!(error.to_string().contains("\"records\", line"));
                }
                match parse::<StateRow>(path, &bytes, None) {
                    // A valid chain proves that only short digests of tensors were changed.
                    Ok(read) if check_chain(path, &read, None).is_ok() => prop_assert!(
                        read.iter().zip(&rows).all(|(a, b)| (a.step, a.digest) == (b.step, b.digest))
                    ),
                    Ok(_) => {}
                    Err(error) => prop_assert!(error.to_string().contains("\"records\", line")),
                }
            }
        }
    }
}
