//! `codex activate`: holds requests while no server runs, asks the controller for one, and forwards them to it. Does I/O.
//!
//! It needs no Kubernetes client: it reports to the controller that requests wait, as other pods report, and connects to the Service of
//! the servers until one accepts. A connection that outlives the wait is forwarded at once. Threads: two for HTTP, one for reports.

mod hold;
mod metrics;
#[cfg(test)]
mod tests;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use codex_http::{Limits, with_fallbacks};
use codex_reports::{ServingState, Stage};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use self::{
    hold::{Holder, Room},
    metrics::Metrics,
};
use super::{ADMIN_CONNECTIONS, LIMITS, MOST, ServeError, Shutdown, listeners, run_on_two_threads};
use crate::{
    arguments::{socket_address, whole},
    error::CommandError,
    exposition,
    reporting::Reporter,
};

/// The time after which it is reported again that requests wait. The controller keeps reports in memory, and may have restarted.
const AGAIN: Duration = Duration::from_secs(2);
/// How long connections have to take the answers that end a wait, after the drain deadline.
const LAST_ANSWERS: Duration = Duration::from_secs(5);

/// Hold requests while no server runs, and forward them once one does.
#[derive(Clone, Debug, clap::Args)]
pub struct Activate {
    /// Host and port of the servers, such as `codex-a-cot-rc.team.svc:8000`. Nothing listens there while no server is ready.
    #[arg(long, value_name = "HOST:PORT", value_parser = server)]
    server: String,
    /// Address and port to listen on.
    #[arg(long, default_value = "127.0.0.1:8000", value_parser = socket_address)]
    listen: SocketAddr,
    /// Address and port of a second listener that has /metrics, /health and /ready, for the cluster only.
    #[arg(long, value_name = "ADDRESS", value_parser = socket_address)]
    admin_listen: Option<SocketAddr>,
    /// Number of requests that are held; further ones are refused with 503. A server takes as many at once with its default --slots
    /// and --queue.
    #[arg(long, default_value_t = 64, value_parser = whole::<u16>(1..=MOST))]
    held: u16,
    /// MiB that the bodies of held requests have together; further requests are refused with 503.
    #[arg(long, value_name = "MIB", default_value_t = 64, value_parser = whole::<u16>(4..=MOST))]
    held_memory: u16,
    /// Seconds that a request waits for a server at most; then it is refused with 503.
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = whole::<u16>(1..=MOST))]
    hold_deadline: u16,
    /// Seconds after SIGTERM in which requests are still accepted, until endpoints are updated.
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = whole::<u16>(0..=MOST))]
    drain_delay: u16,
    /// Seconds that held requests then have; then they are refused with 503.
    #[arg(long, value_name = "SECONDS", default_value_t = 40, value_parser = whole::<u16>(0..=MOST))]
    drain_deadline: u16,
}

/// Parses the address of the servers, whose host may be a name.
fn server(text: &str) -> Result<String, String> {
    let parts = text.rsplit_once(':');
    let valid = parts.is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0));
    if valid { Ok(text.to_owned()) } else { Err("write a host and a port, such as 127.0.0.1:8000".to_owned()) }
}

impl Activate {
    /// Holds and forwards requests until SIGTERM or Ctrl-C.
    ///
    /// # Errors
    /// The address is unavailable, or requests did not finish in time (exit code 1).
    pub fn run(self) -> Result<i32, CommandError> {
        let reporter = Arc::new(Reporter::<ServingState>::from_env().map_err(CommandError::bad_input)?);
        run_on_two_threads(async {
            let stop = Shutdown::on_signals()?;
            let (listener, admin) = listeners(self.listen, self.admin_listen).await?;
            self.hold(listener, admin, &reporter, &stop).await
        })
    }

    /// Holds and forwards requests until `stop`. Returns after the last request is answered.
    async fn hold(
        self,
        listener: TcpListener,
        admin: Option<TcpListener>,
        reporter: &Reporter<ServingState>,
        stop: &Shutdown,
    ) -> Result<(), ServeError> {
        let metrics = Arc::new(Metrics::new().map_err(ServeError::Metrics)?);
        let (held, waiting) = watch::channel(0);
        let (closing, end) = (CancellationToken::new(), CancellationToken::new());
        let room = Room {
            requests: self.held.into(),
            bytes: usize::from(self.held_memory) << 20,
            wait: Duration::from_secs(self.hold_deadline.into()),
        };
        let delay = Duration::from_secs(self.drain_delay.into());
        let deadline = Duration::from_secs(self.drain_deadline.into());
        let holder = Holder::new(self.server, room, held, Arc::clone(&metrics), end.clone());
        if let Ok(address) = listener.local_addr() {
            tracing::info!(%address, "listening; requests are held while no server is ready");
        }
        // Probes and scrapes see the drain.
        let _admin = admin.map(|listener| {
            let limits = Limits { connections: ADMIN_CONNECTIONS, ..LIMITS };
            let served = codex_http::Server::new(listener, limits)
                .serve(watched(Arc::clone(&metrics), stop.requested.clone()), CancellationToken::new());
            AbortOnDropHandle::new(tokio::spawn(served))
        });
        let http = codex_http::Server::new(listener, LIMITS).with_drain(stop.requested.clone());
        let mut http = tokio::spawn(http.serve(holder.router(), closing.clone()));
        reporter.update(|state| state.stage = Stage::Running);
        let told = tell(reporter, waiting, &metrics, AGAIN);
        tokio::pin!(told);
        tokio::select! {
            () = stop.requested.cancelled() => {}
            () = &mut told => {}
        }
        tracing::info!("stopping: forwarding what is held");
        let drain = async {
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                () = stop.immediate.cancelled() => {}
            }
            closing.cancel();
            if let Ok(ended) = tokio::time::timeout(deadline, &mut http).await {
                return ended.map_err(|source| ServeError::Http(std::io::Error::other(source)));
            }
            end.cancel();
            match tokio::time::timeout(LAST_ANSWERS, &mut http).await {
                Ok(ended) => ended.map_err(|source| ServeError::Http(std::io::Error::other(source))),
                Err(_) => Err(ServeError::CutOff { requests: metrics.held(), deadline }),
            }
        };
        // What is held still needs a server.
        tokio::select! {
            ended = drain => ended,
            () = &mut told => Ok(()),
        }
    }
}

/// Reports whether requests wait, at once when that changes and every `again` while they do, until nothing can be held any more.
async fn tell(reporter: &Reporter<ServingState>, mut held: watch::Receiver<usize>, metrics: &Metrics, again: Duration) {
    let mut known = false;
    loop {
        let waits = *held.borrow_and_update() > 0;
        if waits && !known {
            metrics.activates();
        }
        if waits || known {
            reporter.update(|state| state.waiting = waits);
        }
        known = waits;
        let changed = tokio::select! {
            changed = held.wait_for(|held| (*held > 0) != waits) => changed.map(drop),
            () = tokio::time::sleep(again), if waits => Ok(()),
        };
        if changed.is_err() {
            return;
        }
    }
}

/// Returns the router of the second listener.
fn watched(metrics: Arc<Metrics>, stopping: CancellationToken) -> Router {
    let exposed = move || {
        let answer = exposition::answer(metrics.registry());
        let failed = |error: prometheus::Error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response();
        std::future::ready(answer.unwrap_or_else(failed))
    };
    let ready = move || {
        let stops = stopping.is_cancelled();
        std::future::ready(if stops { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK })
    };
    with_fallbacks(
        Router::new().route("/health", get(alive)).route("/ready", get(ready)).route("/metrics", get(exposed)),
    )
}

/// Answers the health checks of load balancers, which must not start a server.
async fn alive() -> Response {
    Json(serde_json::json!({ "status": "ok" })).into_response()
}
