//! Turns records into tokens, and says which of them count for the loss. Pure.

use codex_configs::{DataSettings, Format, Loss};
use rayon::prelude::*;

use super::{
    DataError, Stop,
    examples::{Example, read_examples},
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
}

/// The tokens of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Encoded {
    pub(super) ids: Vec<u32>,
    /// Whether each token counts for the loss.
    pub(super) mask: Vec<bool>,
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
        Example::Chat(_) | Example::Text(_) => Err(RecordError::Malformed {
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
        let examples = read_examples(label, bytes, self.data)?.into_iter();
        examples.map(|(line, example)| if self.given { Ok(example) } else { ended(label, line, example) }).collect()
    }

    /// Encodes the records of the data `name`.
    pub(super) fn encode(&self, name: &str, examples: &[Example], stop: Stop) -> Result<Vec<Encoded>, DataError> {
        let encode = |(index, example)| {
            if stop() {
                return Err(DataError::Interrupted);
            }
            self.encode_one(name, index + 1, example)
        };
        examples.par_iter().enumerate().map(encode).collect()
    }

    fn encode_one(&self, name: &str, record: usize, example: &Example) -> Result<Encoded, DataError> {
        let failed =
            |source: TokenizerError| DataError::Text { name: name.to_owned(), record, source: source.of_file() };
        let mut encoded = match example {
            Example::Chat(messages) => {
                let turns = self.tokenizer.encode_turns(messages).map_err(failed)?;
                Encoded { ids: turns.ids, mask: turns.assistant }
            }
            Example::Text(text) => {
                let mut ids = self.tokenizer.encode(text).map_err(failed)?;
                ids.extend(self.tokenizer.ends().first());
                Encoded { mask: vec![true; ids.len()], ids }
            }
            Example::Pair { prompt, response } => {
                let shortened = match self.format {
                    Format::Steps => None,
                    Format::Answer => {
                        let end = || DataError::Answerless { name: name.to_owned(), record };
                        Some(format!("#{}$", answer(response).ok_or_else(end)?))
                    }
                };
                let response = shortened.as_ref().unwrap_or(response);
                if self.tokenizer.has_template() {
                    let turns = self.tokenizer.encode_turns(&[
                        Message { role: Role::User, content: prompt.clone() },
                        Message { role: Role::Assistant, content: response.clone() },
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
