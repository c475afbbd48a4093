//! The tokenizer and the chat template from the metadata: byte-level BPE. Pure.

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

use super::{ImportError, gguf::Gguf};
use crate::text::TokenizerError;

/// The type of a token that is special, such as one that ends a turn.
const CONTROL: i64 = 3;
/// The type of a token that was added, but is a word.
const USER_DEFINED: i64 = 4;
/// How Llama 3's tokenizer splits text.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// How Qwen2's tokenizer splits text: as Llama 3's, but each digit apart.
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

fn library(error: impl std::fmt::Display) -> ImportError {
    TokenizerError::Unreadable(error.to_string().replace('\n', " ")).into()
}

/// Returns `tokenizer.json` and `tokenizer_config.json`.
///
/// # Errors
/// The metadata has no byte-level BPE, or one that splits text in an unknown way.
pub(super) fn files(gguf: &Gguf, config: &ModelConfig) -> Result<BTreeMap<String, Vec<u8>>, ImportError> {
    let tokens = gguf.texts("tokenizer.ggml.tokens")?;
    if tokens.len() > config.vocab_size {
        return Err(ImportError::unsupported("tokenizer.ggml.tokens", tokens.len(), "the embedding has fewer rows"));
    }
    let tokenizer = bpe(gguf, &tokens)?;
    let mut json = tokenizer.to_string(true).map_err(library)?.into_bytes();
    json.push(b'\n');
    let name = |id: Option<u32>| id.and_then(|id| tokens.get(id as usize)).map(|token| json!(token));
    let unknown = gguf.number("tokenizer.ggml.unknown_token_id").and_then(|id| u32::try_from(id).ok());
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
    let mut settings = serde_json::to_vec_pretty(&Value::Object(settings))
        .map_err(|source| TokenizerError::Json { file: "tokenizer_config.json", source })?;
    settings.push(b'\n');
    Ok(BTreeMap::from([("tokenizer.json".to_owned(), json), ("tokenizer_config.json".to_owned(), settings)]))
}

/// Rebuilds a byte-level BPE.
fn bpe(gguf: &Gguf, tokens: &[&str]) -> Result<Library, ImportError> {
    let model = gguf.text("tokenizer.ggml.model").unwrap_or("missing");
    if model != "gpt2" {
        let right = "use a byte-level BPE (gpt2); SentencePiece (llama) is not supported yet";
        return Err(ImportError::unsupported("tokenizer.ggml.model", model, right));
    }
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
    let types = gguf.numbers("tokenizer.ggml.token_type")?;
    let of = |kind: i64| {
        let chosen = tokens.iter().zip(&types).filter(move |(_, found)| **found == kind);
        chosen.map(move |(token, _)| AddedToken::from(*token, kind == CONTROL).normalized(false))
    };
    tokenizer.add_special_tokens(of(CONTROL)).map_err(library)?;
    tokenizer.add_tokens(of(USER_DEFINED)).map_err(library)?;
    // Llama 3's files do not say that a text begins with its first token; llama.cpp knows it.
    let begins = gguf.flag("tokenizer.ggml.add_bos_token").unwrap_or(kind == "llama-bpe");
    let first = gguf.number("tokenizer.ggml.bos_token_id").and_then(|id| Some((tokens.get(id as usize)?, id as u32)));
    if let (true, Some((token, id))) = (begins, first) {
        let processor = TemplateProcessing::builder()
            .try_single(vec![(*token).to_owned(), "$A".to_owned()])
            .map_err(library)?
            .special_tokens(vec![((*token).to_owned(), id)])
            .build()
            .map_err(library)?;
        tokenizer.with_post_processor(Some(processor));
    }
    Ok(tokenizer)
}
