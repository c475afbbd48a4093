//! Holding requests and forwarding them. Does I/O.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Request, State},
    http::{
        HeaderValue, StatusCode,
        header::{CONTENT_LENGTH, TRANSFER_ENCODING},
    },
    response::{IntoResponse, Response},
    routing::get,
};
use codex_http::forward;
use tokio::{
    net::TcpStream,
    sync::{Mutex, OwnedSemaphorePermit, Semaphore, watch},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{alive, metrics::Metrics};
use crate::serving::openai::{ApiError, MAX_BODY};

/// How long the first attempt to reach a server may take. Where the network drops packets to a Service without servers, instead of
/// refusing connections, a server is asked for after this time.
const AT_ONCE: Duration = Duration::from_millis(150);
/// How long a further attempt may take.
const ATTEMPT: Duration = Duration::from_secs(1);
/// The pause between two attempts.
const PAUSE: Duration = Duration::from_millis(50);
/// Bytes that a permit of the memory stands for.
const UNIT: usize = 1024;
/// Seconds after which a client may try again.
const RETRY_AFTER: u64 = 5;

/// What is held at most.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    /// Requests.
    pub(super) requests: usize,
    /// Bytes of their bodies.
    pub(super) bytes: usize,
    /// How long a request waits for a server.
    pub(super) wait: Duration,
}

/// Holds requests; see the module.
#[derive(Clone)]
pub(super) struct Holder(Arc<Shared>);

struct Shared {
    /// Host and port of the servers.
    server: String,
    room: Room,
    places: Arc<Semaphore>,
    memory: Arc<Semaphore>,
    /// The number of requests that wait for a server.
    held: watch::Sender<usize>,
    /// One request at a time looks for a server; the others follow once it is there.
    turn: Mutex<()>,
    metrics: Arc<Metrics>,
    /// Ends every wait.
    end: CancellationToken,
}

/// A request that waits for a server.
struct Held<'a>(&'a Shared);

impl<'a> Held<'a> {
    fn new(shared: &'a Shared) -> Self {
        shared.held.send_modify(|held| {
            *held += 1;
            shared.metrics.set_held(*held);
        });
        Self(shared)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.held.send_modify(|held| {
            *held = held.saturating_sub(1);
            self.0.metrics.set_held(*held);
        });
    }
}

/// Why a request is not forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NoServer {
    /// None was ready in time.
    Late,
    /// The activator stops.
    Stops,
}

impl Holder {
    pub(super) fn new(
        server: String,
        room: Room,
        held: watch::Sender<usize>,
        metrics: Arc<Metrics>,
        end: CancellationToken,
    ) -> Self {
        let places = Arc::new(Semaphore::new(room.requests));
        let memory = Arc::new(Semaphore::new(room.bytes / UNIT));
        Self(Arc::new(Shared { server, room, places, memory, held, turn: Mutex::new(()), metrics, end }))
    }

    /// Returns the router of clients: `/health`, which wakes nobody, and everything else.
    pub(super) fn router(&self) -> Router {
        Router::new().route("/health", get(alive)).fallback(relay).with_state(self.clone())
    }
}

/// Answers a request by a server, or says why none does.
async fn relay(State(Holder(shared)): State<Holder>, request: Request) -> Response {
    let (response, result) = match shared.answer(request).await {
        Ok(response) => (response, "forwarded"),
        Err((error, result)) => (error.into_response(), result),
    };
    shared.metrics.ended(result);
    response
}

impl Shared {
    async fn answer(&self, request: Request) -> Result<Response, (ApiError, &'static str)> {
        let _place = self.place(&request)?;
        let (mut parts, body) = request.into_parts();
        let body = to_bytes(body, MAX_BODY).await.map_err(|error| (unreadable(&error), "invalid"))?;
        let length = HeaderValue::from(body.len());
        // It may have come in chunks.
        if !body.is_empty() || parts.headers.contains_key(CONTENT_LENGTH) {
            parts.headers.insert(CONTENT_LENGTH, length);
        }
        let stream = self.connect().await.map_err(|why| (self.unavailable(why), "late"))?;
        forward(stream, Request::from_parts(parts, Body::from(body))).await.map_err(|error| {
            let why = crate::error::chain(&error);
            tracing::warn!(error = why, "a request was lost");
            (ApiError::other(StatusCode::BAD_GATEWAY, format!("{why}: send the request again")), "failed")
        })
    }

    /// Takes a place and memory for the body of a request, until it has its response.
    fn place(&self, request: &Request) -> Result<[OwnedSemaphorePermit; 2], (ApiError, &'static str)> {
        let length = request.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        // Without a length it may have any that is allowed.
        let chunked = request.headers().contains_key(TRANSFER_ENCODING);
        let length: usize = length.unwrap_or(if chunked { MAX_BODY } else { 0 });
        if length > MAX_BODY {
            return Err((too_large(), "invalid"));
        }
        let units = u32::try_from(length.div_ceil(UNIT)).unwrap_or(u32::MAX);
        let place = Arc::clone(&self.places).try_acquire_owned();
        let memory = Arc::clone(&self.memory).try_acquire_many_owned(units);
        let (Ok(place), Ok(memory)) = (place, memory) else {
            let waiting = *self.held.borrow();
            let told = format!(
                "no server is ready, and {waiting} requests wait for one, which is all that fit: try again later"
            );
            return Err((again(told), "full"));
        };
        Ok([place, memory])
    }

    /// Connects to a server, and waits for one if none is ready.
    async fn connect(&self) -> Result<TcpStream, NoServer> {
        if let Some(stream) = self.attempt(AT_ONCE).await {
            return Ok(stream);
        }
        let begun = Instant::now();
        let held = Held::new(self);
        let found = async {
            let _turn = self.turn.lock().await;
            loop {
                match self.attempt(ATTEMPT).await {
                    Some(stream) => return stream,
                    None => sleep(PAUSE).await,
                }
            }
        };
        let stream = tokio::select! {
            found = timeout(self.room.wait, found) => found.map_err(|_| NoServer::Late),
            () = self.end.cancelled() => Err(NoServer::Stops),
        }?;
        drop(held);
        self.metrics.held_for(begun.elapsed());
        Ok(stream)
    }

    async fn attempt(&self, limit: Duration) -> Option<TcpStream> {
        timeout(limit, TcpStream::connect(&self.server)).await.ok()?.ok()
    }

    fn unavailable(&self, why: NoServer) -> ApiError {
        again(match why {
            NoServer::Late => format!("no server was ready within {} s: try again later", self.room.wait.as_secs()),
            NoServer::Stops => "no server is ready, and what holds this request stops: try again".to_owned(),
        })
    }
}

fn again(message: String) -> ApiError {
    let error = ApiError::other(StatusCode::SERVICE_UNAVAILABLE, message);
    ApiError { code: Some("no_server_ready"), retry_after: Some(RETRY_AFTER), ..error }
}

fn too_large() -> ApiError {
    ApiError::other(StatusCode::PAYLOAD_TOO_LARGE, format!("the request body has more than {MAX_BODY} bytes"))
}

/// Returns the answer to a body that is too large, or did not arrive.
fn unreadable(error: &axum::Error) -> ApiError {
    let told = crate::error::chain(error);
    if told.contains("length limit exceeded") {
        return too_large();
    }
    ApiError::invalid(None, format!("the request body cannot be read: {told}"))
}
