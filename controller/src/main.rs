//! The `codex-controller` binary.

use std::process::ExitCode;

use codex_controller::cli::{Cli, run};

/// The C library's allocator keeps much of what the caches have released.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    run(Cli::read())
}
