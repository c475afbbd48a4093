//! Request bodies with a deadline. Pure, but for the clock.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::{Error, body::Body, extract::Request};
use hyper::body::{Body as HttpBody, Bytes, Frame, SizeHint};
use tokio::time::{Sleep, sleep};

/// A body did not arrive in time.
#[derive(Debug, thiserror::Error)]
#[error("the body did not arrive within {0:?}")]
struct TooSlow(Duration);

/// A body that fails at its deadline.
struct Timed {
    body: Body,
    limit: Duration,
    deadline: Pin<Box<Sleep>>,
}

impl HttpBody for Timed {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if self.deadline.as_mut().poll(context).is_ready() {
            return Poll::Ready(Some(Err(Error::new(TooSlow(self.limit)))));
        }
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Gives the body of a request a deadline, counted from now.
pub(crate) fn with_deadline(request: Request, limit: Duration) -> Request {
    request.map(|body| {
        if body.is_end_stream() {
            return body;
        }
        Body::new(Timed { body, limit, deadline: Box::pin(sleep(limit)) })
    })
}
