//! The state that all reconciliations share.

use std::{collections::BTreeSet, sync::Arc};

use codex_plan::{Obstruction, RefusedPod, Settings};
use jiff::Timestamp;
use kube::Client;
use tokio::{sync::Mutex, time::Instant};

use crate::{
    admission::AdmissionWatch,
    backoff::Backoff,
    by_uid::ByUid,
    clock::Clock,
    endpoint::Writers,
    inbox::Inbox,
    known::Known,
    ledger::Ledger,
    metrics::Metrics,
    observe::{Asked, Queues, Stores},
    recorder::Recorder,
    seal::Seal,
    signer::Signer,
    traces::Traces,
    unmended::Unmended,
};

/// The state that all reconciliations share.
pub struct Context {
    /// The clock.
    pub clock: Clock,
    /// The client for the API server. It writes only while this process holds the Lease.
    pub client: Client,
    /// The settings of this controller that plans depend on.
    pub settings: Arc<Settings>,
    /// The caches.
    pub stores: Arc<Stores>,
    /// The queues of objects to be reconciled.
    pub queues: Queues,
    /// The newest report of each pod.
    pub inbox: Arc<Inbox>,
    /// The signer of bundles.
    pub signer: Arc<Signer>,
    /// The seal of Jobs, Deployments and statuses.
    pub seal: Seal,
    /// The reads of held-out problems.
    pub ledger: Ledger,
    /// The admission policies that protect evidence.
    pub admission: Arc<AdmissionWatch>,
    /// The pods of each object whose reports the endpoint refused.
    pub refused: ByUid<BTreeSet<RefusedPod>>,
    /// The process that reports for each pod.
    pub writers: Writers,
    /// The recorder of Events.
    pub recorder: Recorder,
    /// The metrics.
    pub metrics: Metrics,
    /// Where spans go that have ended; `None` if no collector is configured.
    pub traces: Option<Traces>,
    /// The backoff of objects whose reconciliation failed.
    pub backoff: Backoff,
    /// The children that kept drifting after an apply.
    pub unmended: Unmended,
    /// What is known about versions of objects.
    pub known: Known,
    /// When this process last wrote the status of each object.
    pub written: ByUid<Timestamp>,
    /// What kept apply from carrying out the last plan of each object.
    pub obstructions: ByUid<Obstruction>,
    /// The objects whose plan their own status does not change.
    pub settled: ByUid<Settled>,
    /// Held while what the objects of a namespace share is written: objects that are reconciled at the same time write it once.
    pub sharing: Mutex<()>,
    /// When the cluster was last asked why something does not start, and what it said, by the uid of the Job or the pod.
    pub asked: Asked,
}

/// An object whose plan stays the same now that its status is written: another reconciliation only because of that would do nothing.
#[derive(Clone, Debug)]
pub struct Settled {
    /// The resource version of the object with that status.
    pub version: String,
    /// When the plan asks to be made again.
    pub due: Option<Instant>,
}

impl Context {
    /// Returns the current time.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Drops the state of objects that no longer exist.
    pub fn sweep(&self) {
        // Objects that may not be listed may exist.
        if !self.stores.are_allowed() {
            return;
        }
        let alive = self.stores.uids();
        self.inbox.retain(&alive);
        self.backoff.retain(&alive);
        self.unmended.retain(&alive);
        self.written.retain(&alive);
        self.obstructions.retain(&alive);
        self.settled.retain(&alive);
        self.asked.forget();
        self.refused.retain(&alive);
        self.writers.retain(&alive);
    }
}
