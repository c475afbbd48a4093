//! Figures of many objects: TrainingRuns created at a fixed rate, whose pods kwok simulates on simulated nodes. The controller, the API
//! server and the control plane are real. Each pod runs for a minute and then exits with code 2, so that every run ends. Reads the
//! audit log and the process table of this machine.

use std::{
    collections::BTreeMap,
    env, fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use codex_crds::{TrainingRun, TrainingRunPhase, child};
use codex_tests::{
    Error, Installation, Result, Team,
    audit::{Follower, Request},
    install::{CONTROLLER, CONTROLLER_USER, NAMESPACE},
    objects::{self, CLAIM},
    wait::until,
};
use jiff::Timestamp;
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod},
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, PostParams},
};
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use crate::figures::Figure;

/// Simulated nodes, each with room for 110 pods.
const NODES: usize = 200;
/// Objects created in a second.
const RATE: u32 = 100;
/// The label and the taint of simulated nodes.
const SIMULATED: &str = "codex-ml.dev/simulated";
/// What kwok does with nodes and pods.
const STAGES: &str = include_str!("stages.yaml");
/// The time limit for each part, plus what [`patience`] adds for each object.
const PATIENCE: Duration = Duration::from_secs(180);
/// Nothing was written for so long: the work is done. Longer than the life of a pod.
const QUIET: Duration = Duration::from_secs(75);
/// The metric of completed reconciliations of runs.
const RECONCILIATIONS: &str = "codex_controller_reconciliations_total{kind=\"TrainingRun\"";
/// The metric of runs that wait to be reconciled.
const QUEUED: &str = "codex_controller_queue_objects{kind=\"TrainingRun\"";
const MINUTE: Duration = Duration::from_secs(60);

/// Measures `runs` TrainingRuns.
pub(crate) async fn measure(runs: u32) -> Result<Vec<Figure>> {
    let installation = Installation::ensure().await?;
    let log = installation.cluster.audit_log().ok_or_else(|| Error::Impossible {
        what: "the audit log is read".to_owned(),
        why: "only the local cluster has one".to_owned(),
        state: "run `make bench-scale` without CLUSTER".to_owned(),
    })?;
    let team = Team::new("scale").await?;
    let _kwok = Kwok::start(installation)?;
    let measured = measured(&team, log, runs).await;
    remove(installation, &team).await?;
    if measured.is_ok() {
        team.done();
    }
    measured
}

async fn measured(team: &Team, log: PathBuf, runs: u32) -> Result<Vec<Figure>> {
    println!("Waiting for {NODES} simulated nodes.");
    nodes(team).await?;
    volume(team).await?;

    let idle = Sample::take()?;
    println!("Creating {runs} TrainingRuns, {RATE} in a second.");
    let mut observed = Observed::new(&team.namespace, Follower::from_now(log)?);
    create(team, runs).await?;
    observed.until(runs, "every run has its Job", patience(runs), |seen| seen.jobs.len() as u32 == runs).await?;
    println!("Waiting until every run has ended.");
    observed.until(runs, "nothing is written any more", patience(runs), |seen| seen.latest.elapsed() > QUIET).await?;
    let ended = ended(team).await?;
    let busy = Sample::take()?;
    let reconciled = metric(team, RECONCILIATIONS).await?;
    println!("Watching the idle controller for a minute.");
    observed.news()?;
    let (writes, lists) = (observed.writes(), observed.lists);
    sleep(MINUTE).await;
    observed.news()?;
    let (idle_writes, idle_lists) = (observed.writes() - writes, observed.lists - lists);

    println!("Restarting the controller.");
    let restarted = restart(team, runs).await?;
    observed.news()?;
    let again = observed.writes() - writes - idle_writes;
    let jobs: Api<Job> = team.api();
    let doubled = jobs.list_metadata(&ListParams::default()).await?.items.len().saturating_sub(runs as usize);
    let after = Sample::take()?;

    let mut figures = observed.figures(runs);
    figures.extend([
        Figure::new("Reconciliations of a run", format!("{:.1}", reconciled / f64::from(runs)), ""),
        Figure::new("Runs that ended as their pods did", format!("{ended} of {runs}"), "all"),
        Figure::new(
            "Processor time of the controller for 1,000 objects",
            format!("{:.1} s", (busy.processor - idle.processor) * 1000.0 / f64::from(runs)),
            "≤ 3 s",
        ),
        Figure::new("Resident memory before", megabytes(idle.memory), "≤ 15 MB"),
        Figure::new("Resident memory with all objects", megabytes(busy.memory), "≤ 30 MB (1,000), ≤ 80 MB (10,000)"),
        Figure::new("Writes in an idle minute, apart from the Lease", idle_writes.to_string(), "0"),
        Figure::new("LISTs in an idle minute", idle_lists.to_string(), "0"),
        Figure::new("Restart → all reconciled", format!("{:.1} s", restarted.as_secs_f64()), "≤ 15 s (10,000)"),
        Figure::new("Writes after the restart, apart from the Lease", again.to_string(), "0"),
        Figure::new("Jobs too many", doubled.to_string(), "0"),
        Figure::new("Resident memory after the restart", megabytes(after.memory), ""),
    ]);
    Ok(figures)
}

/// Removes the simulated nodes and the volume.
async fn remove(installation: &Installation, team: &Team) -> Result<()> {
    let client = installation.client().await?;
    let simulated = ListParams::default().labels(SIMULATED);
    Api::<Node>::all(client.clone()).delete_collection(&DeleteParams::background(), &simulated).await?;
    let volumes = Api::<PersistentVolume>::all(client);
    match volumes.delete(&volume_name(team), &DeleteParams::background()).await {
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        removed => removed.map(|_| ()).map_err(Into::into),
    }
}

fn volume_name(team: &Team) -> String {
    format!("{}-models", team.namespace)
}

/// Returns the time limit of a part with so many objects.
fn patience(runs: u32) -> Duration {
    PATIENCE + Duration::from_millis(200) * runs
}

/// kwok, which plays the kubelets of the simulated nodes; killed when dropped.
struct Kwok {
    child: Child,
    _folder: tempfile::TempDir,
}

impl Kwok {
    fn start(installation: &Installation) -> Result<Self> {
        let program = env::var_os("KWOK").unwrap_or_else(|| "kwok".into());
        let folder = tempfile::tempdir().map_err(Error::io("making a temporary folder"))?;
        let stages = folder.path().join("stages.yaml");
        fs::write(&stages, STAGES).map_err(Error::io(format!("writing {}", stages.display())))?;
        let mut command = Command::new(&program);
        command.arg("--kubeconfig").arg(installation.cluster.kubeconfig()).arg("--config").arg(&stages);
        // A node whose Lease is not renewed becomes unknown to the control plane.
        command.arg(format!("--manage-nodes-with-label-selector={SIMULATED}")).arg("--node-lease-duration-seconds=40");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let started = command.spawn();
        let child = started.map_err(Error::io(format!("starting {}", program.display())))?;
        Ok(Self { child, _folder: folder })
    }
}

impl Drop for Kwok {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Makes the simulated nodes, and waits until they are ready.
async fn nodes(team: &Team) -> Result<()> {
    let api: Api<Node> = Api::all(team.client.clone());
    let names: Vec<String> = (0..NODES).map(|number| format!("simulated-{number}")).collect();
    for name in &names {
        let room = json!({ "cpu": "110", "memory": "256Gi", "pods": "110" });
        let node = read(json!({
            "metadata": { "name": name, "labels": { SIMULATED: "true", "kubernetes.io/hostname": name } },
            "spec": { "taints": [{ "key": SIMULATED, "effect": "NoSchedule" }] },
            "status": { "capacity": room, "allocatable": room },
        }))?;
        match api.create(&PostParams::default(), &node).await {
            Err(kube::Error::Api(status)) if status.is_already_exists() => {}
            made => drop(made?),
        }
    }
    let is_ready = |node: &Node| {
        let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
        conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
    };
    for name in &names {
        until(&api, name, "it is ready", PATIENCE, is_ready).await?;
    }
    Ok(())
}

/// Binds the team's claim to a volume that every node can mount, because no node does.
async fn volume(team: &Team) -> Result<()> {
    let name = volume_name(team);
    let volume: PersistentVolume = read(json!({
        "metadata": { "name": name },
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "capacity": { "storage": "100Mi" },
            "claimRef": { "namespace": team.namespace, "name": CLAIM },
            "persistentVolumeReclaimPolicy": "Retain",
            "csi": { "driver": "simulated.codex-ml.dev", "volumeHandle": name },
        },
    }))?;
    // The volume names the claim, so it must not meet the claim that the team has for other tests.
    let claims: Api<PersistentVolumeClaim> = team.api();
    claims.delete(CLAIM, &DeleteParams::background()).await?;
    codex_tests::wait::until_gone(&claims, CLAIM, PATIENCE).await?;
    Api::all(team.client.clone()).create(&PostParams::default(), &volume).await?;
    let claim: PersistentVolumeClaim = read(json!({
        "metadata": { "name": CLAIM },
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": { "requests": { "storage": "100Mi" } },
            "storageClassName": "",
            "volumeName": name,
        },
    }))?;
    team.create(&claim).await?;
    until(&claims, CLAIM, "it is bound", PATIENCE, |claim| {
        claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound")
    })
    .await?;
    Ok(())
}

fn name(number: u32) -> String {
    format!("run-{number}")
}

/// Creates the runs at the fixed rate; a slow answer delays none of the others.
async fn create(team: &Team, runs: u32) -> Result<()> {
    let mut run = objects::run("run", &[]);
    run.spec.retries = 0;
    let pod = &mut run.spec.pod.worker;
    pod.node_selector = BTreeMap::from([(SIMULATED.to_owned(), "true".to_owned())]);
    pod.tolerations = read(json!([{ "key": SIMULATED, "operator": "Exists" }]))?;
    let mut ticks = interval(Duration::from_secs(1) / RATE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut requests = tokio::task::JoinSet::new();
    for number in 0..runs {
        ticks.tick().await;
        let (api, mut run) = (team.api::<TrainingRun>(), run.clone());
        run.metadata.name = Some(name(number));
        requests.spawn(async move { api.create(&PostParams::default(), &run).await.map(drop) });
    }
    while let Some(made) = requests.join_next().await {
        made.map_err(|error| Error::io("creating a run")(std::io::Error::other(error)))??;
    }
    Ok(())
}

/// Returns how many runs ended as their pods did.
async fn ended(team: &Team) -> Result<usize> {
    let runs = team.api::<TrainingRun>().list(&ListParams::default()).await?;
    let phases = runs.items.iter().filter_map(|run| run.status.as_ref()?.phase);
    Ok(phases.filter(|phase| *phase == TrainingRunPhase::Failed).count())
}

/// Deletes the controller's pod, and returns the time until the next one has reconciled every run.
async fn restart(team: &Team, runs: u32) -> Result<Duration> {
    let pods: Api<Pod> = Api::namespaced(team.client.clone(), NAMESPACE);
    let labelled = ListParams::default().labels(&format!("app.kubernetes.io/name={CONTROLLER}"));
    let old: Vec<String> = pods.list(&labelled).await?.items.iter().map(ResourceExt::name_any).collect();
    let begun = Instant::now();
    for pod in &old {
        pods.delete(pod, &DeleteParams::default()).await?;
    }
    loop {
        let now = pods.list_metadata(&labelled).await?;
        for pod in now.items.iter().map(ResourceExt::name_any).filter(|name| !old.contains(name)) {
            let Ok(text) = metrics(team, &pod).await else { continue };
            let (done, waiting) = (total(&text, RECONCILIATIONS), total(&text, QUEUED));
            if done >= f64::from(runs) && waiting == 0.0 {
                return Ok(begun.elapsed());
            }
        }
        if begun.elapsed() > patience(runs) {
            return Err(Error::Timeout {
                what: "the restarted controller reconciles every run".to_owned(),
                patience: patience(runs),
                state: format!("its metrics do not say so; kubectl --namespace {NAMESPACE} get pods"),
            });
        }
        sleep(Duration::from_millis(250)).await;
    }
}

/// Returns the metrics of a controller's pod.
async fn metrics(team: &Team, pod: &str) -> Result<String> {
    let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/{pod}:8080/proxy/metrics");
    let request = http::Request::get(path).body(Vec::new()).unwrap_or_default();
    Ok(team.client.request_text(request).await?)
}

/// Returns a sum of samples of the controller's metrics.
async fn metric(team: &Team, prefix: &str) -> Result<f64> {
    let pods: Api<Pod> = Api::namespaced(team.client.clone(), NAMESPACE);
    let labelled = ListParams::default().labels(&format!("app.kubernetes.io/name={CONTROLLER}"));
    let mut sum = 0.0;
    for pod in pods.list_metadata(&labelled).await?.items {
        sum += total(&metrics(team, &pod.name_any()).await?, prefix);
    }
    Ok(sum)
}

/// Returns the sum of the samples whose line begins so.
fn total(text: &str, prefix: &str) -> f64 {
    let samples = text.lines().filter(|line| line.starts_with(prefix));
    samples.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// What the audit log says about the namespace.
struct Observed<'a> {
    namespace: &'a str,
    follower: Follower,
    created: BTreeMap<String, Timestamp>,
    jobs: BTreeMap<String, Timestamp>,
    written: usize,
    events: usize,
    lists: usize,
    /// When the controller was last seen writing.
    latest: Instant,
}

impl<'a> Observed<'a> {
    fn new(namespace: &'a str, follower: Follower) -> Self {
        let (created, jobs) = (BTreeMap::new(), BTreeMap::new());
        Self { namespace, follower, created, jobs, written: 0, events: 0, lists: 0, latest: Instant::now() }
    }

    /// Reads on until `done`.
    async fn until(&mut self, runs: u32, what: &str, patience: Duration, done: impl Fn(&Self) -> bool) -> Result<()> {
        let begun = Instant::now();
        loop {
            self.news()?;
            if done(self) {
                return Ok(());
            }
            if begun.elapsed() > patience {
                let state = format!("{} of {runs} runs have a Job", self.jobs.len());
                return Err(Error::Timeout { what: what.to_owned(), patience, state });
            }
            sleep(Duration::from_secs(1)).await;
        }
    }

    fn news(&mut self) -> Result<()> {
        for request in self.follower.news()? {
            self.read(&request);
        }
        Ok(())
    }

    fn read(&mut self, request: &Request) {
        let object = request.object();
        let own = request.user.username == CONTROLLER_USER;
        let at = request.request_received_timestamp;
        if own && request.verb == "list" {
            self.lists += 1;
        }
        if !request.is_write() || object.namespace != self.namespace {
            return;
        }
        if !own {
            if request.is_creation() && object.resource == "trainingruns" {
                self.created.insert(object.name, at);
            }
            return;
        }
        self.latest = Instant::now();
        if object.resource == "events" {
            self.events += 1;
            return;
        }
        self.written += 1;
        if object.resource == "jobs" && object.subresource.is_empty() && request.code() == Some(201) {
            self.jobs.entry(object.name).or_insert(at);
        }
    }

    fn writes(&self) -> usize {
        self.written + self.events
    }

    fn figures(&self, runs: u32) -> Vec<Figure> {
        let mut waits: Vec<f64> = (0..runs)
            .filter_map(|number| {
                let created = self.created.get(&name(number))?;
                let job = self.jobs.get(&child::trainer(&name(number)))?;
                Some(job.duration_since(*created).as_secs_f64())
            })
            .collect();
        waits.sort_by(f64::total_cmp);
        let quantile = |share: f64| waits.get((waits.len() as f64 * share) as usize).copied().unwrap_or(f64::NAN);
        let first = self.created.values().min();
        let last = self.jobs.values().max();
        let span = first.zip(last).map_or(f64::NAN, |(first, last)| last.duration_since(*first).as_secs_f64());
        let each = |count: usize| format!("{:.1}", count as f64 / f64::from(runs));
        vec![
            Figure::new("Jobs made in a second", format!("{:.1}", self.jobs.len() as f64 / span), "≥ 100"),
            Figure::new("create → Job, median", format!("{:.2} s", quantile(0.5)), ""),
            Figure::new("create → Job, p99", format!("{:.2} s", quantile(0.99)), "≤ 1 s"),
            Figure::new("Writes in the life of a run, Events apart", each(self.written), "≤ 5"),
            Figure::new("Events of a run", each(self.events), ""),
        ]
    }
}

/// What the process of the controller has used.
struct Sample {
    /// Seconds.
    processor: f64,
    /// Bytes.
    memory: u64,
}

impl Sample {
    fn take() -> Result<Self> {
        Self::read().ok_or_else(|| Error::Impossible {
            what: "the controller's process is measured".to_owned(),
            why: "no process of this machine is called codex-controller".to_owned(),
            state: "kubectl --namespace codex-system get pods".to_owned(),
        })
    }

    fn read() -> Option<Self> {
        let folder = crate::operator::process("codex-controller")?;
        let memory = crate::operator::resident_bytes(&folder)?;
        let stat = fs::read_to_string(folder.join("stat")).ok()?;
        // proc(5): utime and stime are the 14th and 15th field; the 2nd, in parentheses, may contain blanks.
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
        let ticks: u64 = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
        // Linux counts 100 of them in a second on every architecture that matters here: USER_HZ.
        Some(Self { processor: ticks as f64 / 100.0, memory })
    }
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

fn read<T: serde::de::DeserializeOwned>(value: Value) -> Result<T> {
    serde_json::from_value(value).map_err(|error| Error::io("making an object")(std::io::Error::other(error)))
}
