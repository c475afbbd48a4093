//! The Codex controller: `observe → plan → apply → report` for the kinds of `codex-ml.dev`.
//!
//! The pure crate `codex-plan` decides what to do; this crate does the I/O around it.

pub mod admission;
pub mod api;
pub mod apply;
pub mod backoff;
pub mod by_uid;
pub mod census;
pub mod cli;
pub mod clock;
pub mod context;
pub mod drift;
pub mod effects;
pub mod endpoint;
pub mod error;
pub mod fence;
pub mod flags;
pub mod health;
mod https;
pub mod inbox;
mod installations;
pub mod keyless;
mod kinds;
pub mod known;
pub mod leader;
pub mod lease;
pub mod ledger;
pub mod metrics;
pub mod observe;
pub mod operator;
pub mod ownership;
pub mod reconcile;
pub mod recorder;
pub mod report;
pub mod requests;
pub mod seal;
pub mod secrets;
pub mod signer;
pub mod tls;
pub mod traces;
pub mod unmended;

#[cfg(test)]
mod tests;

/// The field manager of children and of the controller's own objects.
pub const MANAGER: &str = "codex-controller";
/// The field manager of status.
pub const STATUS_MANAGER: &str = "codex-controller/status";
/// The version of this build.
pub const BUILD: &str = env!("CARGO_PKG_VERSION");
