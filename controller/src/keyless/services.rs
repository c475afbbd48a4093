//! What sends requests to the services, and how they fail.

use codex_provenance::text::Printable;
use codex_signing::services::Service;
use futures::future::BoxFuture;

/// Why a service gave no answer that can be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Away {
    /// It cannot be reached, or does not answer in time.
    #[error("{service} at {url} does not answer: {}; it is asked again", Printable(why))]
    Silent {
        /// The service.
        service: Service,
        /// Its URL.
        url: String,
        /// Why.
        why: String,
    },
    /// It answered with a status that is none of success.
    #[error("{service} at {url} answered with status {status}: {}", Printable(told))]
    Refused {
        /// The service.
        service: Service,
        /// Its URL.
        url: String,
        /// The HTTP status.
        status: u16,
        /// The start of its answer.
        told: String,
    },
}

impl Away {
    /// Whether it may pass by itself.
    pub fn waits(&self) -> bool {
        match self {
            Self::Silent { .. } => true,
            Self::Refused { status, .. } => matches!(status, 408 | 429 | 500..=599),
        }
    }
}

/// What sends requests to the services.
pub trait Services: Send + Sync {
    /// Sends a request to a service and returns its answer.
    fn ask(&self, service: Service, body: Vec<u8>) -> BoxFuture<'_, Result<Vec<u8>, Away>>;
}
