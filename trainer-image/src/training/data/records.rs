//! Reads the records of an input and tokenizes them, a bounded number at a time. Reads files.

use std::{collections::BTreeMap, ops::ControlFlow};

use codex_provenance::DataDigest;

use super::{
    DataError,
    augmentation::Augmenter,
    encoder::{Encoded, Encoder},
    examples::Example,
    input::Input,
    languages::Languages,
    safety::Screen,
};
use crate::{plugins::Plugin, signals::Stop};

/// Records between two checks of the stop flag while a plugin selects records.
const FILTERED: u64 = 64;

/// How many records are in memory at once: no more than `records`, and no more after their text has this many bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) records: usize,
    pub(super) bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { records: 4096, bytes: 8 << 20 }
    }
}

/// What was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Records of the input.
    pub(super) seen: u64,
    /// Records that were left out because of their language.
    pub(super) foreign: u64,
    /// Records that were left out because a safety rule blocks them.
    pub(super) blocked: u64,
    /// Other records of which a safety rule redacted something.
    pub(super) redacted: u64,
    /// Number of records that each safety rule hit.
    pub(super) rules: BTreeMap<String, u64>,
    /// Records that the plugin of the run dropped.
    pub(super) filtered: u64,
    /// The most bytes of text that were in memory at once; 0 if the tokens were there already.
    pub(super) held: usize,
}

/// What happens to the records of an input before they are tokenized.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Treatment<'a> {
    /// The safety rules that block records and redact their texts.
    pub(super) safety: Option<&'a Screen>,
    /// The plugin that selects records, and the digest of its file.
    pub(super) filter: Option<(&'a Plugin, DataDigest)>,
    /// What changes their prompts.
    pub(super) augmenter: Option<Augmenter<'a>>,
}

/// A tokenized record.
pub(super) struct Tokenized {
    /// Number of the record in the input, from 0.
    pub(super) number: u32,
    pub(super) example: Example,
    pub(super) encoded: Encoded,
}

/// Tokenizes the records of an input that are in one of the `languages`, as the safety rules leave them, and that the filter keeps. Hands
/// them to `each` in their order.
///
/// # Errors
/// When the input cannot be read or a record cannot be trained on, and [`DataError::Interrupted`] soon after `stop` returns
/// true; the errors of `each`.
pub(super) fn tokenize(
    input: &Input,
    encoder: Encoder,
    (languages, treatment): (&Languages, Treatment),
    limits: Limits,
    stop: Stop,
    mut each: impl FnMut(Tokenized) -> Result<(), DataError>,
) -> Result<Counts, DataError> {
    let mut counts = Counts::default();
    let (mut waiting, mut bytes) = (Vec::new(), 0);
    let name = input.file.name.as_str();
    let mut flush = |waiting: &mut Vec<(u32, Example)>| -> Result<(), DataError> {
        let encoded = encoder.encode(name, waiting, treatment.augmenter, stop)?;
        for ((number, example), encoded) in waiting.drain(..).zip(encoded) {
            each(Tokenized { number, example, encoded })?;
        }
        Ok(())
    };
    encoder.each_record(input, |mut example| {
        let number = u32::try_from(counts.seen).map_err(|_| DataError::TooMany { name: name.to_owned() })?;
        counts.seen += 1;
        if !languages.keep(&example) {
            counts.foreign += 1;
            return Ok(ControlFlow::Continue(()));
        }
        if let Some(safety) = treatment.safety {
            let Some(checked) = safety.check(example, &mut counts) else { return Ok(ControlFlow::Continue(())) };
            encoder.check_end(name, u64::from(number) + 1, &checked)?;
            example = checked;
        }
        if let Some((filter, _)) = treatment.filter {
            let (asked, rest) = example.question_and_rest();
            let failed = |source| DataError::Filter { name: name.to_owned(), record: u64::from(number) + 1, source };
            if !filter.keeps(&asked, &rest).map_err(failed)? {
                counts.filtered += 1;
                return Ok(ControlFlow::Continue(()));
            }
            if counts.seen.is_multiple_of(FILTERED) && stop() {
                return Err(DataError::Interrupted);
            }
        }
        bytes += example.size();
        counts.held = counts.held.max(bytes);
        waiting.push((number, example));
        if waiting.len() >= limits.records || bytes >= limits.bytes {
            flush(&mut waiting)?;
            bytes = 0;
        }
        Ok(ControlFlow::Continue(()))
    })?;
    flush(&mut waiting)?;
    Ok(counts)
}
