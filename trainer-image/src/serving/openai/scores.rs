//! Log-probabilities of tokens in the shapes of OpenAI's API. Pure.

use codex_engine::LogProbabilities;
use serde_json::{Value, json};

use crate::text::Tokenizer;

/// The least log-probability that is shown; JSON has no infinity.
const LEAST: f32 = -9999.0;

/// A token with its log-probabilities.
#[derive(Clone, Debug)]
pub(super) struct Scored {
    pub(super) token: Shown,
    pub(super) top: Vec<Shown>,
    /// The number of characters of the response before the token.
    pub(super) offset: usize,
}

/// A token as it is shown.
#[derive(Clone, Debug)]
pub(super) struct Shown {
    text: String,
    probability: f32,
}

impl Scored {
    pub(super) fn new(tokenizer: &Tokenizer, id: u32, scores: &LogProbabilities, offset: usize) -> Self {
        let shown =
            |id: u32, probability: f32| Shown { text: text(tokenizer, id), probability: probability.max(LEAST) };
        let top = scores.top.iter().map(|(id, probability)| shown(*id, *probability)).collect();
        Self { token: shown(id, scores.chosen), top, offset }
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

/// Returns the `logprobs` of a completion: lists beside each other.
pub(super) fn completion(scored: &[Scored]) -> Value {
    let tokens: Vec<&str> = scored.iter().map(|scored| scored.token.text.as_str()).collect();
    let probabilities: Vec<f32> = scored.iter().map(|scored| scored.token.probability).collect();
    let top: Vec<Value> = scored
        .iter()
        .map(|scored| {
            let pairs =
                scored.top.iter().chain([&scored.token]).map(|shown| (shown.text.clone(), json!(shown.probability)));
            Value::Object(pairs.collect())
        })
        .collect();
    let offsets: Vec<usize> = scored.iter().map(|scored| scored.offset).collect();
    json!({ "tokens": tokens, "token_logprobs": probabilities, "top_logprobs": top, "text_offset": offsets })
}
