//! Canonical JSON (RFC 8785), the form in which this crate hashes and signs values. Pure.

use serde::Serialize;

/// Returns the canonical JSON of a value of this crate.
#[expect(clippy::expect_used, reason = "fails only for non-finite floats and for keys that are not strings")]
pub(crate) fn canonical(value: &impl Serialize) -> Vec<u8> {
    serde_json_canonicalizer::to_vec(value).expect("the values of this crate have string keys and no floats")
}
