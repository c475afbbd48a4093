//! A TLS proxy between the controllers and the API server, whose answers can be refused, late, lost or cut. The requests keep the
//! token of their sender, so the audit log shows who wrote.

use std::{
    error::Error as StdError,
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use codex_tests::{Error, Result};
use http::{
    HeaderValue, Method, Request, Response, StatusCode, Version,
    header::{CONNECTION, CONTENT_TYPE, HOST, RETRY_AFTER, TRANSFER_ENCODING},
};
use http_body_util::BodyExt as _;
use hyper::{
    body::{Body, Bytes, Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use kube::{Client, client::Body as KubeBody};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use serde_json::json;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;

/// The time limit of a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// What the proxy does with requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Passes them on.
    Pass,
    /// Refuses most of them with this status.
    Refuse(StatusCode),
    /// Refuses half of the writes with 409.
    Conflict,
    /// Passes each on after up to this time.
    Slow(Duration),
    /// Passes them on, and closes the connection instead of answering half of the writes.
    Lose,
}

impl Mode {
    /// Returns what happens to a request. `percent` is a random number below 100.
    fn treatment(self, is_write: bool, percent: u32) -> Treatment {
        match self {
            Self::Refuse(status) if percent < 60 => Treatment::Refuse(status),
            Self::Conflict if is_write && percent < 50 => Treatment::Refuse(StatusCode::CONFLICT),
            Self::Slow(at_most) => Treatment::Delay(at_most * percent / 100),
            Self::Lose if is_write && percent < 50 => Treatment::Lose,
            Self::Pass | Self::Refuse(_) | Self::Conflict | Self::Lose => Treatment::Pass,
        }
    }
}

/// What happens to one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Treatment {
    Pass,
    Refuse(StatusCode),
    Delay(Duration),
    Lose,
}

/// The running proxy; it ends when it is dropped.
pub(crate) struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    upstream: Client,
    mode: Mutex<Mode>,
    random: Mutex<ChaCha8Rng>,
    /// Changes when all answers that are still being sent are cut.
    cuts: watch::Sender<u64>,
    requests: AtomicUsize,
    disturbed: AtomicUsize,
}

/// Why a connection is closed without an answer.
#[derive(Debug, thiserror::Error)]
enum Dropped {
    #[error("the answer is cut")]
    Cut,
    #[error(transparent)]
    Upstream(#[from] kube::Error),
    #[error(transparent)]
    Client(#[from] hyper::Error),
}

impl Proxy {
    /// Starts the proxy at an address of this machine. `upstream` adds no credentials.
    ///
    /// # Errors
    /// If it cannot listen, or the TLS library rejects the certificate.
    pub(crate) async fn start(
        host: std::net::IpAddr,
        (certificate, key): (&str, &str),
        upstream: Client,
        seed: u64,
    ) -> Result<Self> {
        let tls = TlsAcceptor::from(Arc::new(tls(certificate, key)?));
        let listener = TcpListener::bind((host, 0)).await.map_err(Error::io("listening for the controllers"))?;
        let address = listener.local_addr().map_err(Error::io("listening for the controllers"))?;
        let shared = Arc::new(Shared {
            upstream,
            mode: Mutex::new(Mode::Pass),
            random: Mutex::new(ChaCha8Rng::seed_from_u64(seed)),
            cuts: watch::Sender::new(0),
            requests: AtomicUsize::new(0),
            disturbed: AtomicUsize::new(0),
        });
        let task = tokio::spawn(accept(listener, tls, Arc::clone(&shared)));
        Ok(Self { address, shared, task })
    }

    /// Returns its address.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sets what it does with requests from now on.
    pub(crate) fn set(&self, mode: Mode) {
        *self.shared.mode.lock().unwrap_or_else(PoisonError::into_inner) = mode;
    }

    /// Cuts every answer that is still being sent, such as all watches.
    pub(crate) fn cut(&self) {
        self.shared.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Returns the number of requests, and how many of them were disturbed.
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.shared.requests.load(Ordering::Relaxed), self.shared.disturbed.load(Ordering::Relaxed))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn tls(certificate: &str, key: &str) -> Result<ServerConfig> {
    let invalid = |why: String| Error::Impossible {
        what: "the proxy serves TLS".to_owned(),
        why,
        state: "its certificate is issued by the authority of the local cluster".to_owned(),
    };
    let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).map_err(|it| invalid(it.to_string()))?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|error| invalid(error.to_string()))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(vec![certificate], key))
        .map_err(|error| invalid(error.to_string()))
}

async fn accept(listener: TcpListener, tls: TlsAcceptor, shared: Arc<Shared>) {
    // Dropping the set closes all connections.
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            sleep(Duration::from_millis(100)).await;
            continue;
        };
        while connections.try_join_next().is_some() {}
        connections.spawn(connection(stream, tls.clone(), Arc::clone(&shared)));
    }
}

async fn connection(stream: TcpStream, tls: TlsAcceptor, shared: Arc<Shared>) {
    let Ok(Ok(stream)) = timeout(HANDSHAKE, tls.accept(stream)).await else { return };
    let service = service_fn(move |request| {
        let shared = Arc::clone(&shared);
        async move { shared.answer(request).await }
    });
    // An error is one of the client, or an answer that is lost on purpose.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

impl Shared {
    fn treatment(&self, is_write: bool) -> Treatment {
        let mode = *self.mode.lock().unwrap_or_else(PoisonError::into_inner);
        let percent = self.random.lock().unwrap_or_else(PoisonError::into_inner).random_range(0..100);
        mode.treatment(is_write, percent)
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Piped>, Dropped> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let treatment = self.treatment(request.method() != Method::GET);
        if treatment != Treatment::Pass {
            self.disturbed.fetch_add(1, Ordering::Relaxed);
        }
        match treatment {
            Treatment::Refuse(status) => return Ok(refusal(status).map(|body| self.pipe(body))),
            Treatment::Delay(delay) => sleep(delay).await,
            Treatment::Pass | Treatment::Lose => {}
        }
        let answer = self.forward(request).await?;
        if treatment == Treatment::Lose {
            return Err(Dropped::Cut);
        }
        Ok(answer.map(|body| self.pipe(body)))
    }

    async fn forward(&self, request: Request<Incoming>) -> Result<Response<KubeBody>, Dropped> {
        let (mut parts, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        // These belong to the connection, not to the request.
        for name in [HOST, CONNECTION, TRANSFER_ENCODING] {
            parts.headers.remove(name);
        }
        let mut answer = self.upstream.send(Request::from_parts(parts, KubeBody::from(body))).await?;
        *answer.version_mut() = Version::HTTP_11;
        for name in [CONNECTION, TRANSFER_ENCODING] {
            answer.headers_mut().remove(name);
        }
        Ok(answer)
    }

    fn pipe(&self, body: KubeBody) -> Piped {
        let mut cuts = self.cuts.subscribe();
        let cut = Box::pin(async move {
            let _ = cuts.changed().await;
        });
        Piped { body, cut }
    }
}

/// Answers in place of the API server, as it would.
fn refusal(status: StatusCode) -> Response<KubeBody> {
    let reason = match status {
        StatusCode::CONFLICT => "Conflict",
        StatusCode::TOO_MANY_REQUESTS => "TooManyRequests",
        _ => "InternalError",
    };
    let text = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": status.as_u16(), "reason": reason,
        "message": "the proxy between the controllers and the API server refuses this request",
    });
    let mut answer = Response::new(KubeBody::from(text.to_string().into_bytes()));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if status == StatusCode::TOO_MANY_REQUESTS {
        headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    answer
}

/// The body of an answer, which a cut ends before its end.
struct Piped {
    body: KubeBody,
    cut: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Body for Piped {
    type Data = Bytes;
    type Error = Box<dyn StdError + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.cut.as_mut().poll(context).is_ready() {
            return Poll::Ready(Some(Err(Dropped::Cut.into())));
        }
        Pin::new(&mut self.body).poll_frame(context).map_err(Into::into)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures::StreamExt as _;
    use http::header::AUTHORIZATION;
    use http_body_util::{Full, StreamBody, combinators::UnsyncBoxBody};
    use kube::Config;

    use super::*;

    /// The time limit of one answer.
    const SOON: Duration = Duration::from_secs(20);

    /// Answers `/watch` without end, and everything else with the method, the token and the body of the request.
    async fn api(request: Request<Incoming>) -> Result<Response<UnsyncBoxBody<Bytes, Infallible>>, Infallible> {
        let (parts, body) = request.into_parts();
        if parts.uri.path() == "/watch" {
            let first = futures::stream::once(async { Ok(Frame::data(Bytes::from_static(b"first"))) });
            return Ok(Response::new(StreamBody::new(first.chain(futures::stream::pending())).boxed_unsync()));
        }
        let body = body.collect().await.unwrap().to_bytes();
        let token = parts.headers[AUTHORIZATION].to_str().unwrap();
        let text = format!("{} {} {token} {}", parts.method, parts.uri, String::from_utf8_lossy(&body));
        Ok(Response::new(Full::new(Bytes::from(text)).boxed_unsync()))
    }

    /// Returns a proxy before an API server, and a client of the proxy.
    async fn scene() -> (Proxy, Client) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let upstream = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(api)));
            }
        });
        let upstream = Client::try_from(Config::new(upstream.parse().unwrap())).unwrap();
        let own = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let pem = (own.cert.pem(), own.signing_key.serialize_pem());
        let proxy = Proxy::start([127, 0, 0, 1].into(), (&pem.0, &pem.1), upstream, 1).await.unwrap();
        let mut config = Config::new(format!("https://{}", proxy.address()).parse().unwrap());
        config.root_cert = Some(vec![own.cert.der().to_vec()]);
        config.default_retry = false;
        (proxy, Client::try_from(config).unwrap())
    }

    async fn ask(client: &Client, method: Method, path: &str) -> kube::Result<Response<KubeBody>> {
        let request = Request::builder().method(method).uri(path).header(AUTHORIZATION, "Bearer x");
        let request = request.body(KubeBody::from(b"body".to_vec())).unwrap();
        timeout(SOON, client.send(request)).await.unwrap()
    }

    #[tokio::test]
    async fn requests_pass_with_their_token_and_writes_are_refused_or_lost() {
        let (proxy, client) = scene().await;
        let answer = ask(&client, Method::PATCH, "/a?b=c").await.unwrap();
        let text = answer.into_body().collect_bytes().await.unwrap();
        assert_eq!(text, "PATCH /a?b=c Bearer x body");

        proxy.set(Mode::Refuse(StatusCode::TOO_MANY_REQUESTS));
        let mut statuses = Vec::new();
        for _ in 0..30 {
            statuses.push(ask(&client, Method::GET, "/a").await.unwrap().status().as_u16());
        }
        assert!(statuses.contains(&200) && statuses.contains(&429), "{statuses:?}");

        proxy.set(Mode::Lose);
        let mut lost = 0;
        for _ in 0..30 {
            ask(&client, Method::GET, "/a").await.unwrap();
            lost += usize::from(ask(&client, Method::POST, "/a").await.is_err());
        }
        assert!(lost > 0 && lost < 30, "{lost} answers are lost");
        let (requests, disturbed) = proxy.counts();
        assert!(disturbed > lost && disturbed < requests, "{disturbed} of {requests}");
    }

    #[tokio::test]
    async fn a_cut_ends_a_watch_with_an_error() {
        let (proxy, client) = scene().await;
        let mut watch = ask(&client, Method::GET, "/watch").await.unwrap().into_body();
        let first = timeout(SOON, watch.frame()).await.unwrap().unwrap().unwrap();
        assert_eq!(first.into_data().unwrap(), "first");
        proxy.cut();
        let next = timeout(SOON, watch.frame()).await.unwrap();
        assert!(next.is_none_or(|next| next.is_err()), "nothing arrives after the cut");
        ask(&client, Method::GET, "/a").await.unwrap();
    }

    #[test]
    fn reads_meet_no_conflict_and_every_answer_arrives_when_requests_pass() {
        for percent in 0..100 {
            assert_eq!(Mode::Conflict.treatment(false, percent), Treatment::Pass);
            assert_eq!(Mode::Lose.treatment(false, percent), Treatment::Pass);
            assert_eq!(Mode::Pass.treatment(true, percent), Treatment::Pass);
        }
        assert_eq!(Mode::Conflict.treatment(true, 0), Treatment::Refuse(StatusCode::CONFLICT));
        assert_eq!(Mode::Lose.treatment(true, 0), Treatment::Lose);
        let slow = Mode::Slow(Duration::from_secs(4));
        assert_eq!(slow.treatment(false, 50), Treatment::Delay(Duration::from_secs(2)));
    }

    #[test]
    fn a_refusal_is_a_status_and_says_when_to_try_again() {
        let refused = refusal(StatusCode::TOO_MANY_REQUESTS);
        assert_eq!((refused.status().as_u16(), refused.headers()[RETRY_AFTER].to_str().unwrap()), (429, "1"));
        assert!(refusal(StatusCode::INTERNAL_SERVER_ERROR).headers().get(RETRY_AFTER).is_none());
    }
}
