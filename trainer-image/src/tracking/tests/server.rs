//! A run at the tracking server of MLflow, and its registry of models.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::unix::process::CommandExt as _,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use codex_provenance::{ModelDigest, Sha256};
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};

use super::*;
use crate::tracking::{mlflow_registry::Asked, mlflow_server::Client};

/// A request that arrived: its path with the query, the authorization, the body.
type Request = (String, Option<String>, Value);

/// A tracking server that answers as MLflow does, until the test ends.
struct Server {
    uri: String,
    requests: Arc<Mutex<Vec<Request>>>,
    /// Number of requests that are refused with 503 before others.
    away: Arc<Mutex<usize>>,
}

impl Server {
    fn start(away: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let uri = format!("http://{}", listener.local_addr().unwrap());
        let (requests, away) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(away)));
        let (seen, left, registered) = (Arc::clone(&requests), Arc::clone(&away), AtomicBool::new(false));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                // A client that went away.
                let _ = serve(&stream.unwrap(), &seen, &left, &registered);
            }
        });
        Self { uri, requests, away }
    }

    /// Returns the paths of the requests so far, without what they have in common, and forgets them.
    fn take(&self) -> Vec<Request> {
        std::mem::take(&mut *self.requests.lock().unwrap())
    }
}

fn serve(
    mut stream: &TcpStream,
    seen: &Mutex<Vec<Request>>,
    away: &Mutex<usize>,
    registered: &AtomicBool,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut first, mut headers) = (String::new(), BTreeMap::new());
    reader.read_line(&mut first)?;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let path = first.split(' ').nth(1).unwrap_or_default().trim_start_matches("/api/2.0/mlflow/").to_owned();
    let (status, answer) = {
        let mut away = away.lock().unwrap();
        if *away > 0 {
            *away -= 1;
            (503, json!({ "error_code": "TEMPORARILY_UNAVAILABLE", "message": "later" }))
        } else {
            let known = |requests: &[Request]| requests.iter().any(|(path, ..)| path == "experiments/create");
            let answer = match path.split('?').next().unwrap_or_default() {
                "experiments/get-by-name" if !known(&seen.lock().unwrap()) => {
                    (404, json!({ "error_code": "RESOURCE_DOES_NOT_EXIST" }))
                }
                "experiments/get-by-name" => (200, json!({ "experiment": { "experiment_id": "7" } })),
                "experiments/create" => (200, json!({ "experiment_id": "7" })),
                "registered-models/create" if registered.load(Ordering::Relaxed) => {
                    (400, json!({ "error_code": "RESOURCE_ALREADY_EXISTS", "message": "again" }))
                }
                "model-versions/search" if registered.load(Ordering::Relaxed) => {
                    (200, json!({ "model_versions": [{ "version": "1" }] }))
                }
                "model-versions/create" => {
                    registered.store(true, Ordering::Relaxed);
                    (200, json!({ "model_version": { "version": "1" } }))
                }
                "runs/create" => (200, json!({ "run": { "info": { "run_id": "f00d" } } })),
                _ => (200, json!({})),
            };
            let body = serde_json::from_slice(&body).unwrap_or_default();
            seen.lock().unwrap().push((path, headers.get("authorization").cloned(), body));
            answer
        }
    };
    let answer = answer.to_string();
    let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", answer.len());
    stream.write_all(format!("{head}{answer}").as_bytes())
}

/// Runs an attempt at a server and returns how many failures were counted.
fn at_server(server: &Server, artifacts: &Path, history: &[Row], steps: &[u64], ended: Ended) -> u64 {
    let counter = IntCounter::new("failures", "failures").unwrap();
    let failures = Failures::new(mlflow_server::NAME, Some(counter.clone()));
    let (run, step) = (described(), history.last().map_or(0, |row| row.step));
    let start = Start { artifacts, run: &run, history, step };
    let client = Client::new(Some(&format!("{}/", server.uri)), Some("s3cret\n"), None).unwrap();
    let (experiment, pause) = ("small tests".to_owned(), Duration::from_millis(1));
    let mut tracker = MlflowServer::open(&start, &failures, client, experiment, pause).unwrap();
    for step in steps {
        failures.observe(tracker.log(&rows(*step)));
    }
    failures.observe(tracker.end(ended));
    counter.get()
}

#[test]
fn a_server_receives_run_parameters_and_metrics() {
    let (server, root) = (Server::start(0), tempfile::tempdir().unwrap());
    assert_eq!(at_server(&server, root.path(), &rows(2), &[4], Ended::Finished), 0);
    let mut requests = server.take();
    assert!(requests.iter().all(|(_, token, _)| token.as_deref() == Some("Bearer s3cret")));
    let (_, _, last) = requests.pop().unwrap();
    assert_eq!((&last["run_id"], &last["status"]), (&json!("f00d"), &json!("FINISHED")));
    assert!(last["end_time"].as_u64().unwrap() > 1_700_000_000_000);
    let paths: Vec<&str> = requests.iter().map(|(path, ..)| path.as_str()).collect();
    assert!(paths[0] == "experiments/get-by-name?experiment_name=small%20tests", "{}", paths[0]);
    assert_eq!(paths[1..4], ["experiments/create", "runs/create", "runs/log-batch"]);
    assert_eq!(requests[1].2, json!({ "name": "small tests" }));
    let created = &requests[2].2;
    assert_eq!((&created["experiment_id"], &created["run_name"]), (&json!("7"), &json!("cot: starter")));
    assert_eq!((&created["start_time"], &created["user_id"]), (&json!(2000), &json!("team")));
    assert_eq!(created["tags"][0], json!({ "key": "mlflow.runName", "value": "cot: starter" }));
    let params = json!([{ "key": "seed", "value": "1" }, { "key": "training.learning_rate", "value": "0.01" }]);
    assert_eq!(requests[3].2, json!({ "run_id": "f00d", "params": params }));
    let sent: Vec<Value> = requests[4..].iter().flat_map(|it| it.2["metrics"].as_array().unwrap().clone()).collect();
    let metric = |key: &str, value: f64, step: u64| json!({ "key": key, "value": value, "timestamp": 1000 * step, "step": step });
    let of = |step: u64, loss: f64| {
        [
            metric("train/loss", loss, step),
            metric("train/learning_rate", 0.01, step),
            metric("val/loss", 2.0 * loss, step),
        ]
    };
    assert_eq!(sent, [of(2, 0.5), of(4, 0.25)].concat());

    // Another attempt goes on with the same run, and sends its own rows only.
    assert_eq!(at_server(&server, root.path(), &rows(4), &[5], Ended::Interrupted), 0);
    let requests = server.take();
    assert_eq!(requests[0].0, "runs/update");
    assert_eq!(requests[0].2, json!({ "run_id": "f00d", "status": "RUNNING" }));
    let steps: Vec<&Value> =
        requests.iter().flat_map(|it| it.2["metrics"].as_array().into_iter().flatten()).map(|it| &it["step"]).collect();
    assert_eq!(steps, [&json!(5); 3]);
    assert!(!requests.iter().any(|(path, ..)| path == "runs/create"));
    assert_eq!(requests.last().unwrap().2["status"], "KILLED");
}

/// The server refuses some requests and then takes everything: no row is lost, and the failures are counted.
#[test]
fn rows_wait_for_a_server_that_is_away() {
    let (server, root) = (Server::start(1), tempfile::tempdir().unwrap());
    let failures = at_server(&server, root.path(), &[], &[2, 4], Ended::Finished);
    assert_eq!(failures, 1);
    assert_eq!(*server.away.lock().unwrap(), 0);
    let sent: usize = server.take().iter().filter_map(|it| Some(it.2["metrics"].as_array()?.len())).sum();
    assert_eq!(sent, 6);
}

#[test]
fn a_server_that_does_not_exist_is_counted() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let uri = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let server = Server { uri, requests: Arc::default(), away: Arc::default() };
    let root = tempfile::tempdir().unwrap();
    let failures = at_server(&server, root.path(), &[], &[2], Ended::Failed);
    assert!(failures >= 2, "{failures}");
    assert!(!root.path().join("mlflow.json").exists());
}

#[test]
fn variables_that_name_no_server_say_what_is_right() {
    let refused = |uri: Option<&str>, token: Option<&str>| {
        Client::new(uri, token, None).err().map(|error| error.to_string()).unwrap_or_default()
    };
    assert_eq!(refused(Some("https://mlflow.example.com/prefix/"), Some("t")), "");
    assert_eq!(refused(Some("http://mlflow:5000"), None), "");
    let cases = [
        (None, None, "MLFLOW_TRACKING_URI is not set: set it to the address"),
        (Some("file:///mlruns"), None, "MLFLOW_TRACKING_URI is no address of an HTTP server"),
        (Some("https://"), None, "MLFLOW_TRACKING_URI is no address of an HTTP server"),
        (Some("https://me:pass@mlflow"), None, "MLFLOW_TRACKING_URI has a user"),
        (Some("http://mlflow:5000"), Some("t"), "MLFLOW_TRACKING_TOKEN is set, but the server has no https"),
        (Some("https://mlflow"), Some("a\nb"), "MLFLOW_TRACKING_TOKEN holds a character that no token has"),
    ];
    for (uri, token, told) in cases {
        let found = refused(uri, token);
        assert!(found.starts_with(told) && !found.contains("pass"), "{found}");
    }
}

#[test]
fn a_model_gets_one_version_of_a_registered_model() {
    let (server, root) = (Server::start(0), tempfile::tempdir().unwrap());
    crate::run_folder::tests::run(root.path());
    let (artifacts, model) = (root.path().join("artifacts"), ModelDigest(Sha256::of("model")));
    assert_eq!(at_server(&server, &artifacts, &rows(2), &[4], Ended::Finished), 0);
    server.take();
    let register = |name: &str, ring: Option<&str>| {
        let client = Client::new(Some(&server.uri), None, None).unwrap();
        let asked =
            Asked { client, name: name.to_owned(), ring: ring.map(str::to_owned), artifacts: &artifacts, model };
        asked.register_within(Duration::from_secs(10))
    };
    register("cot", Some("0D_base_")).unwrap();
    let requests = server.take();
    let paths: Vec<&str> = requests.iter().map(|(path, ..)| path.split('?').next().unwrap()).collect();
    assert_eq!(paths, ["registered-models/create", "model-versions/search", "model-versions/create"]);
    assert_eq!(requests[0].2, json!({ "name": "cot" }));
    let created = &requests[2].2;
    assert_eq!((&created["name"], &created["run_id"]), (&json!("cot"), &json!("f00d")));
    assert_eq!(created["source"], format!("codex://models/{model}"));
    let tag =
        |key: &str| created["tags"].as_array().unwrap().iter().find(|tag| tag["key"] == key).map(|tag| &tag["value"]);
    assert_eq!(tag("codex.model_digest"), Some(&json!(model)));
    assert_eq!((tag("codex.ring"), tag("codex.run_id")), (Some(&json!("0D_base_")), Some(&json!("r1"))));

    // The same model again: its version stays, and gets the tags of now.
    register("cot", None).unwrap();
    let requests = server.take();
    assert!(!requests.iter().any(|(path, ..)| path == "model-versions/create"));
    let tags: Vec<&Value> =
        requests.iter().filter(|(path, ..)| path == "model-versions/set-tag").map(|it| &it.2).collect();
    assert!(
        tags.iter().all(|tag| tag["version"] == "1" && tag["name"] == "cot" && tag["key"] != "codex.ring"),
        "{tags:?}"
    );
    assert_eq!(tags.len(), 4);

    let refused = register("it's", None).unwrap_err().to_string();
    assert!(refused.starts_with("MLFLOW_REGISTERED_MODEL_NAME holds a character"), "{refused}");
    *server.away.lock().unwrap() = 1;
    let refused = register("cot", None).unwrap_err().to_string();
    assert!(
        refused.contains("registered-models/create answered with status 503: TEMPORARILY_UNAVAILABLE"),
        "{refused}"
    );
}

/// A process and those that it starts, until the test ends.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        let _ = kill_process_group(Pid::from_child(&self.0), Signal::KILL);
        let _ = self.0.wait();
    }
}

/// `make test-clients` installs the package.
#[test]
#[ignore = "needs CLIENTS_PYTHON, a Python with the package mlflow: make test-clients"]
fn mlflow_server_keeps_one_version_of_a_model() {
    let python = std::env::var("CLIENTS_PYTHON").expect("CLIENTS_PYTHON names a Python with mlflow");
    let root = tempfile::tempdir().unwrap();
    crate::run_folder::tests::run(root.path());
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let log = fs::File::create(root.path().join("server.log")).unwrap();
    let store = format!("sqlite:///{}", root.path().join("mlflow.db").display());
    let mut command = Command::new(python);
    command.args(["-m", "mlflow", "server", "--host", "127.0.0.1", "--port", &port, "--workers", "1"]);
    command
        .args(["--backend-store-uri", &store, "--registry-store-uri", &store, "--default-artifact-root"])
        .arg(root.path());
    command.current_dir(root.path()).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).process_group(0);
    let mut process = Group(command.spawn().unwrap());
    let server = Server { uri: format!("http://127.0.0.1:{port}"), requests: Arc::default(), away: Arc::default() };
    let client = || Client::new(Some(&server.uri), None, None).unwrap();
    for _ in 0..1200 {
        if client().get("experiments/get-by-name", ("experiment_name", "Default")).is_ok() {
            break;
        }
        let log = || fs::read_to_string(root.path().join("server.log")).unwrap();
        assert!(process.0.try_wait().unwrap().is_none(), "the server ended: {}", log());
        std::thread::sleep(Duration::from_millis(100));
    }
    let (artifacts, model) = (root.path().join("artifacts"), ModelDigest(Sha256::of("model")));
    assert_eq!(at_server(&server, &artifacts, &rows(2), &[4], Ended::Finished), 0);
    let run = mlflow_server::Noted::read(&artifacts).unwrap().run_id;
    for ring in ["0C_base_", "0D_base_"] {
        let (name, ring) = ("cot small".to_owned(), Some(ring.to_owned()));
        let asked = Asked { client: client(), name, ring, artifacts: &artifacts, model };
        asked.register_within(Duration::from_secs(60)).unwrap();
    }
    let other = Asked {
        client: client(),
        name: "cot small".to_owned(),
        ring: None,
        artifacts: &artifacts,
        model: ModelDigest(Sha256::of("other")),
    };
    other.register_within(Duration::from_secs(60)).unwrap();
    let found = client().get("model-versions/search", ("filter", "name='cot small'")).unwrap();
    let versions = found["model_versions"].as_array().unwrap();
    assert_eq!(versions.len(), 2, "{found}");
    let first = versions.iter().find(|version| version["version"] == "1").unwrap();
    assert_eq!((&first["run_id"], &first["source"]), (&json!(run), &json!(format!("codex://models/{model}"))));
    let tag =
        |key: &str| first["tags"].as_array().unwrap().iter().find(|tag| tag["key"] == key).map(|tag| &tag["value"]);
    assert_eq!((tag("codex.ring"), tag("codex.run_id")), (Some(&json!("0D_base_")), Some(&json!("r1"))), "{first}");
    assert_eq!(tag("codex.model_digest"), Some(&json!(model)));
    let refused = client().post("model-versions/create", &json!({ "name": "unknown", "source": "codex://models/1" }));
    assert!(refused.unwrap_err().to_string().contains("status 404: RESOURCE_DOES_NOT_EXIST"));
}
