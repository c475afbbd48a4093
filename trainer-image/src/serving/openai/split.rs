//! Takes a response apart as it arrives: reasoning, content, and calls of tools. Pure.
//!
//! Reasoning stands at the beginning, between `<think>` and `</think>` or the markers of the model's template; the template may
//! have written the first marker already. A call is JSON between `<tool_call>` and `</tool_call>`, the form of Hermes and
//! Qwen. What is no valid call is content.

use minijinja::{Value as Any, value::ValueKind};
use serde::Deserialize;

use crate::text::{CALL, CALL_END, TextStream, Tokenizer, TokenizerError};

/// The markers around reasoning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::serving) struct Markers {
    pub(in crate::serving) open: &'static str,
    pub(in crate::serving) close: &'static str,
}

impl Markers {
    /// Those that models are known to have; the first ones are used if a template names none.
    pub(in crate::serving) const KNOWN: [Self; 5] = [
        Self { open: "<think>", close: "</think>" },
        Self { open: "[THINK]", close: "[/THINK]" },
        Self { open: "<thought>", close: "</thought>" },
        Self { open: "<reasoning>", close: "</reasoning>" },
        Self { open: "<seed:think>", close: "</seed:think>" },
    ];

    /// Returns those that stand in the chat template.
    pub(super) fn of(tokenizer: &Tokenizer) -> Option<Self> {
        Self::KNOWN.into_iter().find(|markers| tokenizer.template_has(markers.close))
    }
}

/// The markers around calls.
pub(in crate::serving) const CALLS: (&str, &str) = (CALL, CALL_END);

/// Returns the known markers of reasoning of which this is the first one.
pub(in crate::serving) fn reasoning_markers(open: &str) -> Option<Markers> {
    Markers::KNOWN.into_iter().find(|markers| markers.open == open)
}

/// What tokens are beside the text that decoding returns: nothing if they end a response, and a name if they mark a part of it.
#[derive(Debug)]
pub(in crate::serving) struct Specials {
    ends: Vec<u32>,
    /// Special tokens that are shown as text, because they mark reasoning or calls of tools; decoding leaves them out.
    markers: Vec<(u32, &'static str)>,
}

impl Specials {
    /// Finds the markers of a tokenizer. `ends` end a response.
    pub(in crate::serving) fn of(tokenizer: &Tokenizer, ends: Vec<u32>) -> Self {
        let specials = tokenizer.specials();
        let texts = Markers::KNOWN.into_iter().flat_map(|markers| [markers.open, markers.close]);
        let ids = texts.chain([CALL, CALL_END]).filter_map(|text| Some((tokenizer.id(text)?, text)));
        Self { ends, markers: ids.filter(|(id, _)| specials.contains(id)).collect() }
    }

    /// Returns the text that is complete with the next token of a stream.
    ///
    /// # Errors
    /// When the tokenizer refuses the token.
    pub(in crate::serving) fn text(&self, stream: &mut TextStream<'_>, id: u32) -> Result<String, TokenizerError> {
        if self.ends.contains(&id) {
            return Ok(String::new());
        }
        let mut text = stream.push(id)?;
        text.push_str(self.marker(id).unwrap_or_default());
        Ok(text)
    }

    /// Returns the text of a special token that marks a part of a response.
    fn marker(&self, id: u32) -> Option<&'static str> {
        self.markers.iter().find(|(marker, _)| *marker == id).map(|(_, text)| *text)
    }

    /// Returns whether a prompt ends in reasoning: whether the last marker that opens it has none after it that closes it.
    ///
    /// # Errors
    /// When the tokenizer refuses the prompt.
    pub(super) fn leaves_open(
        &self,
        tokenizer: &Tokenizer,
        prompt: &[u32],
        markers: Markers,
    ) -> Result<bool, TokenizerError> {
        let mut stream = tokenizer.stream();
        let texts = prompt.iter().map(|id| self.text(&mut stream, *id)).collect::<Result<String, _>>()?;
        Ok(texts.rfind(markers.open) > texts.rfind(markers.close))
    }

    /// Returns whether a special token closes reasoning.
    pub(in crate::serving) fn closes_reasoning(&self, id: u32) -> bool {
        self.marker(id).is_some_and(|text| Markers::KNOWN.iter().any(|markers| markers.close == text))
    }
}

/// A part of a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::serving) enum Part {
    /// Text of the reasoning.
    Reasoning(String),
    /// Text of the answer.
    Content(String),
    /// A call of a tool.
    Call(Call),
}

/// A call of a tool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::serving) struct Call {
    pub(super) name: String,
    /// The arguments as a JSON object.
    pub(super) arguments: String,
}

/// Where in the response the text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Before the first visible character.
    Start,
    /// In the reasoning, before its first visible character.
    Opened,
    Reasoning,
    /// After reasoning or a call, before the next visible character.
    Between,
    Content,
    Call,
}

/// Takes one response apart.
#[derive(Clone, Debug)]
pub(in crate::serving) struct Splitter {
    markers: Markers,
    /// Whether calls are looked for.
    tools: bool,
    place: Place,
    /// Text that was not returned, because it may belong to a marker or a call.
    held: String,
    /// White space before the call that `held` may be. It is left out unless the text is no call.
    gap: String,
}

impl Splitter {
    /// Begins before a response. If `opened`, the prompt ended with the first marker of the reasoning.
    pub(in crate::serving) fn new(markers: Markers, opened: bool, tools: bool) -> Self {
        Self {
            markers,
            tools,
            place: if opened { Place::Opened } else { Place::Start },
            held: String::new(),
            gap: String::new(),
        }
    }

    /// Begins inside a call, of which `text` is given.
    pub(super) fn in_call(markers: Markers, text: &str) -> Self {
        Self { markers, tools: true, place: Place::Call, held: text.to_owned(), gap: String::new() }
    }

    /// Returns whether the next token may belong to the reasoning.
    pub(in crate::serving) fn is_reasoning(&self) -> bool {
        matches!(self.place, Place::Opened | Place::Reasoning)
    }

    /// Returns whether the next token may belong to the reasoning or begin it.
    pub(in crate::serving) fn may_reason(&self) -> bool {
        self.is_reasoning() || self.place == Place::Start
    }

    /// Takes the next piece of text and returns the parts that are certain.
    pub(in crate::serving) fn push(&mut self, piece: &str) -> Vec<Part> {
        self.held.push_str(piece);
        let mut parts = Vec::new();
        while self.advance(&mut parts) {}
        parts
    }

    /// Returns what is left at the end of the response.
    pub(super) fn finish(mut self) -> Vec<Part> {
        let held = std::mem::take(&mut self.held);
        let part = match self.place {
            Place::Opened | Place::Between => return Vec::new(),
            Place::Reasoning => Part::Reasoning(held.trim_end().to_owned()),
            Place::Call => call(&held).map_or_else(|| Part::Content(format!("{}{CALL}{held}", self.gap)), Part::Call),
            Place::Start | Place::Content => Part::Content(held),
        };
        match &part {
            Part::Reasoning(text) | Part::Content(text) if text.is_empty() => Vec::new(),
            _ => vec![part],
        }
    }

    /// Takes a step with the held text. Returns whether another one may be possible.
    fn advance(&mut self, parts: &mut Vec<Part>) -> bool {
        match self.place {
            Place::Start => {
                let visible = self.held.trim_start();
                if let Some(rest) = visible.strip_prefix(self.markers.open) {
                    self.held = rest.to_owned();
                    self.place = Place::Opened;
                } else if self.markers.open.starts_with(visible) {
                    return false;
                } else {
                    self.place = Place::Content;
                }
                true
            }
            Place::Reasoning => {
                let close = self.markers.close;
                if let Some(at) = self.held.find(close) {
                    let rest = self.held.split_off(at + close.len());
                    let text = std::mem::replace(&mut self.held, rest);
                    add(parts, Part::Reasoning(text[..at].trim_end().to_owned()));
                    self.place = Place::Between;
                    return true;
                }
                let text = self.release(close, true);
                add(parts, Part::Reasoning(text));
                false
            }
            Place::Opened | Place::Between => {
                self.held = self.held.trim_start().to_owned();
                if self.held.is_empty() {
                    return false;
                }
                self.place = if self.place == Place::Opened { Place::Reasoning } else { Place::Content };
                true
            }
            Place::Content if self.tools => {
                if let Some(at) = self.held.find(CALL) {
                    let rest = self.held.split_off(at + CALL.len());
                    let text = std::mem::replace(&mut self.held, rest);
                    let visible = text[..at].trim_end();
                    text[visible.len()..at].clone_into(&mut self.gap);
                    add(parts, Part::Content(visible.to_owned()));
                    self.place = Place::Call;
                    return true;
                }
                let text = self.release(CALL, true);
                add(parts, Part::Content(text));
                false
            }
            Place::Content => {
                add(parts, Part::Content(std::mem::take(&mut self.held)));
                false
            }
            Place::Call => {
                let Some(at) = self.held.find(CALL_END) else { return false };
                let rest = self.held.split_off(at + CALL_END.len());
                let text = std::mem::replace(&mut self.held, rest);
                if let Some(call) = call(&text[..at]) {
                    parts.push(Part::Call(call));
                    self.place = Place::Between;
                } else {
                    add(parts, Part::Content(format!("{}{CALL}{text}", self.gap)));
                    self.place = Place::Content;
                }
                true
            }
        }
    }

    /// Takes the text that cannot begin `marker`; white space at its end stays, because it is left out before a marker.
    fn release(&mut self, marker: &str, spaces: bool) -> String {
        let begins = |at: usize| marker.starts_with(&self.held[at..]);
        let mut at = self.held.char_indices().map(|(at, _)| at).find(|at| begins(*at)).unwrap_or(self.held.len());
        if spaces {
            at = self.held[..at].trim_end().len();
        }
        let rest = self.held.split_off(at);
        std::mem::replace(&mut self.held, rest)
    }
}

fn add(parts: &mut Vec<Part>, part: Part) {
    match &part {
        Part::Reasoning(text) | Part::Content(text) if text.is_empty() => {}
        _ => parts.push(part),
    }
}

/// Reads a call: `{"name": …, "arguments": {…}}`.
fn call(text: &str) -> Option<Call> {
    #[derive(Deserialize)]
    struct Written {
        name: String,
        // Not a JSON value, which would sort the fields.
        arguments: Option<Any>,
    }
    let Written { name, arguments } = codex_json::from_str(text.trim()).ok()?;
    let arguments = match arguments {
        None => "{}".to_owned(),
        Some(map) if map.kind() == ValueKind::Map => serde_json::to_string(&map).ok()?,
        Some(_) => return None,
    };
    Some(Call { name, arguments })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const THINK: Markers = Markers::KNOWN[0];

    /// Takes a text apart, cut into pieces, and joins parts of the same kind.
    fn split(mut splitter: Splitter, pieces: &[&str]) -> Vec<Part> {
        let mut parts: Vec<Part> = Vec::new();
        let mut pushed: Vec<Part> = pieces.iter().flat_map(|piece| splitter.push(piece)).collect();
        pushed.extend(splitter.finish());
        for part in pushed {
            match (parts.last_mut(), part) {
                (Some(Part::Reasoning(text)), Part::Reasoning(more))
                | (Some(Part::Content(text)), Part::Content(more)) => {
                    text.push_str(&more);
                }
                (_, part) => parts.push(part),
            }
        }
        parts
    }

    fn reasoning(text: &str) -> Part {
        Part::Reasoning(text.to_owned())
    }

    fn content(text: &str) -> Part {
        Part::Content(text.to_owned())
    }

    fn called(name: &str, arguments: &str) -> Part {
        Part::Call(Call { name: name.to_owned(), arguments: arguments.to_owned() })
    }

    #[test]
    fn reasoning_content_and_calls_are_told_apart() {
        let call = "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"b\": 1, \"a\": []}}\n</tool_call>";
        let add = || called("add", "{\"b\":1,\"a\":[]}");
        let two = format!("I add.\n{call}\n{call}");
        let invalid = "<tool_call>{\"name\": 5}</tool_call> then";
        for (text, opened, tools, expected) in [
            ("<think>\nhm\n</think>\n\nyes", false, true, vec![reasoning("hm"), content("yes")]),
            ("hm\n</think>\n\nyes", true, true, vec![reasoning("hm"), content("yes")]),
            ("hm", true, true, vec![reasoning("hm")]),
            ("  yes <think>no</think>", false, true, vec![content("  yes <think>no</think>")]),
            ("<think></think>yes", false, true, vec![content("yes")]),
            ("<thi", false, true, vec![content("<thi")]),
            (&two, false, true, vec![content("I add."), add(), add()]),
            (&two, false, false, vec![content(&two)]),
            ("<tool_call>{\"name\": \"f\"}", false, true, vec![called("f", "{}")]),
            (invalid, false, true, vec![content(invalid)]),
            ("a\n<tool_call>{}</tool_call>", false, true, vec![content("a\n<tool_call>{}</tool_call>")]),
            ("<think>  a", false, true, vec![reasoning("a")]),
            ("<tool_call>{\"name", false, true, vec![content("<tool_call>{\"name")]),
            (
                "<think>a</think><tool_call>{\"name\": \"f\"}</tool_call>",
                false,
                true,
                vec![reasoning("a"), called("f", "{}")],
            ),
        ] {
            for size in [1, 3, 1000] {
                let characters: Vec<char> = text.chars().collect();
                let pieces: Vec<String> = characters.chunks(size).map(|chunk| chunk.iter().collect()).collect();
                let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
                assert_eq!(split(Splitter::new(THINK, opened, tools), &pieces), expected, "{text:?} by {size}");
            }
        }
        let forced = Splitter::in_call(THINK, "{\"name\": \"f\", \"arguments\": ");
        assert_eq!(split(forced, &["{}}", "\n</tool_call>"]), [called("f", "{}")]);
    }

    #[test]
    fn reasoning_is_counted_by_where_the_text_is() {
        let mut splitter = Splitter::new(THINK, false, false);
        let mut places = Vec::new();
        for piece in ["<think>", "a", "b", "</think>", "c"] {
            splitter.push(piece);
            places.push(splitter.is_reasoning());
        }
        assert_eq!(places, [true, true, true, false, false]);
    }

    proptest! {
        /// However a text is cut, its parts are the same, and text without markers is content.
        #[test]
        fn parts_do_not_depend_on_the_pieces(
            pieces in prop::collection::vec("(<think>|</think>|<tool_call>|</tool_call>|\\{\"name\": \"f\"\\}|[a <\n]{0,3})", 0..10),
            opened: bool, tools: bool,
        ) {
            let whole = pieces.concat();
            let at_once = split(Splitter::new(THINK, opened, tools), &[&whole]);
            let cut: Vec<&str> = pieces.iter().map(String::as_str).collect();
            prop_assert_eq!(&split(Splitter::new(THINK, opened, tools), &cut), &at_once);
            if !opened && !whole.contains('<') {
                let expected = if whole.is_empty() { Vec::new() } else { vec![content(&whole)] };
                prop_assert_eq!(at_once, expected);
            }
        }
    }
}
