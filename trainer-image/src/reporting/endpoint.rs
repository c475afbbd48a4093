//! The controller's report endpoint: one HTTPS request with this pod's token. Does I/O, and blocks.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ureq::{
    Agent,
    tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem},
};

/// The most that one request may take: a slow controller is asked again, with a newer state.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The most of an answer's body that is read, for the sentence of a refusal.
const ANSWER: u64 = 1024;

/// Why a report was not taken.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// A file of the pod contract.
    #[error("reading {path:?} failed")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// No certificate where there should be one.
    #[error("{path:?} holds no certificate in PEM form")]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// No whole answer came.
    #[error("no answer from {url}")]
    NoAnswer {
        /// The address.
        url: String,
        /// What happened.
        #[source]
        source: ureq::Error,
    },
    /// The endpoint asks to come back, or failed itself.
    #[error("{url} answered {status}: {body}")]
    NotNow {
        /// The address.
        url: String,
        /// The HTTP status.
        status: u16,
        /// What it said.
        body: String,
    },
    /// The endpoint understood and does not take it.
    #[error("{url} refused with {status}: {body}")]
    Refused {
        /// The address.
        url: String,
        /// The HTTP status.
        status: u16,
        /// What it said.
        body: String,
    },
}

/// Where reports go.
#[derive(Debug)]
pub(super) struct Endpoint {
    url: String,
    authority: PathBuf,
    token: PathBuf,
    client: Client,
}

/// An HTTPS client and the certificates that it trusts.
#[derive(Debug)]
struct Client {
    trusted: Vec<u8>,
    agent: Agent,
}

impl Endpoint {
    /// An endpoint whose certificate `authority` (a PEM file) vouches for; `token` is read again for each request.
    pub(super) fn new(url: String, authority: PathBuf, token: PathBuf) -> Result<Self, SendError> {
        let client = Client::new(&authority, read(&authority)?)?;
        Ok(Self { url, authority, token, client })
    }

    /// Posts a report and waits for the answer.
    pub(super) fn send(&mut self, body: &[u8]) -> Result<(), SendError> {
        // Both files are replaced under a running pod: the kubelet renews the token, the controller its certificate.
        let trusted = read(&self.authority)?;
        if trusted != self.client.trusted {
            self.client = Client::new(&self.authority, trusted)?;
        }
        let token = read(&self.token)?;
        let token = String::from_utf8_lossy(&token);
        let no_answer = |source| SendError::NoAnswer { url: self.url.clone(), source };
        let mut answer = self
            .client
            .agent
            .post(&self.url)
            .header("authorization", format!("Bearer {}", token.trim()))
            .header("content-type", "application/json")
            .send(body)
            .map_err(no_answer)?;
        let status = answer.status().as_u16();
        if answer.status().is_success() {
            return Ok(());
        }
        let body = answer.body_mut().with_config().limit(ANSWER).lossy_utf8(true).read_to_string();
        let (url, body) = (self.url.clone(), body.unwrap_or_default().trim().to_owned());
        // 408 and 429 mean "later", whatever the class of their numbers.
        Err(match status {
            400..=407 | 409..=428 | 430..=499 => SendError::Refused { url, status, body },
            _ => SendError::NotNow { url, status, body },
        })
    }
}

impl Client {
    fn new(authority: &Path, trusted: Vec<u8>) -> Result<Self, SendError> {
        let certificates: Vec<Certificate<'static>> = parse_pem(&trusted)
            .filter_map(|item| match item {
                Ok(PemItem::Certificate(certificate)) => Some(certificate),
                _ => None,
            })
            .collect();
        if certificates.is_empty() {
            return Err(SendError::NoCertificate { path: authority.to_owned() });
        }
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::Specific(Arc::new(certificates)))
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .build();
        let agent = Agent::config_builder()
            .tls_config(tls)
            .https_only(true)
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .timeout_global(Some(TIMEOUT))
            .build()
            .into();
        Ok(Self { trusted, agent })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, SendError> {
    fs::read(path).map_err(|source| SendError::Unreadable { path: path.to_owned(), source })
}
