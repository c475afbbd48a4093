//! What a gate can decide at all: the items that even a perfect result needs. Pure.

use crate::{Bound, Bounds, Gate, Kind, MIN_BOOTSTRAP, Sample, bounds, gate::Limit, paired::mcnemar};

/// The largest number of items that is considered.
const MOST: u64 = 1_000_000_000;

/// Returns the fewest items with which a perfect result passes a gate; `None` if no number up to a billion does.
pub fn fewest_items(gate: &Gate) -> Option<u64> {
    if !passes(gate, MOST) {
        return None;
    }
    let (mut few, mut enough) = (0, MOST);
    while enough - few > 1 {
        let middle = few.midpoint(enough);
        if passes(gate, middle) {
            enough = middle;
        } else {
            few = middle;
        }
    }
    Some(enough)
}

/// Says why a gate cannot pass, or cannot be decided by its `minSamples`, before anything is measured. `items` is the most that can be
/// scored, if that is known.
pub fn powerless(gate: &Gate, items: Option<u64>) -> Option<Powerless> {
    let (metric, bound) = (gate.metric, &gate.bound);
    let Some(fewest) = fewest_items(gate) else {
        return Some(Powerless::Never(format!(
            "the gate on {metric} can never pass: even a perfect result over any number of items does not prove {bound}"
        )));
    };
    let with = gate.confidence.map(|confidence| format!(" with confidence {confidence}")).unwrap_or_default();
    match (items, gate.min_samples) {
        (Some(items), Some(least)) if items < least => Some(Powerless::Never(format!(
            "the gate on {metric} cannot be decided: minSamples is {least}, but at most {items} items are scored"
        ))),
        (Some(items), _) if items < fewest => Some(Powerless::Never(format!(
            "the gate on {metric} cannot pass: at most {items} items are scored, but {bound}{with} needs a perfect result over {fewest}"
        ))),
        (None, Some(least)) if least < fewest => Some(Powerless::Unless(format!(
            "minSamples {least} is too few for the gate on {metric} to pass: {bound}{with} needs a perfect result over {fewest}"
        ))),
        _ => None,
    }
}

/// Why a gate lacks power.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Powerless {
    /// It cannot pass, whatever is measured.
    Never(String),
    /// It can pass only if more items are scored than its `minSamples` demands.
    Unless(String),
}

impl Powerless {
    /// Returns the sentence.
    pub fn message(&self) -> &str {
        match self {
            Self::Never(message) | Self::Unless(message) => message,
        }
    }
}

/// Whether a perfect result over `n` items passes.
fn passes(gate: &Gate, n: u64) -> bool {
    let Some(confidence) = gate.confidence else { return n > 0 };
    let kind = gate.metric.kind();
    let all = n as f64;
    let sample = match (&gate.bound, kind) {
        // The best value of a corpus metric has no bound that is known beforehand.
        (_, Kind::Estimate) => return n >= MIN_BOOTSTRAP,
        (Bound::BetterThan(with) | Bound::NotWorseThan(with), Kind::Share) => {
            if with.by <= 0.0 {
                return mcnemar(all, 0.0) <= 1.0 - confidence;
            }
            Sample::Pairs { wins: n, losses: 0, n }
        }
        (Bound::BetterThan(_) | Bound::NotWorseThan(_), _) => Sample::Difference { n, sum: all, squares: all },
        (Bound::Min(_), Kind::Share) => Sample::Share { successes: n, n },
        (Bound::Max(_), Kind::Share) => Sample::Share { successes: 0, n },
        (Bound::Min(_), _) => Sample::Mean { n, sum: all, squares: all },
        (Bound::Max(_), _) => Sample::Mean { n, sum: 0.0, squares: 0.0 },
    };
    let Some(Bounds { lower, upper }) = bounds(&sample, confidence) else { return false };
    match gate.bound.limit() {
        Limit::Least(least) => lower >= least,
        Limit::Most(most) => upper <= most,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Comparison, Metric};

    fn gate(text: &str) -> Gate {
        text.parse().expect("a gate")
    }

    #[test]
    fn the_fewest_items_are_those_of_the_bounds() {
        // Wilks 1941: 59 of 59.
        assert_eq!(fewest_items(&gate("exact_match>=0.95@0.95")), Some(59));
        assert_eq!(fewest_items(&gate("exact_match<=0.05@0.95")), Some(59));
        assert_eq!(fewest_items(&gate("exact_match>=0.95")), Some(1));
        assert_eq!(fewest_items(&gate("exact_match>=1@0.95")), None);
        assert_eq!(fewest_items(&gate("bleu>=30@0.95")), Some(30));
        // 7 ln 40 / (3 (n − 1)) ≤ 0.05 for values without spread.
        assert_eq!(fewest_items(&gate("token_f1>=0.95@0.95")), Some(174));
        let compared = |by, metric| Gate {
            metric,
            bound: Bound::BetterThan(Comparison { evaluation: "before".to_owned(), by }),
            min_samples: None,
            confidence: Some(0.95),
        };
        assert_eq!(fewest_items(&compared(0.0, Metric::ExactMatch)), Some(5), "1/32");
        assert!(fewest_items(&compared(0.5, Metric::ExactMatch)) > Some(5));
        assert_eq!(fewest_items(&compared(1.0, Metric::TokenF1)), None);
    }

    #[test]
    fn gates_without_power_are_named_beforehand() {
        let of = |min_samples, items| powerless(&Gate { min_samples, ..gate("exact_match>=0.95@0.95") }, items);
        assert_eq!(of(Some(59), Some(500)), None);
        assert_eq!(of(Some(20), Some(500)), None, "500 items are known to be scored");
        assert_eq!(of(None, None), None);
        assert_eq!(
            of(None, Some(58)).expect("too few").message(),
            "the gate on exact_match cannot pass: at most 58 items are scored, but at least 0.95 with confidence 0.95 needs a \
             perfect result over 59"
        );
        assert_eq!(
            of(Some(501), Some(500)).expect("too few").message(),
            "the gate on exact_match cannot be decided: minSamples is 501, but at most 500 items are scored"
        );
        assert_eq!(
            of(Some(58), None),
            Some(Powerless::Unless(
                "minSamples 58 is too few for the gate on exact_match to pass: at least 0.95 with confidence 0.95 needs a \
                 perfect result over 59"
                    .to_owned()
            ))
        );
        let never = powerless(&gate("exact_match>=1@0.9"), None).expect("never");
        assert_eq!(
            never.message(),
            "the gate on exact_match can never pass: even a perfect result over any number of items does not prove at least 1"
        );
    }
}
