//! The character-level tokenizer: every printable ASCII character is a token, so digits stay digits. It is a
//! `tokenizer.json` that the `tokenizers` crate and `transformers` read alike. Pure.

use tokenizers::{
    AddedToken, Tokenizer as Fast,
    decoders::fuse::Fuse,
    models::bpe::{BPE, Vocab},
};

use crate::tasks::END;

/// The token that fills what is not there.
pub const PAD: &str = "<pad>";
/// The token of characters that are not in the vocabulary.
pub const UNKNOWN: &str = "<unk>";

/// Text to token ids and back.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    fast: Fast,
    end: u32,
    pad: u32,
    unknown: u32,
}

/// A tokenizer that cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// `tokenizer.json` is not what the library reads.
    #[error("tokenizer.json cannot be read: {0}")]
    Unreadable(String),
    /// A token that the models here need is missing.
    #[error("tokenizer.json has no token {0:?}")]
    Missing(String),
    /// The library refused a text.
    #[error("the text cannot be tokenized: {0}")]
    Text(String),
    /// A character that the vocabulary does not have.
    #[error("character {0:?} is not in the tokenizer's vocabulary: use printable ASCII and line feeds")]
    Character(char),
    /// An empty text.
    #[error("the text is empty: write at least one character")]
    Empty,
}

impl Tokenizer {
    /// The tokenizer of models that are trained here: [`PAD`] 0, [`UNKNOWN`] 1, line feed 2, then ASCII from space to tilde.
    ///
    /// # Errors
    /// When the library refuses the vocabulary.
    pub fn characters() -> Result<Self, TokenizerError> {
        let specials = [PAD, UNKNOWN].map(str::to_owned);
        let characters = std::iter::once('\n').chain(' '..='~').map(String::from);
        let vocabulary: Vocab = specials.into_iter().chain(characters).zip(0..).collect();
        let unreadable = |error: tokenizers::Error| TokenizerError::Unreadable(error.to_string());
        // Byte-pair encoding without a single merge: every character stays alone.
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
    /// When it is none, or lacks the end token.
    pub fn from_json(bytes: &[u8]) -> Result<Self, TokenizerError> {
        Self::of(Fast::from_bytes(bytes).map_err(|error| TokenizerError::Unreadable(error.to_string()))?)
    }

    fn of(fast: Fast) -> Result<Self, TokenizerError> {
        let id = |token: &str| fast.token_to_id(token).ok_or_else(|| TokenizerError::Missing(token.to_owned()));
        let (end, pad, unknown) = (id(&END.to_string())?, id(PAD)?, id(UNKNOWN)?);
        Ok(Self { fast, end, pad, unknown })
    }

    /// The bytes of `tokenizer.json`; the same for the same vocabulary.
    ///
    /// # Errors
    /// When the library cannot write it.
    pub fn to_json(&self) -> Result<Vec<u8>, TokenizerError> {
        self.fast
            .to_string(true)
            .map(|text| (text + "\n").into_bytes())
            .map_err(|error| TokenizerError::Unreadable(error.to_string()))
    }

    /// How many ids there are.
    pub fn vocabulary(&self) -> usize {
        self.fast.get_vocab_size(true)
    }

    /// What a model has to know of it.
    pub fn for_model(&self) -> codex_engine::Vocabulary {
        codex_engine::Vocabulary { size: self.vocabulary(), end: self.end, pad: self.pad }
    }

    /// The id that ends a response.
    pub fn end(&self) -> u32 {
        self.end
    }

    /// The id of [`PAD`].
    pub fn pad(&self) -> u32 {
        self.pad
    }

    /// The ids of a text, one a character.
    ///
    /// # Errors
    /// When the text is empty or has a character that no model here has seen.
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

    /// The text of ids, the end token included.
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
    fn what_is_written_is_read() {
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

    proptest! {
        #[test]
        fn a_character_is_a_token(text in "[ -~\n]{1,80}") {
            let tokenizer = Tokenizer::characters().unwrap();
            prop_assume!(!text.contains(PAD) && !text.contains(UNKNOWN));
            let ids = tokenizer.encode(&text).unwrap();
            prop_assert_eq!(ids.len(), text.len());
            prop_assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        }
    }
}
