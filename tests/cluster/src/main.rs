//! The `codex-cluster` command: everything it does is in [`codex_cluster::cli`].

fn main() -> std::process::ExitCode {
    codex_cluster::cli::main()
}
