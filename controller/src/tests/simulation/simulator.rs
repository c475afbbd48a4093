//! The simulator: chooses what happens next, lets time pass, and checks the invariants.

use std::{
    collections::BTreeSet,
    future::poll_fn,
    pin::{Pin, pin},
    sync::LazyLock,
    task::{Context as TaskContext, Poll},
    time::Duration,
};

use axum::http::{Request, StatusCode};
use codex_reports::{Kind, State};
use codex_signing::key::PrivateKey;
use jiff::Timestamp;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};
use tower::ServiceExt;

use super::{
    cluster::{self, PodView},
    invariants::check_end,
    make, pod_settings,
    process::{Delivery, Process},
    sabotage::Sabotage,
    server::{NAMESPACE, Server, Shared},
};
use crate::{clock::Simulated, endpoint::router, observe::simulated::WATCHES, signer::new_secret};

/// The number of things that happen before everything is left alone.
const STEPS: u32 = 60;
/// How long the controllers must write nothing before they count as settled.
const QUIET: Duration = Duration::from_secs(400);
/// More writes than any simulation needs.
const MOST_WRITES: usize = 3_000;

/// The objects of the users: plural and name.
pub(super) const OBJECTS: [(&str, &str); 3] =
    [("trainingruns", "cot"), ("evaluations", "lite"), ("reasoningpods", "rc")];

pub(super) fn object_path(plural: &str, name: &str) -> String {
    format!("/apis/codex-ml.dev/v1alpha1/namespaces/{NAMESPACE}/{plural}/{name}")
}

/// A report on its way.
struct Post {
    process: usize,
    /// Whether the endpoint must refuse it.
    foreign: bool,
    answer: Pin<Box<dyn Future<Output = StatusCode>>>,
}

/// A report that was sent: its token and its body.
pub(super) type Sent = (String, String);

pub(super) struct Simulator {
    pub(super) server: Shared,
    sabotage: Sabotage,
    pub(super) processes: Vec<Process>,
    clock: Simulated,
    pub(super) random: ChaCha8Rng,
    /// How many processes and objects were made.
    made: u64,
    seq: u64,
    posts: Vec<Post>,
    pub(super) sent: Vec<Sent>,
    /// The uids of the servers that have verified their model.
    ready: BTreeSet<String>,
    /// More writes than the simulation needs.
    most_writes: usize,
}

impl Simulator {
    pub(super) fn new(seed: u64, sabotage: Sabotage) -> Self {
        let mut simulator = Self::bare(seed, sabotage, MOST_WRITES);
        for (plural, _) in OBJECTS {
            simulator.create(plural);
        }
        simulator
    }

    /// Returns a simulator without objects of users, whose controllers need at most so many writes.
    pub(super) fn bare(seed: u64, sabotage: Sabotage, most_writes: usize) -> Self {
        let clock = Simulated::starting_at(make::at(0));
        let server = Shared::new(seed, clock.clone());
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        {
            let mut server = server.lock();
            let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "output"}});
            server.put(&format!("/api/v1/namespaces/{NAMESPACE}/persistentvolumeclaims/output"), claim);
            let problems = json!({
                "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "problems"}, "data": {"train.jsonl": "{}"},
            });
            server.put(&format!("/api/v1/namespaces/{NAMESPACE}/configmaps/problems"), problems);
        }
        // The generation of a key takes long, so only some of the simulations begin without one.
        if !seed.is_multiple_of(8) {
            static KEY: LazyLock<Value> = LazyLock::new(|| {
                let key = PrivateKey::generate().unwrap();
                serde_json::to_value(new_secret(&key).unwrap()).unwrap()
            });
            server.lock().put("/api/v1/namespaces/codex-system/secrets/codex-signing-key", KEY.clone());
        }
        let made = random.random_range(1..10);
        let processes = (0..2).map(|index| Process::start(index, 0, &server, sabotage, &clock)).collect();
        let (posts, sent, ready) = (Vec::new(), Vec::new(), BTreeSet::new());
        Self { server, sabotage, processes, clock, random, made, seq: 0, posts, sent, ready, most_writes }
    }

    pub(super) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Returns true in so many of 100 cases.
    pub(super) fn chance(&mut self, percent: u32) -> bool {
        self.random.random_range(0..100) < percent
    }

    pub(super) fn pick<T: Clone>(&mut self, all: &[T]) -> Option<T> {
        (!all.is_empty()).then(|| all[self.random.random_range(0..all.len())].clone())
    }

    /// Runs the whole simulation.
    ///
    /// # Errors
    /// The invariants that do not hold, and what happened before.
    pub(super) async fn run(mut self) -> Result<(), String> {
        for _ in 0..STEPS {
            self.happen().await;
            self.check()?;
        }
        self.settle().await?;
        let wrong = check_end(&self.server.lock());
        self.server.lock().violations.extend(wrong);
        self.check()
    }

    pub(super) fn check(&self) -> Result<(), String> {
        let server = self.server.lock();
        if server.violations.is_empty() {
            return Ok(());
        }
        Err(format!("{}\n{}", server.violations.join("; "), server.log.join("\n")))
    }

    /// Lets time pass.
    pub(super) async fn tick(&mut self, long: Duration) {
        let end = Instant::now() + long;
        let mut timer = pin!(sleep_until(end));
        poll_fn(|task| {
            loop {
                self.pass(task);
                let now = Instant::now();
                if now >= end || !self.server.lock().violations.is_empty() {
                    return Poll::Ready(());
                }
                let soonest = now + Duration::from_millis(1);
                let next = self.processes.iter().filter_map(Process::next).min().map_or(end, |next| next.max(soonest));
                timer.as_mut().reset(next.min(end));
                if timer.as_mut().poll(task).is_pending() {
                    return Poll::Pending;
                }
            }
        })
        .await;
    }

    /// Lets everything do what it can do now.
    fn pass(&mut self, task: &mut TaskContext<'_>) {
        loop {
            let changes = std::mem::take(&mut self.server.lock().changes);
            for process in &mut self.processes {
                for change in &changes {
                    process.observe(change);
                }
            }
            for index in 0..self.processes.len() {
                let lost = self.processes[index].poll(task);
                let crashed = self.server.lock().crashed.remove(&index);
                if lost || crashed {
                    self.restart(index, if lost { "lost the Lease" } else { "crashed" });
                }
            }
            let (server, processes) = (&self.server, &self.processes);
            self.posts.retain_mut(|post| {
                if processes[post.process].is_paused() {
                    return true;
                }
                match post.answer.as_mut().poll(task) {
                    Poll::Pending => true,
                    Poll::Ready(code) => {
                        let mut server = server.lock();
                        server.log.push(format!("  a report is answered {code}"));
                        if post.foreign && code.is_success() {
                            server.violations.push("a report with the token of another pod was accepted".to_owned());
                        }
                        false
                    }
                }
            });
            let mut server = self.server.lock();
            if server.writes.len() > self.most_writes && server.violations.is_empty() {
                let last = server.writes[self.most_writes - 3..].join(", ");
                server.violations.push(format!("a settled controller writes nothing, but this one never ends: {last}"));
            }
            if server.changes.is_empty() || !server.violations.is_empty() {
                return;
            }
        }
    }

    pub(super) fn restart(&mut self, index: usize, why: &str) {
        self.made += 1;
        self.server.lock().log.push(format!("  process {index} {why} and starts again"));
        self.posts.retain(|post| post.process != index);
        self.processes[index] = Process::start(index, self.made, &self.server, self.sabotage, &self.clock);
    }

    pub(super) fn begin(&mut self, what: impl AsRef<str>) {
        self.server.lock().begin(what.as_ref());
    }

    /// Lets one thing happen, and then a little time pass.
    async fn happen(&mut self) {
        match self.random.random_range(0..100) {
            0..16 => self.begin("wait"),
            16..26 => {
                self.begin("the Job controller acts");
                cluster::sync_jobs(&mut self.server.lock(), self.now());
            }
            26..36 => {
                self.begin("the kubelet starts pods");
                cluster::start_pods(&mut self.server.lock(), self.now());
            }
            36..42 => self.sync_servers(),
            42..45 => {
                self.begin("the garbage collector acts");
                self.collect_garbage();
            }
            45..68 => self.pod_acts(),
            68..82 => self.user_acts(),
            _ => self.fault(),
        }
        let long = match self.random.random_range(0..10) {
            0..4 => self.random.random_range(0..200),
            4..8 => self.random.random_range(200..4_000),
            8 => self.random.random_range(4_000..30_000),
            _ => self.random.random_range(30_000..120_000),
        };
        self.tick(Duration::from_millis(long)).await;
    }

    fn collect_garbage(&self) {
        if self.sabotage != Sabotage::KeepOrphans {
            cluster::collect_garbage(&mut self.server.lock());
        }
    }

    fn sync_servers(&mut self) {
        self.begin("the Deployment controller acts");
        let ready = self.ready.clone();
        cluster::sync_servers(&mut self.server.lock(), self.now(), |uid| ready.contains(uid));
    }

    pub(super) fn running(&self) -> Vec<PodView> {
        cluster::pods(&self.server.lock()).into_iter().filter(|pod| pod.running).collect()
    }

    /// Sends a report of a pod with a token, and returns its body.
    pub(super) fn post(&mut self, token: &str, pod: &PodView, state: State) -> String {
        self.seq += 1;
        let body = serde_json::to_string(&pod.report(self.seq, state)).unwrap();
        let own = pod.token();
        let foreign = token != own;
        let token = if self.sabotage == Sabotage::TrustReports { own } else { token.to_owned() };
        self.send((token, body.clone()), foreign);
        body
    }

    pub(super) fn send(&mut self, sent: Sent, foreign: bool) {
        let leader = self.processes.iter().position(Process::leads).unwrap_or(0);
        let process = if self.chance(90) { leader } else { 1 - leader };
        let request = Request::post("/v1/reports").header("Authorization", format!("Bearer {}", sent.0));
        let request = request.body(axum::body::Body::from(sent.1.clone())).unwrap();
        let router = router(self.processes[process].endpoint.clone());
        let answer = Box::pin(async move { router.oneshot(request).await.unwrap().status() });
        self.posts.push(Post { process, foreign, answer });
        if !foreign {
            self.sent.push(sent);
        }
    }

    pub(super) fn disturb(&mut self, pod: &PodView) {
        self.server.lock().known.disturbed.insert(pod.object_uid.clone());
    }

    /// A pod tells the truth in the end. Trainers and evaluators exit 0.
    pub(super) fn finish(&mut self, pod: &PodView) {
        self.begin(format!("{} finishes", pod.name));
        let truth = pod.truth(&self.server.lock());
        if let Some(model) = pod.model.clone().filter(|_| pod.kind == Kind::ReasoningPod) {
            self.server.lock().known.verified.insert((pod.object_uid.clone(), model));
            self.ready.insert(pod.uid.clone());
        }
        let reported = self.chance(70);
        let body = if reported || pod.kind == Kind::ReasoningPod {
            self.post(&pod.token(), pod, truth)
        } else {
            self.seq += 1;
            serde_json::to_string(&pod.report(self.seq, truth)).unwrap()
        };
        if pod.kind != Kind::ReasoningPod {
            cluster::end_pod(&mut self.server.lock(), &pod.path, 0, &body, self.now());
        }
    }

    pub(super) fn create(&mut self, plural: &str) {
        self.made += 1;
        let made = self.made;
        let (mut object, name) = match plural {
            "trainingruns" => (serde_json::to_value(make::run()).unwrap(), "run"),
            "evaluations" => (serde_json::to_value(make::evaluation()).unwrap(), "evaluation"),
            _ => (serde_json::to_value(make::pod()).unwrap(), "pod"),
        };
        if plural == "reasoningpods" && self.chance(50) {
            let analysis = json!({"intervalSeconds": self.random.random_range(1..20), "minRequests": 1});
            object["spec"]["rollout"] = json!({"steps": [50, 100], "analysis": analysis});
        }
        object["metadata"]["uid"] = json!(format!("{name}-{made}"));
        object.as_object_mut().unwrap().remove("status");
        let path = object_path(plural, object["metadata"]["name"].as_str().unwrap());
        self.server.lock().put(&path, object);
    }

    /// A user changes an object, unless the API server refuses it.
    pub(super) fn edit(&mut self, path: &str, edit: impl FnOnce(&mut Value)) {
        let mut server = self.server.lock();
        if let Some(before) = server.objects.get(path).cloned() {
            let mut object = before.clone();
            edit(&mut object);
            match pod_settings::refusal(&before, &object) {
                Some(why) => server.log.push(format!("  the change is refused: {why}")),
                None => drop(server.put(path, object)),
            }
        }
    }

    /// Ends all faults, lets all pods succeed from here on, and waits until nothing is written any more.
    async fn settle(&mut self) -> Result<(), String> {
        self.begin("everything works again");
        {
            let mut server = self.server.lock();
            (server.faults, server.every_size) = (0, true);
        }
        for process in &mut self.processes {
            process.paused_until = Instant::now();
            process.clock.set_ahead(0);
            for (watch, ..) in WATCHES {
                process.deliver(watch, Delivery::After(1));
            }
        }
        for (plural, name) in OBJECTS {
            self.edit(&object_path(plural, name), |object| {
                let spec = &mut object["spec"];
                spec["suspend"] = json!(false);
                if plural == "reasoningpods" {
                    spec.as_object_mut().unwrap().remove("suspend");
                    spec["dryRun"] = json!(false);
                }
                if plural != "evaluations" {
                    spec["rolloutRing"] = json!("0D_base_");
                }
            });
        }
        self.calm().await?;
        self.resize_before_the_start().await?;
        // What is served is replaced once more, by a canary if the spec says so.
        self.begin("a user changes spec.serving");
        self.edit(&object_path("reasoningpods", "rc"), |object| {
            object["spec"]["serving"] = json!({"rateLimit": "77/60s"});
        });
        self.calm().await?;
        self.rest().await
    }

    /// Lets pods do their work until nothing is written any more.
    pub(super) async fn calm(&mut self) -> Result<(), String> {
        let (mut written, mut since) = (self.server.lock().writes.len(), Instant::now());
        for round in 0..200 {
            for pod in self.running() {
                // Servers repeat their report now and then.
                if round % 10 == 0 || !self.ready.contains(&pod.uid) {
                    self.finish(&pod);
                }
            }
            let now = self.now();
            {
                let mut server = self.server.lock();
                cluster::sync_jobs(&mut server, now);
                // A canary cannot pass while one of its servers is missing.
                cluster::replace_ended_servers(&mut server);
                cluster::start_pods(&mut server, now);
            }
            self.collect_garbage();
            self.sync_servers();
            self.tick(Duration::from_secs(10)).await;
            self.check()?;
            let count = self.server.lock().writes.len();
            if count != written {
                (written, since) = (count, Instant::now());
            }
            if since.elapsed() > QUIET {
                return Ok(());
            }
        }
        let last: Vec<_> = self.server.lock().writes.iter().rev().take(12).cloned().collect();
        Err(format!("a settled controller writes nothing, but this one goes on: {last:#?}"))
    }

    /// Lets a long time pass in which nothing changes.
    async fn rest(&mut self) -> Result<(), String> {
        self.begin("nothing changes any more");
        let before = self.server.lock().writes.len();
        self.tick(Duration::from_mins(30)).await;
        let server: &Server = &self.server.lock();
        let processes: Vec<_> = self.processes.iter().map(Process::describe).collect();
        match server.writes.get(before..) {
            Some([]) | None => Ok(()),
            Some(writes) => Err(format!("a settled controller writes nothing, but wrote {writes:?}; {processes:?}")),
        }
    }
}
