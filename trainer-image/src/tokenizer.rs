//! The character-level tokenizer: every printable ASCII character is a token, so that each digit is one. Its `tokenizer.json` is
//! read by the `tokenizers` crate and by `transformers`. Pure.

use tokenizers::{
    AddedToken, Tokenizer as Fast,
    decoders::fuse::Fuse,
    models::bpe::{BPE, Vocab},
};

use crate::tasks::END;

/// The padding token.
pub const PAD: &str = "<pad>";
/// The token for characters outside the vocabulary.
pub const UNKNOWN: &str = "<unk>";

/// Converts text to token ids and back.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    fast: Fast,
    end: u32,
    pad: u32,
    unknown: u32,
}

/// The tokenizer is unsupported, or refuses a text.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The library cannot read `tokenizer.json`.
    #[error("tokenizer.json cannot be read: {0}")]
    Unreadable(String),
    /// A required token is missing.
    #[error("tokenizer.json has no token {0:?}")]
    Missing(String),
    /// The library refuses the text.
    #[error("the text cannot be tokenized: {0}")]
    Text(String),
    /// A character is outside the vocabulary.
    #[error("character {0:?} is not in the tokenizer's vocabulary: use printable ASCII and line feeds")]
    Character(char),
    /// The text is empty.
    #[error("the text is empty: write at least one character")]
    Empty,
}

impl Tokenizer {
    /// Makes the tokenizer of new models: [`PAD`] 0, [`UNKNOWN`] 1, line feed 2, then ASCII from space to tilde.
    ///
    /// # Errors
    /// When the library refuses the vocabulary.
    pub fn characters() -> Result<Self, TokenizerError> {
        let specials = [PAD, UNKNOWN].map(str::to_owned);
        let characters = std::iter::once('\n').chain(' '..='~').map(String::from);
        let vocabulary: Vocab = specials.into_iter().chain(characters).zip(0..).collect();
        let unreadable = |error: tokenizers::Error| TokenizerError::Unreadable(error.to_string());
        // Byte-pair encoding without merges: every character is a token.
        let model = BPE::builder()
            .vocab_and_merges(vocabulary, Vec::new())
            .unk_token(UNKNOWN.to_owned())
            .build()
            .map_err(unreadable)?;
        let mut fast = Fast::new(model);
        fast.with_decoder(Some(Fuse::new()));
        fast.add_special_tokens([PAD, UNKNOWN].map(|token| AddedToken::from(token, true))).map_err(unreadable)?;
        Self::of(fast)
    }

    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// When it is invalid, or lacks a required token.
    pub fn from_json(bytes: &[u8]) -> Result<Self, TokenizerError> {
        Self::of(Fast::from_bytes(bytes).map_err(|error| TokenizerError::Unreadable(error.to_string()))?)
    }

    fn of(mut fast: Fast) -> Result<Self, TokenizerError> {
        // Text that looks like a special token, such as `<pad>`, is text.
        fast.set_encode_special_tokens(true);
        let id = |token: &str| fast.token_to_id(token).ok_or_else(|| TokenizerError::Missing(token.to_owned()));
        let (end, pad, unknown) = (id(&END.to_string())?, id(PAD)?, id(UNKNOWN)?);
        Ok(Self { fast, end, pad, unknown })
    }

    /// Returns the bytes of `tokenizer.json`. They depend on the vocabulary alone.
    ///
    /// # Errors
    /// When encoding fails.
    pub fn to_json(&self) -> Result<Vec<u8>, TokenizerError> {
        self.fast
            .to_string(true)
            .map(|text| (text + "\n").into_bytes())
            .map_err(|error| TokenizerError::Unreadable(error.to_string()))
    }

    /// Returns the size of the vocabulary.
    pub fn vocabulary(&self) -> usize {
        self.fast.get_vocab_size(true)
    }

    /// Returns the vocabulary for a model's configuration.
    pub fn for_model(&self) -> codex_engine::Vocabulary {
        codex_engine::Vocabulary { size: self.vocabulary(), end: self.end, pad: self.pad }
    }

    /// Returns the id of the token that ends a response.
    pub fn end(&self) -> u32 {
        self.end
    }

    /// Returns the id of [`PAD`].
    pub fn pad(&self) -> u32 {
        self.pad
    }

    /// Returns the token ids of a text, one per character. Text that looks like a special token is encoded as text.
    ///
    /// # Errors
    /// When the text is empty or has a character outside the vocabulary.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        if text.is_empty() {
            return Err(TokenizerError::Empty);
        }
        let encoding = self.fast.encode_fast(text, false).map_err(|error| TokenizerError::Text(error.to_string()))?;
        let ids = encoding.get_ids();
        if let Some(position) = ids.iter().position(|id| *id == self.unknown) {
            return Err(TokenizerError::Character(text.chars().nth(position).unwrap_or('\u{fffd}')));
        }
        Ok(ids.to_vec())
    }

    /// Returns the text of token ids, including the end token.
    ///
    /// # Errors
    /// When the library refuses the ids.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        self.fast.decode(ids, false).map_err(|error| TokenizerError::Text(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_written_tokenizer_is_read() {
        let tokenizer = Tokenizer::characters().unwrap();
        let json = tokenizer.to_json().unwrap();
        assert_eq!(json, Tokenizer::characters().unwrap().to_json().unwrap(), "the same bytes every time");
        let read = Tokenizer::from_json(&json).unwrap();
        assert_eq!(read.to_json().unwrap(), json);
        assert_eq!(read.encode("1+2:#3$").unwrap(), tokenizer.encode("1+2:#3$").unwrap());
        assert_eq!(tokenizer.vocabulary(), 98);
        assert_eq!(tokenizer.encode("$").unwrap(), [tokenizer.end()]);
        assert_eq!(tokenizer.pad(), 0);
    }

    #[test]
    fn an_unknown_character_is_named() {
        let tokenizer = Tokenizer::characters().unwrap();
        assert!(matches!(tokenizer.encode("caf\u{e9} #1$"), Err(TokenizerError::Character('\u{e9}'))));
        assert!(matches!(tokenizer.encode(""), Err(TokenizerError::Empty)));
    }

    #[test]
    fn text_that_looks_like_a_special_token_is_text() {
        let new = Tokenizer::characters().unwrap();
        for tokenizer in [Tokenizer::from_json(&new.to_json().unwrap()).unwrap(), new] {
            for text in ["<pad>", "1+<unk>2", "<pad><pad>"] {
                let ids = tokenizer.encode(text).unwrap();
                assert_eq!(ids.len(), text.len());
                assert_eq!(tokenizer.decode(&ids).unwrap(), text);
            }
        }
    }

    proptest! {
        #[test]
        fn a_character_is_a_token(text in "[ -~\n]{1,80}") {
            let tokenizer = Tokenizer::characters().unwrap();
            let ids = tokenizer.encode(&text).unwrap();
            prop_assert_eq!(ids.len(), text.len());
            prop_assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        }
    }
}
