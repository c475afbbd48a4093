//! The `codex-tools` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    codex_tools::cli::main()
}
