//! Ends the reasoning of a response in time, so that tokens are left for the answer. Pure.
//!
//! When the budget is spent, the tokens that close the reasoning take the place of those that the model would choose; the model sees
//! them and goes on with the answer. When that is depends on the tokens of the response alone, not on other requests.

use std::sync::Arc;

use super::openai::{Markers, Specials, Splitter};
use crate::text::{TextStream, Tokenizer, TokenizerError};

/// Tokens by which reasoning may exceed its budget to complete a character, which has at most four bytes.
const REST: usize = 3;

/// What a server grants to the reasoning of chats and responses.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Granted {
    /// Tokens of reasoning, unless the request says otherwise; `None` for any number.
    pub(super) budget: Option<usize>,
    /// Tokens of each response that are kept for its answer.
    pub(super) reserve: usize,
}

/// When the reasoning of a response ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// The markers around it.
    pub(super) markers: Markers,
    /// Whether the prompt ends in it.
    pub(super) opened: bool,
    /// Tokens between the markers, at most.
    pub(super) budget: Option<usize>,
    /// Tokens of the response after which it is closed in any case.
    pub(super) until: usize,
}

/// Why reasoning was closed: a value of the label `result`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// Its budget was spent.
    Budget,
    /// Only the tokens that are kept for the answer were left.
    Reserve,
}

impl Cause {
    pub(super) const ALL: [Self; 2] = [Self::Budget, Self::Reserve];

    /// Returns the value of the label.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Budget => "budget",
            Self::Reserve => "reserve",
        }
    }
}

/// Follows one response and ends its reasoning in time.
#[derive(Clone, Debug)]
pub(super) struct Thinking {
    bounds: Bounds,
    specials: Arc<Specials>,
    /// The tokens that close the reasoning.
    closing: Arc<[u32]>,
    splitter: Splitter,
    stream: TextStream<'static>,
    /// Tokens of the response so far.
    tokens: usize,
    /// Those of them between the markers.
    spent: usize,
    /// Why the reasoning is being closed, and how many of the closing tokens there are.
    closed: Option<(Cause, usize)>,
}

impl Thinking {
    /// Begins before a response, whose reasoning the tokens of [`closing`] close.
    pub(super) fn new(tokenizer: &Tokenizer, specials: Arc<Specials>, closing: Arc<[u32]>, bounds: Bounds) -> Self {
        let mut thinking = Self {
            bounds,
            specials,
            closing,
            splitter: Splitter::new(bounds.markers, bounds.opened, false),
            stream: tokenizer.clone().into_stream(),
            tokens: 0,
            spent: 0,
            closed: None,
        };
        thinking.closed = thinking.cause().map(|cause| (cause, 0));
        thinking
    }

    /// Returns when the reasoning ends.
    pub(super) fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// Returns the token that must come next. `None` if the model chooses.
    pub(super) fn forced(&self) -> Option<u32> {
        self.closed.and_then(|(_, at)| self.closing.get(at).copied())
    }

    /// Takes the next token of the response. Returns why the reasoning was closed, with the last token that closes it.
    pub(super) fn take(&mut self, id: u32) -> Option<Cause> {
        self.tokens += 1;
        let before = self.splitter.is_reasoning();
        // What cannot be decoded ends the response elsewhere.
        let text = self.specials.text(&mut self.stream, id).unwrap_or_default();
        self.splitter.push(&text);
        if let Some((cause, at)) = &mut self.closed {
            *at += 1;
            return (*at == self.closing.len()).then_some(*cause);
        }
        self.spent += usize::from(before && self.splitter.is_reasoning());
        self.closed = self.cause().map(|cause| (cause, 0));
        None
    }

    /// Returns whether no more reasoning can come.
    pub(super) fn is_over(&self) -> bool {
        !self.splitter.may_reason()
    }

    /// Returns why the reasoning must be closed now, if it must.
    fn cause(&self) -> Option<Cause> {
        if !self.splitter.is_reasoning() {
            return None;
        }
        if self.tokens >= self.bounds.until {
            return Some(Cause::Reserve);
        }
        let budget = self.bounds.budget?;
        let allowed = if self.stream.is_waiting() { budget.saturating_add(REST) } else { budget };
        (self.spent >= allowed).then_some(Cause::Budget)
    }
}

/// Returns the tokens that close reasoning: a line break and the marker.
///
/// # Errors
/// The tokenizer has no tokens for them.
pub(super) fn closing(tokenizer: &Tokenizer, markers: Markers) -> Result<Arc<[u32]>, TokenizerError> {
    let tokens = match tokenizer.id(markers.close) {
        // As text, a special token would be several tokens.
        Some(marker) => [tokenizer.encode_more("\n")?, vec![marker]].concat(),
        None => tokenizer.encode_more(&format!("\n{}", markers.close))?,
    };
    Ok(tokens.into())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const THINK: Markers = Markers::KNOWN[0];

    fn tokenizer(family: &str) -> Tokenizer {
        Tokenizer::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/text/fixtures").join(family)).unwrap()
    }

    /// Lets a model say the tokens of a text, as far as it may, and returns what became of it with the causes.
    fn told(family: &str, text: &str, bounds: Bounds) -> (String, Vec<Cause>) {
        let tokenizer = tokenizer(family);
        let specials = Arc::new(Specials::of(&tokenizer, tokenizer.ends()));
        let closing = closing(&tokenizer, THINK).unwrap();
        let mut thinking = Thinking::new(&tokenizer, Arc::clone(&specials), closing, bounds);
        let (mut stream, mut said, mut causes) = (tokenizer.stream(), String::new(), Vec::new());
        let mut model = tokenizer.encode_more(text).unwrap().into_iter();
        while let Some(id) = thinking.forced().or_else(|| model.next()) {
            causes.extend(thinking.take(id));
            said += &specials.text(&mut stream, id).unwrap();
        }
        assert!(thinking.is_over() || causes.is_empty());
        (said, causes)
    }

    fn bounds(opened: bool, budget: Option<usize>, until: usize) -> Bounds {
        Bounds { markers: THINK, opened, budget, until }
    }

    #[test]
    fn reasoning_is_closed_when_its_budget_is_spent() {
        for family in ["smollm2", "qwen3"] {
            let tokenizer = tokenizer(family);
            let thought = "one two three four five six seven eight";
            let ids = tokenizer.encode_more(thought).unwrap();
            for budget in [0, 1, 3, ids.len() - 1] {
                let (said, causes) = told(family, thought, bounds(true, Some(budget), 1000));
                let kept = tokenizer.decode(&ids[..budget]).unwrap();
                let rest = tokenizer.decode(&ids[budget..]).unwrap();
                assert_eq!(said, format!("{kept}\n</think>{rest}"), "{family} {budget}");
                assert_eq!(causes, [Cause::Budget]);
            }
            // The reserve counts every token of the response.
            let (said, causes) = told(family, thought, bounds(true, Some(7), 2));
            let (kept, rest) = (tokenizer.decode(&ids[..2]).unwrap(), tokenizer.decode(&ids[2..]).unwrap());
            assert_eq!(said, format!("{kept}\n</think>{rest}"), "{family}");
            assert_eq!(causes, [Cause::Reserve]);
            assert_eq!(told(family, thought, bounds(true, None, 2)).1, [Cause::Reserve]);
        }
    }

    #[test]
    fn what_ends_in_time_or_is_no_reasoning_stays_as_it_is() {
        for family in ["smollm2", "qwen3"] {
            for (text, opened) in [
                ("one two</think> three four five six seven", true),
                ("<think>one two</think> three four five six seven", false),
                ("one two three four five six seven", false),
                ("one <think> two three four five six seven", false),
            ] {
                assert_eq!(told(family, text, bounds(opened, Some(12), 1000)), (text.to_owned(), vec![]), "{text}");
            }
        }
        // A marker of the model's own begins the count, and is no part of it.
        let tokenizer = tokenizer("qwen3");
        let ids = tokenizer.encode_more("one two three").unwrap();
        let (said, causes) = told("qwen3", "<think>one two three", bounds(false, Some(1), 1000));
        let (kept, rest) = (tokenizer.decode(&ids[..1]).unwrap(), tokenizer.decode(&ids[1..]).unwrap());
        assert_eq!((said, causes), (format!("<think>{kept}\n</think>{rest}"), vec![Cause::Budget]));
    }

    #[test]
    fn a_character_is_completed() {
        // The bytes of rare characters are tokens of their own.
        let family = "smollm2";
        let text = "\u{10348}\u{10348}\u{10348}";
        let ids = tokenizer(family).encode_more(text).unwrap();
        assert!(ids.len() > 6, "{ids:?}");
        for budget in 1..ids.len() {
            let (said, _) = told(family, text, bounds(true, Some(budget), 1000));
            assert!(!said.contains('\u{fffd}') && said.contains("</think>"), "{budget}: {said:?}");
        }
        // The reserve is not given up for it.
        assert!(told(family, text, bounds(true, Some(1), 1)).0.contains('\u{fffd}'));
    }
}
