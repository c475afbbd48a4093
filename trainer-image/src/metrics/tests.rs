use std::{fs, path::Path};

use clap::Parser;
use codex_configs::compose_training;
use serde_json::{Value, json};

use super::{
    input::{Input, chosen},
    *,
};
use crate::{
    artifacts::ledger::{
        Ledger,
        tests::{row, text},
    },
    gating::tests::evaluation,
    run_folder,
};

fn input(runs: &[&std::path::Path], skip_bad: bool) -> Input {
    Input { runs: runs.iter().map(|run| run.to_path_buf()).collect(), skip_bad }
}

#[test]
fn invalid_lines_are_refused_with_their_number_or_ignored() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("run/artifacts/metrics.ndjson");
    let mut lines = text(&[row(1, "loss", 1.0)]);
    lines.extend(b"nonsense\n");
    lines.extend(text(&[row(2, "loss", 0.5)]));
    atomic_fs::make_parents(&path).unwrap();
    atomic_fs::write(&path, &lines).unwrap();
    let run = root.path().join("run");
    let error = input(&[&run], false).read().unwrap_err();
    assert_eq!(error.exit(), exit::BAD_INPUT);
    let sentence = error.to_string();
    assert!(sentence.starts_with(&format!("{}:2: invalid ledger row: ", path.display())), "{sentence}");
    assert!(sentence.contains("1 of 3 lines are invalid"), "{sentence}");
    let read = input(&[&run], true).read().unwrap();
    assert_eq!((read[0].label.as_str(), read[0].series.values().next().unwrap().len()), ("run", 2));
    let invalid = Validate { runs: vec![run] }.run().unwrap_err();
    assert_eq!(invalid.to_string(), "1 of 3 lines are invalid");
}

#[test]
fn runs_with_equal_names_are_labelled_by_path() {
    let root = tempfile::tempdir().unwrap();
    let [a, b] = ["a/run", "b/run"].map(|run| root.path().join(run));
    for run in [&a, &b] {
        let path = run.join("artifacts/metrics.ndjson");
        atomic_fs::make_parents(&path).unwrap();
        atomic_fs::write(&path, &text(&[row(1, "loss", 1.0)])).unwrap();
    }
    let labels: Vec<String> = input(&[&a, &b], false).read().unwrap().into_iter().map(|run| run.label).collect();
    assert_eq!(labels, [a.display().to_string(), b.display().to_string()]);
}

#[test]
fn missing_ledgers_rows_and_metrics_are_named() {
    let root = tempfile::tempdir().unwrap();
    let said = |error: MetricsError| (error.exit(), CommandError::from(error).sentence());
    let (code, sentence) = said(input(&[root.path()], false).read().unwrap_err());
    assert!(code == 2 && sentence.contains("has no metrics ledger: name a run's directory"), "{sentence}");
    let (code, sentence) = said(input(&[&root.path().join("none")], false).read().unwrap_err());
    assert!(code == 2 && sentence.contains("none\" failed: No such file"), "{sentence}");
    atomic_fs::write(&root.path().join("metrics.ndjson"), b"").unwrap();
    let (code, sentence) = said(input(&[root.path()], false).read().unwrap_err());
    assert!(code == 2 && sentence.contains("has no rows yet"), "{sentence}");
    atomic_fs::write(&root.path().join("metrics.ndjson"), &text(&[row(1, "loss", 1.0)])).unwrap();
    let runs = input(&[root.path()], false).read().unwrap();
    let (_, sentence) = said(chosen(&runs, &["los".to_owned()], "loss").unwrap_err());
    assert_eq!(sentence, "--metric \"los\" is unknown: use one of loss");
    assert_eq!(chosen(&runs, &[], "loss").unwrap(), ["loss"]);
}

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    metrics: Metrics,
}

/// Runs `codex metrics` with these arguments.
fn metrics(line: &[&str]) -> Result<i32, String> {
    let line = ["metrics"].iter().chain(line);
    Arguments::try_parse_from(line).unwrap().metrics.run().map_err(|error| error.sentence())
}

/// Writes evaluations of 40 problems with these numbers of right answers, and returns their directories.
fn evaluations<const N: usize>(root: &Path, each: [(&str, usize); N]) -> [PathBuf; N] {
    each.map(|(name, right)| evaluation(root, name, right).parent().unwrap().to_owned())
}

fn read(named: &[&Path]) -> Vec<evaluations::Evaluated> {
    input(named, false).evaluations().unwrap().unwrap()
}

#[test]
fn evaluations_are_compared_problem_by_problem_with_bounds() {
    let root = tempfile::tempdir().unwrap();
    let [before, after, alone] = evaluations(root.path(), [("before", 20), ("after", 39), ("alone", 30)]);
    fs::remove_file(alone.join("outcomes.json")).unwrap();
    let (table, lines) = evaluations::compare(&read(&[&before, &after, &alone]), &[]).unwrap();
    insta::assert_snapshot!(table);
    assert_eq!(lines[1]["better_than_first"]["value"], "0.475");
    assert_eq!((&lines[0]["better_than_first"], &lines[2]["better_than_first"]), (&Value::Null, &Value::Null));
    let (table, _) = evaluations::compare(&read(&[&before, &after]), &["exact_match".to_owned()]).unwrap();
    assert!(!table.contains("perplexity"), "{table}");
    let unknown = evaluations::compare(&read(&[&before, &after]), &["bleu".to_owned()]).unwrap_err();
    assert_eq!(unknown.to_string(), "--metric \"bleu\" is unknown: use one of exact_match, perplexity");
}

#[test]
fn evaluations_are_ranked_by_the_bound_that_counts_against_the_model() {
    let root = tempfile::tempdir().unwrap();
    let [worse, best, equal] = evaluations(root.path(), [("worse", 20), ("best", 39), ("equal", 20)]);
    let places = |metric: &str| -> Vec<(String, u64)> {
        let (_, lines) = evaluations::rank(&mut read(&[&worse, &best, &equal]), metric).unwrap();
        let place = |line: &Value| (line["evaluation"].as_str().unwrap().to_owned(), line["place"].as_u64().unwrap());
        lines.as_array().unwrap().iter().map(place).collect()
    };
    let expected = [("best", 1), ("worse", 2), ("equal", 2)].map(|(name, place)| (name.to_owned(), place));
    assert_eq!(places("exact_match"), expected);
    // A lower perplexity is better.
    assert_eq!(places("perplexity"), expected);
    let [worse, best] = [&worse, &best].map(|path| path.to_str().unwrap());
    let refused = metrics(&["compare", "--rank", "exact_match", "--highest", worse, best]).unwrap_err();
    assert!(refused.starts_with("--highest is for runs: "), "{refused}");
    let plot = root.path().join("ranked.svg");
    assert_eq!(metrics(&["compare", "--rank", "exact_match", worse, best, "--plot", plot.to_str().unwrap()]), Ok(0));
    let drawn = fs::read_to_string(plot).unwrap();
    assert!(["at least eval", "at most eval", "evaluation"].iter().all(|text| drawn.contains(text)), "{drawn}");
}

#[test]
fn an_evaluation_is_summarized_with_its_categories() {
    let root = tempfile::tempdir().unwrap();
    let [lite] = evaluations(root.path(), [("lite", 30)]);
    let model = codex_provenance::Sha256::of("lite");
    let shown = json!({ "value": "0.75", "n": 40, "lower": "0.6", "upper": "0.9" });
    let summary = |model| json!({ "model": model, "categories": { "addition": shown, "none": null }, "coverage": {} });
    fs::write(lite.join("summary.json"), summary(json!(model)).to_string()).unwrap();
    let told = |metrics: &[String]| evaluations::summarize(&read(&[&lite]), metrics).map_err(|why| why.to_string());
    insta::assert_snapshot!(told(&[]).unwrap());
    let only = told(&["exact_match".to_owned()]).unwrap();
    assert!(only.contains("exact_match.addition") && !only.contains("perplexity"), "{only}");
    let unknown = told(&["bleu".to_owned()]).unwrap_err();
    assert_eq!(unknown, "--metric \"bleu\" is unknown: use one of exact_match, perplexity");
    fs::write(lite.join("summary.json"), summary(json!(codex_provenance::Sha256::of("other"))).to_string()).unwrap();
    assert!(!told(&[]).unwrap().contains("addition"));
}

#[test]
fn the_numbers_of_an_evaluation_are_exported_as_rows() {
    let root = tempfile::tempdir().unwrap();
    let [lite] = evaluations(root.path(), [("lite", 30)]);
    let (lite, output) = (lite.to_str().unwrap(), root.path().join("out"));
    for format in ["csv", "ndjson", "tensorboard"] {
        assert_eq!(metrics(&["export", lite, "--format", format, "--output", output.to_str().unwrap()]), Ok(0));
    }
    let table = fs::read_to_string(output.join("metrics.csv")).unwrap();
    assert_eq!(table.lines().count(), 3, "{table}");
    let rows = Ledger::read(&output.join("metrics.ndjson")).unwrap();
    assert!(rows.bad.is_empty());
    let first = &rows.rows[0];
    assert_eq!(
        (first.metric.as_str(), first.value.to_bits(), first.dataset.as_str()),
        ("exact_match", 0.75_f64.to_bits(), "cot-lite")
    );
    assert_eq!((first.run_id.as_str(), first.split.as_str(), first.tags["n"].as_str()), ("lite", "eval", "40"));
    assert!(first.tags["lower"].parse::<f64>().unwrap() < 0.75 && first.tags["upper"].parse::<f64>().unwrap() > 0.75);
    // An export beside the results does not make the directory a run.
    assert_eq!(metrics(&["export", lite, "--format", "ndjson", "--output", lite]), Ok(0));
    assert_eq!(metrics(&["summarize", lite]), Ok(0));
}

#[test]
fn a_ledger_is_not_exported_onto_itself() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("artifacts/metrics.ndjson");
    atomic_fs::make_parents(&path).unwrap();
    atomic_fs::write(&path, &text(&[row(1, "loss", 1.0)])).unwrap();
    let (run, artifacts) = (root.path().to_str().unwrap(), path.parent().unwrap().to_str().unwrap());
    let refused = metrics(&["export", run, "--format", "ndjson", "--output", artifacts]).unwrap_err();
    assert!(refused.contains("is the same as the ledger of RUN"), "{refused}");
}

#[test]
fn records_that_contradict_the_results_are_found() {
    let root = tempfile::tempdir().unwrap();
    let [lite] = evaluations(root.path(), [("lite", 30)]);
    let records = |right: usize| -> String {
        let lines: Vec<String> =
            (1..=40).map(|line| format!("{{\"line\": {line}, \"correct\": {}}}\n", line <= right)).collect();
        lines.concat()
    };
    let (path, named) = (lite.join("records.ndjson"), lite.to_str().unwrap());
    let missing = metrics(&["validate", named]).unwrap_err();
    assert!(missing.contains("records.ndjson") && missing.contains("No such file"), "{missing}");
    fs::write(&path, records(30)).unwrap();
    assert_eq!(metrics(&["validate", named]), Ok(0));
    fs::write(&path, records(31)).unwrap();
    let told = metrics(&["validate", named]).unwrap_err();
    assert!(told.contains("31 of 40 records are right, but evaluation.json counts 30 of 40"), "{told}");
    fs::write(&path, records(30).replacen("true", "1", 1)).unwrap();
    assert_eq!(metrics(&["validate", named]).unwrap_err(), "1 of 40 lines are invalid");
    let results = lite.join("evaluation.json");
    fs::write(&results, fs::read_to_string(&results).unwrap().replace("\"successes\":30", "\"successes\":31")).unwrap();
    let told = metrics(&["validate", named]).unwrap_err();
    assert!(told.contains("its reportDigest is "), "{told}");
}

#[test]
fn runs_of_a_sweep_are_ranked_by_the_bounds_of_their_evaluations() {
    let root = tempfile::tempdir().unwrap();
    let runs = [(1, 900), (2, 990)].map(|(seed, right)| {
        let run = root.path().join(format!("uid-{seed}"));
        let model = run_folder::tests::run(&run);
        let sha256 = Some(codex_provenance::DataDigest(codex_provenance::Sha256::of("sums")));
        let data = codex_configs::Data { name: "sums".to_owned(), sha256, synthetic: None };
        let config = compose_training("cot-starter", &[], None, seed, vec![data]).unwrap();
        fs::write(run.join("artifacts/config.yaml"), config.to_yaml().unwrap()).unwrap();
        fs::write(run.join("artifacts/metrics.ndjson"), text(&[row(1, "loss", 1.0 / seed as f64)])).unwrap();
        run_folder::tests::evaluation(&run, "lite", model, right);
        run.to_str().unwrap().to_owned()
    });
    let compared = |rank: &str| {
        let line = ["compare", "--sweep", "--rank", rank, &runs[0], &runs[1]];
        let Command::Compare(command) =
            Arguments::try_parse_from(["metrics"].iter().chain(&line)).unwrap().metrics.command
        else {
            panic!("compare")
        };
        command.result().unwrap().0
    };
    let table = compared("exact_match");
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines[1].contains("seed=2 lite") && lines[2].contains("seed=1 lite"), "{table}");
    assert!(lines[1].contains("0.99") && lines[1].contains("1000"), "{table}");
    let table = compared("loss");
    assert!(table.lines().nth(1).is_some_and(|line| line.contains("seed=2")), "{table}");
    let mixed = metrics(&["compare", &runs[0], &format!("{}/evaluations/lite", runs[1])]).unwrap_err();
    assert!(
        mixed.contains("is an evaluation, but ") && mixed.ends_with("name runs only, or evaluations only"),
        "{mixed}"
    );
}
