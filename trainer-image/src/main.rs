//! The `codex` binary.

use std::process::ExitCode;

// Training allocates and frees the same sizes at every step; the system's allocator hands each of them back to the
// kernel and pays for it in page faults.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    codex::cli::main()
}
