//! Figures of the `codex` program itself, run on this machine beside the cluster.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use codex_crds::{ReasoningPod, TrainingRun};
use codex_tests::{Error, Result, Team, install::program, process::output};
use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::Value;

use crate::figures::Figure;

/// Steps of the speed measurement.
const STEPS: u32 = 200;
/// Number of server starts; the figure is their median.
const STARTS: usize = 5;
const PATIENCE: Duration = Duration::from_secs(30);

/// Measures the time from executing the server to its readiness, with the model and the bundles of the chain.
pub(crate) async fn ready(team: &Team, name: &str) -> Result<Figure> {
    println!("Starting the server {STARTS} times.");
    let pod = team.api::<ReasoningPod>().get(name).await?;
    let run = team.api::<TrainingRun>().get(&pod.spec.training_run).await?;
    let status = pod.status.unwrap_or_default();
    let (Some(manifest), Some(promotion)) = (status.manifest, status.promotion) else {
        return Err(Error::io("reading the bundles")(std::io::Error::other("the ReasoningPod has no bundles")));
    };
    let folder = tempfile::tempdir().map_err(Error::io("making a temporary folder"))?;
    for (map, file, key) in [
        (&manifest.bundle, "oms.json", "bundle.json"),
        (&manifest.bundle, "key.pem", "key.pem"),
        (&promotion.bundle, "promotion.json", "bundle.json"),
    ] {
        let data = team.api::<ConfigMap>().get(map).await?.data.unwrap_or_default();
        let text = data.get(key).cloned().unwrap_or_default();
        fs::write(folder.path().join(file), text).map_err(Error::io(format!("writing {file}")))?;
    }
    let model = team.folder(&run).await?.unwrap_or_default().join("model");
    let key = fs::read(folder.path().join("key.pem")).map_err(Error::io("reading the key"))?;
    let fingerprint = codex_provenance::Sha256::of(key).to_string();
    let mut times = Vec::with_capacity(STARTS);
    for _ in 0..STARTS {
        let address = free_address()?;
        let mut server = Command::new(program("codex")?);
        server.args(["serve", "--model-digest", &manifest.digest.to_string(), "--ring", promotion.ring.name()]);
        server.args(["--promotion-digest", &promotion.digest.to_string(), "--key-fingerprint", &fingerprint]);
        server.args(["--listen", &address.to_string(), "--drain-delay", "0", "--model"]).arg(&model);
        for (flag, file) in
            [("--oms-bundle", "oms.json"), ("--promotion", "promotion.json"), ("--public-key", "key.pem")]
        {
            server.arg(flag).arg(folder.path().join(file));
        }
        times.push(start(&mut server, address)?);
    }
    times.sort();
    Ok(Figure::new("Server, exec → ready (median of 5)", format!("{} ms", times[STARTS / 2].as_millis()), ""))
}

/// Returns the time until `/ready` answers 200, and stops the server.
fn start(server: &mut Command, address: SocketAddr) -> Result<Duration> {
    let begun = Instant::now();
    let mut child =
        server.stdout(Stdio::null()).stderr(Stdio::null()).spawn().map_err(Error::io("starting the server"))?;
    let ready = loop {
        if is_ready(address) {
            break Ok(begun.elapsed());
        }
        if begun.elapsed() > PATIENCE {
            let state = "it did not answer 200".to_owned();
            break Err(Error::Timeout { what: "the server is ready".to_owned(), patience: PATIENCE, state });
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    child.kill().and_then(|()| child.wait().map(drop)).map_err(Error::io("stopping the server"))?;
    ready
}

fn is_ready(address: SocketAddr) -> bool {
    let ask = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect(address)?;
        stream.write_all(b"GET /ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer.starts_with("HTTP/1.1 200"))
    };
    ask().unwrap_or(false)
}

fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(Error::io("finding a free port"))?;
    listener.local_addr().map_err(Error::io("finding a free port"))
}

/// Measures how fast the demo's model trains on all cores of this machine.
pub(crate) fn training() -> Result<Figure> {
    println!("Training the demo's model for {STEPS} steps.");
    let folder = tempfile::tempdir().map_err(Error::io("making a temporary folder"))?;
    let mut codex = Command::new(program("codex")?);
    codex.args(["train", "--template", "cot-starter", "--set", &format!("training.stop_after={STEPS}"), "--output"]);
    output(codex.arg(folder.path()))?;
    let speed = last_speed(&folder.path().join("artifacts/metrics.ndjson"))?;
    Ok(Figure::new("Training the demo's model (0.22M parameters)", format!("{speed:.0} tokens/s"), ""))
}

/// Returns the latest `tokens_per_second` in a run's metrics.
fn last_speed(ledger: &Path) -> Result<f64> {
    let text = fs::read_to_string(ledger).map_err(Error::io(format!("reading {}", ledger.display())))?;
    let rows = text.lines().rev().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let speed = rows.into_iter().find(|row| row["metric"] == "tokens_per_second").and_then(|row| row["value"].as_f64());
    speed.ok_or_else(|| Error::Unreadable {
        path: ledger.to_owned(),
        why: "it has no row of the metric tokens_per_second".to_owned(),
    })
}
