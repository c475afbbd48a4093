//! Text and corpus metrics of whole evaluations.

use super::*;

const ALL: [&str; 2] = [
    "evaluation.metrics=[lowest_trace_coverage, token_f1, rouge_l, distinct_1, distinct_2, token_accuracy, bleu, perplexity]",
    "evaluation.max_new_tokens=16",
];

fn outcomes(output: &Path) -> Outcomes {
    Outcomes::parse(&fs::read(output.join("outcomes.json")).unwrap()).unwrap()
}

fn value(results: &Results, metric: Metric) -> f64 {
    codex_verdict::Sample::named(metric.name(), &results.metrics[metric.name()]).unwrap().value()
}

#[test]
fn metrics_that_are_asked_for_are_measured_and_can_be_measured_again() {
    let directory = tempfile::tempdir().unwrap();
    let model = train(0, &directory.path().join("run"));
    let (one, seven) = (directory.path().join("one"), directory.path().join("seven"));
    let (results, state) = Case { set: &ALL, ..Case::of(&model, problems(40)) }.results(&one);
    // An untaught model gives each of the 98 tokens about the same probability.
    let perplexity = value(&results, Metric::Perplexity);
    assert!((40.0..400.0).contains(&perplexity), "{perplexity}");
    assert!((0.0..=0.3).contains(&value(&results, Metric::TokenF1)) && value(&results, Metric::Bleu) < 30.0);
    for metric in Metric::ALL.iter().filter(|metric| metric.is_on_demand()) {
        assert!(results.metrics.contains_key(metric.name()), "{metric} was asked for");
    }
    assert_eq!(outcomes(&one).measure(None), results.metrics, "the outcomes hold everything");
    assert_eq!((state.metrics, state.done), (results.metrics, 40));
    let batches = [&ALL[..], &["evaluation.batch_size=7"]].concat();
    Case { set: &batches, ..Case::of(&model, problems(40)) }.results(&seven);
    assert_eq!(read(one.join("outcomes.json")), read(seven.join("outcomes.json")));
    let summary: Value = serde_json::from_str(&read(one.join("summary.json"))).unwrap();
    assert_eq!(summary["metrics"]["perplexity"]["approximate"], true);
    let lowest = &summary["metrics"]["lowest_trace_coverage"];
    assert_eq!(lowest.get("approximate"), None, "{lowest}");
    let of = |key: &'static str| summary["coverage"].as_object().unwrap().values().map(move |it| &it[key]);
    assert!(of("value").any(|value| *value == lowest["value"]), "that of a category: {summary}");
    assert_eq!(of("n").map(|n| n.as_u64().unwrap()).min(), lowest["n"].as_u64(), "the smallest category: {summary}");
    let (plain, _) = Case::of(&model, problems(3)).results(&directory.path().join("plain"));
    assert!(Metric::ALL.iter().all(|it| !it.is_on_demand() || !plain.metrics.contains_key(it.name())));
}

#[test]
fn a_taught_model_has_a_lower_perplexity_by_the_bootstrap_of_pairs() {
    let directory = tempfile::tempdir().unwrap();
    let [fresh, taught] = [0, 60].map(|steps| train(steps, &directory.path().join(format!("run-{steps}"))));
    let set = [
        "evaluation.metrics=[token_accuracy, perplexity]",
        "evaluation.max_new_tokens=4",
        "evaluation.confidence=0.99",
    ];
    let before = directory.path().join("before");
    Case { set: &set, ..Case::of(&fresh, problems(40)) }.results(&before);
    let reference = before.join("outcomes.json");
    let pinned = Some(DataDigest(Sha256::of(fs::read(&reference).unwrap())));
    let mut data = problems(40);
    data.push(Data { name: "reference-before".to_owned(), sha256: pinned, synthetic: None });
    let files = vec![("reference-before".to_owned(), reference)];
    let after = directory.path().join("after");
    let (results, _) = Case { set: &set, files, ..Case::of(&taught, data) }.results(&after);
    let gate = |bound: codex_verdict::Bound| Gate {
        metric: Metric::Perplexity,
        bound,
        min_samples: None,
        confidence: Some(0.99),
        margin: None,
    };
    let with = codex_verdict::Comparison { evaluation: "before".to_owned(), by: 10.0 };
    let better = gate(codex_verdict::Bound::BetterThan(with));
    let result = codex_verdict::judge_one(&better, &results.metrics);
    assert_eq!((result.verdict, result.approximate), (Verdict::Passed, true), "{}", result.message);
    let own = codex_verdict::judge_one(&gate(codex_verdict::Bound::Max(1.0)), &results.metrics);
    assert_eq!(own.verdict, Verdict::Failed);
    let Measurement::Difference { n: 40, sum: Some(gained), .. } = results.metrics["token_accuracy@before"] else {
        panic!("{:?}", results.metrics)
    };
    assert!(gained > 0.0, "more tokens are the most likely ones: {gained}");
    let again = outcomes(&before).compare("before", &outcomes(&after), None);
    assert_eq!(again["perplexity@before"], results.metrics["perplexity@before"]);
}

#[test]
fn a_reference_that_does_not_fit_the_context_is_refused_with_its_line() {
    let directory = tempfile::tempdir().unwrap();
    let model = train(0, &directory.path().join("run"));
    let path = directory.path().join("problems.jsonl");
    let long = format!(
        r#"{{"prompt":"2+2:","response":"{} #4$","difficulty":"easy","category":"addition"}}"#,
        "1 ".repeat(400)
    );
    fs::write(&path, long).unwrap();
    let case = Case::with_files(&model, vec![("problems".to_owned(), path)]);
    case.results(&directory.path().join("fine"));
    let error = Case { set: &ALL, ..case }.error();
    assert_eq!((error.exit(), error.failure().reason.as_str()), (2, "InvalidData"));
    let told = error.failure().message;
    assert!(
        told.contains("problems.jsonl:1: the token_accuracy of this response cannot be measured: the prompt and"),
        "{told}"
    );
}
