//! The report of `codex data check`. Pure.

use std::fmt;

use codex_provenance::{DataDigest, text::counted};
use serde::Serialize;

use super::problems::{Found, Place, Problems};
use crate::training::Input;

/// Number of overlapping problems that a report lists.
const LISTED: usize = 20;
/// Characters of a text that the lines to read show.
const SHOWN: usize = 80;

/// What the problems of an evaluation and training data have in common.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    /// Digest of the problems.
    pub(super) against: DataDigest,
    /// Number of consecutive words that are an overlap.
    ngram: usize,
    /// Share of the problems that may overlap.
    max_share: f64,
    /// Whether no more than that share does.
    pub(super) passed: bool,
    pub(super) problems: Counts,
    /// Number of problems with too few words for a sequence. They are only compared as a whole.
    pub(super) short_problems: usize,
    pub(super) data: Vec<Source>,
    /// The first problems that overlap.
    pub(super) overlaps: Vec<Overlap>,
}

/// Counts of overlapping problems.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Counts {
    pub(super) total: usize,
    /// Asked by a record in the same words.
    pub(super) exact: usize,
    /// With a sequence of words in a record.
    pub(super) ngram: usize,
    /// Either of both.
    pub(super) either: usize,
    /// `either` divided by `total`.
    pub(super) share: f64,
}

/// Counts of overlapping records.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Source {
    pub(super) name: String,
    pub(super) sha256: DataDigest,
    pub(super) records: u64,
    /// Records that ask a problem.
    pub(super) exact: u64,
    /// Records that share a sequence of words with a problem.
    pub(super) ngram: u64,
}

/// A problem that overlaps.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Overlap {
    /// Line or row of the problem, from 1.
    pub(super) line: usize,
    /// The first record that asks it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) exact: Option<Place>,
    /// The first record that shares words with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ngram: Option<Place>,
}

impl Source {
    pub(super) fn new(input: &Input) -> Self {
        let file = input.file();
        Self { name: file.name.clone(), sha256: file.sha256, records: 0, exact: 0, ngram: 0 }
    }

    pub(super) fn count(&mut self, found: &Found) {
        self.records += 1;
        self.exact += u64::from(!found.exact.is_empty());
        self.ngram += u64::from(!found.words.is_empty());
    }
}

impl Report {
    pub(super) fn new(against: &Input, problems: &Problems, data: Vec<Source>, max_share: f64) -> Self {
        let (exact, ngram) = problems.counts();
        let (total, either) = (problems.len(), problems.found().count());
        let share = either as f64 / total.max(1) as f64;
        let overlap = |(line, exact, ngram): (usize, Option<&Place>, Option<&Place>)| Overlap {
            line,
            exact: exact.cloned(),
            ngram: ngram.cloned(),
        };
        Self {
            against: against.file().sha256,
            ngram: problems.ngram(),
            max_share,
            passed: share <= max_share,
            problems: Counts { total, exact, ngram, either, share },
            short_problems: problems.short,
            data,
            overlaps: problems.found().take(LISTED).map(overlap).collect(),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { total, exact, ngram, either, share } = &self.problems;
        let (verdict, words) = (if self.passed { "passed" } else { "failed" }, self.ngram);
        writeln!(
            f,
            "{verdict}: {either} of {} overlap, a share of {share:.4}; at most {} may",
            counted(*total, "problem"),
            self.max_share
        )?;
        writeln!(f, "  {exact} are asked by a record, {ngram} share {words} consecutive words with one")?;
        if self.short_problems > 0 {
            writeln!(
                f,
                "  {} of {total} have fewer than {words} words and were only compared as a whole",
                self.short_problems
            )?;
        }
        for source in &self.data {
            let Source { name, records, exact, ngram, .. } = source;
            writeln!(
                f,
                "data {name}: of {}, {exact} ask a problem, {ngram} share words with one",
                counted(*records, "record")
            )?;
        }
        for Overlap { line, exact, ngram } in &self.overlaps {
            if let Some(Place { data, line: record, text }) = exact.as_ref().or(ngram.as_ref()) {
                let what = if exact.is_some() { "is asked by" } else { "shares words with" };
                let mut shown: String = text.chars().take(SHOWN).collect();
                if shown.len() < text.len() {
                    shown.push('…');
                }
                writeln!(f, "problem {line} {what} {data}:{record}: {shown:?}")?;
            }
        }
        if *either > self.overlaps.len() {
            writeln!(f, "and {} more", either - self.overlaps.len())?;
        }
        Ok(())
    }
}
