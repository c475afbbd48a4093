//! What every reconciliation has at hand.

use std::{collections::HashSet, sync::Arc};

use codex_plan::Settings;
use jiff::Timestamp;
use kube::{Client, ResourceExt, runtime::events::Recorder};

use crate::{
    backoff::Backoff,
    by_uid::ByUid,
    inbox::Inbox,
    metrics::Metrics,
    observe::{Stores, Wake},
    seal::Seal,
    signer::Signer,
    unmended::Unmended,
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
    pub written: ByUid<Timestamp>,
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
        self.written.retain(&alive);
    }
}
