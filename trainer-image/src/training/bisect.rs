//! `codex bisect`: the first step, and in it the tensors, in which two runs differ. Reads both directories; writes nothing.
//!
//! The ledgers tell the first step whose records, loss or gradient differ; the chained digests tell the first recorded state
//! that differs, and its tensors. Up to the first of these differences both runs are gone through again, from the last checkpoint
//! that they have in common.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use codex_reports::exit;
use serde::Serialize;

use super::{
    TrainError,
    checkpoint::Found,
    named_file,
    plan::differing_keys,
    records::{LedgerRow, StateRow},
    replay::{Past, Rerun},
    snapshot::Digests,
};
use crate::{
    atomic_fs,
    error::{CommandError, chain},
};

/// Name the first step and tensor in which two runs differ.
#[derive(Debug, clap::Args)]
pub struct Bisect {
    /// One run's directory.
    run_a: PathBuf,
    /// The other's.
    run_b: PathBuf,
    /// A file of records that the runs did not make themselves.
    #[arg(long, value_name = "NAME=FILE", value_parser = named_file)]
    data: Vec<(String, PathBuf)>,
    /// The same of the second run, where it had another file.
    #[arg(long, value_name = "NAME=FILE", value_parser = named_file)]
    data_b: Vec<(String, PathBuf)>,
    /// Compare what the runs recorded, and take no step again.
    #[arg(long)]
    no_replay: bool,
    /// Print everything as JSON.
    #[arg(long)]
    json: bool,
}

/// How two runs compare.
#[derive(Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Comparison {
    /// Keys of the configuration that differ.
    pub(super) configuration: Vec<String>,
    /// The first step whose ledger rows differ, and in what.
    pub(super) ledger: Option<LedgerDifference>,
    /// The last step before any difference at which both recorded the same state.
    pub(super) last_equal: Option<u64>,
    /// The first step at which they recorded different ones, and the tensors that differ.
    pub(super) first_recorded: Option<StateDifference>,
    /// The same, when every step between was taken again.
    pub(super) first_replayed: Option<StateDifference>,
    /// Whether each run, taken again here, comes to what it recorded; none where nothing was taken again.
    pub(super) reproduced: Option<[bool; 2]>,
    /// Why no step could be taken again, where that was wanted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) not_replayed: Option<String>,
    /// Steps that both recorded.
    pub(super) common: u64,
}

/// Where two ledgers part.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct LedgerDifference {
    /// The step.
    pub(super) step: u64,
    /// `records`, `loss`, `gradNorm` or `spike`: the first of these that differs.
    pub(super) what: &'static str,
    /// In one run.
    a: String,
    /// In the other.
    b: String,
}

/// Where two states part.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct StateDifference {
    /// The step.
    pub(super) step: u64,
    /// The tensors that differ.
    pub(super) tensors: Vec<String>,
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
        differs("spike", format!("{:?}", a.spike), format!("{:?}", b.spike))
    } else {
        None
    };
    found.map(|found| LedgerDifference { step: a.step, ..found })
}

fn state_difference(a: &StateRow, b: &StateRow) -> Option<StateDifference> {
    if a.digest == b.digest {
        return None;
    }
    Some(StateDifference { step: a.step, tensors: differing(&a.tensors, &b.tensors) })
}

/// The names whose values differ, or that only one side has.
pub(super) fn differing<T: PartialEq>(a: &BTreeMap<String, T>, b: &BTreeMap<String, T>) -> Vec<String> {
    let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    names.into_iter().filter(|name| a.get(*name) != b.get(*name)).cloned().collect()
}

impl Bisect {
    pub(crate) fn run(self) -> Result<i32, CommandError> {
        let (a, b) = (Past::open(&self.run_a)?, Past::open(&self.run_b)?);
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
    /// Whether nothing that both recorded differs.
    pub(super) fn equal(&self) -> bool {
        self.ledger.is_none() && self.first_recorded.is_none()
    }
}

impl std::fmt::Display for Comparison {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if !self.configuration.is_empty() {
            writeln!(f, "the configurations differ in {}", self.configuration.join(", "))?;
        }
        if let Some(LedgerDifference { step, what, a, b }) = &self.ledger {
            writeln!(f, "step {step} is the first whose {what} differs: {a} and {b}")?;
        }
        if let Some(StateDifference { step, tensors }) = &self.first_recorded {
            let equal = self
                .last_equal
                .map_or_else(|| "none before is equal".to_owned(), |step| format!("that of step {step} is equal"));
            writeln!(
                f,
                "the state of step {step} is the first recorded one that differs ({equal}), in {}",
                tensors.join(", ")
            )?;
        }
        if let Some(StateDifference { step, tensors }) = &self.first_replayed {
            let when = if *step == 0 { "before the first step".to_owned() } else { format!("after step {step}") };
            writeln!(f, "taken again, the states differ first {when}, in {}", tensors.join(", "))?;
        }
        let reproduced = match self.reproduced {
            Some([true, true]) | None => None,
            Some([true, false]) => Some("the first run comes to what it recorded; the second does not"),
            Some([false, true]) => Some("the second run comes to what it recorded; the first does not"),
            Some([false, false]) => Some("neither run comes to what it recorded"),
        };
        if let Some(reproduced) = reproduced {
            writeln!(f, "taken again here, {reproduced}")?;
        }
        if let Some(why) = &self.not_replayed {
            writeln!(f, "no step was taken again: {why}")?;
        }
        if self.equal() {
            return write!(f, "the runs are equal, bit for bit, in all {} steps that both recorded", self.common);
        }
        Ok(())
    }
}

/// Files of data by name.
pub(super) type Files = [(String, PathBuf)];

/// Compares two runs; with the files of each of them, also takes steps again where recorded states leave a gap.
pub(super) fn compare(a: &Past, b: &Past, replay: Option<[&Files; 2]>) -> Result<Comparison, TrainError> {
    let (ledger_a, ledger_b) = (a.ledger()?, b.ledger()?);
    let common: Vec<u64> = ledger_a.keys().filter(|step| ledger_b.contains_key(step)).copied().collect();
    if common.is_empty() {
        let steps = |ledger: &BTreeMap<u64, LedgerRow>| match (ledger.keys().next(), ledger.keys().next_back()) {
            (Some(first), Some(last)) => format!("steps {first} to {last}"),
            _ => "no step".to_owned(),
        };
        return Err(TrainError::Arguments(format!(
            "the runs have no step in common, so nothing can be compared: {} recorded {}, {} {}",
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
    let settings = |past: &Past| serde_json::to_value(&past.resolved.spec().settings).unwrap_or_default();
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
                let (first, reproduced) = go_through(&a, &b, last_equal.unwrap_or(0), to, recorded)?;
                (comparison.first_replayed, comparison.reproduced) = (first, Some(reproduced));
            }
            // What the runs recorded is worth knowing all the same.
            Err(error) => comparison.not_replayed = Some(chain(&error)),
        }
    }
    Ok(comparison)
}

/// What a run recorded.
#[derive(Clone, Copy)]
struct Recorded<'a> {
    rows: &'a BTreeMap<u64, LedgerRow>,
    states: &'a BTreeMap<u64, StateRow>,
}

impl Recorded<'_> {
    /// Whether a step that was taken again is the one that the run recorded.
    fn row(&self, row: &LedgerRow) -> bool {
        self.rows.get(&row.step).is_none_or(|recorded| recorded == row)
    }

    /// Whether the state after a step is the one that the run recorded, where it recorded any.
    fn state(&self, step: u64, digests: &Digests) -> bool {
        self.states.get(&step).is_none_or(|recorded| recorded.digest == digests.whole)
    }
}

/// Takes both runs from the last state that they have in common to `to`, and says where they part and whether each comes to
/// what it recorded on the way.
fn go_through(
    a: &Rerun,
    b: &Rerun,
    from: u64,
    to: u64,
    recorded: [Recorded; 2],
) -> Result<(Option<StateDifference>, [bool; 2]), TrainError> {
    // A checkpoint of either run will do: up to there they are equal.
    let (of_a, of_b) = (a.checkpoint(from)?, b.checkpoint(from)?);
    let newer = |found: &Found| found.checkpoint.step;
    let start = of_a.iter().chain(&of_b).max_by_key(|found| newer(found));
    let (mut one, mut two) = (a.state(start)?, b.state(start)?);
    tracing::info!(from = one.step, to, "the steps of both runs are taken again");
    let (mut first, mut reproduced) = (None, [true; 2]);
    loop {
        let digests = [one.snapshot(None).digests(), two.snapshot(None).digests()];
        if first.is_none() && digests[0].whole != digests[1].whole {
            let tensors = differing(&digests[0].tensors, &digests[1].tensors);
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
