//! `codex bisect`: finds the first step and the tensors in which two runs differ. Reads both directories; writes nothing.
//!
//! The ledgers show the first step whose records, loss or gradient differ. The chained digests show the first recorded state that
//! differs, and its tensors. Up to the first of these differences the steps of both runs are taken again, from the last checkpoint
//! before it.

use std::{collections::BTreeMap, path::PathBuf};

use codex_provenance::text::counted;
use codex_reports::exit;
use serde::Serialize;

use super::{RecordedRun, Rerun};
use crate::{
    arguments::named_file,
    atomic_fs,
    error::{CommandError, chain},
    training::{
        TrainError,
        checkpoint::{ValidCheckpoint, differing_keys},
        listing::some_tensors,
        records::{LedgerRow, StateRow},
        state::{Digests, differing_names},
    },
};

/// Find the first step and tensor in which two runs differ.
#[derive(Debug, clap::Args)]
pub struct Bisect {
    /// Directory of the first run.
    run_a: PathBuf,
    /// Directory of the second run.
    run_b: PathBuf,
    /// Data file of both runs, for data that is not synthetic.
    #[arg(long, value_name = "NAME=FILE", value_parser = named_file)]
    data: Vec<(String, PathBuf)>,
    /// Data file of the second run, if it differs from that of the first.
    #[arg(long, value_name = "NAME=FILE", value_parser = named_file)]
    data_b: Vec<(String, PathBuf)>,
    /// Compare only the records of the runs; take no step again.
    #[arg(long)]
    no_replay: bool,
    /// Print all results as JSON.
    #[arg(long)]
    json: bool,
}

/// Comparison of two runs.
#[derive(Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Comparison {
    /// Configuration keys that differ.
    pub(crate) configuration: Vec<String>,
    /// First step whose ledger rows differ.
    pub(crate) ledger: Option<LedgerDifference>,
    /// Last step before any difference at which both runs recorded the same state.
    pub(crate) last_equal: Option<u64>,
    /// First step at which the runs recorded different states.
    pub(crate) first_recorded: Option<StateDifference>,
    /// First step after which the states differ when the steps are taken again.
    pub(crate) first_replayed: Option<StateDifference>,
    /// Whether each run, taken again, matches its records; `None` if no step was taken again.
    pub(crate) reproduced: Option<[bool; 2]>,
    /// Why no step could be taken again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) not_replayed: Option<String>,
    /// Number of steps that both runs recorded.
    pub(crate) common: u64,
}

/// Difference between two ledgers.
#[derive(Debug, PartialEq, Serialize)]
pub(crate) struct LedgerDifference {
    /// Step of the difference.
    pub(crate) step: u64,
    /// First field that differs: `records`, `loss`, `gradNorm` or `spike`.
    pub(crate) what: &'static str,
    /// Value of the first run.
    a: String,
    /// Value of the second run.
    b: String,
}

/// Difference between two states.
#[derive(Debug, PartialEq, Serialize)]
pub(crate) struct StateDifference {
    /// Step of the difference.
    pub(crate) step: u64,
    /// Names of tensors that differ.
    pub(crate) tensors: Vec<String>,
}

fn ledger_difference(a: &LedgerRow, b: &LedgerRow) -> Option<LedgerDifference> {
    let differs = |what, a: String, b: String| Some(LedgerDifference { step: 0, what, a, b });
    let found = if a.records != b.records {
        differs("records", a.records.short(), b.records.short())
    } else if a.loss.to_bits() != b.loss.to_bits() {
        differs("loss", a.loss.to_string(), b.loss.to_string())
    } else if a.grad_norm.to_bits() != b.grad_norm.to_bits() {
        differs("gradNorm", a.grad_norm.to_string(), b.grad_norm.to_string())
    } else if (&a.spike, a.skipped) != (&b.spike, b.skipped) {
        let spike = |row: &LedgerRow| match (&row.spike, row.skipped) {
            (Some(what), true) => format!("{what}, skipped"),
            (Some(what), false) => what.clone(),
            (None, _) => "no spike".to_owned(),
        };
        differs("spike", spike(a), spike(b))
    } else {
        None
    };
    found.map(|found| LedgerDifference { step: a.step, ..found })
}

fn state_difference(a: &StateRow, b: &StateRow) -> Option<StateDifference> {
    if a.digest == b.digest {
        return None;
    }
    Some(StateDifference { step: a.step, tensors: differing_names(&a.tensors, &b.tensors) })
}

impl Bisect {
    pub(crate) fn run(self) -> Result<i32, CommandError> {
        let (a, b) = (RecordedRun::open(&self.run_a)?, RecordedRun::open(&self.run_b)?);
        let names: Vec<&String> = self.data_b.iter().map(|(name, _)| name).collect();
        let shared = self.data.iter().filter(|(name, _)| !names.contains(&name)).cloned();
        let of_b: Vec<_> = shared.chain(self.data_b.iter().cloned()).collect();
        let comparison = compare(&a, &b, (!self.no_replay).then_some([&self.data, &of_b]))?;
        let said = if self.json {
            atomic_fs::say(&serde_json::to_string(&comparison).map_err(CommandError::failed)?)
        } else {
            atomic_fs::say(&comparison.to_string())
        };
        said.map_err(CommandError::failed)?;
        Ok(if comparison.equal() { exit::FINISHED } else { exit::FAILED })
    }
}

impl Comparison {
    /// Whether the records of both runs are equal.
    pub(crate) fn equal(&self) -> bool {
        self.ledger.is_none() && self.first_recorded.is_none()
    }
}

impl std::fmt::Display for Comparison {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if !self.configuration.is_empty() {
            writeln!(f, "the configurations differ in {}", self.configuration.join(", "))?;
        }
        if let Some(LedgerDifference { step, what, a, b }) = &self.ledger {
            writeln!(f, "the first step with a different {what} is step {step}: {a} and {b}")?;
        }
        if let Some(StateDifference { step, tensors }) = &self.first_recorded {
            let equal = self
                .last_equal
                .map_or_else(|| "no earlier one is equal".to_owned(), |step| format!("step {step} is equal"));
            writeln!(
                f,
                "the first recorded state that differs is that of step {step} ({equal}), in {}",
                some_tensors(tensors)
            )?;
        }
        if let Some(StateDifference { step, tensors }) = &self.first_replayed {
            let when = if *step == 0 { "before the first step".to_owned() } else { format!("after step {step}") };
            writeln!(f, "with the steps taken again, the states first differ {when}, in {}", some_tensors(tensors))?;
        }
        let reproduced = match self.reproduced {
            Some([true, true]) | None => None,
            Some([true, false]) => Some("the first run matches its records; the second does not"),
            Some([false, true]) => Some("the second run matches its records; the first does not"),
            Some([false, false]) => Some("neither run matches its records"),
        };
        if let Some(reproduced) = reproduced {
            writeln!(f, "with the steps taken again, {reproduced}")?;
        }
        if let Some(why) = &self.not_replayed {
            writeln!(f, "no step was taken again: {why}")?;
        }
        if self.equal() {
            return write!(
                f,
                "the runs are equal, bit for bit, in {} that both recorded",
                counted(self.common, "step")
            );
        }
        Ok(())
    }
}

/// Files of data by name.
pub(crate) type Files = [(String, PathBuf)];

/// Compares two runs. With the files of each of them, steps between recorded states are also taken again.
///
/// # Errors
/// When the runs have no step in common, or their records cannot be read.
pub(crate) fn compare(a: &RecordedRun, b: &RecordedRun, replay: Option<[&Files; 2]>) -> Result<Comparison, TrainError> {
    let (ledger_a, ledger_b) = (a.ledger()?, b.ledger()?);
    let common: Vec<u64> = ledger_a.keys().filter(|step| ledger_b.contains_key(step)).copied().collect();
    if common.is_empty() {
        let steps = |ledger: &BTreeMap<u64, LedgerRow>| match (ledger.keys().next(), ledger.keys().next_back()) {
            (Some(first), Some(last)) => format!("steps {first} to {last}"),
            _ => "no steps".to_owned(),
        };
        return Err(TrainError::Arguments(format!(
            "the runs have no step in common: {} recorded {}, {} recorded {}",
            a.directory.display(),
            steps(&ledger_a),
            b.directory.display(),
            steps(&ledger_b)
        )));
    }
    let ledger = common.iter().find_map(|step| ledger_difference(&ledger_a[step], &ledger_b[step]));
    let (states_a, states_b) = (a.states()?, b.states()?);
    let both = || states_a.iter().filter_map(|(step, row)| Some((row, states_b.get(step)?)));
    let first_recorded = both().find_map(|(row, other)| state_difference(row, other));
    let parted = [ledger.as_ref().map(|it| it.step), first_recorded.as_ref().map(|it| it.step)];
    let parted = parted.into_iter().flatten().min();
    let equal = both().filter(|(row, _)| parted.is_none_or(|step| row.step < step)).map(|(row, _)| row.step);
    let last_equal = equal.max();
    let settings = |past: &RecordedRun| serde_json::to_value(&past.resolved.spec().settings).unwrap_or_default();
    let mut comparison = Comparison {
        configuration: differing_keys(&settings(a), &settings(b)),
        ledger,
        last_equal,
        first_recorded,
        common: common.len() as u64,
        ..Comparison::default()
    };
    if a.resolved.spec().seed != b.resolved.spec().seed {
        comparison.configuration.push("seed".to_owned());
    }
    if let (Some([of_a, of_b]), Some(to)) = (replay, parted) {
        let recorded =
            [Recorded { rows: &ledger_a, states: &states_a }, Recorded { rows: &ledger_b, states: &states_b }];
        match a.rerun(of_a).and_then(|a| Ok((a, b.rerun(of_b)?))) {
            Ok((a, b)) => {
                let (first, reproduced) = replay_both(&a, &b, last_equal.unwrap_or(0), to, recorded)?;
                (comparison.first_replayed, comparison.reproduced) = (first, Some(reproduced));
            }
            // The comparison of the records is still useful.
            Err(error) => comparison.not_replayed = Some(chain(&error)),
        }
    }
    Ok(comparison)
}

/// Records of a run.
#[derive(Clone, Copy)]
struct Recorded<'a> {
    rows: &'a BTreeMap<u64, LedgerRow>,
    states: &'a BTreeMap<u64, StateRow>,
}

impl Recorded<'_> {
    /// Whether a step that was taken again matches the ledger.
    fn row(&self, row: &LedgerRow) -> bool {
        self.rows.get(&row.step).is_none_or(|recorded| recorded == row)
    }

    /// Whether a state matches the recorded one, if there is one.
    fn state(&self, step: u64, digests: &Digests) -> bool {
        self.states.get(&step).is_none_or(|recorded| recorded.digest == digests.whole)
    }
}

/// Takes the steps of both runs again from their last common state to `to`. Returns the first difference, and whether each run
/// matches its records.
fn replay_both(
    a: &Rerun,
    b: &Rerun,
    from: u64,
    to: u64,
    recorded: [Recorded; 2],
) -> Result<(Option<StateDifference>, [bool; 2]), TrainError> {
    // A checkpoint of either run works: up to there they are equal.
    let (of_a, of_b) = (a.checkpoint(from)?, b.checkpoint(from)?);
    let newer = |found: &ValidCheckpoint| found.checkpoint.step;
    let start = of_a.iter().chain(&of_b).max_by_key(|found| newer(found));
    let (mut one, mut two) = (a.state(start)?, b.state(start)?);
    tracing::info!(from = one.step, to, "taking the steps of both runs again");
    let (mut first, mut reproduced) = (None, [true; 2]);
    loop {
        let digests = [one.snapshot(None)?.digests(), two.snapshot(None)?.digests()];
        if first.is_none() && digests[0].whole != digests[1].whole {
            let tensors = differing_names(&digests[0].tensors, &digests[1].tensors);
            first = Some(StateDifference { step: one.step, tensors });
        }
        for (run, agrees) in reproduced.iter_mut().enumerate() {
            *agrees &= recorded[run].state(one.step, &digests[run]);
        }
        if one.step >= to {
            return Ok((first, reproduced));
        }
        for (run, row) in [a.step(&mut one)?, b.step(&mut two)?].iter().enumerate() {
            reproduced[run] &= recorded[run].row(row);
        }
    }
}
