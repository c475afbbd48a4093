//! `codex serve`: reads a model into memory, verifies exactly those bytes, and only then answers requests. Does I/O.
//!
//! With `--unsigned` a model without signatures is served to this machine only. Otherwise the order is fixed: the server listens
//! (alive, not ready), reads and hashes every file once, verifies key, signature, promotion and ring against those bytes, loads
//! the model from them, runs a self-check, and generates the golden tokens of the promotion again. Then `/ready` returns 200. A
//! refused model is reported with the reason `VerificationFailed`, one that does not reproduce the golden tokens with
//! `GoldenTokensDiffer`, and the process exits with [`exit::BAD_INPUT`]. In a Deployment the kubelet restarts it with growing
//! delays: the pod stays unready, its termination message has the reason, and it recovers once the volume has the right files.
//!
//! Threads: two for HTTP, the engine thread, and rayon's, one for each CPU within the cgroup's quota.

mod access;
mod activator;
mod activity;
mod batcher;
mod bounded_file;
mod capture;
mod command;
mod error;
mod errors;
mod evaluate;
mod filter;
mod golden;
mod grammar;
mod http;
pub(crate) mod local;
mod metrics;
mod openai;
mod phase;
mod place;
mod reload;
mod room;
mod shadow;
#[cfg(test)]
mod tests;
mod thinking;
mod tls;
mod verified_load;

#[cfg(test)]
pub(crate) use openai::read_any;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use codex_configs::Device;
use codex_http::Limits;
use codex_reports::{ServingState, Stage, exit};
use codex_signing::verify::Expected;
use tokio::{net::TcpListener, signal::unix::SignalKind, sync::watch};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use self::{
    access::Access,
    activity::Activity,
    batcher::Batcher,
    capture::Capture,
    errors::Errors,
    filter::Filter,
    grammar::Grammars,
    http::{App, Gates, Side},
    metrics::Metrics,
    openai::Specials,
    phase::{Phase, ServedModel},
    place::SPARE,
    reload::{Reloaded, reload},
    room::Room,
    shadow::{Beside, Mirror, Shadow},
    thinking::Granted,
    tls::Certificate,
    verified_load::{Paths, check, load_unsigned, load_verified},
};
#[cfg(test)]
pub(crate) use self::{openai::tests::chat_model, tests::Case};
pub use activator::Activate;
pub use command::Serve;
pub use error::ServeError;

use crate::{
    error::{CommandError, chain},
    reporting::Reporter,
};

/// What a server grants its clients. Running requests are bounded by the queue.
const LIMITS: Limits = Limits {
    connections: 1024,
    head: Duration::from_secs(10),
    body: Duration::from_secs(20),
    lifetime: Duration::from_hours(1),
};

/// The most connections of the second listener, which the kubelet and Prometheus use.
const ADMIN_CONNECTIONS: usize = 128;

/// The time between two reports of the requests that were answered.
const TRAFFIC: Duration = Duration::from_secs(10);

/// The greatest value of a numeric argument.
const MOST: u64 = u16::MAX as u64;

/// Runs a process that serves HTTP until it ends, on two threads.
fn run_on_two_threads(process: impl Future<Output = Result<(), ServeError>>) -> Result<i32, CommandError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(CommandError::failed)?;
    let outcome = runtime.block_on(process);
    // A large model that is still read must not delay the end.
    runtime.shutdown_background();
    outcome.map(|()| exit::FINISHED).map_err(CommandError::from)
}

/// Listens on an address and, if there is one, on that of the listener for the cluster only.
async fn listeners(
    address: SocketAddr,
    admin: Option<SocketAddr>,
) -> Result<(TcpListener, Option<TcpListener>), ServeError> {
    let bind = async |address: SocketAddr| {
        TcpListener::bind(address).await.map_err(|source| ServeError::Listen { address, source })
    };
    let listener = bind(address).await?;
    Ok(match admin {
        Some(address) => (listener, Some(bind(address).await?)),
        None => (listener, None),
    })
}

/// Cancellation tokens that signals cancel.
#[derive(Clone, Debug, Default)]
struct Shutdown {
    /// Cancelled by SIGTERM and SIGINT.
    requested: CancellationToken,
    /// Cancelled by SIGINT: skips the drain delay.
    immediate: CancellationToken,
}

impl Shutdown {
    fn on_signals() -> Result<Self, ServeError> {
        let signal = |kind| tokio::signal::unix::signal(kind).map_err(ServeError::Signals);
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let stop = Self::default();
        let asked = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => asked.immediate.cancel(),
            }
            asked.requested.cancel();
        });
        Ok(stop)
    }
}

/// The model of a server.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "a process has one")]
enum Source {
    /// A model with bundles that verify it.
    Signed { paths: Paths, expected: Expected },
    /// A directory that nobody signed.
    Unsigned(PathBuf),
}

/// A server before it listens.
struct Server {
    source: Source,
    /// A second listener, for probes, metrics and the status; `None` has them on the first one.
    admin: Option<TcpListener>,
    access: access::Settings,
    filter: filter::Settings,
    /// `None` serves plain HTTP.
    tls: Option<tls::Settings>,
    /// How often files that may change are read again.
    reload: Duration,
    device: Device,
    room: Room,
    /// What the reasoning of chats and responses is granted.
    granted: Granted,
    drain_delay: Duration,
    drain_deadline: Duration,
    /// The longest time from the arrival of a request to the end of its response.
    time_limit: Option<Duration>,
    limits: Limits,
    /// Whether and how often the numbers of requests are reported.
    traffic: Option<Duration>,
    /// Whether it is reported when the last request ended.
    activity: bool,
    /// The file with the shadows that get copies.
    mirror: Option<PathBuf>,
    /// The file with the servers whose copies are compared; the server is a shadow.
    shadow: Option<PathBuf>,
    /// The same file of a server that answers clients, too.
    compare: Option<PathBuf>,
    /// How often comparisons are reported.
    compared: Duration,
    /// What is captured of requests.
    capture: Option<capture::Settings>,
    /// The file of failures.
    errors: Option<PathBuf>,
    name: Option<String>,
}

impl Server {
    /// Serves on `listener` until `stop`. Returns after the last request is answered.
    async fn run(
        self,
        listener: TcpListener,
        reporter: &Reporter<ServingState>,
        stop: &Shutdown,
    ) -> Result<(), ServeError> {
        self.run_until_ready(listener, reporter, stop, || ()).await
    }

    /// Does the same, and calls `ready` once it answers requests. Records why the server ends, if it fails.
    async fn run_until_ready(
        self,
        listener: TcpListener,
        reporter: &Reporter<ServingState>,
        stop: &Shutdown,
        ready: impl FnOnce() + Send,
    ) -> Result<(), ServeError> {
        let errors = Errors::open(self.errors.as_ref(), self.name.as_deref())?;
        let served = self.serve_with(&errors, listener, reporter, stop, ready).await;
        if let Err(error) = &served {
            errors.server(error);
        }
        served
    }

    async fn serve_with(
        mut self,
        errors: &Arc<Errors>,
        listener: TcpListener,
        reporter: &Reporter<ServingState>,
        stop: &Shutdown,
        ready: impl FnOnce() + Send,
    ) -> Result<(), ServeError> {
        if let Ok(address) = listener.local_addr() {
            tracing::info!(%address, "listening; not ready until the model is verified");
        }
        let (phase, watched) = watch::channel(Phase::Verifying);
        let metrics = Arc::new(Metrics::new().map_err(ServeError::Metrics)?);
        crate::gpu::register(metrics.registry(), self.device).map_err(ServeError::Metrics)?;
        let access = Arc::new(Access::new(self.access.clone(), Arc::clone(&metrics))?);
        let filter = Filter::new(&self.filter, Arc::clone(errors), Arc::clone(&metrics))?;
        let certificate = self.tls.clone().map(Certificate::new).transpose()?;
        let expected = match &self.source {
            Source::Signed { expected, .. } => Some(expected.clone()),
            Source::Unsigned(_) => None,
        };
        let mirror = self.mirror.clone().map(|path| Mirror::new(path, Arc::clone(&metrics))).transpose()?;
        let compares = self.shadow.clone().map(|path| (path, Beside::Nobody));
        let compares = compares.or_else(|| Some((self.compare.clone()?, Beside::Clients)));
        let shadow = compares.map(|(path, beside)| Shadow::new(path, beside, Arc::clone(&metrics)));
        let gates = Gates {
            access: Arc::clone(&access),
            filter: filter.clone(),
            shadow: shadow.clone(),
            errors: Arc::clone(errors),
        };
        let app = App::new(expected, gates, watched, Arc::clone(&metrics), self.name.clone());
        let engine_metrics = Arc::clone(&metrics);
        let closing = CancellationToken::new();
        let mut http = codex_http::Server::new(listener, self.limits)
            .with_drain(stop.requested.clone())
            .on_refused(move || metrics.refused());
        if let Some(certificate) = &certificate {
            http = http.with_tls(certificate.config()?);
        }
        let (copied, compared, told) = (mirror.clone(), shadow.clone(), Arc::clone(errors));
        let files = Reloaded { access, filter, certificate, mirror: copied, shadow: compared, errors: told };
        let _reloading = AbortOnDropHandle::new(tokio::spawn(reload(files, self.reload)));
        let side = if self.admin.is_some() { Side::Public } else { Side::Whole };
        // It answers until the last request is answered, so that probes and scrapes see the drain.
        let _admin = self.admin.take().map(|listener| {
            let admin = codex_http::Server::new(listener, Limits { connections: ADMIN_CONNECTIONS, ..self.limits });
            let router = http::router(app.clone(), Side::Admin);
            AbortOnDropHandle::new(tokio::spawn(admin.serve(router, CancellationToken::new())))
        });
        let http = tokio::spawn(http.serve(http::router(app, side), closing.clone()));
        let served =
            self.until_stopped(&phase, (engine_metrics, errors), (mirror, shadow), reporter, stop, ready).await;
        if let Err(error) = &served {
            phase.send_replace(Phase::Refused(chain(error).into()));
            // The listener stays open during the final report, so that probes see the reason.
            return served;
        }
        closing.cancel();
        match tokio::time::timeout(self.drain_deadline, http).await {
            Ok(result) => result.map_err(|source| ServeError::Http(std::io::Error::other(source))),
            Err(_) => Err(ServeError::CutOff { requests: phase.borrow().active(), deadline: self.drain_deadline }),
        }
    }

    /// Verifies and loads the model and serves it. Returns when no more requests should be accepted.
    async fn until_stopped(
        &self,
        phase: &watch::Sender<Phase>,
        (metrics, errors): (Arc<Metrics>, &Arc<Errors>),
        (mirror, shadow): (Option<Arc<Mirror>>, Option<Arc<Shadow>>),
        reporter: &Reporter<ServingState>,
        stop: &Shutdown,
        ready: impl FnOnce() + Send,
    ) -> Result<(), ServeError> {
        let model = tokio::select! {
            () = stop.requested.cancelled() => return Ok(()),
            model = self.open(phase, (Arc::clone(&metrics), errors), mirror.clone()) => Arc::new(model?),
        };
        phase.send_replace(Phase::Ready(Arc::clone(&model)));
        reporter.update(|state| {
            state.stage = Stage::Running;
            state.verified = model.verified.as_ref().map(|verified| verified.signed.model);
            state.promotion = model.verified.as_ref().map(|verified| verified.promoted.digest);
            state.golden_tokens = model.golden;
            state.device = Some(model.device.clone());
            state.traffic = self.traffic.map(|_| metrics.traffic());
            state.copies_key = mirror.as_ref().map(|mirror| mirror.key().to_owned());
        });
        tracing::info!(model = %model.digest, ring = model.ring(), "ready");
        ready();
        tokio::select! {
            () = stop.requested.cancelled() => {}
            () = self.report_traffic(reporter, &metrics) => {}
            () = self.report_activity(reporter, &metrics) => {}
            () = self.report_comparisons(reporter, shadow.as_deref()) => {}
            () = model.batcher.ended() => return Err(ServeError::Engine(std::io::Error::other("it panicked"))),
        }
        tracing::info!("stopping: not ready; finishing running requests");
        phase.send_replace(Phase::Draining(model));
        tokio::select! {
            () = tokio::time::sleep(self.drain_delay) => {}
            () = stop.immediate.cancelled() => {}
        }
        Ok(())
    }

    /// Reports the numbers of requests whenever they have changed, forever.
    async fn report_traffic(&self, reporter: &Reporter<ServingState>, metrics: &Metrics) {
        let Some(period) = self.traffic else { return std::future::pending().await };
        let mut known = metrics.traffic();
        loop {
            tokio::time::sleep(period).await;
            let traffic = metrics.traffic();
            if traffic != known {
                known = traffic.clone();
                reporter.update(|state| state.traffic = Some(traffic));
            }
        }
    }

    /// Reports when the last request ended, once none has run for a while, forever.
    async fn report_activity(&self, reporter: &Reporter<ServingState>, metrics: &Metrics) {
        if !self.activity {
            return std::future::pending().await;
        }
        let now = || jiff::Timestamp::now().as_second();
        let mut activity = Activity::new(metrics.arrived_in_all(), now());
        let mut known = None;
        loop {
            tokio::time::sleep(activity::LOOK).await;
            let since = activity.idle_since(metrics.arrived_in_all(), metrics.active(), now());
            if since != known {
                known = since;
                reporter.update(|state| state.idle_since = since);
            }
        }
    }

    /// Reports what a shadow has compared whenever it has changed, forever.
    async fn report_comparisons(&self, reporter: &Reporter<ServingState>, shadow: Option<&Shadow>) {
        let Some(shadow) = shadow else { return std::future::pending().await };
        let mut known = shadow.comparisons();
        loop {
            tokio::time::sleep(self.compared).await;
            let comparisons = shadow.comparisons();
            if comparisons != known {
                known.clone_from(&comparisons);
                reporter.update(|state| state.comparisons = comparisons);
            }
        }
    }

    /// Reads, verifies and loads the model, runs the self-check, and reproduces the golden tokens.
    async fn open(
        &self,
        phase: &watch::Sender<Phase>,
        (metrics, errors): (Arc<Metrics>, &Arc<Errors>),
        mirror: Option<Arc<Mirror>>,
    ) -> Result<ServedModel, ServeError> {
        let capture = self.capture.clone();
        let store = capture.as_ref().map(capture::Settings::open).transpose()?;
        let source = self.source.clone();
        let (room, device) = ((self.room.running + SPARE, self.device), self.device);
        let (loading, counts) = (phase.clone(), Arc::clone(&metrics));
        let (digest, verified, mut generator, golden, device) = blocking(move || {
            let (digest, verified, mut generator) = match source {
                Source::Signed { paths, expected } => {
                    let verified = || drop(loading.send_replace(Phase::Loading));
                    let (verified, generator) = load_verified(&paths, &expected, room, verified)?;
                    (verified.signed.model, Some(verified), generator)
                }
                Source::Unsigned(path) => {
                    loading.send_replace(Phase::Loading);
                    let (digest, generator) = load_unsigned(&path, room)?;
                    (digest, None, generator)
                }
            };
            let device = crate::device::announce(device, generator.path());
            check(&mut generator)?;
            let promoted = verified.as_ref().map(|verified| &verified.promoted.promotion.reasons.evaluations);
            let golden =
                promoted.map(|evaluations| golden::reproduce(&mut generator, evaluations, &counts)).transpose()?;
            Ok((digest, verified, generator, golden, device))
        })
        .await?;
        let (tokenizer, context) = (generator.tokenizer().clone(), generator.config().max_position_embeddings);
        if let Some(tokens) = self.room.cache.filter(|tokens| *tokens < context) {
            return Err(ServeError::Cache { tokens, context });
        }
        let ends = generator.config().eos_token_ids.clone();
        let grammars = Grammars::new(tokenizer.clone(), ends.clone());
        let specials = Arc::new(Specials::of(&tokenizer, ends));
        if let Some(mirror) = &mirror {
            mirror.serves(digest, tokenizer.clone());
        }
        if capture.as_ref().is_some_and(|settings| settings.mode == capture::Mode::Activations) {
            generator.return_states();
        }
        let capture = capture.zip(store);
        let capture = capture.map(|(settings, store)| Capture::start(settings, store, digest, Arc::clone(&metrics)));
        let batcher = Batcher::start(generator, self.room, metrics).map_err(ServeError::Engine)?;
        let batcher = batcher.with_time_limit(self.time_limit).with_errors(Arc::clone(errors));
        let batcher = batcher.with_mirror(mirror).with_capture(capture.transpose()?);
        let granted = self.granted;
        Ok(ServedModel { digest, verified, golden, device, tokenizer, specials, context, granted, grammars, batcher })
    }
}

/// Runs blocking work on a thread for it.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ServeError> + Send + 'static,
) -> Result<T, ServeError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|source| Err(ServeError::Engine(source.into())))
}
