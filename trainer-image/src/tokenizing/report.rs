//! What `stats` and `inspect` print: JSON. Reads files.

use std::{collections::BTreeMap, path::PathBuf};

use serde_json::json;

use super::{TokenizingError, lines_of};
use crate::text::Tokenizer;

/// Counts the tokens of files, line by line.
///
/// # Errors
/// A file cannot be read, or the tokenizer refuses a line.
pub(super) fn stats(tokenizer: &Tokenizer, data: &[PathBuf]) -> Result<String, TokenizingError> {
    let (mut lines, mut characters, mut bytes, mut tokens, mut longest) = (0_u64, 0_u64, 0_u64, 0_u64, 0_u64);
    let mut used: BTreeMap<u32, u64> = BTreeMap::new();
    for path in data {
        for (number, line) in lines_of(path)?.lines().enumerate().filter(|(_, line)| !line.is_empty()) {
            let ids = tokenizer.encode_more(line);
            let ids = ids.map_err(|source| TokenizingError::Line { file: path.clone(), line: number + 1, source })?;
            lines += 1;
            characters += line.chars().count() as u64;
            bytes += line.len() as u64;
            tokens += ids.len() as u64;
            longest = longest.max(ids.len() as u64);
            for id in ids {
                *used.entry(id).or_default() += 1;
            }
        }
    }
    let share = |sum: u64, of: u64| if of == 0 { 0.0 } else { sum as f64 / of as f64 };
    let told = json!({
        "lines": lines,
        "characters": characters,
        "bytes": bytes,
        "tokens": tokens,
        "longest_line": longest,
        "characters_per_token": share(characters, tokens),
        "bytes_per_token": share(bytes, tokens),
        "vocabulary": tokenizer.vocabulary(),
        "vocabulary_used": used.len(),
    });
    Ok(format!("{told:#}"))
}

/// Describes a tokenizer.
///
/// # Errors
/// Its files cannot be encoded.
pub(super) fn inspect(tokenizer: &Tokenizer) -> Result<String, TokenizingError> {
    let named = |id: u32| json!({ "id": id, "token": tokenizer.token(id) });
    let told = json!({
        "kind": if tokenizer.is_characters() { "characters" } else { "tokenizer.json" },
        "vocabulary": tokenizer.vocabulary(),
        "end_tokens": tokenizer.ends().into_iter().map(named).collect::<Vec<_>>(),
        "padding_token": tokenizer.pad().map(named),
        "special_tokens": tokenizer.specials().into_iter().map(named).collect::<Vec<_>>(),
        "chat_template": tokenizer.has_template(),
        "files": tokenizer.files()?.into_iter().map(|(name, bytes)| json!({ "name": name, "bytes": bytes.len() })).collect::<Vec<_>>(),
    });
    Ok(format!("{told:#}"))
}
