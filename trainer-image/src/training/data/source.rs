//! A source of records: an input, its tokens, and the records that are trained on. Reads files.

use super::{
    DataError,
    encoder::Encoded,
    input::Input,
    selection::Selection,
    token_store::{Sums, TokenStore},
};

/// A source of records. Records are numbered from 0 among those that are trained on.
#[derive(Debug)]
pub(crate) struct Source {
    pub(super) input: Input,
    pub(super) store: TokenStore,
    pub(super) selection: Selection,
    /// The tokens of the same records with changed prompts.
    pub(super) variants: Vec<TokenStore>,
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

    /// Returns a source of all these records. With changed prompts, the sums over its records count the longest version of each.
    ///
    /// # Errors
    /// When lengths cannot be read, or a version has other records.
    pub(super) fn new(
        (input, store): (Input, TokenStore),
        selection: Selection,
        variants: Vec<TokenStore>,
    ) -> Result<Self, DataError> {
        if variants.iter().any(|variant| variant.len() != store.len()) {
            return Err(DataError::Changed { name: input.file.name });
        }
        let mut source = Self { input, store, selection, variants };
        if !source.variants.is_empty() {
            let mut sums = Sums::default();
            for (entry, rows) in source.selection.entries(&source.store).zip(source.rows()) {
                sums.add_as(&entry?, rows?);
            }
            source.selection.sums = sums;
        }
        Ok(source)
    }

    /// Rows of each record, of the longest of its versions; see [`RecordLengths`](super::RecordLengths).
    pub(super) fn rows(&self) -> impl Iterator<Item = Result<u64, DataError>> {
        let mut others: Vec<_> = self.variants.iter().map(|store| self.selection.entries(store)).collect();
        self.selection.entries(&self.store).map(move |entry| {
            let mut rows = entry?.rows();
            for other in &mut others {
                rows = rows.max(other.next().transpose()?.map_or(0, |entry| entry.rows()));
            }
            Ok(rows)
        })
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
        self.version(record, 0)
    }

    /// Returns the tokens of a version of a record: 0 is the record as it is.
    ///
    /// # Errors
    /// When they cannot be read.
    pub(super) fn version(&self, record: u64, variant: u32) -> Result<Encoded, DataError> {
        let changed = (variant as usize).checked_sub(1).and_then(|variant| self.variants.get(variant));
        let store = changed.unwrap_or(&self.store);
        store.record(store.entry(self.selection.index(record)?)?)
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
        let counts = super::records::Counts { seen: lengths.len() as u64, ..Default::default() };
        let store = writer.finish(codex_provenance::Sha256::of(b""), counts).unwrap();
        let input = Input::of_bytes(name, name, *b"");
        Self { input, selection: Selection::all(&store), store, variants: Vec::new() }
    }
}
