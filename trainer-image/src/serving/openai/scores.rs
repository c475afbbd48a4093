//! Log-probabilities of tokens in the shapes of OpenAI's API. Pure.

use codex_engine::LogProbabilities;
use serde_json::{Map, Value, json};

use crate::text::Tokenizer;

/// The least log-probability that is shown; JSON has no infinity.
const LEAST: f32 = -9999.0;

/// A token with its log-probabilities.
#[derive(Clone, Debug)]
pub(super) struct Scored {
    pub(super) token: Shown,
    pub(super) top: Vec<Shown>,
    /// The number of characters of the text before the token.
    pub(super) offset: usize,
}

/// A token as it is shown.
#[derive(Clone, Debug)]
pub(super) struct Shown {
    text: String,
    /// Its log-probability; `None` for the first token of a prompt, which has none.
    probability: Option<f32>,
}

impl Scored {
    pub(super) fn new(tokenizer: &Tokenizer, id: u32, scores: &LogProbabilities, offset: usize) -> Self {
        let shown =
            |id: u32, probability: f32| Shown { text: text(tokenizer, id), probability: Some(probability.max(LEAST)) };
        let top = scores.top.iter().map(|(id, probability)| shown(*id, *probability)).collect();
        Self { token: shown(id, scores.chosen), top, offset }
    }

    /// Makes that of a token without a log-probability: the first one of a prompt.
    pub(super) fn unscored(tokenizer: &Tokenizer, id: u32, offset: usize) -> Self {
        Self { token: Shown { text: text(tokenizer, id), probability: None }, top: Vec::new(), offset }
    }
}

/// Returns the text of a token inside a text: some decoders leave out the space of a first token. Special tokens are shown as the
/// vocabulary has them.
fn text(tokenizer: &Tokenizer, id: u32) -> String {
    let named = || tokenizer.token(id).unwrap_or_default();
    let (Ok(once), Ok(twice)) = (tokenizer.decode(&[id]), tokenizer.decode(&[id, id])) else { return named() };
    match twice.get(once.len()..) {
        Some(text) if !text.is_empty() && !text.contains('\u{fffd}') => text.to_owned(),
        _ => named(),
    }
}

impl Shown {
    fn json(&self) -> Value {
        json!({ "token": self.text, "logprob": self.probability, "bytes": self.text.as_bytes() })
    }
}

/// Returns the `logprobs` of a chat: `{"content": [...]}`.
pub(super) fn chat(scored: &[Scored]) -> Value {
    let content: Vec<Value> = scored
        .iter()
        .map(|scored| {
            let mut entry = scored.token.json();
            entry["top_logprobs"] = scored.top.iter().map(Shown::json).collect();
            entry
        })
        .collect();
    json!({ "content": content, "refusal": null })
}

/// Returns the most likely tokens and the token itself by their texts; null for a token without a log-probability. Of tokens with the
/// same text, the most likely one is shown, so that the token is the largest entry only if it is the most likely one.
fn beside(Scored { token, top, .. }: &Scored) -> Value {
    if token.probability.is_none() {
        return Value::Null;
    }
    let mut entries = Map::new();
    for shown in top.iter().chain([token]) {
        entries.entry(shown.text.clone()).or_insert_with(|| json!(shown.probability));
    }
    Value::Object(entries)
}

/// Returns the `logprobs` of a completion: lists beside each other.
pub(super) fn completion(scored: &[Scored]) -> Value {
    let tokens: Vec<&str> = scored.iter().map(|scored| scored.token.text.as_str()).collect();
    let probabilities: Vec<Option<f32>> = scored.iter().map(|scored| scored.token.probability).collect();
    let top: Vec<Value> = scored.iter().map(beside).collect();
    let offsets: Vec<usize> = scored.iter().map(|scored| scored.offset).collect();
    json!({ "tokens": tokens, "token_logprobs": probabilities, "top_logprobs": top, "text_offset": offsets })
}
