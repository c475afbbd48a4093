//! A simulated cluster, driven by a seed: two processes of the controller compete for the Lease while requests fail, answers get
//! lost, watches are late or cut, processes end and stand still, clocks differ, pods fail, lie, vanish, hang and fit no node, and users
//! change, suspend, delete and recreate objects. [`invariants`] lists what holds nevertheless.
//!
//! In the end everything settles without faults.
//!
//! The Lease lasts as long as by default with even seeds, and as long as with high availability with odd ones.
//!
//! The Lease, the reflectors and their triggers, observation, plans, apply, signing, reports and the endpoint are those of the
//! controller. Only the API server, the parts of Kubernetes around it, and the pods are stand-ins. Time is that of a paused
//! runtime, so hours take milliseconds.
//!
//! `CODEX_SIMULATION_SEEDS` says how many seeds run, and `CODEX_SIMULATION_FIRST` from which on. `CODEX_SIMULATION_SEED` replays one
//! and prints what happened.

mod actions;
mod cluster;
mod flywheel;
mod invariants;
#[path = "../../../plan/tests/plans/make.rs"]
#[allow(dead_code, clippy::unwrap_used, reason = "these values are shared with the tests of plans")]
mod make;
mod pod_settings;
mod process;
mod sabotage;
mod server;
mod simulator;

use std::{
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread,
};

use sabotage::Sabotage;
use simulator::Simulator;

/// The number of seeds that a test run tries: what two cores do in about a minute.
const SEEDS: u64 = 1_000;

/// Runs one seed.
fn run(seed: u64, sabotage: Sabotage) -> Result<(), String> {
    let simulated = catch_unwind(AssertUnwindSafe(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async { Simulator::new(seed, sabotage).run().await })
    }));
    simulated.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(format!("panicked: {}", text.unwrap_or_default()))
    })
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().filter(|text| !text.is_empty()).map(|text| text.parse().unwrap())
}

/// Runs these seeds on all cores and returns the failures in the order of their seeds.
fn run_all(seeds: Range<u64>) -> Vec<(u64, String)> {
    let (next, failures) = (AtomicU64::new(seeds.start), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    if let Err(failure) = run(seed, Sabotage::None) {
                        failures.lock().unwrap().push((seed, failure));
                    }
                }
            });
        }
    });
    let mut failures = failures.into_inner().unwrap();
    failures.sort();
    failures
}

#[test]
fn nothing_is_lost_doubled_stuck_or_signed_twice() {
    if let Some(seed) = number("CODEX_SIMULATION_SEED") {
        run(seed, Sabotage::None).unwrap_or_else(|failure| panic!("seed {seed}: {failure}"));
        return;
    }
    let (first, seeds) =
        (number("CODEX_SIMULATION_FIRST").unwrap_or(0), number("CODEX_SIMULATION_SEEDS").unwrap_or(SEEDS));
    let failures = run_all(first..first + seeds);
    let lines = failures.iter().take(10).map(|(seed, failure)| {
        let line = failure.lines().next().unwrap_or_default();
        format!("  CODEX_SIMULATION_SEED={seed}: {line}\n")
    });
    let told: String = lines.collect();
    assert!(failures.is_empty(), "{} of {seeds} seeds fail; each replays alone with\n{told}", failures.len());
}

/// Breaks things on purpose: the invariant that this violates finds it within a few seeds.
#[test]
fn each_broken_plan_is_found() {
    let (next, missed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                while let Some((sabotage, words)) = Sabotage::ALL.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let mut other = "with all seeds everything holds".to_owned();
                    let found = (0..150).find(|seed| match run(*seed, *sabotage) {
                        Ok(()) => false,
                        Err(failure) if failure.contains(words) => true,
                        Err(failure) => {
                            other = format!("with seed {seed} {}", failure.lines().next().unwrap_or_default());
                            false
                        }
                    });
                    match found {
                        Some(seed) => println!("{sabotage:?} is found with seed {seed}"),
                        None => missed.lock().unwrap().push(format!("{sabotage:?}: {other}")),
                    }
                }
            });
        }
    });
    let missed = missed.into_inner().unwrap();
    assert!(missed.is_empty(), "not found as they should be: {missed:#?}");
}
