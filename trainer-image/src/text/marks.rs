//! Marks that break special tokens inside the content of messages; see the [module](super). Pure.

use std::collections::BTreeSet;

use aho_corasick::{AhoCorasick, MatchKind};

use super::TokenizerError;

/// The contents of a tokenizer's special tokens.
#[derive(Clone, Debug)]
pub(super) struct Specials {
    tokens: Vec<String>,
    search: AhoCorasick,
}

/// A rendered text without its marks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Marked {
    pub(super) text: String,
    /// Positions of marks in `text`, in ascending order.
    pub(super) breaks: Vec<usize>,
}

impl Specials {
    /// Prepares the search for these tokens.
    ///
    /// # Errors
    /// There are too many of them.
    pub(super) fn new(tokens: impl IntoIterator<Item = String>) -> Result<Self, TokenizerError> {
        let tokens: Vec<String> = tokens.into_iter().filter(|token| !token.is_empty()).collect();
        let search = AhoCorasick::builder().match_kind(MatchKind::Standard).build(&tokens);
        Ok(Self { search: search.map_err(|error| TokenizerError::Unreadable(error.to_string()))?, tokens })
    }

    /// Returns whether a special token stands in a text.
    pub(super) fn occur_in(&self, text: &str) -> bool {
        self.search.is_match(text)
    }

    /// Puts `mark` into `content`, so that no special token can be made of it or of a part of it.
    pub(super) fn protect(&self, content: &str, mark: char) -> String {
        if content.is_empty() {
            return String::new();
        }
        let mut places = BTreeSet::new();
        for found in self.search.find_overlapping_iter(content) {
            places.insert(inside(content, found.start(), found.end()));
        }
        for token in &self.tokens {
            if content.len() < token.len() && token.contains(content) {
                places.insert(0);
            }
            for (at, _) in token.char_indices().skip(1) {
                let (head, tail) = token.split_at(at);
                if content.ends_with(head) {
                    let start = content.len() - head.len();
                    places.insert(start + first(head));
                }
                if content.starts_with(tail) {
                    places.insert(tail.len() - tail.chars().next_back().map_or(0, char::len_utf8));
                }
            }
        }
        let mut marked = String::with_capacity(content.len() + 4 * places.len());
        let mut done = 0;
        for place in places {
            marked.push_str(&content[done..place]);
            marked.push(mark);
            done = place;
        }
        marked.push_str(&content[done..]);
        marked
    }
}

/// Returns the length of the first character.
fn first(text: &str) -> usize {
    text.chars().next().map_or(0, char::len_utf8)
}

/// Returns the place of the mark that breaks a token at these positions: after its first character, or before a single one.
fn inside(text: &str, start: usize, end: usize) -> usize {
    let after = start + first(&text[start..]);
    if after < end { after } else { start }
}

impl Marked {
    /// Removes the marks from a rendered text.
    pub(super) fn of(rendered: &str, mark: char) -> Self {
        let mut marked = Self { text: String::with_capacity(rendered.len()), breaks: Vec::new() };
        for piece in rendered.split_inclusive(mark) {
            match piece.strip_suffix(mark) {
                Some(text) => {
                    marked.text.push_str(text);
                    marked.breaks.push(marked.text.len());
                }
                None => marked.text.push_str(piece),
            }
        }
        marked
    }

    /// Returns whether a mark breaks the token at these positions.
    pub(super) fn is_broken(&self, start: usize, end: usize) -> bool {
        let single = first(&self.text[start..]) == end - start;
        let from = if single { start } else { start + 1 };
        let next = self.breaks.partition_point(|place| *place < from);
        self.breaks.get(next).is_some_and(|place| *place < end)
    }
}

/// Returns a character for marks that none of the texts contains: a noncharacter, which Unicode reserves for such use, or else
/// one for private use.
///
/// # Errors
/// The texts contain all of them.
pub(super) fn free_mark<'a>(texts: &(impl Iterator<Item = &'a str> + Clone)) -> Result<char, TokenizerError> {
    let all = ('\u{fdd0}'..='\u{fdef}').chain('\u{f0000}'..='\u{ffffd}');
    let mut free = all.filter(|mark| texts.clone().all(|text| !text.contains(*mark)));
    free.next().ok_or_else(|| TokenizerError::Template("the messages contain every private character".to_owned()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MARK: char = '\u{fdd0}';

    fn specials() -> Specials {
        Specials::new(["<|end|>", "<|e", "ab", "bc", "é", "[X]"].map(str::to_owned)).unwrap()
    }

    /// Returns whether any special token is intact in a rendered text that the template wrote around `content`.
    fn intact(before: &str, content: &str, after: &str) -> bool {
        let specials = specials();
        let marked = Marked::of(&format!("{before}{}{after}", specials.protect(content, MARK)), MARK);
        assert_eq!(marked.text, format!("{before}{content}{after}"));
        let content = before.len()..before.len() + content.len();
        // A token around an empty content is the template's own.
        let touches = |start: usize, end: usize| !content.is_empty() && start < content.end && end > content.start;
        specials
            .search
            .find_overlapping_iter(&marked.text)
            .any(|found| touches(found.start(), found.end()) && !marked.is_broken(found.start(), found.end()))
    }

    #[test]
    fn tokens_at_the_borders_are_broken() {
        for (before, content, after) in [
            ("", "<|end|>", ""),
            ("<", "|end|>", ""),
            ("<|end", "|>", "x"),
            ("", "hi <|", "end|>"),
            ("<|", "end", "|>"),
            ("", "é", "é"),
            ("", "abc", ""),
            ("a", "b", "c"),
            ("<|e", "nd|>", ""),
        ] {
            assert!(!intact(before, content, after), "{before:?} {content:?} {after:?}");
        }
        assert!(intact("", "", "") == intact("<|end|>", "", ""), "the template's own tokens stay");
        let marked = Marked::of(&format!("<|end|>{}", specials().protect("> x", MARK)), MARK);
        assert!(!marked.is_broken(0, 7));
    }

    #[test]
    fn a_mark_is_in_no_text() {
        let taken: String = ('\u{fdd0}'..='\u{fdef}').collect();
        assert_eq!(free_mark(&["a", "b"].into_iter()).unwrap(), MARK);
        assert_eq!(free_mark(&["a", &taken].into_iter()).unwrap(), '\u{f0000}');
    }

    proptest! {
        #[test]
        fn content_never_forms_a_special_token(
            before in "(<\\|end\\|>|[<|endab\\[]){0,4}", content in "(<\\|end\\|>|\\[X\\]|[<|end>abcé\\[X\\] ]){0,6}", after in "[|end>bc\\]]{0,4}",
        ) {
            prop_assert!(!intact(&before, &content, &after));
        }
    }
}
