//! `make chaos`: lets faults happen to the local cluster while runs train, evaluations score and servers serve, and checks that
//! nothing is lost, doubled, stuck or signed twice. [`plan`] says which faults happen when, as a function of a seed;
//! [`invariants`] lists what must hold.

mod end;
mod faults;
mod invariants;
mod lies;
mod observe;
mod plan;
mod proxy;
mod relay;
mod scene;
mod volume;
mod workload;

use std::{
    collections::{BTreeMap, BTreeSet},
    panic::{AssertUnwindSafe, resume_unwind},
    process::ExitCode,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use clap::Parser;
use codex_tests::{Error, Result, Team};
use futures::FutureExt as _;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant, sleep},
};

use crate::{
    faults::Outcome,
    observe::{Shared, lock},
    plan::{Fault, Plan},
    scene::Scene,
    workload::Workload,
};

/// Lets faults happen to the local cluster, and checks what must hold.
#[derive(Debug, Parser)]
#[command(name = "codex-chaos")]
struct Options {
    /// Chooses the faults, their order, durations and targets. A new one by default.
    #[arg(long)]
    seed: Option<u64>,
    /// How long faults happen. The last one begins before the end of this time.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    minutes: u64,
    /// The kinds of fault, separated by commas; all by default.
    #[arg(long, value_delimiter = ',', value_parser = Fault::parse)]
    faults: Vec<Fault>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let seed = options.seed.unwrap_or(now.as_secs() % 1_000_000);
    let kinds = if options.faults.is_empty() { Fault::ALL.to_vec() } else { options.faults };
    let all = if kinds.len() == Fault::ALL.len() { String::new() } else { names(&kinds) };
    let again = format!("make chaos SEED={seed} MINUTES={}{all}", options.minutes);
    println!("Faults happen for {} minutes. The same ones again: {again}", options.minutes);
    match Box::pin(run(seed, options.minutes, kinds)).await {
        Ok(violations) if violations.is_empty() => {
            println!("\nEvery invariant held. The same faults again: {again}");
            ExitCode::SUCCESS
        }
        Ok(violations) => {
            eprintln!("\nViolated ({}):", violations.len());
            for violation in violations {
                eprintln!("  - {violation}");
            }
            eprintln!("The same faults again: {again}");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("\nThe run stopped: {error}\nThe same faults again: {again}");
            ExitCode::FAILURE
        }
    }
}

fn names(kinds: &[Fault]) -> String {
    let names: Vec<_> = kinds.iter().map(|kind| kind.name()).collect();
    format!(" FAULTS={}", names.join(","))
}

/// Runs the faults of a seed, and returns the violated invariants.
async fn run(seed: u64, minutes: u64, kinds: Vec<Fault>) -> Result<Vec<String>> {
    // From here on a signal does not end the process, because everything has to be put back.
    let mut signals = Signals::new()?;
    scene::continue_all()?;
    let team = Team::alone("chaos").await?;
    let witness = Shared::default();
    let watching = observe::begin(&team, &witness)?;
    let scene = Scene::prepare(team, seed, &witness).await?;
    let workload = Workload::default();
    let acted = AssertUnwindSafe(async {
        tokio::select! {
            acted = act(&scene, &workload, (seed, kinds), Duration::from_secs(60 * minutes)) => acted,
            name = signals.next() => Err(Error::Impossible {
                what: "the faults of the seed happen".to_owned(),
                why: format!("{name} stopped them"),
                state: "everything is put back".to_owned(),
            }),
        }
    });
    let acted = Box::pin(acted.catch_unwind()).await;
    // The last lines of the audit log.
    sleep(Duration::from_secs(2)).await;
    drop(watching);
    let violations = lock(&witness).violations();
    if !matches!(acted, Ok(Ok(()))) || !violations.is_empty() {
        scene.team.tell();
    }
    let restored = scene.restore().await;
    acted.unwrap_or_else(|panic| resume_unwind(panic))?;
    restored?;
    Ok(violations)
}

async fn act(scene: &Scene, workload: &Workload, plan: (u64, Vec<Fault>), lasts: Duration) -> Result<()> {
    scene.redirect().await?;
    let faults = async {
        let told = disturb(scene, plan, lasts).await;
        workload.stop();
        told
    };
    tokio::try_join!(workload.run(&scene.team, &scene.witness), faults)?;
    end::check(scene, workload).await
}

/// Lets the faults of a seed happen, one after another.
async fn disturb(scene: &Scene, (seed, kinds): (u64, Vec<Fault>), lasts: Duration) -> Result<()> {
    let (end, mut told) = (Instant::now() + lasts, BTreeSet::new());
    let mut counts: BTreeMap<Fault, Count> = kinds.iter().map(|kind| (*kind, Count::default())).collect();
    for planned in Plan::new(seed, kinds) {
        if Instant::now() >= end {
            break;
        }
        println!("{planned}");
        let count = counts.entry(planned.fault).or_default();
        match scene.inject(&planned).await? {
            Outcome::Done(met) => {
                count.happened += 1;
                println!("  {met}");
            }
            Outcome::Skipped(why) => {
                count.skipped += 1;
                println!("  SKIPPED: {why}");
            }
        }
        for violation in lock(&scene.witness).violations_so_far() {
            if told.insert(violation.clone()) {
                println!("  VIOLATED: {violation}");
            }
        }
        sleep(planned.then).await;
    }
    for line in summary(&counts) {
        println!("{line}");
    }
    Ok(())
}

/// How often a kind of fault happened, and how often it found no target.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    happened: usize,
    skipped: usize,
}

/// Returns the lines that say which kinds of fault happened, and which did not. `counts` has every kind of the run.
fn summary(counts: &BTreeMap<Fault, Count>) -> Vec<String> {
    let happened: usize = counts.values().map(|count| count.happened).sum();
    let kinds = counts.values().filter(|count| count.happened > 0).count();
    let mut lines = vec![format!("{happened} faults happened, of {kinds} of {} kinds.", counts.len())];
    let never = || counts.iter().filter(|(_, count)| count.happened == 0);
    for (fault, count) in never().filter(|(_, count)| count.skipped > 0) {
        lines.push(format!("SKIPPED: {} found no target, {} times", fault.name(), count.skipped));
    }
    for (fault, _) in never().filter(|(_, count)| count.skipped == 0) {
        lines.push(format!("NOT REACHED: {}, the time was up", fault.name()));
    }
    lines
}

/// The signals that stop a run.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        let listen = |kind| signal(kind).map_err(Error::io("listening for signals"));
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_that_did_not_happen_is_named() {
        let counts = BTreeMap::from([
            (Fault::EtcdKilled, Count { happened: 2, skipped: 0 }),
            (Fault::TrainerKilled, Count { happened: 1, skipped: 1 }),
            (Fault::ServerKilled, Count { happened: 0, skipped: 3 }),
            (Fault::DiskFull, Count::default()),
        ]);
        let lines = [
            "3 faults happened, of 2 of 4 kinds.",
            "SKIPPED: server-killed found no target, 3 times",
            "NOT REACHED: disk-full, the time was up",
        ];
        assert_eq!(summary(&counts), lines);
    }
}
