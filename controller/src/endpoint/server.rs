//! The server of the report endpoint.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State, rejection::BytesRejection},
    http::{HeaderMap, HeaderValue, StatusCode, header::AUTHORIZATION},
    response::{IntoResponse, Response},
    routing::post,
};
use codex_http::{Limits, Server, with_fallbacks};
use codex_plan::{Received, RefusedPod, SECOND_WRITER};
use codex_reports::{CHALLENGE_HEADER, Kind, MAX_BYTES, PATH, Report, SCHEMA_VERSION, Stage};
use kube::{Client, ResourceExt};
use serde::Deserialize;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, oneshot, watch},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{rejection::Rejection, sender, token::TokenReviewer, writer};
use crate::{
    by_uid::ByUid,
    context::Context,
    error::chain,
    fence::Fence,
    inbox::Offer,
    metrics::{Metrics, Port},
    observe::Name,
};

/// How long a final report waits until its contents are in `status`.
const STATUS_TIMEOUT: Duration = Duration::from_secs(20);
/// The maximum number of reports that are checked at once. Further reports are answered with 503.
const MAX_CONCURRENT: usize = 256;

/// The state of the report endpoint.
#[derive(Clone)]
pub struct Endpoint {
    metrics: Metrics,
    /// The context while this process is the active leader.
    active: watch::Receiver<Option<Arc<Context>>>,
    /// The fence of its writes, if there is one.
    fence: Option<Fence>,
    tokens: Arc<TokenReviewer>,
    permits: Arc<Semaphore>,
    /// The request of each pod, by its uid, that waits for the status. Dropping the sender ends the request.
    waiting: Arc<ByUid<oneshot::Sender<()>>>,
    status_timeout: Duration,
}

impl Endpoint {
    /// Creates an endpoint that accepts reports while `active` holds a context.
    pub fn new(client: Client, metrics: Metrics, active: watch::Receiver<Option<Arc<Context>>>) -> Self {
        Self {
            metrics,
            active,
            fence: None,
            tokens: Arc::new(TokenReviewer::new(client)),
            permits: Arc::new(Semaphore::new(MAX_CONCURRENT)),
            waiting: Arc::default(),
            status_timeout: STATUS_TIMEOUT,
        }
    }

    /// Sets the fence: while it is closed, reports are refused. A process that stood still may have lost the Lease without knowing it.
    #[must_use]
    pub fn behind(self, fence: Fence) -> Self {
        Self { fence: Some(fence), ..self }
    }

    /// Returns the context if this process is the active leader and may write.
    fn leads(&self) -> Result<Arc<Context>, Rejection> {
        let may_write = self.fence.as_ref().is_none_or(Fence::is_open);
        self.active
            .borrow()
            .clone()
            .filter(|_| may_write)
            .ok_or_else(|| Rejection::Unavailable("this controller is not the active leader".to_owned()))
    }
}

#[cfg(test)]
impl Endpoint {
    /// Sets how long final reports wait for the status.
    pub(crate) fn with_status_timeout(self, status_timeout: Duration) -> Self {
        Self { status_timeout, ..self }
    }

    /// Sets how many reports are checked at once.
    pub(crate) fn with_permits(self, permits: usize) -> Self {
        Self { permits: Arc::new(Semaphore::new(permits)), ..self }
    }
}

/// What the endpoint grants its clients. A connection holds about 100 KiB at most.
pub(crate) const LIMITS: Limits = Limits {
    connections: 1024,
    head: Duration::from_secs(10),
    body: Duration::from_secs(10),
    lifetime: Duration::from_mins(10),
};

/// Serves until `stop`.
///
/// # Errors
/// When the address cannot be bound.
pub async fn serve(
    address: SocketAddr,
    stop: CancellationToken,
    tls: Arc<rustls::ServerConfig>,
    endpoint: Endpoint,
) -> std::io::Result<()> {
    serve_on(TcpListener::bind(address).await?, LIMITS, stop, tls, endpoint).await;
    Ok(())
}

pub(crate) async fn serve_on(
    listener: TcpListener,
    limits: Limits,
    stop: CancellationToken,
    tls: Arc<rustls::ServerConfig>,
    endpoint: Endpoint,
) {
    let metrics = endpoint.metrics.clone();
    let server = Server::new(listener, limits).with_tls(tls);
    server.on_refused(move || metrics.refused_connection(Port::Reports)).serve(router(endpoint), stop).await;
}

pub(crate) fn router(endpoint: Endpoint) -> Router {
    let routes = Router::new().route(PATH, post(handle)).layer(DefaultBodyLimit::max(MAX_BYTES));
    with_fallbacks(routes.with_state(endpoint))
}

async fn handle(State(endpoint): State<Endpoint>, headers: HeaderMap, body: Result<Bytes, BytesRejection>) -> Response {
    let mut known = Known::default();
    let offered = endpoint.accept(&headers, body, &mut known).await;
    let (metrics, kind) = (&endpoint.metrics, known.kind);
    let mut response = match offered {
        Ok(Offer::Accepted | Offer::Contradiction(_)) => {
            metrics.report(kind, "accepted");
            (StatusCode::OK, "accepted\n").into_response()
        }
        Ok(Offer::Stale) => {
            metrics.report(kind, "stale");
            (StatusCode::OK, "dropped: a newer report of this pod is known\n").into_response()
        }
        // Every writer begins so: it is no report yet.
        Err(rejection @ Rejection::Challenge) => (rejection.status(), format!("{rejection}\n")).into_response(),
        Err(rejection) => {
            metrics.report(kind, rejection.result());
            match &rejection {
                Rejection::Client { .. } => warn!(error = chain(&rejection), "a report could not be checked"),
                Rejection::Unavailable(_) => debug!("a report was deferred: {rejection}"),
                _ => info!("a report was rejected: {rejection}"),
            }
            (rejection.status(), format!("{rejection}\n")).into_response()
        }
    };
    if let Some(challenge) = known.challenge.and_then(|challenge| HeaderValue::from_str(&challenge).ok()) {
        response.headers_mut().insert(CHALLENGE_HEADER, challenge);
    }
    response
}

/// What is known about a request when it is answered.
#[derive(Default)]
struct Known {
    /// The kind of its object.
    kind: Option<&'static str>,
    /// The challenge for the next request of its pod.
    challenge: Option<String>,
}

impl Endpoint {
    async fn accept(
        &self,
        headers: &HeaderMap,
        body: Result<Bytes, BytesRejection>,
        known: &mut Known,
    ) -> Result<Offer, Rejection> {
        let context = self.leads()?;
        let Ok(permit) = self.permits.try_acquire() else {
            return Err(Rejection::Unavailable("too many concurrent reports".to_owned()));
        };
        let pod = self.tokens.review(bearer(headers)?).await?;
        // The review may have taken long.
        self.leads()?;
        let body = body.map_err(|why| match why.status() {
            StatusCode::PAYLOAD_TOO_LARGE => Rejection::TooLarge,
            _ => Rejection::Invalid(format!("the report cannot be read: {why}")),
        })?;
        let report = parse(&body)?;
        known.kind = Some(report.kind.name());
        let checked = match sender::authorize(&context, &pod, &report).await {
            Ok(live) => {
                known.challenge = Some(writer::challenge(&context.seal, &live, context.now()));
                writer::check(
                    (&context.writers, &context.seal),
                    (&report.object_uid, report.kind, &live),
                    (headers, &body),
                    context.now(),
                )
            }
            Err(rejection) => Err(rejection),
        };
        if let Err(rejection) = checked {
            if let Rejection::Changed(why) = &rejection {
                // The status names it at the first refusal, before the pod's work is lost.
                let refused = RefusedPod { pod: pod.name.clone(), why: why.clone() };
                context.refused.lock().entry(report.object_uid.clone()).or_default().insert(refused);
                context.queues.add_kind(report.kind.name(), &report.namespace, &report.name);
            }
            return Err(rejection);
        }
        if let Some(refused) = context.refused.lock().get_mut(&report.object_uid) {
            // A second process that holds the pod's token stays named.
            refused.retain(|refused| refused.pod != pod.name || refused.why == SECOND_WRITER);
        }
        let (object, seq) = (report.object_uid.clone(), report.seq);
        // The pod sends nothing after this report, so it must not get lost.
        let last = matches!(report.state.stage(), Stage::Finished | Stage::Failed);
        let (namespace, name) = (report.namespace.clone(), report.name.clone());
        let report_kind = report.kind.name();
        let received = Received { report, pod: pod.name.clone(), at: context.now(), contradiction: None };
        let offered = context.inbox.offer(received);
        if offered == Offer::Stale {
            return Ok(Offer::Stale);
        }
        context.queues.add_kind(report_kind, &namespace, &name);
        if report_kind == Kind::ReasoningPod.name() {
            // A shadow accepts the copies of the server from now on.
            for shadow in shadow_names(&context, &namespace, &name) {
                context.queues.add_kind(report_kind, &namespace, &shadow);
            }
        }
        if let Offer::Contradiction(difference) = offered {
            let why = format!("the report contradicts an earlier final report of the pod {}: {difference}", pod.name);
            return Err(Rejection::Forbidden(why));
        }
        // The check is done: a request that waits for the status must not block others.
        drop(permit);
        if last {
            self.recorded(&context, &object, &pod.uid, seq).await?;
        }
        Ok(Offer::Accepted)
    }

    /// Waits until the contents of a final report are in `status`. One request of each pod waits: a newer one ends the
    /// older one.
    async fn recorded(&self, context: &Context, object: &str, pod: &str, seq: u64) -> Result<(), Rejection> {
        let (newest, replaced) = oneshot::channel();
        {
            let mut waiting = self.waiting.lock();
            waiting.retain(|_, newest| !newest.is_closed());
            waiting.insert(pod.to_owned(), newest);
        }
        tokio::select! {
            biased;
            recorded = context.inbox.is_recorded(object, pod, seq, self.status_timeout) => if recorded {
                Ok(())
            } else {
                Err(Rejection::Unavailable("the report is not in the status yet".to_owned()))
            },
            _ = replaced => Err(Rejection::Unavailable("a newer request of this pod waits for the status".to_owned())),
        }
    }
}

/// Returns the names of the ReasoningPods that shadow a ReasoningPod.
fn shadow_names(context: &Context, namespace: &str, name: &str) -> Vec<String> {
    let naming = context.stores.reasoning_pods.naming(namespace, &Name::ReasoningPod(name.to_owned()));
    let shadows = naming.iter().filter(|pod| pod.spec.shadow.as_ref().is_some_and(|shadow| shadow.of == name));
    shadows.map(|pod| pod.name_any()).collect()
}

fn bearer(headers: &HeaderMap) -> Result<&str, Rejection> {
    let value = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    value.and_then(|value| value.strip_prefix("Bearer ")).map(str::trim).filter(|token| !token.is_empty()).ok_or_else(
        || Rejection::Unauthenticated("send the pod's projected token as `Authorization: Bearer TOKEN`".to_owned()),
    )
}

fn parse(body: &[u8]) -> Result<Report, Rejection> {
    /// The version is read first: other versions may have other fields.
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Versioned {
        schema_version: u32,
    }
    let unreadable = |why: serde_json::Error| Rejection::Invalid(format!("the body is not a valid report: {why}"));
    let Versioned { schema_version } = serde_json::from_slice(body).map_err(unreadable)?;
    if schema_version != SCHEMA_VERSION {
        return Err(Rejection::Invalid(format!(
            "schemaVersion is {schema_version}; this controller supports only {SCHEMA_VERSION}"
        )));
    }
    serde_json::from_slice(body).map_err(unreadable)
}
