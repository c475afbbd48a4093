//! Several installations in one cluster: at most one of them reconciles an object.
//!
//! Each installation has a Lease in its own namespace. The holder says in it which namespaces it watches, and whether it reconciles
//! their objects. Before a holder begins, it looks whether another one does, says that it does itself, and looks again: of two
//! that begin at the same time, none overlooks the other.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use codex_crds::annotation;
use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, Client, ResourceExt, api::ListParams};
use tracing::warn;

use crate::{
    error::answered,
    lease::{Seen, holder, is_expired},
    secrets::metadata,
};

/// The label selector of the Leases of all installations.
const LEASES: &str = "app.kubernetes.io/name=codex-controller,app.kubernetes.io/component=lease";
/// The value of the label `app.kubernetes.io/component` of a Lease.
const COMPONENT: &str = "lease";

/// What this installation says in its Lease.
#[derive(Clone, Debug, Default)]
pub(crate) struct Installation {
    /// The namespaces that it watches; all namespaces if there are none.
    watches: Vec<String>,
    reconciles: Arc<AtomicBool>,
}

impl Installation {
    pub(crate) fn watching(namespaces: &[String]) -> Self {
        Self { watches: namespaces.to_vec(), reconciles: Arc::default() }
    }

    /// Sets what the Lease says from its next write on.
    pub(crate) fn reconciles(&self, reconciles: bool) {
        self.reconciles.store(reconciles, Ordering::Relaxed);
    }

    /// Marks the Lease `lease`.
    pub(crate) fn mark(&self, lease: &mut Lease) {
        lease.metadata.labels = metadata("", COMPONENT).labels;
        let annotations = lease.metadata.annotations.get_or_insert_default();
        annotations.insert(annotation::WATCHES.to_owned(), self.watches.join(","));
        annotations.insert(annotation::RECONCILES.to_owned(), self.reconciles.load(Ordering::Relaxed).to_string());
    }

    /// Whether the installation with this Lease reconciles objects that this one watches.
    fn meets(&self, other: &Lease) -> bool {
        let said = |annotation: &str| other.annotations().get(annotation).map(String::as_str).unwrap_or_default();
        let watches = said(annotation::WATCHES);
        let overlap = self.watches.is_empty()
            || watches.is_empty()
            || watches.split(',').any(|namespace| self.watches.iter().any(|watched| watched == namespace));
        overlap && !holder(other).is_empty() && said(annotation::RECONCILES) == "true"
    }
}

/// The Leases of other installations, as they were seen last.
#[derive(Default)]
pub(crate) struct Others {
    seen: HashMap<String, Option<Seen>>,
    /// Whether it was logged that they cannot be read.
    logged: bool,
}

impl Others {
    /// Returns a sentence about another installation that reconciles objects that this one watches. Without the right to list
    /// Leases, there is none.
    ///
    /// # Errors
    /// When the Leases cannot be listed for another reason.
    pub(crate) async fn rival(
        &mut self,
        client: Client,
        own: &Installation,
        (namespace, name): (&str, &str),
    ) -> Result<Option<String>, kube::Error> {
        let api: Api<Lease> = Api::all(client);
        let leases = match api.list(&ListParams::default().labels(LEASES)).await {
            Err(failure) if answered(&failure, 403) => {
                if !std::mem::replace(&mut self.logged, true) {
                    warn!(
                        "the Leases of other installations cannot be listed, so two installations may reconcile the same \
                         objects: grant the ClusterRole codex-controller the verb list on leases"
                    );
                }
                return Ok(None);
            }
            leases => leases?.items,
        };
        for lease in leases {
            let (of, called) = (lease.namespace().unwrap_or_default(), lease.name_any());
            if (of.as_str(), called.as_str()) == (namespace, name) || !own.meets(&lease) {
                continue;
            }
            if is_expired(&lease, self.seen.entry(format!("{of}/{called}")).or_default()) {
                continue;
            }
            let watched = lease.annotations().get(annotation::WATCHES).filter(|watched| !watched.is_empty());
            let watched =
                watched.map_or_else(|| "all namespaces".to_owned(), |names| format!("the namespaces {names}"));
            return Ok(Some(format!(
                "another controller owns the objects: the holder {} of the Lease {of}/{called} reconciles those in {watched}. \
                 Remove one of the two installations, or give each its own namespaces in CODEX_WATCH_NAMESPACES",
                holder(&lease)
            )));
        }
        Ok(None)
    }
}
