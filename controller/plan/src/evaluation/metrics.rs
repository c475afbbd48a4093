//! Measurements as a status holds them: exactly, and without floats. Pure.

use std::collections::BTreeMap;

use codex_crds::MetricStatus;
use codex_reports::Measurement;

use crate::numbers::count;

const SHARE: &str = "share";
const DUEL: &str = "duel";
const MEAN: &str = "mean";

/// A metric as a status holds it: floats as text, digit for digit.
pub(super) fn written(name: &str, measurement: &Measurement) -> MetricStatus {
    let text = |number: Option<f64>| number.filter(|number| number.is_finite()).map(|number| format!("{number:e}"));
    let metric = |kind: &str, n: u64| MetricStatus {
        name: name.to_owned(),
        n: count(n),
        successes: None,
        wins: None,
        ties: None,
        losses: None,
        sum: None,
        sum_of_squares: None,
        kind: kind.to_owned(),
    };
    match *measurement {
        Measurement::Share { successes, n } => MetricStatus { successes: Some(count(successes)), ..metric(SHARE, n) },
        Measurement::Duel { wins, ties, losses } => MetricStatus {
            wins: Some(count(wins)),
            ties: Some(count(ties)),
            losses: Some(count(losses)),
            ..metric(DUEL, wins.saturating_add(ties).saturating_add(losses))
        },
        Measurement::Mean { n, sum, sum_of_squares } => {
            MetricStatus { sum: text(sum), sum_of_squares: text(sum_of_squares), ..metric(MEAN, n) }
        }
    }
}

/// The measurements that a status holds; none when one of them is none.
pub(super) fn measured(metrics: &[MetricStatus]) -> Option<BTreeMap<String, Measurement>> {
    let number = |count: Option<i64>| u64::try_from(count?).ok();
    let float = |text: &Option<String>| match text {
        None => Some(None),
        Some(text) => text.parse().ok().map(Some),
    };
    metrics
        .iter()
        .map(|metric| {
            let measurement = match metric.kind.as_str() {
                SHARE => Measurement::Share { successes: number(metric.successes)?, n: number(Some(metric.n))? },
                DUEL => Measurement::Duel {
                    wins: number(metric.wins)?,
                    ties: number(metric.ties)?,
                    losses: number(metric.losses)?,
                },
                MEAN => Measurement::Mean {
                    n: number(Some(metric.n))?,
                    sum: float(&metric.sum)?,
                    sum_of_squares: float(&metric.sum_of_squares)?,
                },
                _ => return None,
            };
            Some((metric.name.clone(), measurement))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn measurement() -> impl Strategy<Value = Measurement> {
        let number = || prop::option::of(prop::num::f64::NORMAL | prop::num::f64::ZERO | prop::num::f64::SUBNORMAL);
        let count = || 0..=(1_u64 << 53);
        prop_oneof![
            (count(), count()).prop_map(|(successes, n)| Measurement::Share { successes, n }),
            (count(), count(), count()).prop_map(|(wins, ties, losses)| Measurement::Duel { wins, ties, losses }),
            (count(), number(), number()).prop_map(|(n, sum, sum_of_squares)| Measurement::Mean {
                n,
                sum,
                sum_of_squares
            }),
        ]
    }

    proptest! {
        #[test]
        fn a_status_holds_numbers_exactly(metrics in prop::collection::btree_map("[a-z_.]{1,63}", measurement(), 0..6)) {
            let held: Vec<_> = metrics.iter().map(|(name, measurement)| written(name, measurement)).collect();
            prop_assert!(held.iter().all(|metric| metric.sum.as_ref().is_none_or(|text| text.len() <= 40)));
            prop_assert_eq!(measured(&held), Some(metrics));
        }
    }
}
