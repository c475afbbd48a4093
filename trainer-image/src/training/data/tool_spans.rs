//! Tokens of tool calls: those between `<tool_call>` and `</tool_call>`, as the templates of Qwen and Hermes write them. Pure.
//!
//! The markers are found in the text of the tokens, so it does not matter how the tokenizer cuts them.

use std::collections::BTreeSet;

use codex_engine::Packed;

use crate::text::{CALL, CALL_END, Tokenizer};

/// Finds the tokens of tool calls.
#[derive(Clone, Debug)]
pub(crate) struct ToolSpans {
    /// The text of each token.
    pieces: Vec<Box<str>>,
    /// Weight of the tokens of tool calls in the loss; `None` if they count as all others do.
    weight: Option<f64>,
}

/// The tool calls of a sequence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ToolCalls {
    /// Whether each token is of a call, its markers included.
    pub(crate) tokens: Vec<bool>,
    /// The tool of the first call, if its JSON names one.
    pub(crate) called: Option<String>,
}

impl ToolSpans {
    /// Returns what finds the tokens of tool calls in the ids of a tokenizer.
    pub(super) fn new(tokenizer: &Tokenizer, weight: Option<f64>) -> Self {
        // A marker may be a special token, which decoding leaves out.
        let piece = |id: u32| {
            let text = tokenizer.decode(&[id]).ok().filter(|text| !text.is_empty());
            text.or_else(|| tokenizer.token(id)).unwrap_or_default().into_boxed_str()
        };
        Self { pieces: (0..tokenizer.vocabulary() as u32).map(piece).collect(), weight }
    }

    /// Returns the tool calls that begin where `is_written` holds: what a prompt shows is no call.
    pub(crate) fn of(&self, ids: &[u32], is_written: impl Fn(usize) -> bool) -> ToolCalls {
        let (mut text, mut ends) = (String::new(), Vec::with_capacity(ids.len()));
        for id in ids {
            text.push_str(self.pieces.get(*id as usize).map_or("", |piece| piece));
            ends.push(text.len());
        }
        let (mut calls, mut from) = (ToolCalls { tokens: vec![false; ids.len()], called: None }, 0);
        while let Some(at) = text[from..].find(CALL) {
            let begin = from + at;
            let inner = begin + CALL.len();
            if !is_written(ends.partition_point(|end| *end <= begin)) {
                from = inner;
                continue;
            }
            // A call that is cut off goes on to the end.
            let (inner_end, end) = match text[inner..].find(CALL_END) {
                Some(length) => (inner + length, inner + length + CALL_END.len()),
                None => (text.len(), text.len()),
            };
            let mut start = 0;
            for (token, stop) in calls.tokens.iter_mut().zip(&ends) {
                *token |= start < end && *stop > begin && *stop > start;
                start = *stop;
            }
            if calls.called.is_none() {
                let call: Option<serde_json::Value> = serde_json::from_str(text[inner..inner_end].trim()).ok();
                calls.called = call.and_then(|call| Some(call.get("name")?.as_str()?.to_owned()));
            }
            from = end;
        }
        calls
    }

    /// Returns the weight of each target of a batch; `None` if all weigh the same.
    pub(crate) fn weights(&self, batch: &Packed) -> Option<Vec<f64>> {
        let weight = self.weight?;
        let mut weights = Vec::with_capacity(batch.targets.len());
        let mut targets = batch.targets.iter().peekable();
        for bounds in batch.cu_seqlens.windows(2) {
            let own: Vec<_> = std::iter::from_fn(|| targets.next_if(|target| target.row < bounds[1])).collect();
            let mut ids = batch.tokens[bounds[0]..bounds[1]].to_vec();
            // The last token of a sequence predicts nothing, so it is a target only.
            ids.extend(own.last().filter(|target| target.row + 1 == bounds[1]).map(|target| target.id));
            let written: BTreeSet<usize> = own.iter().map(|target| target.row + 1 - bounds[0]).collect();
            let calls = self.of(&ids, |at| written.contains(&at)).tokens;
            let is_call = |row: usize| calls.get(row + 1 - bounds[0]).copied().unwrap_or_default();
            weights.extend(own.iter().map(|target| if is_call(target.row) { weight } else { 1.0 }));
        }
        Some(weights)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALL: &str = r#"<tool_call>{"name": "calculator", "arguments": {"x": "1+2"}}</tool_call>"#;

    fn spans(weight: Option<f64>) -> (Tokenizer, ToolSpans) {
        let tokenizer = Tokenizer::characters().unwrap();
        let spans = ToolSpans::new(&tokenizer, weight);
        (tokenizer, spans)
    }

    #[test]
    fn calls_are_found_with_their_markers_and_the_first_tool_is_named() {
        let (tokenizer, spans) = spans(None);
        let other = r#"<tool_call>{"name": "browser"}</tool_call>"#;
        let text = format!("so {CALL} is 3; {other}.");
        let calls = spans.of(&tokenizer.encode(&text).unwrap(), |_| true);
        let marked: String = text.chars().zip(&calls.tokens).filter(|(_, is)| **is).map(|(c, _)| c).collect();
        assert_eq!(marked, format!("{CALL}{other}"));
        assert_eq!(calls.called.as_deref(), Some("calculator"));
        for (text, marked, called) in [
            ("no call", 0, None),
            ("a <tool_call>{\"name\": \"bro", 24, None),
            ("<tool_call>plain</tool_call>", 28, None),
            ("</tool_call> alone", 0, None),
            ("<tool_call> {\"name\": \"b\"} </tool_call>", 38, Some("b")),
        ] {
            let calls = spans.of(&tokenizer.encode(text).unwrap(), |_| true);
            let found = calls.tokens.iter().filter(|is| **is).count();
            assert_eq!((found, calls.called.as_deref()), (marked, called), "{text}");
        }
        assert_eq!(spans.of(&[], |_| true), ToolCalls::default());
        // A prompt speaks of the marker and shows an earlier call.
        let prompt = format!("what is <tool_call>? {CALL} was 3. ");
        let shown = prompt.chars().count();
        let calls = spans.of(&tokenizer.encode(&format!("{prompt}{other}")).unwrap(), |at| at >= shown);
        assert_eq!(calls.called.as_deref(), Some("browser"));
        assert_eq!(calls.tokens.iter().filter(|is| **is).count(), other.len());
    }

    #[test]
    fn targets_of_calls_have_their_weight() {
        let (tokenizer, spans) = spans(Some(2.5));
        let encode = |text: &str| tokenizer.encode(text).unwrap();
        let sequences = [encode("q: 7$"), encode(&format!("q:a{CALL}b")), encode(&format!("q:{CALL}"))];
        let batch = Packed::new(sequences.iter().map(|ids| (ids.as_slice(), 2)));
        let weights = spans.weights(&batch).unwrap();
        let sums: f64 = weights.iter().sum();
        let length = CALL.len() as f64;
        assert_eq!(weights.len(), batch.targets.len());
        assert!((sums - (3.0 + 2.0 + 2.0 * 2.5 * length)).abs() < 1e-9, "{sums}");
        assert!(weights[..4].iter().all(|weight| *weight < 1.5) && weights[4] > 2.0);
        // What the prompt calls is no target.
        let prompt = encode(&format!("{CALL}:ok"));
        let batch = Packed::new([(prompt.as_slice(), CALL.len() + 1)]);
        assert_eq!(spans.weights(&batch).unwrap(), [1.0, 1.0]);
        assert_eq!(ToolSpans::new(&tokenizer, None).weights(&batch), None);
    }
}
