//! Whether a gate is at least as strict as the gate of a template. Pure.

use crate::{Bound, Comparison, Gate};

/// Returns why `gate` is less strict than `wanted`, which is a gate on the same metric; `None` if it is at least as strict.
///
/// Bounds of two kinds cannot be compared, so a gate with `min` is never as strict as one with `max`.
pub(super) fn weaker(gate: &Gate, wanted: &Gate) -> Option<String> {
    let strict = match (&gate.bound, &wanted.bound) {
        (Bound::Min(own), Bound::Min(least)) => own >= least,
        (Bound::Max(own), Bound::Max(most)) => own <= most,
        (Bound::BetterThan(own), Bound::BetterThan(least)) => same(own, least) && own.by >= least.by,
        (Bound::NotWorseThan(own), Bound::NotWorseThan(most)) => same(own, most) && own.by <= most.by,
        // Better by any margin is not worse.
        (Bound::BetterThan(own), Bound::NotWorseThan(most)) => same(own, most),
        _ => false,
    };
    if !strict {
        return Some(format!("asks for {}, not for {}", gate.bound, wanted.bound));
    }
    match (gate.confidence, wanted.confidence) {
        (None, Some(least)) => return Some(format!("has no confidence; at least {least} is demanded")),
        (Some(own), Some(least)) if own < least => {
            return Some(format!("has the confidence {own}; at least {least} is demanded"));
        }
        _ => {}
    }
    match (gate.min_samples, wanted.min_samples) {
        (None, Some(least)) => Some(format!("has no minSamples; at least {least} are demanded")),
        (Some(own), Some(least)) if own < least => Some(format!("has minSamples {own}; at least {least} are demanded")),
        _ => None,
    }
}

fn same(own: &Comparison, wanted: &Comparison) -> bool {
    own.evaluation == wanted.evaluation
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::weaker;
    use crate::{Bound, Comparison, Gate};

    fn gate(text: &str) -> Gate {
        text.parse().expect("a gate")
    }

    fn comparing(bound: fn(Comparison) -> Bound, evaluation: &str, by: f64) -> Gate {
        Gate { bound: bound(Comparison { evaluation: evaluation.to_owned(), by }), ..gate("exact_match>=0.5") }
    }

    #[test]
    fn a_gate_is_as_strict_only_in_every_part() {
        let wanted = Gate { min_samples: Some(100), ..gate("exact_match>=0.9@0.95") };
        let own = |text: &str, samples| Gate { min_samples: samples, ..gate(text) };
        assert_eq!(weaker(&own("exact_match>=0.9@0.95", Some(100)), &wanted), None);
        assert_eq!(weaker(&own("exact_match>=0.95@0.99", Some(1000)), &wanted), None);
        for (weak, said) in [
            (own("exact_match>=0.89@0.95", Some(100)), "asks for at least 0.89, not for at least 0.9"),
            (own("exact_match<=0.9@0.95", Some(100)), "asks for at most 0.9, not for at least 0.9"),
            (own("exact_match>=0.9", Some(100)), "has no confidence; at least 0.95 is demanded"),
            (own("exact_match>=0.9@0.9", Some(100)), "has the confidence 0.9; at least 0.95 is demanded"),
            (own("exact_match>=0.9@0.95", None), "has no minSamples; at least 100 are demanded"),
            (own("exact_match>=0.9@0.95", Some(99)), "has minSamples 99; at least 100 are demanded"),
        ] {
            assert_eq!(weaker(&weak, &wanted).as_deref(), Some(said));
        }
        assert_eq!(weaker(&gate("exact_match<=0.1"), &gate("exact_match<=0.2")), None);
        assert!(weaker(&gate("exact_match<=0.3"), &gate("exact_match<=0.2")).is_some());
    }

    #[test]
    fn comparisons_must_name_the_same_evaluation() {
        let (better, worse) = (Bound::BetterThan as fn(_) -> _, Bound::NotWorseThan as fn(_) -> _);
        assert_eq!(weaker(&comparing(better, "a", 0.1), &comparing(better, "a", 0.05)), None);
        assert!(weaker(&comparing(better, "a", 0.01), &comparing(better, "a", 0.05)).is_some());
        assert!(weaker(&comparing(better, "b", 0.1), &comparing(better, "a", 0.05)).is_some());
        assert_eq!(weaker(&comparing(worse, "a", 0.01), &comparing(worse, "a", 0.05)), None);
        assert!(weaker(&comparing(worse, "a", 0.1), &comparing(worse, "a", 0.05)).is_some());
        assert_eq!(weaker(&comparing(better, "a", 0.0), &comparing(worse, "a", 0.0)), None);
        assert!(weaker(&comparing(worse, "a", 0.0), &comparing(better, "a", 0.0)).is_some());
    }

    proptest! {
        #[test]
        fn strictness_is_an_order(a in 0.0_f64..1.0, b in 0.0_f64..1.0, c in 0.0_f64..1.0) {
            let of = |least| Gate { bound: Bound::Min(least), ..gate("exact_match>=0.5") };
            prop_assert_eq!(weaker(&of(a), &of(a)), None);
            if weaker(&of(a), &of(b)).is_none() && weaker(&of(b), &of(c)).is_none() {
                prop_assert_eq!(weaker(&of(a), &of(c)), None);
            }
        }
    }
}
