//! Reads JSON strictly. No I/O.
//!
//! What serde derives is lenient: a struct is also read from an array, by position, and a variant without data also from an
//! object, as in `{"easy": null}`. Here a struct is read from an object only and such a variant from a string only, at every
//! depth, so that a file that is accepted says what it means. Use these functions for all JSON that another program or a
//! person wrote.
//!
//! Errors quote no value, because the file may be another than was meant and hold a token or a key. They name the place, what was
//! expected, and unknown keys.
//!
//! Types with `#[serde(flatten)]`, `untagged` or an internal tag buffer what they read, and are strict down to there only.

mod strict;
mod unquoted;

use serde::de::DeserializeOwned;
use serde_json::{Deserializer, Error, Value};

use strict::Strict;
use unquoted::Unquoted;

/// Reads one JSON value from bytes, as [`serde_json::from_slice`] does. A UTF-8 byte order mark at the beginning is skipped.
///
/// # Errors
/// When the bytes are UTF-16, not JSON, or not of the type's shape; the error has line and column.
pub fn from_slice<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    if [[0xff, 0xfe], [0xfe, 0xff]].iter().any(|mark| bytes.starts_with(mark)) {
        return Err(serde::de::Error::custom("UTF-16 text: save the file as UTF-8"));
    }
    let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes);
    let mut json = Deserializer::from_slice(bytes);
    let value = T::deserialize(Strict(&mut json)).map_err(Unquoted::into_inner)?;
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
    T::deserialize(Strict(value)).map_err(Unquoted::into_inner)
}

#[cfg(test)]
mod tests;
