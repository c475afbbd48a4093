//! `codex generate` as a process: what it prints, and how it refuses.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests and what they are made of")]

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

/// The model that `transformers` read, with its greedy responses.
fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/model/fixtures/trained")
}

fn codex(arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_codex"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that refuses its arguments does not read.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn generate(arguments: &[&str]) -> Output {
    let model = model();
    codex(&[&["generate", model.to_str().unwrap()], arguments].concat(), "")
}

fn said(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn expected() -> Vec<(String, String)> {
    let text = include_str!("../src/model/fixtures/trained.json");
    let all: Vec<serde_json::Value> = serde_json::from_str(text).unwrap();
    let field = |one: &serde_json::Value, name: &str| one[name].as_str().unwrap().to_owned();
    all.iter().map(|one| (field(one, "prompt"), field(one, "response"))).collect()
}

#[test]
fn the_response_is_that_of_transformers() {
    for (prompt, response) in expected() {
        let output = generate(&["--prompt", &prompt, "--max-tokens", "24"]);
        // The end token is not part of the text.
        let response = response.strip_suffix('$').unwrap_or(&response);
        assert_eq!(said(&output), format!("{response}\n"), "{prompt}");
        let path = model();
        let piped = codex(&["generate", path.to_str().unwrap(), "--file", "-", "--max-tokens", "24"], &prompt);
        assert_eq!(said(&piped), format!("{response}\n"), "{prompt}");
    }
}

#[test]
fn a_stop_text_is_not_printed() {
    let (prompt, response) = expected().remove(0);
    let text = response.strip_suffix('$').unwrap_or(&response);
    let stop = &text[1..2];
    let output = generate(&["--prompt", &prompt, "--max-tokens", "24", "--stop", "@@", "--stop", stop]);
    assert_eq!(said(&output), format!("{}\n", text.split(stop).next().unwrap()));
}

#[test]
fn draws_are_reproducible() {
    let draw = |seed: &str| {
        let sampling = ["--temperature", "1.5", "--top-k", "40", "--top-p", "0.95", "--seed", seed];
        said(&generate(&[&["--prompt", "347+86:", "--max-tokens", "40"], sampling.as_slice()].concat()))
    };
    assert_eq!(draw("1"), draw("1"));
    assert!((2..6).any(|seed| draw(&seed.to_string()) != draw("1")));
}

#[test]
fn refusals_are_one_sentence_with_exit_code_2() {
    let long = "1".repeat(200);
    for (arguments, told) in [
        (vec!["--chat", "hello"], "the model has no chat template: it takes plain prompts only"),
        (vec!["--prompt", "caf\u{e9}"], "character 'é' is not in the tokenizer's vocabulary"),
        (vec!["--prompt", ""], "the text is empty"),
        (vec!["--prompt", &long], "the prompt has 200 tokens, but the model's context holds 96"),
        (vec!["--prompt", "1", "--temperature", "-1"], "temperature -1 is out of range: use 0 to 100"),
        (vec!["--prompt", "1", "--temperature", "1", "--top-p", "0"], "top_p 0 is out of range"),
        (vec!["--file", "/nowhere/prompt"], "/nowhere/prompt"),
        (vec!["--prompt", "1", "--top-k", "3"], "--temperature"),
        (vec!["--prompt", "1", "--max-tokens", "0"], "write a whole number from 1 to"),
        (vec!["--prompt", "1", "--stop", ""], "--stop"),
        (vec![], "--prompt"),
    ] {
        let output = generate(&arguments);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
        assert!(stderr.contains(told), "{arguments:?}: {stderr}");
        assert!(output.stdout.is_empty());
    }
    let missing = codex(&["generate", "/nowhere", "--prompt", "1"], "");
    assert_eq!(missing.status.code(), Some(2));
}
