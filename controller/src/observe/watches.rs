//! The watches: one reflector per kind fills its cache and triggers reconciliations.

use std::fmt::Debug;

use codex_crds::label;
use codex_plan::reasoning_pod::{WRITER, WRITTEN_BY};
use futures::future::join_all;
use k8s_openapi::api::{
    core::v1::{ConfigMap, Pod},
    discovery::v1::EndpointSlice,
};
use kube::{Client, core::PartialObjectMeta};
use tokio::{sync::oneshot, task::JoinSet};

use super::{
    cache::{CacheWriter, Names},
    kind::Kind,
    queues::Queues,
    reflector::{Reflector, Selection, Watch, guarded, objects, optional},
    stores::{OURS, Stores, Writers},
    triggers::Triggers,
};
use crate::{kinds::kinds, metrics::Metrics};

/// Starts reflectors in `tasks`.
struct Watches<'a> {
    triggers: Triggers,
    metrics: &'a Metrics,
    tasks: &'a mut JoinSet<()>,
    listed: Vec<oneshot::Receiver<()>>,
}

impl Watches<'_> {
    fn start<K>(&mut self, writer: CacheWriter<K>, watch: Watch<K>, strip: fn(&mut K), trigger: fn(&Triggers, &K))
    where
        K: Names + Clone + Debug + Send + Sync + 'static,
    {
        let triggers = self.triggers.clone();
        let reflector = Reflector::new(writer, self.metrics.clone(), strip, move |object| trigger(&triggers, object));
        let (listed, receiver) = oneshot::channel();
        self.tasks.spawn(reflector.run(watch, listed));
        self.listed.push(receiver);
    }
}

/// Watches every kind in `namespaces`, or in all namespaces if the list is empty. Returns the caches once they are filled.
pub async fn watch(
    client: &Client,
    namespaces: &[String],
    metrics: &Metrics,
    queues: &Queues,
    tasks: &mut JoinSet<()>,
) -> Stores {
    let all = Selection { client: client.clone(), namespaces: namespaces.to_vec(), labels: "" };
    let ours = Selection { labels: OURS, ..all.clone() };
    let labelled = Selection { labels: label::REASONING_POD, ..all.clone() };
    let mut writers = Writers::default();
    let stores = Stores::of(&mut writers);
    let triggers = Triggers::new(queues.clone(), stores.clone());
    let mut watches = Watches { triggers, metrics, tasks, listed: Vec::new() };
    macro_rules! watch_kinds {
        (
            reconciled { $($field:ident: $kind:ty, $label:expr;)* }
            referenced { $($referenced:ident: $referenced_kind:ty;)* }
        ) => {
            $(watches.start(writers.$field, guarded(&all), |_| {}, |triggers, object: &$kind| object.changed(triggers));)*
            $(watches.start(writers.$referenced, guarded(&all), |_| {}, |triggers, object: &$referenced_kind| {
                object.changed(triggers);
            });)*
        };
    }
    kinds!(watch_kinds);
    watches.start(writers.jobs, objects(&ours), |_| {}, Triggers::child);
    watches.start(writers.deployments, objects(&ours), |_| {}, Triggers::child);
    watches.start(writers.horizontal_pod_autoscalers, objects(&ours), |_| {}, Triggers::child);
    watches.start(writers.pods, objects(&ours), |_| {}, Triggers::pod);
    watches.start(writers.labelled, objects(&labelled), strip_annotations, Triggers::labelled);
    watches.start(writers.config_maps, objects(&ours), |_| {}, Triggers::child);
    watches.start(writers.services, objects(&ours), |_| {}, Triggers::child);
    watches.start(writers.http_routes, optional(&ours), |_| {}, Triggers::child);
    watches.start(writers.endpoint_slices, objects(&ours), strip_foreign, Triggers::slice);
    watches.start(writers.pod_disruption_budgets, objects(&ours), |_| {}, Triggers::child);
    watches.start(writers.network_policies, objects(&ours), |_| {}, Triggers::child);
    watches.start(writers.claims, objects(&all), strip_metadata, Triggers::claim);
    // The ConfigMaps of users: their keys are read when a plan needs them, so nothing reads this cache.
    let users = CacheWriter::<PartialObjectMeta<ConfigMap>>::default();
    watches.start(users, objects(&all), strip_metadata, Triggers::config_map);
    join_all(watches.listed).await;
    stores
}

/// Removes metadata of pods that nothing reads.
pub(super) fn strip_annotations(pod: &mut PartialObjectMeta<Pod>) {
    pod.metadata.annotations = None;
    pod.metadata.finalizers = None;
}

/// Removes the endpoints of slices that the cluster writes: of these only the existence matters.
pub(super) fn strip_foreign(slice: &mut EndpointSlice) {
    if slice.metadata.labels.as_ref().and_then(|labels| labels.get(WRITTEN_BY)).is_none_or(|writer| writer != WRITER) {
        slice.endpoints = Vec::new();
        slice.ports = None;
    }
}

/// Removes metadata that nothing reads: of these objects only the existence matters.
pub(super) fn strip_metadata<K>(object: &mut PartialObjectMeta<K>) {
    object.metadata.annotations = None;
    object.metadata.labels = None;
    object.metadata.owner_references = None;
    object.metadata.finalizers = None;
}
