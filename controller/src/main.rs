//! The `codex-controller` binary.

use std::process::ExitCode;

use codex_controller::cli::{Cli, run};

/// With the C library's allocator, a quarter of the processor time under load went into allocation.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    run(Cli::read())
}
