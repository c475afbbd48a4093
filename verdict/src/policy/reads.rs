//! Budgets of reads: how often a set of held-out problems may decide about promotions. Pure.
//!
//! Whoever tries many models on one set of problems and promotes the best result passes by chance sooner or later. A budget of B reads
//! bounds that: each gate is judged again at confidence 1 − α/B, where α is 1 − its confidence, and no read after the first B promotes.
//! By Bonferroni's inequality, the probability that any of the B reads passes wrongly is at most α, however the reads depend on each
//! other.

use codex_provenance::promotion;

use super::{Candidate, Policy, ReadBudget, RequiredEvaluation};
use crate::{Decimal, Gate, GateResult, GateSpec, Measurement, Verdict, decimal, judge_one, recheck};

/// How far the confidence of an estimate may be below the divided one: it is written in decimals.
const TOLERANCE: f64 = 1e-12;
/// How far a shown confidence may be above the divided one, because it is rounded up.
const SHOWN: f64 = 1.001e-6;

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

/// A gate that was judged once more.
struct Again {
    /// The confidence of all reads together.
    confidence: f64,
    /// The confidence of each of them.
    least: f64,
    /// The confidence of the bounds of an estimate.
    reported: Option<f64>,
    /// The confidence that was applied, as a statement has it.
    at: String,
    result: GateResult,
}

/// Judges a gate at the divided confidence; `None` if it has none.
fn again(candidate: &Candidate, budget: u32, gate: &Gate) -> Option<Again> {
    let confidence = gate.confidence?;
    let least = divided(confidence, budget);
    let reported = match candidate.metrics.get(&gate.measurement()) {
        Some(Measurement::Estimate { confidence, .. } | Measurement::ClusterEstimate { confidence, .. }) => *confidence,
        _ => None,
    };
    // An estimate has bounds at one confidence only. Wider ones prove more than is asked.
    let wider = reported.filter(|reported| *reported >= least - TOLERANCE);
    let at = wider.map_or_else(|| shown(least), |reported| reported.to_string());
    // What a statement says is what was judged.
    let applied = decimal::parse(&at).unwrap_or(least);
    let result = judge_one(&Gate { confidence: Some(applied), ..gate.clone() }, &candidate.metrics);
    Some(Again { confidence, least, reported, at, result })
}

/// Returns why a gate does not pass at the divided confidence.
fn judged_again(candidate: &Candidate, budget: u32, gate: &Gate) -> Option<String> {
    let Again { confidence, least, reported, result, .. } = again(candidate, budget, gate)?;
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

/// Returns the gates of a template as a candidate that satisfies it passed them at the divided confidence.
pub(super) fn passed_again(
    policy: &Policy,
    template: &RequiredEvaluation,
    wanted: &[Gate],
    candidate: &Candidate,
) -> Vec<promotion::Divided> {
    let Some(ReadBudget { budget }) = template.reads else { return Vec::new() };
    let stated = |(spec, gate): (&GateSpec, &Gate)| {
        let Again { at, result, .. } = again(candidate, budget, gate)?;
        let applied = GateSpec { confidence: Some(Decimal(at)), ..spec.clone() };
        Some(promotion::Divided {
            policy: policy.to_string(),
            requirement: template.name.clone(),
            budget,
            confidence: spec.confidence.clone()?.0,
            gate: recheck::gate(&applied, &result),
        })
    };
    template.gates.iter().zip(wanted).filter_map(stated).collect()
}

/// Describes the confidence that was applied to a gate, such as `exact_match at confidence 0.99 = 1 - 0.05/5`.
pub fn told(divided: &promotion::Divided) -> String {
    let promotion::Divided { budget, confidence, gate, .. } = divided;
    let applied = gate.confidence.as_deref().unwrap_or_default();
    let whole = decimal::parse(confidence).unwrap_or_default();
    let is_exact = decimal::parse(applied).is_some_and(|it| (it - self::divided(whole, *budget)).abs() <= SHOWN);
    let error = ((1.0 - whole) * 1e12).round() / 1e12;
    format!("{} at confidence {applied} {} 1 - {error}/{budget}", gate.metric, if is_exact { "=" } else { ">=" })
}

/// Checks what a statement says about the division for its read of this number, but for the result of the gate.
///
/// # Errors
/// One sentence that says what is wrong.
pub(crate) fn check_stated(number: u64, stated: &promotion::Divided) -> Result<(), String> {
    let promotion::Divided { budget, confidence, gate, .. } = stated;
    if number > u64::from(*budget) {
        return Err(format!("its budget is {budget}, but this is read {number}"));
    }
    let read = |text: &str| decimal::parse(text).filter(|level| *level > 0.5 && *level < 1.0);
    let (Some(whole), Some(applied)) = (read(confidence), gate.confidence.as_deref().and_then(read)) else {
        return Err("a confidence is not a decimal above 0.5 and below 1".to_owned());
    };
    let least = divided(whole, *budget);
    if applied < least - TOLERANCE {
        return Err(format!(
            "confidence {applied} was applied, but {confidence} over {budget} reads needs {}",
            shown(least)
        ));
    }
    Ok(())
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

    use super::{check, check_stated, divided, exceeded, passed_again};
    use crate::{
        Decimal, Gate, GateSpec, Measurement, Method,
        policy::{Candidate, Policy, PolicyKind, PolicySpec, ReadBudget, RequiredEvaluation},
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

    #[test]
    fn the_applied_confidence_is_stated() {
        let spec = GateSpec {
            metric: "exact_match".to_owned(),
            min: Some(Decimal("0.9".to_owned())),
            confidence: Some(Decimal("0.95".to_owned())),
            ..GateSpec::default()
        };
        let template = |budget| RequiredEvaluation {
            name: "m1".to_owned(),
            preset: None,
            problems_sha256: None,
            gates: vec![spec.clone()],
            reads: Some(ReadBudget { budget }),
        };
        let policy = Policy {
            kind: PolicyKind::ClusterPromotionPolicy,
            name: "guard".to_owned(),
            uid: "uid".to_owned(),
            spec: PolicySpec::default(),
        };
        let wanted = [gate("exact_match>=0.9@0.95")];
        let stated = |budget| passed_again(&policy, &template(budget), &wanted, &share(Some(1), 490)).remove(0);
        let five = stated(5);
        assert_eq!((five.policy.as_str(), five.requirement.as_str()), ("ClusterPromotionPolicy guard", "m1"));
        assert_eq!((five.confidence.as_str(), five.gate.confidence.as_deref()), ("0.95", Some("0.99")));
        assert_eq!((five.gate.verdict.as_str(), five.gate.n), ("Passed", Some(500)));
        assert_eq!(super::told(&five), "exact_match at confidence 0.99 = 1 - 0.05/5");
        assert_eq!(super::told(&stated(3)), "exact_match at confidence 0.983334 = 1 - 0.05/3");
        let mut wider = five.clone();
        wider.gate.confidence = Some("0.995".to_owned());
        assert_eq!(super::told(&wider), "exact_match at confidence 0.995 >= 1 - 0.05/5");
        assert_eq!(check_stated(5, &wider), Ok(()));
        assert_eq!(check_stated(6, &wider).expect_err("late"), "its budget is 5, but this is read 6");
        wider.gate.confidence = Some("0.95".to_owned());
        let weaker = check_stated(1, &wider).expect_err("not divided");
        assert_eq!(weaker, "confidence 0.95 was applied, but 0.95 over 5 reads needs 0.99");
        wider.gate.confidence = None;
        assert!(check_stated(1, &wider).is_err());
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
