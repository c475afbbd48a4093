//! Watches into stores: one task per kind of object keeps a cache and tells who is to look again. Talks to the API
//! server through watches only; a list is made once per watch, and again only where the API server lost the thread.
//!
//! One object that cannot be read is logged, counted and left out; the others go on. Watches of several namespaces feed
//! one store: a namespace that is listed again adds and removes only what differs.

use std::{
    collections::{HashMap, HashSet},
    fmt::Debug,
    pin::Pin,
};

use futures::{Stream, StreamExt, stream::select_all};
use kube::{
    Api, Client, Resource, ResourceExt,
    core::{DeserializeGuard, NamespaceResourceScope, error_boundary::InvalidObject},
    runtime::{
        WatchStreamExt,
        reflector::{ObjectRef, Store, store::Writer},
        watcher::{self, Event, watcher},
    },
};
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;
use tracing::{debug, error, warn};

use crate::{error::chain, metrics::Metrics};

/// What a watch yields: an object, or why it cannot be read.
type Read<K> = Result<K, Box<InvalidObject>>;
/// The watches of one kind, each with the number of its namespace.
type Events<K> = Pin<Box<dyn Stream<Item = (usize, watcher::Result<Event<Read<K>>>)> + Send>>;

/// Which objects of a kind to follow.
#[derive(Clone)]
pub(super) struct Scope {
    /// The client.
    pub client: Client,
    /// The namespaces; all where there is none.
    pub namespaces: Vec<String>,
    /// A label selector; all objects where it is empty.
    pub labels: &'static str,
}

impl Scope {
    fn config(&self) -> watcher::Config {
        let config = watcher::Config::default();
        if self.labels.is_empty() { config } else { config.labels(self.labels) }
    }

    fn apis<W>(&self) -> Vec<Api<W>>
    where
        W: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        if self.namespaces.is_empty() {
            return vec![Api::all(self.client.clone())];
        }
        self.namespaces.iter().map(|namespace| Api::namespaced(self.client.clone(), namespace)).collect()
    }
}

/// Follows objects of ours that a person writes: one that cannot be read is left out.
pub(super) fn guarded<K>(scope: &Scope) -> Events<K>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let streams = scope.apis::<DeserializeGuard<K>>().into_iter().enumerate().map(|(index, api)| {
        let events = watcher(api, scope.config()).default_backoff();
        events.map(move |event| (index, event.map(|event| convert(event, |guard| guard.0.map_err(Box::new))))).boxed()
    });
    select_all(streams).boxed()
}

/// Follows objects whose shape the API server itself enforces, whole or by metadata only. A guard around these would
/// double the code that reads them.
pub(super) fn objects<K>(scope: &Scope) -> Events<K>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let streams = scope.apis::<K>().into_iter().enumerate().map(|(index, api)| {
        let events = watcher(api, scope.config()).default_backoff();
        events.map(move |event| (index, event.map(|event| convert(event, Ok)))).boxed()
    });
    select_all(streams).boxed()
}

fn convert<W, K>(event: Event<W>, read: impl Fn(W) -> Read<K>) -> Event<Read<K>> {
    match event {
        Event::Apply(object) => Event::Apply(read(object)),
        Event::Delete(object) => Event::Delete(read(object)),
        Event::Init => Event::Init,
        Event::InitApply(object) => Event::InitApply(read(object)),
        Event::InitDone => Event::InitDone,
    }
}

/// Keeps a store and tells who is to look again.
pub(super) struct Follower<K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    kind: String,
    writer: Writer<K>,
    store: Store<K>,
    strip: fn(&mut K),
    wake: Box<dyn Fn(&K) + Send>,
    metrics: Metrics,
    /// What each namespace holds.
    known: HashMap<usize, Listing<K>>,
}

/// What one watch has shown.
struct Listing<K: Resource<DynamicType = ()>> {
    known: HashSet<ObjectRef<K>>,
    /// What it has shown again, while it is being listed again.
    fresh: Option<HashSet<ObjectRef<K>>>,
    /// Whether it has been listed to the end at least once.
    complete: bool,
}

impl<K: Resource<DynamicType = ()>> Default for Listing<K> {
    fn default() -> Self {
        Self { known: HashSet::new(), fresh: None, complete: false }
    }
}

impl<K> Follower<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + 'static,
{
    /// `strip` takes away what nobody needs, before an object is kept; `wake` hears of every change and every end.
    pub(super) fn new(metrics: Metrics, strip: fn(&mut K), wake: impl Fn(&K) + Send + 'static) -> (Store<K>, Self) {
        let mut writer = Writer::<K>::default();
        // The store counts as ready at once: when the first listing is complete, `run` says.
        writer.apply_watcher_event(&Event::Init);
        writer.apply_watcher_event(&Event::InitDone);
        let store = writer.as_reader();
        let kind = K::kind(&()).into_owned();
        let follower =
            Self { kind, writer, store: store.clone(), strip, wake: Box::new(wake), metrics, known: HashMap::new() };
        (store, follower)
    }

    /// Follows until the watches end, which they do not. `complete` is told once every namespace was listed.
    pub(super) async fn run(mut self, namespaces: usize, mut events: Events<K>, complete: oneshot::Sender<()>) {
        let mut complete = Some(complete);
        while let Some((index, event)) = events.next().await {
            match event {
                Ok(event) => self.take(index, event),
                // What every watch meets now and then: the API server no longer knows where it stood.
                Err(watcher::Error::WatchError(status)) if status.code == 410 => {
                    debug!(kind = self.kind, "the watch lost its place and lists again");
                }
                Err(failure) => {
                    self.metrics.watch_failed(&self.kind);
                    warn!(kind = self.kind, error = chain(&failure), "a watch failed; it is tried again");
                }
            }
            let listed = self.known.values().filter(|listing| listing.complete).count();
            if listed == namespaces.max(1)
                && let Some(complete) = complete.take()
            {
                debug!(kind = self.kind, objects = self.store.len(), "listed");
                // Nobody waits any more only when the process stops.
                let _ = complete.send(());
            }
        }
    }

    fn take(&mut self, index: usize, event: Event<Read<K>>) {
        let listing = self.known.entry(index).or_default();
        match event {
            Event::Init => listing.fresh = Some(HashSet::new()),
            Event::InitApply(read) | Event::Apply(read) => {
                let reference = match &read {
                    Ok(object) => ObjectRef::from_obj(object),
                    Err(invalid) => {
                        let name = invalid.metadata.name.as_deref().unwrap_or_default();
                        ObjectRef::new(name).within(invalid.metadata.namespace.as_deref().unwrap_or_default())
                    }
                };
                match read {
                    Ok(object) => {
                        if let Some(fresh) = &mut listing.fresh {
                            fresh.insert(reference.clone());
                        }
                        listing.known.insert(reference.clone());
                        self.keep(&reference, object);
                    }
                    Err(invalid) => {
                        self.metrics.malformed(&self.kind);
                        error!(kind = self.kind, object = %reference, "an object cannot be read and is left alone: {invalid}");
                        listing.known.remove(&reference);
                        self.drop(&reference);
                    }
                }
            }
            Event::Delete(read) => {
                let metadata = match &read {
                    Ok(object) => object.meta(),
                    Err(invalid) => &invalid.metadata,
                };
                let reference = ObjectRef::new(metadata.name.as_deref().unwrap_or_default())
                    .within(metadata.namespace.as_deref().unwrap_or_default());
                listing.known.remove(&reference);
                self.drop(&reference);
            }
            Event::InitDone => {
                listing.complete = true;
                let fresh = listing.fresh.take().unwrap_or_default();
                let gone: Vec<_> = listing.known.difference(&fresh).cloned().collect();
                listing.known = fresh;
                for reference in gone {
                    self.drop(&reference);
                }
            }
        }
    }

    fn keep(&mut self, reference: &ObjectRef<K>, mut object: K) {
        let before = self.store.get(reference);
        // Listed again, and nothing new.
        if before.is_some_and(|before| {
            before.resource_version() == object.resource_version() && before.uid() == object.uid()
        }) {
            return;
        }
        object.meta_mut().managed_fields = None;
        (self.strip)(&mut object);
        let event = Event::Apply(object);
        self.writer.apply_watcher_event(&event);
        if let Event::Apply(object) = &event {
            (self.wake)(object);
        }
    }

    fn drop(&mut self, reference: &ObjectRef<K>) {
        let Some(object) = self.store.get(reference) else { return };
        self.writer.apply_watcher_event(&Event::Delete(K::clone(&object)));
        (self.wake)(&object);
    }
}
