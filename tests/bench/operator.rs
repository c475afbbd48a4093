//! Figures of the controller: memory and requests while idle, requests and time while a chain runs. Reads the audit log
//! and the process table of this machine.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use codex_crds::{TrainingRun, child, label};
use codex_tests::{
    Error, Installation, Result, Team,
    audit::{Follower, Request},
    install::CONTROLLER_USER,
    objects,
};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    runtime::watcher::{self, Event},
};
use serde_json::Value;
use tokio::time::Instant;

use crate::figures::Figure;

const MINUTE: Duration = Duration::from_secs(60);
/// The time that the API server has to write late audit events.
const SETTLE: Duration = Duration::from_secs(5);

/// Measures the idle controller.
pub(crate) async fn idle(installation: &Installation) -> Result<Vec<Figure>> {
    let log = audit_log(installation)?;
    println!("Watching the idle controller for a minute.");
    tokio::time::sleep(2 * SETTLE).await;
    let mut follower = Follower::from_now(log)?;
    tokio::time::sleep(MINUTE).await;
    let requests = own(follower.news()?);
    let writes = requests.iter().filter(|request| request.is_write() && !is_lease(request)).count();
    let lists = requests.iter().filter(|request| request.verb == "list").count();
    let memory = process("codex-controller").and_then(|folder| resident_bytes(&folder)).map_or_else(
        || "unknown: the controller runs on another machine".to_owned(),
        |bytes| format!("{:.1} MB", bytes as f64 / 1e6),
    );
    Ok(vec![
        Figure::new("Controller, resident memory, idle", memory, "≤ 15 MB"),
        Figure::new("API writes in an idle minute, apart from the Lease", writes.to_string(), "0"),
        Figure::new("LISTs in an idle minute", lists.to_string(), "0"),
    ])
}

/// Measures one chain from `create` to serving. Also returns the name of its ReasoningPod.
pub(crate) async fn chain(team: &Team) -> Result<(Vec<Figure>, String)> {
    println!("Running one chain and counting what the controller writes.");
    let mut follower = Follower::from_now(audit_log(team.installation)?)?;
    let progress = Progress::watch(team.api());
    let begun = Instant::now();
    team.create(&objects::run("bench", &[])).await?;
    team.pod(label::TRAINING_RUN, "bench", "its container runs", is_running).await?;
    let started = begun.elapsed();
    team.create(&objects::evaluation("bench", "bench", &team.problems)).await?;
    team.create(&objects::reasoning_pod("bench", "bench", "bench")).await?;
    team.trained("bench").await?;
    team.judged("bench").await?;
    team.serving("bench").await?;
    tokio::time::sleep(SETTLE).await;

    let mut writes: BTreeMap<&str, usize> = BTreeMap::new();
    let mut events = 0;
    for request in own(follower.news()?) {
        let object = request.object();
        if !request.is_write() || object.namespace != team.namespace {
            continue;
        }
        if object.resource == "events" {
            events += 1;
        } else {
            *writes.entry(kind(&object.resource, &object.name)).or_default() += 1;
        }
    }
    let progress = progress.count();
    let count = |kind: &str| writes.get(kind).copied().unwrap_or_default();
    let figures = vec![
        Figure::new("create → trainer container running", format!("{:.2} s", started.as_secs_f64()), ""),
        Figure::new(
            "Writes in the life of a TrainingRun, children included, without progress",
            format!("{} (and {progress} of progress)", count("TrainingRun").saturating_sub(progress)),
            "≤ 6",
        ),
        Figure::new("Writes in the life of an Evaluation, children included", count("Evaluation").to_string(), "≤ 6"),
        Figure::new(
            "Writes in the life of a ReasoningPod, children included",
            count("ReasoningPod").to_string(),
            "≤ 12",
        ),
        Figure::new("Writes for the namespace, once for all of its objects", count("namespace").to_string(), "≤ 1"),
        Figure::new("Events of the three together", events.to_string(), ""),
    ];
    Ok((figures, "bench".to_owned()))
}

/// Returns the kind whose life a write belongs to, or `namespace` for what the objects of a namespace share.
fn kind(resource: &str, name: &str) -> &'static str {
    if resource == "trainingruns" || name.starts_with("codex-t-") {
        "TrainingRun"
    } else if resource == "evaluations" || name.starts_with("codex-e-") {
        "Evaluation"
    } else if name == child::WORKERS {
        "namespace"
    } else {
        "ReasoningPod"
    }
}

fn is_running(pod: &Pod) -> bool {
    let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    statuses
        .filter_map(|status| status.state.as_ref())
        .any(|state| state.running.is_some() || state.terminated.is_some())
}

fn own(requests: Vec<Request>) -> Vec<Request> {
    requests.into_iter().filter(|request| request.user.username == CONTROLLER_USER).collect()
}

fn is_lease(request: &Request) -> bool {
    request.object().resource == "leases"
}

fn audit_log(installation: &Installation) -> Result<PathBuf> {
    installation.cluster.audit_log().ok_or_else(|| {
        Error::io("reading the audit log")(std::io::Error::other(
            "only the local cluster has one; run `make bench` without CLUSTER",
        ))
    })
}

/// Returns the resident memory in bytes of the process with that folder in `/proc`.
pub(crate) fn resident_bytes(process: &Path) -> Option<u64> {
    let status = fs::read_to_string(process.join("status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kibibytes| kibibytes * 1024)
}

/// Returns the folder in `/proc` of the process with that name on this machine.
pub(crate) fn process(program: &str) -> Option<PathBuf> {
    let folders = fs::read_dir("/proc").ok()?.flatten().map(|entry| entry.path());
    let mut named = folders.filter(|folder| {
        let command = fs::read(folder.join("cmdline")).unwrap_or_default();
        let first = command.split(|byte| *byte == 0).next().unwrap_or_default();
        String::from_utf8_lossy(first).rsplit('/').next() == Some(program)
    });
    named.next()
}

/// Counts the changes of a TrainingRun that change only its progress.
struct Progress {
    versions: Arc<Mutex<Vec<Value>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Progress {
    fn watch(runs: Api<TrainingRun>) -> Self {
        let versions = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&versions);
        let task = tokio::spawn(async move {
            let mut changes = watcher::watcher(runs, watcher::Config::default()).boxed();
            while let Some(change) = changes.next().await {
                let Ok(Event::Apply(run) | Event::InitApply(run)) = change else { continue };
                let Ok(mut status) = serde_json::to_value(&run.status) else { continue };
                for moving in ["progress", "lastCheckpoint", "stepsExecuted", "dataDigests"] {
                    status.as_object_mut().map(|status| status.remove(moving));
                }
                if let Ok(mut seen) = seen.lock() {
                    seen.push(status);
                }
            }
        });
        Self { versions, task }
    }

    fn count(self) -> usize {
        self.task.abort();
        let versions = self.versions.lock().map(|versions| versions.clone()).unwrap_or_default();
        versions.windows(2).filter(|pair| pair[0] == pair[1]).count()
    }
}
