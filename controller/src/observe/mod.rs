//! Observing: what the plans depend on, from caches. I/O only where a cache cannot know: the keys of a user's ConfigMap,
//! while they matter.

mod bundles;
mod follow;
mod kinds;
mod stores;
mod wake;
pub mod workers;

pub use kinds::Observe;
pub use stores::{OURS, Stores, Writers, caught_up, caught_up_deleted, get};
pub use wake::{Queues, Wake, requests};

use crate::error::client_category;

/// Why something could not be observed.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    /// The API server.
    #[error("the ConfigMap {name} cannot be read: {source}")]
    ConfigMap {
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
            Self::ConfigMap { source, .. } => client_category(source),
        }
    }
}
