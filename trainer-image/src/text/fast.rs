//! A `tokenizer.json` of any kind, through the `tokenizers` crate. Pure.
//!
//! The library looks for special tokens in the whole text or nowhere. Here the text is cut at added tokens first, and only at
//! those that are allowed; the pieces then go through the library's normalizer, pre-tokenizer and model. With all special tokens
//! allowed the ids are the library's.

use aho_corasick::{AhoCorasick, Input, MatchKind};
use tokenizers::{
    AddedToken, Encoding, Model as _, NormalizedString, Normalizer as _, OffsetType, PostProcessor as _,
    PreTokenizedString, PreTokenizer as _, Token, Tokenizer as Library, normalizer::Range,
};

use super::{
    TokenizerError,
    marks::{Marked, Specials},
};

/// A tokenizer of the library.
#[derive(Clone, Debug)]
pub(super) struct Fast {
    library: Library,
    /// Added tokens that are looked for in the raw text: the special ones, and those that are not normalized.
    raw: Added,
    /// The others, normalized.
    normalized: Added,
    specials: Specials,
    /// One more than the largest id.
    size: usize,
}

/// Which special tokens a text may contain.
#[derive(Clone, Copy)]
pub(super) enum Allowed<'a> {
    /// None: all of the text is content.
    None,
    /// Those without a mark.
    Unbroken(&'a Marked),
}

impl Allowed<'_> {
    fn allows(self, start: usize, end: usize) -> bool {
        match self {
            Self::None => false,
            Self::Unbroken(marked) => !marked.is_broken(start, end),
        }
    }
}

/// A search for added tokens.
#[derive(Clone, Debug)]
struct Added {
    search: AhoCorasick,
    tokens: Vec<(u32, AddedToken)>,
}

impl Added {
    fn new(tokens: Vec<(u32, AddedToken)>, texts: &[String]) -> Result<Self, TokenizerError> {
        let search = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(texts);
        Ok(Self { search: search.map_err(|error| TokenizerError::Unreadable(error.to_string()))?, tokens })
    }

    /// Cuts a text at the added tokens for which `allows` returns true.
    fn cut(
        &self,
        text: &NormalizedString,
        allows: impl Fn(&AddedToken, usize, usize) -> bool,
    ) -> Vec<(NormalizedString, Option<Vec<Token>>)> {
        let sentence = text.get();
        let mut pieces = Vec::new();
        let mut piece = |range: std::ops::Range<usize>, id: Option<u32>| {
            let Some(slice) = text.slice(Range::Normalized(range)) else { return };
            let tokens = id.map(|id| vec![Token::new(id, slice.get().to_owned(), (0, slice.get().len()))]);
            pieces.push((slice, tokens));
        };
        let (mut done, mut from) = (0, 0);
        while let Some(found) = self.search.find(Input::new(sentence).range(from..)) {
            let (id, token) = &self.tokens[found.pattern().as_usize()];
            let (mut start, mut end) = (found.start(), found.end());
            let alone =
                !token.single_word || (!ends_in_word(&sentence[..start]) && !begins_with_word(&sentence[end..]));
            if !alone || !allows(token, start, end) {
                from = start + sentence[start..].chars().next().map_or(1, char::len_utf8);
                continue;
            }
            if token.lstrip {
                start = sentence[..start].trim_end().len().max(done);
            }
            if token.rstrip {
                end = sentence.len() - sentence[end..].trim_start().len();
            }
            if done < start {
                piece(done..start, None);
            }
            piece(start..end, Some(*id));
            (done, from) = (end, end);
        }
        if done < sentence.len() {
            piece(done..sentence.len(), None);
        }
        pieces
    }
}

fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

fn ends_in_word(text: &str) -> bool {
    text.chars().next_back().is_some_and(is_word)
}

fn begins_with_word(text: &str) -> bool {
    text.chars().next().is_some_and(is_word)
}

impl Fast {
    /// Prepares a tokenizer of the library.
    ///
    /// # Errors
    /// When a normalizer refuses an added token.
    pub(super) fn new(library: Library) -> Result<Self, TokenizerError> {
        let mut added: Vec<(u32, AddedToken)> = library.get_added_tokens_decoder().into_iter().collect();
        added.retain(|(_, token)| !token.content.is_empty());
        added.sort_by_key(|(id, _)| *id);
        let specials =
            Specials::new(added.iter().filter(|(_, token)| token.special).map(|(_, it)| it.content.clone()))?;
        let (raw, normalized): (Vec<_>, Vec<_>) =
            added.into_iter().partition(|(_, token)| token.special || !token.normalized);
        let raw_texts: Vec<String> = raw.iter().map(|(_, token)| token.content.clone()).collect();
        let mut normalized_texts = Vec::new();
        for (_, token) in &normalized {
            let mut text = NormalizedString::from(token.content.as_str());
            if let Some(normalizer) = library.get_normalizer() {
                normalizer.normalize(&mut text).map_err(TokenizerError::text)?;
            }
            normalized_texts.push(text.get().to_owned());
        }
        let size = library.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);
        Ok(Self {
            raw: Added::new(raw, &raw_texts)?,
            normalized: Added::new(normalized, &normalized_texts)?,
            specials,
            size,
            library,
        })
    }

    /// Returns the special tokens.
    pub(super) fn specials(&self) -> &Specials {
        &self.specials
    }

    /// Returns the ids of the special tokens, in ascending order.
    pub(super) fn special_ids(&self) -> Vec<u32> {
        self.raw.tokens.iter().filter(|(_, token)| token.special).map(|(id, _)| *id).collect()
    }

    /// Returns one more than the largest id.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Returns the id of a token.
    pub(super) fn id(&self, token: &str) -> Option<u32> {
        self.library.token_to_id(token)
    }

    /// Returns the token of an id.
    pub(super) fn token(&self, id: u32) -> Option<String> {
        self.library.id_to_token(id)
    }

    /// Encodes a text. Offsets are in bytes of the text.
    ///
    /// # Errors
    /// When the library refuses the text.
    pub(super) fn encode(&self, text: &str, allowed: Allowed) -> Result<Encoding, TokenizerError> {
        let mut pieces = PreTokenizedString::from(text);
        let raw = |token: &AddedToken, start, end| !token.special || allowed.allows(start, end);
        pieces.split(|_, text| Ok(self.raw.cut(&text, raw))).map_err(TokenizerError::text)?;
        if let Some(normalizer) = self.library.get_normalizer() {
            pieces.normalize(|text| normalizer.normalize(text)).map_err(TokenizerError::text)?;
        }
        pieces.split(|_, text| Ok(self.normalized.cut(&text, |_, _, _| true))).map_err(TokenizerError::text)?;
        if let Some(pre_tokenizer) = self.library.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut pieces).map_err(TokenizerError::text)?;
        }
        self.library.get_model().tokenize_in_pretokenized(&mut pieces, None).map_err(TokenizerError::text)?;
        pieces.into_encoding(None, 0, OffsetType::Byte).map_err(TokenizerError::text)
    }

    /// Adds the special tokens that begin and end a sequence, as `tokenizer.json` says.
    ///
    /// # Errors
    /// When the library refuses the ids.
    pub(super) fn framed(&self, encoding: Encoding) -> Result<Encoding, TokenizerError> {
        match self.library.get_post_processor() {
            Some(processor) => processor.process(encoding, None, true).map_err(TokenizerError::text),
            None => Ok(encoding),
        }
    }

    /// Returns the text of ids without special tokens.
    ///
    /// # Errors
    /// When the library refuses the ids.
    pub(super) fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        self.library.decode(ids, true).map_err(TokenizerError::text)
    }

    /// Returns the library's tokenizer.
    #[cfg(test)]
    pub(super) fn library(&self) -> &Library {
        &self.library
    }
}
