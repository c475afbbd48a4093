//! Errors of downloads from a model hub. Pure. None of them holds the token, or the query of an address, which may be a
//! signature.

use std::{path::PathBuf, time::Duration};

use codex_provenance::manifest::ManifestError;

use super::Repository;
use crate::{atomic_fs::FileError, error::CommandError};

/// A model cannot be downloaded.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The address of the hub is invalid.
    #[error("the endpoint of the hub is {value:?}: {right}")]
    Endpoint {
        /// The address.
        value: String,
        /// What is allowed.
        right: &'static str,
    },
    /// The token is not one.
    #[error("HF_TOKEN holds a character that no token has: set it to the token alone, such as hf_…")]
    Token,
    /// The token would travel in clear text.
    #[error(
        "HF_TOKEN is set, but the endpoint of the hub is {0}: use https, so that the token is not sent in clear text"
    )]
    PlainText(String),
    /// The file of trusted certificates cannot be used.
    #[error("SSL_CERT_FILE {0:?} has no certificate in PEM format")]
    NoCertificate(PathBuf),
    /// The hub does not accept the caller (401).
    #[error("the hub refuses {repository} with 401: {}", if *token { UNAUTHORIZED } else { NO_TOKEN })]
    Unauthorized {
        /// The repository.
        repository: Repository,
        /// Whether a token was sent.
        token: bool,
    },
    /// The caller may not read the repository (403).
    #[error("the hub refuses {repository} with 403: {}", if *gated { GATED } else { FORBIDDEN })]
    Forbidden {
        /// The repository.
        repository: Repository,
        /// Whether its terms must be accepted first.
        gated: bool,
    },
    /// The repository, the revision or a file does not exist (404).
    #[error("the hub has no {what} {name}: correct the name")]
    NotFound {
        /// The kind of thing.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// The hub asks for fewer requests (429).
    #[error("the hub limits requests (429) for {repository}: try again later, or use a token")]
    TooMany {
        /// The repository.
        repository: Repository,
        /// How long the hub asks to wait.
        after: Option<Duration>,
    },
    /// The hub answers with another status.
    #[error("{url} answered with status {status}")]
    Status {
        /// The address without its query.
        url: String,
        /// The HTTP status.
        status: u16,
        /// How long the server asks to wait.
        after: Option<Duration>,
    },
    /// There is no complete answer.
    #[error("the connection to {url} failed")]
    NoAnswer {
        /// The address without its query.
        url: String,
        /// The client's error.
        #[source]
        source: Box<ureq::Error>,
    },
    /// A body ended too early.
    #[error("the connection to {url} was cut")]
    Cut {
        /// The address without its query.
        url: String,
        /// The error of the connection.
        #[source]
        source: std::io::Error,
    },
    /// A redirect leads nowhere.
    #[error("{url} redirects {why}")]
    Redirect {
        /// The address without its query.
        url: String,
        /// What is wrong.
        why: &'static str,
    },
    /// The answer is not what a hub says.
    #[error("{url} answered with something else than a hub: {why}")]
    Answer {
        /// The address without its query.
        url: String,
        /// What is wrong.
        why: String,
    },
    /// The repository has no weights that are loaded.
    #[error(
        "{repository} has no model.safetensors and no model.safetensors.index.json{}: use a repository with safetensors, or convert the weights",
        pickled(files)
    )]
    NoWeights {
        /// The repository.
        repository: Repository,
        /// Weights as pickle, which would run code.
        files: Vec<String>,
    },
    /// The repository has no file that a base needs.
    #[error("{repository} has no {file}, which a base needs: use a repository in the form of `transformers`")]
    NoFile {
        /// The repository.
        repository: Repository,
        /// The file.
        file: String,
    },
    /// The index of the weights names a file elsewhere.
    #[error(
        "model.safetensors.index.json names {0:?}: only files beside it, with names that end in .safetensors, are downloaded"
    )]
    Shard(String),
    /// The index of the weights cannot be read.
    #[error("model.safetensors.index.json cannot be read")]
    Index(#[source] serde_json::Error),
    /// The volume is too small.
    #[error("{path:?} has {free} free bytes, but {needed} more are downloaded: free space, or enlarge the claim")]
    Space {
        /// The directory.
        path: PathBuf,
        /// Free bytes.
        free: u64,
        /// Missing bytes.
        needed: u64,
    },
    /// A file has another size than the hub says.
    #[error("{file} has {found} bytes, but the hub says {expected}: the download is discarded")]
    Size {
        /// The file.
        file: String,
        /// Its size.
        found: u64,
        /// The size that the hub says.
        expected: u64,
    },
    /// A file has another hash than the hub says.
    #[error("{file} has the hash {found}, but the hub says {expected}: the download is discarded")]
    Hash {
        /// The file.
        file: String,
        /// Its hash.
        found: String,
        /// The hash that the hub says.
        expected: String,
    },
    /// The hub serves another commit than was asked for.
    #[error("the hub has {repository} at the commit {found}, but {expected} is downloaded: try again")]
    Commit {
        /// The repository.
        repository: Repository,
        /// The commit that the hub serves.
        found: String,
        /// The commit that is wanted.
        expected: String,
    },
    /// The directory exists.
    #[error("{0:?} exists: name a directory that does not exist yet")]
    Exists(PathBuf),
    /// Another process downloads into the directory.
    #[error("another process downloads into {0:?}: wait for it")]
    Busy(PathBuf),
    /// The downloaded model has another digest.
    #[error("{repository} has the model digest {found}, but {expected} is required; the files stay in {path:?}")]
    Digest {
        /// The repository.
        repository: String,
        /// Where the files are.
        path: PathBuf,
        /// The digest of the files.
        found: codex_provenance::ModelDigest,
        /// The required digest.
        expected: codex_provenance::ModelDigest,
    },
    /// The downloaded files cannot be listed.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// The process was asked to end. What was downloaded is kept.
    #[error("interrupted")]
    Interrupted,
}

const NO_TOKEN: &str = "it does not exist, or is private or gated: correct the name, or provide a token in HF_TOKEN";
const UNAUTHORIZED: &str = "the token is not valid: create another one with read access";
const GATED: &str = "its terms must be accepted first: open its page with the account of the token, and accept them";
const FORBIDDEN: &str = "the token may not read it: use one of an account that can";

fn pickled(files: &[String]) -> String {
    if files.is_empty() { String::new() } else { format!(" ({} could run code and is not loaded)", files.join(", ")) }
}

impl HubError {
    /// Whether another request can succeed soon.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Status { status, .. } => matches!(status, 408 | 425 | 500..=599),
            Self::NoAnswer { source, .. } => !matches!(**source, ureq::Error::Tls(_) | ureq::Error::InvalidProxyUrl),
            Self::TooMany { .. } | Self::Cut { .. } | Self::Size { .. } | Self::Hash { .. } => true,
            _ => false,
        }
    }

    /// Whether every further attempt fails in the same way.
    pub(crate) fn is_final(&self) -> bool {
        let passing = matches!(
            self,
            Self::File(_)
                | Self::Space { .. }
                | Self::Busy(_)
                | Self::Interrupted
                | Self::Status { .. }
                | Self::NoAnswer { .. }
                | Self::Commit { .. }
        );
        !passing && !self.is_transient()
    }

    /// Returns how long the server asks to wait.
    pub(super) fn after(&self) -> Option<Duration> {
        match self {
            Self::TooMany { after, .. } | Self::Status { after, .. } => *after,
            _ => None,
        }
    }
}

impl From<HubError> for CommandError {
    fn from(error: HubError) -> Self {
        match error {
            HubError::File(error) => error.into(),
            error if error.is_final() => Self::bad_input(error),
            error => Self::failed(error),
        }
    }
}
