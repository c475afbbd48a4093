//! The fence around the writes of a leader. A layer of the client.
//!
//! A process that stood still, because its machine was suspended or had no time for it, may resume in the middle of a
//! reconciliation after its Lease has expired. Its next write must not reach the API server, although the task that keeps the
//! Lease has not run yet. The same holds for a write that the API server refused before and that is sent again.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use axum::http::{Method, Request, Response};
use tokio::time::Instant;
use tower::{BoxError, Layer, Service};

/// A write was not sent.
#[derive(Debug, thiserror::Error)]
#[error("the Lease is not held or was not renewed in time, so this process must not write")]
pub struct FencedError;

/// Lets writes pass until a point in time, which each renewal of the Lease moves.
#[derive(Clone, Debug, Default)]
pub struct Fence(Arc<Mutex<Option<Instant>>>);

impl Fence {
    /// Lets writes pass until then.
    pub fn open_until(&self, until: Instant) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
    }

    /// Lets no write pass.
    pub fn close(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Whether writes pass now.
    pub fn is_open(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|until| Instant::now() < until)
    }
}

impl<S> Layer<S> for Fence {
    type Service = Fenced<S>;

    fn layer(&self, inner: S) -> Fenced<S> {
        Fenced { inner, fence: self.clone() }
    }
}

/// A client whose writes the fence stops.
#[derive(Clone)]
pub struct Fenced<S> {
    inner: S,
    fence: Fence,
}

impl<S, B, R> Service<Request<B>> for Fenced<S>
where
    S: Service<Request<B>, Response = Response<R>, Error: Into<BoxError>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        if request.method() != Method::GET && !self.fence.is_open() {
            return Box::pin(async { Err(FencedError.into()) });
        }
        let answer = self.inner.call(request);
        Box::pin(async move { answer.await.map_err(Into::into) })
    }
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        time::Duration,
    };

    use axum::http::{Request, Response, header::RETRY_AFTER};
    use kube::{Client, client::Body};
    use tokio::time::{Instant, advance};
    use tower::{Layer, ServiceExt, service_fn};

    use super::{Fence, FencedError};
    use crate::operator::{fenced, retried};

    async fn sent(fence: &Fence, method: &str) -> bool {
        let server = service_fn(|_: Request<()>| async { Ok::<_, Infallible>(Response::new(())) });
        let request = Request::builder().method(method).uri("/api/v1/pods/a").body(()).unwrap();
        match fence.layer(server).oneshot(request).await {
            Ok(_) => true,
            Err(failure) => {
                assert!(failure.is::<FencedError>(), "{failure}");
                false
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn writes_pass_only_until_the_fence_closes_and_reads_always() {
        let fence = Fence::default();
        assert!(!sent(&fence, "PATCH").await);
        fence.open_until(Instant::now() + Duration::from_secs(5));
        for method in ["PATCH", "POST", "PUT", "DELETE", "GET"] {
            assert!(sent(&fence, method).await, "{method}");
        }
        advance(Duration::from_secs(6)).await;
        assert!(!sent(&fence, "DELETE").await);
        assert!(sent(&fence, "GET").await);
        fence.open_until(Instant::now() + Duration::from_secs(5));
        assert!(sent(&fence, "POST").await);
        fence.close();
        assert!(!sent(&fence, "POST").await);
    }
    #[tokio::test(start_paused = true)]
    async fn a_write_that_is_sent_again_passes_through_the_fence_again() {
        let sent = Arc::new(AtomicUsize::new(0));
        let counted = sent.clone();
        let server = service_fn(move |_: Request<Body>| {
            counted.fetch_add(1, Ordering::Relaxed);
            async {
                let refused = Response::builder().status(429).header(RETRY_AFTER, "10").body(Body::empty());
                Ok::<_, Infallible>(refused.unwrap())
            }
        });
        let fence = Fence::default();
        let client = retried(&fenced(&Client::new(server, "default"), &fence));
        let write = || Request::patch("/api/v1/pods/a").body(Body::empty()).unwrap();
        fence.open_until(Instant::now() + Duration::from_secs(5));
        match client.send(write()).await.map(|answer| answer.status()) {
            Err(kube::Error::Service(source)) => assert!(source.is::<FencedError>(), "{source}"),
            other => panic!("the write was sent again: {other:?}"),
        }
        assert_eq!(sent.load(Ordering::Relaxed), 1, "the fence had closed before the second attempt");
        fence.open_until(Instant::now() + Duration::from_hours(10));
        assert_eq!(client.send(write()).await.unwrap().status(), 429);
        assert!(sent.load(Ordering::Relaxed) > 2, "an open fence lets each attempt pass");
    }
}
