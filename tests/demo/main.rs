//! `make demo`: trains, evaluates, signs and serves one model on a real cluster, and shows how another one is refused.

mod ask;
mod show;
mod tour;

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    match tour::run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nThe demo stopped: {error}");
            ExitCode::FAILURE
        }
    }
}
