//! Observing: what the plans depend on, from caches. I/O only where a cache cannot know: the keys of a user's ConfigMap,
//! while they matter, and servers that were rolled out and lost the label by which the caches select.

mod bundles;
mod follow;
mod kinds;
mod stores;
mod wake;
pub mod workers;

pub use kinds::Observe;
pub use stores::{OURS, Stores, Writers, caught_up, caught_up_deleted, get};
pub use wake::{Queues, Wake, requests};

use crate::error::{client_category, said};

/// Why something could not be observed.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    /// The API server.
    #[error("the {kind} {name} cannot be read: {}", said(source))]
    Client {
        /// The kind of what was asked for.
        kind: &'static str,
        /// Which.
        name: String,
        /// Why.
        #[source]
        source: kube::Error,
    },
}

impl ObserveError {
    /// A word for metric labels.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Client { source, .. } => client_category(source),
        }
    }
}
