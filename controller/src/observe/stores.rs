//! The caches that everything is observed from, and the watches that fill them.

use std::time::Duration;

use codex_crds::{Evaluation, ReasoningPod, TrainingRun};
use futures::future::join_all;
use k8s_openapi::api::{
    apps::v1::Deployment,
    batch::v1::Job,
    core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Service},
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Client, Resource, ResourceExt,
    core::PartialObjectMeta,
    runtime::reflector::{ObjectRef, Store, store::Writer},
};
use tokio::{
    sync::oneshot,
    task::JoinSet,
    time::{Instant, sleep},
};

use super::{
    follow::{Follower, Scope, guarded, objects},
    wake::{Wake, Waker},
};
use crate::metrics::Metrics;

/// Selects what the controller made.
pub const OURS: &str = "app.kubernetes.io/managed-by=codex-controller";
/// How long a cache may take to show what was written.
const PATIENCE: Duration = Duration::from_secs(3);

/// The caches.
#[derive(Clone)]
pub struct Stores {
    /// Of kind `TrainingRun`.
    pub runs: Store<TrainingRun>,
    /// Of kind `Evaluation`.
    pub evaluations: Store<Evaluation>,
    /// Of kind `ReasoningPod`.
    pub pods: Store<ReasoningPod>,
    /// Jobs of ours.
    pub jobs: Store<Job>,
    /// Deployments of ours.
    pub deployments: Store<Deployment>,
    /// Pods of our Jobs and Deployments.
    pub workers: Store<Pod>,
    /// Configurations and bundles.
    pub config_maps: Store<ConfigMap>,
    /// Services of ours.
    pub services: Store<Service>,
    /// Disruption budgets of ours.
    pub budgets: Store<PodDisruptionBudget>,
    /// Network policies of ours.
    pub policies: Store<NetworkPolicy>,
    /// All claims, by metadata only.
    pub claims: Store<PartialObjectMeta<PersistentVolumeClaim>>,
}

impl Stores {
    /// Caches that nothing fills, for a process that does not act and for tests.
    pub fn empty() -> Self {
        Self::of(&mut Writers::default())
    }

    /// The readers of `writers`.
    pub fn of(writers: &mut Writers) -> Self {
        Self {
            runs: writers.runs.as_reader(),
            evaluations: writers.evaluations.as_reader(),
            pods: writers.pods.as_reader(),
            jobs: writers.jobs.as_reader(),
            deployments: writers.deployments.as_reader(),
            workers: writers.workers.as_reader(),
            config_maps: writers.config_maps.as_reader(),
            services: writers.services.as_reader(),
            budgets: writers.budgets.as_reader(),
            policies: writers.policies.as_reader(),
            claims: writers.claims.as_reader(),
        }
    }

    /// Starts every watch in `tasks` and waits until each kind was listed once.
    pub async fn follow(
        client: &Client,
        namespaces: &[String],
        metrics: &Metrics,
        wake: &Wake,
        tasks: &mut JoinSet<()>,
    ) -> Self {
        let every = Scope { client: client.clone(), namespaces: namespaces.to_vec(), labels: "" };
        let ours = Scope { labels: OURS, ..every.clone() };
        let count = namespaces.len();
        let mut complete = Vec::new();
        macro_rules! follow {
            ($events:expr, $strip:expr, $wake:expr) => {{
                let (store, follower) = Follower::new(metrics.clone(), $strip, $wake);
                let (sender, receiver) = oneshot::channel();
                tasks.spawn(follower.run(count, $events, sender));
                complete.push(receiver);
                store
            }};
        }
        let keep = |_: &mut _| {};
        // The three kinds first: everybody else's changes are led to them through these stores.
        let waker = Waker::new(wake.clone());
        let runs = follow!(guarded(&every), keep, waker.hear(Waker::run));
        let evaluations = follow!(guarded(&every), |_| {}, waker.hear(Waker::evaluation));
        let pods = follow!(guarded(&every), |_| {}, waker.hear(Waker::pod));
        waker.know(runs.clone(), evaluations.clone(), pods.clone());
        let stores = Self {
            runs,
            evaluations,
            pods,
            jobs: follow!(objects(&ours), |_| {}, waker.hear(Waker::child)),
            deployments: follow!(objects(&ours), |_| {}, waker.hear(Waker::child)),
            workers: follow!(objects(&ours), |_| {}, waker.hear(Waker::worker)),
            config_maps: follow!(objects(&ours), |_| {}, waker.hear(Waker::child)),
            services: follow!(objects(&ours), |_| {}, waker.hear(Waker::child)),
            budgets: follow!(objects(&ours), |_| {}, waker.hear(Waker::child)),
            policies: follow!(objects(&ours), |_| {}, waker.hear(Waker::child)),
            claims: follow!(objects(&every), bare, waker.hear(Waker::claim)),
        };
        // Whose data lies in a ConfigMap of its own hears when that comes; the keys are asked for when they matter.
        let _: Store<PartialObjectMeta<ConfigMap>> = follow!(objects(&every), bare, waker.hear(Waker::data));
        join_all(complete).await;
        stores
    }
}

/// Of references to foreign things, only that they exist counts.
fn bare<K>(object: &mut PartialObjectMeta<K>) {
    object.metadata.annotations = None;
    object.metadata.labels = None;
    object.metadata.owner_references = None;
    object.metadata.finalizers = None;
}

/// The writers of [`Stores`].
#[derive(Default)]
#[allow(missing_docs)]
pub struct Writers {
    pub runs: Writer<TrainingRun>,
    pub evaluations: Writer<Evaluation>,
    pub pods: Writer<ReasoningPod>,
    pub jobs: Writer<Job>,
    pub deployments: Writer<Deployment>,
    pub workers: Writer<Pod>,
    pub config_maps: Writer<ConfigMap>,
    pub services: Writer<Service>,
    pub budgets: Writer<PodDisruptionBudget>,
    pub policies: Writer<NetworkPolicy>,
    pub claims: Writer<PartialObjectMeta<PersistentVolumeClaim>>,
}

/// The object `name` of `namespace`.
pub fn get<K>(store: &Store<K>, namespace: &str, name: &str) -> Option<std::sync::Arc<K>>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    store.get(&ObjectRef::new(name).within(namespace))
}

/// Waits until a cache shows `written`, or something newer, so that the next look does not miss it. A watch that lags
/// for long is not waited for: looking again at something old does no harm but a needless write.
pub async fn caught_up<K>(store: &Store<K>, written: &K)
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    let version = |object: &K| object.resource_version().and_then(|version| version.parse::<u64>().ok());
    let reference = ObjectRef::from_obj(written);
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        let seen = store.get(&reference);
        if seen.is_some_and(|seen| seen.uid() != written.uid() || version(&seen) >= version(written)) {
            return;
        }
        sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until a cache no longer shows the object, or shows that it is being deleted.
pub async fn caught_up_deleted<K>(store: &Store<K>, deleted: &K)
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    let reference = ObjectRef::from_obj(deleted);
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        match store.get(&reference) {
            Some(seen) if seen.uid() == deleted.uid() && seen.meta().deletion_timestamp.is_none() => {
                sleep(Duration::from_millis(5)).await;
            }
            _ => return,
        }
    }
}

#[cfg(test)]
impl Writers {
    /// Writers whose stores are ready.
    pub(crate) fn ready() -> Self {
        use kube::runtime::watcher::Event;
        let mut writers = Self::default();
        macro_rules! ready {
            ($($field:ident),*) => {$(
                writers.$field.apply_watcher_event(&Event::Init);
                writers.$field.apply_watcher_event(&Event::InitDone);
            )*};
        }
        ready!(runs, evaluations, pods, jobs, deployments, workers, config_maps, services, budgets, policies, claims);
        writers
    }
}
