//! Early stopping: how long the best value of a metric has stood. Pure.

use codex_configs::MetricMode;

use super::snapshot::{Column, Rest};

const COUNTS: &str = "patience/counts";
const BEST: &str = "patience/best";

/// What early stopping remembers.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Patience {
    /// The step of the newest evaluation; 0 before the first.
    pub(super) evaluated: u64,
    /// Evaluations since the best one.
    pub(super) waited: u64,
    /// The best value so far, and its step.
    pub(super) best: Option<(u64, f64)>,
}

impl Patience {
    /// Hears what the evaluation after `step` steps measured. A value that is not finite is never better.
    pub(super) fn hear(&mut self, step: u64, value: f64, mode: MetricMode) {
        let better = value.is_finite()
            && self.best.is_none_or(|(_, best)| match mode {
                MetricMode::Min => value < best,
                MetricMode::Max => value > best,
            });
        self.evaluated = step;
        self.waited = if better { 0 } else { self.waited + 1 };
        if better {
            self.best = Some((step, value));
        }
    }

    /// Whether so many evaluations in a row were no better.
    pub(super) fn is_over(&self, patience: Option<u64>) -> bool {
        patience.is_some_and(|patience| self.waited >= patience)
    }

    /// Into a state.
    pub(super) fn save(&self, rest: &mut Rest) {
        let Self { evaluated, waited, best } = self;
        rest.insert(COUNTS.to_owned(), Column::U64(vec![*evaluated, *waited, best.map_or(0, |(step, _)| step)]));
        rest.insert(BEST.to_owned(), Column::F64(best.iter().map(|(_, value)| *value).collect()));
    }

    /// Out of a state; none when it has no such columns.
    pub(super) fn load(rest: &mut Rest) -> Option<Self> {
        let (Column::U64(counts), Column::F64(best)) = (rest.remove(COUNTS)?, rest.remove(BEST)?) else { return None };
        let [evaluated, waited, step] = counts.try_into().ok()?;
        let best = match best[..] {
            [] => None,
            [value] => Some((step, value)),
            _ => return None,
        };
        Some(Self { evaluated, waited, best })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_counts_evaluations_without_a_better_value() {
        let mut patience = Patience::default();
        let mut over = Vec::new();
        for (at, value) in [3.0, 2.0, 2.0, f64::NAN, 1.0, 1.5, 1.5, 1.5].into_iter().enumerate() {
            patience.hear(10 * (at as u64 + 1), value, MetricMode::Min);
            over.push(patience.is_over(Some(3)));
        }
        assert_eq!(over, [false, false, false, false, false, false, false, true]);
        assert_eq!(patience.best, Some((50, 1.0)));
        assert!(!patience.is_over(None) && !patience.is_over(Some(4)));

        let mut greatest = Patience::default();
        greatest.hear(1, 0.5, MetricMode::Max);
        greatest.hear(2, 0.75, MetricMode::Max);
        greatest.hear(3, 0.5, MetricMode::Max);
        assert_eq!((greatest.best, greatest.waited, greatest.evaluated), (Some((2, 0.75)), 1, 3));
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let mut patience = Patience::default();
        for value in [f64::NAN, 2.0, 3.0] {
            let mut rest = Rest::new();
            patience.save(&mut rest);
            assert_eq!(Patience::load(&mut rest).as_ref(), Some(&patience));
            assert!(rest.is_empty());
            patience.hear(patience.evaluated + 5, value, MetricMode::Min);
        }
        let mut rest = Rest::new();
        assert_eq!(Patience::load(&mut rest), None);
        rest.insert(COUNTS.to_owned(), Column::U64(vec![1]));
        rest.insert(BEST.to_owned(), Column::F64(vec![]));
        assert_eq!(Patience::load(&mut rest), None);
    }
}
