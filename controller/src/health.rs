//! `/healthz`, `/readyz` and `/metrics`, over plain HTTP.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use axum_server::Handle;
use kube::Resource;
use tokio::sync::watch;

use crate::{
    kinds::kinds,
    metrics::{self, Metrics},
    observe::{Kind, Stores},
};

/// Whether a process is the active leader.
#[derive(Clone)]
pub enum Leadership {
    /// The process waits for the Lease, fills its caches, or stops.
    Standby,
    /// The process holds the Lease, has filled these caches and reconciles.
    Active(Arc<Stores>),
}

/// The state of the health endpoints.
#[derive(Clone)]
pub struct Health {
    /// The metrics.
    pub metrics: Metrics,
    /// Whether the process is the active leader.
    pub leadership: watch::Receiver<Leadership>,
}

/// Serves until `handle` is shut down.
///
/// # Errors
/// When the address cannot be bound.
pub async fn serve(address: SocketAddr, handle: Handle<SocketAddr>, health: Health) -> std::io::Result<()> {
    axum_server::bind(address).handle(handle).serve(router(health).into_make_service()).await
}

fn router(health: Health) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(text))
        .with_state(health)
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
    if let Leadership::Active(stores) = &*health.leadership.borrow() {
        count(&health.metrics, stores);
    }
    match health.metrics.text() {
        Ok(text) => ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(failure) => (StatusCode::INTERNAL_SERVER_ERROR, failure.to_string()).into_response(),
    }
}

macro_rules! count_objects {
    (
        reconciled { $($reconciled:ident: $kind:ty, $label:expr;)* }
        referenced { $($referenced:ident: $referenced_kind:ty;)* }
    ) => {
        /// Counts the objects by kind and phase. It runs only when metrics are requested.
        fn count(metrics: &Metrics, stores: &Stores) {
            let mut phases = Vec::new();
            $(phases.extend(stores.$reconciled.state().iter().map(|object| (<$kind>::kind(&()), object.phase())));)*
            $(phases.extend(
                stores.$referenced.state().iter().map(|object| (<$referenced_kind>::kind(&()), object.phase())),
            );)*
            metrics.count(phases.iter().map(|(kind, phase)| (&**kind, &**phase)));
        }
    };
}

kinds!(count_objects);

#[cfg(test)]
mod tests {
    use axum::{
        body::Body,
        http::{Request, StatusCode},
    };
    use tokio::sync::watch;
    use tower::ServiceExt;

    use super::{Health, Leadership, router};
    use crate::{
        metrics::Metrics,
        observe::{Stores, Writers},
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
        sender.send_replace(Leadership::Active(Stores::of(&mut Writers::default()).into()));
        assert_eq!(ask("/readyz").await, StatusCode::OK);
        assert_eq!(ask("/metrics").await, StatusCode::OK);
        assert_eq!(ask("/elsewhere").await, StatusCode::NOT_FOUND);
    }
}
