//! Turns records into tokens, and says which of them count for the loss. Pure.

use codex_configs::{DataSettings, Format, Loss};
use rayon::prelude::*;

use super::{
    DataError, Stop,
    examples::{Example, read_examples},
    preferences::{Preference, read_preferences},
};
use crate::{
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

/// The tokens of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Encoded {
    pub(super) ids: Vec<u32>,
    /// Whether each token counts for the loss.
    pub(super) mask: Vec<bool>,
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
    /// Reads the records of a file.
    pub(super) fn parse(&self, label: &str, bytes: &[u8]) -> Result<Vec<Example>, DataError> {
        if self.preferences {
            let records = read_preferences(label, bytes, self.data)?;
            return Ok(records.into_iter().map(Example::Preference).collect());
        }
        let examples = read_examples(label, bytes, self.data)?.into_iter();
        examples.map(|(line, example)| if self.given { Ok(example) } else { ended(label, line, example) }).collect()
    }

    /// Returns the number of sequences of each record.
    pub(super) fn sequences(&self) -> usize {
        if self.preferences { 2 } else { 1 }
    }

    /// Encodes the records of the data `name`: the sequences of one after those of another.
    pub(super) fn encode(&self, name: &str, examples: &[Example], stop: Stop) -> Result<Vec<Encoded>, DataError> {
        let encode = |(index, example): (usize, &Example)| {
            if stop() {
                return Err(DataError::Interrupted);
            }
            let record = index + 1;
            let one = |sequence| self.encode_one(name, record, sequence).map(|encoded| vec![encoded]);
            match example {
                Example::Pair { prompt, response } => one(Sequence::Pair { prompt, response }),
                Example::Chat(messages) => one(Sequence::Chat(messages)),
                Example::Text(text) => one(Sequence::Text(text)),
                Example::Preference(preference) => self.encode_preference(name, record, preference).map(Vec::from),
            }
        };
        let encoded: Vec<Vec<Encoded>> = examples.par_iter().enumerate().map(encode).collect::<Result<_, _>>()?;
        Ok(encoded.into_iter().flatten().collect())
    }

    /// Encodes a prompt with each of its responses. Only the responses count for the loss.
    fn encode_preference(&self, name: &str, record: usize, preference: &Preference) -> Result<[Encoded; 2], DataError> {
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
        Ok([chosen?, rejected?])
    }

    fn encode_one(&self, name: &str, record: usize, sequence: Sequence) -> Result<Encoded, DataError> {
        let failed =
            |source: TokenizerError| DataError::Text { name: name.to_owned(), record, source: source.of_file() };
        let mut encoded = match sequence {
            Sequence::Chat(messages) => {
                let turns = self.tokenizer.encode_turns(messages).map_err(failed)?;
                Encoded { ids: turns.ids, mask: turns.assistant }
            }
            Sequence::Text(text) => {
                let mut ids = self.tokenizer.encode(text).map_err(failed)?;
                ids.extend(self.tokenizer.ends().first());
                Encoded { mask: vec![true; ids.len()], ids }
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
                    Encoded { ids: turns.ids, mask: turns.assistant }
                } else {
                    let mut ids = self.tokenizer.encode(prompt).map_err(failed)?;
                    let prompt = ids.len();
                    ids.extend(self.tokenizer.encode_more(response).map_err(failed)?);
                    if !self.tokenizer.is_characters() {
                        ids.extend(self.tokenizer.ends().first());
                    }
                    let mask = (0..ids.len()).map(|at| at >= prompt).collect();
                    Encoded { ids, mask }
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
