//! A source of records: one file, tokenized. Pure.

use std::ops::Range;

use codex_engine::Packed;
use codex_provenance::Sha256;
use codex_reports::DataFile;
use sha2::Digest as _;

use super::{
    DataError, Stop,
    encoder::{Encoded, Encoder},
    examples::Example,
};

/// One file: its identity, and the token ids of its records.
#[derive(Debug)]
pub(crate) struct Source {
    pub(super) file: DataFile,
    pub(super) ids: Vec<u32>,
    /// Whether each token counts for the loss.
    pub(super) mask: Vec<bool>,
    /// Offset of each sequence, and the end of the last one.
    pub(super) offsets: Vec<usize>,
    /// Number of sequences of each record: 2 for preferences, the chosen before the rejected one.
    pub(super) sequences: usize,
}

impl Source {
    /// Number of records.
    pub(crate) fn len(&self) -> usize {
        (self.offsets.len() - 1) / self.sequences
    }

    /// Rows of each record; see [`RecordLengths`](super::RecordLengths).
    pub(crate) fn rows(&self) -> impl Iterator<Item = usize> + Clone {
        let rows = |bounds: &[usize]| (bounds[1] - bounds[0]).saturating_sub(1);
        (0..self.len()).map(move |record| {
            let first = record * self.sequences;
            self.offsets[first..=first + self.sequences].windows(2).map(rows).sum()
        })
    }

    /// Largest number of rows of `count` consecutive records; the first record follows the last.
    pub(crate) fn most_rows(&self, count: usize) -> usize {
        let (times, rest) = (count / self.len().max(1), count % self.len().max(1));
        let mut here: usize = self.rows().take(rest).sum();
        let mut most = here;
        for (first, next) in self.rows().zip(self.rows().cycle().skip(rest)) {
            here = here + next - first;
            most = most.max(here);
        }
        times * self.rows().sum::<usize>() + most
    }

    /// Yields the tokens of each sequence of a record, and whether each token counts for the loss.
    pub(crate) fn record(&self, record: usize) -> impl Iterator<Item = (&[u32], &[bool])> {
        let first = record * self.sequences;
        self.offsets[first..=first + self.sequences].windows(2).map(|bounds| {
            let range = bounds[0]..bounds[1];
            (&self.ids[range.clone()], &self.mask[range])
        })
    }

    /// Returns the digest of a record's tokens, under which its log-probabilities are kept.
    pub(crate) fn key(&self, record: usize) -> Sha256 {
        let mut hasher = sha2::Sha256::new();
        hasher.update(b"codex tokens 1\0");
        for (ids, mask) in self.record(record) {
            hasher.update((ids.len() as u64).to_le_bytes());
            for (id, target) in ids.iter().zip(mask) {
                hasher.update(id.to_le_bytes());
                hasher.update([u8::from(*target)]);
            }
        }
        Sha256::finish(hasher)
    }

    /// Packs consecutive records for the model.
    pub(crate) fn pack(&self, records: Range<usize>) -> Packed {
        Packed::masked(records.flat_map(|record| self.record(record)))
    }

    /// Tokenizes the records of a file.
    ///
    /// # Errors
    /// When a record cannot be trained on, and [`DataError::Interrupted`] soon after `stop` returns true.
    pub(crate) fn parse(
        file: DataFile,
        label: &str,
        bytes: &[u8],
        encoder: Encoder,
        stop: Stop,
    ) -> Result<Self, DataError> {
        let examples = encoder.parse(label, bytes)?;
        Self::of(file, &examples, encoder, stop)
    }

    /// Tokenizes records.
    ///
    /// # Errors
    /// As [`parse`](Self::parse).
    pub(super) fn of(file: DataFile, examples: &[Example], encoder: Encoder, stop: Stop) -> Result<Self, DataError> {
        let encoded = encoder.encode(&file.name, examples, stop)?;
        let sequences = encoder.sequences();
        let mut source = Self { file, ids: Vec::new(), mask: Vec::new(), offsets: vec![0], sequences };
        for Encoded { ids, mask } in encoded {
            source.ids.extend(ids);
            source.mask.extend(mask);
            source.offsets.push(source.ids.len());
        }
        Ok(source)
    }
}

#[cfg(test)]
impl Source {
    /// Creates a source whose records have these token counts.
    pub(super) fn of_lengths(name: &str, lengths: &[usize]) -> Self {
        let ends = lengths.iter().scan(0, |end, length| {
            *end += length;
            Some(*end)
        });
        let sha256 = codex_provenance::DataDigest(codex_provenance::Sha256::of(b""));
        Self {
            file: DataFile { name: name.to_owned(), sha256, size: 0, records: None },
            ids: vec![0; lengths.iter().sum()],
            mask: vec![true; lengths.iter().sum()],
            offsets: std::iter::once(0).chain(ends).collect(),
            sequences: 1,
        }
    }
}
