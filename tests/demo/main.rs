//! `make demo`: trains, evaluates, signs and serves one model on a real cluster, and shows how others are refused.
//! `make demo-real`: fine-tunes a pretrained model, and evaluates, signs and serves the result.
//! `make dashboards`: draws the dashboards of a namespace while something happens in it.

mod ask;
mod base;
mod guards;
mod pictures;
mod proof;
mod real;
mod show;
mod tour;
mod traffic;

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    let which = std::env::args().nth(1);
    let ended = match which.as_deref() {
        None => tour::run().await,
        Some("real") => real::run().await,
        Some("dashboards") => pictures::run(std::env::args().nth(2)).await,
        Some("model") => base::fetch().map(|model| println!("{}", model.display())),
        Some(other) => {
            eprintln!(
                "`{other}` is not a demo; run codex-demo, codex-demo real, codex-demo dashboards [NAMESPACE], which draws the dashboards \
                 of a namespace, or codex-demo model, which only fetches the model"
            );
            return ExitCode::from(2);
        }
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nThe demo stopped: {error}");
            ExitCode::FAILURE
        }
    }
}
