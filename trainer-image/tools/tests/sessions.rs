//! Processes that write to one database at once.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

use std::{
    io::Write as _,
    path::Path,
    process::{Child, Command, Stdio},
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_codex-tools");

fn sessions(db: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    command.arg("sessions").args(arguments).arg("--db").arg(db).env("CODEX_LOG", "error");
    command
}

fn output(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Starts a process that logs each line of its input.
fn writer(db: &Path, ndjson: &Path, journal: &str) -> Child {
    let ndjson = ndjson.to_str().unwrap();
    sessions(db, &["log", "shared", "--role", "tool", "--lines", "--ndjson", ndjson, "--journal", journal])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap()
}

fn many_write_at_once(journal: &str) {
    const WRITERS: usize = 5;
    const LINES: usize = 60;
    let place = tempfile::tempdir().unwrap();
    let db = place.path().join("sessions.db");
    // The database does not exist yet, so they also race to make it.
    let mut writers: Vec<Child> = (0..WRITERS).map(|_| writer(&db, place.path(), journal)).collect();
    for (index, writer) in writers.iter_mut().enumerate() {
        let lines: Vec<String> = (0..LINES).map(|line| format!("{index}:{line}\n")).collect();
        writer.stdin.take().unwrap().write_all(lines.concat().as_bytes()).unwrap();
    }
    for mut writer in writers {
        assert!(writer.wait().unwrap().success());
    }
    let shown = output(&mut sessions(&db, &["view", "shared", "--format", "json"]));
    for index in 0..WRITERS {
        let own: Vec<&str> = shown.lines().filter(|line| line.contains(&format!("\"{index}:"))).collect();
        assert_eq!(own.len(), LINES);
        for (line, number) in own.iter().zip(0..) {
            assert!(line.contains(&format!("\"{index}:{number}\"")), "{line}");
        }
    }
    // The file has the same events, each line whole, so that an import finds none that is missing.
    let told = output(&mut sessions(&db, &["import", place.path().join("shared.ndjson").to_str().unwrap()]));
    assert!(told.contains(&format!("0 events added, {} there already", WRITERS * LINES)), "{told}");
}

#[test]
fn many_processes_write_through_a_write_ahead_log() {
    many_write_at_once("wal");
}

#[test]
fn many_processes_write_through_a_rollback_journal() {
    many_write_at_once("delete");
}

#[test]
fn the_environment_names_the_database_and_bad_input_has_code_2() {
    let place = tempfile::tempdir().unwrap();
    let db = place.path().join("s.db");
    let run = |arguments: &[&str]| {
        Command::new(PROGRAM).arg("sessions").args(arguments).env("CODEX_SESSIONS_DB", &db).output().unwrap()
    };
    let missing = run(&["list"]);
    assert_eq!(missing.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("does not exist: name the database"));
    assert!(run(&["log", "a", "--role", "user", "--message", "hello"]).status.success());
    let last = run(&["last", "1"]);
    assert!(String::from_utf8_lossy(&last.stdout).ends_with("  a  user       hello\n"), "{last:?}");
    assert_eq!(run(&["log", "a", "--role", "root", "--message", "x"]).status.code(), Some(2));
}
