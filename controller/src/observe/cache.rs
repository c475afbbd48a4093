//! A cache with an index: the objects that name a given one are found without reading all the others, so that a reconciliation
//! costs the same among ten objects and among ten thousand.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    ops::Deref,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

use codex_crds::{
    ClusterPromotionPolicy, Evaluation, PromotionPolicy, ReasoningPod, SignOff, TrainingRun, annotation, label,
};
use codex_plan::{http_route::HttpRoute, reasoning_pod::SERVICE_NAME};
use k8s_openapi::api::{
    apps::v1::Deployment,
    autoscaling::v2::HorizontalPodAutoscaler,
    batch::v1::Job,
    core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Service},
    discovery::v1::EndpointSlice,
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Resource, ResourceExt,
    core::PartialObjectMeta,
    runtime::{
        reflector::{ObjectRef, Store, store::Writer},
        watcher::Event,
    },
};

use super::{evaluation, training_run};
use crate::ownership::controller;

/// What an object names in its namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Name {
    /// The uid of its controller.
    Owner(String),
    /// A TrainingRun.
    TrainingRun(String),
    /// An Evaluation.
    Evaluation(String),
    /// The ReasoningPod of its label, or that it shadows.
    ReasoningPod(String),
    /// The Service whose endpoints it lists.
    Service(String),
    /// A PersistentVolumeClaim that its pods mount.
    Claim(String),
    /// A ConfigMap that its pods mount.
    ConfigMap(String),
    /// The digest of a model.
    Model(String),
}

/// A kind whose objects are found by what they name.
pub trait Names: Resource<DynamicType = ()> + Clone + 'static {
    /// Returns what an object names: by default its controller.
    fn names(&self) -> Vec<Name> {
        controller(self).map(|owner| Name::Owner(owner.uid.clone())).into_iter().collect()
    }
}

impl Names for Job {}
impl Names for Deployment {}
impl Names for HorizontalPodAutoscaler {}
impl Names for Service {}
impl Names for HttpRoute {}
impl Names for PodDisruptionBudget {}
impl Names for NetworkPolicy {}

impl Names for EndpointSlice {
    fn names(&self) -> Vec<Name> {
        let owner = controller(self).map(|owner| Name::Owner(owner.uid.clone()));
        let service = self.labels().get(SERVICE_NAME).cloned().map(Name::Service);
        owner.into_iter().chain(service).collect()
    }
}

impl Names for Pod {
    fn names(&self) -> Vec<Name> {
        let owner = controller(self).map(|owner| Name::Owner(owner.uid.clone()));
        owner.into_iter().chain(labelled(self)).collect()
    }
}

impl Names for PartialObjectMeta<Pod> {
    fn names(&self) -> Vec<Name> {
        labelled(self).into_iter().collect()
    }
}

impl Names for ConfigMap {
    fn names(&self) -> Vec<Name> {
        let owner = controller(self).map(|owner| Name::Owner(owner.uid.clone()));
        let model = self.annotations().get(annotation::MODEL_DIGEST).cloned().map(Name::Model);
        owner.into_iter().chain(model).collect()
    }
}

impl Names for TrainingRun {
    fn names(&self) -> Vec<Name> {
        let owner = controller(self).map(|owner| Name::Owner(owner.uid.clone()));
        let base = training_run::base_run(self).map(|run| Name::TrainingRun(run.to_owned()));
        let reproduced = self.spec.reproduces.as_ref().map(|run| Name::TrainingRun(run.name.clone()));
        owner.into_iter().chain(base).chain(reproduced).chain(training_run::mounted(&self.spec)).collect()
    }
}

impl Names for Evaluation {
    fn names(&self) -> Vec<Name> {
        let run = self.spec.training_run.clone().map(Name::TrainingRun);
        let compared = evaluation::compared(&self.spec).map(|with| Name::Evaluation(with.to_owned()));
        let owner = controller(self).map(|owner| Name::Owner(owner.uid.clone()));
        owner.into_iter().chain(run).chain(compared).chain(evaluation::mounted(&self.spec)).collect()
    }
}

impl Names for ReasoningPod {
    fn names(&self) -> Vec<Name> {
        let evaluations = self.spec.evaluations.iter().cloned().map(Name::Evaluation);
        let shadowed = self.spec.shadow.as_ref().map(|shadow| Name::ReasoningPod(shadow.of.clone()));
        let owner = controller(self).map(|owner| Name::Owner(owner.uid.clone()));
        // With spec.redeploy the spec may name no run. The objects of cycles name their owner.
        let run = Some(&self.spec.training_run).filter(|run| !run.is_empty()).cloned().map(Name::TrainingRun);
        owner.into_iter().chain(run).chain(evaluations).chain(shadowed).collect()
    }
}

/// Implements [`Names`] for kinds that are found by their own names only.
macro_rules! nameless {
    ($($kind:ty),*) => {
        $(impl Names for $kind {
            fn names(&self) -> Vec<Name> {
                Vec::new()
            }
        })*
    };
}

nameless!(
    ClusterPromotionPolicy,
    PromotionPolicy,
    SignOff,
    PartialObjectMeta<ConfigMap>,
    PartialObjectMeta<PersistentVolumeClaim>
);

fn labelled<K: Resource>(object: &K) -> Option<Name> {
    object.labels().get(label::REASONING_POD).cloned().map(Name::ReasoningPod)
}

/// The objects by the hash of a namespace and a name. Different names may share a hash, so a reader compares the names.
type Index<K> = HashMap<u64, Vec<Arc<K>>>;

struct Shared<K> {
    index: RwLock<Index<K>>,
    hasher: RandomState,
    /// Whether the cluster does not have the kind.
    missing: AtomicBool,
}

impl<K: Names> Shared<K> {
    fn key(&self, namespace: Option<&str>, name: &Name) -> u64 {
        self.hasher.hash_one((namespace, name))
    }

    fn keys(&self, object: &K) -> Vec<u64> {
        let mut keys: Vec<u64> =
            object.names().iter().map(|name| self.key(object.meta().namespace.as_deref(), name)).collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    fn insert(&self, index: &mut Index<K>, object: &Arc<K>) {
        for key in self.keys(object) {
            index.entry(key).or_default().push(object.clone());
        }
    }

    fn remove(&self, index: &mut Index<K>, object: &Arc<K>) {
        for key in self.keys(object) {
            let Some(objects) = index.get_mut(&key) else { continue };
            objects.retain(|other| !Arc::ptr_eq(other, object));
            if objects.is_empty() {
                index.remove(&key);
            }
        }
    }
}

/// The reader of a cache.
pub struct Cache<K: Names> {
    store: Store<K>,
    shared: Arc<Shared<K>>,
}

impl<K: Names> Clone for Cache<K> {
    fn clone(&self) -> Self {
        Self { store: self.store.clone(), shared: self.shared.clone() }
    }
}

impl<K: Names> Deref for Cache<K> {
    type Target = Store<K>;

    fn deref(&self) -> &Store<K> {
        &self.store
    }
}

impl<K: Names> Cache<K> {
    /// Whether the API server lists the kind. Only a kind that clusters need not have can be missing.
    pub fn exists(&self) -> bool {
        !self.shared.missing.load(Ordering::Relaxed)
    }

    /// Returns the objects of a namespace that name `name`, in no particular order.
    pub fn naming(&self, namespace: &str, name: &Name) -> Vec<Arc<K>> {
        let index = self.shared.index.read().unwrap_or_else(PoisonError::into_inner);
        let found = index.get(&self.shared.key(Some(namespace), name)).into_iter().flatten();
        found
            .filter(|object| object.meta().namespace.as_deref() == Some(namespace) && object.names().contains(name))
            .cloned()
            .collect()
    }
}

/// The writer of a [`Cache`].
pub struct CacheWriter<K: Names> {
    writer: Writer<K>,
    shared: Arc<Shared<K>>,
}

impl<K: Names> Default for CacheWriter<K> {
    fn default() -> Self {
        let shared = Shared { index: RwLock::default(), hasher: RandomState::new(), missing: AtomicBool::new(false) };
        Self { writer: Writer::default(), shared: Arc::new(shared) }
    }
}

impl<K: Names> CacheWriter<K> {
    /// Returns a reader.
    pub fn as_reader(&self) -> Cache<K> {
        Cache { store: self.writer.as_reader(), shared: self.shared.clone() }
    }

    /// Records whether the API server lists the kind.
    pub fn set_exists(&self, exists: bool) {
        self.shared.missing.store(!exists, Ordering::Relaxed);
    }

    /// Applies an event to the cache and its index. Readers of the index wait meanwhile, so that it never shows less than the cache.
    pub fn apply_watcher_event(&mut self, event: &Event<K>) {
        let (shared, store) = (self.shared.clone(), self.writer.as_reader());
        let mut index = shared.index.write().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Apply(object) | Event::Delete(object) => {
                let reference = ObjectRef::from_obj(object);
                if let Some(old) = store.get(&reference) {
                    shared.remove(&mut index, &old);
                }
                self.writer.apply_watcher_event(event);
                if let Some(new) = store.get(&reference) {
                    shared.insert(&mut index, &new);
                }
            }
            Event::Init | Event::InitApply(_) => self.writer.apply_watcher_event(event),
            Event::InitDone => {
                self.writer.apply_watcher_event(event);
                index.clear();
                store.state().iter().for_each(|object| shared.insert(&mut index, object));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::batch::v1::Job;
    use kube::{ResourceExt, runtime::watcher::Event};
    use serde_json::json;

    use super::{Cache, CacheWriter, Name};

    fn job(namespace: &str, name: &str, owner: &str, version: &str) -> Job {
        serde_json::from_value(json!({"metadata": {
            "name": name, "namespace": namespace, "resourceVersion": version,
            "ownerReferences": [{"apiVersion": "a/v1", "kind": "K", "name": "o", "uid": owner, "controller": true}],
        }}))
        .unwrap()
    }

    fn found(cache: &Cache<Job>, namespace: &str, owner: &str) -> Vec<String> {
        let mut names: Vec<_> = cache
            .naming(namespace, &Name::Owner(owner.to_owned()))
            .iter()
            .map(|job| format!("{}@{}", job.name_any(), job.resource_version().unwrap()))
            .collect();
        names.sort();
        names
    }

    #[test]
    fn objects_are_found_by_their_owner_through_their_whole_life() {
        let mut writer = CacheWriter::<Job>::default();
        let cache = writer.as_reader();
        for event in [
            Event::Init,
            Event::InitApply(job("a", "one", "x", "1")),
            Event::InitApply(job("b", "one", "x", "2")),
            Event::InitDone,
            Event::Apply(job("a", "two", "x", "3")),
            Event::Apply(job("a", "three", "y", "4")),
        ] {
            writer.apply_watcher_event(&event);
        }
        assert_eq!(found(&cache, "a", "x"), ["one@1", "two@3"]);
        assert_eq!(found(&cache, "b", "x"), ["one@2"]);
        writer.apply_watcher_event(&Event::Apply(job("a", "one", "x", "5")));
        writer.apply_watcher_event(&Event::Apply(job("a", "two", "y", "6")));
        assert_eq!(found(&cache, "a", "x"), ["one@5"], "a changed object is found once, and by its present owner");
        assert_eq!(found(&cache, "a", "y"), ["three@4", "two@6"]);
        writer.apply_watcher_event(&Event::Delete(job("a", "one", "x", "7")));
        assert!(found(&cache, "a", "x").is_empty());
        // A new listing replaces everything.
        for event in [Event::Init, Event::InitApply(job("a", "four", "x", "8")), Event::InitDone] {
            writer.apply_watcher_event(&event);
        }
        assert_eq!(found(&cache, "a", "x"), ["four@8"]);
        assert!(found(&cache, "a", "y").is_empty() && found(&cache, "b", "x").is_empty());
        assert_eq!(cache.shared.index.read().unwrap().len(), 1, "nothing stays in the index");
    }
}
