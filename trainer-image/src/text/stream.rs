//! Text that arrives token by token. Pure.

use std::borrow::Cow;

use super::{Tokenizer, TokenizerError};

/// Turns token ids into pieces of text that never split a character. The pieces together are the text of all ids.
#[derive(Clone, Debug)]
pub struct TextStream<'a> {
    tokenizer: Cow<'a, Tokenizer>,
    /// The ids from the last piece on.
    ids: Vec<u32>,
    /// How many of them are in pieces that were returned: context, because some decoders treat the first token differently.
    context: usize,
}

impl<'a> TextStream<'a> {
    pub(super) fn new(tokenizer: Cow<'a, Tokenizer>) -> Self {
        Self { tokenizer, ids: Vec::new(), context: 0 }
    }

    /// Takes the next id and returns the text that is complete with it: nothing, as long as a character lacks bytes.
    ///
    /// # Errors
    /// When the tokenizer refuses the ids.
    pub fn push(&mut self, id: u32) -> Result<String, TokenizerError> {
        self.ids.push(id);
        let text = self.rest()?;
        // An incomplete character is decoded as U+FFFD.
        if text.is_empty() || text.ends_with('\u{fffd}') {
            return Ok(String::new());
        }
        self.ids.drain(..self.context);
        self.context = self.ids.len();
        Ok(text)
    }

    /// Returns whether ids wait for a character to be complete.
    pub fn is_waiting(&self) -> bool {
        self.ids.len() > self.context
    }

    /// Returns the text of the ids that no piece has yet. Bytes that are not UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// When the tokenizer refuses the ids.
    pub fn finish(self) -> Result<String, TokenizerError> {
        self.rest()
    }

    fn rest(&self) -> Result<String, TokenizerError> {
        let before = self.tokenizer.decode(&self.ids[..self.context])?;
        let mut all = self.tokenizer.decode(&self.ids)?;
        // Bytes that complete no character may change how earlier ones are shown; what was returned stays.
        let mut start = before.len().min(all.len());
        while !all.is_char_boundary(start) {
            start += 1;
        }
        Ok(all.split_off(start))
    }
}
