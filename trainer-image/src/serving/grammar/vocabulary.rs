//! The bytes of a model's tokens. Pure.

use llguidance::token_bytes_from_tokenizer_json;
use serde_json::{Value, json};

use super::reason;
use crate::text::Tokenizer;

/// Returns the bytes of each token. Special tokens have a byte 0xFF before their names, which no text has; what the vocabulary
/// lacks has no bytes.
///
/// # Errors
/// A sentence: the kind of the tokenizer is unknown.
pub(super) fn bytes(tokenizer: &Tokenizer) -> Result<Vec<Vec<u8>>, String> {
    let size = tokenizer.vocabulary();
    let mut words = if tokenizer.is_characters() {
        let specials = tokenizer.specials();
        let text = |id: u32| if specials.contains(&id) { None } else { tokenizer.decode(&[id]).ok() };
        (0..size as u32).map(|id| text(id).unwrap_or_default().into_bytes()).collect()
    } else {
        let files = tokenizer.files().map_err(|error| error.to_string())?;
        let json = files.get("tokenizer.json").map(Vec::as_slice).unwrap_or_default();
        let mut json: Value =
            codex_json::from_slice(json).map_err(|error| format!("its tokenizer.json is not readable: {error}"))?;
        plain(&mut json);
        token_bytes_from_tokenizer_json(&json)
            .map_err(|error| format!("its tokenizer is of another kind: {}", reason(&error.to_string())))?
    };
    words.resize(size, Vec::new());
    Ok(words)
}

/// Gives a `tokenizer.json` the form that is understood: with all lists, and a decoder of bytes by its own name.
fn plain(json: &mut Value) {
    if json.get("added_tokens").is_none_or(Value::is_null) {
        json["added_tokens"] = json!([]);
    }
    let decoders = json["decoder"]["decoders"].as_array();
    if decoders.is_some_and(|all| all.iter().any(|decoder| decoder["type"] == "ByteLevel")) {
        json["decoder"] = json!({ "type": "ByteLevel" });
    }
}
