//! The `codex-controller` binary.

use std::process::ExitCode;

use codex_controller::cli::{Cli, run};

fn main() -> ExitCode {
    run(Cli::read())
}
