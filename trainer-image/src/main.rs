//! codex.
fn main() {}
