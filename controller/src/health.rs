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
use codex_crds::{ConditionType, EvaluationStatus};
use codex_plan::conditions::{find, is_true};
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
    let evaluations = stores
        .evaluations
        .state()
        .into_iter()
        .map(|evaluation| (Kind::Evaluation, evaluation.status.as_ref().map(phase)));
    let pods = stores.pods.state().into_iter().map(|pod| {
        let phase = pod.status.as_ref().and_then(|status| status.phase).map(|phase| format!("{phase:?}"));
        (Kind::ReasoningPod, phase)
    });
    let all: Vec<_> = runs.chain(evaluations).chain(pods).collect();
    metrics.count(all.iter().map(|(kind, phase)| (*kind, phase.as_deref().unwrap_or("Pending"))));
}

/// Where an evaluation stands: its verdict, and before that what its conditions say.
fn phase(status: &EvaluationStatus) -> String {
    if let Some(verdict) = status.verdict {
        return format!("{verdict:?}");
    }
    let ready = find(&status.conditions, ConditionType::Ready).map(|ready| ready.reason.as_str());
    let phase = match ready {
        _ if is_true(&status.conditions, ConditionType::Stalled) => "Failed",
        Some("Suspended") => "Suspended",
        Some("Running") => "Running",
        _ => "Pending",
    };
    phase.to_owned()
}

#[cfg(test)]
mod tests {
    use axum::{
        body::Body,
        http::{Request, StatusCode},
    };
    use tokio::sync::watch;
    use tower::ServiceExt;

    use codex_crds::EvaluationStatus;
    use serde_json::json;

    use super::{Health, Standing, phase, router};
    use crate::{metrics::Metrics, observe::Stores};

    #[test]
    fn an_evaluation_is_counted_by_its_verdict_and_before_that_by_what_it_does() {
        let status = |verdict: Option<&str>, stalled: &str, reason: &str| -> EvaluationStatus {
            let condition = |kind: &str, status: &str| json!({"type": kind, "status": status, "reason": reason, "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"});
            let conditions = [condition("Ready", "False"), condition("Stalled", stalled)];
            serde_json::from_value(json!({ "verdict": verdict, "conditions": conditions })).unwrap()
        };
        for (verdict, stalled, reason, expected) in [
            (Some("Inconclusive"), "False", "Succeeded", "Inconclusive"),
            (None, "True", "PodFailed", "Failed"),
            (None, "False", "Running", "Running"),
            (None, "False", "Suspended", "Suspended"),
            (None, "False", "WaitingForPod", "Pending"),
        ] {
            assert_eq!(phase(&status(verdict, stalled, reason)), expected);
        }
        assert_eq!(phase(&EvaluationStatus::default()), "Pending");
    }

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
