//! No message of `codex` quotes the content of a file that is no configuration: a mounted token or key may be named as any input.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests and what they are made of")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use tempfile::TempDir;

/// What must not be printed. Every secret holds it, with letters that no command adds.
const MARK: &str = "c2VjcmV0LXRva2Vu";

/// Files that hold a secret, as pods mount them.
fn secrets() -> [String; 8] {
    [
        format!("eyJhbGciOiJSUzI1NiJ9.{MARK}.{MARK}\n"),
        format!("\"{MARK}\"\n"),
        format!("[\"{MARK}\"]\n"),
        format!("{{\"auths\": {{\"registry.example.com\": {{\"auth\": \"{MARK}\"}}}}}}\n"),
        format!("{{\"prompt\": [\"{MARK}\"], \"step\": \"{MARK}\", \"schemaVersion\": \"{MARK}\"}}\n"),
        format!("schemaVersion: 1\nkind: {MARK}\ndata: {{password: {MARK}}}\n"),
        format!("-----BEGIN PRIVATE KEY-----\n{MARK}\n-----END PRIVATE KEY-----\n"),
        format!("-----BEGIN PUBLIC KEY-----\n{MARK}.{MARK}\n-----END PUBLIC KEY-----\n"),
    ]
}

fn codex(line: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_codex")).args(line).stdin(Stdio::null()).output().unwrap()
}

/// Runs a command with a secret for an input: it fails, and says why without the secret.
fn refuses(line: &[&str], what: &str) {
    let output = codex(line);
    let told = [output.stdout, output.stderr].concat();
    let told = String::from_utf8_lossy(&told);
    assert!(!output.status.success(), "{what}: {line:?} is accepted: {told}");
    assert!(!told.is_empty() && !told.contains(MARK) && !told.contains("panicked"), "{what}: {line:?} prints: {told}");
}

/// Makes a run of one step, with a checkpoint.
fn run() -> TempDir {
    let root = tempfile::tempdir().unwrap();
    let place = root.path().join("run");
    let mut line = vec!["train", "--template", "cot-starter", "--output", place.to_str().unwrap()];
    for set in [
        "model.hidden_size=32",
        "model.intermediate_size=96",
        "model.num_attention_heads=2",
        "model.num_hidden_layers=2",
        "training.batch_size=8",
        "training.stop_after=1",
    ] {
        line.extend(["--set", set]);
    }
    let output = codex(&line);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    root
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() { copy(&entry.path(), &to) } else { drop(fs::copy(entry.path(), to)) }
    }
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() { all.extend(files(&entry.path())) } else { all.push(entry.path()) }
    }
    all.sort();
    all
}

#[test]
fn an_argument_that_names_a_secret_prints_none_of_it() {
    let root = run();
    let path = |name: &str| root.path().join(name).to_str().unwrap().to_owned();
    let (secret, model, output, digest) = (path("secret"), path("run/model"), path("output"), "0".repeat(64));
    let run = path("run");
    let named = |name: &str| format!("{name}={secret}");
    let key = path("key.pem");
    fs::write(&key, codex_signing::key::PrivateKey::generate().unwrap().public().to_pem()).unwrap();
    let (problems, baseline, mine) = (named("problems"), named("baseline"), named("mine"));
    let asked = path("asked.jsonl");
    fs::write(&asked, r#"{"prompt": "1+1:", "response": "2"}"#).unwrap();
    let watch = [
        "log-watch",
        "--log",
        &run,
        "--bundles",
        &run,
        "--certificate-identity",
        "a",
        "--certificate-oidc-issuer",
        "b",
    ];
    for contents in secrets() {
        fs::write(&secret, &contents).unwrap();
        let serve = |bundle: &str, promotion: &str, key: &str| {
            let line =
                ["serve", "--model", &model, "--model-digest", &digest, "--ring", "main", "--oms-bundle", bundle];
            let more = ["--promotion", promotion, "--promotion-digest", &digest, "--public-key", key];
            let line = [&line[..], &more, &["--key-fingerprint", &digest, "--listen", "127.0.0.1:0"]].concat();
            refuses(&line, &contents);
        };
        serve(&secret, &secret, &secret);
        serve(&secret, &secret, &key);
        for line in [
            &["train", "--config", &secret, "--output", &output][..],
            &["train", "--template", "cot-starter", "--data", &mine, "--output", &output],
            &["evaluate", "--config", &secret, "--model", &model, "--output", &output],
            &["evaluate", "--preset", "cot-lite", "--data", &problems, "--model", &model, "--output", &output],
            &["evaluate", "--preset", "cot-lite", "--data", &baseline, "--model", &model, "--output", &output],
            &["evaluate", "--preset", "cot-lite", "--model", &secret, "--output", &output],
            &["verify", &model, "--bundle", &secret, "--key", &secret],
            &["verify", &model, "--bundle", &secret, "--key", &key],
            &["verify", &model, "--bundle", &secret, "--key", &secret, "--promotion", &secret, "--ring", "main"],
            &["generate", &secret, "--prompt", "1"],
            &["import", &secret, &output],
            &["data", "check", "--data", &mine, "--against", &secret],
            &["data", "check", "--data", &mine, "--against", &asked],
            &["data", "check", "--data", &mine, "--against", &asked, "--set", "training.method=dpo"],
            &["tokenizer", "validate", &secret],
            &["tokenizer", "encode", &secret, "1"],
            &["replay-step", &secret, "1"],
            &["bisect", &secret, &secret],
            &["metrics", "summarize", &secret],
            &["metrics", "compare", &secret, &secret],
            &["metrics", "validate", &secret],
            &["deploy", "--config", &secret, "--run-metadata-dir", &run],
            &["status-report", &run, "--config", &secret],
            &["status-report", &run, "--ring", "main", "--evaluation", &secret],
            &["report", &run, "--evaluation", &secret, "--out", &output],
            &["report", &run, "--gates", &secret, "--out", &output],
            &["report", &run, "--bundle", &secret, "--key", &key, "--out", &output],
            &["register", &model, "--expect", &secret, "--registry", &output],
            &[&watch[..], &["--trusted-root", &secret]].concat(),
            &["repo-map", "--reasoning", "--config", &secret],
            &["config", "show", "--config", &secret],
            &["config", "show", "--preset", "cot-lite", "--config", &secret],
            &["config", "diff", "cot-starter", &secret],
            &["config", "validate", &secret],
            &["config", "defaults-tree", "--config", &secret],
            &["sweep", "-f", &secret, "--sweep", "seed=range(2)"],
        ] {
            refuses(line, &contents);
        }
        fs::write(path("token"), format!("{contents}\n\u{e9}\n")).unwrap();
        refuses(&["tokenizer", "validate", &model, "--data", &path("token")], &contents);
        assert!(!Path::new(&output).join("model").exists());
    }
}

#[test]
fn a_file_of_a_model_that_is_a_secret_is_not_quoted() {
    let root = run();
    let model = root.path().join("model");
    copy(&root.path().join("run/model"), &model);
    let (place, output) = (model.to_str().unwrap().to_owned(), root.path().join("output"));
    for file in files(&model) {
        let good = fs::read(&file).unwrap();
        for contents in secrets() {
            fs::write(&file, &contents).unwrap();
            let what = format!("{}: {contents}", file.display());
            let name = file.file_name().unwrap().to_str().unwrap();
            // Some files only have defaults, and one that is read leniently is no fault.
            if ["config.json", "tokenizer.json", "model.safetensors"].contains(&name) {
                refuses(&["generate", &place, "--prompt", "1"], &what);
                let output = output.to_str().unwrap();
                refuses(&["evaluate", "--preset", "cot-lite", "--model", &place, "--output", output], &what);
            } else {
                let told = codex(&["generate", &place, "--prompt", "1", "--max-tokens", "1"]);
                let told = String::from_utf8_lossy(&told.stderr).into_owned();
                assert!(!told.contains(MARK), "{what}: {told}");
            }
        }
        fs::write(&file, good).unwrap();
    }
}

#[test]
fn a_file_of_a_run_that_is_a_secret_is_not_quoted() {
    let root = run();
    let original = root.path().join("run");
    for (index, file) in files(&original).iter().enumerate() {
        let within = file.strip_prefix(&original).unwrap();
        if within.starts_with("model") || within.starts_with("writers") {
            continue;
        }
        let contents = &secrets()[index % secrets().len()];
        let copied = root.path().join(format!("copy-{index}"));
        copy(&original, &copied);
        fs::write(copied.join(within), contents).unwrap();
        let (run, config) = (copied.to_str().unwrap(), copied.join("artifacts/config.yaml"));
        let config = config.to_str().unwrap();
        // `bisect` opens a run as `replay-step` does; training goes on from checkpoints.
        let mut lines = vec![vec!["metrics", "summarize", run]];
        if within.ends_with("metrics.ndjson") {
            lines.push(vec!["metrics", "tail", run]);
        }
        if within.starts_with("checkpoints") {
            lines.push(vec!["replay-step", run, "1"]);
            lines.push(vec!["train", "--config", config, "--output", run]);
        } else {
            lines.push(vec!["train", "--config", config, "--output", run, "--plan"]);
        }
        let page = root.path().join("page.html");
        lines.push(vec!["report", run, "--out", page.to_str().unwrap()]);
        for line in &lines {
            let output = codex(line);
            let told = [output.stdout, output.stderr, fs::read(&page).unwrap_or_default()].concat();
            let told = String::from_utf8_lossy(&told);
            assert!(!told.contains(MARK) && !told.contains("panicked"), "{}: {line:?}: {told}", within.display());
        }
    }
}
