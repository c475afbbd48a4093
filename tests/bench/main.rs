//! `make bench`: measures the figures of docs/benchmarks.md on the local cluster and prints one table.

mod figures;
mod operator;
mod programs;

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    match figures::measure().await {
        Ok(figures) => {
            print!("{}", figures::table(&figures));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("\nThe measurement stopped: {error}");
            ExitCode::FAILURE
        }
    }
}
