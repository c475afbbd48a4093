//! Serves Prometheus metrics: as a response for servers with other endpoints, and on a server of its own for the trainer and the
//! evaluator. Does I/O.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    thread::JoinHandle,
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use codex_http::{Limits, Server, with_fallbacks};
use prometheus::{IntCounter, Registry, TextEncoder};
use tokio_util::sync::CancellationToken;

/// Most connections of the port of the metrics.
const MAX_CONNECTIONS: usize = 64;

/// Metrics cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ExpositionError {
    /// The address cannot be listened on.
    #[error("--metrics-address {address} cannot be listened on: name a free port, such as 127.0.0.1:9464")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The I/O error.
        #[source]
        source: io::Error,
    },
    /// A metric cannot be registered.
    #[error("the metrics cannot be registered")]
    Register(#[from] prometheus::Error),
    /// The thread cannot start.
    #[error("the thread that serves metrics cannot start")]
    System(#[source] io::Error),
}

/// Encodes a registry as the response to a scrape.
///
/// # Errors
/// When a metric cannot be encoded.
pub(crate) fn answer(registry: &Registry) -> Result<Response, prometheus::Error> {
    let text = TextEncoder::new().encode_to_string(&registry.gather())?;
    Ok(([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response())
}

/// Serves `/metrics` on a thread until it is dropped.
#[derive(Debug)]
pub(crate) struct Exposition {
    address: SocketAddr,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Exposition {
    /// Listens on `address`; port 0 chooses a free port. `refused` counts connections beyond the limit.
    ///
    /// # Errors
    /// When the address cannot be listened on, or the thread cannot start.
    pub(crate) fn start(
        address: SocketAddr,
        registry: &Registry,
        refused: IntCounter,
    ) -> Result<Self, ExpositionError> {
        Self::start_with(address, registry, refused, Limits { connections: MAX_CONNECTIONS, ..Limits::default() })
    }

    fn start_with(
        address: SocketAddr,
        registry: &Registry,
        refused: IntCounter,
        limits: Limits,
    ) -> Result<Self, ExpositionError> {
        let failed = |source| ExpositionError::Listen { address, source };
        let listener = TcpListener::bind(address).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let bound = listener.local_addr().map_err(failed)?;
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(ExpositionError::System)?;
        let (stop, registry) = (CancellationToken::new(), registry.clone());
        let stopped = stop.clone();
        let serve = async move {
            let router = with_fallbacks(Router::new().route("/metrics", get(metrics)).with_state(registry));
            match tokio::net::TcpListener::from_std(listener) {
                // Does not wait for open connections when the work ends.
                Ok(listener) => tokio::select! {
                    () = Server::new(listener, limits).on_refused(move || refused.inc()).serve(router, stopped.clone()) => {}
                    () = stopped.cancelled() => {}
                },
                Err(error) => tracing::warn!(%error, "cannot serve metrics"),
            }
        };
        let thread = std::thread::Builder::new()
            .name("metrics".to_owned())
            .spawn(move || runtime.block_on(serve))
            .map_err(ExpositionError::System)?;
        tracing::info!(address = %bound, "serving metrics on /metrics");
        Ok(Self { address: bound, stop, thread: Some(thread) })
    }

    /// Returns the address that it listens on.
    #[cfg(test)]
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Exposition {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::warn!(address = %self.address, "the thread that serves metrics panicked");
        }
    }
}

async fn metrics(State(registry): State<Registry>) -> Response {
    answer(&registry).unwrap_or_else(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response())
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::TcpStream,
        time::Duration,
    };

    use prometheus::IntCounter;

    use super::*;

    fn refused_connections() -> IntCounter {
        codex_metrics::trainer::REFUSED_CONNECTIONS.single(&Registry::new()).unwrap()
    }

    fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn metrics_are_served_until_the_work_ends() {
        let registry = Registry::new();
        let counter = IntCounter::new("steps_total", "Steps.").unwrap();
        registry.register(Box::new(counter.clone())).unwrap();
        let start = |address| Exposition::start(address, &registry, refused_connections());
        let exposition = start(([127, 0, 0, 1], 0).into()).unwrap();
        let address = exposition.address();
        counter.inc_by(7);
        let text = get(address, "/metrics");
        assert!(
            text.starts_with("HTTP/1.1 200") && text.contains("text/plain") && text.contains("steps_total 7"),
            "{text}"
        );
        let text = get(address, "/other");
        assert!(text.starts_with("HTTP/1.1 404") && text.contains("{\"error\":\"the path"), "{text}");
        let taken = start(address).unwrap_err();
        assert!(taken.to_string().contains(&format!("--metrics-address {address} cannot be listened on")), "{taken}");
        drop(exposition);
        assert!(TcpStream::connect(address).is_err());
    }

    #[test]
    fn half_sent_requests_are_closed_and_connections_are_bounded() {
        let refused = refused_connections();
        let limits = Limits { connections: 2, head: Duration::from_secs(3), ..Limits::default() };
        let exposition =
            Exposition::start_with(([127, 0, 0, 1], 0).into(), &Registry::new(), refused.clone(), limits).unwrap();
        let open = || {
            let mut stream = TcpStream::connect(exposition.address()).unwrap();
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nX-Half").unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            stream
        };
        let mut streams = [open(), open(), open(), open()];
        for stream in &mut streams {
            let mut rest = Vec::new();
            match stream.read_to_end(&mut rest) {
                Ok(_) => {}
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "closed, and not timed out"),
            }
        }
        assert_eq!(refused.get(), 2);
    }
}
