//! How large grammars of requests may be. Pure.

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
        }
        Grammar::Regex(pattern) => {
            if pattern.is_empty() {
                return Err(GrammarLimit::Empty);
            }
            bytes(pattern.len(), MAX_PATTERN)?;
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
