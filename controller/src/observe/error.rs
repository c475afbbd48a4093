//! Why an observation failed.

use crate::{
    error::{client_category, said},
    ledger::LedgerError,
};

/// Why an observation failed.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    /// A request to the API server failed.
    #[error("the {kind} {name} cannot be read: {}", said(source))]
    Client {
        /// The kind of the object.
        kind: &'static str,
        /// The name of the object.
        name: String,
        /// The client's error.
        #[source]
        source: kube::Error,
    },
    /// A kind that the plan depends on may not be listed.
    #[error("{0}")]
    Forbidden(String),
    /// The ledger of reads cannot be read.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

impl ObserveError {
    /// Returns the category for metrics and logs.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Client { source, .. } => client_category(source),
            Self::Forbidden(_) => "forbidden",
            Self::Ledger(source) => source.category(),
        }
    }
}
