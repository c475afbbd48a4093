//! Which records of the sources are trained on: without duplicates, and without those that are held out for validation. Does I/O
//! in temporary files; in memory are a bit for each record and one part of the hashes.

use std::{
    fs::File,
    io::{self, BufReader, BufWriter, Read, Write as _},
    os::unix::fs::FileExt as _,
    path::Path,
};

use codex_configs::HeldOutShare;

use super::{
    DataError,
    permutation::{permutation_key, permute},
    scratch::{failed, scratch_file},
    token_store::{At, Entry, Sums, TokenStore},
};
use crate::signals::Stop;

/// Records whose hashes are compared at once, about.
const PART: u64 = 1 << 17;
/// The most parts.
const PARTS: u64 = 256;
/// Bytes of a compared hash: the hash (16), the source (4), the record (4).
const COMPARED: usize = 24;
/// Records between two checks of the stop flag.
const UNCHECKED: u64 = 1 << 20;

/// The records of a source that are trained on.
#[derive(Debug)]
pub(super) struct Selection {
    /// Their indices in the store, four bytes each, in ascending order; `None` for all.
    chosen: Option<File>,
    /// Lengths of the records that are trained on.
    pub(super) sums: Sums,
    /// Indices of the first records that are held out.
    pub(super) held_out: Vec<u32>,
    /// Number of all records that are held out.
    pub(super) held: u64,
    /// Number of records that repeat an earlier one.
    pub(super) duplicates: u64,
}

impl Selection {
    /// Returns the selection of all records.
    pub(super) fn all(store: &TokenStore) -> Self {
        Self { chosen: None, sums: store.sums, held_out: Vec::new(), held: 0, duplicates: 0 }
    }

    /// Returns the index in the store of a record that is trained on.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) fn index(&self, record: u64) -> Result<u64, DataError> {
        let Some(chosen) = &self.chosen else { return Ok(record) };
        let mut bytes = [0; 4];
        chosen.read_exact_at(&mut bytes, record * 4).map_err(failed())?;
        Ok(u64::from(u32::from_le_bytes(bytes)))
    }

    /// Returns the entries of the records that are trained on, in their order.
    pub(super) fn entries(&self, store: &TokenStore) -> impl Iterator<Item = Result<Entry, DataError>> {
        let mut chosen = self.chosen.as_ref().map(|file| BufReader::new(At { file, offset: 0 }));
        let mut left = self.sums.records;
        let mut next = 0_u64;
        let mut advance = move || -> Result<Option<u64>, DataError> {
            if left == 0 {
                return Ok(None);
            }
            left -= 1;
            let Some(chosen) = &mut chosen else {
                next += 1;
                return Ok(Some(next - 1));
            };
            let mut bytes = [0; 4];
            chosen.read_exact(&mut bytes).map_err(failed())?;
            Ok(Some(u64::from(u32::from_le_bytes(bytes))))
        };
        let mut entries = store.entries().zip(0_u64..);
        std::iter::from_fn(move || {
            let wanted = match advance() {
                Ok(wanted) => wanted?,
                Err(error) => return Some(Err(error)),
            };
            let (entry, _) = entries.by_ref().find(|(_, index)| *index == wanted)?;
            Some(entry)
        })
    }
}

/// A set of records as one bit for each.
struct Bits(Vec<u64>);

impl Bits {
    fn new(count: u64) -> Self {
        Self(vec![0; count.div_ceil(64) as usize])
    }

    fn has(&self, at: u64) -> bool {
        self.0[(at / 64) as usize] >> (at % 64) & 1 == 1
    }

    fn set(&mut self, at: u64) {
        self.0[(at / 64) as usize] |= 1 << (at % 64);
    }
}

/// What is selected.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted<'a> {
    /// Whether only the first of equal records is trained on.
    pub(super) deduplicate: bool,
    /// Records that are held out.
    pub(super) validation: &'a HeldOutShare,
    /// Number of the held-out records of each source that are listed.
    pub(super) listed: usize,
}

/// Selects the records of each source that are trained on. Equal records are those with the same tokens of which the same count
/// for the loss, in any source. Temporary files are in `scratch`.
///
/// # Errors
/// When a file operation fails, and [`DataError::Interrupted`] soon after `stop` returns true.
pub(super) fn select(
    stores: &[&TokenStore],
    wanted: Wanted,
    scratch: &Path,
    stop: Stop,
) -> Result<Vec<Selection>, DataError> {
    let mut left_out: Vec<Bits> = stores.iter().map(|store| Bits::new(store.len())).collect();
    let mut duplicates = vec![0; stores.len()];
    if wanted.deduplicate {
        find_duplicates(stores, scratch, stop, |source, record| {
            left_out[source].set(record);
            duplicates[source] += 1;
        })?;
    }
    let mut selections = Vec::new();
    for (source, (store, left_out)) in stores.iter().zip(&mut left_out).enumerate() {
        let (count, share) = (store.len(), wanted.validation.share);
        let kept = count - duplicates[source];
        // One record at least is held out, and one is trained on.
        let held =
            if share > 0.0 { ((share * kept as f64).round() as u64).max(1).min(kept.saturating_sub(1)) } else { 0 };
        let mut held_out = Vec::new();
        let key = permutation_key(wanted.validation.seed, source, u64::MAX);
        let order = (0..count).map(|position| permute(position, count, key));
        let mut taken = 0;
        for record in order {
            if taken == held {
                break;
            }
            if !left_out.has(record) {
                left_out.set(record);
                taken += 1;
                if held_out.len() < wanted.listed {
                    held_out.push(record as u32);
                }
            }
        }
        let mut selection = Selection { held_out, held, duplicates: duplicates[source], ..Selection::all(store) };
        if held + duplicates[source] > 0 {
            selection.sums = Sums::default();
            let mut file = BufWriter::with_capacity(1 << 16, scratch_file(scratch)?);
            for (entry, record) in store.entries().zip(0..) {
                if record % UNCHECKED == UNCHECKED - 1 && stop() {
                    return Err(DataError::Interrupted);
                }
                if !left_out.has(record) {
                    selection.sums.add(&entry?);
                    file.write_all(&(record as u32).to_le_bytes()).map_err(failed())?;
                }
            }
            selection.chosen = Some(file.into_inner().map_err(io::IntoInnerError::into_error).map_err(failed())?);
        }
        selections.push(selection);
    }
    Ok(selections)
}

/// Calls `found` for every record that repeats one before it, in this source or an earlier one. The hashes are divided into parts
/// by their first bits, and one part at a time is in memory.
fn find_duplicates(
    stores: &[&TokenStore],
    scratch: &Path,
    stop: Stop,
    mut found: impl FnMut(usize, u64),
) -> Result<(), DataError> {
    let records: u64 = stores.iter().map(|store| store.len()).sum();
    let parts = records.div_ceil(PART).clamp(1, PARTS);
    let mut files = Vec::new();
    for _ in 0..parts {
        files.push(BufWriter::new(scratch_file(scratch)?));
    }
    for (source, store) in stores.iter().enumerate() {
        for (entry, record) in store.entries().zip(0_u64..) {
            if record % UNCHECKED == UNCHECKED - 1 && stop() {
                return Err(DataError::Interrupted);
            }
            let hash = entry?.hash;
            let mut row = [0; COMPARED];
            row[..16].copy_from_slice(&hash);
            // In this order rows with equal hashes are sorted by source and record.
            row[16..20].copy_from_slice(&(source as u32).to_be_bytes());
            row[20..].copy_from_slice(&(record as u32).to_be_bytes());
            let part = u64::from(u16::from_be_bytes([hash[0], hash[1]])) * parts;
            files[(part >> 16) as usize].write_all(&row).map_err(failed())?;
        }
    }
    for file in files {
        if parts > 1 && stop() {
            return Err(DataError::Interrupted);
        }
        let file = file.into_inner().map_err(io::IntoInnerError::into_error).map_err(failed())?;
        let mut bytes = Vec::new();
        At { file: &file, offset: 0 }.read_to_end(&mut bytes).map_err(failed())?;
        let (rows, _) = bytes.as_chunks_mut::<COMPARED>();
        rows.sort_unstable();
        for pair in rows.windows(2).filter(|pair| pair[0][..16] == pair[1][..16]) {
            let number = |range: std::ops::Range<usize>| {
                pair[1][range].iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
            };
            found(number(16..20) as usize, number(20..24));
        }
    }
    Ok(())
}
