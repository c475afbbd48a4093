//! `codex prepare-data`: writes records of a task as JSON lines, and prints which share of the task they cover. Does I/O.

use std::{collections::HashSet, path::PathBuf};

use codex_provenance::Sha256;
use codex_reports::exit;
use serde::Serialize;

use super::{
    calculation::Calculation,
    data_file::problems,
    key::{Key, Split},
    operands::Digits,
    operator::Operator,
    problem::Problem,
    record::{Record, write_records},
    task::Task,
};
use crate::{
    arguments::whole,
    atomic_fs::{self, FileError, Misnamed},
    error::CommandError,
    overlap::{self, Named},
    plugins::{Kind, Plugin, PluginError},
    safety::{Direction, Guard, Rules, RulesError},
};

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
    /// A plugin in WebAssembly (docs/plugins.md), which decides which of the records are written. With it, --filter-sha256 is required.
    #[arg(long, value_name = "FILE", requires = "filter_sha256")]
    filter: Option<PathBuf>,
    /// SHA-256 of --filter; another file is refused.
    #[arg(long, value_name = "HEX", requires = "filter")]
    filter_sha256: Option<Sha256>,
    /// Safety rules, as those of a server: a record whose prompt or response they block is left out, what they redact is replaced.
    /// Without valid rules nothing is written.
    #[arg(long, value_name = "FILE")]
    safety_rules: Option<PathBuf>,
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
    /// Number of records that the plugin dropped.
    #[serde(skip_serializing_if = "Option::is_none")]
    filtered: Option<usize>,
    #[serde(flatten)]
    safety: Option<Guarded>,
    distinct_problems: usize,
    /// Different sums and differences in the solutions, on operands of one to three digits.
    distinct_calculations: usize,
    /// Number of sums and differences of such operands on this side of the split.
    calculations_of_split: usize,
    share_of_calculations: f64,
}

/// What safety rules did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
struct Guarded {
    /// Number of records that were left out, because a rule blocks their prompt or response.
    blocked: usize,
    /// Number of records of which something was replaced, or cut at the cap of answers.
    redacted: usize,
}

impl Guarded {
    /// Returns a record without what the rules redact; `None` if they block it.
    fn check(&mut self, rules: &Rules, record: &Record) -> Option<Record> {
        let [prompt, response] = [(&record.prompt, Direction::Prompt), (&record.response, Direction::Answer)]
            .map(|(text, direction)| rules.check(text, direction).text);
        let (Some(prompt), Some(response)) = (prompt, response) else {
            self.blocked += 1;
            return None;
        };
        let checked = Record { prompt, response, ..record.clone() };
        self.redacted += usize::from(checked != *record);
        Some(checked)
    }
}

impl PrepareData {
    pub(crate) fn run(self) -> Result<i32, CommandError> {
        let inputs = [("--filter", &self.filter), ("--safety-rules", &self.safety_rules)];
        let inputs = inputs.into_iter().filter_map(|(role, path)| Some(Named::new(role, path.as_ref()?)));
        overlap::check(&[Named::new("--out", &self.out)], &inputs.collect::<Vec<_>>())
            .map_err(CommandError::bad_input)?;
        let source = match self.digits {
            Some(digits) => self.task.of_digits(digits).map_err(CommandError::bad_input)?,
            None => self.task.into(),
        };
        let mut problems =
            problems(source, self.split, self.seed, self.count as usize).map_err(CommandError::bad_input)?;
        let filtered = self.select(&mut problems)?;
        let (records, safety) = self.guard(&mut problems)?;
        let mut bytes = Vec::new();
        write_records(&records, &mut bytes).map_err(CommandError::failed)?;
        atomic_fs::make_parents(&self.out)?;
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
            filtered,
            safety,
            distinct_problems: problems.iter().map(Problem::key).collect::<HashSet<_>>().len(),
            distinct_calculations: drawn.len(),
            calculations_of_split: space,
            share_of_calculations: drawn.len() as f64 / space as f64,
        };
        let text = serde_json::to_string(&summary).map_err(CommandError::failed)?;
        atomic_fs::say(&text)?;
        Ok(exit::FINISHED)
    }

    /// Removes the problems that the plugin drops, and returns their number; `None` without a plugin.
    fn select(&self, problems: &mut Vec<Problem>) -> Result<Option<usize>, CommandError> {
        let Some(path) = &self.filter else { return Ok(None) };
        let bytes = atomic_fs::read_named::<PrepareError>("--filter", path)?;
        let found = Sha256::of(&bytes);
        if let Some(expected) = self.filter_sha256.filter(|expected| *expected != found) {
            return Err(PrepareError::Digest { path: path.clone(), found, expected }.into());
        }
        let unusable = |source| PrepareError::Plugin { path: path.clone(), source };
        let plugin = Plugin::load(&bytes, Kind::Filter).map_err(unusable)?;
        let mut kept = Vec::with_capacity(problems.len());
        let all = problems.len();
        for (problem, record) in problems.drain(..).zip(1..) {
            let Record { prompt, response, .. } = problem.record();
            let failed = |source| PrepareError::Filter { record, source };
            if plugin.keeps(&prompt, &response).map_err(failed)? {
                kept.push(problem);
            }
        }
        *problems = kept;
        if problems.is_empty() {
            return Err(PrepareError::NoneLeft { path: path.clone(), all }.into());
        }
        Ok(Some(all - problems.len()))
    }
}

impl PrepareData {
    /// Returns the records of the problems as the safety rules leave them, and what these did; `None` without rules. Removes the problems
    /// whose records are blocked.
    fn guard(&self, problems: &mut Vec<Problem>) -> Result<(Vec<Record>, Option<Guarded>), PrepareError> {
        let Some(path) = &self.safety_rules else { return Ok((problems.iter().map(Problem::record).collect(), None)) };
        let rules = Guard::new(path)?.rules().map_err(RulesError::Invalid)?;
        let (all, mut guarded, mut records) = (problems.len(), Guarded::default(), Vec::with_capacity(problems.len()));
        problems.retain(|problem| {
            let checked = guarded.check(&rules, &problem.record());
            let is_kept = checked.is_some();
            records.extend(checked);
            is_kept
        });
        if records.is_empty() {
            return Err(PrepareError::AllBlocked { path: path.clone(), all });
        }
        Ok((records, Some(guarded)))
    }
}

/// Why no file is written.
#[derive(Debug, thiserror::Error)]
enum PrepareError {
    /// The file of the plugin is missing.
    #[error(transparent)]
    Misnamed(#[from] Misnamed),
    /// The file of the plugin cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The plugin is another file.
    #[error("--filter: {} has digest {found}, but --filter-sha256 requires {expected}: name the file with that digest", path.display())]
    Digest { path: PathBuf, found: Sha256, expected: Sha256 },
    /// The file is no plugin.
    #[error("--filter: {}: {source}", path.display())]
    Plugin { path: PathBuf, source: PluginError },
    /// The plugin failed.
    #[error("record {record}: {source}")]
    Filter { record: usize, source: PluginError },
    /// The plugin dropped everything.
    #[error("--filter: {} drops all of the {all} records: name another plugin, or raise --count", path.display())]
    NoneLeft { path: PathBuf, all: usize },
    /// The safety rules cannot be used.
    #[error("--safety-rules")]
    Rules(#[from] RulesError),
    /// The safety rules block everything.
    #[error("--safety-rules: {} blocks all of the {all} records: correct the rules", path.display())]
    AllBlocked { path: PathBuf, all: usize },
}

impl From<PrepareError> for CommandError {
    fn from(error: PrepareError) -> Self {
        match error {
            PrepareError::File(_) | PrepareError::Rules(RulesError::Unreadable { .. }) => Self::failed(error),
            _ => Self::bad_input(error),
        }
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

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    /// Prepares 200 records with these rules, and returns the summary's counts and the records.
    fn prepare(directory: &Path, rules: &str) -> Result<(Option<Guarded>, Vec<Record>), PrepareError> {
        let path = directory.join("rules.yaml");
        fs::write(&path, rules).unwrap();
        let command = PrepareData {
            task: Task::Arithmetic,
            seed: 1,
            count: 200,
            split: Split::Train,
            digits: None,
            filter: None,
            filter_sha256: None,
            safety_rules: Some(path),
            out: directory.join("out.jsonl"),
        };
        let mut problems = problems(command.task.into(), command.split, command.seed, 200).unwrap();
        let (records, guarded) = command.guard(&mut problems)?;
        assert_eq!(problems.len(), records.len());
        Ok((guarded, records))
    }

    #[test]
    fn blocked_records_are_left_out_and_redacted_texts_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let all = prepare(directory.path(), "known: { secrets: redact, pii: redact, sql: block }").unwrap();
        assert_eq!((all.0, all.1.len()), (Some(Guarded::default()), 200), "ordinary records");
        let subtractions = all.1.iter().filter(|record| record.prompt.contains('-')).count();
        let rules = "rules: [{ id: minus, action: block, literal: '-', on: [prompt] }, { id: end, action: redact, regex: '#.*$', on: [answer] }]";
        let (guarded, records) = prepare(directory.path(), rules).unwrap();
        assert!((1..200).contains(&subtractions));
        assert_eq!(guarded, Some(Guarded { blocked: subtractions, redacted: 200 - subtractions }));
        assert!(records.iter().all(|record| record.response.ends_with("{REDACTED}") && !record.prompt.contains('-')));
    }

    #[test]
    fn without_valid_rules_nothing_is_written() {
        let directory = tempfile::tempdir().unwrap();
        for (rules, told) in [
            ("rules: [{ id: a, action: deny, literal: x }]", "the safety rules are invalid: "),
            ("rules: [{ id: all, action: block, regex: '.' }]", "rules.yaml blocks all of the 200 records"),
        ] {
            let error = CommandError::from(prepare(directory.path(), rules).unwrap_err());
            assert!(error.exit == exit::BAD_INPUT && error.sentence().contains(told), "{}", error.sentence());
            assert!(error.sentence().starts_with("--safety-rules: "), "{}", error.sentence());
        }
    }
}
