//! Client of the controller's report endpoint: HTTPS with this pod's token. Does blocking I/O.

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

/// Timeout of a request. A later request has a newer state.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The most bytes of a response body that are read.
const ANSWER: u64 = 1024;

/// The reasons for which a report was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// A file of the pod contract cannot be read.
    #[error("reading {path:?} failed")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The I/O error.
        #[source]
        source: io::Error,
    },
    /// The file has no certificate.
    #[error("{path:?} has no certificate in PEM format")]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// There was no complete response.
    #[error("no response from {url}")]
    NoAnswer {
        /// The address.
        url: String,
        /// The client's error.
        #[source]
        source: ureq::Error,
    },
    /// The endpoint asks for a retry, or failed.
    #[error("{url} returned {status}: {body}")]
    NotNow {
        /// The address.
        url: String,
        /// The HTTP status.
        status: u16,
        /// The response body.
        body: String,
    },
    /// The endpoint refuses the report.
    #[error("{url} refused with {status}: {body}")]
    Refused {
        /// The address.
        url: String,
        /// The HTTP status.
        status: u16,
        /// The response body.
        body: String,
    },
}

/// The endpoint for reports.
#[derive(Debug)]
pub(super) struct Endpoint {
    url: String,
    authority: PathBuf,
    token: PathBuf,
    client: Client,
}

/// An HTTPS client and its trusted certificates.
#[derive(Debug)]
struct Client {
    trusted: Vec<u8>,
    agent: Agent,
}

impl Endpoint {
    /// Makes a client that trusts the certificates in the PEM file `authority`. `token` is read for each request.
    pub(super) fn new(url: String, authority: PathBuf, token: PathBuf) -> Result<Self, SendError> {
        let client = Client::new(&authority, read(&authority)?)?;
        Ok(Self { url, authority, token, client })
    }

    /// Posts a report and waits for the response.
    pub(super) fn send(&mut self, body: &[u8]) -> Result<(), SendError> {
        // Both files change while the pod runs: the kubelet renews the token, the controller its certificate.
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
        // 408 and 429 ask for a retry although they are 4xx.
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
