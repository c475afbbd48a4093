use std::{fs, path::Path};

use codex_configs::{Data, Synthetic, benchmark, compose_evaluation, compose_training};
use codex_provenance::{DataDigest, Sha256, manifest::Manifest};
use codex_reports::TrainingState;
use codex_verdict::{Measurement, Metric};
use serde_json::Value;

use super::*;
use crate::tasks::{Split, Task, materialise};

mod clusters;
mod corpus;
mod plugins;

/// A model that `steps` optimiser steps have taught; 0 leaves it as it was initialised.
fn train(steps: u64, output: &Path) -> PathBuf {
    let overrides = [
        "model.hidden_size=32".to_owned(),
        "model.intermediate_size=96".to_owned(),
        "model.num_hidden_layers=2".to_owned(),
        "model.num_attention_heads=2".to_owned(),
        "training.max_steps=500".to_owned(),
        "training.warmup_steps=20".to_owned(),
        "training.batch_size=32".to_owned(),
        format!("training.stop_after={steps}"),
    ];
    let resolved = compose_training("cot-starter", &overrides, None, 1, vec![synthetic("arithmetic", 20_000)]).unwrap();
    let reporter = Reporter::<TrainingState>::from_env().unwrap();
    crate::training::Session::new(&resolved, &[], output, &reporter, &|| false).run().unwrap();
    output.join("model")
}

fn synthetic(task: &str, count: u64) -> Data {
    named_synthetic(task, task, count)
}

fn named_synthetic(name: &str, task: &str, count: u64) -> Data {
    let synthetic = Some(Synthetic { task: task.to_owned(), seed: 7, count });
    Data { name: name.to_owned(), sha256: None, synthetic }
}

fn problems(count: u64) -> Vec<Data> {
    vec![named_synthetic("problems", "arithmetic", count)]
}

struct Case<'a> {
    model: &'a Path,
    data: Vec<Data>,
    files: Vec<(String, PathBuf)>,
    set: &'a [&'a str],
    expected: Option<ModelDigest>,
    record_baseline: Option<&'a Path>,
    page: Option<&'a [Gate]>,
    seed: u64,
    stop: bool,
}

impl<'a> Case<'a> {
    fn of(model: &'a Path, data: Vec<Data>) -> Self {
        let (files, set) = (Vec::new(), &[]);
        Self { model, data, files, set, expected: None, record_baseline: None, page: None, seed: 1, stop: false }
    }

    /// With files in place of the preset's, pinned as they are now.
    fn with_files(model: &'a Path, files: Vec<(String, PathBuf)>) -> Self {
        Self { data: inputs::pin(&files).unwrap(), files, ..Self::of(model, Vec::new()) }
    }

    fn run(&self, output: &Path) -> (Result<Outcome, EvaluateError>, EvaluationState) {
        let set: Vec<String> = self.set.iter().map(|text| (*text).to_owned()).collect();
        let resolved = compose_evaluation("cot-lite", &set, self.seed, self.data.clone()).unwrap();
        let reporter = Reporter::<EvaluationState>::from_env().unwrap();
        let session = Session {
            resolved: &resolved,
            files: &self.files,
            model: self.model,
            expected: self.expected,
            device: codex_configs::Device::Cpu,
            output,
            record_baseline: self.record_baseline,
            page: self.page,
            reporter: &reporter,
            stop: Arc::new(AtomicBool::new(self.stop)),
        };
        let outcome = session.run();
        (outcome, reporter.state())
    }

    fn results(&self, output: &Path) -> (Results, EvaluationState) {
        match self.run(output) {
            (Ok(Outcome::Finished(results)), state) => (*results, state),
            (other, _) => panic!("{other:?}"),
        }
    }

    fn error(&self) -> EvaluateError {
        let output = tempfile::tempdir().unwrap();
        let (outcome, _) = self.run(output.path());
        assert_eq!(fs::read_dir(output.path()).unwrap().count(), 0, "nothing is written");
        outcome.unwrap_err()
    }
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap()
}

#[test]
fn what_a_model_has_learnt_is_measured_and_what_it_has_not() {
    let directory = tempfile::tempdir().unwrap();
    let fresh = train(0, &directory.path().join("fresh"));
    let taught = train(500, &directory.path().join("taught"));
    let coverage = |results: &Results| match results.metrics[Metric::TraceCoverage.name()] {
        Measurement::Mean { n, sum: Some(sum), sum_of_squares: Some(_) } => sum / n as f64,
        other => panic!("{other:?}"),
    };
    let (results, state) = Case::of(&fresh, problems(100)).results(&directory.path().join("a"));
    assert_eq!(results.metrics[Metric::ExactMatch.name()], Measurement::Share { successes: 0, n: 100 });
    assert!(coverage(&results) < 0.02);
    assert_eq!((state.stage, state.done, state.total), (Stage::Finished, 100, 100));
    assert_eq!(state.model_digest, Some(Manifest::of_dir(&fresh).unwrap().digest()));
    assert_eq!(state.metrics, results.metrics);
    assert_eq!(state.data[0].records, Some(100));
    assert!(state.device.is_some_and(|device| device.engine.starts_with("cpu") && !device.name.is_empty()));
    assert!(!results.metrics.contains_key(Metric::WinRate.name()), "no baseline, no win rate");

    let (results, _) = Case::of(&taught, problems(100)).results(&directory.path().join("b"));
    assert!(coverage(&results) > 0.1, "{}", coverage(&results));

    // The untaught model as the baseline: it loses what the other one wins.
    let recorded = directory.path().join("baseline.jsonl");
    let asked = directory.path().join("problems.jsonl");
    fs::write(&asked, materialise(Task::Arithmetic, Split::HeldOut, 7, 100).unwrap()).unwrap();
    let own = |name: &str, path: &Path| (name.to_owned(), path.to_owned());
    let case = Case::with_files(&fresh, vec![own("problems", &asked)]);
    Case { record_baseline: Some(&recorded), ..case }.results(&directory.path().join("c"));
    let case = Case::with_files(&taught, vec![own("problems", &asked), own("baseline", &recorded)]);
    let (results, _) = case.results(&directory.path().join("d"));
    let Measurement::Share { successes, n } = results.metrics[Metric::ExactMatch.name()] else { panic!("a share") };
    assert_eq!(
        results.metrics[Metric::WinRate.name()],
        Measurement::Duel { wins: successes, ties: n - successes, losses: 0 }
    );
    assert_eq!(results.baseline, Some(Measurement::Share { successes: 0, n: 100 }));
}

#[test]
fn results_do_not_depend_on_the_batch_and_are_written_whole() {
    let directory = tempfile::tempdir().unwrap();
    let model = train(0, &directory.path().join("run"));
    let (one, seven) = (directory.path().join("one"), directory.path().join("seven"));
    let short = "evaluation.max_new_tokens=24";
    let case = Case { set: &["evaluation.batch_size=1", short], ..Case::of(&model, problems(30)) };
    case.results(&one);
    let case = Case { set: &["evaluation.batch_size=7", short], ..Case::of(&model, problems(30)) };
    let (results, _) = case.results(&seven);
    assert_eq!(read(one.join("records.ndjson")), read(seven.join("records.ndjson")));
    assert_eq!(read(one.join("outcomes.json")), read(seven.join("outcomes.json")));
    let names = |path: &Path| {
        let mut names: Vec<_> =
            fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(names(&seven), ["evaluation.json", "outcomes.json", "records.ndjson", "summary.json"]);

    let written: serde_json::Value = serde_json::from_str(&read(seven.join("evaluation.json"))).unwrap();
    assert_eq!(written["preset"], "cot-lite");
    assert_eq!(written["settings"]["evaluation"]["batch_size"], 7);
    assert_eq!(written["model"]["digest"], results.model.digest.to_string());
    assert_eq!(written["metrics"]["exact_match"], serde_json::json!({"kind": "share", "successes": 0, "n": 30}));
    let digests = results.data_files.iter().map(|file| (file.name.clone(), file.sha256)).collect();
    let digest =
        codex_verdict::report_digest(results.model.digest, &digests, &results.metrics, results.golden_tokens.as_ref());
    assert_eq!(written["reportDigest"], digest.to_string());
    let summary: serde_json::Value = serde_json::from_str(&read(seven.join("summary.json"))).unwrap();
    assert_eq!(summary["metrics"]["exact_match"]["value"], "0");
    assert_eq!(summary["problems"], 30);
    let by_category = summary["categories"].as_object().unwrap();
    let n: u64 = by_category.values().map(|shown| shown["n"].as_u64().unwrap()).sum();
    assert_eq!(n, 30);
}

#[test]
fn evaluations_of_the_same_problems_are_compared_item_by_item() {
    let directory = tempfile::tempdir().unwrap();
    let (fresh, taught) = (train(0, &directory.path().join("fresh")), train(300, &directory.path().join("taught")));
    let (before, after) = (directory.path().join("before"), directory.path().join("after"));
    let asked = directory.path().join("problems.jsonl");
    fs::write(&asked, materialise(Task::Arithmetic, Split::HeldOut, 7, 40).unwrap()).unwrap();
    let own = |name: &str, path: &Path| (name.to_owned(), path.to_owned());
    let set: &[&str] = &["evaluation.max_new_tokens=48"];
    let (first, state) = Case { set, ..Case::with_files(&fresh, vec![own("problems", &asked)]) }.results(&before);
    let recorded = before.join("outcomes.json");
    assert_eq!(state.outcomes, Some(DataDigest(Sha256::of(fs::read(&recorded).unwrap()))));
    let files = vec![own("problems", &asked), own("reference-before", &recorded)];
    let case = Case { set, ..Case::with_files(&taught, files.clone()) };
    let (second, state) = case.results(&after);
    assert_eq!(state.data.iter().map(|file| file.name.as_str()).collect::<Vec<_>>(), ["problems", "reference-before"]);
    assert_eq!(state.data[1].records, Some(40));
    for metric in [Metric::ExactMatch, Metric::TraceCoverage] {
        let gate = Gate {
            metric,
            bound: codex_verdict::Bound::BetterThan(codex_verdict::Comparison { evaluation: "before".into(), by: 0.0 }),
            min_samples: None,
            confidence: Some(0.95),
            margin: None,
        };
        assert!(second.metrics.contains_key(&gate.measurement()), "{metric}");
        codex_verdict::check_comparison(&gate, &second.metrics, &first.metrics).unwrap();
    }
    codex_verdict::accept(&second.metrics).unwrap();
    let Measurement::Duel { wins, ties, losses } = second.metrics["exact_match@before"] else { panic!("pairs") };
    assert_eq!(wins + ties + losses, 40);

    // Whatever is not the same evaluation of another model is refused before anything is scored.
    let refused = |case: &Case| {
        let error = case.error();
        assert_eq!((error.failure().is_final, error.exit()), (true, 2));
        error.to_string()
    };
    let told = refused(&Case { set: &["evaluation.max_new_tokens=49"], ..Case::with_files(&taught, files.clone()) });
    assert!(
        told.ends_with("evaluation.max_new_tokens was 48, here it is 49: compare evaluations with the same settings"),
        "{told}"
    );
    let other = directory.path().join("other.jsonl");
    fs::write(&other, materialise(Task::Arithmetic, Split::HeldOut, 8, 40).unwrap()).unwrap();
    let others = vec![own("problems", &other), own("reference-before", &recorded)];
    let told = refused(&Case { set, ..Case::with_files(&taught, others) });
    assert!(told.contains("outcomes.json: it is about other problems (SHA-256 "), "{told}");
    let pinned = Case { set, ..Case::with_files(&taught, files) };
    fs::write(&recorded, read(&recorded).replacen("\"exact_match\":0.0", "\"exact_match\":1.0", 1)).unwrap();
    let told = refused(&pinned);
    assert!(told.starts_with("data reference-before hashes to "), "{told}");
    for (text, expected) in [
        ("[]", "it is no file of outcomes ("),
        (
            &read(&recorded).replacen("\"exact_match\":1.0", "\"exact_match\":1.5", 1),
            "is 1.5, which is not from 0 to 1",
        ),
        (
            &read(&recorded).replacen("\"line\":2", "\"line\":3", 1),
            "it has outcomes of 40 problems, but 40 other ones are asked",
        ),
        (
            &read(&recorded).replacen("\"schemaVersion\":2", "\"schemaVersion\":9", 1),
            "its schemaVersion is 9, but 1 and 2 are read",
        ),
    ] {
        fs::write(&recorded, text).unwrap();
        let files = vec![own("problems", &asked), own("reference-before", &recorded)];
        let told = refused(&Case { set, ..Case::with_files(&taught, files) });
        assert!(told.contains(expected), "{told}");
    }
}

#[test]
fn another_model_is_refused_with_both_digests() {
    let directory = tempfile::tempdir().unwrap();
    let model = train(0, &directory.path().join("run"));
    let signed = Manifest::of_dir(&model).unwrap().digest();
    let case = Case { expected: Some(signed), set: &["evaluation.max_new_tokens=2"], ..Case::of(&model, problems(5)) };
    case.results(&directory.path().join("same"));
    let path = model.join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    let found = Manifest::of_dir(&model).unwrap().digest();
    let (outcome, state) = case.run(&directory.path().join("changed"));
    let error = outcome.unwrap_err();
    let sentence = error.to_string();
    assert!(sentence.contains(&signed.to_string()) && sentence.contains(&found.to_string()), "{sentence}");
    let failure = error.failure();
    assert_eq!((failure.reason.as_str(), failure.is_final, error.exit()), ("ModelMismatch", true, 2));
    assert_eq!(state.model_digest, Some(found), "the report says what was hashed");
    assert!(!directory.path().join("changed").exists());
}

#[test]
fn an_empty_model_directory_is_told_as_a_lost_model() {
    let directory = tempfile::tempdir().unwrap();
    let model = directory.path().join("model");
    fs::create_dir(&model).unwrap();
    let expected = ModelDigest(Sha256::of("model"));
    let case = Case { expected: Some(expected), ..Case::of(&model, problems(5)) };
    let error = case.run(&directory.path().join("results")).0.unwrap_err();
    let failure = error.failure();
    assert_eq!((failure.reason.as_str(), failure.is_final, error.exit()), ("ModelMismatch", true, 2));
    assert_eq!(
        failure.message,
        format!(
            "the model {expected} is to be evaluated, but {} contains no files: the volume was replaced or emptied; restore its \
             files from a backup, or train again with another TrainingRun",
            model.display()
        )
    );
    let error = Case { expected: None, ..case }.run(&directory.path().join("results")).0.unwrap_err();
    assert_eq!(error.failure().reason, "InvalidModel");
}

#[test]
fn a_problem_that_cannot_be_asked_is_refused_with_its_line() {
    let directory = tempfile::tempdir().unwrap();
    let model = train(0, &directory.path().join("run"));
    let path = directory.path().join("problems.jsonl");
    let line = |prompt: &str| {
        format!(r#"{{"prompt":"{prompt}","response":"1+1+0=02 #2$","difficulty":"easy","category":"addition"}}"#)
    };
    let (long, longest) = ("9".repeat(256), "9".repeat(255));
    for (prompt, why) in [
        (long.as_str(), "the prompt has 256 tokens, but the model's context holds 256"),
        ("caf\u{e9}", "character 4 is not in the tokenizer's vocabulary"),
        ("", "the text is empty: write at least one character"),
    ] {
        fs::write(&path, format!("{}\n\n{}\n{}\n", line("1+1:"), line(&longest), line(prompt))).unwrap();
        let case = Case::with_files(&model, vec![("problems".to_owned(), path.clone())]);
        let error = case.error();
        assert_eq!((error.exit(), error.failure().reason.as_str()), (2, "InvalidData"));
        let told = error.failure().message;
        let start = format!("{}:4: the model cannot answer this problem: {why}", path.display());
        assert!(told.starts_with(&start), "{told}");
        // A problem that is not asked may be anything.
        let set = ["evaluation.limit=2", "evaluation.max_new_tokens=2"];
        let (results, state) = Case { set: &set, ..case }.results(&directory.path().join("out"));
        assert_eq!((results.scored.len(), state.done), (2, 2));
        assert_eq!(results.metrics[Metric::ExactMatch.name()], Measurement::Share { successes: 0, n: 2 });
        assert_eq!(results.scored.iter().map(|one| one.line).collect::<Vec<_>>(), [1, 3]);
    }
}

#[test]
fn a_stopped_evaluation_writes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let model = train(0, &directory.path().join("run"));
    let output = directory.path().join("out");
    let (outcome, state) = Case { stop: true, ..Case::of(&model, problems(5)) }.run(&output);
    assert!(matches!(outcome, Ok(Outcome::Interrupted)));
    assert_eq!(state.stage, Stage::Interrupted);
    assert!(!output.exists());
}

#[test]
fn files_that_are_not_what_they_should_be_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let model = train(0, &directory.path().join("run"));
    let path = directory.path().join("problems.jsonl");
    let good = r#"{"prompt":"1+1:","response":"1+1+0=02 #2$","difficulty":"easy","category":"addition"}"#;
    let file = |name: &str| vec![(name.to_owned(), path.clone())];
    let refused = |text: &str| {
        fs::write(&path, text).unwrap();
        let error = Case::with_files(&model, file("problems")).error();
        assert_eq!((error.exit(), error.failure().reason.as_str()), (2, "InvalidData"));
        error.failure().message.replace(&path.display().to_string(), "FILE")
    };
    assert!(refused(&format!("{good}\n{{\"prompt\"\n")).starts_with("FILE:2: invalid record"));
    assert_eq!(
        refused(&format!("{good}\n\n{}\n", good.replace("1+1:", "x").replace("#2$", "$"))),
        "FILE:3: the response has no answer: end it in #answer$"
    );
    assert_eq!(
        refused(&format!("{good}\n\n{good}\n")),
        "FILE:3: the prompt of line 1 again: every problem counts once, so remove one of the two"
    );
    assert!(refused("\n").starts_with("FILE: no records"));

    // Changed after it was pinned.
    fs::write(&path, good).unwrap();
    let case = Case::with_files(&model, file("problems"));
    fs::write(&path, format!("{good}\n")).unwrap();
    let error = case.error();
    let sentence = error.to_string();
    let digests = [format!("{good}\n"), good.to_owned()].map(|text| Sha256::of(text).to_string());
    assert!(digests.iter().all(|digest| sentence.contains(digest)), "{sentence}");
    assert_eq!(error.failure().reason, "DataMismatch");

    // A baseline that leaves problems out would make the model look better.
    let partial = directory.path().join("baseline.jsonl");
    fs::write(&partial, r#"{"prompt":"2+2:","prediction":""}"#).unwrap();
    let both = vec![("problems".to_owned(), path.clone()), ("baseline".to_owned(), partial)];
    assert!(Case::with_files(&model, both).error().to_string().contains("no prediction for "));

    // Pinned, but not there.
    let data = vec![Data { name: "problems".to_owned(), sha256: Some(DataDigest(Sha256::of("x"))), synthetic: None }];
    let error = Case::of(&model, data).error();
    assert_eq!(error.to_string(), "data problems has no file: pass --data problems=FILE");
    let error = Case { files: file("baseline"), ..Case::of(&model, problems(3)) }.error();
    assert_eq!(error.to_string(), "--data baseline is not in the configuration");
    let error = Case::of(&directory.path().join("nowhere"), problems(3)).error();
    assert_eq!((error.failure().reason.as_str(), error.exit()), ("InvalidModel", 2));
    let error = Case::of(&path, problems(3)).error();
    assert_eq!((error.failure().reason.as_str(), error.exit()), ("InvalidModel", 2), "a file in the place of a model");
}

#[test]
fn cot_lite_is_what_its_readme_says() {
    let tasks = [Task::Arithmetic, Task::WordProblems];
    let [arithmetic, words] = tasks.map(|task| materialise(task, Split::HeldOut, 2026, 500).unwrap());
    let made = [arithmetic, words].concat();
    assert!(benchmark("cot-lite")[0].contents() == made, "made again, the problems have other bytes");
}

#[test]
fn cot_hard_is_what_its_readme_says() {
    let made = [(Task::Arithmetic5, 300), (Task::Multiplication, 200), (Task::WordProblems3, 300)]
        .map(|(task, count)| materialise(task, Split::HeldOut, 2026, count).unwrap());
    assert!(benchmark("cot-hard")[0].contents() == made.concat(), "made again, the problems have other bytes");
}

#[test]
fn a_preset_brings_its_problems() {
    let directory = tempfile::tempdir().unwrap();
    let model = train(0, &directory.path().join("run"));
    let set = ["evaluation.limit=12", "evaluation.max_new_tokens=4"];
    let case = Case { set: &set, ..Case::of(&model, Vec::new()) };
    let (results, state) = case.results(&directory.path().join("out"));
    assert_eq!(results.scored.len(), 12);
    let problems = state.data.iter().find(|file| file.name == "problems").unwrap();
    assert_eq!((problems.sha256, problems.records), (benchmark("cot-lite")[0].digest(), Some(1000)));
    let table = table::numbers(&results);
    assert!(
        table.starts_with(&format!("cot-lite · model {} · 12 problems\n", results.model.digest.short())),
        "{table}"
    );
    let judgement = judge(
        &["exact_match>=0.95@0.95".parse().unwrap()],
        &results.metrics,
        Some(results.model.digest),
        results.model.digest,
    );
    assert!(
        table::verdict(&judgement)
            .starts_with("\nFailed: 0 of 1 gates passed\n  Failed        exact_match: 0 over 12 items")
    );
}

/// The schema for a file of a run, as it is committed.
fn schema(name: &str) -> impl Fn(&Value) -> Result<(), String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas").join(format!("{name}.schema.json"));
    let (mut schemas, mut compiler) = (boon::Schemas::new(), boon::Compiler::new());
    compiler.enable_format_assertions();
    let text: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    compiler.add_resource(name, text).unwrap();
    let index = compiler.compile(name, &mut schemas).unwrap();
    move |value| schemas.validate(value, index).map_err(|error| format!("{error:#}"))
}

#[test]
fn committed_schemas_are_those_of_the_types() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas");
    for (name, schema) in crate::artifacts::schemas::all() {
        let text = format!("{}\n", serde_json::to_string_pretty(&schema).unwrap());
        let path = directory.join(name);
        if std::env::var_os("UPDATE").is_some() {
            atomic_fs::write(&path, text.as_bytes()).unwrap();
        }
        assert_eq!(
            fs::read_to_string(&path).unwrap_or_default(),
            text,
            "{name}: UPDATE=1 cargo test --release --locked --workspace schemas"
        );
    }
    assert_eq!(fs::read_dir(directory).unwrap().count(), crate::artifacts::schemas::all().len());
}

#[test]
fn the_files_of_a_run_follow_their_schemas() {
    let directory = tempfile::tempdir().unwrap();
    let run = directory.path().join("run");
    let model = train(20, &run);
    let judged = directory.path().join("judged");
    Case::of(&model, problems(20)).results(&judged);
    let failing = [("mine".to_owned(), PathBuf::from("not/there"))];
    let resolved = compose_training("cot-starter", &[], None, 1, vec![synthetic("arithmetic", 100)]).unwrap();
    let reporter = Reporter::<TrainingState>::nowhere();
    crate::training::Session::new(&resolved, &failing, &run, &reporter, &|| false).run().unwrap_err();
    let mut checked = 0;
    for (file, place) in [
        ("run_metadata.json", run.join("artifacts")),
        ("environment.json", run.join("artifacts")),
        ("dataset_checksums.json", run.join("artifacts")),
        ("data_report.json", run.join("artifacts")),
        ("metrics.ndjson", run.join("artifacts")),
        ("errors.ndjson", run.join("artifacts")),
        ("evaluation.json", judged.clone()),
        ("summary.json", judged.clone()),
        ("outcomes.json", judged.clone()),
        ("records.ndjson", judged.clone()),
    ] {
        let (name, ending) = file.split_once('.').unwrap();
        let holds = schema(name);
        let text = read(place.join(file));
        let lines: Vec<&str> = if ending == "ndjson" { text.lines().collect() } else { vec![&text] };
        assert!(!lines.is_empty(), "{file}");
        for line in lines {
            let value: Value = serde_json::from_str(line).unwrap();
            holds(&value).unwrap_or_else(|error| panic!("{file}: {error}"));
            // A schema that takes anything would prove nothing.
            for key in value.as_object().unwrap().keys() {
                let mut wrong = value.clone();
                wrong[key] = serde_json::json!([[["no such thing"]]]);
                assert!(holds(&wrong).is_err(), "{file}: {key} may be anything");
            }
            checked += 1;
        }
    }
    assert!(checked > 30, "{checked}");
}

#[test]
fn texts_end_answers() {
    let directory = tempfile::tempdir().unwrap();
    let model = train(0, &directory.path().join("fresh"));
    let run = |name: &str, more: &[&str]| {
        let set = [&["evaluation.max_new_tokens=24"], more].concat();
        let output = directory.path().join(name);
        Case { set: &set, ..Case::of(&model, problems(12)) }.results(&output);
        let lines: Vec<Value> =
            read(output.join("records.ndjson")).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        lines.iter().map(|line| line["prediction"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let whole = run("whole", &[]);
    let end: String = whole[0].chars().skip(3).take(2).collect();
    let stop = format!("evaluation.stop={}", serde_json::json!([end, "never said"]));
    let expected: Vec<&str> =
        whole.iter().map(|text| text.find(&end).map_or(text.as_str(), |at| &text[..at])).collect();
    assert_eq!(run("stopped", &[&stop]), expected);
    assert_eq!(run("two", &[&stop, "evaluation.batch_size=3"]), expected);
    assert!(expected[0].len() < whole[0].len());
}

#[test]
fn sampled_answers_are_the_same_in_other_batches() {
    let directory = tempfile::tempdir().unwrap();
    let model = train(0, &directory.path().join("fresh"));
    let set = ["evaluation.samples=3", "evaluation.k=2", "evaluation.temperature=1", "evaluation.max_new_tokens=8"];
    let run = |name: &str, more: &[&str], count| {
        let set = [&set[..], more].concat();
        let case = Case { set: &set, ..Case::of(&model, problems(count)) };
        let output = directory.path().join(name);
        let (results, _) = case.results(&output);
        (results, read(output.join("records.ndjson")))
    };
    let (results, records) = run("one", &[], 12);
    assert_eq!(results.metrics[Metric::PassAtK.name()].kind(), codex_verdict::Kind::Mean);
    assert!(matches!(results.metrics[Metric::MajAtK.name()], Measurement::Share { n: 12, .. }));
    // Other batches, and other problems in them, change nothing.
    assert_eq!(run("two", &["evaluation.batch_size=2"], 12).1, records);
    let fewer = run("three", &["evaluation.limit=5"], 12).1;
    assert_eq!(records.lines().take(5).collect::<Vec<_>>(), fewer.lines().collect::<Vec<_>>());
    let lines: Vec<Value> = records.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let samples = |line: &Value| line["samples"]["answers"].as_array().unwrap().len();
    assert!(lines.iter().all(|line| samples(line) == 3));
    let predictions: std::collections::BTreeSet<String> =
        lines.iter().map(|line| line["prediction"].to_string()).collect();
    assert!(predictions.len() > 6, "{predictions:?}");
    let seeded = Case { set: &set, seed: 2, ..Case::of(&model, problems(12)) };
    let output = directory.path().join("seeded");
    seeded.results(&output);
    assert_ne!(read(output.join("records.ndjson")), records, "another seed samples other answers");
}

#[test]
fn a_page_is_written_where_it_is_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let model = train(0, &directory.path().join("fresh"));
    let gates: PageGates = r#"[{ "metric": "exact_match", "min": "0.95" }]"#.parse().unwrap();
    let output = directory.path().join("with");
    let (results, state) = Case { page: Some(&gates.0), ..Case::of(&model, problems(5)) }.results(&output);
    let page = read(output.join(page::FILE));
    assert_eq!(state.page, Some(DataDigest(Sha256::of(&page))));
    for expected in ["exact_match", "Failed", &results.model.digest.to_string(), "config.json"] {
        assert!(page.contains(expected), "{expected}: {page}");
    }
    let output = directory.path().join("without");
    let (_, state) = Case::of(&model, problems(5)).results(&output);
    assert!(state.page.is_none() && !output.join(page::FILE).exists());
    for (wrong, why) in [("{}", "write a JSON list of gates"), (r#"[{ "metric": "exact_match" }]"#, "none of min, max")]
    {
        let told = wrong.parse::<PageGates>().unwrap_err();
        assert!(told.contains(why), "{told}");
    }
}
