//! Verdicts: examples and properties.

use std::collections::BTreeMap;

use codex_provenance::{ModelDigest, Sha256};
use proptest::prelude::*;

use crate::{Comparison, Decimal, Gate, GateResult, Judgement, Measurement, Method, Metric, Verdict, judge};

fn model(name: &str) -> ModelDigest {
    ModelDigest(Sha256::of(name))
}

fn gate(text: &str) -> Gate {
    text.parse().expect("a gate")
}

fn metrics(measurements: &[(&str, Measurement)]) -> BTreeMap<String, Measurement> {
    measurements.iter().map(|(name, measurement)| ((*name).to_owned(), *measurement)).collect()
}

fn judged(gates: &[Gate], metrics: &BTreeMap<String, Measurement>) -> Judgement {
    judge(gates, metrics, Some(model("a")), model("a"))
}

fn one(text: &str, measurement: Measurement) -> GateResult {
    let gate = gate(text);
    let metrics = metrics(&[(gate.metric.name(), measurement)]);
    judged(&[gate], &metrics).gates.remove(0)
}

fn text(decimal: Option<&Decimal>) -> Option<&str> {
    decimal.map(|decimal| decimal.0.as_str())
}

fn share(successes: u64, n: u64) -> Measurement {
    Measurement::Share { successes, n }
}

#[test]
fn a_bound_that_clears_the_gate_passes() {
    let result = one("exact_match>=0.95@0.95", share(986, 1000));
    assert_eq!(result.verdict, Verdict::Passed);
    assert_eq!((text(result.value.as_ref()), result.n), (Some("0.986"), Some(1000)));
    assert_eq!((text(result.lower.as_ref()), text(result.upper.as_ref())), (Some("0.978199"), Some("0.991517")));
    assert_eq!(
        result.message,
        "0.986 over 1000 items, so at least 0.978199 with confidence 0.95; the gate requires at least 0.95"
    );
}

#[test]
fn a_bound_that_misses_the_gate_fails() {
    let result = one("exact_match>=0.95@0.95", share(100, 1000));
    assert_eq!(result.verdict, Verdict::Failed);
    assert!(result.message.starts_with("0.1 over 1000 items, so at most 0.11"), "{}", result.message);
}

#[test]
fn in_between_the_gate_is_inconclusive_and_names_the_number_of_items() {
    let result = one("exact_match>=0.95@0.95", share(58, 58));
    assert_eq!(result.verdict, Verdict::Inconclusive);
    assert_eq!(
        result.message,
        "1 over 58 items, so only at least 0.94966 with confidence 0.95; the gate requires at least 0.95, and about 1 more similar item would decide, 59 in all"
    );
    assert_eq!(one("exact_match>=0.95@0.95", share(59, 59)).verdict, Verdict::Passed);
    let result = one("exact_match>=0.5@0.95", share(10, 20));
    assert_eq!(result.verdict, Verdict::Inconclusive);
    assert!(result.message.ends_with("and no number of similar items would decide"), "{}", result.message);
    let below = one("exact_match>=0.95@0.95", share(90, 100));
    assert_eq!(below.verdict, Verdict::Failed);
    let below = one("exact_match>=0.95@0.95", share(93, 100));
    assert_eq!(below.verdict, Verdict::Inconclusive);
    assert!(below.message.contains("more similar items would decide"), "{}", below.message);
}

#[test]
fn duels_count_ties_half() {
    let result = one("reasoning.win_rate>=0.55@0.95", Measurement::Duel { wins: 600, ties: 395, losses: 5 });
    assert_eq!((result.verdict, text(result.value.as_ref()), result.n), (Verdict::Passed, Some("0.7975"), Some(1000)));
    let result = one("reasoning.win_rate>=0.55@0.95", Measurement::Duel { wins: 5, ties: 395, losses: 600 });
    assert_eq!(result.verdict, Verdict::Failed);
    let result = one("reasoning.win_rate>=0.55", Measurement::Duel { wins: 11, ties: 0, losses: 9 });
    assert_eq!((result.verdict, result.lower), (Verdict::Passed, None), "without confidence the value decides");
}

#[test]
fn a_max_is_the_mirror_of_a_min() {
    let rare = share(0, 59);
    assert_eq!(one("exact_match<=0.05@0.95", rare).verdict, Verdict::Passed);
    assert_eq!(one("exact_match<=0.05@0.95", share(0, 58)).verdict, Verdict::Inconclusive);
    assert_eq!(one("exact_match<=0.05@0.95", share(30, 58)).verdict, Verdict::Failed);
    assert_eq!(one("exact_match<=0.05", share(1, 20)).verdict, Verdict::Passed);
    assert_eq!(one("exact_match<=0.05", share(2, 20)).verdict, Verdict::Failed);
}

/// Judges a comparison with the Evaluation `before`.
fn compared(metric: Metric, better: bool, by: f64, confidence: Option<f64>, measurement: Measurement) -> GateResult {
    let comparison = Comparison { evaluation: "before".to_owned(), by };
    let bound = if better { crate::Bound::BetterThan(comparison) } else { crate::Bound::NotWorseThan(comparison) };
    let gate = Gate { metric, bound, min_samples: None, confidence, margin: None };
    let metrics = metrics(&[(&format!("{metric}@before"), measurement)]);
    judged(&[gate], &metrics).gates.remove(0)
}

fn pairs(wins: u64, ties: u64, losses: u64) -> Measurement {
    Measurement::Duel { wins, ties, losses }
}

#[test]
fn shares_are_compared_by_the_exact_test() {
    let of = |better, pairs| compared(Metric::ExactMatch, better, 0.0, Some(0.95), pairs);
    let passed = of(true, pairs(40, 455, 5));
    assert_eq!((passed.verdict, text(passed.value.as_ref()), passed.n), (Verdict::Passed, Some("0.07"), Some(500)));
    assert_eq!((text(passed.p_value.as_ref()), passed.lower, passed.upper), (Some("0.000001"), None, None));
    assert_eq!(
        passed.message,
        "a difference of 0.07 over 500 items: 40 are right only here and 5 only there, so p is 0.000001 in McNemar's exact test; \
         the gate requires an improvement over Evaluation before with confidence 0.95"
    );
    // 5 of 5 is the smallest proof at 0.95: 1/32.
    assert_eq!(of(true, pairs(5, 0, 0)).verdict, Verdict::Passed);
    let few = of(true, pairs(4, 0, 0));
    assert_eq!((few.verdict, text(few.p_value.as_ref())), (Verdict::Inconclusive, Some("0.0625")));
    assert!(few.message.ends_with("and about 1 more similar item would decide, 5 in all"), "{}", few.message);
    assert_eq!(of(true, pairs(5, 455, 40)).verdict, Verdict::Failed);
    let equal = of(false, pairs(0, 500, 0));
    assert_eq!(equal.verdict, Verdict::Inconclusive, "equal results do not exclude that the model is a little worse");
    assert!(equal.message.ends_with("no number of similar items would decide"), "{}", equal.message);
}

#[test]
fn other_comparisons_use_differences() {
    let of = |better, by, pairs| compared(Metric::ExactMatch, better, by, Some(0.95), pairs);
    assert_eq!(of(false, 0.1, pairs(0, 500, 0)).verdict, Verdict::Passed, "a margin makes equal results a proof");
    let far = of(true, 0.05, pairs(250, 240, 10));
    assert_eq!((far.verdict, text(far.value.as_ref()), far.p_value), (Verdict::Passed, Some("0.48"), None));
    assert!(far.message.contains("over 500 items, so at least 0.3"), "{}", far.message);
    assert!(far.message.ends_with("an improvement over Evaluation before of at least 0.05"), "{}", far.message);
    assert_eq!(of(true, 0.05, pairs(40, 450, 10)).verdict, Verdict::Inconclusive);
    assert_eq!(of(true, 0.05, pairs(10, 240, 250)).verdict, Verdict::Failed);
    assert_eq!(of(false, 0.02, pairs(10, 240, 250)).verdict, Verdict::Failed);
    let mean = |sum: f64, squares| Measurement::Difference { n: 500, sum: Some(sum), sum_of_squares: Some(squares) };
    let of = |better, by, mean| compared(Metric::TraceCoverage, better, by, Some(0.95), mean);
    assert_eq!(of(true, 0.0, mean(150.0, 60.0)).verdict, Verdict::Passed);
    assert_eq!(of(true, 0.0, mean(0.0, 0.0)).verdict, Verdict::Inconclusive);
    assert_eq!(of(false, 0.1, mean(0.0, 0.0)).verdict, Verdict::Passed);
    assert_eq!(of(false, 0.0, mean(-150.0, 60.0)).verdict, Verdict::Failed);
    let impossible = of(true, 0.0, mean(501.0, 501.0));
    assert_eq!(impossible.verdict, Verdict::Inconclusive);
    assert!(impossible.message.contains("differences between -1 and 1 cannot have n = 500"), "{}", impossible.message);
}

#[test]
fn without_confidence_the_difference_decides() {
    let of = |better, by, pairs| compared(Metric::ExactMatch, better, by, None, pairs).verdict;
    assert_eq!(of(true, 0.0, pairs(2, 10, 1)), Verdict::Passed);
    assert_eq!(of(true, 0.0, pairs(1, 10, 1)), Verdict::Failed, "equal results are no improvement");
    assert_eq!(of(false, 0.0, pairs(1, 10, 1)), Verdict::Passed);
    assert_eq!(of(false, 0.1, pairs(1, 8, 2)), Verdict::Passed);
    assert_eq!(of(false, 0.0, pairs(1, 8, 2)), Verdict::Failed);
}

#[test]
fn a_comparison_needs_its_own_measurement() {
    let better = compared(Metric::ExactMatch, true, 0.0, Some(0.95), share(9, 10));
    assert_eq!(better.verdict, Verdict::Inconclusive);
    assert_eq!(better.message, "the evaluator reported a measurement of kind share instead of duel");
    let gate = Gate {
        metric: Metric::ExactMatch,
        bound: crate::Bound::BetterThan(Comparison { evaluation: "other".to_owned(), by: 0.0 }),
        min_samples: None,
        confidence: Some(0.95),
        margin: None,
    };
    let missing = judged(&[gate], &metrics(&[("exact_match", share(9, 10)), ("exact_match@before", pairs(9, 0, 0))]));
    assert_eq!(missing.verdict, Verdict::Inconclusive);
    assert_eq!(missing.gates[0].message, "it was not measured; the evaluator reported exact_match, exact_match@before");
}

#[test]
fn too_few_samples_are_inconclusive() {
    let gate = Gate { min_samples: Some(100), ..gate("exact_match>=0.5") };
    let of = |successes, n| judged(std::slice::from_ref(&gate), &metrics(&[("exact_match", share(successes, n))]));
    assert_eq!(of(99, 99).verdict, Verdict::Inconclusive);
    assert_eq!(of(0, 99).verdict, Verdict::Inconclusive);
    assert_eq!(of(99, 99).gates[0].message, "1 over 99 items; minSamples is 100, so 1 more is needed");
    assert_eq!(of(100, 100).verdict, Verdict::Passed);
}

#[test]
fn a_missing_metric_never_passes() {
    assert_eq!(judged(&[], &metrics(&[("exact_match", share(9, 9))])).verdict, Verdict::Inconclusive);
    let judgement = judged(&[gate("exact_match>=0")], &metrics(&[("trace_coverage", share(9, 9))]));
    assert_eq!(judgement.verdict, Verdict::Inconclusive);
    assert_eq!(judgement.gates[0].message, "it was not measured; the evaluator reported trace_coverage");
    assert_eq!(judgement.gates[0].value, None);
}

#[test]
fn measurements_of_another_model_never_pass() {
    let metrics = metrics(&[("exact_match", share(1000, 1000))]);
    let gates = [gate("exact_match>=0.5")];
    assert_eq!(judge(&gates, &metrics, Some(model("a")), model("a")).verdict, Verdict::Passed);
    let foreign = judge(&gates, &metrics, Some(model("b")), model("a"));
    assert_eq!((foreign.verdict, foreign.passed, foreign.total), (Verdict::Inconclusive, 0, 1));
    assert_eq!(foreign.gates[0].message, format!("the evaluator measured model {}, not {}", model("b"), model("a")));
    assert_ne!(judge(&gates, &metrics, None, model("a")).verdict, Verdict::Passed);
}

/// A digest is over text, so a number has one text.
#[test]
fn a_negative_zero_is_zero() {
    let mean = |sum| Measurement::Mean { n: 9, sum: Some(sum), sum_of_squares: Some(sum) };
    for gate in ["trace_coverage>=0", "trace_coverage<=0"] {
        assert_eq!(one(gate, mean(-0.0)), one(gate, mean(0.0)), "{gate}");
        assert_eq!(text(one(gate, mean(-0.0)).value.as_ref()), Some("0"), "{gate}");
    }
    let digest = |sum| {
        let metrics = metrics(&[("trace_coverage", mean(sum))]);
        crate::report_digest(model("a"), &BTreeMap::new(), &metrics, None)
    };
    assert_eq!(digest(-0.0), digest(0.0));
}

fn any_measurement() -> impl Strategy<Value = Measurement> {
    let number = || {
        prop_oneof![
            5 => (0.0..2000.0_f64).prop_map(Some),
            1 => Just(None),
            1 => Just(Some(f64::NAN)),
            1 => Just(Some(f64::INFINITY)),
            1 => Just(Some(-1.0)),
        ]
    };
    let count = || prop_oneof![8 => 0..2000_u64, 1 => any::<u64>()];
    prop_oneof![
        (count(), count()).prop_map(|(successes, n)| Measurement::Share { successes, n }),
        (count(), count(), count()).prop_map(|(wins, ties, losses)| Measurement::Duel { wins, ties, losses }),
        (count(), number(), number()).prop_map(|(n, sum, sum_of_squares)| Measurement::Mean { n, sum, sum_of_squares }),
        (count(), number(), number(), number()).prop_map(|(n, value, lower, upper)| Measurement::Estimate {
            value,
            lower,
            upper,
            n,
            confidence: Some(0.95),
            method: Method::Bootstrap,
        }),
    ]
}

/// Measurements of every metric, most of them of its kind.
fn any_metrics() -> impl Strategy<Value = BTreeMap<String, Measurement>> {
    let of = |metric: Metric| {
        let right = any_measurement().prop_filter("of its kind", move |found| found.kind() == metric.kind());
        prop::option::of(prop_oneof![6 => right, 1 => any_measurement()])
    };
    Metric::ALL.iter().copied().map(of).collect::<Vec<_>>().prop_map(|measured| {
        let named = Metric::ALL.iter().zip(measured);
        named.filter_map(|(metric, measurement)| Some((metric.to_string(), measurement?))).collect()
    })
}

fn any_gate() -> impl Strategy<Value = Gate> {
    let metric = prop::sample::select(Metric::ALL);
    let confidence = prop::sample::select(vec!["", "@0.6", "@0.95", "@0.999999"]);
    (metric, any::<bool>(), 0..=100_u32, confidence).prop_map(|(metric, is_min, percent, confidence)| {
        let sign = if is_min { ">=" } else { "<=" };
        let (least, most) = metric.scale().bounds();
        let bound = least + (most.min(2000.0) - least) * f64::from(percent) / 100.0;
        let confidence =
            if metric.is_of_corpus() { confidence.replace("0.999999", "0.999") } else { confidence.to_owned() };
        gate(&format!("{metric}{sign}{bound}{confidence}"))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn adding_a_gate_never_helps(
        metrics in any_metrics(),
        gates in prop::collection::vec(any_gate(), 1..5),
        more in any_gate(),
    ) {
        let before = judged(&gates, &metrics).verdict;
        let after = judged(&[gates, vec![more]].concat(), &metrics).verdict;
        prop_assert!(after <= before);
    }

    #[test]
    fn the_order_of_gates_is_irrelevant(
        metrics in any_metrics(),
        (gates, shuffled) in prop::collection::vec(any_gate(), 0..6).prop_flat_map(|gates| {
            (Just(gates.clone()), Just(gates).prop_shuffle())
        }),
    ) {
        let (one, other) = (judged(&gates, &metrics), judged(&shuffled, &metrics));
        prop_assert_eq!((one.verdict, one.passed, one.total), (other.verdict, other.passed, other.total));
        prop_assert_eq!(crate::gates_digest(&gates), crate::gates_digest(&shuffled));
    }

    #[test]
    fn another_model_digest_never_passes(metrics in any_metrics(), gates in prop::collection::vec(any_gate(), 0..5)) {
        let foreign = judge(&gates, &metrics, Some(model("b")), model("a"));
        prop_assert_ne!(foreign.verdict, Verdict::Passed);
        prop_assert_eq!(foreign.passed, 0);
        prop_assert_ne!(judge(&gates, &metrics, None, model("a")).verdict, Verdict::Passed);
    }

    #[test]
    fn a_pass_rests_on_a_possible_measurement(metrics in any_metrics(), gate in any_gate()) {
        let result = judged(std::slice::from_ref(&gate), &metrics).gates.remove(0);
        if result.verdict == Verdict::Passed {
            let Some(measurement) = metrics.get(gate.metric.name()) else { panic!("passed without a measurement") };
            prop_assert_eq!(measurement.kind(), gate.metric.kind());
            let sample = crate::Sample::of(measurement).expect("passed on impossible numbers");
            let shown: f64 = result.value.expect("a value").0.parse().expect("a decimal");
            prop_assert!((shown - sample.value()).abs() < 2e-6);
            let met = match gate.bound {
                crate::Bound::Min(least) => sample.value() >= least,
                crate::Bound::Max(most) => sample.value() <= most,
                _ => panic!("no gate here compares"),
            };
            prop_assert!(met, "the value itself must meet a gate that passed");
        }
    }

    #[test]
    fn more_confidence_never_helps(successes in 0..=500_u64, n in 1..=500_u64, percent in 1..100_u32) {
        prop_assume!(successes <= n);
        let bound = f64::from(percent) / 100.0;
        let verdict = |confidence| one(&format!("exact_match>={bound}@{confidence}"), share(successes, n)).verdict;
        prop_assert!(verdict("0.9") != Verdict::Passed || verdict("0.6") == Verdict::Passed);
        prop_assert!(verdict("0.99") != Verdict::Passed || verdict("0.9") == Verdict::Passed);
    }
}
