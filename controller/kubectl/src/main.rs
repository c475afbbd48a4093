//! The `kubectl-codex` binary. kubectl runs it for `kubectl codex`.

use std::process::ExitCode;

fn main() -> ExitCode {
    codex_kubectl::main()
}
