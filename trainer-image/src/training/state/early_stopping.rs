//! Early stopping: counts the evaluations since the best value of a metric. Pure.

use codex_configs::MetricMode;

use super::snapshot::{Column, Columns};

const COUNTS: &str = "patience/counts";
const BEST: &str = "patience/best";

/// State of early stopping.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct EarlyStopping {
    /// Step of the latest evaluation; 0 before the first.
    pub(crate) evaluated: u64,
    /// Evaluations since the best one.
    pub(crate) since_best: u64,
    /// Step and value of the best evaluation so far.
    pub(crate) best: Option<(u64, f64)>,
}

impl EarlyStopping {
    /// Records the value of the evaluation after `step` steps. A value that is not finite is never better.
    pub(crate) fn record(&mut self, step: u64, value: f64, mode: MetricMode) {
        let better = value.is_finite()
            && self.best.is_none_or(|(_, best)| match mode {
                MetricMode::Min => value < best,
                MetricMode::Max => value > best,
            });
        self.evaluated = step;
        self.since_best = if better { 0 } else { self.since_best + 1 };
        if better {
            self.best = Some((step, value));
        }
    }

    /// Whether `patience` evaluations in a row were no better.
    pub(crate) fn should_stop(&self, patience: Option<u64>) -> bool {
        patience.is_some_and(|patience| self.since_best >= patience)
    }

    /// Adds the columns of this value to a snapshot.
    pub(crate) fn save(&self, rest: &mut Columns) {
        let Self { evaluated, since_best, best } = self;
        rest.insert(COUNTS.to_owned(), Column::U64(vec![*evaluated, *since_best, best.map_or(0, |(step, _)| step)]));
        rest.insert(BEST.to_owned(), Column::F64(best.iter().map(|(_, value)| *value).collect()));
    }

    /// Takes the value out of the columns of a snapshot; `None` if they are missing or malformed.
    pub(crate) fn load(rest: &mut Columns) -> Option<Self> {
        let (Column::U64(counts), Column::F64(best)) = (rest.remove(COUNTS)?, rest.remove(BEST)?) else { return None };
        let [evaluated, since_best, step] = counts.try_into().ok()?;
        let best = match best[..] {
            [] => None,
            [value] => Some((step, value)),
            _ => return None,
        };
        Some(Self { evaluated, since_best, best })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_counts_evaluations_without_a_better_value() {
        let mut patience = EarlyStopping::default();
        let mut over = Vec::new();
        for (at, value) in [3.0, 2.0, 2.0, f64::NAN, 1.0, 1.5, 1.5, 1.5].into_iter().enumerate() {
            patience.record(10 * (at as u64 + 1), value, MetricMode::Min);
            over.push(patience.should_stop(Some(3)));
        }
        assert_eq!(over, [false, false, false, false, false, false, false, true]);
        assert_eq!(patience.best, Some((50, 1.0)));
        assert!(!patience.should_stop(None) && !patience.should_stop(Some(4)));

        let mut greatest = EarlyStopping::default();
        greatest.record(1, 0.5, MetricMode::Max);
        greatest.record(2, 0.75, MetricMode::Max);
        greatest.record(3, 0.5, MetricMode::Max);
        assert_eq!((greatest.best, greatest.since_best, greatest.evaluated), (Some((2, 0.75)), 1, 3));
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let mut patience = EarlyStopping::default();
        for value in [f64::NAN, 2.0, 3.0] {
            let mut rest = Columns::new();
            patience.save(&mut rest);
            assert_eq!(EarlyStopping::load(&mut rest).as_ref(), Some(&patience));
            assert!(rest.is_empty());
            patience.record(patience.evaluated + 5, value, MetricMode::Min);
        }
        let mut rest = Columns::new();
        assert_eq!(EarlyStopping::load(&mut rest), None);
        rest.insert(COUNTS.to_owned(), Column::U64(vec![1]));
        rest.insert(BEST.to_owned(), Column::F64(vec![]));
        assert_eq!(EarlyStopping::load(&mut rest), None);
    }
}
