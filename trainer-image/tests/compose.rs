//! The services of `manifests/compose/compose.yaml`, in their order, as processes of this machine.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests and what they are made of")]

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::Duration,
};

use serde_yaml::Value;

/// What follows the command of `train` in the test: it makes the model small and ends the run early.
const SMALL: [&str; 5] = [
    "model.hidden_size=32",
    "model.intermediate_size=96",
    "model.num_attention_heads=2",
    "training.batch_size=8",
    "training.stop_after=2",
];

fn file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/compose/compose.yaml")
}

/// Replaces `${NAME:-default}` by the variable, or by its default.
fn interpolated(text: &str, variables: &BTreeMap<&str, String>) -> String {
    let mut parts = text.split("${");
    let mut all = parts.next().unwrap().to_owned();
    for part in parts {
        let (variable, rest) = part.split_once('}').unwrap();
        let (name, default) = variable.split_once(":-").expect("every variable has a default");
        all.push_str(variables.get(name).map_or(default, String::as_str));
        all.push_str(rest);
    }
    all
}

/// Returns the file with its variables replaced and its anchors merged.
fn composed(variables: &BTreeMap<&str, String>) -> Value {
    let mut file: Value = serde_yaml::from_str(&interpolated(&fs::read_to_string(file()).unwrap(), variables)).unwrap();
    file.apply_merge().unwrap();
    file
}

/// Returns the command of a service, with `/runs` at `runs`.
fn command(file: &Value, service: &str, runs: &Path) -> Command {
    let arguments = file["services"][service]["command"].as_sequence().unwrap();
    let place = runs.display().to_string();
    let arguments = arguments.iter().map(|it| it.as_str().unwrap().replace("/runs", &place));
    let mut command = Command::new(env!("CARGO_BIN_EXE_codex"));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// Ends a process when it is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn answers(port: &str, path: &str) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(format!("127.0.0.1:{port}"))?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: codex\r\nConnection: close\r\n\r\n").as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

#[test]
fn the_services_train_evaluate_and_serve() {
    let place = tempfile::tempdir().unwrap();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let variables = |gate: &str| BTreeMap::from([("CODEX_PORT", free.clone()), ("CODEX_GATE", gate.to_owned())]);
    let file = composed(&variables("exact_match<=0.5"));
    let ran = |mut command: Command| {
        let ended = command.output().unwrap();
        (ended.status.code(), String::from_utf8_lossy(&ended.stderr).into_owned())
    };
    let mut train = command(&file, "train", place.path());
    train.args(SMALL);
    let (code, log) = ran(train);
    assert_eq!(code, Some(0), "{log}");
    let limit = "evaluation.limit=20";
    for (gate, expected) in [("exact_match>=0.5", 1), ("exact_match<=0.5", 0)] {
        let mut evaluate = command(&composed(&variables(gate)), "evaluate", place.path());
        evaluate.args([limit, "evaluation.max_new_tokens=8"]);
        let (code, log) = ran(evaluate);
        assert_eq!(code, Some(expected), "{gate}: {log}");
    }
    assert!(place.path().join("compose/evaluation/evaluation.json").is_file());
    let mut server = Running(command(&file, "serve", place.path()).spawn().unwrap());
    for _ in 0..600 {
        if answers(&free, "/ready") {
            break;
        }
        assert_eq!(server.0.try_wait().unwrap(), None, "the server ended");
        sleep(Duration::from_millis(100));
    }
    assert!(answers(&free, "/ready") && answers(&free, "/status"));
    assert!(place.path().join("compose/served/errors.ndjson").is_file());
}

#[test]
fn each_service_waits_for_the_one_before_and_has_no_rights() {
    let file = composed(&BTreeMap::new());
    let services = &file["services"];
    for (service, before) in [("evaluate", "train"), ("serve", "evaluate")] {
        assert_eq!(services[service]["depends_on"][before]["condition"], "service_completed_successfully");
    }
    let version = env!("CARGO_PKG_VERSION");
    for service in ["train", "evaluate", "serve"] {
        let service = &services[service];
        assert_eq!(service["image"], format!("codex:{version}"));
        assert_eq!((&service["read_only"], &service["cap_drop"][0]), (&Value::Bool(true), &Value::from("ALL")));
    }
    assert_eq!(services["serve"]["command"][4], "127.0.0.1:8000");
}

/// `make test-compose` builds the reference implementation of the Compose specification, which checks the file with its schema.
#[test]
#[ignore = "needs COMPOSE_GO, the program of github.com/compose-spec/compose-go/v2: make test-compose"]
fn the_reference_implementation_accepts_the_file() {
    let program = std::env::var("COMPOSE_GO").expect("COMPOSE_GO names the program of compose-go");
    let place = tempfile::tempdir().unwrap();
    let check = |text: &str| {
        let path = place.path().join("compose.yaml");
        fs::write(&path, text).unwrap();
        let ended = Command::new(&program).arg(&path).current_dir(place.path()).output().unwrap();
        let told = [ended.stdout, ended.stderr].concat();
        (ended.status.success(), String::from_utf8_lossy(&told).into_owned())
    };
    let text = fs::read_to_string(file()).unwrap();
    let (accepted, told) = check(&text);
    assert!(accepted && told.contains("127.0.0.1:8000"), "{told}");
    let (accepted, told) = check(&text.replace("read_only:", "readonly:"));
    assert!(!accepted && told.contains("readonly"), "{told}");
}
