//! Errors that say what was expected and where, and quote no value: the file may hold a token or a key.

use std::fmt::{self, Display};

use serde::de::{Error, Expected, Unexpected};

/// The longest name of an unknown field that a message shows.
const MAX_NAME: usize = 24;

/// An error of serde without the values that it would quote.
#[derive(Debug)]
pub(crate) struct Unquoted<E>(pub(crate) E);

impl<E> Unquoted<E> {
    /// Returns the error.
    pub(crate) fn into_inner(self) -> E {
        self.0
    }
}

impl<E: Error> Unquoted<E> {
    fn told(text: impl Display) -> Self {
        Self(E::custom(text))
    }
}

impl<E: Error> Error for Unquoted<E> {
    // The text of a type's own error may hold the value.
    fn custom<T: Display>(_: T) -> Self {
        Self::told("invalid value")
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::told(format_args!("invalid type: {}, expected {expected}", kind(found)))
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::told(format_args!("invalid value: {}, expected {expected}", kind(found)))
    }

    fn invalid_length(length: usize, expected: &dyn Expected) -> Self {
        Self(E::invalid_length(length, expected))
    }

    fn unknown_variant(_: &str, expected: &'static [&'static str]) -> Self {
        Self::told(format_args!("unknown name, expected {}", Choice(expected)))
    }

    fn missing_field(field: &'static str) -> Self {
        Self(E::missing_field(field))
    }

    fn duplicate_field(field: &'static str) -> Self {
        Self(E::duplicate_field(field))
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        // The name of a key is no value. What is not like a name may be one.
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        if field.len() <= MAX_NAME && field.bytes().all(is_name) {
            Self::told(format_args!("unknown field `{field}`, expected {}", Choice(expected)))
        } else {
            Self::told(format_args!("unknown field, expected {}", Choice(expected)))
        }
    }
}

impl<E: Display> Display for Unquoted<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<E: std::error::Error> std::error::Error for Unquoted<E> {}

/// Names that are allowed.
struct Choice(&'static [&'static str]);

impl Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [] => f.write_str("none"),
            [one] => write!(f, "`{one}`"),
            [one, other] => write!(f, "`{one}` or `{other}`"),
            names => write!(f, "one of `{}`", names.join("`, `")),
        }
    }
}

/// Returns the kind of a value.
fn kind(found: Unexpected<'_>) -> &'static str {
    match found {
        Unexpected::Bool(_) => "boolean",
        Unexpected::Unsigned(_) | Unexpected::Signed(_) => "integer",
        Unexpected::Float(_) => "floating point number",
        Unexpected::Char(_) | Unexpected::Str(_) => "string",
        Unexpected::Bytes(_) => "bytes",
        Unexpected::Unit => "null",
        Unexpected::Option => "optional value",
        Unexpected::Seq => "sequence",
        Unexpected::Map => "map",
        Unexpected::Enum
        | Unexpected::UnitVariant
        | Unexpected::NewtypeVariant
        | Unexpected::TupleVariant
        | Unexpected::StructVariant => "name",
        Unexpected::NewtypeStruct | Unexpected::Other(_) => "another value",
    }
}
