//! Errors of `codex serve`, with their exit codes and report reasons. Pure.

use std::{io, net::SocketAddr, path::PathBuf, time::Duration};

use codex_provenance::{ModelDigest, Sha256, manifest::ManifestError, text::counted};
use codex_reports::{Failure, exit};
use codex_signing::{key::KeyError, keyless::KeylessError, verify::VerifyError};

use super::{access::KeysError, filter::FilterError, tls::TlsError};
use crate::{
    atomic_fs::FileError,
    error::{CommandError, chain},
    model::{ModelError, NotReproduced},
    overlap::Overlap,
};

/// The reasons for which a server does not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A bundle or the key cannot be read.
    #[error("the {what} {path:?} cannot be read")]
    Unreadable {
        /// The name of the file's role.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// The I/O error.
        #[source]
        source: io::Error,
    },
    /// A file that the server appends to is in one of its inputs.
    #[error(transparent)]
    Overlap(#[from] Overlap),
    /// The public key is invalid.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The trusted root or an identity is invalid.
    #[error(transparent)]
    Keyless(#[from] KeylessError),
    /// The trusted root is another one than required.
    #[error("the trusted root {path:?} has the digest {found}, but {expected} is required")]
    Root {
        /// Its path.
        path: PathBuf,
        /// Its digest.
        found: Sha256,
        /// The digest of --trusted-root-digest.
        expected: Sha256,
    },
    /// Identities and issuers do not belong together.
    #[error(
        "--certificate-identity is given {} and --certificate-oidc-issuer {}: give one issuer for each identity, in the same order",
        counted(*subjects, "time"),
        counted(*issuers, "time")
    )]
    Identities {
        /// Number of identities.
        subjects: usize,
        /// Number of issuers.
        issuers: usize,
    },
    /// The model directory is empty.
    #[error(
        "the model {expected} is to be served, but {path:?} contains no files: the volume was replaced or emptied; restore its \
         files from a backup, or train and evaluate again"
    )]
    Gone {
        /// Its path.
        path: PathBuf,
        /// The model's digest.
        expected: ModelDigest,
    },
    /// The model directory is refused.
    #[error("the model directory {path:?} is refused: {source}")]
    Manifest {
        /// Its path.
        path: PathBuf,
        /// The reason.
        #[source]
        source: ManifestError,
    },
    /// The bytes, the bundles, the key and the ring do not match.
    #[error("the model is refused: {0}")]
    Verify(#[from] VerifyError),
    /// The model is verified but cannot be loaded.
    #[error("the model cannot be loaded")]
    Model(#[source] ModelError),
    /// The self-check failed.
    #[error("the self-check failed: {0}")]
    SelfCheck(String),
    /// The model does not generate what its evaluator recorded.
    #[error(
        "the model does not reproduce the golden tokens of Evaluation {evaluation}: {why}; the same bytes generated other tokens when \
         they were judged, so the build, the kernels or the machine differ"
    )]
    Golden {
        /// Name of the Evaluation.
        evaluation: String,
        /// What differs.
        why: NotReproduced,
    },
    /// An argument of a signed model is missing.
    #[error("a signed model needs all of its arguments: see codex serve --help")]
    Arguments,
    /// An unsigned model may be reached from this machine only.
    #[error("--listen {0}: an unsigned model is served on a loopback address only; use 127.0.0.1:{port} or [::1]:{port}", port = .0.port())]
    Public(SocketAddr),
    /// A step has no room for all running requests.
    #[error(
        "--max-num-batched-tokens {tokens} is less than --slots {slots}: each running request needs one token of a step; use at \
         least {slots}"
    )]
    Budget {
        /// --max-num-batched-tokens.
        tokens: usize,
        /// --slots.
        slots: usize,
    },
    /// No request with a whole context fits into the cache.
    #[error(
        "--kv-cache {tokens} is less than the model's context of {context} tokens, which one request may need: use at least {context}"
    )]
    Cache {
        /// --kv-cache.
        tokens: usize,
        /// Tokens of the context.
        context: usize,
    },
    /// The API keys cannot be used.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The safety rules cannot be used.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// The certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Copies for shadows cannot be sent.
    #[error("copies of requests cannot be sent")]
    Mirror(#[source] io::Error),
    /// The file of traces cannot be used.
    #[error("--trace-store: traces cannot be written")]
    Traces(#[source] FileError),
    /// The file of failures cannot be used.
    #[error("--errors: failures cannot be written")]
    Errors(#[source] FileError),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The I/O error.
        #[source]
        source: io::Error,
    },
    /// The signal handlers cannot be installed.
    #[error("the signal handlers cannot be installed")]
    Signals(#[source] io::Error),
    /// The metrics cannot be registered.
    #[error("the metrics cannot be registered")]
    Metrics(#[source] prometheus::Error),
    /// The engine thread could not start, or ended.
    #[error("the engine thread is not running")]
    Engine(#[source] io::Error),
    /// The HTTP server failed.
    #[error("the HTTP server failed")]
    Http(#[source] io::Error),
    /// Requests took longer than `--drain-deadline`.
    #[error("{} did not finish within {} seconds and was aborted", counted(*requests, "request"), deadline.as_secs_f64())]
    CutOff {
        /// Number of running and waiting requests.
        requests: usize,
        /// `--drain-deadline`.
        deadline: Duration,
    },
}

impl ServeError {
    /// Returns the CamelCase reason for a report.
    fn reason(&self) -> &'static str {
        match self {
            Self::Manifest { source: ManifestError::Unreadable { .. }, .. } => "ModelUnreadable",
            Self::Unreadable { .. }
            | Self::Key(_)
            | Self::Keyless(_)
            | Self::Root { .. }
            | Self::Gone { .. }
            | Self::Manifest { .. }
            | Self::Verify(_) => "VerificationFailed",
            Self::Model(_) => "ModelUnusable",
            Self::SelfCheck(_) => "SelfCheckFailed",
            Self::Golden { .. } => "GoldenTokensDiffer",
            Self::Arguments
            | Self::Budget { .. }
            | Self::Cache { .. }
            | Self::Identities { .. }
            | Self::Keys(_)
            | Self::Filter(_)
            | Self::Tls(_)
            | Self::Traces(_)
            | Self::Errors(_)
            | Self::Overlap(_)
            | Self::Public(_) => "InvalidSettings",
            Self::Listen { .. } => "AddressUnavailable",
            Self::Signals(_) | Self::Metrics(_) | Self::Engine(_) | Self::Http(_) | Self::Mirror(_) => "ServerFailed",
            Self::CutOff { .. } => "DrainDeadlineExceeded",
        }
    }

    /// Returns the exit code: [`exit::BAD_INPUT`] if another attempt with the same input must fail, too.
    pub fn exit(&self) -> i32 {
        match self.reason() {
            "VerificationFailed" | "ModelUnusable" | "SelfCheckFailed" | "GoldenTokensDiffer" | "InvalidSettings" => {
                exit::BAD_INPUT
            }
            _ => exit::FAILED,
        }
    }

    /// Returns the failure for a report.
    pub fn failure(&self) -> Failure {
        Failure { is_final: self.exit() == exit::BAD_INPUT, reason: self.reason().to_owned(), message: chain(self) }
    }
}

impl From<ServeError> for CommandError {
    fn from(error: ServeError) -> Self {
        Self { exit: error.exit(), source: error.into() }
    }
}
