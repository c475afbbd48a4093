//! A source of records: one file, tokenized. Pure.

use std::ops::Range;

use codex_configs::{Format, Training};
use codex_engine::Packed;
use codex_reports::DataFile;
use rayon::prelude::*;

use super::{DataError, Stop};
use crate::{
    tasks::{answer, parse_records},
    text::Tokenizer,
};

/// One file: its identity, and the token ids of its records.
#[derive(Debug)]
pub(crate) struct Source {
    pub(super) file: DataFile,
    pub(super) ids: Vec<u32>,
    /// Offset of each record, and the end of the last one.
    pub(super) offsets: Vec<usize>,
    /// Number of prompt tokens of each record.
    pub(super) prompts: Vec<u32>,
}

impl Source {
    /// Number of records.
    pub(crate) fn len(&self) -> usize {
        self.prompts.len()
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

    /// Packs consecutive records for the model.
    pub(crate) fn pack(&self, records: Range<usize>) -> Packed {
        let ids = |record: usize| &self.ids[self.offsets[record]..self.offsets[record + 1]];
        Packed::new(records.map(|record| (ids(record), self.prompts[record] as usize)))
    }

    /// Tokenizes the records of a file.
    ///
    /// # Errors
    /// When a record cannot be trained on, and [`DataError::Interrupted`] soon after `stop` returns true.
    pub(crate) fn parse(
        file: DataFile,
        label: &str,
        bytes: &[u8],
        training: &Training,
        tokenizer: &Tokenizer,
        stop: Stop,
    ) -> Result<Self, DataError> {
        let records = parse_records(label, bytes)?;
        let context = training.settings.model.max_position_embeddings;
        let format = training.settings.response.format;
        let encoded: Vec<(Vec<u32>, u32)> = records
            .par_iter()
            .enumerate()
            .map(|(index, record)| {
                if stop() {
                    return Err(DataError::Interrupted);
                }
                let (name, number) = (|| file.name.clone(), index + 1);
                let encode = |text: &str| {
                    tokenizer.encode(text).map_err(|source| DataError::Text { name: name(), record: number, source })
                };
                let mut ids = encode(&record.prompt)?;
                let prompt = ids.len();
                match format {
                    Format::Steps => ids.extend(encode(&record.response)?),
                    Format::Answer => {
                        let answer = answer(&record.response)
                            .ok_or_else(|| DataError::Answerless { name: name(), record: number })?;
                        ids.extend(encode(&format!("#{answer}$"))?);
                    }
                }
                if ids.len() > context {
                    return Err(DataError::TooLong { name: name(), record: number, tokens: ids.len(), context });
                }
                Ok((ids, prompt as u32))
            })
            .collect::<Result<_, DataError>>()?;
        let mut source = Self { file, ids: Vec::new(), offsets: vec![0], prompts: Vec::new() };
        for (ids, prompt) in encoded {
            source.ids.extend(ids);
            source.offsets.push(source.ids.len());
            source.prompts.push(prompt);
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
            offsets: std::iter::once(0).chain(ends).collect(),
            prompts: vec![1; lengths.len()],
        }
    }
}
