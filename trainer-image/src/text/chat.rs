//! Messages, and their text and tokens by a chat template. Pure.

use std::{collections::BTreeMap, ops::Range};

use minijinja::{Value, value::ValueKind};
use serde::{Deserialize, Serialize};

use super::{
    TokenizerError,
    fast::{Allowed, Fast},
    jinja::{Clock, Template},
    marks::{Marked, free_mark},
};

/// The marker before a call of a tool, in the form of Hermes and Qwen.
pub(crate) const CALL: &str = "<tool_call>";
/// The marker after a call of a tool.
pub(crate) const CALL_END: &str = "</tool_call>";

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

/// A conversation with all that a template may use: calls of tools, tools, and variables of the template.
#[derive(Clone, Debug, Default)]
pub struct Conversation {
    /// The messages as maps; each has a `role` and usually a `content`.
    pub messages: Vec<Value>,
    /// Descriptions of the tools that the model may call.
    pub tools: Vec<Value>,
    /// Further variables, such as `enable_thinking`.
    pub variables: Vec<(String, Value)>,
}

/// The prompt of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// The token ids.
    pub ids: Vec<u32>,
    /// The rendered text.
    pub text: String,
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
        self.render_values(protected.collect(), None, Vec::new(), mark, prompt)
    }

    /// Renders messages that are protected.
    fn render_values(
        &self,
        messages: Value,
        tools: Option<Value>,
        mut variables: Vec<(String, Value)>,
        mark: char,
        prompt: bool,
    ) -> Result<Marked, TokenizerError> {
        let none = Value::from(None::<bool>);
        variables.extend([
            ("messages".to_owned(), messages),
            ("add_generation_prompt".to_owned(), Value::from(prompt)),
            ("tools".to_owned(), tools.unwrap_or_else(|| none.clone())),
            ("documents".to_owned(), none),
        ]);
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

    /// Returns the prompt of the next response in a conversation with tools.
    pub(super) fn conversation(&self, conversation: &Conversation, fast: &Fast) -> Result<Rendered, TokenizerError> {
        let Conversation { messages, tools, variables } = conversation;
        let mut texts = Vec::new();
        for value in messages.iter().chain(tools).chain(variables.iter().map(|(_, value)| value)) {
            strings(value, &mut texts);
        }
        if let Some((_, key)) = texts.iter().find(|(is_key, text)| *is_key && fast.specials().occur_in(text)) {
            return Err(TokenizerError::Template(format!("the field {key:?} has a special token in its name")));
        }
        let mark = free_mark(&texts.iter().map(|(_, text)| text.as_str()).chain([self.template.source()]))?;
        let protect = |value: &Value| protected(value, fast, mark);
        let tools = (!tools.is_empty()).then(|| tools.iter().map(protect).collect());
        let variables = variables.iter().map(|(name, value)| (name.clone(), named(value, fast, mark))).collect();
        let marked = self.render_values(messages.iter().map(protect).collect(), tools, variables, mark, true)?;
        let ids = fast.encode(&marked.text, Allowed::Unbroken(&marked))?.get_ids().to_vec();
        Ok(Rendered { ids, text: marked.text })
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

/// Collects the strings of a value, and whether each is the name of a field.
fn strings(value: &Value, found: &mut Vec<(bool, String)>) {
    match value.kind() {
        ValueKind::String => found.push((false, value.as_str().unwrap_or_default().to_owned())),
        ValueKind::Seq => value.try_iter().into_iter().flatten().for_each(|item| strings(&item, found)),
        ValueKind::Map => {
            for key in value.try_iter().into_iter().flatten() {
                found.push((true, key.as_str().unwrap_or_default().to_owned()));
                value.get_item(&key).iter().for_each(|item| strings(item, found));
            }
        }
        _ => {}
    }
}

/// Fields whose values templates compare with names. A special token inside them is broken like everywhere; one cannot begin in
/// them, because they stand as templates write them.
const NAMES: [&str; 2] = ["role", "type"];

/// Returns a value in whose strings special tokens are broken. The names of fields stay, because templates look them up.
fn protected(value: &Value, fast: &Fast, mark: char) -> Value {
    match value.kind() {
        ValueKind::String => Value::from(fast.specials().protect(value.as_str().unwrap_or_default(), mark)),
        ValueKind::Seq => value.try_iter().into_iter().flatten().map(|item| protected(&item, fast, mark)).collect(),
        ValueKind::Map => {
            let keys = value.try_iter().into_iter().flatten();
            let pairs = keys.map(|key| {
                let item = value.get_item(&key).unwrap_or_default();
                let is_name = key.as_str().is_some_and(|key| NAMES.contains(&key));
                let item = if is_name { named(&item, fast, mark) } else { protected(&item, fast, mark) };
                (key, item)
            });
            Value::from_pairs(pairs)
        }
        _ => value.clone(),
    }
}

/// Returns a name as it is, unless a special token stands in it; other values as [`protected`].
fn named(value: &Value, fast: &Fast, mark: char) -> Value {
    match value.as_str() {
        Some(text) if !fast.specials().occur_in(text) => value.clone(),
        _ => protected(value, fast, mark),
    }
}

/// Returns the tokens from the byte `start` to the first end token, which belongs to them. In content an end token is text, so it
/// does not end a turn early.
fn turn(start: usize, ids: &[u32], offsets: &[(usize, usize)], ends: &[u32]) -> Option<Range<usize>> {
    let first = offsets.iter().position(|(begin, _)| *begin >= start)?;
    let length = ids[first..].iter().position(|id| ends.contains(id))?;
    Some(first..first + length + 1)
}
