//! The report endpoint: pods say how far they are, over HTTPS. I/O.
//!
//! Who speaks is settled before what is said: the token's pod, by uid, down to the object that it works for. Refusals
//! are sentences for whoever reads the pod's log.

mod inbox;
mod sender;
mod token;

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State, rejection::BytesRejection},
    http::{HeaderMap, StatusCode, header::AUTHORIZATION},
    response::{IntoResponse, Response},
    routing::post,
};
use axum_server::{Handle, tls_rustls::RustlsConfig};
use codex_plan::Received;
use codex_reports::{Kind, MAX_BYTES, PATH, Report, SCHEMA_VERSION, Stage, State as Said};
use kube::Client;
use serde::Deserialize;
use tokio::sync::{Semaphore, oneshot, watch};
use tracing::{debug, info, warn};

pub use inbox::{Inbox, Offer};
pub use token::Tokens;

use crate::{context::Context, error::chain, metrics::Metrics};

/// How long a final report waits for its place in the status.
const PATIENCE: Duration = Duration::from_secs(20);
/// How many reports are looked at at once; who comes on top is asked to come again.
const AT_ONCE: usize = 256;

/// Why a report is not taken.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The sender is not who it must be, or not genuine.
    #[error("{0}")]
    Forbidden(String),
    /// No token, or one that is good for nothing here.
    #[error("{0}")]
    Unauthenticated(String),
    /// The report is none.
    #[error("{0}")]
    Invalid(String),
    /// More bytes than a report may have.
    #[error("a report has at most {MAX_BYTES} bytes")]
    TooLarge,
    /// Not now.
    #[error("{0}: offer it again")]
    Unavailable(String),
    /// The API server does not answer.
    #[error("{what}: offer it again")]
    Client {
        /// What was asked.
        what: String,
        /// Why.
        #[source]
        source: Box<kube::Error>,
    },
}

impl Refusal {
    fn status(&self) -> StatusCode {
        match self {
            Self::Forbidden(_) => StatusCode::FORBIDDEN,
            Self::Unauthenticated(_) => StatusCode::UNAUTHORIZED,
            Self::Invalid(_) => StatusCode::BAD_REQUEST,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Unavailable(_) | Self::Client { .. } => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The result as metrics carry it.
    fn result(&self) -> &'static str {
        match self {
            Self::Forbidden(_) => "refused",
            Self::Unauthenticated(_) => "unauthenticated",
            Self::Invalid(_) | Self::TooLarge => "invalid",
            Self::Unavailable(_) | Self::Client { .. } => "unavailable",
        }
    }
}

/// What the endpoint answers from.
#[derive(Clone)]
pub struct Endpoint {
    metrics: Metrics,
    /// The context of a process that acts; none while it waits.
    acting: watch::Receiver<Option<Arc<Context>>>,
    tokens: Arc<Tokens>,
    at_once: Arc<Semaphore>,
    waiting: Arc<Mutex<Waiting>>,
    patience: Duration,
}

/// Of each pod, by its uid, whoever waits for the status: dropping the sender sends it away.
type Waiting = HashMap<String, oneshot::Sender<()>>;

impl Endpoint {
    /// Answers from `acting`.
    pub fn new(client: Client, metrics: Metrics, acting: watch::Receiver<Option<Arc<Context>>>) -> Self {
        Self {
            metrics,
            acting,
            tokens: Arc::new(Tokens::new(client)),
            at_once: Arc::new(Semaphore::new(AT_ONCE)),
            waiting: Arc::default(),
            patience: PATIENCE,
        }
    }
}

#[cfg(test)]
impl Endpoint {
    /// Makes final reports wait no longer than `patience`.
    pub(crate) fn patient_for(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Looks at no more than `places` reports at once.
    pub(crate) fn with_places(self, places: usize) -> Self {
        Self { at_once: Arc::new(Semaphore::new(places)), ..self }
    }
}

/// Serves until `handle` is shut down.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn serve(
    address: SocketAddr,
    handle: Handle<SocketAddr>,
    tls: Arc<rustls::ServerConfig>,
    endpoint: Endpoint,
) -> std::io::Result<()> {
    let mut server = axum_server::bind_rustls(address, RustlsConfig::from_config(tls)).handle(handle);
    // Whoever sends a header slowly does not hold a place for long.
    server.http_builder().http1().header_read_timeout(Duration::from_secs(10)).timer(hyper_util::rt::TokioTimer::new());
    server.serve(router(endpoint).into_make_service()).await
}

pub(crate) fn router(endpoint: Endpoint) -> Router {
    Router::new().route(PATH, post(take)).layer(DefaultBodyLimit::max(MAX_BYTES)).with_state(endpoint)
}

async fn take(State(endpoint): State<Endpoint>, headers: HeaderMap, body: Result<Bytes, BytesRejection>) -> Response {
    let mut kind = None;
    let taken = endpoint.take(&headers, body, &mut kind).await;
    let metrics = &endpoint.metrics;
    match taken {
        Ok(Offer::Taken) => {
            metrics.report(kind, "accepted");
            (StatusCode::OK, "taken\n").into_response()
        }
        Ok(Offer::Stale) => {
            metrics.report(kind, "stale");
            (StatusCode::OK, "a newer report of this pod is known: dropped\n").into_response()
        }
        Err(refusal) => {
            metrics.report(kind, refusal.result());
            match &refusal {
                Refusal::Client { .. } => warn!(error = chain(&refusal), "a report could not be checked"),
                Refusal::Unavailable(_) => debug!("a report has to be offered again: {refusal}"),
                _ => info!("a report is refused: {refusal}"),
            }
            (refusal.status(), format!("{refusal}\n")).into_response()
        }
    }
}

impl Endpoint {
    async fn take(
        &self,
        headers: &HeaderMap,
        body: Result<Bytes, BytesRejection>,
        kind: &mut Option<Kind>,
    ) -> Result<Offer, Refusal> {
        let Some(context) = self.acting.borrow().clone() else {
            return Err(Refusal::Unavailable("this controller does not act now".to_owned()));
        };
        let Ok(place) = self.at_once.try_acquire() else {
            return Err(Refusal::Unavailable("too many reports at once".to_owned()));
        };
        let pod = self.tokens.review(bearer(headers)?).await?;
        let body = body.map_err(|why| match why.status() {
            StatusCode::PAYLOAD_TOO_LARGE => Refusal::TooLarge,
            _ => Refusal::Invalid(format!("the report cannot be read: {why}")),
        })?;
        let report = parse(&body)?;
        *kind = Some(report.kind);
        sender::check(&context, &pod, &report).await?;
        let (object, seq, last) = (report.object_uid.clone(), report.seq, is_final(&report.state));
        let (namespace, name, sent) = (report.namespace.clone(), report.name.clone(), report.kind);
        let received = Received { report, pod: pod.name.clone(), at: context.now() };
        if context.inbox.offer(received) == Offer::Stale {
            return Ok(Offer::Stale);
        }
        context.wake.wake(sent, &namespace, &name);
        // Who waits is looked at no more: others may come meanwhile.
        drop(place);
        if last {
            self.recorded(&context, &object, &pod.uid, seq).await?;
        }
        Ok(Offer::Taken)
    }

    /// Waits until the status holds a final report. Of each pod one request waits: the newer takes the place of the older.
    async fn recorded(&self, context: &Context, object: &str, pod: &str, seq: u64) -> Result<(), Refusal> {
        let (stay, sent_away) = oneshot::channel();
        {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.retain(|_, stay| !stay.is_closed());
            waiting.insert(pod.to_owned(), stay);
        }
        tokio::select! {
            biased;
            recorded = context.inbox.is_recorded(object, pod, seq, self.patience) => if recorded {
                Ok(())
            } else {
                Err(Refusal::Unavailable("the result is not in the status yet".to_owned()))
            },
            _ = sent_away => Err(Refusal::Unavailable("a newer request of this pod waits for the status".to_owned())),
        }
    }
}

/// Whether nothing comes after this: then it must not get lost.
fn is_final(state: &Said) -> bool {
    let stage = match state {
        Said::Training(state) => state.stage,
        Said::Evaluation(state) => state.stage,
        Said::Serving(state) => state.stage,
    };
    matches!(stage, Stage::Finished | Stage::Failed)
}

fn bearer(headers: &HeaderMap) -> Result<&str, Refusal> {
    let value = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    value.and_then(|value| value.strip_prefix("Bearer ")).map(str::trim).filter(|token| !token.is_empty()).ok_or_else(
        || Refusal::Unauthenticated("send the pod's projected token: `Authorization: Bearer TOKEN`".to_owned()),
    )
}

fn parse(body: &[u8]) -> Result<Report, Refusal> {
    /// Read first: of another version nothing else is known.
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Versioned {
        schema_version: u32,
    }
    let unreadable = |why: serde_json::Error| Refusal::Invalid(format!("the body is no report: {why}"));
    let Versioned { schema_version } = serde_json::from_slice(body).map_err(unreadable)?;
    if schema_version != SCHEMA_VERSION {
        return Err(Refusal::Invalid(format!(
            "schemaVersion is {schema_version}, and {SCHEMA_VERSION} is the one known here"
        )));
    }
    serde_json::from_slice(body).map_err(unreadable)
}
