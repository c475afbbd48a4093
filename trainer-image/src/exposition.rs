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
use prometheus::{Registry, TextEncoder};
use tokio_util::sync::CancellationToken;

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
    /// Listens on `address`; port 0 chooses a free port.
    ///
    /// # Errors
    /// When the address cannot be listened on, or the thread cannot start.
    pub(crate) fn start(address: SocketAddr, registry: &Registry) -> Result<Self, ExpositionError> {
        let refused = |source| ExpositionError::Listen { address, source };
        let listener = TcpListener::bind(address).map_err(refused)?;
        listener.set_nonblocking(true).map_err(refused)?;
        let bound = listener.local_addr().map_err(refused)?;
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(ExpositionError::System)?;
        let (stop, registry) = (CancellationToken::new(), registry.clone());
        let stopped = stop.clone();
        let serve = async move {
            let router = Router::new().route("/metrics", get(metrics)).with_state(registry);
            let served = match tokio::net::TcpListener::from_std(listener) {
                // Does not wait for open connections when the work ends.
                Ok(listener) => tokio::select! {
                    served = axum::serve(listener, router).into_future() => served,
                    () = stopped.cancelled() => Ok(()),
                },
                Err(error) => Err(error),
            };
            if let Err(error) = served {
                tracing::warn!(%error, "stopped serving metrics");
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
    };

    use prometheus::IntCounter;

    use super::*;

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
        let exposition = Exposition::start(([127, 0, 0, 1], 0).into(), &registry).unwrap();
        let address = exposition.address();
        counter.inc_by(7);
        let text = get(address, "/metrics");
        assert!(
            text.starts_with("HTTP/1.1 200") && text.contains("text/plain") && text.contains("steps_total 7"),
            "{text}"
        );
        assert!(get(address, "/other").starts_with("HTTP/1.1 404"));
        let taken = Exposition::start(address, &registry).unwrap_err();
        assert!(taken.to_string().contains(&format!("--metrics-address {address} cannot be listened on")), "{taken}");
        drop(exposition);
        assert!(TcpStream::connect(address).is_err());
    }
}
