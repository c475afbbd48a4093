//! `/healthz`, `/readyz` and `/metrics`, over plain HTTP.

use std::{net::SocketAddr, sync::Arc, time::Duration};

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
    /// The process waits for the Lease, fills its caches, or stops.
    Standby,
    /// The process holds the Lease, has filled its caches and reconciles.
    Active(Arc<Leader>),
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

/// Only the active leader is ready, so that the Service routes reports to it.
async fn ready(State(health): State<Health>) -> Response {
    match &*health.leadership.borrow() {
        Leadership::Active(_) => (StatusCode::OK, "ok\n").into_response(),
        Leadership::Standby => {
            let why = "not the active leader: waiting for the Lease, filling the caches or stopping\n";
            (StatusCode::SERVICE_UNAVAILABLE, why).into_response()
        }
    }
}

async fn text(State(health): State<Health>) -> Response {
    // What a process knew while it led is not shown after that.
    let census = match &*health.leadership.borrow() {
        Leadership::Active(leader) => Census::of(leader),
        Leadership::Standby => Census::default(),
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

    use super::{Health, Leadership, router};
    use crate::{
        census::Leader,
        inbox::Inbox,
        metrics::Metrics,
        observe::{Queues, Stores, Writers},
    };

    #[tokio::test]
    async fn a_standby_process_is_alive_but_not_ready() {
        let (sender, leadership) = watch::channel(Leadership::Standby);
        let router = router(Health { metrics: Metrics::new().unwrap(), leadership });
        let ask = |path: &'static str| {
            let router = router.clone();
            async move { router.oneshot(Request::get(path).body(Body::empty()).unwrap()).await.unwrap().status() }
        };
        assert_eq!(ask("/healthz").await, StatusCode::OK);
        assert_eq!(ask("/readyz").await, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(ask("/metrics").await, StatusCode::OK);
        let stores = Stores::of(&mut Writers::default()).into();
        let (queues, _requests) = Queues::new();
        let leader = Leader { stores, inbox: Inbox::default().into(), queues, since: Timestamp::UNIX_EPOCH };
        sender.send_replace(Leadership::Active(leader.into()));
        assert_eq!(ask("/readyz").await, StatusCode::OK);
        assert_eq!(ask("/metrics").await, StatusCode::OK);
        assert_eq!(ask("/elsewhere").await, StatusCode::NOT_FOUND);
    }
}
