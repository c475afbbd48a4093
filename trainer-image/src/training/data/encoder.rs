//! Turns records into tokens, and says which of them count for the loss. Pure, but for reading inputs.

use std::ops::ControlFlow;

use codex_configs::{DataSettings, Format, Loss};
use codex_engine::Packed;
use codex_provenance::Sha256;
use rayon::prelude::*;
use sha2::Digest as _;

use super::{
    DataError,
    augmentation::Augmenter,
    examples::{Example, each_record},
    input::Input,
    preferences::Preference,
};
use crate::{
    signals::Stop,
    tasks::{END, RecordError, answer},
    text::{Message, Role, Tokenizer, TokenizerError},
};

/// Turns records into tokens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Encoder<'a> {
    pub(crate) tokenizer: &'a Tokenizer,
    /// The most tokens of a record.
    pub(crate) context: usize,
    pub(crate) format: Format,
    /// How files are read, and what counts for the loss.
    pub(crate) data: &'a DataSettings,
    /// Whether the model is given. Its records may be conversations, and its responses need no end mark.
    pub(crate) given: bool,
    /// Whether records are preferences, each of which becomes two sequences.
    pub(crate) preferences: bool,
}

/// The tokens of a record: one sequence, or the two of a preference, the chosen before the rejected one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Encoded {
    /// Tokens of all sequences, one after another.
    pub(super) ids: Vec<u32>,
    /// Whether each token counts for the loss.
    pub(super) mask: Vec<bool>,
    /// Number of tokens of the first sequence. The others are those of the second.
    pub(super) first: usize,
}

impl Encoded {
    /// Returns a record of one sequence.
    pub(super) fn one(ids: Vec<u32>, mask: Vec<bool>) -> Self {
        Self { first: ids.len(), ids, mask }
    }

    /// Returns a record of two sequences.
    fn two(mut chosen: Self, rejected: Self) -> Self {
        chosen.ids.extend(rejected.ids);
        chosen.mask.extend(rejected.mask);
        chosen
    }

    /// Yields the tokens of each sequence, and whether each token counts for the loss.
    pub(super) fn sequences(&self) -> impl Iterator<Item = (&[u32], &[bool])> {
        let rest = Some((&self.ids[self.first..], &self.mask[self.first..])).filter(|(ids, _)| !ids.is_empty());
        std::iter::once((&self.ids[..self.first], &self.mask[..self.first])).chain(rest)
    }

    /// Returns the rows of the record: a sequence of `n` tokens has `n - 1`, because its last token predicts nothing.
    pub(super) fn rows(&self) -> usize {
        self.sequences().map(|(ids, _)| ids.len().saturating_sub(1)).sum()
    }

    /// Returns the digest of the tokens, under which the record's log-probabilities are kept.
    pub(super) fn key(&self) -> Sha256 {
        let mut hasher = sha2::Sha256::new();
        hasher.update(b"codex tokens 1\0");
        for (ids, mask) in self.sequences() {
            hasher.update((ids.len() as u64).to_le_bytes());
            for (id, target) in ids.iter().zip(mask) {
                hasher.update(id.to_le_bytes());
                hasher.update([u8::from(*target)]);
            }
        }
        Sha256::finish(hasher)
    }
}

/// Packs records for the model.
pub(super) fn pack(records: &[Encoded]) -> Packed {
    Packed::masked(records.iter().flat_map(Encoded::sequences))
}

/// What becomes one sequence of tokens.
#[derive(Clone, Copy, Debug)]
enum Sequence<'a> {
    Pair { prompt: &'a str, response: &'a str },
    Chat(&'a [Message]),
    Text(&'a str),
}

/// A held-out prompt, and what is expected of its completion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Question {
    pub(super) prompt: String,
    pub(super) ids: Vec<u32>,
    pub(super) response: String,
}

/// Returns a record of a model that is trained from random weights, whose responses end in a mark.
fn ended(file: &str, line: usize, example: Example) -> Result<Example, DataError> {
    let file = file.to_owned();
    match &example {
        Example::Pair { response, .. } if response.find(END) == Some(response.len().wrapping_sub(END.len_utf8())) => {
            Ok(example)
        }
        Example::Pair { .. } => Err(RecordError::Unended { file, line }.into()),
        Example::Chat(_) | Example::Text(_) | Example::Preference(_) => Err(RecordError::Malformed {
            file,
            line,
            why: "a model without spec.base learns from prompts and responses only".to_owned(),
            right: r#"{"prompt", "response"}"#.to_owned(),
        }
        .into()),
    }
}

impl Encoder<'_> {
    /// Reads the records of an input, with the number of the line or row of each, from 1, until `each` breaks.
    ///
    /// # Errors
    /// When the input cannot be read, or a record is invalid or not of the kind that the model is trained on, with the file and
    /// the line; the errors of `each`.
    pub(super) fn each_record(
        &self,
        input: &Input,
        mut each: impl FnMut(Example) -> Result<ControlFlow<()>, DataError>,
    ) -> Result<(), DataError> {
        each_record(input, self.data, self.preferences, |line, example| {
            each(if self.given || self.preferences { example } else { ended(&input.label, line, example)? })
        })
    }

    /// Checks that a record of a model that is trained from random weights still ends in a mark after safety rules redacted its response.
    ///
    /// # Errors
    /// [`DataError::RedactedEnd`] names the record.
    pub(super) fn check_end(&self, name: &str, record: u64, example: &Example) -> Result<(), DataError> {
        match example {
            Example::Pair { response, .. } if !self.given && !self.preferences && !response.ends_with(END) => {
                Err(DataError::RedactedEnd { name: name.to_owned(), record })
            }
            _ => Ok(()),
        }
    }

    /// Encodes records of the data `name`, each with its number from 0, with the prompts that `augmenter` changes. A record that cannot be
    /// trained on with a changed prompt, because it is too long or has characters that the model does not know, stays as it is.
    pub(super) fn encode(
        &self,
        name: &str,
        examples: &[(u32, Example)],
        augmenter: Option<Augmenter>,
        stop: Stop,
    ) -> Result<Vec<Encoded>, DataError> {
        let encode = |(number, example): &(u32, Example)| {
            if stop() {
                return Err(DataError::Interrupted);
            }
            let record = *number as usize + 1;
            let changed = augmenter.and_then(|augmenter| augmenter.apply(name, *number, example));
            match changed.map(|changed| self.encode_example(name, record, &changed)) {
                None | Some(Err(DataError::TooLong { .. } | DataError::Text { .. })) => {
                    self.encode_example(name, record, example)
                }
                Some(encoded) => encoded,
            }
        };
        examples.par_iter().map(encode).collect()
    }

    fn encode_example(&self, name: &str, record: usize, example: &Example) -> Result<Encoded, DataError> {
        match example {
            Example::Pair { prompt, response } => self.encode_one(name, record, Sequence::Pair { prompt, response }),
            Example::Chat(messages) => self.encode_one(name, record, Sequence::Chat(messages)),
            Example::Text(text) => self.encode_one(name, record, Sequence::Text(text)),
            Example::Preference(preference) => self.encode_preference(name, record, preference),
        }
    }

    /// Encodes a prompt with each of its responses. Only the responses count for the loss.
    fn encode_preference(&self, name: &str, record: usize, preference: &Preference) -> Result<Encoded, DataError> {
        let [chosen, rejected] = match preference {
            Preference::Texts { prompt, responses } => {
                responses.each_ref().map(|response| self.encode_one(name, record, Sequence::Pair { prompt, response }))
            }
            Preference::Chat { prompt, responses } => responses.each_ref().map(|response| {
                let all = [prompt.as_slice(), response].concat();
                let mut encoded = self.encode_one(name, record, Sequence::Chat(&all))?;
                // What the assistant says in the prompt is given.
                let given = if prompt.iter().any(|message| message.role == Role::Assistant) {
                    let turns = self.tokenizer.encode_turns(prompt).map_err(|source| DataError::Text {
                        name: name.to_owned(),
                        record,
                        source: source.of_file(),
                    })?;
                    turns.assistant.iter().filter(|target| **target).count()
                } else {
                    0
                };
                encoded.mask.iter_mut().filter(|target| **target).take(given).for_each(|target| *target = false);
                Ok(encoded)
            }),
        };
        Ok(Encoded::two(chosen?, rejected?))
    }

    fn encode_one(&self, name: &str, record: usize, sequence: Sequence) -> Result<Encoded, DataError> {
        let failed =
            |source: TokenizerError| DataError::Text { name: name.to_owned(), record, source: source.of_file() };
        let mut encoded = match sequence {
            Sequence::Chat(messages) => {
                let turns = self.tokenizer.encode_turns(messages).map_err(failed)?;
                Encoded::one(turns.ids, turns.assistant)
            }
            Sequence::Text(text) => {
                let mut ids = self.tokenizer.encode(text).map_err(failed)?;
                ids.extend(self.tokenizer.ends().first());
                let mask = vec![true; ids.len()];
                Encoded::one(ids, mask)
            }
            Sequence::Pair { prompt, response } => {
                let shortened = match self.format {
                    Format::Steps => None,
                    Format::Answer => {
                        let end = || DataError::Answerless { name: name.to_owned(), record };
                        Some(format!("#{}$", answer(response).ok_or_else(end)?))
                    }
                };
                let response = shortened.as_deref().unwrap_or(response);
                if self.tokenizer.has_template() {
                    let turns = self.tokenizer.encode_turns(&[
                        Message { role: Role::User, content: prompt.to_owned() },
                        Message { role: Role::Assistant, content: response.to_owned() },
                    ]);
                    let turns = turns.map_err(failed)?;
                    Encoded::one(turns.ids, turns.assistant)
                } else {
                    let mut ids = self.tokenizer.encode(prompt).map_err(failed)?;
                    let prompt = ids.len();
                    ids.extend(self.tokenizer.encode_more(response).map_err(failed)?);
                    if !self.tokenizer.is_characters() {
                        ids.extend(self.tokenizer.ends().first());
                    }
                    let mask = (0..ids.len()).map(|at| at >= prompt).collect();
                    Encoded::one(ids, mask)
                }
            }
        };
        if self.data.loss == Loss::All {
            encoded.mask.fill(true);
        }
        let tokens = encoded.ids.len();
        if tokens > self.context {
            let (name, context) = (name.to_owned(), self.context);
            return Err(DataError::TooLong { name, record, tokens, context, given: self.given });
        }
        if !encoded.mask.iter().skip(1).any(|target| *target) {
            return Err(DataError::NoTarget { name: name.to_owned(), record });
        }
        Ok(encoded)
    }

    /// Returns the prompt of a record for its completion; `None` if it has none.
    pub(super) fn question(&self, example: &Example) -> Option<Question> {
        let (messages, prompt, response) = match example {
            Example::Pair { prompt, response } => {
                (vec![Message { role: Role::User, content: prompt.clone() }], prompt, response)
            }
            Example::Chat(messages) => {
                let (last, before) = messages.split_last().filter(|(last, _)| last.role == Role::Assistant)?;
                (before.to_vec(), &before.last()?.content, &last.content)
            }
            Example::Preference(Preference::Texts { prompt, responses: [chosen, _] }) => {
                (vec![Message { role: Role::User, content: prompt.clone() }], prompt, chosen)
            }
            Example::Preference(Preference::Chat { prompt, responses: [chosen, _] }) => {
                (prompt.clone(), &prompt.last()?.content, &chosen.last()?.content)
            }
            Example::Text(_) => return None,
        };
        let ids = if self.tokenizer.has_template() {
            self.tokenizer.encode_chat(&messages)
        } else {
            self.tokenizer.encode(prompt)
        };
        Some(Question { prompt: prompt.clone(), ids: ids.ok()?, response: response.clone() })
    }
}
