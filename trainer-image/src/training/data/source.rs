//! A source of records: one file, tokenized. Pure.

use std::ops::Range;

use codex_engine::Packed;
use codex_reports::DataFile;

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
    /// Offset of each record, and the end of the last one.
    pub(super) offsets: Vec<usize>,
}

impl Source {
    /// Number of records.
    pub(crate) fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Rows of each record; see [`RecordLengths`](super::RecordLengths).
    pub(crate) fn rows(&self) -> impl Iterator<Item = usize> + Clone {
        self.offsets.windows(2).map(|bounds| (bounds[1] - bounds[0]).saturating_sub(1))
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

    /// Returns the tokens of a record, and whether each counts for the loss.
    pub(crate) fn record(&self, record: usize) -> (&[u32], &[bool]) {
        let range = self.offsets[record]..self.offsets[record + 1];
        (&self.ids[range.clone()], &self.mask[range])
    }

    /// Packs consecutive records for the model.
    pub(crate) fn pack(&self, records: Range<usize>) -> Packed {
        Packed::masked(records.map(|record| self.record(record)))
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
        let mut source = Self { file, ids: Vec::new(), mask: Vec::new(), offsets: vec![0] };
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
        }
    }
}
