//! Bytes of data: files that are read and checked against their digests, and synthetic records. Reads files.

use std::{ops::Range, path::PathBuf};

use codex_configs::{Data, Synthetic};
use codex_provenance::{DataDigest, Sha256};
use codex_reports::DataFile;

use super::DataError;
use crate::{
    atomic_fs,
    tasks::{Split, Task, materialise, training_lines},
};

/// Number of synthetic training records between two checks of the stop flag.
const CHUNK: u64 = 4096;

/// Returns whether the attempt should end; checked between any two pieces of work that may take long.
pub(crate) type Stop<'a> = &'a (dyn Fn() -> bool + Sync);

/// Returns a file of data, its label in error messages, and its bytes, whose digest is checked. Synthetic records are those of
/// `split`. `seen` is called before the file can be refused.
pub(crate) fn read_file(
    data: &Data,
    split: Split,
    files: &[(String, PathBuf)],
    stop: Stop,
    seen: &mut impl FnMut(DataFile),
) -> Result<(DataFile, String, Vec<u8>), DataError> {
    let (bytes, label) = bytes_of(data, split, files, stop)?;
    let sha256 = DataDigest(Sha256::of(&bytes));
    let file = DataFile { name: data.name.clone(), sha256, size: bytes.len() as u64, records: None };
    seen(file.clone());
    match data.sha256.filter(|expected| *expected != sha256) {
        Some(expected) => Err(DataError::Mismatch { name: data.name.clone(), found: sha256, expected }),
        None => Ok((file, label, bytes)),
    }
}

/// Returns the bytes of a file and its label in error messages.
fn bytes_of(
    data: &Data,
    split: Split,
    files: &[(String, PathBuf)],
    stop: Stop,
) -> Result<(Vec<u8>, String), DataError> {
    let given = files.iter().find(|(name, _)| *name == data.name);
    match (&data.synthetic, given) {
        (None, Some((name, path))) => {
            Ok((atomic_fs::read_named::<DataError>(&format!("data {name}"), path)?, path.display().to_string()))
        }
        (Some(synthetic), None) => Ok((generate(synthetic, split, stop)?, data.name.clone())),
        (None, None) => Err(DataError::NoFile(data.name.clone())),
        (Some(_), Some(_)) => Err(DataError::Synthetic(data.name.clone())),
    }
}

/// Generates synthetic data; training records are generated in chunks, between which `stop` is checked.
fn generate(synthetic: &Synthetic, split: Split, stop: Stop) -> Result<Vec<u8>, DataError> {
    let task: Task = synthetic.task.parse()?;
    if split == Split::HeldOut {
        return Ok(materialise(task, split, synthetic.seed, synthetic.count as usize)?);
    }
    let mut bytes = Vec::new();
    for start in (0..synthetic.count).step_by(CHUNK as usize) {
        if stop() {
            return Err(DataError::Interrupted);
        }
        let range: Range<u64> = start..synthetic.count.min(start + CHUNK);
        bytes.extend(training_lines(task, synthetic.seed, range)?);
    }
    Ok(bytes)
}
