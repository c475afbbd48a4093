//! What a gate can decide at all: the items that even a perfect result needs. Pure.

use crate::{Bound, Bounds, Gate, Kind, MIN_BOOTSTRAP, Method, Rounding, Sample, bounds, gate::Limit, paired::mcnemar};

/// The largest number of items that is considered.
const MOST: u64 = 1_000_000_000;

/// Returns the fewest items with which a perfect result passes a gate; `None` if no number up to a billion does.
pub fn fewest_items(gate: &Gate) -> Option<u64> {
    fewest(|n| passes(gate, n))
}

/// Returns the fewest items with which a result that is `margin` better than the limit of a gate passes, if its values have no spread:
/// with fewer, such a result is not decided. `None` if no number up to a billion decides it, or if the metric is of the whole corpus,
/// whose bounds are not known beforehand.
fn fewest_at(gate: &Gate, margin: f64) -> Option<u64> {
    fewest(|n| passes_by(gate, margin, n))
}

/// Returns the smallest number that is enough, if there is one up to a billion.
fn fewest(is_enough: impl Fn(u64) -> bool) -> Option<u64> {
    if !is_enough(MOST) {
        return None;
    }
    let (mut few, mut enough) = (0, MOST);
    while enough - few > 1 {
        let middle = few.midpoint(enough);
        if is_enough(middle) {
            enough = middle;
        } else {
            few = middle;
        }
    }
    Some(enough)
}

/// Says everything about a gate that is worth knowing before anything is measured: that it lacks power, or that nothing protects it from
/// chance. `items` is the most that can be scored, if that is known.
pub fn notices(gate: &Gate, items: Option<u64>) -> Vec<String> {
    let powerless = powerless(gate, items).map(|why| why.message().to_owned());
    powerless.into_iter().chain(unprotected(gate)).collect()
}

/// Says that nothing protects a gate from chance. Clients that drop fields that they do not know, such as a misspelt `minSample`, leave
/// such gates.
fn unprotected(gate: &Gate) -> Option<String> {
    let metric = gate.metric;
    (gate.min_samples.is_none() && gate.confidence.is_none()).then(|| {
        format!(
            "the gate on {metric} has neither minSamples nor confidence: any number of items decides it, also by chance; set them, \
             such as confidence: \"0.95\", or check their spelling"
        )
    })
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
        (_, least) => undecided(gate, items, least).map(Powerless::Unless),
    }
}

/// Says that a result at the margin of a gate cannot be decided.
fn undecided(gate: &Gate, items: Option<u64>, least: Option<u64>) -> Option<String> {
    let Gate { metric, bound, margin: Some(margin), confidence: Some(confidence), .. } = gate else { return None };
    if metric.is_of_corpus() {
        return None;
    }
    let counted = match (items, least) {
        (Some(items), _) => format!("at most {items} items are scored"),
        (None, Some(least)) => format!("minSamples is {least}"),
        (None, None) => return None,
    };
    let n = items.or(least)?;
    let wanted = match fewest_at(gate, *margin) {
        Some(fewest) if n >= fewest => return None,
        Some(fewest) => format!("needs {fewest}"),
        None => "is never decided".to_owned(),
    };
    let (target, compared) =
        (target(gate, *margin), if bound.comparison().is_some() { "difference" } else { "result" });
    Some(format!(
        "{counted}, too few to decide the gate on {metric} at its margin {margin}: {bound} with confidence {confidence}, by a \
         {compared} of {}, {wanted}",
        Rounding::Down.show(target)
    ))
}

/// Returns the value, or the difference, that is `margin` better than the limit of a gate.
fn target(gate: &Gate, margin: f64) -> f64 {
    match gate.bound.limit() {
        Limit::Least(least) => (least + margin).min(1.0),
        Limit::Most(most) => (most - margin).max(0.0),
    }
}

/// Whether a result that is `margin` better than the limit, over `n` items without spread, passes. Counts may be fractions.
fn passes_by(gate: &Gate, margin: f64, n: u64) -> bool {
    let Some(confidence) = gate.confidence else { return n > 0 };
    let (target, n, kind) = (target(gate, margin), n as f64, gate.metric.kind());
    let (sum, squares) = (n * target, n * target * target);
    let Bounds { lower, upper } = match (gate.bound.comparison(), kind) {
        (_, Kind::Estimate | Kind::ClusterEstimate) => return false,
        (Some(with), Kind::Share) if with.by <= 0.0 => {
            return mcnemar(sum.max(0.0), (-sum).max(0.0)) <= 1.0 - confidence;
        }
        // Pairs of a share differ by 1 or not at all.
        (Some(_), Kind::Share) => bounds::difference(n, sum, sum.abs(), confidence),
        (Some(_), _) => bounds::difference(n, sum, squares, confidence),
        (None, Kind::Share) => bounds::share(sum, n, confidence),
        (None, _) => bounds::mean(n, sum, squares, confidence),
    };
    match gate.bound.limit() {
        Limit::Least(least) => lower >= least,
        Limit::Most(most) => upper <= most,
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
    // The best value of a corpus metric has no bound that is known beforehand.
    if gate.metric.method() == Some(Method::Bootstrap) {
        return n >= MIN_BOOTSTRAP;
    }
    let sample = match (&gate.bound, kind) {
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
        assert_eq!(fewest_items(&gate("lowest_trace_coverage>=0.95@0.95")), Some(174), "in each category");
        let compared = |by, metric| Gate {
            metric,
            bound: Bound::BetterThan(Comparison { evaluation: "before".to_owned(), by }),
            min_samples: None,
            confidence: Some(0.95),
            margin: None,
        };
        assert_eq!(fewest_items(&compared(0.0, Metric::ExactMatch)), Some(5), "1/32");
        assert!(fewest_items(&compared(0.5, Metric::ExactMatch)) > Some(5));
        assert_eq!(fewest_items(&compared(1.0, Metric::TokenF1)), None);
    }

    #[test]
    fn gates_that_cannot_decide_at_their_margin_are_named_beforehand() {
        let of = |text: &str, margin, min_samples, items| {
            powerless(&Gate { margin: Some(margin), min_samples, ..gate(text) }, items)
                .map(|why| why.message().to_owned())
        };
        let share = "exact_match>=0.95@0.95";
        let fewest = fewest_at(&gate(share), 0.02).expect("a number");
        // 97 % must be told from 95 %: about (1.645 · √(0.03 · 0.97) / 0.02)² ≈ 200, and more for the exact bound.
        assert!((200..400).contains(&fewest), "{fewest}");
        let at = |n: f64| bounds::share(n * 0.97, n, 0.95).lower;
        assert!(at(fewest as f64) >= 0.95 && at(fewest as f64 - 1.0) < 0.95);
        assert_eq!(of(share, 0.02, Some(fewest), None), None);
        assert_eq!(of(share, 0.02, None, None), None, "nothing is known");
        assert_eq!(of(share, 0.02, Some(59), Some(fewest)), None, "so many are known to be scored");
        assert_eq!(
            of(share, 0.02, Some(100), None).expect("too few"),
            format!(
                "minSamples is 100, too few to decide the gate on exact_match at its margin 0.02: at least 0.95 with confidence \
                 0.95, by a result of 0.97, needs {fewest}"
            )
        );
        let never = of("exact_match<=0.05@0.95", 0.0, Some(100), Some(500)).expect("never");
        assert!(never.starts_with("at most 500 items are scored, too few to decide"), "{never}");
        assert!(never.ends_with("at most 0.05 with confidence 0.95, by a result of 0.05, is never decided"), "{never}");
        // Without a spread, 7 ln 40 / (3 (n - 1)) ≤ 0.02.
        assert_eq!(fewest_at(&gate("token_f1>=0.5@0.95"), 0.02), Some(432));
        assert_eq!(of("bleu>=30@0.95", 1.0, Some(40), None), None, "the spread of a corpus metric is not known");
        let compared = |by| Gate {
            bound: Bound::BetterThan(Comparison { evaluation: "before".to_owned(), by }),
            ..gate("exact_match>=0@0.95")
        };
        // 100 problems of which 5 % differ: 1/32.
        assert_eq!(fewest_at(&compared(0.0), 0.05), Some(87));
        assert!(fewest_at(&compared(0.02), 0.05) > Some(600));
    }

    #[test]
    fn gates_that_nothing_protects_from_chance_are_named() {
        let told = notices(&gate("exact_match>=0.95"), Some(500));
        assert_eq!(
            told,
            [
                "the gate on exact_match has neither minSamples nor confidence: any number of items decides it, also by chance; set \
              them, such as confidence: \"0.95\", or check their spelling"
            ]
        );
        assert_eq!(notices(&Gate { min_samples: Some(100), ..gate("exact_match>=0.95") }, Some(500)), [""; 0]);
        assert_eq!(notices(&gate("exact_match>=0.95@0.95"), Some(500)), [""; 0]);
        assert_eq!(notices(&gate("exact_match>=0.95@0.95"), Some(58)).len(), 1, "it lacks power");
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
