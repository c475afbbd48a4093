//! A tokenizer of SentencePiece's kind from the metadata: BPE by scores, with a token for each byte. Pure.
//!
//! SentencePiece joins the two neighbours whose joint piece has the highest score; `tokenizers` joins by a list of merges. The
//! list is every split of a piece into two others, ordered by the score of the piece, as `transformers` makes it. Control tokens,
//! the unknown token and bytes never arise from merges.

use std::collections::BTreeSet;

use tokenizers::{
    NormalizerWrapper, Tokenizer as Library,
    decoders::{DecoderWrapper, byte_fallback::ByteFallback, fuse::Fuse, sequence::Sequence as Decoders, strip::Strip},
    models::bpe::{BPE, Vocab},
    normalizers::{Prepend, Sequence as Normalizers, replace::Replace},
};

use super::{
    ImportError,
    gguf::Gguf,
    vocabulary::{CONTROL, USER_DEFINED, library},
};

/// The mark of a space.
const SPACE: &str = "\u{2581}";
/// The type of an ordinary token.
const NORMAL: i64 = 1;
/// The type of a byte.
const BYTE: i64 = 6;
/// Key of the tokens.
const TOKENS: &str = "tokenizer.ggml.tokens";
/// Key of the scores.
const SCORES: &str = "tokenizer.ggml.scores";
/// Key of the types.
const TYPES: &str = "tokenizer.ggml.token_type";

/// Rebuilds the tokenizer, without special tokens.
///
/// # Errors
/// The metadata lacks scores or types, their numbers differ, or a byte has no token and there is no unknown token.
pub(super) fn rebuild(gguf: &Gguf, tokens: &[&str], unknown: Option<&str>) -> Result<Library, ImportError> {
    let (scores, types) = (gguf.decimals(SCORES)?, gguf.numbers(TYPES)?);
    for (key, found) in [(SCORES, scores.len()), (TYPES, types.len())] {
        if found != tokens.len() {
            let value = format!("a list of {found} for {} tokens", tokens.len());
            return Err(ImportError::unsupported(key, value, "write one for each token"));
        }
    }
    if scores.iter().any(|score| score.is_nan()) {
        return Err(ImportError::unsupported(SCORES, "a list with NaN", "every score must be a number"));
    }
    let vocabulary: Vocab = tokens.iter().map(|token| (*token).to_owned()).zip(0..).collect();
    if vocabulary.len() != tokens.len() {
        return Err(ImportError::unsupported(TOKENS, "not unique", "every token must differ"));
    }
    let bytes: BTreeSet<&str> = of_types(tokens, &types, &[BYTE]).collect();
    if let Some(missing) = (0..=u8::MAX).map(|byte| format!("<0x{byte:02X}>")).find(|byte| !bytes.contains(&**byte))
        && unknown.is_none()
    {
        return Err(ImportError::unsupported(
            TOKENS,
            format!("without {missing}"),
            "a token for each byte, or an unknown token",
        ));
    }
    let merges = merges(tokens, &scores, &types, &vocabulary);
    let mut builder = BPE::builder().vocab_and_merges(vocabulary, merges).fuse_unk(true).byte_fallback(true);
    if let Some(unknown) = unknown {
        builder = builder.unk_token(unknown.to_owned());
    }
    let mut tokenizer = Library::new(builder.build().map_err(library)?);
    // llama.cpp, too, puts a space before a text unless the file says otherwise.
    let prefix = gguf.flag("tokenizer.ggml.add_space_prefix").unwrap_or(true);
    let mut normalizers: Vec<NormalizerWrapper> = Vec::new();
    let mut decoders: Vec<DecoderWrapper> =
        vec![Replace::new(SPACE, " ").map_err(library)?.into(), ByteFallback::new().into(), Fuse::new().into()];
    if prefix {
        normalizers.push(Prepend::new(SPACE.to_owned()).into());
        decoders.push(Strip::new(' ', 1, 0).into());
    }
    normalizers.push(Replace::new(" ", SPACE).map_err(library)?.into());
    tokenizer.with_normalizer(Some(Normalizers::new(normalizers))).map_err(library)?;
    tokenizer.with_decoder(Some(Decoders::new(decoders)));
    Ok(tokenizer)
}

fn of_types<'a>(tokens: &'a [&str], types: &'a [i64], wanted: &'a [i64]) -> impl Iterator<Item = &'a str> {
    tokens.iter().zip(types).filter(|(_, kind)| wanted.contains(kind)).map(|(token, _)| *token)
}

/// Returns the merges in the order in which they are applied.
fn merges(tokens: &[&str], scores: &[f64], types: &[i64], vocabulary: &Vocab) -> Vec<(String, String)> {
    let parts: BTreeSet<&str> = of_types(tokens, types, &[NORMAL, USER_DEFINED]).collect();
    let mut merges = Vec::new();
    for ((token, score), _) in tokens.iter().zip(scores).zip(types).filter(|(_, kind)| **kind == NORMAL) {
        let splits = token.char_indices().skip(1).map(|(at, _)| token.split_at(at));
        let mut splits: Vec<_> = splits.filter(|(left, right)| parts.contains(left) && parts.contains(right)).collect();
        splits.sort_by_key(|(left, right)| (vocabulary.get(*left), vocabulary.get(*right)));
        merges.extend(splits.into_iter().map(|(left, right)| (*score, left.to_owned(), right.to_owned())));
    }
    merges.sort_by(|(one, ..), (two, ..)| two.total_cmp(one));
    merges.into_iter().map(|(_, left, right)| (left, right)).collect()
}

/// Whether a token of this type is special.
pub(super) fn is_special(kind: i64) -> bool {
    const UNKNOWN: i64 = 2;
    kind == CONTROL || kind == UNKNOWN
}
