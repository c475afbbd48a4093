//! The Codex controller: `observe → plan → apply → report` for the three kinds of `codex-ml.dev`.
//!
//! What to do is decided by the pure crate `codex-plan`; this crate does the I/O around it.

pub mod apply;
pub mod backoff;
pub mod cli;
pub mod context;
pub mod effects;
pub mod endpoint;
pub mod error;
pub mod health;
pub mod lease;
pub mod metrics;
pub mod observe;
pub mod operator;
pub mod reconcile;
pub mod report;
pub mod seal;
pub mod semantic;
pub mod signer;
pub mod tls;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

/// The field manager of children and of the controller's own objects.
pub const MANAGER: &str = "codex-controller";
/// The field manager of status.
pub const STATUS_MANAGER: &str = "codex-controller/status";
/// The version of this build.
pub const BUILD: &str = env!("CARGO_PKG_VERSION");

/// The labels of the controller's own objects.
pub(crate) fn labels(component: &str) -> BTreeMap<String, String> {
    let label = |key: &str, value: &str| (format!("app.kubernetes.io/{key}"), value.to_owned());
    [
        label("name", "codex-controller"),
        label("component", component),
        label("part-of", "codex"),
        label("managed-by", MANAGER),
    ]
    .into()
}
