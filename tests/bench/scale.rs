//! Figures of many objects: TrainingRuns created at a fixed rate, whose pods kwok simulates on simulated nodes. The controller, the API
//! server and the control plane are real. Each pod runs for a minute and then exits with code 2, so that every run ends. Reads the
//! audit log and the process table of this machine. [`crate::peer`] measures a peer with the same code.

use std::{
    collections::BTreeMap,
    env,
    fmt::Debug,
    fs,
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
    core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod},
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, ListParams, PostParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use crate::figures::{self, Figure};

/// Simulated nodes, each with room for 110 pods.
const NODES: usize = 200;
/// Objects created in a second.
const RATE: u32 = 100;
/// The label and the taint of simulated nodes.
pub(crate) const SIMULATED: &str = "codex-ml.dev/simulated";
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

/// The operator of this project.
const CODEX: Subject =
    Subject { users: &[CONTROLLER_USER], programs: &[CONTROLLER], resource: "trainingruns", job: child::trainer };

/// An operator under load.
pub(crate) struct Subject {
    /// The user names of its controllers at the API server.
    pub(crate) users: &'static [&'static str],
    /// The programs of its controllers.
    pub(crate) programs: &'static [&'static str],
    /// The plural name of the objects that are created.
    pub(crate) resource: &'static str,
    /// Returns the name of the Job of an object.
    pub(crate) job: fn(&str) -> String,
}

/// The load on an operator: what its controllers used and wrote.
pub(crate) struct Load<'a> {
    observed: Observed<'a>,
    runs: u32,
    idle: Sample,
    busy: Sample,
}

impl<'a> Load<'a> {
    /// Creates `runs` copies of an object, and waits until the operator has made a Job of each and writes nothing any more.
    pub(crate) async fn apply<K>(
        team: &'a Team,
        subject: &'static Subject,
        api: Api<K>,
        object: K,
        runs: u32,
    ) -> Result<Self>
    where
        K: Resource + Clone + Debug + Serialize + DeserializeOwned + Send + Sync + 'static,
    {
        let follower = Follower::from_now(audit_log(team.installation)?)?;
        let mut observed = Observed::new(subject, &team.namespace, follower);
        let idle = Sample::take(subject)?;
        println!("Creating {runs} {}, {RATE} in a second.", subject.resource);
        create(api, object, runs).await?;
        observed.until(runs, "every object has its Job", |seen| seen.jobs.len() as u32 == runs).await?;
        println!("Waiting until every pod has ended.");
        observed.until(runs, "nothing is written any more", |seen| seen.latest.elapsed() > QUIET).await?;
        let busy = Sample::take(subject)?;
        Ok(Self { observed, runs, idle, busy })
    }

    /// Returns the figures until now, and those of an idle minute from now.
    pub(crate) async fn figures(&mut self, ended: usize) -> Result<Vec<Figure>> {
        let Self { observed, runs, idle, busy } = self;
        println!("Watching for a minute without load.");
        observed.news()?;
        let (writes, lists) = (observed.writes(), observed.lists);
        let mut figures = observed.figures(*runs);
        sleep(MINUTE).await;
        observed.news()?;
        let processor = (busy.processor - idle.processor) * 1000.0 / f64::from(*runs);
        figures.extend([
            Figure::new("Objects that ended as their pods did", format!("{ended} of {runs}"), "all"),
            Figure::new("Processor time of the controllers for 1,000 objects", format!("{processor:.1} s"), "≤ 3 s"),
            Figure::new("Resident memory before", megabytes(idle.memory), "≤ 15 MB"),
            Figure::new(
                "Resident memory with all objects",
                megabytes(busy.memory),
                "≤ 30 MB (1,000), ≤ 80 MB (10,000)",
            ),
            Figure::new(
                "Writes in an idle minute, apart from the Lease",
                (observed.writes() - writes).to_string(),
                "0",
            ),
            Figure::new("LISTs in an idle minute", (observed.lists - lists).to_string(), "0"),
        ]);
        Ok(figures)
    }
}

/// Measures `runs` TrainingRuns, and prints the table before they are deleted, which takes minutes.
pub(crate) async fn measure(runs: u32) -> Result<Vec<Figure>> {
    let installation = Installation::ensure().await?;
    audit_log(installation)?;
    let team = Team::new("scale").await?;
    let simulated = Simulated::start(installation).await?;
    let measured = async {
        let figures = measured(&team, runs).await?;
        print!("{}", figures::table(&figures));
        empty(&team, runs).await?;
        let emptied =
            Figure::new("Resident memory after all were deleted", megabytes(Sample::take(&CODEX)?.memory), "");
        println!("| {} | {} | |", emptied.what, emptied.value);
        Ok(figures.into_iter().chain([emptied]).collect())
    }
    .await;
    simulated.remove().await?;
    remove_volume(&team).await?;
    measured
}

async fn measured(team: &Team, runs: u32) -> Result<Vec<Figure>> {
    volume(team).await?;
    begin(team).await?;
    // Those of an earlier measurement count, too.
    let before = metric(team, RECONCILIATIONS).await?;
    let mut load = Load::apply(team, &CODEX, team.api(), run()?, runs).await?;
    let ended = ended(team).await?;
    let reconciled = metric(team, RECONCILIATIONS).await? - before;
    let mut figures = load.figures(ended).await?;

    println!("Restarting the controller.");
    let observed = &mut load.observed;
    let before = observed.writes();
    let restarted = restart(team, runs).await?;
    observed.news()?;
    let again = observed.writes() - before;
    let jobs: Api<Job> = team.api();
    let doubled = jobs.list_metadata(&ListParams::default()).await?.items.len().saturating_sub(runs as usize);
    let after = Sample::take(&CODEX)?;
    figures.extend([
        Figure::new("Reconciliations of an object", format!("{:.1}", reconciled / f64::from(runs)), ""),
        Figure::new("Restart → all reconciled", format!("{:.1} s", restarted.as_secs_f64()), "≤ 15 s (10,000)"),
        Figure::new("Writes after the restart, apart from the Lease", again.to_string(), "0"),
        Figure::new("Jobs too many", doubled.to_string(), "0"),
        Figure::new("Resident memory after the restart", megabytes(after.memory), ""),
    ]);
    Ok(figures)
}

/// Returns the audit log of the local cluster.
pub(crate) fn audit_log(installation: &Installation) -> Result<PathBuf> {
    installation.cluster.audit_log().ok_or_else(|| Error::Impossible {
        what: "the audit log is read".to_owned(),
        why: "only the local cluster has one".to_owned(),
        state: "run `make bench-scale` without CLUSTER".to_owned(),
    })
}

/// Marks the team as done, deletes its namespace and waits until it is gone, so that the next measurement has the machine alone.
pub(crate) async fn empty(team: &Team, runs: u32) -> Result<()> {
    println!("Deleting the namespace with all its objects.");
    team.done();
    let namespaces: Api<Namespace> = Api::all(team.client.clone());
    namespaces.delete(&team.namespace, &DeleteParams::background()).await?;
    codex_tests::wait::until_gone(&namespaces, &team.namespace, patience(runs)).await
}

async fn remove_volume(team: &Team) -> Result<()> {
    let volumes = Api::<PersistentVolume>::all(team.client.clone());
    match volumes.delete(&volume_name(team), &DeleteParams::background()).await {
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        removed => removed.map(|_| ()).map_err(Into::into),
    }
}

fn volume_name(team: &Team) -> String {
    format!("{}-models", team.namespace)
}

/// Returns the time limit of a part with so many objects.
pub(crate) fn patience(runs: u32) -> Duration {
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

/// The simulated nodes, and kwok, which keeps them ready and runs their pods.
pub(crate) struct Simulated {
    client: Client,
    _kwok: Kwok,
}

impl Simulated {
    /// Starts kwok, makes the nodes, and waits until they are ready.
    pub(crate) async fn start(installation: &Installation) -> Result<Self> {
        println!("Waiting for {NODES} simulated nodes.");
        let simulated = Self { client: installation.client().await?, _kwok: Kwok::start(installation)? };
        match nodes(&simulated.client).await {
            Ok(()) => Ok(simulated),
            Err(error) => {
                simulated.remove().await?;
                Err(error)
            }
        }
    }

    /// Removes the nodes and stops kwok.
    pub(crate) async fn remove(self) -> Result<()> {
        let simulated = ListParams::default().labels(SIMULATED);
        Api::<Node>::all(self.client).delete_collection(&DeleteParams::background(), &simulated).await?;
        Ok(())
    }
}

async fn nodes(client: &Client) -> Result<()> {
    let api: Api<Node> = Api::all(client.clone());
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

/// Returns a run whose pod runs on a simulated node.
fn run() -> Result<TrainingRun> {
    let mut run = objects::run("run", &[]);
    run.spec.retries = 0;
    let pod = &mut run.spec.pod.worker;
    pod.node_selector = BTreeMap::from([(SIMULATED.to_owned(), "true".to_owned())]);
    pod.tolerations = read(json!([{ "key": SIMULATED, "operator": "Exists" }]))?;
    Ok(run)
}

/// Waits until one run has its Job, and deletes both: for half a minute after the CRDs are installed, the API server may refuse children
/// that block the deletion of an owner of a kind that its permission check does not know yet.
async fn begin(team: &Team) -> Result<()> {
    let (runs, jobs) = (team.api::<TrainingRun>(), team.api::<Job>());
    let mut first = run()?;
    first.metadata.name = Some("first".to_owned());
    team.create(&first).await?;
    let job = child::trainer("first");
    until(&jobs, &job, "it exists", PATIENCE, |_| true).await?;
    runs.delete("first", &DeleteParams::background()).await?;
    codex_tests::wait::until_gone(&runs, "first", PATIENCE).await?;
    codex_tests::wait::until_gone(&jobs, &job, PATIENCE).await
}

/// Creates copies of an object at the fixed rate; a slow answer delays none of the others.
async fn create<K>(api: Api<K>, object: K, runs: u32) -> Result<()>
where
    K: Resource + Clone + Debug + Serialize + DeserializeOwned + Send + Sync + 'static,
{
    let mut ticks = interval(Duration::from_secs(1) / RATE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut requests = tokio::task::JoinSet::new();
    for number in 0..runs {
        ticks.tick().await;
        let (api, mut object) = (api.clone(), object.clone());
        object.meta_mut().name = Some(name(number));
        requests.spawn(async move { api.create(&PostParams::default(), &object).await.map(drop) });
    }
    while let Some(made) = requests.join_next().await {
        made.map_err(|error| Error::io("creating an object")(std::io::Error::other(error)))??;
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
        // Metrics count every object, which takes time from the controller: with 10,000, a second of it.
        sleep(Duration::from_secs(if runs > 1000 { 3 } else { 1 })).await;
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
    subject: &'static Subject,
    namespace: &'a str,
    follower: Follower,
    created: BTreeMap<String, Timestamp>,
    jobs: BTreeMap<String, Timestamp>,
    written: usize,
    events: usize,
    lists: usize,
    /// When a controller was last seen writing.
    latest: Instant,
}

impl<'a> Observed<'a> {
    fn new(subject: &'static Subject, namespace: &'a str, follower: Follower) -> Self {
        let (created, jobs) = (BTreeMap::new(), BTreeMap::new());
        Self { subject, namespace, follower, created, jobs, written: 0, events: 0, lists: 0, latest: Instant::now() }
    }

    /// Reads on until `done`.
    async fn until(&mut self, runs: u32, what: &str, done: impl Fn(&Self) -> bool) -> Result<()> {
        let patience = patience(runs);
        let begun = Instant::now();
        loop {
            self.news()?;
            if done(self) {
                return Ok(());
            }
            if begun.elapsed() > patience {
                let state = format!("{} of {runs} {} have a Job", self.jobs.len(), self.subject.resource);
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
        let own = self.subject.users.contains(&request.user.username.as_str());
        let at = request.request_received_timestamp;
        if own && request.verb == "list" {
            self.lists += 1;
        }
        if !request.is_write() || object.namespace != self.namespace {
            return;
        }
        if !own {
            if request.is_creation() && object.resource == self.subject.resource {
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
                let job = self.jobs.get(&(self.subject.job)(&name(number)))?;
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
            Figure::new("Writes in the life of an object, Events apart", each(self.written), "≤ 5"),
            Figure::new("Events of an object", each(self.events), ""),
        ]
    }
}

/// What the processes of the controllers have used.
#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    /// Seconds.
    processor: f64,
    /// Bytes.
    memory: u64,
}

impl Sample {
    /// Reads the sum over all controllers.
    fn take(subject: &Subject) -> Result<Self> {
        subject.programs.iter().try_fold(Self::default(), |sum, program| {
            let one = Self::read(program).ok_or_else(|| Error::Impossible {
                what: "the controllers' processes are measured".to_owned(),
                why: format!("no process of this machine is called {program}"),
                state: "kubectl get pods --all-namespaces".to_owned(),
            })?;
            Ok(Self { processor: sum.processor + one.processor, memory: sum.memory + one.memory })
        })
    }

    fn read(program: &str) -> Option<Self> {
        let folder = crate::operator::process(program)?;
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

pub(crate) fn read<T: DeserializeOwned>(value: Value) -> Result<T> {
    serde_json::from_value(value).map_err(|error| Error::io("making an object")(std::io::Error::other(error)))
}
