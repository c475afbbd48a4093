//! The `codex` binary.

use std::process::ExitCode;

// Training allocates and frees the same sizes at every step; the system's allocator returns them to the kernel, which costs
// page faults.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    codex::cli::main()
}
