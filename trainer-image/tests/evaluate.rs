//! `codex evaluate` as a process: its exit codes, the problems and outputs that it refuses, and SIGTERM.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests and what they are made of")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::OnceLock,
    thread::sleep,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// A gate that a model which has learned nothing passes.
const PASSES: &str = "exact_match<=0.5";
const FAILS: &str = "exact_match>=0.5";

fn command(line: &[impl AsRef<str>]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_codex"));
    command.args(line.iter().map(AsRef::as_ref)).stdin(Stdio::null());
    command
}

fn codex(line: &[impl AsRef<str>]) -> Output {
    command(line).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Returns the run that all tests share: a small model after one step.
fn run() -> &'static Path {
    static RUN: OnceLock<TempDir> = OnceLock::new();
    let directory = RUN.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap();
        let mut line: Vec<String> = ["train", "--template", "cot-starter", "--output"].map(str::to_owned).to_vec();
        line.push(path(&directory.path().join("run")).to_owned());
        for set in [
            "model.hidden_size=32",
            "model.intermediate_size=96",
            "model.num_attention_heads=2",
            "model.num_hidden_layers=2",
            "training.batch_size=8",
            "training.stop_after=1",
        ] {
            line.extend(["--set".to_owned(), set.to_owned()]);
        }
        let ended = codex(&line);
        assert!(ended.status.success(), "{}", text(&ended.stderr));
        directory
    });
    Box::leak(Box::new(directory.path().join("run")))
}

fn model() -> PathBuf {
    run().join("model")
}

/// Returns a copy of the model that a test may damage.
fn copy(to: &Path) -> PathBuf {
    let copy = to.join("model");
    fs::create_dir(&copy).unwrap();
    for file in fs::read_dir(model()).unwrap().map(|entry| entry.unwrap()) {
        fs::copy(file.path(), copy.join(file.file_name())).unwrap();
    }
    copy
}

fn contents(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    files.map(|file| (file.clone(), fs::read(&file).unwrap())).collect()
}

/// Returns the command line of an evaluation of five problems of the preset.
fn evaluate(model: &Path, output: &Path, more: &[&str]) -> Vec<String> {
    let short = ["--set", "evaluation.limit=5", "--set", "evaluation.max_new_tokens=2"];
    let line = ["evaluate", "--preset", "cot-lite", "--model", path(model), "--output", path(output)];
    [&line[..], &short, more].concat().into_iter().map(str::to_owned).collect()
}

/// Runs an evaluation of the shared model. Returns its exit code and log.
fn ended(output: &Path, more: &[&str]) -> (i32, String) {
    let ended = codex(&evaluate(&model(), output, more));
    (ended.status.code().unwrap(), text(&ended.stderr))
}

#[test]
fn only_a_failed_gate_exits_with_one() {
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("out");
    assert_eq!(ended(&out, &[]).0, 0);
    assert_eq!(ended(&out, &["--gate", PASSES]).0, 0);
    assert_eq!(ended(&out, &["--gate", FAILS]).0, 1);
    assert_eq!(ended(&out, &["--gate", PASSES, "--gate", FAILS]).0, 1);

    let (code, log) = ended(Path::new("/proc/cannot-be-written"), &["--gate", PASSES]);
    assert!(code == 3 && log.contains("/proc/cannot-be-written"), "{code}: {log}");
    for gate in [PASSES, FAILS] {
        let line = evaluate(&model(), &out, &["--gate", gate]);
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        assert_eq!(command(&line).stdout(full).stderr(Stdio::null()).status().unwrap().code(), Some(3));
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        assert_eq!(command(&line).stdout(writer).stderr(Stdio::null()).status().unwrap().code(), Some(3));
    }

    let file = place.path().join("file");
    fs::write(&file, "").unwrap();
    for (output, more, why) in [
        (&file, vec![], "--output: "),
        (&file.join("below"), vec![], "--output: "),
        (&out, vec!["--record-baseline", path(place.path())], "--record-baseline: "),
        (&out, vec!["--gate", "reasoning.win_rate>=0.5", "--data", "problems=nowhere.jsonl"], "nowhere.jsonl"),
    ] {
        let (code, log) = ended(output, &more);
        assert!(code == 2 && log.contains(why), "{code}: {log}");
    }
    let line = evaluate(&file, &out, &["--gate", PASSES]);
    assert_eq!(codex(&line).status.code(), Some(2), "a file in the place of a model");
}

#[test]
fn a_model_that_cannot_be_asked_passes_no_gate() {
    let place = tempfile::tempdir().unwrap();
    let (problems, out) = (place.path().join("p.jsonl"), place.path().join("out"));
    let line = |prompt: &str| {
        format!(r##"{{"prompt":"{prompt}","response":"#2$","difficulty":"easy","category":"addition"}}"##)
    };
    for (prompt, why) in [
        ("1".repeat(301), "the prompt has 301 tokens, but the model's context holds 256"),
        ("1+\u{e9}:".to_owned(), "character 3 is not in the tokenizer's vocabulary"),
        (String::new(), "the text is empty"),
    ] {
        fs::write(&problems, format!("{}\n{}\n", line("1+1:"), line(&prompt))).unwrap();
        let data = format!("problems={}", path(&problems));
        let (code, log) = ended(&out, &["--gate", PASSES, "--data", &data]);
        assert!(code == 2 && log.contains(&format!("p.jsonl:2: the model cannot answer this problem: {why}")), "{log}");
        assert_eq!(fs::read_dir(&out).unwrap().count(), 1, "nothing is scored");
        let rows = fs::read_to_string(out.join("errors.ndjson")).unwrap();
        let row: serde_json::Value = serde_json::from_str(rows.lines().last().unwrap()).unwrap();
        assert!(row["chain"].to_string().contains(why) && row["final"] == true && row["run_id"] == "out", "{row}");
    }
}

#[test]
fn outputs_that_change_an_input_are_refused() {
    let place = tempfile::tempdir().unwrap();
    let model = copy(place.path());
    let before = contents(&model);
    let at = |name: &str| place.path().join(name);
    std::os::unix::fs::symlink(&model, at("link")).unwrap();
    let problems = at("problems.jsonl");
    let made = codex(&["prepare-data", "--task", "arithmetic", "--count", "9", "--out", path(&problems)]);
    assert!(made.status.success());
    let data = format!("problems={}", path(&problems));
    let link_out = at("link/out");
    let baseline = model.join("b.jsonl");
    for (output, more, told) in [
        (&model, vec![], "is inside --model"),
        (&model.join("evaluation"), vec![], "is inside --model"),
        (&link_out, vec![], "is inside --model"),
        (&at("x/../model"), vec![], "is inside --model"),
        (&at("out"), vec!["--record-baseline", path(&baseline)], "is inside --model"),
        (&at("out"), vec!["--data", &data, "--record-baseline", path(&problems)], "is the same as data problems"),
        (&at("out"), vec!["--record-baseline", path(&at("out/summary.json"))], "is the same as --output"),
    ]
    .map(|(output, more, told)| (output.clone(), more.into_iter().map(str::to_owned).collect::<Vec<_>>(), told))
    {
        let more: Vec<&str> = more.iter().map(String::as_str).collect();
        let ended = codex(&evaluate(&model, &output, &more));
        let log = text(&ended.stderr);
        assert!(ended.status.code() == Some(2) && log.contains(told), "{}: {log}", output.display());
    }
    assert_eq!(contents(&model), before);
    assert!(!at("out").exists());

    // Beside the model is allowed, and through the link.
    let beside = evaluate(&at("link"), &at("beside"), &[]);
    assert_eq!(codex(&beside).status.code(), Some(0));
    assert_eq!(contents(&model), before);
}

#[test]
fn other_commands_refuse_to_change_their_inputs() {
    let place = tempfile::tempdir().unwrap();
    let plot = |output: &Path| codex(&["metrics", "plot", "--output", path(output), path(run())]);
    let before = contents(&model());
    for output in [model().join("loss.svg"), run().join("checkpoints/x/../../model/loss.svg")] {
        let ended = plot(&output);
        let log = text(&ended.stderr);
        assert!(ended.status.code() == Some(2) && log.contains("is inside RUN/model"), "{log}");
    }
    assert_eq!(contents(&model()), before);
    assert_eq!(plot(&place.path().join("loss.svg")).status.code(), Some(0));

    let output = place.path().join("run");
    let mine = output.join("model/mine.jsonl");
    fs::create_dir_all(output.join("model")).unwrap();
    let made = codex(&["prepare-data", "--task", "arithmetic", "--count", "9", "--out", path(&mine)]);
    assert!(made.status.success());
    let data = format!("mine={}", path(&mine));
    let line = ["train", "--template", "cot-starter", "--output", path(&output), "--data", &data];
    let ended = codex(&line);
    let log = text(&ended.stderr);
    assert!(ended.status.code() == Some(2) && log.contains("would replace data mine ("), "{log}");
    assert!(mine.exists());

    let base = model();
    let inside = base.join("inside");
    let rules = place.path().join("rules.yaml");
    fs::write(&rules, "rules: []\n").unwrap();
    let (base, inside, rules) = (path(&base), path(&inside), path(&rules));
    let prepared = ["prepare-data", "--task", "arithmetic", "--count", "9", "--safety-rules", rules, "--out", rules];
    for (line, told) in [
        (
            &["train", "--template", "cot-starter", "--base", base, "--output", inside, "--data", &data][..],
            "is inside --base",
        ),
        (&["tokenizer", "export", base, "--output", inside], "is inside TOKENIZER"),
        (&["serve", "--unsigned", base, "--listen", "127.0.0.1:0", "--errors", inside], "is inside DIR"),
        (&["serve", "--unsigned", base, "--listen", "127.0.0.1:0", "--trace-store", inside], "is inside DIR"),
        (&prepared, "--safety-rules"),
    ] {
        let ended = codex(line);
        let log = text(&ended.stderr);
        assert!(ended.status.code() == Some(2) && log.contains(told), "{line:?}: {log}");
    }
    assert_eq!(contents(&model()), before);
}

/// Names and sizes are checked before any byte of the model is read.
#[test]
fn a_sparse_file_and_a_pipe_in_a_model_are_refused_at_once() {
    let place = tempfile::tempdir().unwrap();
    let model = copy(place.path());
    let refused = |told: &str| {
        let begun = Instant::now();
        let ended = codex(&evaluate(&model, &place.path().join("out"), &["--gate", PASSES]));
        let log = text(&ended.stderr);
        assert!(ended.status.code() == Some(2) && log.contains(told), "{log}");
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    };
    let large = model.join("pickle.bin");
    fs::File::create(&large).unwrap().set_len(1 << 40).unwrap();
    refused("the largest is \\\"pickle.bin\\\"");
    fs::remove_file(&large).unwrap();
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &large, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    refused("is neither a regular file nor a directory");
}

/// What cannot be printed never ends or fails the work.
#[test]
fn a_full_standard_error_changes_nothing() {
    let place = tempfile::tempdir().unwrap();
    let full = || fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let closed = || {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        Stdio::from(writer)
    };
    for stderr in [Stdio::from(full()), closed()] {
        let out = place.path().join("out");
        let ended = command(&evaluate(&model(), &out, &["--gate", PASSES])).stderr(stderr).output().unwrap();
        assert_eq!(ended.status.code(), Some(0));
        let told: serde_json::Value = serde_json::from_slice(&ended.stdout).unwrap();
        assert_eq!(told["judgement"]["verdict"], "Passed", "{told}");
        fs::remove_dir_all(out).unwrap();
    }
    let mut digests = Vec::new();
    for (name, stderr) in [("a", Stdio::from(full())), ("b", closed()), ("c", Stdio::piped())] {
        let output = place.path().join(name);
        let line = ["train", "--template", "cot-starter", "--output", path(&output), "--set", "training.stop_after=1"];
        let ended = command(&line).stderr(stderr).output().unwrap();
        assert_eq!(ended.status.code(), Some(0), "{name}");
        digests
            .push(ended.stdout.rsplit(|byte| *byte == b'\n').nth(1).map(|line| text(line).replace(path(&output), "")));
    }
    assert!(digests[0].is_some() && digests.iter().all(|digest| *digest == digests[0]), "{digests:?}");
    // A refusal keeps its exit code.
    let missing = evaluate(&place.path().join("nowhere"), &place.path().join("out"), &[]);
    assert_eq!(command(&missing).stderr(full()).status().unwrap().code(), Some(2));
    for line in [vec!["--help"], vec!["train", "--help"], vec!["--version"], vec!["train", "--seed", "-1"]] {
        let ended = command(&line).stdout(full()).stderr(full()).status().unwrap();
        assert!(ended.code().is_some_and(|code| code != 101), "{line:?}: {ended}");
    }
}

#[test]
fn sigterm_ends_an_evaluation_between_its_stages() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    let problems = at("problems.jsonl");
    let count = ["--count", "3000", "--split", "held-out", "--out", path(&problems)];
    let made = codex(&[&["prepare-data", "--task", "arithmetic"], &count[..]].concat());
    assert!(made.status.success(), "{}", text(&made.stderr));
    let (output, log) = (at("out"), at("log"));
    let data = format!("problems={}", path(&problems));
    let line =
        ["evaluate", "--preset", "cot-lite", "--data", &data, "--model", path(&model()), "--output", path(&output)]
            .map(str::to_owned);
    for stage in ["reading the model", "reading the problems", "loading the model", "evaluating"] {
        let mut child = command(&line).stdout(Stdio::null()).stderr(fs::File::create(&log).unwrap()).spawn().unwrap();
        while !fs::read_to_string(&log).unwrap().contains(&format!("\"{stage}\"")) {
            assert!(child.try_wait().unwrap().is_none(), "{stage}: {}", fs::read_to_string(&log).unwrap());
            sleep(Duration::from_millis(1));
        }
        let asked = Instant::now();
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        let code = child.wait().unwrap().code();
        assert_eq!(code, Some(143), "{stage}: {}", fs::read_to_string(&log).unwrap());
        assert!(asked.elapsed() < Duration::from_secs(5), "{stage}: {:?}", asked.elapsed());
        assert!(!output.exists(), "{stage}");
    }
}
