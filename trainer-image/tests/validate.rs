//! `codex validate` as a process: files, folders, standard input, formats and exit codes.

#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests and what they are made of")]

use std::{
    fs,
    io::Write as _,
    path::Path,
    process::{Command, Output, Stdio},
};

const GOOD: &str = "apiVersion: codex-ml.dev/v1alpha1
kind: Evaluation
metadata: { name: lite }
spec:
  trainingRun: cot
  preset: cot-lite
  gates:
    - { metric: exact_match, min: \"0.95\", minSamples: 500, confidence: \"0.95\" }
";

fn validate(arguments: &[&str], folder: &Path, input: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_codex"))
        .arg("validate")
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn folders_files_and_standard_input_are_checked() {
    let place = tempfile::tempdir().unwrap();
    fs::create_dir_all(place.path().join("team/.git")).unwrap();
    fs::write(place.path().join("team/good.yaml"), GOOD).unwrap();
    fs::write(place.path().join("team/bad.yml"), GOOD.replace("confidence", "confidense")).unwrap();
    fs::write(place.path().join("team/.git/hidden.yaml"), "a: [").unwrap();
    fs::write(place.path().join("team/notes.md"), "a: [").unwrap();
    std::os::unix::fs::symlink("..", place.path().join("team/loop")).unwrap();
    let ended = validate(&["team"], place.path(), b"");
    assert_eq!(ended.status.code(), Some(2));
    assert_eq!(
        text(&ended.stdout),
        "team/bad.yml:8:60: Evaluation lite: spec.gates[0].confidense: there is no such field: did you mean confidence?\n\
         2 objects checked in 2 files: 1 finding\n"
    );
    let config_map = "---\napiVersion: v1\nkind: ConfigMap\nmetadata: { name: a }\n";
    let ended = validate(&["team/good.yaml", "-"], place.path(), config_map.as_bytes());
    assert_eq!(ended.status.code(), Some(0), "{}", text(&ended.stderr));
    assert_eq!(text(&ended.stdout), "1 object checked in 2 files: nothing is wrong; 1 of other groups not checked\n");
}

#[test]
fn findings_are_printed_for_programs_too() {
    let place = tempfile::tempdir().unwrap();
    let bad = GOOD.replace("cot-lite", "none");
    let ended = validate(&["--format", "json", "-"], place.path(), bad.as_bytes());
    let finding: serde_json::Value = serde_json::from_slice(&ended.stdout).unwrap();
    assert_eq!(
        (&finding["line"], &finding["field"], &finding["object"]),
        (&6.into(), &"spec.preset".into(), &"Evaluation lite".into())
    );
    let ended = validate(&["--format", "github", "-"], place.path(), bad.as_bytes());
    assert!(
        text(&ended.stdout).starts_with(
            "::error file=-,line=6,col=3,title=Evaluation lite%3A spec.preset::preset \"none\" is unknown"
        ),
        "{}",
        text(&ended.stdout)
    );
    // A name in a manifest cannot direct the terminal.
    let evil = GOOD.replace("{ name: lite }", "{ name: \"a\\e[2Jb\\nc\" }");
    let ended = validate(&["-"], place.path(), evil.as_bytes());
    assert_eq!(ended.status.code(), Some(2));
    assert!(
        !text(&ended.stdout).contains('\u{1b}') && text(&ended.stdout).lines().count() == 2,
        "{}",
        text(&ended.stdout)
    );
}

#[test]
fn what_cannot_be_read_is_refused() {
    let place = tempfile::tempdir().unwrap();
    fs::write(place.path().join("utf16.yaml"), [0xff, 0xfe, 0x61, 0x00]).unwrap();
    for (path, told) in [
        ("nowhere.yaml", "nowhere.yaml: No such file"),
        ("utf16.yaml", "is not UTF-8 text, but UTF-16: save it as UTF-8"),
    ] {
        let ended = validate(&[path], place.path(), b"");
        assert_eq!(ended.status.code(), Some(2), "{path}");
        assert!(text(&ended.stderr).contains(told), "{}", text(&ended.stderr));
    }
    assert_eq!(validate(&[], place.path(), b"").status.code(), Some(2));
}
