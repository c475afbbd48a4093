//! An open load on a Service: requests at fixed times, each sent once, from this machine, and what became of them.
//!
//! The client of the API server repeats requests that no server takes, so it would hide lost ones.

use std::{
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use codex_cluster::Target;
use codex_tests::{Result, Team};
use futures::stream;
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Request, StatusCode,
    body::{Bytes, Frame},
    client::conn::http1::{SendRequest, handshake},
    header::{CONNECTION, CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Service;
use serde_json::{Value, json};
use tokio::{
    net::TcpStream,
    task::{JoinHandle, JoinSet},
    time::{Instant, interval, sleep, timeout},
};

/// The time between two requests of a kind.
const EVERY: Duration = Duration::from_millis(250);
/// The time that the body of a slow request takes. It outlives the moment at which its server is told to stop.
const SLOW: Duration = Duration::from_secs(3);
/// The time limit of a request, which also bounds how many are open.
const ANSWERED: Duration = Duration::from_secs(30);

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// How a request is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Over a connection of its own.
    Plain,
    /// The same, and the answer is streamed.
    Streamed,
    /// The same, and the body of the request takes [`SLOW`].
    Slow,
    /// One after another over one connection, for as long as the server keeps it.
    Kept,
}

/// A request and what became of it.
#[derive(Debug)]
pub(crate) struct Sent {
    pub(crate) kind: Kind,
    /// When it was answered or lost.
    pub(crate) ended: Instant,
    /// Why it has no whole answer.
    pub(crate) lost: Option<String>,
}

/// Requests that are being sent.
pub(crate) struct Load {
    ended: Arc<AtomicBool>,
    running: JoinHandle<Vec<Sent>>,
}

/// Returns the address of a Service. `None` on a cluster whose Services this machine does not reach.
pub(crate) async fn address(team: &Team, service: &str) -> Result<Option<SocketAddr>> {
    if *team.installation.cluster.target() != Target::Local {
        team.skip("lost requests", "this machine reaches only Services of the local cluster");
        return Ok(None);
    }
    let spec = team.api::<Service>().get(service).await?.spec.unwrap();
    let address: IpAddr = spec.cluster_ip.unwrap().parse().unwrap();
    let port = spec.ports.unwrap()[0].port;
    Ok(Some(SocketAddr::new(address, u16::try_from(port).unwrap())))
}

impl Load {
    /// Starts to send requests.
    pub(crate) fn start(address: SocketAddr) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let running = tokio::spawn(send(address, Arc::clone(&ended)));
        Self { ended, running }
    }

    /// Sends no more requests, and returns all once the last one has ended.
    pub(crate) async fn end(self) -> Vec<Sent> {
        self.ended.store(true, Ordering::Relaxed);
        self.running.await.unwrap()
    }
}

impl Kind {
    pub(crate) const ALL: [Self; 4] = [Self::Plain, Self::Streamed, Self::Slow, Self::Kept];
    /// Those over connections of their own.
    const ALONE: [Self; 3] = [Self::Plain, Self::Streamed, Self::Slow];

    fn request(self, number: usize) -> Request<Body> {
        let prompt = format!("{}+{}:", 10 + number % 90, 10 + number * 7 % 90);
        let (path, body) = match self {
            Self::Streamed => ("/v1/completions", json!({ "prompt": prompt, "max_tokens": 64, "stream": true })),
            Self::Plain | Self::Slow | Self::Kept => ("/infer", json!({ "prompt": prompt })),
        };
        let bytes = Bytes::from(body.to_string());
        let body = match self {
            Self::Slow => StreamBody::new(stream::once(async move {
                sleep(SLOW).await;
                Ok::<_, Infallible>(Frame::data(bytes))
            }))
            .boxed_unsync(),
            Self::Plain | Self::Streamed | Self::Kept => Full::new(bytes).boxed_unsync(),
        };
        let request = Request::post(path).header(HOST, "served").header(CONTENT_TYPE, "application/json");
        let request = if self == Self::Kept { request } else { request.header(CONNECTION, "close") };
        request.body(body).unwrap()
    }

    /// Returns what is wrong with an answer.
    fn fault(self, status: StatusCode, text: &str) -> Option<String> {
        let whole = match self {
            Self::Streamed => text.trim_end().ends_with("data: [DONE]") && !text.contains("\"error\""),
            Self::Plain | Self::Slow | Self::Kept => {
                serde_json::from_str::<Value>(text).is_ok_and(|answer| answer["completion"].is_string())
            }
        };
        (status != StatusCode::OK || !whole).then(|| format!("{status}: {text}"))
    }
}

/// Sends requests of all kinds until `ended`.
async fn send(address: SocketAddr, ended: Arc<AtomicBool>) -> Vec<Sent> {
    let kept = tokio::spawn(keep_sending(address, Arc::clone(&ended)));
    let (mut requests, mut ticks) = (JoinSet::new(), interval(EVERY / 3));
    for (number, kind) in Kind::ALONE.into_iter().cycle().enumerate() {
        ticks.tick().await;
        if ended.load(Ordering::Relaxed) {
            break;
        }
        requests.spawn(alone(kind, address, number));
    }
    let mut sent = requests.join_all().await;
    sent.extend(kept.await.unwrap());
    sent
}

async fn alone(kind: Kind, address: SocketAddr, number: usize) -> Sent {
    let exchanged = async {
        let mut sender = connect(address).await?;
        exchange(&mut sender, kind, number).await
    };
    observed(kind, exchanged).await.0
}

/// Sends requests over one connection until `ended`. Another one is opened only before a request, as any client may.
async fn keep_sending(address: SocketAddr, ended: Arc<AtomicBool>) -> Vec<Sent> {
    let (mut sent, mut kept, mut ticks) = (Vec::new(), None, interval(EVERY));
    while !ended.load(Ordering::Relaxed) {
        ticks.tick().await;
        let (number, held) = (sent.len(), kept.take());
        let exchanged = async move {
            let mut sender = match held {
                Some(sender) => open(sender, address).await?,
                None => connect(address).await?,
            };
            exchange(&mut sender, Kind::Kept, number).await?;
            Ok::<_, String>(sender)
        };
        let (request, sender) = observed(Kind::Kept, exchanged).await;
        sent.push(request);
        kept = sender;
    }
    sent
}

/// Waits for what was sent, and returns what became of it.
async fn observed<T>(kind: Kind, exchanged: impl Future<Output = Result<T, String>>) -> (Sent, Option<T>) {
    let limited = timeout(ANSWERED, exchanged).await;
    let exchanged = limited.unwrap_or_else(|_| Err(format!("no answer within {} s", ANSWERED.as_secs())));
    let (lost, value) = match exchanged {
        Ok(value) => (None, Some(value)),
        Err(why) => (Some(why), None),
    };
    (Sent { kind, ended: Instant::now(), lost }, value)
}

async fn connect(address: SocketAddr) -> Result<SendRequest<Body>, String> {
    let stream = TcpStream::connect(address).await.map_err(|error| format!("no connection: {error}"))?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|error| format!("{error:?}"))?;
    // An error of the connection reaches the request, or the body of the answer.
    tokio::spawn(async move { drop(connection.await) });
    Ok(sender)
}

/// Returns a connection on which the next request can be sent: the same one, unless the server has closed it.
async fn open(mut sender: SendRequest<Body>, address: SocketAddr) -> Result<SendRequest<Body>, String> {
    if sender.ready().await.is_ok() { Ok(sender) } else { connect(address).await }
}

/// Sends a request and reads its answer to the end.
async fn exchange(sender: &mut SendRequest<Body>, kind: Kind, number: usize) -> Result<(), String> {
    let answered = sender.send_request(kind.request(number)).await;
    let answer = answered.map_err(|error| format!("no answer: {error:?}"))?;
    let status = answer.status();
    let read = answer.into_body().collect().await;
    let bytes = read.map_err(|error| format!("{status}, and then half an answer: {error:?}"))?.to_bytes();
    kind.fault(status, &String::from_utf8_lossy(&bytes)).map_or(Ok(()), Err)
}
