//! Reflectors: one task per kind keeps a cache and triggers reconciliations. A kind is listed once per watch, and again
//! only after the API server has lost the watch's position.
//!
//! An object that cannot be parsed is logged, counted and left out of the cache. The watches of several namespaces fill
//! one cache: listing a namespace again adds and removes only the differences.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    convert::Infallible,
    fmt::Debug,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use axum::http::{HeaderValue, Request, header::ACCEPT};
use futures::{Stream, StreamExt, stream::select_all};
use kube::{
    Api, Client, Resource,
    client::Body,
    core::{ApiResource, ClusterResourceScope, NamespaceResourceScope},
    runtime::{
        WatchStreamExt,
        reflector::ObjectRef,
        utils::Backoff,
        watcher::{self, Event, watcher},
    },
};
use tokio::{
    sync::{oneshot, watch::Sender},
    time::Instant,
};
use tower::service_fn;
use tracing::{debug, error, info, warn};

use super::{
    cache::{Cache, CacheWriter, Names},
    raw::{RawObject, Unparsed},
};
use crate::{error::chain, metrics::Metrics};

/// Reads an object of a kind.
pub(super) type Parse<K> = fn(&RawObject) -> Result<K, Unparsed>;
/// Events, each with the index of its watch.
type Events = Pin<Box<dyn Stream<Item = (usize, watcher::Result<Event<RawObject>>)> + Send>>;

/// How long after a failure was logged the same one is logged again.
const REMIND: Duration = Duration::from_mins(5);

/// Why watches fail now, by kind and by the index of the watch.
#[derive(Clone, Default)]
pub struct Failures(Arc<Sender<BTreeMap<(String, usize), String>>>);

impl Failures {
    /// Returns all sentences as one; empty if no watch fails.
    pub fn told(&self) -> String {
        self.0.borrow().values().cloned().collect::<Vec<_>>().join("; ")
    }

    /// Calls `tell` with all sentences whenever they change.
    pub(super) async fn each(&self, tell: impl Fn(&str)) -> Infallible {
        let mut failures = self.0.subscribe();
        loop {
            failures.mark_unchanged();
            tell(&self.told());
            if failures.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    pub(crate) fn set(&self, kind: &str, index: usize, why: Option<String>) {
        self.0.send_if_modified(|failures| {
            let key = (kind.to_owned(), index);
            match why {
                Some(why) => failures.insert(key, why.clone()) != Some(why),
                None => failures.remove(&key).is_some(),
            }
        });
    }
}

/// The watches of one kind.
pub(super) struct Watch {
    /// The namespace of each watch; `None` for the whole cluster.
    namespaces: Vec<Option<String>>,
    events: Events,
    /// Whether the cluster need not have the kind.
    optional: bool,
}

/// How long a watch of a kind that the cluster may lack waits after a failure. The usual backoff begins anew with each listing, and
/// would list every second.
struct Patience;

impl Iterator for Patience {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(Duration::from_mins(5))
    }
}

impl Backoff for Patience {
    fn reset(&mut self) {}
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

    /// Returns the watches of a kind.
    pub(super) fn watch<K: Resource<DynamicType = (), Scope: WatchScope>>(&self) -> Watch {
        self.events::<K>(false)
    }

    /// Returns the watches of a kind of another project that the cluster may lack. Where the API server does not know it, or refuses to
    /// list it, it has no objects, and the caches of the other kinds do not wait for it.
    pub(super) fn watch_optional<K: Resource<DynamicType = (), Scope: WatchScope>>(&self) -> Watch {
        self.events::<K>(true)
    }

    fn events<K: Resource<DynamicType = (), Scope: WatchScope>>(&self, optional: bool) -> Watch {
        let apis = K::Scope::apis(&self.client, &self.namespaces, &ApiResource::erase::<K>(&()));
        let namespaces = apis.iter().map(|api| api.namespace().map(str::to_owned)).collect();
        let streams = apis.into_iter().enumerate().map(|(index, api)| {
            let events = watcher(api, self.config());
            let events = if optional { events.backoff(Patience).boxed() } else { events.default_backoff().boxed() };
            events.map(move |event| (index, event)).boxed()
        });
        Watch { namespaces, events: select_all(streams).boxed(), optional }
    }
}

/// The scope of a kind: namespaced or cluster-scoped.
pub trait WatchScope: Sized {
    /// Returns the APIs of a kind that cover `namespaces`, or all namespaces if the list is empty.
    fn apis(client: &Client, namespaces: &[String], kind: &ApiResource) -> Vec<Api<RawObject>>;
}

impl WatchScope for NamespaceResourceScope {
    fn apis(client: &Client, namespaces: &[String], kind: &ApiResource) -> Vec<Api<RawObject>> {
        if namespaces.is_empty() {
            return vec![Api::all_with(client.clone(), kind)];
        }
        namespaces.iter().map(|namespace| Api::namespaced_with(client.clone(), namespace, kind)).collect()
    }
}

impl WatchScope for ClusterResourceScope {
    fn apis(client: &Client, _: &[String], kind: &ApiResource) -> Vec<Api<RawObject>> {
        vec![Api::all_with(client.clone(), kind)]
    }
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

/// Returns a sentence about a failure of the watch of the kind `K` in a namespace; `None` stands for all namespaces. If the controller
/// lacks a right, or the API server does not know the kind, the sentence says what to apply.
fn explained<K: Resource<DynamicType = ()>>(failure: &watcher::Error, namespace: Option<&str>) -> String {
    let (said, group) = (chain(failure), K::group(&()));
    let resource = if group.is_empty() { K::plural(&()) } else { format!("{}.{group}", K::plural(&())).into() };
    let place = namespace.map_or_else(|| "all namespaces".to_owned(), |namespace| format!("the namespace {namespace}"));
    let verb = if matches!(failure, watcher::Error::InitialListFailed(_)) { "list" } else { "watch" };
    let role = match namespace {
        None => "the ClusterRole codex-controller (manifests/controller/rbac.yaml, or the chart)".to_owned(),
        Some(namespace) => format!(
            "the Role codex-controller in the namespace {namespace} (manifests/overlays/namespaced/tenant, or watchNamespaces of the chart)"
        ),
    };
    match answer(failure) {
        Some(403) => {
            format!("the right to {verb} {resource} in {place} is missing; apply {role} of this release: {said}")
        }
        Some(404) if group == codex_crds::GROUP => {
            format!("the cluster does not have {resource}; apply the CRDs (manifests/crd) of this release: {said}")
        }
        _ => format!("{resource} in {place}: {said}"),
    }
}

/// Returns the client that asks for the metadata of objects only.
pub(super) fn of_metadata(client: &Client) -> Client {
    const METADATA: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
    const OF_WATCH: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
    let (inner, namespace) = (client.clone(), client.default_namespace().to_owned());
    let send = service_fn(move |mut request: Request<Body>| {
        let inner = inner.clone();
        let watches = request.uri().query().is_some_and(|query| query.split('&').any(|part| part == "watch=true"));
        let accept = HeaderValue::from_static(if watches { OF_WATCH } else { METADATA });
        request.headers_mut().insert(ACCEPT, accept);
        async move { inner.send(request).await }
    });
    Client::new(send, namespace)
}

/// Fills a cache from watches and calls a function for every change.
pub(super) struct Reflector<K>
where
    K: Names + Clone + 'static,
{
    kind: String,
    writer: CacheWriter<K>,
    store: Cache<K>,
    parse: Parse<K>,
    changed: Box<dyn Fn(&K) + Send>,
    metrics: Metrics,
    /// The state of each watch, by its index.
    listings: HashMap<usize, Listing<K>>,
    /// The namespace of each watch; `None` for the whole cluster.
    namespaces: Vec<Option<String>>,
    /// The failures of the watches since they last worked, and when each was logged.
    logged: BTreeMap<String, Instant>,
    failures: Failures,
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
    /// Creates a reflector that fills the cache of `writer`. `parse` reads an object without the fields that are not needed; `changed`
    /// is called with every object that was created, deleted, or changed in what is stored.
    pub(super) fn new(
        mut writer: CacheWriter<K>,
        metrics: Metrics,
        parse: Parse<K>,
        changed: impl Fn(&K) + Send + 'static,
    ) -> Self {
        // The cache counts as ready at once. `run` says when the first listing of every watch has ended.
        writer.is_ready();
        let store = writer.as_reader();
        let kind = K::kind(&()).into_owned();
        Self {
            kind,
            writer,
            store,
            parse,
            changed: Box::new(changed),
            metrics,
            listings: HashMap::new(),
            namespaces: Vec::new(),
            logged: BTreeMap::new(),
            failures: Failures::default(),
        }
    }

    /// Sets who is told why watches fail.
    pub(super) fn telling(self, failures: &Failures) -> Self {
        Self { failures: failures.clone(), ..self }
    }

    /// Runs until the watches end, which they never do. Sends `listed` once every watch has listed its objects.
    pub(super) async fn run(mut self, mut watch: Watch, listed: oneshot::Sender<()>) {
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
                    let why = explained::<K>(&failure, self.namespaces.get(index).and_then(Option::as_deref));
                    let forbidden = answer(&failure) == Some(403);
                    if watch.optional && forbidden {
                        self.missing(index);
                    } else {
                        self.failures.set(&self.kind, index, Some(why.clone()));
                    }
                    if !watch.optional && forbidden && matches!(failure, watcher::Error::InitialListFailed(_)) {
                        self.forbidden(index, why.clone());
                    }
                    self.log(why);
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
        for reference in self.store.references() {
            self.remove(&reference);
        }
    }

    /// Handles that the controller may not list the kind: whatever does not depend on it goes on.
    pub(super) fn forbidden(&mut self, index: usize, why: String) {
        self.writer.set_forbidden(self.namespaces.get(index).and_then(Option::as_deref), Some(why));
        let listing = self.listings.entry(index).or_default();
        (listing.relisted, listing.complete) = (None, true);
    }

    /// Logs a failure of a watch, unless it was logged not long ago and the watches did not work since: a missing permission fails
    /// every retry.
    fn log(&mut self, failure: String) {
        if self.logged.get(&failure).is_some_and(|logged| logged.elapsed() < REMIND) {
            debug!(kind = self.kind, error = failure, "a watch failed again and is retried");
        } else {
            warn!(kind = self.kind, error = failure, "a watch failed; it is retried until it works");
            self.logged.insert(failure, Instant::now());
        }
    }

    pub(super) fn handle(&mut self, index: usize, event: Event<RawObject>) {
        let listing = self.listings.entry(index).or_default();
        match event {
            Event::Init => listing.relisted = Some(HashSet::new()),
            Event::InitApply(object) | Event::Apply(object) => {
                let reference = object.reference();
                if let Some(relisted) = &mut listing.relisted {
                    relisted.insert(reference.clone());
                }
                self.store(&reference, &object);
            }
            Event::Delete(object) => self.remove(&object.reference()),
            Event::InitDone => {
                listing.complete = true;
                self.writer.set_exists(true);
                self.writer.set_forbidden(self.namespaces.get(index).and_then(Option::as_deref), None);
                self.failures.set(&self.kind, index, None);
                if !std::mem::take(&mut self.logged).is_empty() {
                    info!(kind = self.kind, "the watch works again");
                }
                let relisted = listing.relisted.take().unwrap_or_default();
                let namespace = self.namespaces.get(index).cloned().flatten();
                for reference in self.store.references() {
                    let watched = namespace.is_none() || reference.namespace == namespace;
                    if watched && !relisted.contains(&reference) {
                        self.remove(&reference);
                    }
                }
            }
        }
    }

    fn store(&mut self, reference: &ObjectRef<K>, raw: &RawObject) {
        let known = self.store.get(reference);
        // A listing may show an object that the cache already holds.
        if known.as_ref().is_some_and(|known| {
            known.meta().resource_version == raw.meta().resource_version && known.meta().uid == raw.meta().uid
        }) {
            return;
        }
        let object = match (self.parse)(raw) {
            Ok(object) => object,
            Err(why) => {
                self.metrics.malformed(&self.kind);
                error!(kind = self.kind, object = %reference, "an object cannot be parsed and is ignored: {why}");
                return self.remove(reference);
            }
        };
        let same = known.is_some_and(|known| known.is_like(&object));
        let object = self.writer.apply(object);
        if !same {
            (self.changed)(&object);
        }
    }

    fn remove(&mut self, reference: &ObjectRef<K>) {
        if let Some(object) = self.writer.remove(reference) {
            (self.changed)(&object);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use codex_crds::ClusterPromotionPolicy;
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::{
        core::{ApiResource, ClusterResourceScope, NamespaceResourceScope},
        runtime::watcher::Event,
    };
    use serde_json::json;

    use super::{CacheWriter, RawObject, Reflector, WatchScope};
    use crate::{metrics::Metrics, tests::world::Api};

    #[tokio::test]
    async fn a_cluster_scoped_kind_has_one_watch_whatever_the_namespaces() {
        let (client, namespaces) = (Api::default().client(), ["a".to_owned(), "b".to_owned()]);
        let kind = ApiResource::erase::<ConfigMap>(&());
        assert_eq!(ClusterResourceScope::apis(&client, &namespaces, &kind).len(), 1);
        assert_eq!(NamespaceResourceScope::apis(&client, &namespaces, &kind).len(), 2);
        assert_eq!(NamespaceResourceScope::apis(&client, &[], &kind).len(), 1);
    }

    fn policy(version: &str) -> RawObject {
        RawObject::try_from(json!({
            "apiVersion": "codex-ml.dev/v1alpha1", "kind": "ClusterPromotionPolicy",
            "metadata": {"name": "a", "resourceVersion": version}, "spec": {"rings": []},
        }))
        .unwrap()
    }

    #[test]
    fn a_cluster_scoped_object_is_stored_and_removed_with_one_trigger_each() {
        let writer = CacheWriter::<ClusterPromotionPolicy>::default();
        let store = writer.as_reader();
        let changes = Arc::new(AtomicUsize::new(0));
        let count = changes.clone();
        let mut reflector = Reflector::new(writer, Metrics::new().unwrap(), RawObject::parse, move |_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        for event in [Event::Init, Event::InitApply(policy("1")), Event::InitDone, Event::Apply(policy("1"))] {
            reflector.handle(0, event);
        }
        assert_eq!((store.len(), changes.load(Ordering::Relaxed)), (1, 1));
        reflector.handle(0, Event::Delete(policy("2")));
        assert_eq!((store.len(), changes.load(Ordering::Relaxed)), (0, 2));
    }

    #[test]
    fn a_kind_that_the_cluster_lacks_has_no_objects_until_it_is_installed() {
        let (writer, metrics) = (CacheWriter::<ClusterPromotionPolicy>::default(), Metrics::new().unwrap());
        let store = writer.as_reader();
        let mut reflector = Reflector::new(writer, metrics, RawObject::parse, |_| {});
        for event in [Event::Init, Event::InitApply(policy("1")), Event::InitDone] {
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
