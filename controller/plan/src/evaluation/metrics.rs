//! Conversion of measurements to their exact form in the status, which has no floats, and back. Pure.

use std::collections::BTreeMap;

use codex_crds::MetricStatus;
use codex_verdict::Measurement;

use crate::numbers::count;

/// Returns a metric as the status records it. Floats become text that parses to the same float.
pub(super) fn written(name: &str, measurement: &Measurement) -> MetricStatus {
    let text = |number: Option<f64>| number.filter(|number| number.is_finite()).map(|number| format!("{number:e}"));
    let metric = |n: u64| MetricStatus { name: name.to_owned(), n: count(n), ..MetricStatus::default() };
    let written = match *measurement {
        Measurement::Share { successes, n } => MetricStatus { successes: Some(count(successes)), ..metric(n) },
        Measurement::Duel { wins, ties, losses } => MetricStatus {
            wins: Some(count(wins)),
            ties: Some(count(ties)),
            losses: Some(count(losses)),
            ..metric(wins.saturating_add(ties).saturating_add(losses))
        },
        Measurement::Mean { n, sum, sum_of_squares } | Measurement::Difference { n, sum, sum_of_squares } => {
            MetricStatus { sum: text(sum), sum_of_squares: text(sum_of_squares), ..metric(n) }
        }
        Measurement::Estimate { value, lower, upper, n, confidence, method } => MetricStatus {
            value: text(value),
            lower: text(lower),
            upper: text(upper),
            confidence: text(confidence),
            method: Some(method.name().to_owned()),
            ..metric(n)
        },
        Measurement::ClusterMean { n, items, sum, sum_of_squares }
        | Measurement::ClusterDifference { n, items, sum, sum_of_squares } => {
            MetricStatus { items: Some(count(items)), ..written(name, &Measurement::Mean { n, sum, sum_of_squares }) }
        }
        Measurement::ClusterEstimate { value, lower, upper, n, items, confidence, method } => MetricStatus {
            items: Some(count(items)),
            ..written(name, &Measurement::Estimate { value, lower, upper, n, confidence, method })
        },
    };
    MetricStatus { kind: measurement.kind().name().to_owned(), ..written }
}

/// Returns the measurements in a status; `None` if any of them is malformed.
pub(crate) fn measured(metrics: &[MetricStatus]) -> Option<BTreeMap<String, Measurement>> {
    metrics.iter().map(|metric| Some((metric.name.clone(), metric.measurement()?))).collect()
}

#[cfg(test)]
mod tests {
    use codex_verdict::Method;
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
            (count(), number(), number()).prop_map(|(n, sum, sum_of_squares)| Measurement::Difference {
                n,
                sum,
                sum_of_squares
            }),
            (count(), number(), number(), number(), number()).prop_map(|(n, value, lower, upper, confidence)| {
                Measurement::Estimate { value, lower, upper, n, confidence, method: Method::Bootstrap }
            }),
            (count(), count(), number(), number()).prop_map(|(n, items, sum, sum_of_squares)| {
                Measurement::ClusterMean { n, items, sum, sum_of_squares }
            }),
            (count(), count(), number(), number()).prop_map(|(n, items, sum, sum_of_squares)| {
                Measurement::ClusterDifference { n, items, sum, sum_of_squares }
            }),
            (count(), count(), number(), number(), number()).prop_map(|(n, items, value, lower, upper)| {
                let (confidence, method) = (Some(0.95), Method::Bootstrap);
                Measurement::ClusterEstimate { value, lower, upper, n, items, confidence, method }
            }),
        ]
    }

    proptest! {
        #[test]
        fn a_status_holds_numbers_exactly(metrics in prop::collection::btree_map("[a-z_.]{1,63}", measurement(), 0..6)) {
            let held: Vec<_> = metrics.iter().map(|(name, measurement)| written(name, measurement)).collect();
            let texts = held.iter().flat_map(|metric| [&metric.sum, &metric.value, &metric.confidence]);
            prop_assert!(texts.flatten().all(|text| text.len() <= 40));
            prop_assert_eq!(measured(&held), Some(metrics));
        }
    }
}
