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
        ["scale", runs, times] | ["scale", runs, times, "peer"] => match (runs.parse(), times.parse()) {
            (Ok(runs), Ok(times @ 1..)) => scale(runs, times, arguments.len() > 3).await,
            _ => return refuse(&format!("`{runs} {times}` are not two numbers of at least 1, such as 1000 5")),
        },
        _ => return refuse("run codex-bench, codex-bench scale RUNS TIMES, or codex-bench scale RUNS TIMES peer"),
    };
    match measured {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nThe measurement stopped: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Measures many objects, then the same for the peer, so many times in turn. The last table has the smallest, the median and the
/// largest values.
async fn scale(runs: u32, times: u32, with_peer: bool) -> codex_tests::Result<()> {
    let (mut ours, mut peers) = (Vec::new(), Vec::new());
    for time in 1..=times {
        println!("Measurement {time} of {times}.");
        ours.push(scale::measure(runs).await?);
        if with_peer {
            peers.push(peer::measure(runs).await?);
        }
    }
    let ours = figures::spread(&ours);
    if with_peer {
        print!("{}", figures::comparison(&ours, &figures::spread(&peers)));
    } else if times > 1 {
        print!("{}", figures::table(&ours));
    }
    Ok(())
}

fn refuse(sentence: &str) -> ExitCode {
    eprintln!("{sentence}");
    ExitCode::from(2)
}
