//! How large grammars of requests may be. Pure.
//!
//! Nested repetitions are the dangerous part: the compiler writes them out when a token may first begin them, which its own limits
//! do not bound. With 10,000 characters that takes 20 to 130 ms, with a million 3 to 5 s, during which no other request runs.

use regex_syntax::hir::{Hir, HirKind};
use serde_json::Value;

use super::Grammar;

/// The most bytes of a schema or a grammar.
const MAX_BYTES: usize = 128 << 10;
/// The most bytes of a regular expression.
const MAX_PATTERN: usize = 8 << 10;
/// The most lines of a grammar: rules that name each other are compiled recursively.
const MAX_LINES: usize = 1000;
/// The most opening brackets of a grammar, which bounds how many are inside each other.
const MAX_BRACKETS: usize = 4000;
/// The most objects and lists of a schema inside each other.
const MAX_DEPTH: usize = 64;
/// The most texts of a choice.
const MAX_TEXTS: usize = 1000;
/// The longest regular expression with its repetitions written out, and the largest product of the repetitions of a grammar.
const MAX_REPEATED: u64 = 10_000;
/// The longest expressions of a schema together, written out.
const MAX_REPEATED_TOGETHER: u64 = 100_000;
/// The most symbols of a compiled grammar.
pub(super) const GRAMMAR_SYMBOLS: usize = 200_000;
/// The most states of the lexer of one response, each of 1 to 2 kB.
pub(super) const LEXER_STATES: usize = 20_000;

/// A grammar exceeds a limit or is no grammar.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::serving) enum GrammarLimit {
    /// It has too many bytes.
    #[error("{found} bytes: send at most {most}")]
    Bytes {
        /// Those that it has.
        found: usize,
        /// The limit.
        most: usize,
    },
    /// It has too many lines.
    #[error("{0} lines: send at most {MAX_LINES}")]
    Lines(usize),
    /// It has too many brackets.
    #[error("{0} opening brackets: send at most {MAX_BRACKETS}")]
    Brackets(usize),
    /// Repetitions that are too long when they are written out.
    #[error("its repetitions stand for {0} characters: at most {MAX_REPEATED}; use smaller counts, + or *")]
    Repeated(u64),
    /// It is nested too deeply.
    #[error("it is nested more than {MAX_DEPTH} levels deep")]
    Depth,
    /// It has too many texts, or none.
    #[error("{0} texts: send 1 to {MAX_TEXTS}")]
    Texts(usize),
    /// A text is empty.
    #[error("a text is empty: remove it")]
    Empty,
    /// A schema is no object.
    #[error("send a JSON Schema, which is an object")]
    NoObject,
    /// A schema has an option of the compiler.
    #[error("x-guidance is not supported: remove it")]
    Options,
}

/// Returns a grammar that keeps to the limits.
///
/// # Errors
/// It exceeds one.
pub(in crate::serving) fn checked(grammar: Grammar) -> Result<Grammar, GrammarLimit> {
    let bytes =
        |found: usize, most: usize| if found > most { Err(GrammarLimit::Bytes { found, most }) } else { Ok(()) };
    match &grammar {
        Grammar::Json(schema) | Grammar::Arguments(schema) => {
            let fields = schema.as_object().ok_or(GrammarLimit::NoObject)?;
            if fields.contains_key("x-guidance") {
                return Err(GrammarLimit::Options);
            }
            if depth(schema) > MAX_DEPTH {
                return Err(GrammarLimit::Depth);
            }
            bytes(schema.to_string().len(), MAX_BYTES)?;
            let mut patterns = Vec::new();
            patterns_of(schema, &mut patterns);
            let lengths: Vec<u64> = patterns.into_iter().map(written_out).collect();
            let longest = lengths.iter().copied().max().unwrap_or_default();
            let together = lengths.into_iter().fold(0, u64::saturating_add);
            if longest > MAX_REPEATED || together > MAX_REPEATED_TOGETHER {
                return Err(GrammarLimit::Repeated(longest.max(together)));
            }
        }
        Grammar::Regex(pattern) => {
            if pattern.is_empty() {
                return Err(GrammarLimit::Empty);
            }
            bytes(pattern.len(), MAX_PATTERN)?;
            let length = written_out(pattern);
            if length > MAX_REPEATED {
                return Err(GrammarLimit::Repeated(length));
            }
        }
        Grammar::Choice(texts) => {
            if !(1..=MAX_TEXTS).contains(&texts.len()) {
                return Err(GrammarLimit::Texts(texts.len()));
            }
            if texts.iter().any(String::is_empty) {
                return Err(GrammarLimit::Empty);
            }
            bytes(texts.iter().map(String::len).sum(), MAX_BYTES)?;
        }
        Grammar::Lark(text) => {
            if text.trim().is_empty() {
                return Err(GrammarLimit::Empty);
            }
            bytes(text.len(), MAX_BYTES)?;
            let lines = text.lines().count();
            if lines > MAX_LINES {
                return Err(GrammarLimit::Lines(lines));
            }
            let brackets = text.matches(['(', '[', '{']).count();
            if brackets > MAX_BRACKETS {
                return Err(GrammarLimit::Brackets(brackets));
            }
            // Rules may nest what stands side by side.
            let product = counts(text);
            if product > MAX_REPEATED {
                return Err(GrammarLimit::Repeated(product));
            }
        }
    }
    Ok(grammar)
}

/// Returns how many objects and lists are inside each other. A body is read with at most 128, so that the recursion is bounded.
fn depth(value: &Value) -> usize {
    match value {
        Value::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or_default(),
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or_default(),
        _ => 0,
    }
}

/// Collects the regular expressions of a schema.
fn patterns_of<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match (name.as_str(), value) {
                    ("pattern", Value::String(pattern)) => found.push(pattern),
                    ("patternProperties", Value::Object(all)) => found.extend(all.keys().map(String::as_str)),
                    _ => {}
                }
                patterns_of(value, found);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| patterns_of(item, found)),
        _ => {}
    }
}

/// Returns the length of a regular expression with its repetitions written out; 0 for an invalid one, which the compiler refuses.
fn written_out(pattern: &str) -> u64 {
    fn length(hir: &Hir) -> u64 {
        match hir.kind() {
            HirKind::Empty | HirKind::Look(_) => 0,
            HirKind::Literal(literal) => literal.0.len() as u64,
            HirKind::Class(_) => 1,
            HirKind::Repetition(repeated) => {
                let times = repeated.max.unwrap_or(repeated.min).max(1);
                u64::from(times).saturating_mul(length(&repeated.sub))
            }
            HirKind::Capture(group) => length(&group.sub),
            HirKind::Concat(parts) | HirKind::Alternation(parts) => {
                parts.iter().map(length).fold(0, u64::saturating_add)
            }
        }
    }
    regex_syntax::parse(pattern).map_or(0, |hir| length(&hir))
}

/// Returns the product of all repetitions of a grammar, such as `{3}`, `{1,3}` and `~1..3`.
fn counts(text: &str) -> u64 {
    let one = |part: &str| {
        let end = part.find(|it: char| !it.is_ascii_digit() && !matches!(it, ' ' | ',' | '.')).unwrap_or(part.len());
        let numbers = part[..end].split(|it: char| !it.is_ascii_digit()).filter(|digits| !digits.is_empty());
        numbers.map(|digits| digits.parse::<u64>().unwrap_or(u64::MAX)).max().unwrap_or(1).max(1)
    };
    text.split(['{', '~']).skip(1).map(one).fold(1, u64::saturating_mul)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn repetitions_are_written_out() {
        for (pattern, expected) in [
            ("abc", 3),
            ("^[a-z]{3}$", 3),
            ("(ab{10}){10,20}", 220),
            ("a{5,}b*c+", 7),
            ("(a|bc){2}", 6),
            ("(a{1000}){1000}", 1_000_000),
            ("((((a{1000}){1000}){1000}){1000}){1000000}", u64::MAX),
            ("(", 0),
        ] {
            let found = written_out(pattern);
            assert!(found == expected || (expected == u64::MAX && found > 1 << 50), "{pattern}: {found}");
        }
        for (grammar, expected) in [
            ("start: \"a\"", 1),
            ("start: x{3} y~2..4 /[0-9]{1,5}/", 60),
            ("start: X{300}\nX: \"a\"{300}", 90_000),
            ("start: %json {\"maxLength\": 500}", 1),
            ("start: x{99999999999999999999999}", u64::MAX),
        ] {
            assert_eq!(counts(grammar), expected, "{grammar}");
        }
    }

    #[test]
    fn long_repetitions_are_refused_wherever_they_stand() {
        let bomb = "(a{1000}){1000}";
        for grammar in [
            Grammar::Regex(bomb.to_owned()),
            Grammar::Json(json!({ "type": "string", "pattern": bomb })),
            Grammar::Json(json!({ "$defs": { "a": { "items": [{ "pattern": bomb }] } } })),
            Grammar::Arguments(json!({ "patternProperties": { bomb: {} } })),
            Grammar::Lark("start: X\nX: Y{1000}\nY: \"a\"{1000}\n".to_owned()),
        ] {
            assert_eq!(checked(grammar.clone()), Err(GrammarLimit::Repeated(1_000_000)), "{grammar:?}");
        }
        let many: Vec<Value> = (0..30).map(|n| json!({ "pattern": format!("^{n}a{{5000}}$") })).collect();
        assert!(matches!(checked(Grammar::Json(json!({ "anyOf": many }))), Err(GrammarLimit::Repeated(150_000..))));
        // A property may have the name.
        let named = json!({ "properties": { "pattern": { "type": "string", "maxLength": 1_000_000 } } });
        assert!(checked(Grammar::Json(named)).is_ok());
        assert!(checked(Grammar::Regex("(a{100}){100}".to_owned())).is_ok());
    }
}
