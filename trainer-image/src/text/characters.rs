//! The character-level tokenizer: every printable ASCII character is a token, so that each digit is one. Its `tokenizer.json` is
//! read by the `tokenizers` crate and by `transformers`. Models that are trained from random weights have it. Pure.

use tokenizers::{
    AddedToken, Tokenizer as Fast,
    decoders::fuse::Fuse,
    models::bpe::{BPE, Vocab},
};

use super::TokenizerError;
use crate::tasks::END;

/// The padding token.
pub const PAD: &str = "<pad>";
/// The token for characters outside the vocabulary.
pub const UNKNOWN: &str = "<unk>";

/// A tokenizer whose tokens are single characters.
#[derive(Clone, Debug)]
pub(super) struct Characters {
    fast: Fast,
    end: u32,
    pad: u32,
    unknown: u32,
}

impl Characters {
    /// Makes the tokenizer: [`PAD`] 0, [`UNKNOWN`] 1, line feed 2, then ASCII from space to tilde.
    ///
    /// # Errors
    /// When the library refuses the vocabulary.
    pub(super) fn new() -> Result<Self, TokenizerError> {
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

    /// Returns the tokenizer if `fast` is it: a `tokenizer.json` that differs in white space only.
    ///
    /// # Errors
    /// When the library cannot write it.
    pub(super) fn recognize(fast: &Fast) -> Result<Option<Self>, TokenizerError> {
        let new = Self::new()?;
        if fast.get_vocab_size(true) != new.vocabulary() {
            return Ok(None);
        }
        let text = |fast: &Fast| fast.to_string(false).map_err(|error| TokenizerError::Unreadable(error.to_string()));
        Ok((text(fast)? == text(&new.fast)?).then_some(new))
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
    pub(super) fn to_json(&self) -> Result<Vec<u8>, TokenizerError> {
        self.fast
            .to_string(true)
            .map(|text| (text + "\n").into_bytes())
            .map_err(|error| TokenizerError::Unreadable(error.to_string()))
    }

    /// Returns the size of the vocabulary.
    pub(super) fn vocabulary(&self) -> usize {
        self.fast.get_vocab_size(true)
    }

    /// Returns the id of the token that ends a response.
    pub(super) fn end(&self) -> u32 {
        self.end
    }

    /// Returns the id of [`PAD`].
    pub(super) fn pad(&self) -> u32 {
        self.pad
    }

    /// Returns the id of [`UNKNOWN`].
    pub(super) fn unknown(&self) -> u32 {
        self.unknown
    }

    /// Returns the token ids of a text, one per character. Text that looks like a special token is encoded as text.
    ///
    /// # Errors
    /// When the text is empty or has a character outside the vocabulary.
    pub(super) fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        if text.is_empty() {
            return Err(TokenizerError::Empty);
        }
        let encoding = self.fast.encode_fast(text, false).map_err(|error| TokenizerError::Text(error.to_string()))?;
        let ids = encoding.get_ids();
        if let Some(position) = ids.iter().position(|id| *id == self.unknown) {
            let character = text.chars().nth(position).unwrap_or('\u{fffd}');
            return Err(TokenizerError::Character { at: position + 1, character });
        }
        Ok(ids.to_vec())
    }

    /// Returns the text of token ids, including the end token.
    ///
    /// # Errors
    /// When the library refuses the ids.
    pub(super) fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        self.fast.decode(ids, false).map_err(|error| TokenizerError::Text(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_written_tokenizer_is_recognized() {
        let tokenizer = Characters::new().unwrap();
        let json = tokenizer.to_json().unwrap();
        assert_eq!(json, Characters::new().unwrap().to_json().unwrap(), "the same bytes every time");
        let read = Fast::from_bytes(&json).unwrap();
        let read = Characters::recognize(&read).unwrap().unwrap();
        assert_eq!(read.to_json().unwrap(), json);
        assert_eq!(read.encode("1+2:#3$").unwrap(), tokenizer.encode("1+2:#3$").unwrap());
        assert_eq!(tokenizer.vocabulary(), 98);
        assert_eq!(tokenizer.encode("$").unwrap(), [tokenizer.end()]);
        assert_eq!(tokenizer.pad(), 0);
        let other = String::from_utf8(json).unwrap().replace("\"~\": 97", "\"\u{e9}\": 97");
        assert!(Characters::recognize(&Fast::from_bytes(other).unwrap()).unwrap().is_none());
    }

    #[test]
    fn an_unknown_character_is_named() {
        let tokenizer = Characters::new().unwrap();
        let refused = tokenizer.encode("caf\u{e9} #1$");
        assert!(matches!(refused, Err(TokenizerError::Character { at: 4, character: '\u{e9}' })));
        assert!(matches!(tokenizer.encode(""), Err(TokenizerError::Empty)));
    }

    #[test]
    fn text_that_looks_like_a_special_token_is_text() {
        let tokenizer = Characters::new().unwrap();
        for text in ["<pad>", "1+<unk>2", "<pad><pad>"] {
            let ids = tokenizer.encode(text).unwrap();
            assert_eq!(ids.len(), text.len());
            assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        }
    }

    proptest! {
        #[test]
        fn a_character_is_a_token(text in "[ -~\n]{1,80}") {
            let tokenizer = Characters::new().unwrap();
            let ids = tokenizer.encode(&text).unwrap();
            prop_assert_eq!(ids.len(), text.len());
            prop_assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        }
    }
}
