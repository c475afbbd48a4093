//! Budgets of reads: how often a set of held-out problems may decide about promotions. Pure.
//!
//! Whoever tries many models on one set of problems and promotes the best result passes by chance sooner or later. A budget of B reads
//! bounds that: each gate is judged again at confidence 1 − α/B, where α is 1 − its confidence, and no read after the first B promotes.
//! By Bonferroni's inequality, the probability that any of the B reads passes wrongly is at most α, however the reads depend on each
//! other.

use super::{Candidate, ReadBudget};
use crate::{Gate, Measurement, Verdict, judge_one};

/// How far the confidence of an estimate may be below the divided one: it is written in decimals.
const TOLERANCE: f64 = 1e-12;

/// Checks that a budget can divide the errors of these gates.
///
/// # Errors
/// What is wrong, after the name of the template.
pub(super) fn check(ReadBudget { budget }: ReadBudget, gates: &[Gate]) -> Result<(), String> {
    if budget == 0 {
        return Err("reads.budget is 0; use 1 or more".to_owned());
    }
    match gates.iter().position(|gate| gate.confidence.is_none()) {
        Some(index) => Err(format!("gates[{index}] has no confidence, whose error reads.budget divides: set one")),
        None => Ok(()),
    }
}

/// Returns the confidence of each of `budget` reads, with which all of them together have this one.
pub(crate) fn divided(confidence: f64, budget: u32) -> f64 {
    // At 1 nothing could ever be shown.
    (1.0 - (1.0 - confidence) / f64::from(budget.max(1))).min(1.0 - f64::EPSILON)
}

/// Returns why the read of a candidate does not promote under a budget.
pub(super) fn exceeded(candidate: &Candidate, budget: ReadBudget, wanted: &[Gate]) -> Option<String> {
    let ReadBudget { budget } = budget;
    let Some(read) = candidate.read else {
        return Some(format!(
            "does not record which read of its problems its verdict was, and reads.budget is {budget}: create it again under \
             another name"
        ));
    };
    if read > u64::from(budget) {
        let problems =
            candidate.problems.map_or_else(|| "its problems".to_owned(), |it| format!("the problems {}", it.short()));
        return Some(format!(
            "was read {read} of {problems}, and reads.budget is {budget}, so it does not promote (use problems that have not \
             been read so often)"
        ));
    }
    wanted.iter().find_map(|gate| judged_again(candidate, budget, gate))
}

/// Returns why a gate does not pass at the divided confidence.
fn judged_again(candidate: &Candidate, budget: u32, gate: &Gate) -> Option<String> {
    let confidence = gate.confidence?;
    let least = divided(confidence, budget);
    let reported = match candidate.metrics.get(&gate.measurement()) {
        Some(Measurement::Estimate { confidence, .. }) => *confidence,
        _ => None,
    };
    // An estimate has bounds at one confidence only. Wider ones prove more than is asked.
    let at = reported.filter(|reported| *reported >= least - TOLERANCE).unwrap_or(least);
    let result = judge_one(&Gate { confidence: Some(at), ..gate.clone() }, &candidate.metrics);
    if result.verdict == Verdict::Passed {
        return None;
    }
    let hint = match reported {
        Some(reported) if reported < least - TOLERANCE => format!(
            "; its bounds have the confidence {reported}: set evaluation.confidence and the confidence of its gate to {} or more",
            shown(least)
        ),
        _ => String::new(),
    };
    Some(format!(
        "has {} that does not pass once more at confidence {}, which reads.budget {budget} makes of {confidence} ({}{hint})",
        gate.metric,
        shown(least),
        result.message
    ))
}

/// Returns a confidence in few digits, rounded up.
fn shown(confidence: f64) -> String {
    let digits = 1e6;
    let rounded = (confidence * digits - 1e-6).ceil() / digits;
    if rounded < 1.0 { rounded.to_string() } else { confidence.to_string() }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::{check, divided, exceeded};
    use crate::{
        Gate, Measurement, Method,
        policy::{Candidate, ReadBudget},
    };

    fn gate(text: &str) -> Gate {
        text.parse().expect("a gate")
    }

    fn candidate(read: Option<u64>, metric: &str, measurement: Measurement) -> Candidate {
        Candidate::new("lite".to_owned(), "cot-lite".to_owned(), &[], &BTreeMap::new())
            .measured(read, BTreeMap::from([(metric.to_owned(), measurement)]))
    }

    fn share(read: Option<u64>, successes: u64) -> Candidate {
        candidate(read, "exact_match", Measurement::Share { successes, n: 500 })
    }

    fn told(candidate: &Candidate, budget: u32, text: &str) -> Option<String> {
        exceeded(candidate, ReadBudget { budget }, &[gate(text)])
    }

    #[test]
    fn reads_count_up_to_the_budget() {
        let gate = "exact_match>=0.9@0.95";
        assert_eq!(told(&share(Some(3), 490), 3, gate), None);
        let late = told(&share(Some(4), 490), 3, gate).expect("over budget");
        assert!(late.contains("was read 4 of its problems, and reads.budget is 3"), "{late}");
        let unknown = told(&share(None, 490), 3, gate).expect("not recorded");
        assert!(unknown.contains("does not record which read"), "{unknown}");
    }

    #[test]
    fn each_read_is_judged_at_the_divided_confidence() {
        assert!((divided(0.95, 5) - 0.99).abs() < 1e-12 && divided(0.95, 1) <= 0.95 + 1e-12);
        // 462 of 500: at 95 % at least 0.901, at 99.9 % less than 0.9.
        let gate = "exact_match>=0.9@0.95";
        assert_eq!(told(&share(Some(1), 462), 1, gate), None);
        let refused = told(&share(Some(1), 462), 50, gate).expect("not shown");
        assert!(refused.contains("at confidence 0.999, which reads.budget 50 makes of 0.95"), "{refused}");
        assert_eq!(told(&share(Some(1), 490), 50, gate), None);
    }

    #[test]
    fn an_estimate_needs_bounds_at_the_divided_confidence() {
        let of = |confidence| {
            let [value, lower, upper, confidence] = [50.0, 41.0, 60.0, confidence].map(Some);
            let estimate = Measurement::Estimate { value, lower, upper, n: 200, confidence, method: Method::Bootstrap };
            told(&candidate(Some(1), "bleu", estimate), 5, "bleu>=40@0.95")
        };
        assert_eq!(of(0.99), None);
        assert_eq!(of(0.995), None);
        let refused = of(0.95).expect("too narrow");
        assert!(
            refused.contains("set evaluation.confidence and the confidence of its gate to 0.99 or more"),
            "{refused}"
        );
    }

    #[test]
    fn a_gate_without_an_error_cannot_be_divided() {
        let check = |budget, text| check(ReadBudget { budget }, &[gate(text)]);
        assert_eq!(check(3, "exact_match>=0.9@0.95"), Ok(()));
        assert!(check(3, "exact_match>=0.9").is_err_and(|why| why.contains("gates[0] has no confidence")));
        assert!(check(0, "exact_match>=0.9@0.95").is_err());
    }

    proptest! {
        /// A smaller budget lets no later read promote, and a larger one no weaker result.
        #[test]
        fn budgets_tighten(read in 1_u64..20, successes in 400_u64..=500, budget in 1_u32..20, more in 0_u32..20) {
            let gate = "exact_match>=0.9@0.95";
            let passes = |budget| told(&share(Some(read), successes), budget, gate).is_none();
            if read > u64::from(budget) {
                prop_assert!(!passes(budget));
            } else if passes(budget + more) {
                prop_assert!(passes(budget), "the error of fewer reads is divided less");
            }
            prop_assert!(divided(0.95, budget) <= divided(0.95, budget + more) && divided(0.95, budget + more) < 1.0);
        }
    }
}
