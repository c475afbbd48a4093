//! Reflectors: one task per kind keeps a cache and triggers reconciliations. A kind is listed once per watch, and again
//! only after the API server has lost the watch's position.
//!
//! An object that cannot be parsed is logged, counted and left out of the cache. The watches of several namespaces fill
//! one cache: listing a namespace again adds and removes only the differences.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fmt::Debug,
    pin::Pin,
};

use futures::{Stream, StreamExt, stream::select_all};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::ObjectMeta,
    core::{ClusterResourceScope, DeserializeGuard, NamespaceResourceScope, error_boundary::InvalidObject},
    runtime::{
        WatchStreamExt,
        reflector::ObjectRef,
        watcher::{self, Event, watcher},
    },
};
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;
use tracing::{debug, error, info, warn};

use super::cache::{Cache, CacheWriter, Names};
use crate::{error::chain, metrics::Metrics};

/// An object, or why it cannot be parsed.
pub(super) type Parsed<K> = Result<K, Box<InvalidObject>>;
/// Events, each with the index of its watch.
type Events<K> = Pin<Box<dyn Stream<Item = (usize, watcher::Result<Event<Parsed<K>>>)> + Send>>;

/// The watches of one kind.
pub(super) struct Watch<K> {
    /// The namespace of each watch; `None` for the whole cluster.
    namespaces: Vec<Option<String>>,
    events: Events<K>,
    /// Whether the cluster need not have the kind.
    optional: bool,
}

/// The objects of a kind to watch.
#[derive(Clone)]
pub(super) struct Selection {
    /// The client.
    pub client: Client,
    /// The namespaces; all namespaces if empty. Cluster-scoped kinds ignore them.
    pub namespaces: Vec<String>,
    /// The label selector; all objects if empty.
    pub labels: &'static str,
}

impl Selection {
    fn config(&self) -> watcher::Config {
        let config = watcher::Config::default();
        if self.labels.is_empty() { config } else { config.labels(self.labels) }
    }
}

/// The scope of a kind: namespaced or cluster-scoped.
pub trait WatchScope: Sized {
    /// Returns the APIs that cover `namespaces`, or all namespaces if there are none.
    fn apis<K: Resource<Scope = Self, DynamicType = ()>>(client: &Client, namespaces: &[String]) -> Vec<Api<K>>;
}

impl WatchScope for NamespaceResourceScope {
    fn apis<K: Resource<Scope = Self, DynamicType = ()>>(client: &Client, namespaces: &[String]) -> Vec<Api<K>> {
        if namespaces.is_empty() {
            return vec![Api::all(client.clone())];
        }
        namespaces.iter().map(|namespace| Api::namespaced(client.clone(), namespace)).collect()
    }
}

impl WatchScope for ClusterResourceScope {
    fn apis<K: Resource<Scope = Self, DynamicType = ()>>(client: &Client, _: &[String]) -> Vec<Api<K>> {
        vec![Api::all(client.clone())]
    }
}

/// Watches a kind of `codex-ml.dev`. Objects that cannot be parsed do not end the watch.
pub(super) fn guarded<K>(selection: &Selection) -> Watch<K>
where
    K: Resource<DynamicType = (), Scope: WatchScope> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let apis = K::Scope::apis::<DeserializeGuard<K>>(&selection.client, &selection.namespaces);
    events(selection, apis, |guard: DeserializeGuard<K>| guard.0.map_err(Box::new))
}

/// Watches a kind whose schema is built into the API server. A guard would double the code that parses it.
pub(super) fn objects<K>(selection: &Selection) -> Watch<K>
where
    K: Resource<DynamicType = (), Scope: WatchScope> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let apis = K::Scope::apis::<K>(&selection.client, &selection.namespaces);
    events(selection, apis, Ok)
}

/// Watches a kind of another project that the cluster may lack. Where the API server does not know it, or refuses to list it, it has
/// no objects, and the caches of the other kinds do not wait for it.
pub(super) fn optional<K>(selection: &Selection) -> Watch<K>
where
    K: Resource<DynamicType = (), Scope: WatchScope> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    Watch { optional: true, ..guarded(selection) }
}

fn events<W, K>(selection: &Selection, apis: Vec<Api<W>>, parse: fn(W) -> Parsed<K>) -> Watch<K>
where
    W: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
    K: 'static,
{
    let namespaces = apis.iter().map(|api| api.namespace().map(str::to_owned)).collect();
    let streams = apis.into_iter().enumerate().map(|(index, api)| {
        let events = watcher(api, selection.config()).default_backoff();
        events.map(move |event| (index, event.map(|event| convert(event, parse)))).boxed()
    });
    Watch { namespaces, events: select_all(streams).boxed(), optional: false }
}

/// Returns the status code of the API server's answer to a watch.
fn answer(failure: &watcher::Error) -> Option<u16> {
    match failure {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => Some(status.code),
        _ => None,
    }
}

fn convert<W, K>(event: Event<W>, parse: fn(W) -> Parsed<K>) -> Event<Parsed<K>> {
    match event {
        Event::Apply(object) => Event::Apply(parse(object)),
        Event::Delete(object) => Event::Delete(parse(object)),
        Event::Init => Event::Init,
        Event::InitApply(object) => Event::InitApply(parse(object)),
        Event::InitDone => Event::InitDone,
    }
}

/// Fills a cache from watches and calls a function for every change.
pub(super) struct Reflector<K>
where
    K: Names + Clone + 'static,
{
    kind: String,
    writer: CacheWriter<K>,
    store: Cache<K>,
    strip: fn(&mut K),
    changed: Box<dyn Fn(&K) + Send>,
    metrics: Metrics,
    /// The state of each watch, by its index.
    listings: HashMap<usize, Listing<K>>,
    /// The namespace of each watch; `None` for the whole cluster.
    namespaces: Vec<Option<String>>,
    /// The failures of the watches that were logged since they last worked.
    logged: BTreeSet<String>,
}

/// The state of one watch.
struct Listing<K: Resource<DynamicType = ()>> {
    /// The objects of a listing in progress.
    relisted: Option<HashSet<ObjectRef<K>>>,
    /// Whether a listing has ended.
    complete: bool,
}

impl<K: Resource<DynamicType = ()>> Default for Listing<K> {
    fn default() -> Self {
        Self { relisted: None, complete: false }
    }
}

impl<K> Reflector<K>
where
    K: Names + Clone + Debug + 'static,
{
    /// Creates a reflector that fills the cache of `writer`. `strip` removes fields that are not needed before an object is
    /// stored; `changed` is called with every object that was created, changed or deleted.
    pub(super) fn new(
        mut writer: CacheWriter<K>,
        metrics: Metrics,
        strip: fn(&mut K),
        changed: impl Fn(&K) + Send + 'static,
    ) -> Self {
        // The cache counts as ready at once. `run` says when the first listing of every watch has ended.
        writer.apply_watcher_event(&Event::Init);
        writer.apply_watcher_event(&Event::InitDone);
        let store = writer.as_reader();
        let kind = K::kind(&()).into_owned();
        Self {
            kind,
            writer,
            store,
            strip,
            changed: Box::new(changed),
            metrics,
            listings: HashMap::new(),
            namespaces: Vec::new(),
            logged: BTreeSet::new(),
        }
    }

    /// Runs until the watches end, which they never do. Sends `listed` once every watch has listed its objects.
    pub(super) async fn run(mut self, mut watch: Watch<K>, listed: oneshot::Sender<()>) {
        let mut listed = Some(listed);
        self.namespaces.clone_from(&watch.namespaces);
        while let Some((index, event)) = watch.events.next().await {
            match event {
                Ok(event) => self.handle(index, event),
                // Routine: the API server no longer has the events since the watch's position.
                Err(watcher::Error::WatchError(status)) if status.code == 410 => {
                    debug!(kind = self.kind, "the watch has expired; listing again");
                }
                Err(failure) if watch.optional && answer(&failure) == Some(404) => self.missing(index),
                Err(failure) => {
                    self.metrics.watch_failed(&self.kind);
                    self.log_once(chain(&failure));
                    if watch.optional && answer(&failure) == Some(403) {
                        self.missing(index);
                    }
                }
            }
            let complete = self.listings.values().filter(|listing| listing.complete).count();
            if complete == watch.namespaces.len()
                && let Some(listed) = listed.take()
            {
                debug!(kind = self.kind, objects = self.store.len(), "listed");
                // The receiver is gone only when the process stops.
                let _ = listed.send(());
            }
        }
    }

    /// Handles that the API server does not list the kind: there are no objects.
    pub(super) fn missing(&mut self, index: usize) {
        if self.store.exists() {
            debug!(kind = self.kind, "the cluster does not have the kind, or it may not be listed; trying again");
        }
        self.writer.set_exists(false);
        let listing = self.listings.entry(index).or_default();
        (listing.relisted, listing.complete) = (None, true);
        for object in self.store.state() {
            self.remove(&reference(object.meta()));
        }
    }

    /// Logs a failure of a watch, unless it was logged since the watches last worked: a missing permission fails every retry.
    fn log_once(&mut self, failure: String) {
        if self.logged.contains(&failure) {
            debug!(kind = self.kind, error = failure, "a watch failed again and is retried");
        } else {
            warn!(kind = self.kind, error = failure, "a watch failed; it is retried until it works");
            self.logged.insert(failure);
        }
    }

    pub(super) fn handle(&mut self, index: usize, event: Event<Parsed<K>>) {
        let listing = self.listings.entry(index).or_default();
        match event {
            Event::Init => listing.relisted = Some(HashSet::new()),
            Event::InitApply(parsed) | Event::Apply(parsed) => match parsed {
                Ok(object) => {
                    let reference = reference(object.meta());
                    if let Some(relisted) = &mut listing.relisted {
                        relisted.insert(reference.clone());
                    }
                    self.store(&reference, object);
                }
                Err(invalid) => {
                    let reference = reference(&invalid.metadata);
                    self.metrics.malformed(&self.kind);
                    error!(kind = self.kind, object = %reference, "an object cannot be parsed and is ignored: {invalid}");
                    self.remove(&reference);
                }
            },
            Event::Delete(parsed) => {
                let reference = match &parsed {
                    Ok(object) => reference(object.meta()),
                    Err(invalid) => reference(&invalid.metadata),
                };
                self.remove(&reference);
            }
            Event::InitDone => {
                listing.complete = true;
                self.writer.set_exists(true);
                if !std::mem::take(&mut self.logged).is_empty() {
                    info!(kind = self.kind, "the watch works again");
                }
                let relisted = listing.relisted.take().unwrap_or_default();
                let namespace = self.namespaces.get(index).cloned().flatten();
                for object in self.store.state() {
                    let reference = reference(object.meta());
                    let watched = namespace.is_none() || object.meta().namespace == namespace;
                    if watched && !relisted.contains(&reference) {
                        self.remove(&reference);
                    }
                }
            }
        }
    }

    fn store(&mut self, reference: &ObjectRef<K>, mut object: K) {
        // A listing may show an object that the cache already holds.
        if self
            .store
            .get(reference)
            .is_some_and(|known| known.resource_version() == object.resource_version() && known.uid() == object.uid())
        {
            return;
        }
        object.meta_mut().managed_fields = None;
        (self.strip)(&mut object);
        let event = Event::Apply(object);
        self.writer.apply_watcher_event(&event);
        if let Event::Apply(object) = &event {
            (self.changed)(object);
        }
    }

    fn remove(&mut self, reference: &ObjectRef<K>) {
        let Some(object) = self.store.get(reference) else { return };
        self.writer.apply_watcher_event(&Event::Delete(K::clone(&object)));
        (self.changed)(&object);
    }
}

/// Returns the reference that the cache keys an object by.
fn reference<K: Resource<DynamicType = ()>>(metadata: &ObjectMeta) -> ObjectRef<K> {
    let reference = ObjectRef::new(metadata.name.as_deref().unwrap_or_default());
    match &metadata.namespace {
        Some(namespace) => reference.within(namespace),
        None => reference,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use codex_crds::ClusterPromotionPolicy;
    use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
    use kube::{
        core::{ClusterResourceScope, NamespaceResourceScope},
        runtime::watcher::Event,
    };

    use super::{CacheWriter, Reflector, WatchScope};
    use crate::{metrics::Metrics, tests::world::Api};

    #[tokio::test]
    async fn a_cluster_scoped_kind_has_one_watch_whatever_the_namespaces() {
        let (client, namespaces) = (Api::default().client(), ["a".to_owned(), "b".to_owned()]);
        assert_eq!(ClusterResourceScope::apis::<Namespace>(&client, &namespaces).len(), 1);
        assert_eq!(NamespaceResourceScope::apis::<ConfigMap>(&client, &namespaces).len(), 2);
        assert_eq!(NamespaceResourceScope::apis::<ConfigMap>(&client, &[]).len(), 1);
    }

    #[test]
    fn a_cluster_scoped_object_is_stored_and_removed_with_one_trigger_each() {
        let writer = CacheWriter::<ClusterPromotionPolicy>::default();
        let store = writer.as_reader();
        let changes = Arc::new(AtomicUsize::new(0));
        let count = changes.clone();
        let mut reflector = Reflector::new(
            writer,
            Metrics::new().unwrap(),
            |_| {},
            move |_| {
                count.fetch_add(1, Ordering::Relaxed);
            },
        );
        let mut object =
            ClusterPromotionPolicy::new("a", serde_json::from_value(serde_json::json!({"rings": []})).unwrap());
        object.metadata.resource_version = Some("1".to_owned());
        for event in
            [Event::Init, Event::InitApply(Ok(object.clone())), Event::InitDone, Event::Apply(Ok(object.clone()))]
        {
            reflector.handle(0, event);
        }
        assert_eq!((store.len(), changes.load(Ordering::Relaxed)), (1, 1));
        reflector.handle(0, Event::Delete(Ok(object)));
        assert_eq!((store.len(), changes.load(Ordering::Relaxed)), (0, 2));
    }

    #[test]
    fn a_kind_that_the_cluster_lacks_has_no_objects_until_it_is_installed() {
        let (writer, metrics) = (CacheWriter::<ClusterPromotionPolicy>::default(), Metrics::new().unwrap());
        let store = writer.as_reader();
        let mut reflector = Reflector::new(writer, metrics, |_| {}, |_| {});
        let object =
            ClusterPromotionPolicy::new("a", serde_json::from_value(serde_json::json!({"rings": []})).unwrap());
        for event in [Event::Init, Event::InitApply(Ok(object)), Event::InitDone] {
            reflector.handle(0, event);
        }
        assert!(store.exists() && store.len() == 1);
        reflector.missing(0);
        assert!(!store.exists() && store.is_empty());
        reflector.handle(0, Event::Init);
        assert!(!store.exists(), "the listing has not ended");
        reflector.handle(0, Event::InitDone);
        assert!(store.exists());
    }
}
