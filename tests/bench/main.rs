//! `make bench`: measures the figures of docs/benchmarks.md on the local cluster and prints one table. `make bench-scale` measures
//! many objects at once.

mod figures;
mod operator;
mod programs;
mod scale;

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let measured = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => figures::measure().await,
        ["scale", runs] => match runs.parse() {
            Ok(runs) => scale::measure(runs).await,
            Err(_) => return refuse(&format!("`{runs}` is not a number of runs, such as 1000")),
        },
        _ => return refuse("run codex-bench, or codex-bench scale RUNS"),
    };
    match measured {
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

fn refuse(sentence: &str) -> ExitCode {
    eprintln!("{sentence}");
    ExitCode::from(2)
}
