//! Binds one response to a grammar, token by token. Pure.
//!
//! A response may have more than the text that the grammar binds: reasoning at its beginning, and calls of tools. Their markers
//! are compared as bytes, the same that [`Splitter`](crate::serving::openai) looks for in the text.

use std::fmt;

use codex_engine::Sampler;
use llguidance::{
    Matcher,
    toktrie::{SimpleVob, TokEnv, TokTrie},
};

/// The most white space between a closing marker and the answer. It is not shown.
const MAX_SPACES: usize = 16;

/// The markers around a part of a response.
pub(in crate::serving) type Pair = (&'static str, &'static str);

/// The bytes of such markers.
type Marks = (&'static [u8], &'static [u8]);

/// What a response may have beside the text that the grammar binds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::serving) struct Around {
    /// The markers of reasoning, if the model may begin with some.
    pub(in crate::serving) reasoning: Option<Pair>,
    /// Whether the prompt ends with the first of these markers.
    pub(in crate::serving) opened: bool,
    /// The markers of calls, if the model may call tools instead.
    pub(in crate::serving) calls: Option<Pair>,
}

impl Around {
    /// Returns the markers that may come before the answer, that of reasoning only where the response `begins`.
    fn openings(&self, begins: bool) -> [Option<Marks>; 2] {
        let bytes = |(open, close): Pair| (open.as_bytes(), close.as_bytes());
        [self.reasoning.filter(|_| begins).map(bytes), self.calls.map(bytes)]
    }
}

/// Where in the response the next token is.
#[derive(Clone, Debug)]
enum Place {
    /// Before the answer: it may begin, and so may what `Around` names.
    Before {
        /// Bytes of white space since a closing marker; `None` at the beginning of the response.
        spaces: Option<usize>,
    },
    /// In an opening marker.
    Opening {
        /// Its bytes so far. Several markers may begin with them.
        said: Vec<u8>,
        /// Whether it may be that of reasoning.
        begins: bool,
    },
    /// After an opening marker.
    Inside {
        /// The marker that closes the part.
        close: &'static [u8],
        /// What was said last: fewer bytes than the marker has.
        last: Vec<u8>,
    },
    /// In the answer.
    Bound,
}

/// Binds the tokens of one response. A clone shares nothing with it.
pub(in crate::serving) struct Constraint {
    matcher: Matcher,
    vocabulary: TokEnv,
    around: Around,
    place: Place,
    /// Whether a call was completed, so that the response may end without an answer.
    called: bool,
}

impl Clone for Constraint {
    fn clone(&self) -> Self {
        Self {
            // The caches of a plain clone would be shared, and so would the work that a limit allows.
            matcher: self.matcher.deep_clone(),
            vocabulary: self.vocabulary.clone(),
            around: self.around,
            place: self.place.clone(),
            called: self.called,
        }
    }
}

impl fmt::Debug for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Constraint").field("around", &self.around).field("place", &self.place).finish_non_exhaustive()
    }
}

impl Constraint {
    /// Binds a whole response.
    pub(super) fn new(matcher: Matcher, vocabulary: TokEnv) -> Self {
        Self { matcher, vocabulary, around: Around::default(), place: Place::Bound, called: false }
    }

    /// Lets the response have more than the text that the grammar binds. It must be new.
    pub(super) fn around(mut self, around: &Around) -> Self {
        self.around = *around;
        self.place = match around {
            Around { reasoning: Some((_, close)), opened: true, .. } => {
                Place::Inside { close: close.as_bytes(), last: Vec::new() }
            }
            Around { reasoning: None, calls: None, .. } => Place::Bound,
            _ => Place::Before { spaces: None },
        };
        self
    }

    /// Chooses the next token by its logits. Those of tokens that must not come next count as −∞. Returns `None` if none can come
    /// next: the grammar is not complete, and the vocabulary or a limit of the compiler allows no continuation.
    pub(in crate::serving) fn choose(&mut self, sampler: &mut Sampler, logits: &[f32]) -> Option<u32> {
        let vocabulary = self.vocabulary.clone();
        let trie = vocabulary.tok_trie();
        match &mut self.place {
            Place::Bound => {
                let mask = self.matcher.compute_mask().ok()?;
                let token = sampler.choose_allowed(logits, |id| allows(&mask, id))?;
                self.matcher.consume_token(token).ok()?;
                Some(token)
            }
            Place::Before { spaces } => {
                let (spaces, may_end) = (*spaces, self.called);
                let mask = self.matcher.compute_mask().ok()?;
                // Reasoning stands at the beginning.
                let markers = self.around.openings(spaces.is_none());
                let token = sampler.choose_allowed(logits, |id| {
                    let text = said(trie, &self.around, id);
                    allows(&mask, id)
                        || (may_end && trie.eos_tokens().contains(&id))
                        || is_space(text, spaces)
                        || opens(text, &markers)
                })?;
                if allows(&mask, token) {
                    self.matcher.consume_token(token).ok()?;
                    self.place = Place::Bound;
                    return Some(token);
                }
                let text = said(trie, &self.around, token);
                if is_space(text, spaces) {
                    self.place = Place::Before { spaces: spaces.map(|spaces| spaces + text.len()) };
                } else if !text.is_empty() {
                    self.open(text, spaces.is_none());
                }
                Some(token)
            }
            Place::Opening { said: begun, begins } => {
                let (begun, begins) = (std::mem::take(begun), *begins);
                let markers = self.around.openings(begins);
                let whole = |id: u32| [&begun, said(trie, &self.around, id)].concat();
                let goes_on = |id: u32| !said(trie, &self.around, id).is_empty() && opens(&whole(id), &markers);
                let token = sampler.choose_allowed(logits, goes_on)?;
                let text = whole(token);
                self.open(&text, begins);
                Some(token)
            }
            Place::Inside { close, last } => {
                let close = *close;
                let reasons = self.around.reasoning.is_some_and(|(_, it)| it.as_bytes() == close);
                // The answer begins with a token of its own, and reasoning without an answer is no end.
                let stays = |id: u32| {
                    let text = said(trie, &self.around, id);
                    !(reasons && trie.eos_tokens().contains(&id)) && ends_cleanly(last, text, close)
                };
                let mut token = sampler.choose(logits);
                if !stays(token) {
                    token = sampler.choose_allowed(logits, stays)?;
                }
                self.inside(said(trie, &self.around, token));
                Some(token)
            }
        }
    }

    /// Takes a token that was not chosen here, in a part that the grammar does not bind.
    pub(in crate::serving) fn take_inside(&mut self, token: u32) {
        let vocabulary = self.vocabulary.clone();
        self.inside(said(vocabulary.tok_trie(), &self.around, token));
    }

    /// Returns whether the answer is complete and nothing can follow it.
    pub(in crate::serving) fn is_complete(&self) -> bool {
        matches!(self.place, Place::Bound) && self.matcher.is_stopped() && self.matcher.stop_reason().is_ok()
    }

    /// Takes the bytes of an opening marker so far, and what follows it.
    fn open(&mut self, text: &[u8], begins: bool) {
        let markers = self.around.openings(begins);
        let complete = markers.into_iter().flatten().find_map(|(open, close)| Some((text.strip_prefix(open)?, close)));
        match complete {
            Some((more, close)) => {
                self.place = Place::Inside { close, last: Vec::new() };
                self.inside(more);
            }
            None => self.place = Place::Opening { said: text.to_vec(), begins },
        }
    }

    /// Takes a text after an opening marker.
    fn inside(&mut self, text: &[u8]) {
        let Place::Inside { close, last } = &mut self.place else { return };
        last.extend_from_slice(text);
        if let Some(at) = find(last, close) {
            let spaces = Some(last.len() - at - close.len());
            self.called |= self.around.calls.is_some_and(|(_, it)| it.as_bytes() == *close);
            self.place = Place::Before { spaces };
        } else {
            let kept = last.len().min(close.len().saturating_sub(1));
            last.drain(..last.len() - kept);
        }
    }
}

/// Returns the text of a token, as far as it is shown: that of a marker, and none of other special tokens.
fn said<'a>(trie: &'a TokTrie, around: &Around, id: u32) -> &'a [u8] {
    if id as usize >= trie.vocab_size() {
        return &[];
    }
    match trie.token(id) {
        [TokTrie::SPECIAL_TOKEN_MARKER, name @ ..] if !name.is_empty() => {
            let pairs = [around.reasoning, around.calls].into_iter().flatten();
            let is_marker = pairs.flat_map(|(open, close)| [open, close]).any(|marker| marker.as_bytes() == name);
            if is_marker { name } else { &[] }
        }
        text => text,
    }
}

fn allows(mask: &SimpleVob, id: u32) -> bool {
    (id as usize) < mask.len() && mask.is_allowed(id)
}

/// Returns whether a text is white space that may stand after a closing marker.
fn is_space(text: &[u8], spaces: Option<usize>) -> bool {
    let fits = |spaces: usize| spaces + text.len() <= MAX_SPACES;
    !text.is_empty() && text.iter().all(u8::is_ascii_whitespace) && spaces.is_some_and(fits)
}

/// Returns whether a text is the beginning of an opening marker, or begins with one and leaves its part open or ends it cleanly.
fn opens(text: &[u8], markers: &[Option<Marks>]) -> bool {
    let one = |(open, close): &Marks| {
        open.starts_with(text) || text.strip_prefix(*open).is_some_and(|more| ends_cleanly(&[], more, close))
    };
    !text.is_empty() && markers.iter().flatten().any(one)
}

/// Returns whether a text leaves its part open, or ends it with nothing but white space after the marker.
fn ends_cleanly(last: &[u8], text: &[u8], close: &[u8]) -> bool {
    let whole = [last, text].concat();
    find(&whole, close).is_none_or(|at| whole[at + close.len()..].iter().all(u8::is_ascii_whitespace))
}

fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len().max(1)).position(|window| window == part)
}
