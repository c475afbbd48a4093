//! Codex library.
