//! The activator against a real server on this machine: what is held, what is forwarded, and what is refused.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::Request,
    http::{HeaderMap, Method, StatusCode},
    response::{IntoResponse, Response},
    routing::post,
};
use codex_http::Limits;
use codex_reports::ServingState;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    hold::{Holder, Room},
    metrics::Metrics,
    tell, watched,
};
use crate::{reporting::Reporter, serving::openai::MAX_BODY};

/// Far more than anything takes, far less than forever.
const SOON: Duration = Duration::from_secs(20);
const LIMITS: Limits =
    Limits { connections: 64, head: SOON, body: Duration::from_millis(500), lifetime: Duration::from_secs(60) };
const ROOM: Room = Room { requests: 4, bytes: 1 << 20, wait: SOON };

/// An activator, and the address at which its servers would listen.
struct Scene {
    activator: SocketAddr,
    server: SocketAddr,
    held: watch::Receiver<usize>,
    metrics: Arc<Metrics>,
    end: CancellationToken,
    _serving: JoinHandle<()>,
}

impl Scene {
    /// Starts an activator without a server.
    async fn new(room: Room) -> Self {
        // Nothing listens at a port that was free a moment ago.
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let activator = listener.local_addr().unwrap();
        let (sender, held) = watch::channel(0);
        let (metrics, end) = (Arc::new(Metrics::new().unwrap()), CancellationToken::new());
        let holder = Holder::new(server.to_string(), room, sender, Arc::clone(&metrics), end.clone());
        let http = codex_http::Server::new(listener, LIMITS).serve(holder.router(), CancellationToken::new());
        Self { activator, server, held, metrics, end, _serving: tokio::spawn(http) }
    }

    /// Starts the server; dropping the result stops it.
    async fn serve(&self, router: Router) -> tokio_util::task::AbortOnDropHandle<()> {
        let listener = TcpListener::bind(self.server).await.unwrap();
        let http = codex_http::Server::new(listener, LIMITS).serve(router, CancellationToken::new());
        tokio_util::task::AbortOnDropHandle::new(tokio::spawn(http))
    }

    async fn open(&self, text: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.activator).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        stream
    }

    async fn send(&self, text: &str) -> String {
        rest(self.open(text).await).await
    }

    /// Waits until so many requests are held.
    async fn holds(&mut self, count: usize) {
        timeout(SOON, self.held.wait_for(|held| *held == count)).await.unwrap().unwrap();
    }

    fn counted(&self, line: &str) {
        let text = prometheus::TextEncoder::new().encode_to_string(&self.metrics.registry().gather()).unwrap();
        assert!(text.lines().any(|found| found == line), "{line}: {text}");
    }
}

async fn rest(mut stream: TcpStream) -> String {
    let mut bytes = Vec::new();
    let read = timeout(SOON, stream.read_to_end(&mut bytes)).await.expect("the connection is closed in time");
    // The activator may reset a connection whose request it did not read.
    read.map_or_else(|error| assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset), drop);
    String::from_utf8(bytes).unwrap()
}

fn posted(path: &str, body: &str) -> String {
    let length = body.len();
    format!("POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}")
}

/// A server that says what it was asked.
fn echo() -> Router {
    async fn answer(method: Method, uri: axum::http::Uri, headers: HeaderMap, body: Bytes) -> Response {
        let header = |name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
        let told = format!(
            "{method} {uri} host={:?} key={:?} hop={:?} length={:?} body={}",
            header("host"),
            header("x-api-key"),
            header("x-hop"),
            header("content-length"),
            String::from_utf8_lossy(&body)
        );
        (StatusCode::ACCEPTED, [("x-codex-ring", "main")], told).into_response()
    }
    Router::new().fallback(answer)
}

#[tokio::test]
async fn a_request_is_held_until_a_server_is_ready_and_forwarded_unchanged() {
    let mut scene = Scene::new(ROOM).await;
    let request = "POST /v1/completions?a=b HTTP/1.1\r\nHost: models.example\r\nX-Api-Key: k\r\nConnection: close, x-hop\r\n\
                   X-Hop: 1\r\nContent-Length: 2\r\n\r\nhi";
    let held = scene.open(request).await;
    scene.holds(1).await;
    scene.counted("codex_ml_activator_requests_held 1");
    sleep(Duration::from_millis(300)).await;
    let server = scene.serve(echo()).await;
    let text = rest(held).await;
    assert!(text.starts_with("HTTP/1.1 202 ") && text.contains("x-codex-ring: main\r\n"), "{text}");
    let told =
        r#"POST /v1/completions?a=b host=Some("models.example") key=Some("k") hop=None length=Some("2") body=hi"#;
    assert!(text.ends_with(told), "{text}");
    scene.counted("codex_ml_activator_requests_held 0");
    scene.counted("codex_ml_activator_requests_total{result=\"forwarded\"} 1");
    scene.counted("codex_ml_activator_hold_seconds_count 1");

    // While servers run, nothing waits, also on a connection that is kept.
    let mut kept = scene.open("GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n").await;
    let mut first = [0; 12];
    kept.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 202");
    kept.write_all(posted("/infer", "again").as_bytes()).await.unwrap();
    let text = rest(kept).await;
    assert!(text.contains("body=again"), "{text}");
    scene.counted("codex_ml_activator_hold_seconds_count 1");
    assert_eq!(*scene.held.borrow(), 0);
    drop(server);
}

#[tokio::test]
async fn all_that_wait_are_forwarded_and_no_more_than_that_are_held() {
    let mut scene = Scene::new(ROOM).await;
    let mut waiting = Vec::new();
    for number in 0..ROOM.requests {
        waiting.push(scene.open(&posted("/infer", &format!("request {number}"))).await);
    }
    scene.holds(ROOM.requests).await;
    let text = scene.send(&posted("/infer", "one too many")).await;
    assert!(text.starts_with("HTTP/1.1 503 ") && text.contains("retry-after: 5\r\n"), "{text}");
    let body: serde_json::Value = serde_json::from_str(text.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!((&body["error"]["type"], &body["error"]["code"]), (&"server_error".into(), &"no_server_ready".into()));
    assert!(body["error"]["message"].as_str().unwrap().contains("4 requests wait"), "{body}");
    scene.counted("codex_ml_activator_requests_total{result=\"full\"} 1");
    let _server = scene.serve(echo()).await;
    for (number, stream) in waiting.into_iter().enumerate() {
        let text = rest(stream).await;
        assert!(text.ends_with(&format!("body=request {number}")), "{text}");
    }
    scene.holds(0).await;
    scene.counted("codex_ml_activator_requests_total{result=\"forwarded\"} 4");
}

#[tokio::test]
async fn bodies_are_bounded_one_by_one_and_together() {
    let mut scene = Scene::new(Room { requests: 100, bytes: 3 << 20, ..ROOM }).await;
    let head = |length: usize| {
        format!("POST /infer HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n")
    };
    let text = scene.send(&head(MAX_BODY + 1)).await;
    assert!(text.starts_with("HTTP/1.1 413 ") && text.contains("invalid_request_error"), "{text}");
    let text = scene.send(&head(9)).await;
    assert!(text.starts_with("HTTP/1.1 400 ") && text.contains("did not arrive within"), "{text}");
    let _held = scene.open(&posted("/infer", &"x".repeat(2 << 20))).await;
    scene.holds(1).await;
    let text = scene.send(&head(2 << 20)).await;
    assert!(text.starts_with("HTTP/1.1 503 "), "{text}");
    // A body in chunks may become as large as any.
    let chunked = "POST /infer HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n";
    let text = scene.send(chunked).await;
    assert!(text.starts_with("HTTP/1.1 503 "), "{text}");
    scene.counted("codex_ml_activator_requests_total{result=\"invalid\"} 2");
    scene.counted("codex_ml_activator_requests_total{result=\"full\"} 2");
    let small = scene.open(&posted("/infer", "small")).await;
    scene.holds(2).await;
    let _server = scene.serve(echo()).await;
    assert!(rest(small).await.ends_with("body=small"));
    let text = scene.send(chunked).await;
    assert!(text.starts_with("HTTP/1.1 503 "), "4 MiB do not fit into 3: {text}");
}

#[tokio::test]
async fn a_body_in_chunks_is_sent_on_with_its_length() {
    let scene = Scene::new(Room { bytes: 8 << 20, ..ROOM }).await;
    let _server = scene.serve(echo()).await;
    let chunked = "POST /infer HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n";
    let text = scene.send(chunked).await;
    assert!(text.ends_with(r#"length=Some("2") body=hi"#), "{text}");
}

#[tokio::test]
async fn a_request_without_a_server_is_refused_at_its_deadline_and_when_the_activator_stops() {
    let mut scene = Scene::new(Room { wait: Duration::from_millis(1100), ..ROOM }).await;
    let begun = Instant::now();
    let text = scene.send(&posted("/infer", "late")).await;
    assert!(text.starts_with("HTTP/1.1 503 ") && text.contains("retry-after: 5\r\n"), "{text}");
    assert!(text.contains("no server was ready within 1 s"), "{text}");
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(1100) && took < SOON, "{took:?}");
    let held = scene.open(&posted("/infer", "stopped")).await;
    scene.holds(1).await;
    scene.end.cancel();
    let text = rest(held).await;
    assert!(text.starts_with("HTTP/1.1 503 ") && text.contains("what holds this request stops"), "{text}");
    scene.holds(0).await;
    scene.counted("codex_ml_activator_requests_total{result=\"late\"} 2");
}

#[tokio::test]
async fn a_client_that_gives_up_is_not_waited_for() {
    let mut scene = Scene::new(ROOM).await;
    let held = scene.open(&posted("/infer", "gone")).await;
    scene.holds(1).await;
    drop(held);
    scene.holds(0).await;
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    let _server = scene
        .serve(Router::new().fallback(move || {
            counter.fetch_add(1, Ordering::Relaxed);
            std::future::ready(StatusCode::OK)
        }))
        .await;
    sleep(Duration::from_millis(300)).await;
    assert_eq!(asked.load(Ordering::Relaxed), 0, "its request is dropped");
    scene.counted("codex_ml_activator_requests_total{result=\"forwarded\"} 0");
}

/// Counts the bodies that a server still sends.
struct Sending(Arc<AtomicUsize>);

impl Drop for Sending {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A server that streams events for as long as somebody reads them.
fn endless(sending: Arc<AtomicUsize>) -> Router {
    let stream = move |_: Request| {
        sending.fetch_add(1, Ordering::Relaxed);
        let guard = Sending(Arc::clone(&sending));
        let events = futures::stream::unfold((0, guard), |(number, guard)| async move {
            if number > 0 {
                sleep(Duration::from_millis(50)).await;
            }
            let event = format!("data: {number}\n\n");
            Some((Ok::<_, std::io::Error>(Bytes::from(event)), (number + 1, guard)))
        });
        async move { ([("content-type", "text/event-stream")], Body::from_stream(events)) }
    };
    Router::new().route("/v1/completions", post(stream))
}

#[tokio::test]
async fn events_arrive_as_they_are_sent_and_the_server_notices_that_a_client_is_gone() {
    let mut scene = Scene::new(ROOM).await;
    let mut client = scene.open(&posted("/v1/completions", "{}")).await;
    scene.holds(1).await;
    let sending = Arc::new(AtomicUsize::new(0));
    let _server = scene.serve(endless(Arc::clone(&sending))).await;
    let mut text = String::new();
    while !text.contains("data: 3\n\n") {
        let mut bytes = [0; 1024];
        let read = timeout(SOON, client.read(&mut bytes)).await.expect("events arrive before the end").unwrap();
        assert!(read > 0, "the stream has no end: {text}");
        text.push_str(std::str::from_utf8(&bytes[..read]).unwrap());
    }
    assert!(text.starts_with("HTTP/1.1 200 ") && text.contains("content-type: text/event-stream\r\n"), "{text}");
    assert_eq!(sending.load(Ordering::Relaxed), 1);
    drop(client);
    let begun = Instant::now();
    while sending.load(Ordering::Relaxed) > 0 {
        assert!(begun.elapsed() < SOON, "the server still sends");
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_server_that_ends_before_it_answers_is_named() {
    let mut scene = Scene::new(ROOM).await;
    let held = scene.open(&posted("/infer", "lost")).await;
    scene.holds(1).await;
    let listener = TcpListener::bind(scene.server).await.unwrap();
    drop(listener.accept().await.unwrap());
    let text = rest(held).await;
    assert!(text.starts_with("HTTP/1.1 502 ") && text.contains("the server did not answer"), "{text}");
    scene.counted("codex_ml_activator_requests_total{result=\"failed\"} 1");
}

#[tokio::test]
async fn a_health_check_starts_no_server() {
    let scene = Scene::new(ROOM).await;
    let text = scene.send("GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    assert!(text.starts_with("HTTP/1.1 200 ") && text.ends_with(r#"{"status":"ok"}"#), "{text}");
    assert!(!scene.held.has_changed().unwrap());
}

#[tokio::test]
async fn that_requests_wait_is_reported_again_until_none_does() {
    let reporter = Reporter::<ServingState>::nowhere();
    let metrics = Metrics::new().unwrap();
    let (held, seen) = watch::channel(0);
    let told = tell(&reporter, seen, &metrics, Duration::from_millis(20));
    tokio::pin!(told);
    // Polls until the state of the report is as expected.
    macro_rules! until_waiting {
        ($waiting:literal) => {
            let begun = Instant::now();
            while reporter.state().waiting != $waiting {
                assert!(begun.elapsed() < SOON, "waiting is not {}", $waiting);
                tokio::select! {
                    () = told.as_mut() => panic!("requests can still be held"),
                    () = sleep(Duration::from_millis(5)) => {}
                }
            }
        };
    }
    tokio::select! {
        () = told.as_mut() => panic!("requests can still be held"),
        () = sleep(Duration::from_millis(100)) => {}
    }
    assert!(!reporter.state().waiting);
    held.send_replace(1);
    until_waiting!(true);
    // A controller that has restarted learns of it.
    reporter.update(|state| state.waiting = false);
    held.send_replace(3);
    until_waiting!(true);
    held.send_replace(0);
    until_waiting!(false);
    held.send_replace(1);
    until_waiting!(true);
    let text = prometheus::TextEncoder::new().encode_to_string(&metrics.registry().gather()).unwrap();
    assert!(text.contains("codex_ml_activator_activations_total 2\n"), "{text}");
    drop(held);
    told.await;
}

#[tokio::test]
async fn the_second_listener_has_probes_and_metrics() {
    let stopping = CancellationToken::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = watched(Arc::new(Metrics::new().unwrap()), stopping.clone());
    let _serving = tokio::spawn(codex_http::Server::new(listener, LIMITS).serve(router, CancellationToken::new()));
    let ask = async |path: &str| {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        rest(stream).await
    };
    for path in ["/health", "/ready"] {
        assert!(ask(path).await.starts_with("HTTP/1.1 200 "), "{path}");
    }
    let text = ask("/metrics").await;
    for metric in codex_metrics::activator::ALL {
        assert!(text.contains(&format!("# TYPE {} {}\n", metric.name, metric.kind.name())), "{}: {text}", metric.name);
    }
    assert!(ask("/infer").await.starts_with("HTTP/1.1 404 "));
    stopping.cancel();
    assert!(ask("/ready").await.starts_with("HTTP/1.1 503 "), "endpoints leave it out while it stops");
    assert!(ask("/health").await.starts_with("HTTP/1.1 200 "), "it is alive");
}
