//! Reads JSON strictly. No I/O.
//!
//! What serde derives is lenient: a struct is also read from an array, by position, and a variant without data also from an
//! object, as in `{"easy": null}`. Here a struct is read from an object only and such a variant from a string only, at every
//! depth, so that a file that is accepted says what it means. Use these functions for all JSON that another program or a
//! person wrote.
//!
//! Types with `#[serde(flatten)]`, `untagged` or an internal tag buffer what they read, and are strict down to there only.

mod strict;

use serde::de::DeserializeOwned;
use serde_json::{Deserializer, Error, Value};

use strict::Strict;

/// Reads one JSON value from bytes, as [`serde_json::from_slice`] does.
///
/// # Errors
/// When the bytes are not JSON, or not of the type's shape; the error has line and column.
pub fn from_slice<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    let mut json = Deserializer::from_slice(bytes);
    let value = T::deserialize(Strict(&mut json))?;
    json.end()?;
    Ok(value)
}

/// Reads one JSON value from text, as [`serde_json::from_str`] does.
///
/// # Errors
/// As [`from_slice`].
pub fn from_str<T: DeserializeOwned>(text: &str) -> Result<T, Error> {
    from_slice(text.as_bytes())
}

/// Reads a type from a value, as [`serde_json::from_value`] does.
///
/// # Errors
/// When the value does not have the type's shape.
pub fn from_value<T: DeserializeOwned>(value: Value) -> Result<T, Error> {
    T::deserialize(Strict(value))
}

#[cfg(test)]
mod tests;
