//! The `codex-cluster` command.

fn main() {}
