//! Requests of a registry: tokens, redirects, repetition, and what a refusal means. Uses the network.
//!
//! Credentials and tokens go to the registry and to the service that it names for tokens, never to the target of a redirect.

use std::{collections::HashMap, sync::Mutex, time::Duration};

use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use object_store::client::{HttpClient, HttpErrorKind, HttpResponse, HttpResponseBody};
use serde::Deserialize;
use url::Url;

use super::{
    super::{
        Location,
        error::{StoreError, scrubbed},
        http::Connector,
    },
    credentials::{Credentials, USER},
};

/// Redirects that are followed.
const REDIRECTS: usize = 8;
/// Attempts at a request.
const ATTEMPTS: u32 = 6;
/// The longest wait between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// The most bytes of a manifest, which OCI's specification recommends.
pub(super) const MAX_MANIFEST: u64 = 4 << 20;
/// The most bytes of an answer about an error or with a token.
const MAX_TEXT: u64 = 1 << 20;

/// A repository of a registry.
#[derive(Debug)]
pub(in crate::stores) struct Client {
    http: HttpClient,
    /// The address of the repository, with `/` at its end.
    base: Url,
    repository: String,
    credentials: Credentials,
    /// Headers of permitted actions.
    tokens: Mutex<HashMap<Action, HeaderValue>>,
    /// The first wait between two attempts.
    pub(super) pause: Duration,
}

/// What a request needs the permission for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Action {
    Pull,
    Push,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    /// It does not exist.
    #[error("it does not exist")]
    NotFound,
    /// The registry refuses the request.
    #[error("{0}")]
    Refused(String),
    /// The request is wrong in the eyes of the registry.
    #[error("the registry answers {status}{}", named(.codes))]
    Wrong {
        /// The status.
        status: StatusCode,
        /// The codes of the registry, such as `DIGEST_INVALID`.
        codes: Vec<String>,
    },
    /// The connection or the registry fails.
    #[error("{0}")]
    Transient(String),
}

fn named(codes: &[String]) -> String {
    if codes.is_empty() { String::new() } else { format!(" ({})", codes.join(", ")) }
}

impl Trouble {
    /// Makes the error of an action on something in the registry.
    pub(super) fn of(action: &'static str, location: String) -> impl FnOnce(Self) -> StoreError {
        move |trouble| match trouble {
            Self::NotFound => StoreError::NotFound(location),
            Self::Refused(why) => StoreError::Store { action, location, why, is_refused: true },
            Self::Wrong { .. } => StoreError::Store { action, location, why: trouble.to_string(), is_refused: true },
            Self::Transient(why) => StoreError::Store { action, location, why, is_refused: false },
        }
    }
}

/// A request, without what every request has.
#[derive(Clone, Debug, Default)]
pub(super) struct Asked {
    pub(super) headers: Vec<(header::HeaderName, String)>,
    pub(super) body: Bytes,
    /// The request is sent once only: a second one could have another effect.
    pub(super) once: bool,
}

impl Asked {
    pub(super) fn header(mut self, name: header::HeaderName, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

impl Client {
    /// Returns the client of the repository of an address. With `plain`, requests may travel in clear text.
    ///
    /// # Errors
    /// The address is invalid.
    pub(in crate::stores) fn new(
        location: &Location,
        connector: &Connector,
        credentials: Credentials,
        plain: bool,
    ) -> Result<Self, String> {
        // The name of a registry is not always the name of its host.
        let host = match location.bucket.as_str() {
            "docker.io" => "registry-1.docker.io",
            host => host,
        };
        let is_near = codex::hub::is_loopback(&format!("http://{host}"));
        let scheme = if plain || is_near { "http" } else { "https" };
        let repository = location.prefix.as_ref().to_owned();
        let base = Url::parse(&format!("{scheme}://{host}/v2/{repository}/")).map_err(|why| why.to_string())?;
        let http = connector.client(plain);
        let pause = Duration::from_secs(1);
        Ok(Self { http, base, repository, credentials, tokens: Mutex::default(), pause })
    }

    /// Returns the address of something in the repository.
    pub(super) fn url(&self, path: &str) -> Result<Url, Trouble> {
        self.base.join(path).map_err(|why| Trouble::Refused(why.to_string()))
    }

    /// Returns the address that an answer names.
    pub(super) fn location(asked: &Url, headers: &HeaderMap) -> Result<Url, Trouble> {
        let text = headers.get(header::LOCATION).and_then(|text| text.to_str().ok());
        let text = text.ok_or_else(|| Trouble::Transient("the registry names no address to go on with".to_owned()))?;
        asked.join(text).map_err(|_| Trouble::Transient("the registry names an invalid address".to_owned()))
    }

    /// Sends a request until it is answered with success, and follows redirects of requests that only read.
    pub(super) async fn send(
        &self,
        action: Action,
        method: Method,
        url: &Url,
        asked: Asked,
    ) -> Result<HttpResponse, Trouble> {
        let mut pause = self.pause;
        for attempt in 1.. {
            let (why, after) = match self.attempt(action, &method, url, &asked).await {
                Ok(response) if response.status().is_success() => return Ok(response),
                Ok(response) => match self.refused(response).await {
                    (Trouble::Transient(why), after) => (why, after),
                    (trouble, _) => return Err(trouble),
                },
                Err(Trouble::Transient(why)) => (why, None),
                Err(trouble) => return Err(trouble),
            };
            if asked.once || attempt == ATTEMPTS {
                return Err(Trouble::Transient(why));
            }
            let now = after.unwrap_or(pause).min(LONGEST_PAUSE);
            tracing::warn!(
                registry = self.base.host_str(),
                why,
                seconds = now.as_secs_f64(),
                "the registry is asked again"
            );
            tokio::time::sleep(now).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        Err(Trouble::Transient("no attempt is left".to_owned()))
    }

    async fn attempt(
        &self,
        action: Action,
        method: &Method,
        url: &Url,
        asked: &Asked,
    ) -> Result<HttpResponse, Trouble> {
        let mut url = url.clone();
        let mut renewed = false;
        for _ in 0..=REDIRECTS + 1 {
            let own = url.origin() == self.base.origin();
            let token = own.then(|| self.token(action)).flatten();
            let response = self.once(method, &url, asked, token).await?;
            let status = response.status();
            if status == StatusCode::UNAUTHORIZED && own && !std::mem::replace(&mut renewed, true) {
                let challenges = response.headers().get_all(header::WWW_AUTHENTICATE).iter();
                let challenges: Vec<String> =
                    challenges.filter_map(|text| Some(text.to_str().ok()?.to_owned())).collect();
                let header = self.permission(action, &challenges).await?;
                self.tokens.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(action, header);
                continue;
            }
            let reads = [Method::GET, Method::HEAD].contains(method);
            if !reads || !matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(response);
            }
            url = Self::location(&url, response.headers())?;
        }
        Err(Trouble::Refused("the registry redirects too often".to_owned()))
    }

    fn token(&self, action: Action) -> Option<HeaderValue> {
        self.tokens.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get(&action).cloned()
    }

    async fn once(
        &self,
        method: &Method,
        url: &Url,
        asked: &Asked,
        token: Option<HeaderValue>,
    ) -> Result<HttpResponse, Trouble> {
        let mut request = Request::builder().method(method).uri(url.as_str());
        for (name, value) in &asked.headers {
            request = request.header(name, value);
        }
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, token);
        }
        let request = request.body(asked.body.clone().into());
        let request = request.map_err(|_| Trouble::Refused("the request is malformed".to_owned()))?;
        self.http.execute(request).await.map_err(|error| {
            let why = scrubbed(&codex::error::chain(&error));
            if error.kind() == HttpErrorKind::Unknown { Trouble::Refused(why) } else { Trouble::Transient(why) }
        })
    }

    /// Returns the header with which a request is permitted, as the registry says how.
    async fn permission(&self, action: Action, challenges: &[String]) -> Result<HeaderValue, Trouble> {
        let find = |scheme: &str| {
            challenges.iter().find_map(|text| {
                let (found, rest) = text.split_once(' ').unwrap_or((text, ""));
                found.eq_ignore_ascii_case(scheme).then(|| parameters(rest))
            })
        };
        let Some(parameters) = find("bearer") else {
            return match &self.credentials {
                Credentials::Basic(value) if find("basic").is_some() => Ok(value.clone()),
                _ => Err(self.denied(StatusCode::UNAUTHORIZED)),
            };
        };
        let realm = parameters.get("realm").and_then(|realm| Url::parse(realm).ok());
        let mut realm = realm.ok_or_else(|| Trouble::Refused("the registry names no service for tokens".to_owned()))?;
        let scope = match action {
            Action::Pull => format!("repository:{}:pull", self.repository),
            Action::Push => format!("repository:{}:pull,push", self.repository),
        };
        let service = parameters.get("service").map_or("", String::as_str);
        let (method, asked, basic) = match &self.credentials {
            Credentials::Identity(token) => {
                let mut form = url::form_urlencoded::Serializer::new(String::new());
                form.append_pair("grant_type", "refresh_token").append_pair("refresh_token", token);
                form.append_pair("service", service)
                    .append_pair("scope", &scope)
                    .append_pair("client_id", "codex-tools");
                let asked = Asked { body: form.finish().into(), ..Asked::default() };
                let asked = asked.header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
                (Method::POST, asked, None)
            }
            credentials => {
                realm.query_pairs_mut().append_pair("service", service).append_pair("scope", &scope);
                let basic = if let Credentials::Basic(value) = credentials { Some(value.clone()) } else { None };
                (Method::GET, Asked::default(), basic)
            }
        };
        let response = self.once(&method, &realm, &asked, basic).await?;
        match response.status() {
            StatusCode::OK => {}
            status if status.is_server_error() => {
                return Err(Trouble::Transient(format!("the service for tokens answers {status}")));
            }
            status => return Err(self.denied(status)),
        }
        let bytes = whole(response.into_body(), MAX_TEXT).await?;
        // The parser's sentence could quote a token.
        let wrong = || Trouble::Refused("the service for tokens answers without one".to_owned());
        let Token { token, access_token } = serde_json::from_slice(&bytes).map_err(|_| wrong())?;
        let token = token.or(access_token).ok_or_else(wrong)?;
        let mut value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| wrong())?;
        value.set_sensitive(true);
        Ok(value)
    }

    /// Returns what a refusal says about the credentials.
    fn denied(&self, status: StatusCode) -> Trouble {
        let [name, password] = USER;
        Trouble::Refused(match self.credentials {
            Credentials::Anonymous => format!(
                "the registry answers {status} to a request without credentials: set {name} and {password}, or name a file with \
                 them by DOCKER_CONFIG or REGISTRY_AUTH_FILE"
            ),
            _ => format!("the registry answers {status}: the credentials are wrong, or do not permit this"),
        })
    }

    /// Says what an answer without success means, and how long the registry asks to wait.
    async fn refused(&self, response: HttpResponse) -> (Trouble, Option<Duration>) {
        let status = response.status();
        let after = response.headers().get(header::RETRY_AFTER).and_then(|text| text.to_str().ok()?.parse().ok());
        let trouble = match status {
            StatusCode::NOT_FOUND => Trouble::NotFound,
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => self.denied(status),
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => {
                Trouble::Transient(format!("the registry answers {status}"))
            }
            status if status.is_server_error() => Trouble::Transient(format!("the registry answers {status}")),
            status => {
                // Messages may quote the request, so only the codes are shown.
                let bytes = whole(response.into_body(), MAX_TEXT).await.unwrap_or_default();
                let said: Said = serde_json::from_slice(&bytes).unwrap_or_default();
                let is_code = |code: &String| {
                    code.len() <= 64 && code.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_')
                };
                let codes = said.errors.into_iter().map(|error| error.code).filter(is_code).take(4).collect();
                Trouble::Wrong { status, codes }
            }
        };
        (trouble, after.map(Duration::from_secs))
    }

    /// Reads a manifest.
    pub(super) async fn manifest(&self, reference: &str, accept: &str) -> Result<Bytes, Trouble> {
        let url = self.url(&format!("manifests/{reference}"))?;
        let asked = Asked::default().header(header::ACCEPT, accept);
        let response = self.send(Action::Pull, Method::GET, &url, asked).await?;
        whole(response.into_body(), MAX_MANIFEST).await
    }

    /// Writes a manifest, and returns the headers of the answer.
    pub(super) async fn put_manifest(
        &self,
        reference: &str,
        media_type: &str,
        bytes: Bytes,
    ) -> Result<HeaderMap, Trouble> {
        let url = self.url(&format!("manifests/{reference}"))?;
        let asked = Asked { body: bytes, ..Asked::default() }.header(header::CONTENT_TYPE, media_type);
        let response = self.send(Action::Push, Method::PUT, &url, asked).await?;
        Ok(response.headers().clone())
    }
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

#[derive(Default, Deserialize)]
struct Said {
    #[serde(default)]
    errors: Vec<SaidOne>,
}

#[derive(Deserialize)]
struct SaidOne {
    #[serde(default)]
    code: String,
}

/// Reads a body to its end.
pub(super) async fn whole(body: HttpResponseBody, limit: u64) -> Result<Bytes, Trouble> {
    let mut bytes = BytesMut::new();
    let mut pieces = body.bytes_stream();
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|error| Trouble::Transient(scrubbed(&codex::error::chain(&error))))?;
        if (bytes.len() + piece.len()) as u64 > limit {
            return Err(Trouble::Refused(format!("the answer has more than {limit} bytes")));
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes.freeze())
}

/// Reads `key="value"` and `key=value`, separated by commas.
fn parameters(text: &str) -> HashMap<String, String> {
    let mut found = HashMap::new();
    let mut rest = text.trim_start();
    while let Some((key, after)) = rest.split_once('=') {
        let (value, next) = if let Some(quoted) = after.strip_prefix('"') {
            quoted.split_once('"').unwrap_or((quoted, ""))
        } else {
            after.split_at(after.find(',').unwrap_or(after.len()))
        };
        found.insert(key.trim().to_ascii_lowercase(), value.to_owned());
        rest = next.trim_start_matches([',', ' ']);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        let found = parameters(r#"realm="https://a.example/token?x=1,2",service="registry", scope=repository:a:pull"#);
        assert_eq!(found["realm"], "https://a.example/token?x=1,2");
        assert_eq!((found["service"].as_str(), found["scope"].as_str()), ("registry", "repository:a:pull"));
        assert!(parameters("").is_empty() && parameters("realm").is_empty());
        assert_eq!(parameters("realm=\"open")["realm"], "open");
    }
}
