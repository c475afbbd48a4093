//! Why a server does not serve, and what that means for another attempt. Pure.

use std::{io, net::SocketAddr, path::PathBuf, time::Duration};

use codex_provenance::manifest::ManifestError;
use codex_reports::{Failure, exit};
use codex_signing::{key::KeyError, verify::VerifyError};

use crate::{
    error::{CommandError, chain},
    model::ModelError,
};

/// Why a server does not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A bundle or the key is not there.
    #[error("the {what} in {path:?} cannot be read")]
    Unreadable {
        /// Which.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The key is none.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The model directory is refused.
    #[error("the model directory {path:?} is refused: {source}")]
    Manifest {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: ManifestError,
    },
    /// The bytes, the bundles, the key or the ring do not fit each other.
    #[error("the model is refused: {0}")]
    Verify(#[from] VerifyError),
    /// It is genuine and cannot be computed.
    #[error("the model cannot be loaded")]
    Model(#[source] ModelError),
    /// It was loaded and does not generate as it must.
    #[error("the self-check failed: {0}")]
    SelfCheck(String),
    /// The address is taken, say.
    #[error("cannot listen on {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// No signal handlers.
    #[error("SIGTERM cannot be listened for")]
    Signals(#[source] io::Error),
    /// The metrics could not be registered.
    #[error("metrics cannot be kept")]
    Metrics(#[source] prometheus::Error),
    /// The engine could not start, or ended.
    #[error("the engine does not run")]
    Engine(#[source] io::Error),
    /// The listener ended.
    #[error("HTTP ended")]
    Http(#[source] io::Error),
    /// Requests took longer than the drain.
    #[error("{requests} requests were cut off: they did not finish within {} seconds", deadline.as_secs_f64())]
    CutOff {
        /// Under way or waiting.
        requests: usize,
        /// How long they had.
        deadline: Duration,
    },
}

impl ServeError {
    /// The CamelCase reason of a report.
    fn reason(&self) -> &'static str {
        match self {
            Self::Manifest { source: ManifestError::Unreadable { .. }, .. } => "ModelUnreadable",
            Self::Unreadable { .. } | Self::Key(_) | Self::Manifest { .. } | Self::Verify(_) => "VerificationFailed",
            Self::Model(_) => "ModelUnusable",
            Self::SelfCheck(_) => "SelfCheckFailed",
            Self::Listen { .. } => "AddressUnavailable",
            Self::Signals(_) | Self::Metrics(_) | Self::Engine(_) | Self::Http(_) => "ServerFailed",
            Self::CutOff { .. } => "DrainDeadlineExceeded",
        }
    }

    /// The exit code: [`exit::BAD_INPUT`] where the same input must lead to the same end.
    pub fn exit(&self) -> i32 {
        match self.reason() {
            "VerificationFailed" | "ModelUnusable" | "SelfCheckFailed" => exit::BAD_INPUT,
            _ => exit::FAILED,
        }
    }

    /// What the controller is told.
    pub fn failure(&self) -> Failure {
        Failure { is_final: self.exit() == exit::BAD_INPUT, reason: self.reason().to_owned(), message: chain(self) }
    }
}

impl From<ServeError> for CommandError {
    fn from(error: ServeError) -> Self {
        Self { exit: error.exit(), source: error.into() }
    }
}
