//! Requests of object stores, sent by the client that `codex fetch` uses: the same trust in certificates, proxies and time limits,
//! and one TLS. Uses the network.

use std::{io::Read as _, path::PathBuf, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use codex::hub::{agent, is_loopback};
use futures::stream;
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, StreamBody};
use object_store::{
    ClientOptions,
    client::{
        ClientConfigKey, HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
        HttpResponseBody, HttpService,
    },
};
use tokio::sync::{mpsc, oneshot};
use ureq::Agent;

/// Bytes of a piece of a body.
const PIECE: usize = 1 << 16;
/// Pieces that wait for their reader.
const WAITING: usize = 8;
/// The longest time from a request to the head of its answer: a part of an upload over a slow line.
const LONGEST: Duration = Duration::from_secs(900);
/// Hosts that tell a machine its credentials. They have no TLS, and no proxy reaches them.
const METADATA: [&str; 4] = ["169.254.169.254", "169.254.170.2", "169.254.170.23", "metadata.google.internal"];

/// Makes clients of object stores.
#[derive(Clone, Debug)]
pub(super) struct Connector {
    /// Follows the proxies of the environment.
    outside: Agent,
    /// Asks this machine and its metadata service.
    inside: Agent,
}

impl Connector {
    /// Returns a connector that trusts Mozilla's certificates, or those in the file that `SSL_CERT_FILE` names.
    ///
    /// # Errors
    /// The certificates are invalid.
    pub(super) fn new(certificates: Option<&PathBuf>) -> Result<Self, codex::hub::HubError> {
        let of = |endpoint| agent(endpoint, certificates.cloned());
        Ok(Self { outside: of("https://outside")?, inside: of("http://127.0.0.1")? })
    }

    /// Returns a client. With `plain`, its requests may travel in clear text.
    pub(super) fn client(&self, plain: bool) -> HttpClient {
        HttpClient::new(Service { connector: self.clone(), allows_plain: plain })
    }
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let plain = options.get_config_value(&ClientConfigKey::AllowHttp).is_some_and(|value| value == "true");
        Ok(self.client(plain))
    }
}

/// A client.
#[derive(Debug)]
struct Service {
    connector: Connector,
    /// Whether requests may travel in clear text.
    allows_plain: bool,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(
        "{0} has no TLS: use https, or allow clear text by AWS_ALLOW_HTTP=true, GOOGLE_ALLOW_HTTP=true or AZURE_ALLOW_HTTP=true, for a registry by --plain-http"
    )]
    Plain(String),
    #[error("no answer within {} s", LONGEST.as_secs())]
    Slow,
    #[error("the request was dropped")]
    Dropped,
    #[error("the request failed")]
    Client(#[source] Box<ureq::Error>),
    #[error("the connection was cut")]
    Cut(#[source] std::io::Error),
}

impl From<Failure> for HttpError {
    fn from(failure: Failure) -> Self {
        let kind = match &failure {
            Failure::Plain(_) => HttpErrorKind::Unknown,
            Failure::Slow => HttpErrorKind::Timeout,
            Failure::Dropped | Failure::Cut(_) => HttpErrorKind::Interrupted,
            Failure::Client(error) => match **error {
                ureq::Error::Timeout(_) => HttpErrorKind::Timeout,
                ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => HttpErrorKind::Connect,
                ureq::Error::Io(_) | ureq::Error::Protocol(_) => HttpErrorKind::Interrupted,
                _ => HttpErrorKind::Unknown,
            },
        };
        Self::new(kind, failure)
    }
}

#[async_trait]
impl HttpService for Service {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let (parts, body) = request.into_parts();
        let host = parts.uri.host().unwrap_or_default().to_owned();
        let near = is_loopback(&parts.uri.to_string());
        let metadata = METADATA.contains(&host.as_str());
        if parts.uri.scheme_str() != Some("https") && !near && !metadata && !self.allows_plain {
            return Err(Failure::Plain(host).into());
        }
        let agent = if near || metadata { &self.connector.inside } else { &self.connector.outside }.clone();
        let body = body.collect().await?.to_bytes();
        let (answer, head) = oneshot::channel();
        let (pieces, mut arrived) = mpsc::channel(WAITING);
        tokio::task::spawn_blocking(move || send(&agent, Request::from_parts(parts, body), answer, &pieces));
        let head = tokio::time::timeout(LONGEST, head).await.map_err(|_| Failure::Slow)?;
        let parts = head.map_err(|_| Failure::Dropped)??;
        let frames = stream::poll_fn(move |context| arrived.poll_recv(context));
        Ok(Response::from_parts(parts, HttpResponseBody::new(StreamBody::new(frames))))
    }
}

type Piece = Result<http_body::Frame<Bytes>, HttpError>;

/// Sends a request, and passes on the head of its answer and then its body, until nobody wants it any more.
fn send(
    agent: &Agent,
    request: Request<Bytes>,
    answer: oneshot::Sender<Result<http::response::Parts, Failure>>,
    pieces: &mpsc::Sender<Piece>,
) {
    let bare = request.body().is_empty() && matches!(*request.method(), Method::GET | Method::HEAD | Method::DELETE);
    let (parts, body) = request.into_parts();
    let sent =
        if bare { agent.run(Request::from_parts(parts, ())) } else { agent.run(Request::from_parts(parts, &body[..])) };
    let (parts, body) = match sent {
        Ok(response) => response.into_parts(),
        Err(error) => return drop(answer.send(Err(Failure::Client(Box::new(error))))),
    };
    if answer.send(Ok(parts)).is_err() {
        return;
    }
    let mut reader = body.into_with_config().limit(u64::MAX).reader();
    let mut buffer = vec![0; PIECE];
    loop {
        let piece = match reader.read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => Ok(http_body::Frame::data(Bytes::copy_from_slice(&buffer[..count]))),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => Err(Failure::Cut(error).into()),
        };
        let is_last = piece.is_err();
        if pieces.blocking_send(piece).is_err() || is_last {
            return;
        }
    }
}
