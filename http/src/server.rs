//! The server: accepts connections up to a limit, and closes those that are too slow. Does I/O.

use std::{io::ErrorKind, pin::pin, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::Request,
    http::{HeaderValue, header::CONNECTION},
    middleware,
    response::Response,
};
use hyper::{
    rt::{Read, Write},
    server::conn::http1,
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::body::with_deadline;

/// Pause after the system refuses to accept a connection, such as without free file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// Most bytes of a request's head, and of the buffer of a connection.
const MAX_HEAD: usize = 64 << 10;

/// What a server grants its clients.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Open connections. Further ones are closed at once.
    pub connections: usize,
    /// Time for a TLS handshake, and for a request's head. It also bounds the pause between two requests of a connection.
    pub head: Duration,
    /// Time for a request's body.
    pub body: Duration,
    /// Time after which a connection is closed: at once if it is idle, after the current request if that takes no longer than
    /// the same time again.
    pub lifetime: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 512,
            head: Duration::from_secs(10),
            body: Duration::from_secs(20),
            lifetime: Duration::from_mins(10),
        }
    }
}

/// A server before it serves.
pub struct Server {
    listener: TcpListener,
    limits: Limits,
    tls: Option<TlsAcceptor>,
    drain: CancellationToken,
    refused: Arc<dyn Fn() + Send + Sync>,
}

impl Server {
    /// Makes a server of plain HTTP.
    pub fn new(listener: TcpListener, limits: Limits) -> Self {
        Self { listener, limits, tls: None, drain: CancellationToken::new(), refused: Arc::new(|| ()) }
    }

    /// Serves HTTPS.
    #[must_use]
    pub fn with_tls(self, config: Arc<rustls::ServerConfig>) -> Self {
        Self { tls: Some(TlsAcceptor::from(config)), ..self }
    }

    /// Closes each connection after its next response once `drain` is cancelled, so that clients that keep connections send their
    /// next request to another server before this one stops.
    #[must_use]
    pub fn with_drain(self, drain: CancellationToken) -> Self {
        Self { drain, ..self }
    }

    /// Calls `refused` for every connection that is closed because there are too many.
    #[must_use]
    pub fn on_refused(self, refused: impl Fn() + Send + Sync + 'static) -> Self {
        Self { refused: Arc::new(refused), ..self }
    }

    /// Serves until `stop`, and returns when the requests that were running then are answered. Dropping the future closes all
    /// connections.
    pub async fn serve(self, router: Router, stop: CancellationToken) {
        let Self { listener, limits, tls, drain, refused } = self;
        let body = limits.body;
        let router = router
            .layer(middleware::map_request(move |request: Request| async move { with_deadline(request, body) }))
            .layer(middleware::map_response(move |response: Response| {
                let drains = drain.is_cancelled();
                async move { if drains { closing(response) } else { response } }
            }));
        let mut connections = JoinSet::new();
        loop {
            let stream = tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        if !matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset) {
                            tracing::warn!(%error, "cannot accept a connection");
                            sleep(ACCEPT_PAUSE).await;
                        }
                        continue;
                    }
                },
                Some(_) = connections.join_next() => continue,
                () = stop.cancelled() => break,
            };
            while connections.try_join_next().is_some() {}
            if connections.len() >= limits.connections {
                refused();
                continue;
            }
            connections.spawn(connection(stream, tls.clone(), router.clone(), limits, stop.clone()));
        }
        drop(listener);
        while connections.join_next().await.is_some() {}
    }
}

/// Makes a response the last one of its connection.
fn closing(mut response: Response) -> Response {
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

async fn connection(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    router: Router,
    limits: Limits,
    stop: CancellationToken,
) {
    // It only costs latency if it fails.
    let _ = stream.set_nodelay(true);
    match tls {
        None => drive(TokioIo::new(stream), router, limits, stop).await,
        // Boxed, so that a connection without TLS has no room for one with it.
        Some(tls) => Box::pin(encrypted(stream, tls, router, limits, stop)).await,
    }
}

async fn encrypted(stream: TcpStream, tls: TlsAcceptor, router: Router, limits: Limits, stop: CancellationToken) {
    let handshake = tokio::select! {
        handshake = timeout(limits.head, tls.accept(stream)) => handshake,
        () = stop.cancelled() => return,
    };
    if let Ok(Ok(stream)) = handshake {
        drive(TokioIo::new(stream), router, limits, stop).await;
    }
}

/// Serves the requests of one connection.
async fn drive(
    io: impl Read + Write + Unpin + Send + 'static,
    router: Router,
    limits: Limits,
    stop: CancellationToken,
) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(limits.head).max_buf_size(MAX_HEAD);
    let mut connection = pin!(http.serve_connection(io, TowerToHyperService::new(router)));
    tokio::select! {
        // An error is the client's: it is too slow, sends no HTTP, or is gone.
        _ = connection.as_mut() => return,
        () = stop.cancelled() => {}
        () = sleep(limits.lifetime) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = timeout(limits.lifetime, connection).await;
}

#[cfg(test)]
mod tests {
    use std::{
        net::SocketAddr,
        sync::atomic::{AtomicUsize, Ordering},
        time::Instant,
    };

    use axum::{
        body::Bytes,
        extract::rejection::BytesRejection,
        routing::{get, post},
    };
    use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        task::JoinHandle,
    };
    use tokio_util::task::AbortOnDropHandle;

    use super::*;
    use crate::with_fallbacks;

    const LIMITS: Limits = Limits {
        connections: 3,
        head: Duration::from_millis(300),
        body: Duration::from_millis(300),
        lifetime: Duration::from_secs(60),
    };
    /// Far more than the limits, far less than forever.
    const SOON: Duration = Duration::from_secs(20);

    struct Running {
        address: SocketAddr,
        refused: Arc<AtomicUsize>,
        stop: CancellationToken,
        served: JoinHandle<()>,
    }

    async fn echo(body: Result<Bytes, BytesRejection>) -> Result<Bytes, String> {
        body.map_err(|why| why.body_text())
    }

    async fn slow() -> &'static str {
        sleep(Duration::from_millis(800)).await;
        "slow"
    }

    async fn start(limits: Limits, tls: Option<Arc<rustls::ServerConfig>>) -> Running {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (refused, stop) = (Arc::new(AtomicUsize::new(0)), CancellationToken::new());
        let counted = Arc::clone(&refused);
        let mut server = Server::new(listener, limits).on_refused(move || {
            counted.fetch_add(1, Ordering::Relaxed);
        });
        if let Some(tls) = tls {
            server = server.with_tls(tls);
        }
        let routes = Router::new().route("/", get(|| async { "hello" })).route("/echo", post(echo));
        let router = with_fallbacks(routes.route("/slow", get(slow)));
        let served = tokio::spawn(server.serve(router, stop.clone()));
        Running { address, refused, stop, served }
    }

    impl Running {
        async fn open(&self, text: &str) -> TcpStream {
            let mut stream = TcpStream::connect(self.address).await.unwrap();
            stream.write_all(text.as_bytes()).await.unwrap();
            stream
        }

        /// Sends a text and returns everything until the server closes the connection.
        async fn send(&self, text: &str) -> String {
            rest(self.open(text).await).await
        }
    }

    async fn rest(mut stream: TcpStream) -> String {
        let mut bytes = Vec::new();
        let read = timeout(SOON, stream.read_to_end(&mut bytes)).await.expect("the connection is closed in time");
        // The server may reset a connection whose request it did not read.
        read.map_or_else(|error| assert_eq!(error.kind(), ErrorKind::ConnectionReset), drop);
        String::from_utf8(bytes).unwrap()
    }

    #[tokio::test]
    async fn requests_are_answered_and_unknown_ones_in_json() {
        let running = start(LIMITS, None).await;
        let ask =
            async |request: &str| running.send(&format!("{request}\r\nHost: x\r\nConnection: close\r\n\r\n")).await;
        let text = ask("GET / HTTP/1.1").await;
        assert!(text.starts_with("HTTP/1.1 200 ") && text.ends_with("hello"), "{text}");
        let text =
            running.send("POST /echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi").await;
        assert!(text.starts_with("HTTP/1.1 200 ") && text.ends_with("hi"), "{text}");
        let text = ask("GET /else\" HTTP/1.1").await;
        assert!(text.starts_with("HTTP/1.1 4"), "{text}");
        let text = ask("GET /else HTTP/1.1").await;
        assert!(text.starts_with("HTTP/1.1 404 ") && text.contains("application/json"), "{text}");
        assert!(text.ends_with(r#"{"error":"the path \"/else\" does not exist"}"#), "{text}");
        let text = ask("DELETE / HTTP/1.1").await;
        assert!(text.starts_with("HTTP/1.1 405 ") && text.contains("application/json"), "{text}");
        assert!(text.ends_with(r#"{"error":"the method DELETE is not allowed on /"}"#), "{text}");
    }

    #[tokio::test]
    async fn half_sent_requests_are_closed() {
        let running = start(LIMITS, None).await;
        let begun = Instant::now();
        assert_eq!(running.send("").await, "", "a silent connection");
        running.send("GET / HTTP/1.1\r\nHost: x\r\nX-").await;
        running.send("PRI * HTTP/2.0\r\n").await;
        let text = running.send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf").await;
        assert!(text.contains("the body did not arrive within 300ms"), "{text}");
        let text = running.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(text.ends_with("hello"), "an idle connection was answered: {text}");
        let tooks = begun.elapsed();
        assert!(tooks >= LIMITS.head * 3 && tooks < SOON, "{tooks:?}");
    }

    #[tokio::test]
    async fn connections_beyond_the_limit_are_closed_and_counted() {
        let running = start(Limits { head: SOON * 3, ..LIMITS }, None).await;
        let mut held = Vec::new();
        for _ in 0..LIMITS.connections {
            let mut stream = running.open("GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
            let mut first = [0; 8];
            stream.read_exact(&mut first).await.unwrap();
            held.push(stream);
        }
        assert_eq!(running.refused.load(Ordering::Relaxed), 0);
        for count in 1..=5 {
            assert_eq!(running.send("").await, "");
            assert_eq!(running.refused.load(Ordering::Relaxed), count);
        }
        held.pop();
        let request = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        let begun = Instant::now();
        while !running.send(request).await.ends_with("hello") {
            assert!(begun.elapsed() < SOON, "a closed connection makes room");
        }
    }

    #[tokio::test]
    async fn a_connection_ends_after_its_lifetime_and_its_request() {
        let lifetime = Duration::from_millis(400);
        let running = start(Limits { head: SOON * 3, lifetime, ..LIMITS }, None).await;
        assert_eq!(running.send("").await, "", "an idle connection");
        let running = start(Limits { lifetime: lifetime * 2, ..LIMITS }, None).await;
        let text = running.send("GET /slow HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(text.ends_with("slow"), "{text}");
    }

    #[tokio::test]
    async fn a_stop_finishes_running_requests_and_closes_idle_connections() {
        let running = start(Limits { head: SOON * 3, ..LIMITS }, None).await;
        let idle = running.open("").await;
        let busy = running.open("GET /slow HTTP/1.1\r\nHost: x\r\n\r\n").await;
        sleep(Duration::from_millis(300)).await;
        running.stop.cancel();
        assert_eq!(rest(idle).await, "");
        let text = rest(busy).await;
        assert!(text.ends_with("slow"), "{text}");
        timeout(SOON, running.served).await.unwrap().unwrap();
        assert!(TcpStream::connect(running.address).await.is_err());
    }

    #[tokio::test]
    async fn kept_connections_end_with_a_response_once_the_server_drains() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let drain = CancellationToken::new();
        let server = Server::new(listener, Limits { head: SOON * 3, ..LIMITS }).with_drain(drain.clone());
        let router = with_fallbacks(Router::new().route("/", get(|| async { "hello" })));
        let _served = AbortOnDropHandle::new(tokio::spawn(server.serve(router, CancellationToken::new())));
        let mut kept = TcpStream::connect(address).await.unwrap();
        let request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
        kept.write_all(request).await.unwrap();
        let mut first = vec![0; 1024];
        let length = kept.read(&mut first).await.unwrap();
        let first = String::from_utf8_lossy(&first[..length]);
        assert!(first.starts_with("HTTP/1.1 200 ") && !first.contains("connection: close"), "{first}");
        drain.cancel();
        kept.write_all(request).await.unwrap();
        let last = rest(kept).await;
        assert!(last.contains("\r\nconnection: close\r\n") && last.ends_with("hello"), "{last}");
    }

    #[tokio::test]
    async fn a_silent_handshake_is_closed() {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let running = start(LIMITS, Some(Arc::new(tls))).await;
        assert_eq!(running.send("").await, "");
        assert_eq!(running.send("\u{16}\u{3}\u{1}").await, "", "half a record");
        // An alert, and no HTTP.
        assert!(!running.send("GET / HTTP/1.1\r\n\r\n").await.contains("HTTP"));
    }
}
