//! A source of records: an input, its tokens, and the records that are trained on. Reads files.

use super::{DataError, encoder::Encoded, input::Input, selection::Selection, token_store::TokenStore};

/// A source of records. Records are numbered from 0 among those that are trained on.
#[derive(Debug)]
pub(crate) struct Source {
    pub(super) input: Input,
    pub(super) store: TokenStore,
    pub(super) selection: Selection,
}

impl Source {
    /// Name of the data.
    pub(super) fn name(&self) -> &str {
        &self.input.file.name
    }

    /// Number of records that are trained on.
    pub(crate) fn len(&self) -> u64 {
        self.selection.sums.records
    }

    /// Rows of each record; see [`RecordLengths`](super::RecordLengths).
    pub(super) fn rows(&self) -> impl Iterator<Item = Result<u64, DataError>> {
        self.selection.entries(&self.store).map(|entry| Ok(entry?.rows()))
    }

    /// Largest number of rows of `count` consecutive records; the first record follows the last.
    ///
    /// # Errors
    /// When the lengths cannot be read.
    pub(super) fn most_rows(&self, count: u64) -> Result<u64, DataError> {
        let (times, rest) = (count / self.len().max(1), count % self.len().max(1));
        let mut here = 0;
        for rows in self.rows().take(rest as usize) {
            here += rows?;
        }
        let mut most = here;
        let next = self.rows().skip(rest as usize).chain(self.rows().take(rest as usize));
        for (first, next) in self.rows().zip(next) {
            here = here + next? - first?;
            most = most.max(here);
        }
        Ok(times * self.selection.sums.rows + most)
    }

    /// Returns the tokens of a record, one sequence or the two of a preference.
    ///
    /// # Errors
    /// When they cannot be read.
    pub(super) fn record(&self, record: u64) -> Result<Encoded, DataError> {
        self.store.record(self.store.entry(self.selection.index(record)?)?)
    }

    /// Returns the number of a record in the input, from 0.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) fn number(&self, record: u64) -> Result<u64, DataError> {
        Ok(u64::from(self.store.entry(self.selection.index(record)?)?.number))
    }
}

#[cfg(test)]
impl Source {
    /// Creates a source whose records have these token counts.
    pub(super) fn of_lengths(name: &str, lengths: &[usize]) -> Self {
        let mut writer = super::token_store::StoreWriter::create(None, 98).unwrap();
        for (number, length) in lengths.iter().enumerate() {
            writer.push(number as u32, &Encoded::one(vec![0; *length], vec![true; *length])).unwrap();
        }
        let counts = super::records::Counts { seen: lengths.len() as u64, foreign: 0, held: 0 };
        let store = writer.finish(codex_provenance::Sha256::of(b""), counts).unwrap();
        let input = Input::of_bytes(name, name, *b"");
        Self { input, selection: Selection::all(&store), store }
    }
}
