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
use codex_reports::Kind;
use tokio::sync::watch;

use crate::{
    metrics::{self, Metrics},
    observe::Stores,
};

/// Where a process stands.
#[derive(Clone)]
pub enum Standing {
    /// It waits for the Lease, or for its first look at the cluster.
    Waiting,
    /// It acts.
    Acting(Arc<Stores>),
}

/// What the three paths answer from.
#[derive(Clone)]
pub struct Health {
    /// The counters.
    pub metrics: Metrics,
    /// Where the process stands.
    pub standing: watch::Receiver<Standing>,
}

/// Serves until `handle` is shut down.
///
/// # Errors
/// When the address cannot be listened on.
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

/// Ready is who acts: only then does the Service lead reports here.
async fn ready(State(health): State<Health>) -> Response {
    match &*health.standing.borrow() {
        Standing::Acting(_) => (StatusCode::OK, "ok\n").into_response(),
        Standing::Waiting => {
            let why = "waiting for the Lease or for the first look at the cluster\n";
            (StatusCode::SERVICE_UNAVAILABLE, why).into_response()
        }
    }
}

async fn text(State(health): State<Health>) -> Response {
    if let Standing::Acting(stores) = &*health.standing.borrow() {
        count(&health.metrics, stores);
    }
    match health.metrics.text() {
        Ok(text) => ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(failure) => (StatusCode::INTERNAL_SERVER_ERROR, failure.to_string()).into_response(),
    }
}

/// Counts objects when somebody asks, so that counting costs nothing otherwise.
fn count(metrics: &Metrics, stores: &Stores) {
    let runs = stores.runs.state().into_iter().map(|run| {
        let phase = run.status.as_ref().and_then(|status| status.phase).map(|phase| format!("{phase:?}"));
        (Kind::TrainingRun, phase)
    });
    let evaluations = stores.evaluations.state().into_iter().map(|evaluation| {
        let verdict = evaluation.status.as_ref().and_then(|status| status.verdict);
        (Kind::Evaluation, verdict.map(|verdict| format!("{verdict:?}")))
    });
    let pods = stores.pods.state().into_iter().map(|pod| {
        let phase = pod.status.as_ref().and_then(|status| status.phase).map(|phase| format!("{phase:?}"));
        (Kind::ReasoningPod, phase)
    });
    let all: Vec<_> = runs.chain(evaluations).chain(pods).collect();
    metrics.count(all.iter().map(|(kind, phase)| (*kind, phase.as_deref().unwrap_or("Pending"))));
}

#[cfg(test)]
mod tests {
    use axum::{
        body::Body,
        http::{Request, StatusCode},
    };
    use tokio::sync::watch;
    use tower::ServiceExt;

    use super::{Health, Standing, router};
    use crate::{metrics::Metrics, observe::Stores};

    #[tokio::test]
    async fn a_process_that_waits_is_alive_and_not_ready() {
        let (sender, standing) = watch::channel(Standing::Waiting);
        let router = router(Health { metrics: Metrics::new().unwrap(), standing });
        let ask = |path: &'static str| {
            let router = router.clone();
            async move { router.oneshot(Request::get(path).body(Body::empty()).unwrap()).await.unwrap().status() }
        };
        assert_eq!(ask("/healthz").await, StatusCode::OK);
        assert_eq!(ask("/readyz").await, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(ask("/metrics").await, StatusCode::OK);
        sender.send_replace(Standing::Acting(Stores::empty().into()));
        assert_eq!(ask("/readyz").await, StatusCode::OK);
        assert_eq!(ask("/metrics").await, StatusCode::OK);
        assert_eq!(ask("/elsewhere").await, StatusCode::NOT_FOUND);
    }
}
