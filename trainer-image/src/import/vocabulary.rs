//! The tokenizer and the chat template from the metadata: byte-level BPE, or SentencePiece's kind of BPE. Pure.

use std::collections::BTreeMap;

use codex_engine::ModelConfig;
use serde_json::{Value, json};
use tokenizers::{
    AddedToken, Tokenizer as Library,
    models::bpe::{BPE, Vocab},
    normalizers,
    pre_tokenizers::{
        PreTokenizerWrapper,
        byte_level::ByteLevel,
        digits::Digits,
        sequence::Sequence,
        split::{Split, SplitPattern},
    },
    processors::template::TemplateProcessing,
    tokenizer::SplitDelimiterBehavior,
};

use super::{ImportError, gguf::Gguf, sentencepiece};
use crate::text::TokenizerError;

/// The type of a token that is special, such as one that ends a turn.
pub(super) const CONTROL: i64 = 3;
/// The type of a token that was added, but is a word.
pub(super) const USER_DEFINED: i64 = 4;
/// How Llama 3's tokenizer splits text.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// How Qwen2's tokenizer splits text: as Llama 3's, but each digit apart.
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

pub(super) fn library(error: impl std::fmt::Display) -> ImportError {
    TokenizerError::Unreadable(error.to_string().replace('\n', " ")).into()
}

/// Returns `tokenizer.json` and `tokenizer_config.json`.
///
/// # Errors
/// The metadata has a tokenizer of another kind, or one that splits text in an unknown way.
pub(super) fn files(gguf: &Gguf, config: &ModelConfig) -> Result<BTreeMap<String, Vec<u8>>, ImportError> {
    let tokens = gguf.texts("tokenizer.ggml.tokens")?;
    if tokens.len() > config.vocab_size {
        return Err(ImportError::unsupported("tokenizer.ggml.tokens", tokens.len(), "the embedding has fewer rows"));
    }
    let unknown = gguf.number("tokenizer.ggml.unknown_token_id").and_then(|id| u32::try_from(id).ok());
    let name_of = |id: Option<u32>| id.and_then(|id| tokens.get(id as usize)).copied();
    let (mut tokenizer, kind) = match gguf.text("tokenizer.ggml.model").unwrap_or("missing") {
        "gpt2" => byte_level(gguf, &tokens)?,
        // The id that llama.cpp takes if the file names none.
        "llama" => {
            let unknown = name_of(unknown.or(Some(0)));
            (
                sentencepiece::rebuild(gguf, &tokens, unknown)?,
                Kind { begins: true, is_special: sentencepiece::is_special },
            )
        }
        model => {
            let right = "use a byte-level BPE (gpt2) or SentencePiece (llama)";
            return Err(ImportError::unsupported("tokenizer.ggml.model", model, right));
        }
    };
    add_specials(&mut tokenizer, gguf, &tokens, &kind)?;
    let mut json = tokenizer.to_string(true).map_err(library)?.into_bytes();
    json.push(b'\n');
    let name = |id: Option<u32>| name_of(id).map(|token| json!(token));
    let mut settings = serde_json::Map::from_iter([
        ("clean_up_tokenization_spaces".to_owned(), json!(false)),
        ("model_max_length".to_owned(), json!(config.max_position_embeddings)),
        ("tokenizer_class".to_owned(), json!("PreTrainedTokenizerFast")),
    ]);
    let named = [
        ("bos_token", name(config.bos_token_id)),
        ("eos_token", name(config.eos_token_ids.first().copied())),
        ("pad_token", name(config.pad_token_id)),
        ("unk_token", name(unknown)),
        ("chat_template", gguf.text("tokenizer.chat_template").map(|template| json!(template))),
    ];
    settings.extend(named.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))));
    settings.sort_keys();
    let mut settings = serde_json::to_vec_pretty(&Value::Object(settings))
        .map_err(|source| TokenizerError::Json { file: "tokenizer_config.json", source })?;
    settings.push(b'\n');
    Ok(BTreeMap::from([("tokenizer.json".to_owned(), json), ("tokenizer_config.json".to_owned(), settings)]))
}

/// What the special tokens of a file are, beyond what it says.
struct Kind {
    /// Whether a text begins with the first token, unless the file says otherwise. Llama 3's files and those of SentencePiece do not
    /// say it; llama.cpp knows it.
    begins: bool,
    /// Whether tokens of a type are special.
    is_special: fn(i64) -> bool,
}

/// Rebuilds a byte-level BPE, without special tokens.
fn byte_level(gguf: &Gguf, tokens: &[&str]) -> Result<(Library, Kind), ImportError> {
    let kind = gguf.text("tokenizer.ggml.pre").unwrap_or("gpt-2");
    let plain = || ByteLevel::new(false, true, true);
    let split = |pattern: &str| {
        let pattern = SplitPattern::Regex(pattern.to_owned());
        let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map_err(library)?;
        Ok::<_, ImportError>(vec![split.into(), ByteLevel::new(false, true, false).into()])
    };
    let (pieces, merged, normalized): (Vec<PreTokenizerWrapper>, bool, bool) = match kind {
        "smollm" => (vec![Digits::new(true).into(), plain().into()], false, false),
        "gpt-2" => (vec![plain().into()], false, false),
        "llama-bpe" => (split(LLAMA3)?, true, false),
        "qwen2" => (split(QWEN2)?, false, true),
        other => {
            let right = "use smollm, gpt-2, llama-bpe or qwen2";
            return Err(ImportError::unsupported("tokenizer.ggml.pre", other, right));
        }
    };
    let vocabulary: Vocab = tokens.iter().map(|token| (*token).to_owned()).zip(0..).collect();
    if vocabulary.len() != tokens.len() {
        return Err(ImportError::unsupported("tokenizer.ggml.tokens", "not unique", "every token must differ"));
    }
    let merges = gguf.texts("tokenizer.ggml.merges")?;
    let merges = merges.into_iter().map(|merge| match merge.split_once(' ') {
        Some((left, right)) => Ok((left.to_owned(), right.to_owned())),
        None => Err(ImportError::unsupported("tokenizer.ggml.merges", format!("{merge:?}"), "write two tokens")),
    });
    let merges: Vec<(String, String)> = merges.collect::<Result<_, _>>()?;
    let model = BPE::builder().vocab_and_merges(vocabulary, merges).ignore_merges(merged).build().map_err(library)?;
    let mut tokenizer = Library::new(model);
    if normalized {
        tokenizer.with_normalizer(Some(normalizers::unicode::NFC)).map_err(library)?;
    }
    tokenizer.with_pre_tokenizer(Some(Sequence::new(pieces)));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    Ok((tokenizer, Kind { begins: kind == "llama-bpe", is_special: |kind| kind == CONTROL }))
}

/// Adds the special tokens and the added words, and what stands around a text.
fn add_specials(tokenizer: &mut Library, gguf: &Gguf, tokens: &[&str], kind: &Kind) -> Result<(), ImportError> {
    let types = gguf.numbers("tokenizer.ggml.token_type")?;
    let of = |wanted: fn(i64) -> bool, special: bool| {
        let chosen = tokens.iter().zip(&types).filter(move |(_, found)| wanted(**found));
        chosen.map(move |(token, _)| AddedToken::from(*token, special).normalized(false))
    };
    tokenizer.add_special_tokens(of(kind.is_special, true)).map_err(library)?;
    tokenizer.add_tokens(of(|kind| kind == USER_DEFINED, false)).map_err(library)?;
    let flag = |name: &str| gguf.flag(&format!("tokenizer.ggml.add_{name}_token"));
    let token = |name: &str| {
        let id = gguf.number(&format!("tokenizer.ggml.{name}_token_id"))?;
        Some(((*tokens.get(id as usize)?).to_owned(), id as u32))
    };
    let first = token("bos").filter(|_| flag("bos").unwrap_or(kind.begins));
    let last = token("eos").filter(|_| flag("eos").unwrap_or(false));
    let text = |token: &Option<(String, u32)>| token.as_ref().map(|(token, _)| token.clone());
    let single: Vec<String> = [text(&first), Some("$A".to_owned()), text(&last)].into_iter().flatten().collect();
    if single.len() > 1 {
        let processor = TemplateProcessing::builder()
            .try_single(single)
            .map_err(library)?
            .special_tokens(first.into_iter().chain(last).collect::<Vec<_>>())
            .build()
            .map_err(library)?;
        tokenizer.with_post_processor(Some(processor));
    }
    Ok(())
}
