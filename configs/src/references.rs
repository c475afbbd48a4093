//! References in values: `${key}` and `${oc.env:NAME,default}`. Pure; variables come from the caller.

use std::fmt;

/// The environment variables that a configuration may read, and only on a command line.
pub const VARIABLES: &[&str] = &[
    "CODEX_BATCH_SIZE",
    "CODEX_DEVICE",
    "CODEX_DTYPE",
    "CODEX_MAX_STEPS",
    "CODEX_OWNER",
    "HOSTNAME",
    "LOGNAME",
    "USER",
];

/// Returns the value of a variable by its name.
type Read<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The variables that a configuration may read. The controller has none.
#[derive(Clone, Copy, Default)]
pub struct Environment<'a>(Option<Read<'a>>);

impl<'a> Environment<'a> {
    /// No variables: a reference to one is an error.
    pub const ABSENT: Self = Self(None);

    /// The variables of a command line. `read` returns the value of a variable by its name.
    pub fn of(read: &'a dyn Fn(&str) -> Option<String>) -> Self {
        Self(Some(read))
    }

    /// Returns the value of a variable, which is not empty.
    ///
    /// # Errors
    /// What is wrong, as the end of a sentence.
    pub(crate) fn get(self, name: &str) -> Result<Option<String>, String> {
        let Some(read) = self.0 else {
            let why = "environment variables are read on the command line only, because the controller and its pods have others; \
                       write the value itself";
            return Err(why.to_owned());
        };
        if !VARIABLES.contains(&name) {
            return Err(format!("the variable {name} cannot be read; use one of {}", VARIABLES.join(", ")));
        }
        Ok(read(name).filter(|value| !value.is_empty()))
    }
}

impl fmt::Debug for Environment<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Environment" } else { "Environment::ABSENT" })
    }
}

/// A piece of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Piece<'a> {
    /// Text that stands for itself.
    Text(&'a str),
    /// What stands between `${` and `}`.
    Reference(Reference<'a>),
}

/// A reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reference<'a> {
    /// The value of another key.
    Key(&'a str),
    /// An environment variable, with the text that replaces a missing one.
    Variable {
        /// Its name.
        name: &'a str,
        /// The text that replaces it.
        default: Option<&'a str>,
    },
    /// A resolver that does not exist, by its name.
    Resolver(&'a str),
}

/// The most characters of a reference.
const MAX_REFERENCE: usize = 1024;

/// Returns the text between `${` at the beginning of `text` and the brace that closes it, if it looks like a reference: its first
/// character is a letter or `_`. So `${2}` in a regular expression is not taken for a reference.
fn inside(text: &str) -> Option<&str> {
    let rest = text.strip_prefix("${")?;
    if !rest.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_') {
        return None;
    }
    let mut depth = 1;
    for (at, character) in rest.char_indices().take(MAX_REFERENCE) {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(&rest[..at]);
        }
    }
    None
}

/// Splits a text into pieces; a text without references is one piece. `\${` before a name stands for `${`.
pub(crate) fn pieces(text: &str) -> Vec<Piece<'_>> {
    let (mut pieces, mut from, mut at) = (Vec::new(), 0, 0);
    while let Some(found) = text[at..].find("${").map(|found| at + found) {
        let Some(inner) = inside(&text[found..]) else {
            at = found + 2;
            continue;
        };
        if text[..found].ends_with('\\') {
            pieces.push(Piece::Text(&text[from..found - 1]));
            (from, at) = (found, found + 2);
            continue;
        }
        pieces.push(Piece::Text(&text[from..found]));
        pieces.push(Piece::Reference(reference(inner)));
        // The brace that closes it is one byte.
        at = found + 2 + inner.len() + 1;
        from = at;
    }
    pieces.push(Piece::Text(&text[from..]));
    pieces.retain(|piece| *piece != Piece::Text(""));
    pieces
}

fn reference(inner: &str) -> Reference<'_> {
    match inner.split_once(':') {
        None => Reference::Key(inner.trim()),
        Some(("oc.env", rest)) => match rest.split_once(',') {
            None => Reference::Variable { name: rest.trim(), default: None },
            Some((name, default)) => Reference::Variable { name: name.trim(), default: Some(default.trim()) },
        },
        Some((resolver, _)) => Reference::Resolver(resolver.trim()),
    }
}

/// Whether a text is other than what it says: it has a reference, or one that is escaped.
pub(crate) fn refers(text: &str) -> bool {
    !text.is_empty() && pieces(text) != [Piece::Text(text)]
}
