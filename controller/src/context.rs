//! What every reconciliation has at hand.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
};

use codex_plan::Settings;
use jiff::Timestamp;
use kube::{Client, ResourceExt, runtime::events::Recorder};

use crate::{
    apply::Unmended,
    backoff::Backoff,
    endpoint::Inbox,
    metrics::Metrics,
    observe::{Stores, Wake},
    seal::Seal,
    signer::Signer,
};

/// What every reconciliation has at hand.
pub struct Context {
    /// The client.
    pub client: Client,
    /// What the controller was started with.
    pub settings: Arc<Settings>,
    /// The caches.
    pub stores: Arc<Stores>,
    /// Where those who have to look again are queued.
    pub wake: Wake,
    /// The reports of pods.
    pub inbox: Arc<Inbox>,
    /// Who signs.
    pub signer: Arc<Signer>,
    /// How own children are known.
    pub seal: Seal,
    /// The one recorder of Events.
    pub recorder: Recorder,
    /// The counters.
    pub metrics: Metrics,
    /// Failures in a row.
    pub backoff: Backoff,
    /// Children that did not become what was planned.
    pub unmended: Unmended,
    /// When the status of each object was written.
    pub written: Written,
}

impl Context {
    /// The time.
    pub fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    /// Forgets what is remembered about objects that are gone.
    pub fn sweep(&self) {
        let mut alive = HashSet::new();
        alive.extend(self.stores.runs.state().iter().filter_map(|object| object.uid()));
        alive.extend(self.stores.evaluations.state().iter().filter_map(|object| object.uid()));
        alive.extend(self.stores.pods.state().iter().filter_map(|object| object.uid()));
        self.inbox.retain(&alive);
        self.backoff.retain(&alive);
        self.unmended.retain(&alive);
        self.written.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|uid, _| alive.contains(uid));
    }
}

/// When this process last wrote the status of each object, by uid.
#[derive(Debug, Default)]
pub struct Written(Mutex<HashMap<String, Timestamp>>);

impl Written {
    /// When; none when it has not.
    pub fn at(&self, uid: &str) -> Option<Timestamp> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(uid).copied()
    }

    /// It was written.
    pub fn set(&self, uid: &str, at: Timestamp) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(uid.to_owned(), at);
    }
}
