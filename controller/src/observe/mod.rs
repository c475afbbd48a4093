//! Observation: everything that the plans depend on, read from caches. A request is made only for what no cache holds: the
//! keys of a user's ConfigMap, a Deployment that lost the label by which the cache selects, and the EndpointSlices of a Service
//! without a selector, which others may have written without that label. The pods of a Job are listed where a late watch would cost work.

mod bundles;
mod cache;
mod cycles;
mod endpoints;
mod error;
mod evaluation;
mod formers;
mod kind;
mod policies;
mod queues;
mod raw;
mod reasoning_pod;
mod references;
mod reflector;
mod served;
mod shadows;
mod shelf;
#[cfg(test)]
pub(crate) mod simulated;
mod stores;
mod training_run;
mod triggers;
mod turns;
mod waiting;
mod warnings;
mod watches;
pub mod workers;

pub use cache::{Cache, CacheWriter, Listed, Name, Names, same_metadata};
pub use error::ObserveError;
pub use kind::{Kind, Observe};
pub use queues::{Queues, Requests};
pub use reflector::Failures;
pub use stores::{OURS, Stores, Writers, caught_up, caught_up_deleted, get};
pub use turns::{Given, Turns};
pub use warnings::Asked;
pub use watches::watch;
