//! A cache with an index: the objects that name a given one are found without reading all the others, so that a reconciliation
//! costs the same among ten objects and among ten thousand.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{BuildHasher, RandomState},
    marker::PhantomData,
    pin::pin,
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
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
    api::ObjectMeta,
    core::PartialObjectMeta,
    runtime::{
        reflector::{ObjectRef, Store, store::Writer},
        watcher::Event,
    },
};

use tokio::{sync::Notify, time::timeout};

use super::{
    evaluation,
    shelf::{Pack, Shelf},
    training_run,
};
use crate::{
    known::{content, set_content},
    ownership::controller,
};

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
    /// The digest of the configuration of a training whose model was promoted.
    Configuration(String),
}

/// A kind whose objects are found by what they name.
pub trait Names: Resource<DynamicType = ()> + Clone + 'static {
    /// How objects are packed that were not read lately. `None` for kinds whose objects are always whole.
    const PACK: Option<Pack<Self>> = None;
    /// Whether kube's runner reconciles the kind, so that it needs a list of the objects.
    const RECONCILED: bool = false;

    /// Returns whether an older version differs in its resource version only, so that the change reconciles nothing.
    fn is_like(&self, _older: &Self) -> bool {
        false
    }

    /// Whether an older version differs at most in its status and in metadata that nothing is checked against.
    fn has_content_of(&self, _older: &Self) -> bool {
        false
    }

    /// Returns what an object names: by default its controller.
    fn names(&self) -> Vec<Name> {
        controller(self).map(|owner| Name::Owner(owner.uid.clone())).into_iter().collect()
    }
}

/// Whether two versions have the same metadata but for the resource version.
pub fn same_metadata(one: &ObjectMeta, other: &ObjectMeta) -> bool {
    let mut other = other.clone();
    (other.resource_version, other.self_link) = (one.resource_version.clone(), one.self_link.clone());
    *one == other
}

/// Whether two versions have the same metadata that children are checked against.
fn same_identity(one: &ObjectMeta, other: &ObjectMeta) -> bool {
    one.uid == other.uid
        && one.labels == other.labels
        && one.annotations == other.annotations
        && one.owner_references == other.owner_references
        && one.deletion_timestamp == other.deletion_timestamp
}

impl Names for Job {
    const PACK: Option<Pack<Self>> = Some(Pack::JSON);

    fn is_like(&self, older: &Self) -> bool {
        self.spec == older.spec && self.status == older.status && same_metadata(&self.metadata, &older.metadata)
    }

    fn has_content_of(&self, older: &Self) -> bool {
        same_identity(&self.metadata, &older.metadata) && self.spec == older.spec
    }
}

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
    const PACK: Option<Pack<Self>> = Some(Pack::JSON);

    fn is_like(&self, older: &Self) -> bool {
        self.spec == older.spec && self.status == older.status && same_metadata(&self.metadata, &older.metadata)
    }

    fn has_content_of(&self, older: &Self) -> bool {
        same_identity(&self.metadata, &older.metadata) && self.spec == older.spec
    }

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
    const PACK: Option<Pack<Self>> = Some(Pack::JSON);

    fn is_like(&self, older: &Self) -> bool {
        self.data == older.data
            && self.binary_data == older.binary_data
            && self.immutable == older.immutable
            && same_metadata(&self.metadata, &older.metadata)
    }

    fn names(&self) -> Vec<Name> {
        // Those who own a bundle beside its run, too.
        let owners = self.owner_references().iter().map(|owner| Name::Owner(owner.uid.clone()));
        let digest = |name: &str| self.annotations().get(name).cloned();
        let model = digest(annotation::MODEL_DIGEST).map(Name::Model);
        let configuration = digest(annotation::CONFIG_DIGEST).map(Name::Configuration);
        owners.chain(model).chain(configuration).collect()
    }
}

impl Names for TrainingRun {
    const PACK: Option<Pack<Self>> = Some(Pack::JSON);
    const RECONCILED: bool = true;

    fn names(&self) -> Vec<Name> {
        let owner = controller(self).map(|owner| Name::Owner(owner.uid.clone()));
        let base = training_run::base_run(self).map(|run| Name::TrainingRun(run.to_owned()));
        let reproduced = self.spec.reproduces.as_ref().map(|run| Name::TrainingRun(run.name.clone()));
        owner.into_iter().chain(base).chain(reproduced).chain(training_run::mounted(&self.spec)).collect()
    }
}

impl Names for Evaluation {
    const PACK: Option<Pack<Self>> = Some(Pack::JSON);
    const RECONCILED: bool = true;

    fn names(&self) -> Vec<Name> {
        let run = self.spec.training_run.clone().map(Name::TrainingRun);
        let compared = evaluation::compared(&self.spec).map(|with| Name::Evaluation(with.to_owned()));
        let owner = controller(self).map(|owner| Name::Owner(owner.uid.clone()));
        owner.into_iter().chain(run).chain(compared).chain(evaluation::mounted(&self.spec)).collect()
    }
}

impl Names for ReasoningPod {
    const RECONCILED: bool = true;

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

/// Where an object is: its namespace and its name.
type Place = (Option<Box<str>>, Box<str>);
/// The places of objects by the hash of a namespace and a name. Different names may share a hash, so a reader compares the names.
type Index = HashMap<u64, Vec<Arc<Place>>>;

fn place<K: Resource>(object: &K) -> Place {
    let meta = object.meta();
    (meta.namespace.as_deref().map(Box::from), meta.name.as_deref().unwrap_or_default().into())
}

/// What kube's runner knows of an object: its namespace, name and uid.
pub type Listed<K> = PartialObjectMeta<K>;

fn listed<K: Resource>(object: &K) -> Listed<K> {
    let ObjectMeta { name, namespace, uid, .. } = object.meta().clone();
    PartialObjectMeta {
        types: None,
        metadata: ObjectMeta { name, namespace, uid, ..ObjectMeta::default() },
        _phantom: PhantomData,
    }
}

struct Shared<K: Names> {
    objects: RwLock<Shelf<K>>,
    /// The objects of reconciled kinds, as kube's runner wants them.
    listed: Store<Listed<K>>,
    index: RwLock<Index>,
    hasher: RandomState,
    /// Whether the cluster does not have the kind.
    missing: AtomicBool,
    /// Why the kind may not be listed, by namespace; `None` for the whole cluster.
    forbidden: RwLock<BTreeMap<Option<String>, String>>,
    /// Wakes those who wait for a change.
    changes: Notify,
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

    fn read(&self) -> RwLockReadGuard<'_, Shelf<K>> {
        // A thread that panicked while it held the lock left whole entries, so the poison is ignored. So everywhere in this file.
        self.objects.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Shelf<K>> {
        self.objects.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, place: &Place) -> Option<Arc<K>> {
        let (whole, found) = self.read().get(place, K::PACK)?;
        if !whole {
            // It is likely to be read again soon.
            self.write().warm(place, &found, K::PACK);
        }
        Some(found)
    }
}

/// The reader of a cache.
pub struct Cache<K: Names>(Arc<Shared<K>>);

impl<K: Names> Clone for Cache<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K: Names> Cache<K> {
    /// Whether the API server lists the kind. Only a kind that clusters need not have can be missing.
    pub fn exists(&self) -> bool {
        !self.0.missing.load(Ordering::Relaxed)
    }

    /// Returns why the objects of a namespace may not be listed. Until they may, the cache says nothing about them.
    pub fn forbidden(&self, namespace: &str) -> Option<String> {
        let forbidden = self.0.forbidden.read().unwrap_or_else(PoisonError::into_inner);
        let of = |place: &Option<String>| place.as_deref().is_none_or(|place| place == namespace);
        forbidden.iter().find(|(place, _)| of(place)).map(|(_, why)| why.clone())
    }

    /// Whether the objects of all namespaces may be listed.
    pub fn is_allowed(&self) -> bool {
        self.0.forbidden.read().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Returns the list that kube's runner reads. It is empty for a kind that is not reconciled.
    pub fn listed(&self) -> Store<Listed<K>> {
        self.0.listed.clone()
    }

    /// Returns an object.
    pub fn get(&self, reference: &ObjectRef<K>) -> Option<Arc<K>> {
        self.0.get(&(reference.namespace.as_deref().map(Box::from), reference.name.as_str().into()))
    }

    /// Returns all objects, in no particular order. Packed ones become whole one after another.
    pub fn all(&self) -> impl Iterator<Item = Arc<K>> + use<K> {
        let (shared, places) = (self.0.clone(), self.0.read().places());
        // What is read here is unlikely to be read again soon, so it does not stay whole.
        places.into_iter().filter_map(move |place| shared.read().get(&place, K::PACK).map(|(_, object)| object))
    }

    /// Returns the uids of all objects, in no particular order.
    pub(super) fn uids(&self) -> Vec<String> {
        if K::RECONCILED {
            // Nothing is unpacked for it.
            return self.0.listed.state().iter().filter_map(|object| object.uid()).collect();
        }
        self.all().filter_map(|object| object.uid()).collect()
    }

    /// Returns the number of objects.
    pub fn len(&self) -> usize {
        self.0.read().len()
    }

    /// Whether there are no objects.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether a namespace has an object. None is unpacked for it.
    pub(super) fn is_in(&self, namespace: &str) -> bool {
        self.0.read().is_in(namespace)
    }

    /// Returns references to all objects.
    pub(super) fn references(&self) -> Vec<ObjectRef<K>> {
        let reference = |place: &Arc<Place>| match &place.0 {
            Some(namespace) => ObjectRef::new(&place.1).within(namespace),
            None => ObjectRef::new(&place.1),
        };
        self.0.read().places().iter().map(reference).collect()
    }

    /// Returns the objects of a namespace that name `name`, in no particular order.
    pub fn naming(&self, namespace: &str, name: &Name) -> Vec<Arc<K>> {
        let places = {
            let index = self.0.index.read().unwrap_or_else(PoisonError::into_inner);
            index.get(&self.0.key(Some(namespace), name)).cloned().unwrap_or_default()
        };
        let found = places.iter().filter_map(|place| self.0.get(place));
        found
            .filter(|object| object.meta().namespace.as_deref() == Some(namespace) && object.names().contains(name))
            .collect()
    }

    /// Waits until `seen` returns true, which is asked again after each change of the cache. Gives up after `limit`.
    pub(super) async fn until(&self, limit: Duration, seen: impl Fn() -> bool) {
        let waiting = async {
            loop {
                let changed = self.0.changes.notified();
                let mut changed = pin!(changed);
                // From here on no change is missed.
                changed.as_mut().enable();
                if seen() {
                    return;
                }
                changed.await;
            }
        };
        let _ = timeout(limit, waiting).await;
    }
}

/// The writer of a [`Cache`].
pub struct CacheWriter<K: Names> {
    listed: Writer<Listed<K>>,
    shared: Arc<Shared<K>>,
}

impl<K: Names> Default for CacheWriter<K> {
    fn default() -> Self {
        let listed = Writer::default();
        let shared = Shared {
            objects: RwLock::new(Shelf::default()),
            listed: listed.as_reader(),
            index: RwLock::default(),
            hasher: RandomState::new(),
            missing: AtomicBool::new(false),
            forbidden: RwLock::default(),
            changes: Notify::new(),
        };
        Self { listed, shared: Arc::new(shared) }
    }
}

impl<K: Names> CacheWriter<K> {
    /// Returns a reader.
    pub fn as_reader(&self) -> Cache<K> {
        Cache(self.shared.clone())
    }

    /// Records whether the API server lists the kind.
    pub fn set_exists(&self, exists: bool) {
        self.shared.missing.store(!exists, Ordering::Relaxed);
    }

    /// Records why the objects of a namespace may not be listed, or that they may. `None` stands for the whole cluster.
    pub(crate) fn set_forbidden(&self, namespace: Option<&str>, why: Option<String>) {
        let mut forbidden = self.shared.forbidden.write().unwrap_or_else(PoisonError::into_inner);
        let namespace = namespace.map(str::to_owned);
        match why {
            Some(why) => forbidden.insert(namespace, why),
            None => forbidden.remove(&namespace),
        };
    }

    /// Says that the cache can be read.
    pub(super) fn is_ready(&mut self) {
        self.listed.apply_watcher_event(&Event::Init);
        self.listed.apply_watcher_event(&Event::InitDone);
    }

    /// Stores an object. Returns it as it is stored.
    pub(super) fn apply(&mut self, mut object: K) -> Arc<K> {
        let shared = self.shared.clone();
        let place = place(&object);
        let old = shared.get(&place);
        let unchanged = old.as_ref().filter(|old| object.has_content_of(old)).and_then(|old| content(&**old).cloned());
        let version = unchanged.or_else(|| object.meta().resource_version.clone());
        set_content(&mut object, version);
        let (before, after) = (old.map(|old| shared.keys(&old)).unwrap_or_default(), shared.keys(&object));
        // Readers of the index wait, so that it never shows less than the cache.
        let mut index = shared.index.write().unwrap_or_else(PoisonError::into_inner);
        let object = Arc::new(object);
        shared.write().insert(&place, &object, K::PACK);
        if K::RECONCILED {
            self.listed.apply_watcher_event(&Event::Apply(listed(&*object)));
        }
        if before != after {
            withdraw(&mut index, &before, &place);
            let place = Arc::new(place);
            for key in after {
                index.entry(key).or_default().push(place.clone());
            }
        }
        drop(index);
        shared.changes.notify_waiters();
        object
    }

    /// Removes an object and returns it.
    pub(super) fn remove(&mut self, reference: &ObjectRef<K>) -> Option<Arc<K>> {
        let old = self.as_reader().get(reference)?;
        let place = place(&*old);
        let mut index = self.shared.index.write().unwrap_or_else(PoisonError::into_inner);
        self.shared.write().remove(&place);
        if K::RECONCILED {
            self.listed.apply_watcher_event(&Event::Delete(listed(&*old)));
        }
        withdraw(&mut index, &self.shared.keys(&old), &place);
        drop(index);
        self.shared.changes.notify_waiters();
        Some(old)
    }

    /// Applies an event, as the tests feed them.
    #[cfg(test)]
    pub(crate) fn apply_watcher_event(&mut self, event: &Event<K>) {
        match event {
            Event::Init => {}
            Event::InitDone => self.is_ready(),
            Event::Apply(object) | Event::InitApply(object) => drop(self.apply(object.clone())),
            Event::Delete(object) => drop(self.remove(&ObjectRef::from_obj(object))),
        }
    }
}

fn withdraw(index: &mut Index, keys: &[u64], place: &Place) {
    for key in keys {
        let Some(places) = index.get_mut(key) else { continue };
        places.retain(|other| **other != *place);
        if places.is_empty() {
            index.remove(key);
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
        writer.apply_watcher_event(&Event::Delete(job("b", "one", "x", "8")));
        assert!(found(&cache, "b", "x").is_empty());
        assert_eq!(cache.0.index.read().unwrap().len(), 1, "nothing stays in the index");
    }
}
