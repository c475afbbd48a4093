//! The metric that a plugin measures.

use super::*;
use crate::plugins::testing::{even, wat};

#[test]
fn a_plugin_scores_every_response_and_its_digest_is_reported() {
    let directory = tempfile::tempdir().unwrap();
    let model = train(0, &directory.path().join("run"));
    let path = directory.path().join("even.wasm");
    fs::write(&path, even(0)).unwrap();
    let digest = DataDigest(Sha256::of(even(0)));
    let asked = directory.path().join("problems.jsonl");
    fs::write(&asked, materialise(Task::Arithmetic, Split::HeldOut, 7, 20).unwrap()).unwrap();
    let own = |name: &str, path: &Path| (name.to_owned(), path.to_owned());
    let files = vec![own("problems", &asked), own("plugin-metric", &path)];
    let set = ["evaluation.max_new_tokens=9"];
    let output = directory.path().join("a");
    let (results, state) = Case { set: &set, ..Case::with_files(&model, files.clone()) }.results(&output);
    let expected: f64 =
        results.scored.iter().map(|one| f64::from(u8::from(one.prediction.len().is_multiple_of(2)))).sum();
    let Measurement::Mean { n: 20, sum: Some(sum), .. } = results.metrics["plugin"] else { panic!("a mean") };
    assert!((sum - expected).abs() < 1e-12, "{sum} {expected}");
    assert!(state.data.iter().any(|file| file.name == "plugin-metric" && file.sha256 == digest));
    let outcomes = Outcomes::parse(&fs::read(output.join("outcomes.json")).unwrap()).unwrap();
    assert_eq!(outcomes.measure(None), results.metrics, "the outcomes hold everything");

    // Another plugin is another metric: evaluations with different ones are not compared by it.
    let other = Outcomes::parse(
        read(output.join("outcomes.json")).replace(&digest.to_string(), &Sha256::of("other").to_string()).as_bytes(),
    );
    let compared = |other: &Outcomes| other.compare("before", &outcomes, None).into_keys().collect::<Vec<_>>();
    assert!(compared(&outcomes).contains(&"plugin@before".to_owned()));
    assert_eq!(compared(&other.unwrap()), ["exact_match@before", "trace_coverage@before"]);

    // The file that the configuration pins, and no other.
    fs::write(&path, even(1)).unwrap();
    let case = Case { data: vec![], ..Case::with_files(&model, files.clone()) };
    let mut pinned = inputs::pin(&files).unwrap();
    pinned[1].sha256 = Some(digest);
    let told = Case { data: pinned, ..case }.error().to_string();
    assert!(told.starts_with("data plugin-metric hashes to "), "{told}");
    fs::write(&path, wat(r#"(func (export "codex_plugin_v3"))"#)).unwrap();
    let told = Case::with_files(&model, files.clone()).error().to_string();
    assert!(told.contains("even.wasm: the plugin was written for version \"v3\""), "{told}");
    let endless = "(loop $again (br $again)) (f64.const 0)";
    let endless = format!(
        r#"(func (export "codex_plugin_v1")) (func (export "metric") (param i32 i32 i32 i32 i32 i32) (result f64) {endless})"#
    );
    fs::write(&path, wat(&endless)).unwrap();
    let error = Case { set: &set, ..Case::with_files(&model, files) }.error();
    let told = error.to_string();
    assert!(told.contains("problems.jsonl:1: the response to this problem cannot be scored: the plugin's metric used"));
    assert_eq!(error.exit(), exit::BAD_INPUT);
}

#[test]
fn a_gate_on_the_plugin_needs_one() {
    let resolved = compose_evaluation("cot-lite", &[], 1, problems(10)).unwrap();
    let gate: Gate = "plugin>=0.5".parse().unwrap();
    let (field, why) = resolved.spec().undecidable(&gate).unwrap();
    assert_eq!(field, "metric");
    assert_eq!(
        why,
        "plugin is what a plugin of yours measures: add its file to the data under the name plugin-metric, or remove this gate"
    );
}
