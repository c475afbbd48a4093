//! The rows of a run as series: one metric of one split over the steps. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::artifacts::ledger::{Ledger, Row};

/// What is measured, and on what.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub(super) struct Name {
    /// The metric.
    pub(super) metric: String,
    /// `train` or `val`.
    pub(super) split: String,
}

/// The metrics of one run, each by step.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Run {
    /// What a person calls it.
    pub(super) label: String,
    /// The series. Where a step was written twice, the last value stands.
    pub(super) series: BTreeMap<Name, BTreeMap<u64, f64>>,
    /// When the first and the last row were written.
    pub(super) written: Option<(Timestamp, Timestamp)>,
}

/// Where a value stands.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub(super) struct Point {
    /// The step.
    pub(super) step: u64,
    /// The value.
    pub(super) value: f64,
}

/// One series in a few numbers.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub(super) struct Digest {
    /// Values.
    pub(super) rows: usize,
    /// The value of the first step.
    pub(super) first: Point,
    /// The value of the last step.
    pub(super) last: Point,
    /// The least value, the earliest of equals.
    pub(super) least: Point,
    /// The greatest value, the earliest of equals.
    pub(super) greatest: Point,
    /// The arithmetic mean.
    pub(super) mean: f64,
    /// The value in the middle.
    pub(super) median: f64,
}

impl Run {
    /// The rows of a ledger.
    pub(super) fn of(label: String, ledger: &Ledger) -> Self {
        let mut run = Self { label, series: BTreeMap::new(), written: None };
        for Row { metric, split, step, value, timestamp, .. } in &ledger.rows {
            let name = Name { metric: metric.clone(), split: split.clone() };
            run.series.entry(name).or_default().insert(*step, *value);
            let (first, last) = run.written.get_or_insert((*timestamp, *timestamp));
            (*first, *last) = ((*first).min(*timestamp), (*last).max(*timestamp));
        }
        run
    }

    /// The last step that any series has.
    pub(super) fn last_step(&self) -> Option<u64> {
        self.series.values().filter_map(|series| Some(*series.last_key_value()?.0)).max()
    }

    /// Seconds between the first and the last row.
    pub(super) fn seconds(&self) -> Option<f64> {
        self.written.map(|(first, last)| last.duration_since(first).as_secs_f64())
    }
}

impl Digest {
    /// None of an empty series.
    pub(super) fn of(series: &BTreeMap<u64, f64>) -> Option<Self> {
        let points = || series.iter().map(|(step, value)| Point { step: *step, value: *value });
        let mut sorted: Vec<f64> = series.values().copied().collect();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        Some(Self {
            rows: series.len(),
            first: points().next()?,
            last: points().next_back()?,
            least: points().min_by(|a, b| a.value.total_cmp(&b.value))?,
            greatest: points().rev().max_by(|a, b| a.value.total_cmp(&b.value))?,
            mean: sorted.iter().sum::<f64>() / sorted.len() as f64,
            median: if sorted.len().is_multiple_of(2) {
                f64::midpoint(sorted[middle - 1], sorted[middle])
            } else {
                sorted[middle]
            },
        })
    }
}

/// A value in about four digits, however large or small.
pub(super) fn shown(value: f64) -> String {
    let size = value.abs();
    if value == 0.0 {
        "0".to_owned()
    } else if (0.001..100.0).contains(&size) {
        format!("{value:.4}")
    } else if (100.0..1e7).contains(&size) {
        format!("{value:.1}")
    } else {
        format!("{value:.3e}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifacts::ledger::tests::row;

    #[test]
    fn a_series_in_numbers() {
        let rows = vec![row(10, "loss", 3.0), row(20, "loss", 1.0), row(30, "loss", 1.0), row(40, "loss", 3.0)];
        let run = Run::of("a".to_owned(), &Ledger { rows, ..Ledger::default() });
        assert_eq!((run.last_step(), run.seconds()), (Some(40), Some(30.0)));
        let digest = Digest::of(run.series.values().next().unwrap()).unwrap();
        let at = |step, value| Point { step, value };
        let expected = Digest {
            rows: 4,
            first: at(10, 3.0),
            last: at(40, 3.0),
            least: at(20, 1.0),
            greatest: at(10, 3.0),
            mean: 2.0,
            median: 2.0,
        };
        assert_eq!(digest, expected);
        assert_eq!(Digest::of(&BTreeMap::new()), None);
    }

    #[test]
    fn the_last_word_of_a_step_counts() {
        let rows = vec![row(10, "loss", 3.0), row(10, "loss", 2.0)];
        let run = Run::of("a".to_owned(), &Ledger { rows, ..Ledger::default() });
        assert_eq!(run.series.values().next().unwrap()[&10].to_bits(), 2.0_f64.to_bits());
    }

    #[test]
    fn values_are_short() {
        let shown: Vec<String> = [0.0, 0.000_5, 1.23456, 21_480.44, 1.5e9, -2.5].into_iter().map(shown).collect();
        assert_eq!(shown, ["0", "5.000e-4", "1.2346", "21480.4", "1.500e9", "-2.5000"]);
    }
}
