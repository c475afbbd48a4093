//! Numbers in messages. Pure.

pub use codex_provenance::text::counted;
