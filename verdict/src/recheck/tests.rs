use codex_provenance::{
    Sha256,
    golden::{GoldenPrompt, Tokens},
};
use proptest::prelude::*;

use super::*;

fn model() -> ModelDigest {
    ModelDigest(Sha256::of("model"))
}

fn spec_of(metric: &str, min: &str, confidence: Option<&str>, min_samples: Option<i64>) -> GateSpec {
    GateSpec {
        metric: metric.to_owned(),
        min: Some(Decimal(min.to_owned())),
        min_samples,
        confidence: confidence.map(|text| Decimal(text.to_owned())),
        ..GateSpec::default()
    }
}

fn evaluation(metrics: &BTreeMap<String, Measurement>, specs: &[GateSpec]) -> promotion::Evaluation {
    let data = BTreeMap::from([("problems".to_owned(), DataDigest(Sha256::of("problems")))]);
    let Stated { report_digest, gates_digest, metrics, gates, .. } =
        Stated::of(model(), &data, metrics, specs).expect("valid gates");
    promotion::Evaluation {
        name: "lite".to_owned(),
        uid: "uid".to_owned(),
        preset: "cot-lite".to_owned(),
        config_digest: None,
        report_digest,
        gates_digest,
        data,
        image_id: String::new(),
        completed_at: "2026-11-28T09:00:00Z".to_owned(),
        evidence: None,
        outcomes: None,
        golden_tokens: None,
        metrics,
        gates,
        references: Vec::new(),
        reads: None,
    }
}

fn good() -> promotion::Evaluation {
    let metrics = BTreeMap::from([
        ("exact_match".to_owned(), Measurement::Share { successes: 490, n: 500 }),
        (
            "trace_coverage".to_owned(),
            Measurement::Mean { n: 500, sum: Some(499.0 / 3.0 * 2.9), sum_of_squares: Some(480.123_456) },
        ),
    ]);
    let specs = [spec_of("exact_match", "0.95", Some("0.95"), Some(500)), spec_of("trace_coverage", "0.9", None, None)];
    evaluation(&metrics, &specs)
}

fn refuted(edit: impl FnOnce(&mut promotion::Evaluation)) -> String {
    let mut changed = good();
    edit(&mut changed);
    recheck(model(), &changed).expect_err("refuted").to_string()
}

#[test]
fn what_a_controller_states_is_confirmed() {
    recheck(model(), &good()).expect("confirmed");
    assert_eq!(good().gates[0].min_samples, Some(500));
    let other = ModelDigest(Sha256::of("another"));
    assert!(recheck(other, &good()).expect_err("the digest covers the model").to_string().contains("reportDigest"));
}

#[test]
fn golden_tokens_are_covered_by_the_report_digest() {
    let golden = || Golden {
        path: "cpu-f32".to_owned(),
        instruction_set: "avx2".to_owned(),
        kernels: 1,
        tolerance: "0.1".to_owned(),
        prompts: vec![GoldenPrompt::new(&Tokens {
            prompt: vec![1, 2],
            tokens: vec![3],
            log_probabilities: vec![-0.5],
        })],
    };
    assert!(refuted(|it| it.golden_tokens = Some(golden())).starts_with("states reportDigest "));
    let stated = |golden: Golden| {
        let metrics = measurements(&good().metrics).expect("measurements");
        let report_digest = report_digest(model(), &good().data, &metrics, Some(&golden));
        promotion::Evaluation { golden_tokens: Some(golden), report_digest, ..good() }
    };
    recheck(model(), &stated(golden())).expect("confirmed");
    let changed = promotion::Evaluation { golden_tokens: None, ..stated(golden()) };
    let told = recheck(model(), &changed).expect_err("refuted").to_string();
    assert!(told.starts_with("states reportDigest "), "{told}");
    let told = recheck(model(), &stated(Golden { prompts: Vec::new(), ..golden() })).expect_err("refuted").to_string();
    assert_eq!(told, "has malformed golden tokens: prompts has 0 prompts; 1 to 4 are allowed");
}

#[test]
fn numbers_that_the_measurements_do_not_give_are_refuted() {
    let told = refuted(|it| it.gates[0].verdict = "banana".to_owned());
    assert_eq!(told, "states verdict banana of exact_match, but its measurements give Passed");
    let told = refuted(|it| it.gates[0].verdict = "Failed".to_owned());
    assert_eq!(told, "states verdict Failed of exact_match, but its measurements give Passed");
    let told = refuted(|it| it.gates[0].value = Some("1".to_owned()));
    assert_eq!(told, "states value 1 of exact_match, but its measurements give 0.98");
    let told = refuted(|it| it.gates[0].n = Some(1_000_000));
    assert_eq!(told, "states n 1000000 of exact_match, but its measurements give 500");
    let told = refuted(|it| it.gates[0].lower = None);
    assert!(told.starts_with("states lower nothing of exact_match, but its measurements give 0.9"), "{told}");
    let told = refuted(|it| it.gates[1].upper = Some("1".to_owned()));
    assert_eq!(told, "states upper 1 of trace_coverage, but its measurements give nothing");
    let told = refuted(|it| it.gates[0].value = Some("NaN".to_owned()));
    assert_eq!(told, "states value NaN of exact_match, but its measurements give 0.98");
}

#[test]
fn other_gates_or_measurements_than_the_digests_cover_are_refuted() {
    assert_eq!(refuted(|it| it.gates.clear()), "has no gates");
    let told = refuted(|it| it.gates = vec![it.gates[0].clone(); MAX_GATES + 1]);
    assert_eq!(told, "has 33 gates; at most 32 are allowed");
    assert!(refuted(|it| drop(it.gates.pop())).starts_with("states gatesDigest "));
    assert!(refuted(|it| it.gates[0].min = Some("0.1".to_owned())).starts_with("states gatesDigest "));
    assert!(refuted(|it| it.gates[0].min_samples = None).starts_with("states gatesDigest "));
    let told = refuted(|it| it.gates[0].min = None);
    assert!(told.starts_with("has an invalid gate: the gate on exact_match has none of min"), "{told}");
    let told = refuted(|it| it.gates[0].min_samples = Some(u64::MAX));
    assert!(told.starts_with("has an invalid gate: the gate on exact_match has minSamples"), "{told}");
    let share = |successes, n| Measured::Share { successes, n };
    let told = refuted(|it| drop(it.metrics.insert("exact_match".to_owned(), share(500, 500))));
    assert!(told.starts_with("states reportDigest "), "{told}");
    let told = refuted(|it| drop(it.metrics.insert("more".to_owned(), share(1, 2))));
    assert!(told.starts_with("states reportDigest "), "{told}");
    let malformed = Measured::Mean { n: 5, sum: Some("much".to_owned()), sum_of_squares: None };
    let told = refuted(|it| drop(it.metrics.insert("trace\n".to_owned(), malformed)));
    assert_eq!(told, "has a measurement of trace\\n that is malformed");
    let told = refuted(|it| drop(it.metrics.insert("trace_coverage".to_owned(), share(1, 2))));
    assert!(told.starts_with("has refused measurements: its trace_coverage is a measurement of kind share"), "{told}");
}

#[test]
fn gates_are_judged_again_at_the_confidence_that_a_budget_applied() {
    let right = |successes| BTreeMap::from([("exact_match".to_owned(), Measurement::Share { successes, n: 500 })]);
    let divided = |at: &str, successes| {
        let spec = spec_of("exact_match", "0.9", Some(at), None);
        let Stated { gates, .. } =
            Stated::of(model(), &BTreeMap::new(), &right(successes), &[spec]).expect("a valid gate");
        promotion::Divided {
            policy: "ClusterPromotionPolicy guard".to_owned(),
            requirement: "m1".to_owned(),
            budget: 5,
            confidence: "0.95".to_owned(),
            gate: gates[0].clone(),
        }
    };
    let check = |number, successes, divided| {
        let mut stated = evaluation(&right(successes), &[spec_of("exact_match", "0.9", Some("0.95"), None)]);
        let problems = DataDigest(Sha256::of("problems"));
        stated.reads = Some(promotion::Read { problems, number, divided: vec![divided] });
        recheck(model(), &stated).map_err(|why| why.to_string())
    };
    assert_eq!(check(5, 470, divided("0.99", 470)), Ok(()));
    let policy = "states a budget of reads of ClusterPromotionPolicy guard that was not kept";
    let late = check(6, 470, divided("0.99", 470)).expect_err("late");
    assert_eq!(late, format!("{policy}: its budget is 5, but this is read 6"));
    let undivided = check(1, 470, divided("0.95", 470)).expect_err("not divided");
    assert!(undivided.starts_with(policy), "{undivided}");
    // 462 of 500 show 0.9 with confidence 0.95 and not with 0.99.
    let weak = check(1, 462, divided("0.99", 462)).expect_err("it does not pass");
    assert!(weak.starts_with("does not pass: exact_match is Inconclusive"), "{weak}");
    let other = check(1, 470, divided("0.99", 471)).expect_err("other numbers");
    assert!(other.starts_with("states value 0.942 of exact_match, but its measurements give 0.94"), "{other}");
}

fn paired(model: (u64, u64, u64), reference: u64) -> promotion::Evaluation {
    let (right, wins, losses) = model;
    let metrics = BTreeMap::from([
        ("exact_match".to_owned(), Measurement::Share { successes: right, n: 500 }),
        ("exact_match@before".to_owned(), Measurement::Duel { wins, ties: 500 - wins - losses, losses }),
    ]);
    let better = ComparisonSpec { evaluation: "before".to_owned(), by: None };
    let gate = GateSpec {
        metric: "exact_match".to_owned(),
        better_than: Some(better),
        confidence: Some(Decimal("0.95".to_owned())),
        ..GateSpec::default()
    };
    let outcomes = DataDigest(Sha256::of("outcomes"));
    let data = BTreeMap::from([("reference-before".to_owned(), outcomes)]);
    let stated = Stated::of(self::model(), &data, &metrics, &[gate]).expect("a valid gate");
    let before = Reference {
        name: "before".to_owned(),
        uid: "former".to_owned(),
        model: ModelDigest(Sha256::of("base")),
        outcomes,
        metrics: BTreeMap::from([("exact_match".to_owned(), Measured::Share { successes: reference, n: 500 })]),
    };
    promotion::Evaluation {
        report_digest: stated.report_digest,
        gates_digest: stated.gates_digest,
        data,
        metrics: stated.metrics,
        gates: stated.gates,
        references: vec![before],
        ..evaluation(&BTreeMap::new(), &[spec_of("exact_match", "0", None, None)])
    }
}

#[test]
fn a_read_is_one_of_the_problems_of_the_evaluation() {
    let read = |text: &str, number| {
        let problems = DataDigest(Sha256::of(text));
        Some(promotion::Read { problems, number, divided: Vec::new() })
    };
    recheck(model(), &promotion::Evaluation { reads: read("problems", 3), ..good() }).expect("confirmed");
    assert!(refuted(|it| it.reads = read("others", 3)).starts_with("states read 3 of the problems "));
    assert!(refuted(|it| it.reads = read("problems", 0)).starts_with("states read 0 of the problems "));
}

#[test]
fn a_comparison_is_confirmed_with_its_reference_only() {
    let good = || paired((400, 260, 20), 160);
    recheck(model(), &good()).expect("260 - 20 = 400 - 160");
    assert_eq!(good().gates[0].p_value.as_deref(), Some("0.000001"));
    let refuted = |edit: fn(&mut promotion::Evaluation)| {
        let mut changed = good();
        edit(&mut changed);
        recheck(model(), &changed).expect_err("refuted").to_string()
    };
    assert_eq!(
        refuted(|it| it.references.clear()),
        "compares with Evaluation before, which is not among its references"
    );
    assert!(refuted(|it| it.references[0].name = "after".to_owned()).contains("not among its references"));
    let told = refuted(|it| it.references[0].outcomes = DataDigest(Sha256::of("others")));
    assert!(told.starts_with("compares with Evaluation before, whose outcomes have the digest "), "{told}");
    assert!(refuted(|it| it.data.clear()).starts_with("states reportDigest "));
    assert!(refuted(|it| it.gates[0].better_than = None).contains("has none of min, max"));
    assert!(refuted(|it| it.gates[0].not_worse_than = it.gates[0].better_than.take()).contains("gatesDigest"));
    let told = refuted(|it| it.gates[0].p_value = Some("0.5".to_owned()));
    assert_eq!(told, "states pValue 0.5 of exact_match, but its measurements give 0.000001");
    let told = recheck(model(), &paired((400, 260, 20), 200)).expect_err("refuted").to_string();
    assert_eq!(
        told,
        "has a comparison exact_match@before that is contradicted: its difference is 0.48, but the model has 0.8 and the \
         reference 0.4"
    );
    recheck(model(), &paired((180, 30, 10), 160)).expect("30 of 40 prove it");
    let told = recheck(model(), &paired((165, 30, 25), 160)).expect_err("refuted").to_string();
    assert!(told.starts_with("does not pass: exact_match is Inconclusive ("), "{told}");
}

#[test]
fn a_consistent_statement_that_does_not_pass_is_refuted() {
    let exact = |successes, n| BTreeMap::from([("exact_match".to_owned(), Measurement::Share { successes, n })]);
    for (metrics, spec, verdict) in [
        (exact(40, 500), spec_of("exact_match", "0.95", None, None), "Failed"),
        (exact(480, 500), spec_of("exact_match", "0.95", Some("0.95"), None), "Inconclusive"),
        (exact(9, 9), spec_of("exact_match", "0.95", None, Some(500)), "Inconclusive"),
        (exact(5, 4), spec_of("exact_match", "0.95", None, None), "Inconclusive"),
        (BTreeMap::new(), spec_of("exact_match", "0", None, None), "Inconclusive"),
    ] {
        let told = recheck(model(), &evaluation(&metrics, &[spec])).expect_err("refuted").to_string();
        assert!(told.starts_with(&format!("does not pass: exact_match is {verdict} (")), "{told}");
    }
}

proptest! {
    /// The statement of any evaluation is confirmed exactly if the evaluation passes.
    #[test]
    fn a_statement_is_confirmed_if_and_only_if_it_passes(
        successes in 0_u64..=300, n in 1_u64..=300, sum in 0.0_f64..=1.0, bound in 0_u32..=100,
        confidence in prop::option::of(Just("0.95")), least in prop::option::of(1_i64..=400),
    ) {
        let values: Vec<f64> = (0..n).map(|index| if index % 3 == 0 { sum } else { sum / 7.0 }).collect();
        let metrics = BTreeMap::from([
            ("exact_match".to_owned(), Measurement::Share { successes: successes.min(n), n }),
            ("reasoning.win_rate".to_owned(), Measurement::Duel { wins: successes, ties: n, losses: 3 }),
            ("trace_coverage".to_owned(), Measurement::Mean {
                n,
                sum: Some(values.iter().sum()),
                sum_of_squares: Some(values.iter().map(|value| value * value).sum()),
            }),
        ]);
        let bound = format!("{:.2}", f64::from(bound) / 100.0);
        let specs: Vec<GateSpec> =
            metrics.keys().map(|metric| spec_of(metric, &bound, confidence, least)).collect();
        let evaluation = evaluation(&metrics, &specs);
        let text = serde_json::to_string(&evaluation).expect("JSON");
        let read: promotion::Evaluation = serde_json::from_str(&text).expect("what was written");
        prop_assert_eq!(&read, &evaluation);
        let passes = evaluation.gates.iter().all(|gate| gate.verdict == "Passed");
        prop_assert_eq!(recheck(model(), &read).is_ok(), passes);
    }
}
