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
            acted = act(&scene, &workload, Plan::new(seed, kinds), Duration::from_secs(60 * minutes)) => acted,
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

async fn act(scene: &Scene, workload: &Workload, plan: Plan, lasts: Duration) -> Result<()> {
    scene.redirect().await?;
    let faults = async {
        let told = disturb(scene, plan, lasts).await;
        workload.stop();
        told
    };
    tokio::try_join!(workload.run(&scene.team, &scene.witness), faults)?;
    end::check(scene, workload).await
}

/// Lets the faults happen, one after another.
async fn disturb(scene: &Scene, plan: Plan, lasts: Duration) -> Result<()> {
    let (end, mut counts) = (Instant::now() + lasts, BTreeMap::<Fault, (usize, usize)>::new());
    let mut told = BTreeSet::new();
    for planned in plan {
        if Instant::now() >= end {
            break;
        }
        println!("{planned}");
        let count = counts.entry(planned.fault).or_default();
        match scene.inject(&planned).await? {
            Outcome::Done(met) => {
                count.0 += 1;
                println!("  {met}");
            }
            Outcome::Skipped(why) => {
                count.1 += 1;
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
    let happened: usize = counts.values().map(|count| count.0).sum();
    println!("{happened} faults of {} kinds happened.", counts.values().filter(|count| count.0 > 0).count());
    for (fault, (_, skipped)) in counts.iter().filter(|(_, count)| count.0 == 0) {
        println!("SKIPPED: {} met nothing, {skipped} times", fault.name());
    }
    Ok(())
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
