//! Client of the controller's report endpoint: HTTPS with this pod's token and this process's signatures. Does blocking I/O.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use codex_reports::{CHALLENGE_HEADER, KEY_HEADER, SIGNATURE_HEADER, signed_message};
use ureq::{
    Agent,
    tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem},
};

/// Timeout of a request. A later request has a newer state.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The most bytes of a response body that are read.
const ANSWER: u64 = 1024;

/// The status that asks for a signature.
const SIGN: u16 = 428;

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
    /// The system has no random bytes.
    #[error("no key for reports can be generated")]
    NoKey,
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
    /// The key of this process. The controller accepts no reports of another one for this pod.
    key: Ed25519KeyPair,
    /// The newest challenge.
    challenge: Option<String>,
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
        let key = Ed25519KeyPair::generate().map_err(|_| SendError::NoKey)?;
        Ok(Self { url, authority, token, client, key, challenge: None })
    }

    /// Posts a report and waits for the response. Signs it again at once if the endpoint has another challenge.
    pub(super) fn send(&mut self, body: &[u8]) -> Result<(), SendError> {
        let signed = self.challenge.clone();
        match self.post(body) {
            Err(SendError::Refused { status: SIGN, .. }) if self.challenge.is_some() && self.challenge != signed => {
                self.post(body)
            }
            sent => sent,
        }
    }

    fn post(&mut self, body: &[u8]) -> Result<(), SendError> {
        // Both files change while the pod runs: the kubelet renews the token, the controller its certificate.
        let trusted = read(&self.authority)?;
        if trusted != self.client.trusted {
            self.client = Client::new(&self.authority, trusted)?;
        }
        let token = read(&self.token)?;
        let token = String::from_utf8_lossy(&token);
        let no_answer = |source| SendError::NoAnswer { url: self.url.clone(), source };
        let mut request = self
            .client
            .agent
            .post(&self.url)
            .header("authorization", format!("Bearer {}", token.trim()))
            .header("content-type", "application/json")
            .header(KEY_HEADER, hex::encode(self.key.public_key()));
        if let Some(challenge) = &self.challenge {
            let signature = self.key.sign(&signed_message(challenge, body));
            request = request.header(CHALLENGE_HEADER, challenge).header(SIGNATURE_HEADER, hex::encode(signature));
        }
        let mut answer = request.send(body).map_err(no_answer)?;
        let challenge = answer.headers().get(CHALLENGE_HEADER).and_then(|challenge| challenge.to_str().ok());
        self.challenge = challenge.map(str::to_owned).or(self.challenge.take());
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
