//! Shared code of the tests and benchmarks on a real cluster: installing the operator, a namespace per test, waiting, the
//! audit log, the controller and Prometheus as processes, pictures of dashboards, documents. Does I/O.
//!
//! A test begins with [`Team::new`], which makes sure that the cluster runs and the operator of this working tree is
//! installed, and creates a namespace for the test under the `restricted` Pod Security level.

pub mod audit;
#[cfg(test)]
mod checking;
pub mod documents;
mod error;
pub mod host;
pub mod install;
pub mod objects;
pub mod peers;
pub mod picture;
pub mod process;
pub mod prometheus;
pub mod rights;
mod skip;
pub mod statements;
pub mod team;
pub mod wait;

pub use error::{Error, Result};
pub use install::Installation;
pub use skip::skip;
pub use team::Team;
