//! `codex prepare-data`: writes records of a task as JSON lines, and prints which share of the task they cover. Does I/O.

use std::{collections::HashSet, path::PathBuf};

use codex_provenance::Sha256;
use codex_reports::exit;
use serde::Serialize;

use super::{
    calculation::Calculation,
    data_file::{lines, problems},
    key::{Key, Split},
    operands::Digits,
    operator::Operator,
    problem::Problem,
    task::Task,
};
use crate::{arguments::whole, atomic_fs, error::CommandError};

/// Write problems of a synthetic reasoning task as JSON lines.
#[derive(Debug, clap::Args)]
pub struct PrepareData {
    /// The task: arithmetic, word-problems, arithmetic-5, multiplication, word-problems-3 or arithmetic-padded.
    #[arg(long)]
    task: Task,
    /// Seed; the same seed gives the same bytes.
    #[arg(long, default_value_t = 1, allow_negative_numbers = true, value_parser = crate::arguments::seed)]
    seed: u64,
    /// Number of records, at most 10,000,000. Held-out records are all different.
    #[arg(long, value_parser = whole::<u64>(1..=codex_configs::MAX_SYNTHETIC))]
    count: u64,
    /// Side of the split, which is the same for every seed.
    #[arg(long, value_enum, default_value = "train")]
    split: Split,
    /// Use operands of exactly this many digits instead of those that the task trains on.
    #[arg(long, value_parser = whole::<u32>(1..=Digits::LIMIT.into()))]
    digits: Option<u32>,
    /// The file to write.
    #[arg(long)]
    out: PathBuf,
}

/// The summary that is printed.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Summary {
    file: PathBuf,
    sha256: Sha256,
    size: u64,
    records: usize,
    distinct_problems: usize,
    /// Different sums and differences in the solutions, on operands of one to three digits.
    distinct_calculations: usize,
    /// Number of sums and differences of such operands on this side of the split.
    calculations_of_split: usize,
    share_of_calculations: f64,
}

impl PrepareData {
    pub(crate) fn run(self) -> Result<i32, CommandError> {
        let source = match self.digits {
            Some(digits) => self.task.of_digits(digits).map_err(CommandError::bad_input)?,
            None => self.task.into(),
        };
        let problems = problems(source, self.split, self.seed, self.count as usize).map_err(CommandError::bad_input)?;
        let bytes = lines(&problems).map_err(CommandError::failed)?;
        let sha256 = atomic_fs::write(&self.out, &bytes)?;
        let short =
            |key: &Key| key.operands[0] < OPERANDS && SUMS_AND_DIFFERENCES.map(Operator::name).contains(&key.kind);
        let drawn: HashSet<Key> = problems.iter().flat_map(Problem::inner_keys).filter(short).collect();
        let space = calculations(self.split);
        let summary = Summary {
            file: self.out,
            sha256,
            size: bytes.len() as u64,
            records: problems.len(),
            distinct_problems: problems.iter().map(Problem::key).collect::<HashSet<_>>().len(),
            distinct_calculations: drawn.len(),
            calculations_of_split: space,
            share_of_calculations: drawn.len() as f64 / space as f64,
        };
        let text = serde_json::to_string(&summary).map_err(CommandError::failed)?;
        atomic_fs::say(&text)?;
        Ok(exit::FINISHED)
    }
}

/// Upper bound of the operands that the summary counts.
const OPERANDS: u32 = 1000;
const SUMS_AND_DIFFERENCES: [Operator; 2] = [Operator::Plus, Operator::Minus];

/// Returns the number of calculations on a side of the split.
fn calculations(split: Split) -> usize {
    let pairs = (0..OPERANDS).flat_map(|left| (0..=left).map(move |right| (left, right)));
    pairs
        .flat_map(|(left, right)| SUMS_AND_DIFFERENCES.map(|operator| Calculation { operator, left, right }.key()))
        .filter(|key| key.is_held_out() == (split == Split::HeldOut))
        .count()
}
