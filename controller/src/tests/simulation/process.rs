//! A process of the controller: it competes for the Lease, fills its caches from watches that may be late or cut, and reconciles
//! what its queues hold. The Lease, the reflectors, the triggers, reconciliations and the endpoint are the real ones.

use std::{
    collections::{BTreeMap, VecDeque},
    future::pending,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context as TaskContext, Poll},
    time::Duration,
};

use codex_crds::{Evaluation, ReasoningPod, TrainingRun};
use codex_plan::Admission;
use kube::{Client, runtime::watcher::Event};
use serde_json::Value;
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use super::{
    make,
    sabotage::Sabotage,
    server::{Change, NAMESPACE, Sender, Server, Shared},
};
use crate::{
    admission::AdmissionWatch,
    apply::delete_shared,
    backoff::Backoff,
    by_uid::ByUid,
    clock::{Clock, Simulated},
    context::Context,
    endpoint::Endpoint,
    fence::Fence,
    inbox::Inbox,
    known::Known,
    lease::Candidate,
    ledger::Ledger,
    metrics::Metrics,
    observe::{
        Asked, Observe, Queues, Requests, get,
        simulated::{Reflectors, WATCHES},
    },
    operator::fenced,
    reconcile::{ReconcileError, attend},
    recorder::Recorder,
    seal::Seal,
    signer::{Signer, Signing},
    unmended::Unmended,
};

/// The number of objects that a process reconciles at once.
const CONCURRENCY: usize = 4;
/// How long a process with an open fence that stood still does other things before the task that keeps its Lease runs. With a fence, a
/// request that had passed it before would look like one after it.
const LATE: Duration = Duration::from_millis(20);

/// The kind and the name of an object.
pub(super) type Key = (&'static str, String);

type Task<T> = Pin<Box<dyn Future<Output = T>>>;

/// How far a process is with the Lease.
enum Leadership {
    Standby,
    /// It holds the Lease and has loaded its keys.
    Leads(Arc<Signer>),
    Lost,
}

/// How a watch delivers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Delivery {
    /// After so many milliseconds.
    After(u64),
    /// Not at all. When it is back, it lists.
    Cut,
}

/// The watch of one kind.
struct Feed {
    delivery: Delivery,
    pending: VecDeque<(Instant, Event<Value>)>,
}

/// What a process has while it leads.
struct Leader {
    context: Arc<Context>,
    reflectors: Reflectors,
    requests: Requests,
    feeds: BTreeMap<&'static str, Feed>,
    /// When each object is reconciled next.
    queue: BTreeMap<Key, Instant>,
    running: Vec<(Key, Reconciliation)>,
}

/// A reconciliation at work: when the object is to be reconciled again.
type Reconciliation = Task<Result<Option<Duration>, ReconcileError>>;

/// A process.
pub(super) struct Process {
    pub(super) index: usize,
    server: Shared,
    client: Client,
    pub(super) clock: Simulated,
    fence: Fence,
    lease: Task<()>,
    leadership: Arc<Mutex<Leadership>>,
    leader: Option<Leader>,
    /// The endpoint for reports.
    pub(super) endpoint: Endpoint,
    active: watch::Sender<Option<Arc<Context>>>,
    /// The process stands still until then.
    pub(super) paused_until: Instant,
    /// How long it does other things after that before the task that keeps its Lease runs.
    late: Duration,
}

impl Process {
    /// Starts a process.
    pub(super) fn start(index: usize, generation: u64, server: &Shared, sabotage: Sabotage, clock: &Simulated) -> Self {
        let identity = format!("process-{index}-{generation}");
        server.lock().identities.insert(index, identity.clone());
        let sender = Sender { process: index, identity: identity.clone() };
        let client = server.client(&sender, sabotage);
        let timing = server.lock().timing();
        let candidate = Candidate::new(client.clone(), "codex-system", "codex-controller", identity).timed(timing);
        let (fence, late) = match sabotage {
            Sabotage::OpenFence => (always_open(), LATE),
            _ => (candidate.fence(), Duration::ZERO),
        };
        let leadership = Arc::new(Mutex::new(Leadership::Standby));
        let lease = {
            let (leadership, client) = (leadership.clone(), client.clone());
            async move {
                let mut held = candidate.acquire().await;
                let load = async {
                    let signer = loop {
                        match Signer::load(client.clone(), "codex-system", Signing::Key).await {
                            Ok(signer) => break signer,
                            Err(_) => sleep(Duration::from_secs(1)).await,
                        }
                    };
                    *leadership.lock().unwrap() = Leadership::Leads(Arc::new(signer));
                    pending::<()>().await;
                };
                tokio::select! {
                    biased;
                    _ = held.keep() => {}
                    () = load => {}
                }
                *leadership.lock().unwrap() = Leadership::Lost;
            }
        };
        let (active, receiver) = watch::channel(None);
        let endpoint = Endpoint::new(client.clone(), Metrics::new().unwrap(), receiver)
            .with_status_timeout(Duration::from_secs(3))
            .behind(fence.clone());
        Self {
            index,
            server: server.clone(),
            client,
            clock: clock.separate(),
            fence,
            late,
            lease: Box::pin(lease),
            leadership,
            leader: None,
            endpoint,
            active,
            paused_until: Instant::now(),
        }
    }

    pub(super) fn is_paused(&self) -> bool {
        Instant::now() < self.paused_until
    }

    /// Returns when the task that keeps the Lease runs again.
    fn keeps_from(&self) -> Instant {
        self.paused_until + self.late
    }

    pub(super) fn leads(&self) -> bool {
        self.leader.is_some()
    }

    /// Lets the process do what it can do now. Returns whether it has ended: it lost the Lease.
    pub(super) fn poll(&mut self, task: &mut TaskContext<'_>) -> bool {
        if self.is_paused() {
            return false;
        }
        // A process that stood still may do anything first, also go on with what it was doing.
        self.work(task);
        if Instant::now() < self.keeps_from() {
            return false;
        }
        if self.lease.as_mut().poll(task).is_ready() {
            return true;
        }
        let leads = std::mem::replace(&mut *self.leadership.lock().unwrap(), Leadership::Standby);
        match leads {
            Leadership::Leads(signer) => self.lead(signer),
            Leadership::Lost => return true,
            Leadership::Standby => {}
        }
        self.work(task);
        false
    }

    fn lead(&mut self, signer: Arc<Signer>) {
        let (queues, requests) = Queues::new();
        let metrics = Metrics::new().unwrap();
        let (mut reflectors, stores) = Reflectors::new(&metrics, &queues);
        let mut feeds = BTreeMap::new();
        {
            let server = self.server.lock();
            for (watch, ..) in WATCHES {
                for event in listing(&server, watch) {
                    reflectors.handle(watch, event);
                }
                feeds.insert(*watch, Feed { delivery: Delivery::After(1), pending: VecDeque::new() });
            }
        }
        let client = fenced(&self.client, &self.fence);
        let context = Arc::new(Context {
            clock: Clock::Simulated(self.clock.clone()),
            recorder: Recorder::new(client.clone(), "simulated"),
            client,
            settings: make::settings(),
            stores: Arc::new(stores),
            queues,
            inbox: Arc::new(Inbox::default()),
            signer,
            seal: Seal::for_tests(),
            admission: Arc::new(AdmissionWatch::seen(Admission { flaw: None, ..Admission::default() })),
            refused: ByUid::default(),
            writers: ByUid::default(),
            metrics,
            backoff: Backoff::default(),
            unmended: Unmended::default(),
            known: Known::default(),
            written: ByUid::default(),
            traces: None,
            obstructions: ByUid::default(),
            settled: ByUid::default(),
            sharing: tokio::sync::Mutex::default(),
            asked: Asked::default(),
            ledger: Ledger::default(),
        });
        self.active.send_replace(Some(context.clone()));
        let queue = BTreeMap::new();
        self.leader = Some(Leader { context, reflectors, requests, feeds, queue, running: Vec::new() });
    }

    /// Delivers what watches have for the process, and goes on with reconciliations.
    fn work(&mut self, task: &mut TaskContext<'_>) {
        let Some(leader) = &mut self.leader else { return };
        loop {
            leader.deliver();
            leader.fill_queue();
            leader.start();
            let before = leader.running.len();
            let mut finished = Vec::new();
            leader.running.retain_mut(|(key, running)| match running.as_mut().poll(task) {
                Poll::Pending => true,
                Poll::Ready(result) => {
                    finished.push((key.clone(), result));
                    false
                }
            });
            for (key, result) in finished {
                leader.finished(key, &result);
            }
            if leader.running.len() == before {
                return;
            }
        }
    }

    /// Tells the watches of a change.
    pub(super) fn observe(&mut self, change: &Change) {
        let Some(leader) = &mut self.leader else { return };
        for (watch, kind, labels) in WATCHES {
            let of = |object: &Option<Value>| object.as_ref().is_some_and(|object| selects(object, kind, labels));
            let event = match (of(&change.before), of(&change.after)) {
                (_, true) => Event::Apply(change.after.clone().unwrap()),
                (true, false) => Event::Delete(change.before.clone().unwrap()),
                (false, false) => continue,
            };
            let feed = leader.feeds.get_mut(watch).unwrap();
            if let Delivery::After(milliseconds) = feed.delivery {
                let due = Instant::now() + Duration::from_millis(milliseconds);
                let due = feed.pending.back().map_or(due, |(last, _)| due.max(*last));
                feed.pending.push_back((due, event));
            }
        }
    }

    /// Changes how a watch delivers. One that was cut lists again.
    pub(super) fn deliver(&mut self, watch: &str, delivery: Delivery) {
        let Some(leader) = &mut self.leader else { return };
        let feed = leader.feeds.get_mut(watch).unwrap();
        if feed.delivery == Delivery::Cut && delivery != Delivery::Cut {
            let now = Instant::now();
            feed.pending = listing(&self.server.lock(), watch).into_iter().map(|event| (now, event)).collect();
        }
        if delivery == Delivery::Cut {
            feed.pending.clear();
        }
        feed.delivery = delivery;
    }

    /// Returns when the process has something to do next by itself, apart from its timers.
    pub(super) fn next(&self) -> Option<Instant> {
        let of_leader = self.leader.as_ref().and_then(Leader::next).map(|next| next.max(self.paused_until));
        let keeps = Some(self.keeps_from()).filter(|from| *from > Instant::now());
        of_leader.into_iter().chain(keeps).min()
    }

    /// Whether nothing is queued that is due within this time, nothing runs, and nothing is to be delivered.
    pub(super) fn describe(&self) -> String {
        let Some(leader) = &self.leader else { return format!("process {} stands by", self.index) };
        let running: Vec<_> = leader.running.iter().map(|(key, _)| key).collect();
        format!("process {} leads; it reconciles {running:?}, and then {:?}", self.index, leader.queue)
    }
}

impl Leader {
    fn next(&self) -> Option<Instant> {
        let delivered = self.feeds.values().filter_map(|feed| feed.pending.front().map(|(due, _)| *due));
        let queued = self.queue.iter().filter(|(key, _)| self.running.iter().all(|(running, _)| running != *key));
        delivered.chain(queued.map(|(_, due)| *due)).min()
    }

    fn deliver(&mut self) {
        let now = Instant::now();
        for (watch, feed) in &mut self.feeds {
            while feed.pending.front().is_some_and(|(due, _)| *due <= now) {
                if let Some((_, event)) = feed.pending.pop_front() {
                    self.reflectors.handle(watch, event);
                }
            }
        }
    }

    fn fill_queue(&mut self) {
        let now = Instant::now();
        let mut queued = Vec::new();
        while let Ok(run) = self.requests.training_runs.try_recv() {
            queued.push(("TrainingRun", run.name));
        }
        while let Ok(evaluation) = self.requests.evaluations.try_recv() {
            queued.push(("Evaluation", evaluation.name));
        }
        while let Ok(pod) = self.requests.reasoning_pods.try_recv() {
            queued.push(("ReasoningPod", pod.name));
        }
        for key in queued {
            self.queue.insert(key, now);
        }
    }

    fn start(&mut self) {
        let now = Instant::now();
        let due: Vec<_> = self.queue.iter().filter(|(_, due)| **due <= now).map(|(key, _)| key.clone()).collect();
        for key in due {
            if self.running.len() >= CONCURRENCY || self.running.iter().any(|(running, _)| *running == key) {
                continue;
            }
            self.queue.remove(&key);
            let (context, name) = (self.context.clone(), key.1.clone());
            let task: Task<_> = match key.0 {
                "TrainingRun" => Box::pin(one::<TrainingRun>(context, name)),
                "Evaluation" => Box::pin(one::<Evaluation>(context, name)),
                _ => Box::pin(one::<ReasoningPod>(context, name)),
            };
            self.running.push((key, task));
        }
    }

    /// Queues an object again as `control` does.
    fn finished(&mut self, key: Key, result: &Result<Option<Duration>, ReconcileError>) {
        let uid = match key.0 {
            "TrainingRun" => {
                get(&self.context.stores.training_runs, NAMESPACE, &key.1).and_then(|it| it.metadata.uid.clone())
            }
            "Evaluation" => {
                get(&self.context.stores.evaluations, NAMESPACE, &key.1).and_then(|it| it.metadata.uid.clone())
            }
            _ => get(&self.context.stores.reasoning_pods, NAMESPACE, &key.1).and_then(|it| it.metadata.uid.clone()),
        };
        let uid = uid.unwrap_or_default();
        let again = match result {
            Ok(again) => {
                self.context.backoff.forget(&uid);
                *again
            }
            Err(_) => Some(self.context.backoff.failed(&uid)),
        };
        if let Some(again) = again {
            let due = Instant::now() + again;
            let known = self.queue.get(&key).copied();
            self.queue.insert(key, known.map_or(due, |known| known.min(due)));
        }
    }
}

/// Returns a fence that never closes.
fn always_open() -> Fence {
    let fence = Fence::default();
    fence.open_until(Instant::now() + Duration::from_hours(24 * 365));
    fence
}

async fn one<K: Observe>(context: Arc<Context>, name: String) -> Result<Option<Duration>, ReconcileError> {
    match get(K::store(&context), NAMESPACE, &name) {
        Some(object) => attend(object, &context).await.map(|(again, _)| again),
        None => Ok(delete_shared(&context, NAMESPACE).await.map(|()| None)?),
    }
}

fn selects(object: &Value, kind: &str, labels: &str) -> bool {
    let label = |label: &str| object["metadata"]["labels"][label].as_str();
    let selected = match labels.split_once('=') {
        Some((key, value)) if key.ends_with('!') => label(key.trim_end_matches('!')) != Some(value),
        Some((key, value)) => label(key) == Some(value),
        None => labels.is_empty() || label(labels).is_some(),
    };
    object["kind"] == kind && selected && object["metadata"]["namespace"] == NAMESPACE
}

/// Returns the events of a watch that lists.
fn listing(server: &Server, watch: &str) -> Vec<Event<Value>> {
    let (_, kind, labels) = WATCHES.iter().find(|(name, ..)| *name == watch).unwrap();
    let objects = server.objects.values().filter(|object| selects(object, kind, labels));
    let mut events = vec![Event::Init];
    events.extend(objects.cloned().map(Event::InitApply));
    events.push(Event::InitDone);
    events
}
