//! `make bench`: measures the figures of docs/benchmarks.md on the local cluster and prints one table. `make bench-scale` measures
//! many objects at once, and with `PEER=yes` also Kubeflow Trainer with JobSet.

mod figures;
mod operator;
mod peer;
mod programs;
mod scale;

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let measured = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => figures::measure().await.map(|figures| print!("{}", figures::table(&figures))),
        ["scale", runs] | ["scale", runs, "peer"] => match runs.parse() {
            Ok(runs) => scale(runs, arguments.len() > 2).await,
            Err(_) => return refuse(&format!("`{runs}` is not a number of runs, such as 1000")),
        },
        _ => return refuse("run codex-bench, codex-bench scale RUNS, or codex-bench scale RUNS peer"),
    };
    match measured {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nThe measurement stopped: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Measures many objects, then the same for the peer.
async fn scale(runs: u32, with_peer: bool) -> codex_tests::Result<()> {
    let ours = scale::measure(runs).await?;
    if with_peer {
        print!("{}", figures::comparison(&ours, &peer::measure(runs).await?));
    }
    Ok(())
}

fn refuse(sentence: &str) -> ExitCode {
    eprintln!("{sentence}");
    ExitCode::from(2)
}
