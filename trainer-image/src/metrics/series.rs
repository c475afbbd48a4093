//! The series of a run: the values of one metric on one split, by step. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::artifacts::ledger::{Ledger, Row};

/// The name of a series.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub(super) struct Name {
    /// The metric's name.
    pub(super) metric: String,
    /// `train` or `val`.
    pub(super) split: String,
}

/// The metrics of one run, each by step.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Run {
    /// The run's label in tables and plots.
    pub(super) label: String,
    /// Values by step. The last value wins where a step was written twice.
    pub(super) series: BTreeMap<Name, BTreeMap<u64, f64>>,
    /// Times of the first and the last row.
    pub(super) written: Option<(Timestamp, Timestamp)>,
}

/// A value and its step.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub(super) struct Point {
    /// The step.
    pub(super) step: u64,
    /// The value.
    pub(super) value: f64,
}

/// Summary statistics of a series.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub(super) struct Statistics {
    /// Number of values.
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
    /// The median.
    pub(super) median: f64,
}

impl Run {
    /// Groups the rows of a ledger.
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

    /// Returns the last step of all series.
    pub(super) fn last_step(&self) -> Option<u64> {
        self.series.values().filter_map(|series| Some(*series.last_key_value()?.0)).max()
    }

    /// Returns the seconds between the first and the last row.
    pub(super) fn seconds(&self) -> Option<f64> {
        self.written.map(|(first, last)| last.duration_since(first).as_secs_f64())
    }
}

impl Statistics {
    /// Computes the statistics; `None` for an empty series.
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

/// Formats a value with about four significant digits.
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
    fn statistics_of_a_series() {
        let rows = vec![row(10, "loss", 3.0), row(20, "loss", 1.0), row(30, "loss", 1.0), row(40, "loss", 3.0)];
        let run = Run::of("a".to_owned(), &Ledger { rows, ..Ledger::default() });
        assert_eq!((run.last_step(), run.seconds()), (Some(40), Some(30.0)));
        let statistics = Statistics::of(run.series.values().next().unwrap()).unwrap();
        let at = |step, value| Point { step, value };
        let expected = Statistics {
            rows: 4,
            first: at(10, 3.0),
            last: at(40, 3.0),
            least: at(20, 1.0),
            greatest: at(10, 3.0),
            mean: 2.0,
            median: 2.0,
        };
        assert_eq!(statistics, expected);
        assert_eq!(Statistics::of(&BTreeMap::new()), None);
    }

    #[test]
    fn the_last_value_of_a_step_wins() {
        let rows = vec![row(10, "loss", 3.0), row(10, "loss", 2.0)];
        let run = Run::of("a".to_owned(), &Ledger { rows, ..Ledger::default() });
        assert_eq!(run.series.values().next().unwrap()[&10].to_bits(), 2.0_f64.to_bits());
    }

    #[test]
    fn values_have_four_digits() {
        let shown: Vec<String> = [0.0, 0.000_5, 1.23456, 21_480.44, 1.5e9, -2.5].into_iter().map(shown).collect();
        assert_eq!(shown, ["0", "5.000e-4", "1.2346", "21480.4", "1.500e9", "-2.5000"]);
    }
}
