//! Counts the requests to the API server, by verb and status code. A layer of the client.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use axum::http::{Method, Request, Response, Uri};
use tokio::time::Instant;
use tower::{Layer, Service};

use crate::metrics::Metrics;

/// A layer that counts requests.
#[derive(Clone)]
pub struct CountRequests(pub Metrics);

/// A client that counts requests.
#[derive(Clone)]
pub struct Counted<S> {
    inner: S,
    metrics: Metrics,
}

impl<S> Layer<S> for CountRequests {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Counted<S> {
        Counted { inner, metrics: self.0.clone() }
    }
}

impl<S, B, R> Service<Request<B>> for Counted<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (verb, began, metrics) = (verb(request.method(), request.uri()), Instant::now(), self.metrics.clone());
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await;
            let code = answer.as_ref().ok().map(|answer| answer.status().as_u16());
            // A watch is answered at once and then lasts for minutes.
            metrics.requested(verb, code, (verb != "watch").then(|| began.elapsed()));
            answer
        })
    }
}

/// Returns the verb as Kubernetes names it.
fn verb(method: &Method, uri: &Uri) -> &'static str {
    let watches = |query: &str| query.split('&').any(|part| matches!(part, "watch=true" | "watch=1"));
    match *method {
        Method::GET if uri.query().is_some_and(watches) => "watch",
        Method::GET if names_one(uri.path()) => "get",
        Method::GET => "list",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "other",
    }
}

/// Returns whether a path names one thing and not a collection: `/api/v1/…` or `/apis/GROUP/VERSION/…`, then possibly
/// `namespaces/NAME`, then `RESOURCE`, possibly with `/NAME` and more.
fn names_one(path: &str) -> bool {
    let parts: Vec<_> = path.split('/').filter(|part| !part.is_empty()).collect();
    let prefix = if parts.first() == Some(&"api") { 2 } else { 3 };
    match parts.get(prefix..).unwrap_or_default() {
        [] => true,
        ["namespaces", _, _, rest @ ..] | [_, rest @ ..] => !rest.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use axum::http::{Method, Request, Response};
    use tower::{Layer, ServiceExt, service_fn};

    use super::{CountRequests, verb};
    use crate::metrics::Metrics;

    #[test]
    fn verbs_are_those_of_kubernetes() {
        for (method, uri, expected) in [
            (Method::GET, "/apis/codex-ml.dev/v1alpha1/trainingruns?limit=500", "list"),
            (Method::GET, "/apis/codex-ml.dev/v1alpha1/namespaces/team/trainingruns", "list"),
            (Method::GET, "/apis/codex-ml.dev/v1alpha1/namespaces/team/trainingruns/x", "get"),
            (Method::GET, "/apis/codex-ml.dev/v1alpha1/namespaces/team/trainingruns/x/status", "get"),
            (Method::GET, "/apis/batch/v1/jobs?&watch=true&resourceVersion=7", "watch"),
            (Method::GET, "/api/v1/pods", "list"),
            (Method::GET, "/api/v1/namespaces", "list"),
            (Method::GET, "/api/v1/namespaces/team", "get"),
            (Method::GET, "/api/v1/namespaces/team/configmaps/x", "get"),
            (Method::GET, "/version", "get"),
            (Method::POST, "/apis/authentication.k8s.io/v1/tokenreviews", "create"),
            (Method::PUT, "/apis/coordination.k8s.io/v1/namespaces/codex-system/leases/x", "update"),
            (Method::PATCH, "/api/v1/namespaces/team/configmaps/x", "patch"),
            (Method::DELETE, "/api/v1/namespaces/team/configmaps/x", "delete"),
        ] {
            assert_eq!(verb(&method, &uri.parse().unwrap()), expected, "{method} {uri}");
        }
    }

    #[tokio::test]
    async fn requests_are_counted_by_verb_and_code() {
        let metrics = Metrics::new().unwrap();
        let server = service_fn(|request: Request<()>| async move {
            let code = if request.uri().path().ends_with("gone") { 404 } else { 200 };
            Ok::<_, Infallible>(Response::builder().status(code).body(()).unwrap())
        });
        for path in ["/api/v1/pods", "/api/v1/namespaces/a/pods/gone", "/api/v1/pods?watch=true"] {
            let client = CountRequests(metrics.clone()).layer(server);
            client.oneshot(Request::get(path).body(()).unwrap()).await.unwrap();
        }
        let text = metrics.shown();
        for line in [
            "codex_controller_api_requests_total{code=\"200\",verb=\"list\"} 1",
            "codex_controller_api_requests_total{code=\"404\",verb=\"get\"} 1",
            "codex_controller_api_requests_total{code=\"200\",verb=\"watch\"} 1",
            "codex_controller_api_request_duration_seconds_count{verb=\"list\"} 1",
        ] {
            assert!(text.contains(line), "{line} is missing in:\n{text}");
        }
        assert!(!text.contains("duration_seconds_count{verb=\"watch\"}"), "{text}");
    }
}
