//! `/healthz`, `/readyz` and `/metrics`, over plain HTTP.

use std::{fmt, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use codex_http::{Limits, Server, with_fallbacks};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;

use crate::{
    census::{Census, Leader},
    metrics::{self, Metrics, Port},
};

/// Whether a process is the active leader.
#[derive(Clone)]
pub enum Leadership {
    /// The process does not reconcile.
    Standby(Standby),
    /// The process holds the Lease, has filled its caches and reconciles.
    Active(Arc<Leader>),
}

/// Why a process does not reconcile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standby {
    /// It starts.
    Starting,
    /// Its keys cannot be loaded, for this reason.
    Keys(String),
    /// Another process holds the Lease, as this sentence says: it stands by, which is what it is to do.
    Ready(String),
    /// It cannot read or write the Lease, for this reason.
    Lease(String),
    /// Another installation reconciles its objects, as this sentence says.
    Objects(String),
    /// It holds the Lease and fills its caches; this sentence says what fails meanwhile.
    Caches(String),
    /// It reconciles, but no report reaches it: its pod cannot be labelled, for this reason.
    Label(String),
    /// It stops.
    Stopping,
}

impl fmt::Display for Standby {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Starting => f.write_str("not the active leader: starting"),
            Self::Keys(why) => write!(f, "not ready, and tried again: {why}"),
            Self::Ready(why) => write!(f, "standing by: {why}"),
            Self::Lease(why) => write!(f, "not the active leader: waiting for the Lease: {why}"),
            Self::Objects(why) => write!(f, "not the active leader: {why}"),
            Self::Caches(why) if why.is_empty() => f.write_str("the active leader, and not ready: filling the caches"),
            Self::Caches(why) => write!(f, "the active leader, and not ready: filling the caches: {why}"),
            Self::Label(why) => write!(f, "the active leader, and not ready: no report reaches it: {why}"),
            Self::Stopping => f.write_str("not the active leader: stopping"),
        }
    }
}

/// The state of the health endpoints.
#[derive(Clone)]
pub struct Health {
    /// The metrics.
    pub metrics: Metrics,
    /// Whether the process is the active leader.
    pub leadership: watch::Receiver<Leadership>,
}

/// What the port grants its clients.
const LIMITS: Limits = Limits {
    connections: 128,
    head: Duration::from_secs(10),
    body: Duration::from_secs(10),
    lifetime: Duration::from_mins(10),
};

/// Serves until `stop`.
///
/// # Errors
/// When the address cannot be bound.
pub async fn serve(address: SocketAddr, stop: CancellationToken, health: Health) -> std::io::Result<()> {
    let (listener, metrics) = (TcpListener::bind(address).await?, health.metrics.clone());
    let server = Server::new(listener, LIMITS).on_refused(move || metrics.refused_connection(Port::Health));
    server.serve(router(health), stop).await;
    Ok(())
}

fn router(health: Health) -> Router {
    let routes = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(text))
        .with_state(health);
    with_fallbacks(routes)
}

/// A process is ready if it reconciles, also if it may not list some kinds, or if it can take over from the one that does. The Service for reports selects the leader by
/// its label.
async fn ready(State(health): State<Health>) -> Response {
    match &*health.leadership.borrow() {
        Leadership::Active(leader) => {
            let failing = leader.failures.told();
            let told = if failing.is_empty() { String::new() } else { format!("; what is waited for: {failing}") };
            (StatusCode::OK, format!("ok{told}\n")).into_response()
        }
        Leadership::Standby(ready @ Standby::Ready(_)) => (StatusCode::OK, format!("{ready}\n")).into_response(),
        Leadership::Standby(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

async fn text(State(health): State<Health>) -> Response {
    // What a process knew while it led is not shown after that.
    let leader = match &*health.leadership.borrow() {
        Leadership::Active(leader) => Some(Arc::clone(leader)),
        Leadership::Standby(_) => None,
    };
    let census = match leader {
        Some(leader) => Census::of(&leader).await,
        None => Census::default(),
    };
    health.metrics.count(&census);
    match health.metrics.text() {
        Ok(text) => ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(failure) => (StatusCode::INTERNAL_SERVER_ERROR, failure.to_string()).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use axum::{
        body::Body,
        http::{Request, StatusCode},
    };
    use jiff::Timestamp;
    use tokio::sync::watch;
    use tower::ServiceExt;

    use super::{Health, Leadership, Standby, router};
    use crate::{
        census::Leader,
        inbox::Inbox,
        metrics::Metrics,
        observe::{Failures, Queues, Stores, Writers},
    };

    #[tokio::test]
    async fn a_process_is_ready_if_it_leads_or_waits_for_a_leader_to_end() {
        let (sender, leadership) = watch::channel(Leadership::Standby(Standby::Starting));
        let router = router(Health { metrics: Metrics::new().unwrap(), leadership });
        let ask = |path: &'static str| {
            let router = router.clone();
            async move { router.oneshot(Request::get(path).body(Body::empty()).unwrap()).await.unwrap().status() }
        };
        let said = || {
            let router = router.clone();
            async move {
                let answer = router.oneshot(Request::get("/readyz").body(Body::empty()).unwrap()).await.unwrap();
                let bytes = axum::body::to_bytes(answer.into_body(), 1 << 16).await.unwrap();
                String::from_utf8(bytes.to_vec()).unwrap()
            }
        };
        assert_eq!(ask("/healthz").await, StatusCode::OK);
        assert_eq!(ask("/readyz").await, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(ask("/metrics").await, StatusCode::OK);
        for (why, told) in [
            (
                Standby::Keys("the Secret a is damaged".to_owned()),
                "not ready, and tried again: the Secret a is damaged\n",
            ),
            (
                Standby::Lease("the Lease a cannot be read".to_owned()),
                "waiting for the Lease: the Lease a cannot be read\n",
            ),
            (Standby::Objects("another controller owns the objects".to_owned()), "another controller owns the objects"),
            (Standby::Caches(String::new()), "filling the caches\n"),
            (Standby::Caches("the right is missing".to_owned()), "filling the caches: the right is missing\n"),
            (Standby::Label("the pod a is missing".to_owned()), "no report reaches it: the pod a is missing\n"),
            (Standby::Stopping, "stopping"),
        ] {
            sender.send_replace(Leadership::Standby(why));
            assert_eq!(ask("/readyz").await, StatusCode::SERVICE_UNAVAILABLE);
            assert!(said().await.contains(told), "{told}");
        }
        sender.send_replace(Leadership::Standby(Standby::Ready("the Lease a is held by b".to_owned())));
        assert_eq!(ask("/readyz").await, StatusCode::OK);
        assert_eq!(said().await, "standing by: the Lease a is held by b\n");
        let stores = Stores::of(&mut Writers::default()).into();
        let (queues, _requests) = Queues::new();
        let (failures, inbox) = (Failures::default(), Inbox::default().into());
        let leader = Leader { stores, inbox, queues, failures: failures.clone(), since: Timestamp::UNIX_EPOCH };
        sender.send_replace(Leadership::Active(leader.into()));
        assert_eq!((ask("/readyz").await, said().await.as_str()), (StatusCode::OK, "ok\n"));
        failures.set("Job", 0, Some("the right to list jobs is missing".to_owned()));
        let told = "ok; what is waited for: the right to list jobs is missing\n";
        assert_eq!((ask("/readyz").await, said().await.as_str()), (StatusCode::OK, told), "other kinds go on");
        assert_eq!(ask("/metrics").await, StatusCode::OK);
        assert_eq!(ask("/elsewhere").await, StatusCode::NOT_FOUND);
    }
}
