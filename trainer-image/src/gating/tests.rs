//! `codex gate` on files.

use std::{fs, path::Path};

use clap::Parser;
use codex_provenance::{DataDigest, Sha256};
use codex_verdict::report_digest;
use serde_json::{Value, json};

use super::*;
use crate::evaluation::Outcomes;

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    gate: GateCommand,
}

/// Writes an evaluation of 40 problems, of which the first `right` are right, and returns the path of its report.
pub(crate) fn evaluation(root: &Path, name: &str, right: usize) -> PathBuf {
    let folder = root.join(name);
    fs::create_dir(&folder).unwrap();
    let model = ModelDigest(Sha256::of(name));
    let items: Vec<Value> = (1..=40)
        .map(|line| {
            let likelihood = json!({ "logProbability": -1.0 - f64::from(line % 4) - 20.0 / right as f64, "tokens": 2 });
            json!({ "line": line, "values": { "exact_match": f64::from(u8::from(line as usize <= right)) }, "perplexity": likelihood })
        })
        .collect();
    let outcomes = json!({
        "schemaVersion": 2, "model": model, "problems": Sha256::of("problems"), "settings": { "limit": null },
        "bootstrap": { "seed": 1, "confidence": 0.95 }, "items": items,
    });
    let bytes = serde_json::to_vec(&outcomes).unwrap();
    let metrics = Outcomes::parse(&bytes).unwrap().measure(None);
    let data = [("problems".to_owned(), DataDigest(Sha256::of("problems")))].into();
    let report = json!({
        "schemaVersion": 2, "preset": "cot-lite", "seed": 1, "model": { "digest": model, "sizeBytes": 9 },
        "dataFiles": [{ "name": "problems", "sha256": Sha256::of("problems"), "size": 1 }],
        "metrics": metrics, "reportDigest": report_digest(model, &data, &metrics, None),
    });
    fs::write(folder.join("outcomes.json"), bytes).unwrap();
    fs::write(folder.join("evaluation.json"), report.to_string()).unwrap();
    folder.join("evaluation.json")
}

fn judge(root: &Path, gates: &str, more: &[&str]) -> Result<Judged, String> {
    let file = root.join("gates.yaml");
    fs::write(&file, gates).unwrap();
    let arguments = ["gate", "--gates", file.to_str().unwrap()].into_iter().chain(more.iter().copied());
    let command = Arguments::try_parse_from(arguments).map_err(|error| error.to_string())?.gate;
    command.judge().map_err(|error| error.to_string())
}

fn of_report(root: &Path, report: &Path, gates: &str, more: &[&str]) -> Result<Judged, String> {
    judge(root, gates, &[&["--report", report.to_str().unwrap()], more].concat())
}

#[test]
fn reports_are_judged_as_the_controller_judges() {
    let root = tempfile::tempdir().unwrap();
    let report = evaluation(root.path(), "after", 36);
    let verdict = |gates: &str| of_report(root.path(), &report, gates, &[]).unwrap();
    let passed = verdict("- {metric: exact_match, min: \"0.75\", confidence: \"0.95\"}");
    assert_eq!((passed.verdict, passed.gates[0].1.n), (Verdict::Passed, Some(40)));
    assert_eq!(verdict("- {metric: exact_match, min: \"0.99\", confidence: \"0.95\"}").verdict, Verdict::Failed);
    let undecided =
        verdict("- {metric: exact_match, min: \"0.85\", confidence: \"0.95\"}\n- {metric: exact_match, min: \"0.5\"}");
    assert_eq!(undecided.verdict, Verdict::Inconclusive);
    assert!(
        undecided.gates[0].1.message.contains("more similar items would decide"),
        "{}",
        undecided.gates[0].1.message
    );
    let mixed =
        verdict("- {metric: exact_match, min: \"0.85\", confidence: \"0.95\"}\n- {metric: exact_match, min: \"0.95\"}");
    assert_eq!(mixed.verdict, Verdict::Failed, "a failed gate outweighs an inconclusive one");
    let missing = verdict("- {metric: bleu, min: \"3\"}");
    assert!(missing.gates[0].1.message.starts_with("it was not measured"), "{}", missing.gates[0].1.message);
}

#[test]
fn clusters_are_judged_as_one() {
    let root = tempfile::tempdir().unwrap();
    let report = evaluation(root.path(), "after", 36);
    let edit = |name: &str, change: &dyn Fn(&mut Value)| {
        let path = report.with_file_name(name);
        let mut file: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut file);
        fs::write(path, file.to_string()).unwrap();
    };
    edit("outcomes.json", &|file| {
        for (index, item) in file["items"].as_array_mut().unwrap().iter_mut().enumerate() {
            item["cluster"] = (index / 4).to_string().into();
        }
    });
    let gates = "- {metric: exact_match, min: \"0.5\", confidence: \"0.95\"}";
    let told = of_report(root.path(), &report, gates, &[]).err().unwrap();
    assert!(told.contains("for exact_match, but its outcomes give {\"kind\":\"clusterMean\""), "{told}");
    let metrics = Outcomes::parse(&fs::read(report.with_file_name("outcomes.json")).unwrap()).unwrap().measure(None);
    let data = [("problems".to_owned(), DataDigest(Sha256::of("problems")))].into();
    edit("evaluation.json", &|file| {
        file["metrics"] = json!(metrics);
        file["reportDigest"] = json!(report_digest(ModelDigest(Sha256::of("after")), &data, &metrics, None));
    });
    let judged = of_report(root.path(), &report, gates, &[]).unwrap();
    let result = &judged.gates[0].1;
    assert_eq!((judged.verdict, result.n), (Verdict::Inconclusive, Some(10)), "{}", result.message);
    assert!(result.message.starts_with("0.9 over 40 items in 10 clusters, so only at least "), "{}", result.message);
}

#[test]
fn outcomes_bound_corpus_metrics_at_the_confidence_of_each_gate() {
    let root = tempfile::tempdir().unwrap();
    let report = evaluation(root.path(), "after", 36);
    let gates = "- {metric: perplexity, max: \"9\", confidence: \"0.95\"}\n- {metric: perplexity, max: \"9\", confidence: \"0.9\"}";
    let judged = of_report(root.path(), &report, gates, &[]).unwrap();
    let upper = |index: usize| judged.gates[index].1.upper.clone().unwrap().0.parse::<f64>().unwrap();
    assert!(judged.gates.iter().all(|(_, result)| result.approximate) && upper(1) < upper(0));
    fs::remove_file(report.with_file_name("outcomes.json")).unwrap();
    let judged = of_report(root.path(), &report, gates, &[]).unwrap();
    assert!(judged.gates[0].1.upper.is_some(), "the bounds of the report");
    assert!(
        judged.gates[1].1.message.ends_with("do not have the gate's confidence 0.9"),
        "{}",
        judged.gates[1].1.message
    );
}

#[test]
fn models_are_compared_problem_by_problem() {
    let root = tempfile::tempdir().unwrap();
    let (after, before) = (evaluation(root.path(), "after", 36), evaluation(root.path(), "base", 20));
    let reference = format!("before={}", before.with_file_name("outcomes.json").display());
    let gates = "- {metric: exact_match, betterThan: {evaluation: before}, confidence: \"0.95\"}\n\
                 - {metric: perplexity, betterThan: {evaluation: before}, confidence: \"0.95\"}";
    let judged = of_report(root.path(), &after, gates, &["--reference", &reference]).unwrap();
    assert_eq!(judged.verdict, Verdict::Passed, "{:?}", judged.gates);
    assert!(judged.gates[0].1.p_value.is_some() && judged.gates[1].1.approximate);
    let told = of_report(root.path(), &after, gates, &[]).err().unwrap();
    assert_eq!(
        told,
        "gates[0] compares with \"before\", which the report does not: give its results, such as --reference before=FILE"
    );
    let told = of_report(root.path(), &after, "- {metric: exact_match, min: \"0\"}", &["--reference", &reference])
        .err()
        .unwrap();
    assert!(told.starts_with("--reference before: no gate compares with it"), "{told}");
    let other = fs::read_to_string(before.with_file_name("outcomes.json")).unwrap();
    let other = other.replace(&Sha256::of("problems").to_string(), &Sha256::of("others").to_string());
    fs::write(before.with_file_name("outcomes.json"), other).unwrap();
    let told = of_report(root.path(), &after, gates, &["--reference", &reference]).err().unwrap();
    assert!(told.contains("it is about other problems"), "{told}");
}

#[test]
fn reports_that_were_changed_are_bad_input() {
    let root = tempfile::tempdir().unwrap();
    let report = evaluation(root.path(), "after", 36);
    let gates = "- {metric: exact_match, min: \"0.75\"}";
    let text = fs::read_to_string(&report).unwrap();
    let told = |text: &str| {
        fs::write(&report, text).unwrap();
        of_report(root.path(), &report, gates, &[]).err().unwrap()
    };
    let changed = told(&text.replace("\"successes\":36", "\"successes\":40"));
    assert!(changed.contains("its reportDigest is ") && changed.ends_with("it was changed"), "{changed}");
    assert!(told("{}").contains("it is no evaluation.json"));
    assert!(told(&text.replace("\"share\"", "\"duel\"")).contains("evaluation.json"));
    fs::write(&report, &text).unwrap();
    let outcomes = report.with_file_name("outcomes.json");
    let items = fs::read_to_string(&outcomes).unwrap();
    fs::write(&outcomes, items.replacen("\"exact_match\":1.0", "\"exact_match\":0.0", 1)).unwrap();
    let contradicted = of_report(root.path(), &report, gates, &[]).err().unwrap();
    assert!(contradicted.contains("it states {") && contradicted.contains("but its outcomes give"), "{contradicted}");
    let digest = Sha256::of("another").to_string();
    let told = of_report(root.path(), &report, gates, &["--model-digest", &digest]).err().unwrap();
    assert!(told.contains("but --model-digest is"), "{told}");
    let told = judge(root.path(), gates, &["--report", "absent.json"]).err().unwrap();
    assert_eq!(told, "--report: absent.json cannot be read");
}

#[test]
fn samples_of_lm_evaluation_harness_are_judged() {
    let root = tempfile::tempdir().unwrap();
    let write = |name: &str, right: u32| {
        let lines: Vec<String> = (0..100)
            .map(|id| {
                let sample = json!({ "doc_id": id, "doc_hash": format!("h{id}"), "target": "4", "filtered_resps": ["4"],
                    "filter": "none", "acc": f64::from(u8::from(id < right)) });
                format!("{sample}\n")
            })
            .collect();
        let path = root.path().join(name);
        fs::write(&path, lines.concat()).unwrap();
        path.display().to_string()
    };
    let (own, other) = (write("samples_a.jsonl", 97), write("samples_b.jsonl", 80));
    let gates = "- {metric: exact_match, min: \"0.9\", confidence: \"0.95\"}";
    let from = ["--lm-eval", &own, "--metric", "exact_match=acc"];
    assert_eq!(judge(root.path(), gates, &from).unwrap().verdict, Verdict::Passed);
    let better = "- {metric: exact_match, betterThan: {evaluation: before}, confidence: \"0.95\"}";
    let reference = format!("before={other}");
    let compared = judge(root.path(), better, &[&from[..], &["--reference", &reference]].concat()).unwrap();
    assert_eq!((compared.verdict, compared.subject), (Verdict::Passed, "samples_a.jsonl · 100 problems".to_owned()));
    let text = fs::read_to_string(&other).unwrap();
    fs::write(&other, text.replace("\"h7\"", "\"other\"")).unwrap();
    let told = judge(root.path(), better, &[&from[..], &["--reference", &reference]].concat()).err().unwrap();
    assert!(told.contains("its doc_id 7 is another problem"), "{told}");
    fs::write(&other, text.split_inclusive('\n').take(50).collect::<String>()).unwrap();
    let told = judge(root.path(), better, &[&from[..], &["--reference", &reference]].concat()).err().unwrap();
    assert!(told.contains("it has 50 problems with other values of doc_id than the 100"), "{told}");
    assert!(
        judge(root.path(), gates, &["--lm-eval", &own]).err().unwrap().contains("--metric"),
        "a metric is required"
    );
}

#[test]
fn verdicts_are_printed_for_people_and_programs() {
    let root = tempfile::tempdir().unwrap();
    let report = evaluation(root.path(), "after", 36);
    let gates = "- {metric: exact_match, min: \"0.75\", confidence: \"0.95\"}\n- {metric: exact_match, min: \"0.99\", confidence: \"0.95\"}\n\
                 - {metric: exact_match, min: \"0.85\", confidence: \"0.95\"}";
    let judged = of_report(root.path(), &report, gates, &[]).unwrap();
    let text = Format::Text.show(&judged);
    assert!(text.contains("\nFailed: 1 of 3 gates passed\n  Passed        exact_match: 0.9 over 40 items"), "{text}");
    let json: Value = serde_json::from_str(&Format::Json.show(&judged)).unwrap();
    assert_eq!((&json["verdict"], &json["gates"][1]["result"]["verdict"]), (&json!("Failed"), &json!("Failed")));
    assert_eq!(
        (&json["gates"][0]["gate"]["min"], &json["passed"], &json["total"]),
        (&json!(0.75), &json!(1), &json!(3))
    );
    let junit = Format::Junit.show(&judged);
    assert!(junit.contains("tests=\"3\" failures=\"1\" errors=\"1\""), "{junit}");
    assert!(junit.contains("<failure type=\"Failed\"") && junit.contains("<error type=\"Inconclusive\""), "{junit}");
    let github = Format::Github.show(&judged);
    let levels: Vec<&str> = github.lines().filter_map(|line| line.strip_prefix("::")?.split(' ').next()).collect();
    assert_eq!(levels, ["notice", "error", "warning"]);
    assert!(github.contains("title=Failed%3A exact_match%3A at least 0.99::"), "{github}");
    let odd = Judged { subject: "a<b>&\"c\u{1}".to_owned(), ..judged };
    assert!(Format::Junit.show(&odd).contains("name=\"a&lt;b&gt;&amp;&quot;c?\""));
}

#[test]
fn exit_codes_follow_the_verdict() {
    let root = tempfile::tempdir().unwrap();
    let report = evaluation(root.path(), "after", 36);
    let file = root.path().join("gates.yaml");
    for (least, code) in [("0.75", 0), ("0.99", 1), ("0.85", INCONCLUSIVE)] {
        fs::write(&file, format!("- {{metric: exact_match, min: \"{least}\", confidence: \"0.95\"}}")).unwrap();
        let arguments = ["gate", "--gates", file.to_str().unwrap(), "--report", report.to_str().unwrap()];
        assert_eq!(Arguments::try_parse_from(arguments).unwrap().gate.run().unwrap(), code);
    }
    fs::write(&file, "[]").unwrap();
    let arguments = ["gate", "--gates", file.to_str().unwrap(), "--report", report.to_str().unwrap()];
    assert_eq!(Arguments::try_parse_from(arguments).unwrap().gate.run().unwrap_err().exit, 2);
}
