//! The tools against the folder of a run, and the protocol line by line.

use std::{fs, os::unix::fs::symlink, path::Path};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};

use super::{
    look::{Folder, Judging, Root, Rows, Run, Verifying},
    server::Server,
};

/// Makes a run with a model and a ledger, and returns the root.
fn runs() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let run = root.path().join("team/run");
    for folder in ["model", "artifacts", "evaluations/cot"] {
        fs::create_dir_all(run.join(folder)).unwrap();
    }
    fs::write(run.join("model/config.json"), "{}").unwrap();
    fs::write(run.join("model/model.safetensors"), "weights").unwrap();
    let row = |step: u64, metric: &str, value: f64| {
        json!({
            "$schema": "https://codex-ml.dev/schemas/metrics-ledger/v1", "schema_version": "v1",
            "timestamp": "2026-11-28T09:00:00Z", "run_id": "r", "step": step, "split": "train", "metric": metric,
            "value": value, "dataset": "arithmetic", "tags": {},
        })
        .to_string()
    };
    let rows: Vec<String> = (1..=30).flat_map(|step| [row(step, "loss", 1.0), row(step, "lr", 0.1)]).collect();
    fs::write(run.join("artifacts/metrics.ndjson"), rows.join("\n") + "\nno row\n{\"unfin").unwrap();
    fs::write(run.join("evaluations/cot/evaluation.json"), "{\"preset\": \"cot-lite\"}").unwrap();
    root
}

fn root(place: &Path) -> Root {
    Root::new(place).unwrap()
}

#[test]
fn runs_metrics_and_damaged_evaluations_are_shown() {
    let place = runs();
    let root = root(place.path());
    let listed = root.list_runs(&Folder::default()).unwrap();
    assert_eq!(listed["runs"][0]["path"], "team/run");
    assert_eq!((&listed["runs"][0]["kind"], &listed["runs"][0]["evaluations"]), (&json!("run"), &json!(1)));
    assert_eq!((listed["runs"].as_array().unwrap().len(), &listed["more"]), (1, &json!(false)));
    let run = || "team/run".to_owned();
    let shown = root.show_run(&Run { run: run() }).unwrap();
    assert_eq!((&shown["last_step"], &shown["metrics"]), (&json!(30), &json!(["loss", "lr"])));
    assert!(shown["metadata"]["lacking"].as_str().unwrap().ends_with("run_metadata.json does not exist"));
    let rows = |metric: Option<&str>, count| {
        root.tail_metrics(&Rows { run: run(), metric: metric.map(str::to_owned), split: None, count })
    };
    let tail = rows(Some("loss"), Some(3)).unwrap();
    let steps: Vec<_> = tail["rows"].as_array().unwrap().iter().map(|row| row["step"].as_u64().unwrap()).collect();
    assert_eq!((steps, &tail["invalid_lines"], &tail["unfinished_line"]), (vec![28, 29, 30], &json!(1), &json!(true)));
    assert_eq!(rows(None, None).unwrap()["rows"].as_array().unwrap().len(), 20);
    assert!(rows(None, Some(0)).unwrap_err().to_string().contains("from 1 to 1000"));
    let evaluations = root.list_evaluations(&Run { run: run() }).unwrap();
    assert_eq!(evaluations["evaluations"][0]["path"], "team/run/evaluations/cot/evaluation.json");
    assert!(evaluations["evaluations"][0]["invalid"].as_str().unwrap().contains("it is no evaluation.json"));
}

#[test]
fn nothing_outside_the_root_is_read() {
    let (place, outside) = (runs(), runs());
    let root = root(place.path());
    symlink(outside.path().join("team/run"), place.path().join("link")).unwrap();
    symlink("/etc", place.path().join("etc")).unwrap();
    let absolute = outside.path().join("team/run").to_str().unwrap().to_owned();
    for path in ["link", "..", "/etc", "etc", "../../etc/passwd", &absolute] {
        let told = root.show_run(&Run { run: path.to_owned() }).unwrap_err().to_string();
        assert!(told.contains("lies outside the root") || told.contains("does not exist below"), "{path}: {told}");
        let told = root.list_runs(&Folder { folder: Some(path.to_owned()) }).unwrap_err().to_string();
        assert!(told.contains("outside the root") || told.contains("does not exist below"), "{path}: {told}");
    }
    // A run whose parts lie elsewhere is refused, too.
    fs::create_dir(place.path().join("mixed")).unwrap();
    symlink(outside.path().join("team/run/artifacts"), place.path().join("mixed/artifacts")).unwrap();
    let told = root.show_run(&Run { run: "mixed".to_owned() }).unwrap_err().to_string();
    assert!(told.contains("lies outside the root"), "{told}");
    let judging =
        Judging { evaluation: "link/evaluations/cot/evaluation.json".to_owned(), gates: "/etc/passwd".to_owned() };
    assert!(root.judge_evaluation(&judging).unwrap_err().to_string().contains("lies outside the root"));
    fs::create_dir_all(place.path().join("single/artifacts")).unwrap();
    symlink(
        outside.path().join("team/run/artifacts/metrics.ndjson"),
        place.path().join("single/artifacts/metrics.ndjson"),
    )
    .unwrap();
    let rows = Rows { run: "single".to_owned(), metric: None, split: None, count: None };
    let told = root.tail_metrics(&rows).unwrap_err().to_string();
    assert!(told.contains("lies outside the root"), "{told}");
    // Links are not listed either.
    assert_eq!(root.list_runs(&Folder::default()).unwrap()["runs"].as_array().unwrap().len(), 1);
}

#[test]
fn a_model_without_a_key_is_hashed_and_not_called_verified() {
    let place = runs();
    let asked = |value: Value| serde_json::from_value::<Verifying>(value).unwrap();
    let root = root(place.path());
    let answer = root.verify_model(&asked(json!({ "run": "team/run" }))).unwrap();
    assert_eq!((&answer["files"], &answer["verified"]), (&json!(2), &json!(false)));
    assert_eq!(answer["model"].as_str().unwrap().len(), 64);
    fs::write(place.path().join("key.pem"), "no key").unwrap();
    for (value, why) in [
        (json!({ "run": "team/run", "ring": "main" }), "give promotion and ring together"),
        (json!({ "run": "team/run", "fingerprint": "00" }), "fingerprint: write 64"),
        (json!({ "run": "team/run", "key": "key.pem" }), "has no model.sig inside"),
        (json!({ "run": "team/run", "key": "key.pem", "bundle": "key.pem" }), "--key"),
    ] {
        let told = root.verify_model(&asked(value.clone())).unwrap_err().to_string();
        assert!(told.contains(why), "{value}: {told}");
    }
}

#[tokio::test]
async fn a_client_lists_and_calls_tools() {
    use rmcp::ServiceExt as _;

    let place = runs();
    let server = Server::new(root(place.path()));
    let (client, inside) = tokio::io::duplex(1 << 16);
    let serving = tokio::spawn(async move { drop(server.serve(inside).await.unwrap().waiting().await) });
    let (read, mut write) = tokio::io::split(client);
    let mut lines = BufReader::new(read).lines();
    let mut send = async |message: Value| write.write_all(format!("{message}\n").as_bytes()).await.unwrap();
    let mut receive = async || -> Value { serde_json::from_str(&lines.next_line().await.unwrap().unwrap()).unwrap() };
    let info =
        json!({ "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": { "name": "t", "version": "1" } });
    send(json!({ "jsonrpc": "2.0", "id": 1, "method": "initialize", "params": info })).await;
    let hello = receive().await;
    assert_eq!(hello["result"]["serverInfo"]["name"], "codex-tools");
    send(json!({ "jsonrpc": "2.0", "method": "notifications/initialized" })).await;
    send(json!({ "jsonrpc": "2.0", "id": 2, "method": "tools/list" })).await;
    let tools = receive().await;
    let tools = tools["result"]["tools"].as_array().unwrap();
    assert_eq!(tools.len(), 6);
    assert!(tools.iter().all(|tool| tool["annotations"]["readOnlyHint"] == true), "{tools:?}");
    let call = |id: u64, name: &str, arguments: Value| json!({ "jsonrpc": "2.0", "id": id, "method": "tools/call", "params": { "name": name, "arguments": arguments } });
    send(call(3, "list_runs", json!({}))).await;
    assert_eq!(receive().await["result"]["structuredContent"]["runs"][0]["path"], "team/run");
    send(call(4, "show_run", json!({ "run": "../.." }))).await;
    let refused = receive().await;
    assert_eq!(refused["result"]["isError"], true);
    assert!(refused["result"]["content"][0]["text"].as_str().unwrap().contains("outside the root"), "{refused}");
    send(call(5, "show_run", json!({ "other": 1 }))).await;
    let wrong = receive().await;
    assert!(wrong.get("error").is_some() || wrong["result"]["isError"] == true, "{wrong}");
    send(call(6, "delete_run", json!({}))).await;
    assert!(receive().await.get("error").is_some());
    drop((write, lines));
    serving.await.unwrap();
}
