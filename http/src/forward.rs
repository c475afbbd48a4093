//! Sends a request on to another server, and its response back as it arrives. Does I/O.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use axum::{
    body::Body,
    extract::Request,
    http::{
        HeaderMap, HeaderName, Uri, Version,
        header::{
            CONNECTION, EXPECT, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
        },
        uri::PathAndQuery,
    },
    response::Response,
};
use hyper::{
    body::{Body as HttpBody, Bytes, Frame, Incoming, SizeHint},
    client::conn::http1,
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;

/// Headers of one connection, which do not belong to the next one. A request is read before it is sent on, so that nothing is left to
/// expect.
const OF_CONNECTION: [HeaderName; 9] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    EXPECT,
];

/// The other server did not answer.
#[derive(Debug, thiserror::Error)]
#[error("the server did not answer")]
pub struct ForwardError(#[from] hyper::Error);

/// Sends a request over a connection of its own. The body of the response arrives as the server sends it; dropping it closes the
/// connection, so that the server notices that the client is gone.
///
/// # Errors
/// When the server closes the connection before it has answered, or its answer is not HTTP.
pub async fn forward(stream: TcpStream, request: Request) -> Result<Response, ForwardError> {
    // It only costs latency if it fails.
    let _ = stream.set_nodelay(true);
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // An error of the connection reaches the request, or the body of the response.
    let connection = AbortOnDropHandle::new(tokio::spawn(async move { drop(connection.await) }));
    let response = sender.send_request(sent_on(request)).await?;
    let (mut parts, body) = response.into_parts();
    without_connection(&mut parts.headers);
    Ok(Response::from_parts(parts, Body::new(Forwarded { body, _connection: connection })))
}

fn sent_on(request: Request) -> Request {
    let (mut parts, body) = request.into_parts();
    // The form of a request to a server: without scheme and host.
    let path = parts.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    parts.uri = Uri::from(path);
    parts.version = Version::HTTP_11;
    without_connection(&mut parts.headers);
    Request::from_parts(parts, body)
}

/// Removes the headers of a connection, and those that `Connection` names.
fn without_connection(headers: &mut HeaderMap) {
    let named = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let named: Vec<HeaderName> =
        named.flat_map(|names| names.split(',')).filter_map(|name| name.trim().parse().ok()).collect();
    for name in OF_CONNECTION.iter().chain(&named) {
        headers.remove(name);
    }
}

/// The body of a response, with the task that reads it.
struct Forwarded {
    body: Incoming,
    _connection: AbortOnDropHandle<()>,
}

impl HttpBody for Forwarded {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
