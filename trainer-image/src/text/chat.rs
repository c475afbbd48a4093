//! Messages, and their text and tokens by a chat template. Pure.

use std::{collections::BTreeMap, ops::Range};

use minijinja::Value;
use serde::{Deserialize, Serialize};

use super::{
    TokenizerError,
    fast::{Allowed, Fast},
    jinja::{Clock, Template},
    marks::{Marked, free_mark},
};

/// The author of a message. Roles stand in the rendered text as the template writes them, so no others are accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions for the whole conversation.
    System,
    /// Instructions, where a template tells them from the system's.
    Developer,
    /// Asks.
    User,
    /// The model.
    Assistant,
    /// The result of a tool.
    Tool,
}

impl Role {
    /// Returns the role's name in templates and data.
    pub fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::Developer => "developer",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }
}

/// A message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// Its author.
    pub role: Role,
    /// Its text. Special tokens in it are text.
    pub content: String,
}

/// The tokens of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turns {
    /// The token ids.
    pub ids: Vec<u32>,
    /// For each token, whether the assistant writes it: its text and the end token after it. What the template puts before and
    /// after is not.
    pub assistant: Vec<bool>,
}

/// What a template needs beside the messages.
#[derive(Clone, Debug)]
pub(super) struct Chat {
    pub(super) template: Template,
    /// Named special tokens, such as `bos_token`.
    pub(super) tokens: BTreeMap<String, String>,
    pub(super) clock: Clock,
}

impl Chat {
    /// Renders messages with their special tokens broken by `mark`.
    fn render(
        &self,
        messages: &[Message],
        specials: &Fast,
        mark: char,
        prompt: bool,
    ) -> Result<Marked, TokenizerError> {
        let protected = messages.iter().map(|message| {
            let content = specials.specials().protect(&message.content, mark);
            Value::from_pairs([("role", Value::from(message.role.name())), ("content", Value::from(content))])
        });
        let none = Value::from(None::<bool>);
        let mut variables = vec![
            ("messages".to_owned(), protected.collect::<Value>()),
            ("add_generation_prompt".to_owned(), Value::from(prompt)),
            ("tools".to_owned(), none.clone()),
            ("documents".to_owned(), none),
        ];
        variables.extend(self.tokens.iter().map(|(name, token)| (name.clone(), Value::from(token.as_str()))));
        Ok(Marked::of(&self.template.render(self.clock, variables)?, mark))
    }

    fn mark(&self, messages: &[Message]) -> Result<char, TokenizerError> {
        let texts = messages.iter().map(|message| message.content.as_str());
        free_mark(&texts.chain([self.template.source()]))
    }

    /// Returns the text of a conversation and the prompt of the next response.
    pub(super) fn text(&self, messages: &[Message], fast: &Fast) -> Result<String, TokenizerError> {
        Ok(self.render(messages, fast, self.mark(messages)?, true)?.text)
    }

    /// Returns the tokens of a conversation and the prompt of the next response.
    pub(super) fn prompt(&self, messages: &[Message], fast: &Fast) -> Result<Vec<u32>, TokenizerError> {
        let marked = self.render(messages, fast, self.mark(messages)?, true)?;
        Ok(fast.encode(&marked.text, Allowed::Unbroken(&marked))?.get_ids().to_vec())
    }

    /// Returns the tokens of a conversation, and which of them the assistant writes.
    pub(super) fn turns(&self, messages: &[Message], fast: &Fast, ends: &[u32]) -> Result<Turns, TokenizerError> {
        let mark = self.mark(messages)?;
        let all = self.render(messages, fast, mark, false)?;
        let encoding = fast.encode(&all.text, Allowed::Unbroken(&all))?;
        let (ids, offsets) = (encoding.get_ids(), encoding.get_offsets());
        let mut assistant = vec![false; ids.len()];
        let mut number = 0;
        for (at, message) in messages.iter().enumerate() {
            if message.role != Role::Assistant {
                continue;
            }
            number += 1;
            let before = self.render(&messages[..at], fast, mark, true)?;
            if !all.text.starts_with(&before.text) {
                return Err(TokenizerError::Rewritten(number));
            }
            let turn = turn(before.text.len(), ids, offsets, ends).ok_or(TokenizerError::Endless(number))?;
            assistant[turn].fill(true);
        }
        Ok(Turns { ids: ids.to_vec(), assistant })
    }
}

/// Returns the tokens from the byte `start` to the first end token, which belongs to them. In content an end token is text, so it
/// does not end a turn early.
fn turn(start: usize, ids: &[u32], offsets: &[(usize, usize)], ends: &[u32]) -> Option<Range<usize>> {
    let first = offsets.iter().position(|(begin, _)| *begin >= start)?;
    let length = ids[first..].iter().position(|id| ends.contains(id))?;
    Some(first..first + length + 1)
}
