//! The watches: one reflector per kind fills its cache and triggers reconciliations.

use std::fmt::Debug;

use codex_crds::label;
use codex_plan::reasoning_pod::{WRITER, WRITTEN_BY};
use futures::future::join_all;
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{ConfigMap, Pod},
    discovery::v1::EndpointSlice,
};
use kube::{Client, Resource, core::PartialObjectMeta};
use tokio::{sync::oneshot, task::JoinSet};

use super::{
    cache::{CacheWriter, Names},
    kind::Kind,
    queues::Queues,
    raw::{RawObject, Unparsed},
    reflector::{Failures, Parse, Reflector, Selection, Watch, WatchScope, of_metadata},
    stores::{NOT_OURS, OURS, Stores, Writers},
    triggers::Triggers,
};
use crate::{kinds::kinds, metrics::Metrics};

/// Starts reflectors in `tasks`.
struct Watches<'a> {
    triggers: Triggers,
    metrics: &'a Metrics,
    tasks: &'a mut JoinSet<()>,
    listed: Vec<oneshot::Receiver<()>>,
    failures: Failures,
}

impl Watches<'_> {
    fn start<K>(&mut self, writer: CacheWriter<K>, of: &Selection, parse: Parse<K>, trigger: fn(&Triggers, &K))
    where
        K: Names + Resource<Scope: WatchScope> + Debug + Send + Sync,
    {
        self.run(of.watch::<K>(), writer, parse, trigger);
    }

    /// Starts the reflector of a kind of another project, which the cluster may lack.
    fn start_optional<K>(&mut self, writer: CacheWriter<K>, of: &Selection, parse: Parse<K>, trigger: fn(&Triggers, &K))
    where
        K: Names + Resource<Scope: WatchScope> + Debug + Send + Sync,
    {
        self.run(of.watch_optional::<K>(), writer, parse, trigger);
    }

    fn run<K>(&mut self, watch: Watch, writer: CacheWriter<K>, parse: Parse<K>, trigger: fn(&Triggers, &K))
    where
        K: Names + Debug + Send + Sync,
    {
        let triggers = self.triggers.clone();
        let reflector = Reflector::new(writer, self.metrics.clone(), parse, move |object| trigger(&triggers, object));
        let (listed, receiver) = oneshot::channel();
        self.tasks.spawn(reflector.telling(&self.failures).run(watch, listed));
        self.listed.push(receiver);
    }
}

/// Watches every kind in `namespaces`, or in all namespaces if the list is empty. Returns the caches once they are filled, or known to be
/// forbidden, and why watches fail from then on. Meanwhile `tell` is called with a sentence about the watches that fail whenever it
/// changes; it is empty if none does.
pub async fn watch(
    client: &Client,
    namespaces: &[String],
    metrics: &Metrics,
    queues: &Queues,
    tasks: &mut JoinSet<()>,
    tell: impl Fn(&str),
) -> (Stores, Failures) {
    let all = Selection { client: client.clone(), namespaces: namespaces.to_vec(), labels: "" };
    let ours = Selection { labels: OURS, ..all.clone() };
    let metadata = Selection { client: of_metadata(client), ..all.clone() };
    let labelled = Selection { labels: label::REASONING_POD, ..metadata.clone() };
    let of_users = Selection { labels: NOT_OURS, ..metadata.clone() };
    let mut writers = Writers::default();
    let stores = Stores::of(&mut writers);
    let triggers = Triggers::new(queues.clone(), stores.clone());
    let failures = Failures::default();
    let mut watches = Watches { triggers, metrics, tasks, listed: Vec::new(), failures: failures.clone() };
    macro_rules! watch_kinds {
        (
            reconciled { $($field:ident: $kind:ty, $label:expr;)* }
            referenced { $($referenced:ident: $referenced_kind:ty;)* }
        ) => {
            $(watches.start(writers.$field, &all, RawObject::parse, |triggers, object: &$kind| object.changed(triggers));)*
            $(watches.start(writers.$referenced, &all, RawObject::parse, |triggers, object: &$referenced_kind| {
                object.changed(triggers);
            });)*
        };
    }
    kinds!(watch_kinds);
    watches.start(writers.jobs, &ours, job, Triggers::child);
    watches.start(writers.deployments, &ours, RawObject::parse, Triggers::child);
    watches.start(writers.horizontal_pod_autoscalers, &ours, RawObject::parse, Triggers::child);
    watches.start(writers.pods, &ours, pod, Triggers::pod);
    watches.start(writers.labelled, &labelled, labelled_pod, Triggers::labelled);
    watches.start(writers.config_maps, &ours, RawObject::parse, Triggers::child);
    watches.start(writers.services, &ours, RawObject::parse, Triggers::child);
    watches.start_optional(writers.http_routes, &ours, RawObject::parse, Triggers::child);
    watches.start(writers.endpoint_slices, &ours, slice, Triggers::slice);
    watches.start(writers.pod_disruption_budgets, &ours, RawObject::parse, Triggers::child);
    watches.start(writers.network_policies, &ours, RawObject::parse, Triggers::network_policy);
    watches.start(writers.claims, &metadata, existing, Triggers::claim);
    // The ConfigMaps of users: their keys are read when a plan needs them, so nothing reads this cache.
    watches.start(CacheWriter::<PartialObjectMeta<ConfigMap>>::default(), &of_users, existing, Triggers::config_map);
    tokio::select! {
        _ = join_all(watches.listed) => (stores, failures.clone()),
        never = failures.each(tell) => match never {},
    }
}

/// Reads a Job without the parts of its status that nothing depends on. They change often.
pub(super) fn job(raw: &RawObject) -> Result<Job, Unparsed> {
    let mut job: Job = raw.parse()?;
    if let Some(status) = &mut job.status {
        status.ready = None;
        status.terminating = None;
        status.uncounted_terminated_pods = None;
    }
    Ok(job)
}

/// The conditions of pods that plans read.
const CONDITIONS: [&str; 3] = ["PodScheduled", "ContainersReady", "Ready"];

/// Reads a pod without the parts of its metadata and of its status that nothing depends on.
pub(super) fn pod(raw: &RawObject) -> Result<Pod, Unparsed> {
    let mut pod: Pod = raw.parse()?;
    pod.metadata.finalizers = None;
    pod.metadata.generate_name = None;
    let Some(status) = &mut pod.status else { return Ok(pod) };
    status.host_ip = None;
    status.host_ips = None;
    status.pod_ip = None;
    status.qos_class = None;
    status.observed_generation = None;
    for condition in status.conditions.iter_mut().flatten() {
        condition.last_probe_time = None;
        condition.observed_generation = None;
    }
    if let Some(conditions) = &mut status.conditions {
        conditions.retain(|condition| CONDITIONS.contains(&condition.type_.as_str()));
    }
    let lists =
        [&mut status.container_statuses, &mut status.init_container_statuses, &mut status.ephemeral_container_statuses];
    for container in lists.into_iter().flatten().flatten() {
        container.allocated_resources = None;
        container.allocated_resources_status = None;
        container.resources = None;
        container.user = None;
        container.volume_mounts = None;
    }
    Ok(pod)
}

/// Reads the metadata of a pod that bears the label of a ReasoningPod.
pub(super) fn labelled_pod(raw: &RawObject) -> Result<PartialObjectMeta<Pod>, Unparsed> {
    let mut pod = raw.parse_metadata()?;
    pod.metadata.annotations = None;
    pod.metadata.finalizers = None;
    Ok(pod)
}

/// Reads a slice, without its endpoints if the cluster writes it: of these only the existence matters.
pub(super) fn slice(raw: &RawObject) -> Result<EndpointSlice, Unparsed> {
    let mut slice: EndpointSlice = raw.parse()?;
    if slice.metadata.labels.as_ref().and_then(|labels| labels.get(WRITTEN_BY)).is_none_or(|writer| writer != WRITER) {
        slice.endpoints = Vec::new();
        slice.ports = None;
    }
    Ok(slice)
}

/// Reads an object of which only the existence matters.
pub(super) fn existing<K>(raw: &RawObject) -> Result<PartialObjectMeta<K>, Unparsed> {
    let mut object = raw.parse_metadata()?;
    object.metadata.annotations = None;
    object.metadata.labels = None;
    object.metadata.owner_references = None;
    object.metadata.finalizers = None;
    Ok(object)
}
