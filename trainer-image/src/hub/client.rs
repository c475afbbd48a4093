//! The client of a hub: requests, redirects, and what a refusal means. Does blocking I/O.
//!
//! Redirects are followed here and not by the HTTP client: large files lie on other hosts, which must not see the token, and the
//! facts about a file are in the headers of the first answer.

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use backon::{BackoffBuilder as _, ExponentialBuilder};
use codex_reports::is_commit;
use serde::Deserialize;
use ureq::{
    Agent, Body,
    http::{
        HeaderMap, HeaderName, HeaderValue, Uri,
        header::{self, InvalidHeaderValue},
    },
    tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem},
};

use super::{Repository, error::HubError};
use crate::{artifacts::environment::variable, signals::Stop};

/// The hub of Hugging Face.
pub(super) const ENDPOINT: &str = "https://huggingface.co";
/// The variable with the token, as Hugging Face's libraries read it.
const TOKEN: &str = "HF_TOKEN";
/// The variable with a file of trusted certificates, as OpenSSL reads it.
const CERTIFICATES: &str = "SSL_CERT_FILE";
/// Redirects that are followed.
const MAX_REDIRECTS: usize = 8;
/// The most bytes of an answer in JSON.
const MAX_JSON: u64 = 32 << 20;
/// The longest wait between two requests.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// The longest wait that a hub may ask for.
const LONGEST_WAIT: Duration = Duration::from_secs(300);
/// Requests without progress after the first one.
const RETRIES: usize = 6;

/// A hub and how to ask it.
pub struct Hub {
    agent: Agent,
    /// Without a final slash.
    endpoint: String,
    token: Option<HeaderValue>,
    /// The first wait between two requests.
    pub(super) pause: Duration,
}

/// An answer after its redirects.
pub(super) struct Answer {
    pub(super) status: u16,
    /// Headers of the last answer.
    pub(super) headers: HeaderMap,
    pub(super) body: Body,
    /// What the hub itself said about the file.
    pub(super) facts: Facts,
    /// The address without its query.
    pub(super) url: String,
}

/// What a hub says about a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Facts {
    /// Its entity tag: SHA-256 of a large file, the Git hash of a small one.
    pub(super) tag: Option<String>,
    /// Size in bytes.
    pub(super) size: Option<u64>,
    /// Commit of the revision.
    pub(super) commit: Option<String>,
}

/// A revision of a repository.
#[derive(Debug, Deserialize)]
pub(super) struct Listing {
    /// The commit.
    pub(super) sha: String,
    /// The files.
    pub(super) siblings: Vec<Sibling>,
}

/// A file of a repository.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Sibling {
    /// Path in the repository.
    #[serde(rename = "rfilename")]
    pub(super) name: String,
    /// Size in bytes.
    #[serde(default)]
    pub(super) size: Option<u64>,
    /// Hash of Git.
    #[serde(default, rename = "blobId")]
    pub(super) blob: Option<String>,
    /// Set for large files.
    #[serde(default)]
    pub(super) lfs: Option<Large>,
}

/// A file that Git does not hold itself.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Large {
    /// SHA-256 in hexadecimal digits.
    pub(super) sha256: String,
    /// Size in bytes.
    #[serde(default)]
    pub(super) size: Option<u64>,
}

impl Hub {
    /// Returns the hub at `endpoint`, by default Hugging Face, with the token in `HF_TOKEN`. `SSL_CERT_FILE` names trusted
    /// certificates in place of Mozilla's.
    ///
    /// # Errors
    /// The endpoint, the token or the certificates are invalid, or the token would travel in clear text.
    pub fn of_environment(endpoint: Option<&str>) -> Result<Self, HubError> {
        Self::new(endpoint.unwrap_or(ENDPOINT), variable(TOKEN).as_deref(), variable(CERTIFICATES).map(PathBuf::from))
    }

    /// As [`of_environment`](Self::of_environment), with values in place of the variables.
    pub(super) fn new(endpoint: &str, token: Option<&str>, certificates: Option<PathBuf>) -> Result<Self, HubError> {
        let endpoint = endpoint.trim_end_matches('/');
        check_endpoint(endpoint)?;
        let token = token.map(bearer).transpose().map_err(|_| HubError::Token)?.flatten();
        if token.is_some() && !endpoint.starts_with("https://") && !is_loopback(endpoint) {
            return Err(HubError::PlainText(endpoint.to_owned()));
        }
        let agent = agent(endpoint, certificates)?;
        Ok(Self { agent, endpoint: endpoint.to_owned(), token, pause: Duration::from_secs(1) })
    }

    /// Returns the address of the hub, unless it is Hugging Face's.
    pub fn mirror(&self) -> Option<&str> {
        Some(self.endpoint.as_str()).filter(|endpoint| *endpoint != ENDPOINT)
    }

    /// Returns the commit and the files of a revision.
    ///
    /// # Errors
    /// The hub refuses the request, or its answer is malformed.
    pub(super) fn list(&self, repository: &Repository, revision: &str) -> Result<Listing, HubError> {
        let revision = revision.replace('/', "%2F");
        let url = format!("{}/api/models/{}/revision/{revision}?blobs=true", self.endpoint, repository.name);
        let mut answer = self.get(&url, None)?;
        self.accept(&answer, repository, None)?;
        let wrong = |why: String| HubError::Answer { url: answer.url.clone(), why };
        let read = answer.body.with_config().limit(MAX_JSON).read_to_vec();
        let bytes = read.map_err(|source| broken(&answer.url, source))?;
        // The parser's sentence could quote the answer.
        let listing: Listing = codex_json::from_slice(&bytes)
            .map_err(|_| wrong("its list of files is not JSON with sha and siblings".to_owned()))?;
        if !is_commit(&listing.sha) {
            return Err(wrong("its commit is not 40 hexadecimal digits".to_owned()));
        }
        Ok(listing)
    }

    /// Asks for a file at a commit, from the byte `first` on. The body is not read yet.
    ///
    /// # Errors
    /// The hub refuses the request. Status 416 is returned as an answer.
    pub(super) fn open(
        &self,
        repository: &Repository,
        commit: &str,
        file: &str,
        first: u64,
    ) -> Result<Answer, HubError> {
        let url = format!("{}/{}/resolve/{commit}/{file}", self.endpoint, repository.name);
        let answer = self.get(&url, (first > 0).then_some(first))?;
        if answer.status != 416 {
            self.accept(&answer, repository, Some(file))?;
        }
        Ok(answer)
    }

    /// Runs an action until it succeeds or fails for good. `progress` is compared before and after a failure: the count of
    /// attempts starts over when it grew.
    ///
    /// # Errors
    /// The last error of the action, or the process is asked to end.
    pub(super) fn retry<T>(
        &self,
        stop: Stop,
        progress: impl Fn() -> u64,
        mut action: impl FnMut() -> Result<T, HubError>,
    ) -> Result<T, HubError> {
        let pauses = || {
            let builder = ExponentialBuilder::new().with_min_delay(self.pause).with_max_delay(LONGEST_PAUSE);
            builder.with_jitter().with_max_times(RETRIES).build()
        };
        let mut left = pauses();
        loop {
            let before = progress();
            let error = match action() {
                Err(error) if error.is_transient() => error,
                ended => return ended,
            };
            if progress() > before {
                left = pauses();
            }
            let Some(pause) = left.next() else { return Err(error) };
            let pause = error.after().map_or(pause, |after| after.max(pause).min(LONGEST_WAIT));
            tracing::warn!(
                error = crate::error::chain(&error),
                seconds = pause.as_secs_f64(),
                "the hub is asked again"
            );
            wait(pause, stop)?;
        }
    }

    fn get(&self, url: &str, first: Option<u64>) -> Result<Answer, HubError> {
        let mut url = url.to_owned();
        let mut facts = Facts::default();
        for _ in 0..=MAX_REDIRECTS {
            let own = origin(&url) == origin(&self.endpoint);
            let mut request = self.agent.get(&url);
            if let Some(token) = self.token.as_ref().filter(|_| own) {
                request = request.header(header::AUTHORIZATION, token.clone());
            }
            if let Some(first) = first {
                request = request.header(header::RANGE, format!("bytes={first}-"));
            }
            let response = request.call().map_err(|source| broken(&url, source))?;
            let (parts, body) = response.into_parts();
            let status = parts.status.as_u16();
            if own {
                facts.learn(&parts.headers, parts.status.is_success());
            }
            if !matches!(status, 301 | 302 | 303 | 307 | 308) {
                return Ok(Answer { status, headers: parts.headers, body, facts, url: plain(&url).to_owned() });
            }
            url = redirected(&url, &parts.headers)?;
        }
        Err(HubError::Redirect { url: plain(&url).to_owned(), why: "too often" })
    }

    /// Checks the status of an answer about a repository or a file of it.
    fn accept(&self, answer: &Answer, repository: &Repository, file: Option<&str>) -> Result<(), HubError> {
        let repository = repository.clone();
        let code = answer.headers.get("x-error-code").and_then(|code| code.to_str().ok()).unwrap_or_default();
        let after = text(&answer.headers, &header::RETRY_AFTER).and_then(|seconds| seconds.parse().ok());
        let after = after.map(Duration::from_secs);
        Err(match answer.status {
            200 | 206 => return Ok(()),
            401 if code == "GatedRepo" && self.token.is_some() => HubError::Forbidden { repository, gated: true },
            401 => HubError::Unauthorized { repository, token: self.token.is_some() },
            403 => HubError::Forbidden { repository, gated: code == "GatedRepo" },
            404 => match (code, file) {
                ("RevisionNotFound", _) => HubError::NotFound {
                    what: "revision",
                    name: format!("{} of {}", repository.revision, repository.name),
                },
                (_, Some(file)) => HubError::NotFound { what: "file", name: format!("{file} in {repository}") },
                _ => HubError::NotFound { what: "repository or revision", name: repository.to_string() },
            },
            429 => HubError::TooMany { repository, after },
            status => HubError::Status { url: answer.url.clone(), status, after },
        })
    }
}

impl Facts {
    /// Learns from an answer of the hub itself. An answer with the file describes it in its own headers.
    fn learn(&mut self, headers: &HeaderMap, holds_file: bool) {
        let linked = HeaderName::from_static("x-linked-etag");
        // The tag of a redirect may be that of the pointer to the file.
        let tag = text(headers, &linked).or_else(|| text(headers, &header::ETAG).filter(|_| holds_file));
        let tag = tag.map(|tag| tag.trim_start_matches("W/").trim_matches('"').to_owned());
        self.tag = self.tag.take().or(tag);
        let length = || text(headers, &header::CONTENT_LENGTH).filter(|_| holds_file);
        let size = text(headers, &HeaderName::from_static("x-linked-size")).or_else(length);
        self.size = self.size.or_else(|| size?.parse().ok());
        let commit = text(headers, &HeaderName::from_static("x-repo-commit")).map(str::to_owned);
        self.commit = self.commit.take().or(commit);
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Makes the error of a request without an answer.
fn broken(url: &str, source: ureq::Error) -> HubError {
    HubError::NoAnswer { url: plain(url).to_owned(), source: Box::new(source) }
}

/// Returns an address without its query.
fn plain(url: &str) -> &str {
    url.split(['?', '#']).next().unwrap_or_default()
}

/// Returns scheme, host and port of an address, in lower case.
fn origin(url: &str) -> Option<(String, String, u16)> {
    let uri: Uri = url.parse().ok()?;
    let (scheme, host) = (uri.scheme_str()?.to_ascii_lowercase(), uri.host()?.to_ascii_lowercase());
    let port = uri.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 });
    Some((scheme, host, port))
}

/// Whether an address is one of this machine.
pub fn is_loopback(url: &str) -> bool {
    origin(url).is_some_and(|(_, host, _)| {
        let host = host.trim_matches(['[', ']']);
        host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
    })
}

/// Returns the address that an answer redirects to.
fn redirected(from: &str, headers: &HeaderMap) -> Result<String, HubError> {
    let refused = |why| HubError::Redirect { url: plain(from).to_owned(), why };
    let location = text(headers, &header::LOCATION).ok_or_else(|| refused("without an address"))?;
    let root = || {
        let end = from.find("://").and_then(|at| from[at + 3..].find('/').map(|slash| at + 3 + slash));
        &from[..end.unwrap_or(from.len())]
    };
    let to = if location.contains("://") {
        location.to_owned()
    } else if let Some(rest) = location.strip_prefix("//") {
        let scheme = from.split("://").next().unwrap_or("https");
        format!("{scheme}://{rest}")
    } else if location.starts_with('/') {
        format!("{}{location}", root())
    } else {
        let folder = plain(from).rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{folder}/{location}")
    };
    let Some((scheme, ..)) = origin(&to) else { return Err(refused("to an invalid address")) };
    match scheme.as_str() {
        "https" => Ok(to),
        "http" if from.starts_with("http://") => Ok(to),
        _ => Err(refused("to an address without https")),
    }
}

/// Checks the address of a hub.
fn check_endpoint(endpoint: &str) -> Result<(), HubError> {
    let wrong = |right| Err(HubError::Endpoint { value: endpoint.to_owned(), right });
    if endpoint.contains('@') {
        // It may be a password.
        let right = "remove the user, and provide a token in HF_TOKEN";
        return Err(HubError::Endpoint { value: "an address with a user".to_owned(), right });
    }
    match origin(endpoint) {
        Some((scheme, ..)) if scheme == "https" || scheme == "http" => {}
        _ => return wrong("write an address such as https://huggingface.co"),
    }
    if endpoint.contains(['?', '#']) || endpoint.chars().any(|letter| letter.is_whitespace() || letter.is_control()) {
        return wrong("write an address without ? and #, such as https://huggingface.co");
    }
    Ok(())
}

/// Returns a client of the server at `endpoint`. It follows no redirects, and trusts the certificates in the file `certificates` in
/// place of Mozilla's.
///
/// # Errors
/// The certificates are invalid.
pub fn agent(endpoint: &str, certificates: Option<PathBuf>) -> Result<Agent, HubError> {
    let roots = certificates.map_or(Ok(RootCerts::WebPki), trusted)?;
    let tls = TlsConfig::builder()
        .root_certs(roots)
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .build();
    let mut config = Agent::config_builder();
    if is_loopback(endpoint) {
        // No proxy reaches this machine's own addresses.
        config = config.proxy(None);
    }
    Ok(config
        .tls_config(tls)
        .http_status_as_error(false)
        .max_redirects(0)
        .user_agent(concat!("codex/", env!("CARGO_PKG_VERSION")))
        // Sizes and hashes are those of the file and not of its encoding.
        .accept_encoding("identity")
        .timeout_connect(Some(Duration::from_secs(30)))
        .timeout_recv_response(Some(Duration::from_secs(60)))
        .timeout_per_read(Some(Duration::from_secs(60)))
        .build()
        .into())
}

/// Returns the header of a token, without the spaces around it; `None` if it is empty. A Secret often ends with a line feed.
///
/// # Errors
/// The token has a character that no header may have.
pub(crate) fn bearer(token: &str) -> Result<Option<HeaderValue>, InvalidHeaderValue> {
    let token = token.trim();
    if token.is_empty() {
        return Ok(None);
    }
    let mut value = HeaderValue::from_str(&format!("Bearer {token}"))?;
    value.set_sensitive(true);
    Ok(Some(value))
}

/// Reads trusted certificates.
fn trusted(path: PathBuf) -> Result<RootCerts, HubError> {
    let bytes = fs::read(&path).map_err(crate::atomic_fs::FileError::of("reading SSL_CERT_FILE", &path))?;
    let certificates: Vec<Certificate<'static>> = parse_pem(&bytes)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if certificates.is_empty() {
        return Err(HubError::NoCertificate(path));
    }
    Ok(RootCerts::Specific(Arc::new(certificates)))
}

/// Waits, unless the process is asked to end.
fn wait(pause: Duration, stop: Stop) -> Result<(), HubError> {
    let step = Duration::from_millis(100);
    let mut left = pause;
    while !left.is_zero() {
        if stop() {
            return Err(HubError::Interrupted);
        }
        let now = left.min(step);
        std::thread::sleep(now);
        left -= now;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_are_resolved_and_never_lose_https() {
        let to = |from: &str, location: &str| {
            let headers = HeaderMap::from_iter([(header::LOCATION, HeaderValue::from_str(location).unwrap())]);
            redirected(from, &headers).map_err(|error| error.to_string())
        };
        let from = "https://hub.example:8443/org/name/resolve/main/a?b=/c";
        assert_eq!(to(from, "/x?y=1").unwrap(), "https://hub.example:8443/x?y=1");
        assert_eq!(to(from, "//cdn.example/x").unwrap(), "https://cdn.example/x");
        assert_eq!(to(from, "https://cdn.example/x").unwrap(), "https://cdn.example/x");
        assert_eq!(to(from, "b").unwrap(), "https://hub.example:8443/org/name/resolve/main/b");
        let told = to(from, "http://cdn.example/x").unwrap_err();
        assert_eq!(told, "https://hub.example:8443/org/name/resolve/main/a redirects to an address without https");
        assert!(to(from, "file:///etc/passwd").is_err());
        assert_eq!(to("http://a/b", "http://c/d").unwrap(), "http://c/d");
        assert!(redirected(from, &HeaderMap::new()).is_err());
    }

    #[test]
    fn invalid_endpoints_and_tokens_are_refused_without_quoting_secrets() {
        let refused = |endpoint: &str, token: Option<&str>| {
            let error = Hub::new(endpoint, token, None).err().unwrap_or_else(|| panic!("{endpoint} was accepted"));
            assert!(error.is_final());
            error.to_string()
        };
        for endpoint in ["", "huggingface.co", "ftp://hub", "https://", "https://hub/?a", "https://hub/#a"] {
            assert!(refused(endpoint, None).contains("such as https://huggingface.co"), "{endpoint}");
        }
        let told = refused("https://me:secret@hub", None);
        assert!(!told.contains("secret") && told.contains("HF_TOKEN"), "{told}");
        let told = refused("http://hub.example", Some("hf_secret"));
        assert!(told.contains("use https") && !told.contains("hf_secret"), "{told}");
        let told = refused("https://hub", Some("hf_\nsecret"));
        assert!(told.contains("HF_TOKEN") && !told.contains("secret"), "{told}");
        Hub::new("http://127.0.0.1:1/", Some(" hf_x\n"), None).unwrap();
        Hub::new("http://[::1]:1", Some("hf_x"), None).unwrap();
        assert_eq!(Hub::new("https://huggingface.co/", None, None).unwrap().mirror(), None);
        assert_eq!(Hub::new("https://hub/sub/", None, None).unwrap().mirror(), Some("https://hub/sub"));
    }

    #[test]
    fn certificates_of_a_file_are_trusted() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("ca.pem");
        let open = || Hub::new("https://hub", None, Some(file.clone()));
        assert!(open().err().unwrap().to_string().contains("SSL_CERT_FILE"));
        std::fs::write(&file, "no certificate").unwrap();
        assert!(matches!(open(), Err(HubError::NoCertificate(_))));
        let key = rcgen::generate_simple_self_signed(["hub".to_owned()]).unwrap();
        std::fs::write(&file, key.cert.pem()).unwrap();
        open().unwrap();
    }
}
