//! Canonical JSON (RFC 8785), the only form in which this crate hashes or signs values. Pure.

use serde::Serialize;

/// The canonical JSON of a value of this crate.
#[expect(clippy::expect_used, reason = "fails only for floats that are not finite and keys that are no strings")]
pub(crate) fn canonical(value: &impl Serialize) -> Vec<u8> {
    serde_json_canonicalizer::to_vec(value).expect("the values of this crate have string keys and no floats")
}
