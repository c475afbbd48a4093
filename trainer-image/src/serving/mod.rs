//! `codex serve`: reads a model into memory, verifies exactly those bytes, and only then answers requests. Does I/O.
//!
//! The order is fixed: the server listens (alive, not ready), reads and hashes every file once, verifies key, signature,
//! promotion and ring against those bytes, loads the model from them, and runs a self-check. Then `/ready` returns 200. A
//! refused model is reported with the reason `VerificationFailed`, and the process exits with [`exit::BAD_INPUT`]. In a
//! Deployment the kubelet restarts it with growing delays: the pod stays unready, its termination message has the reason, and
//! it recovers once the volume has the right files.
//!
//! Threads: two for HTTP, the engine thread, and rayon's, one for each CPU within the cgroup's quota.

mod batcher;
mod error;
mod http;
mod metrics;
mod openai;
mod phase;
#[cfg(test)]
mod tests;
mod verified_load;

#[cfg(test)]
pub(crate) use openai::read_any;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use clap::builder::PossibleValuesParser;
use codex_configs::Device;
use codex_http::Limits;
use codex_provenance::{ModelDigest, PromotionDigest, Sha256};
use codex_reports::{ServingState, Stage, exit};
use codex_signing::verify::Expected;
use codex_verdict::Ring;
use tokio::{net::TcpListener, signal::unix::SignalKind, sync::watch};
use tokio_util::sync::CancellationToken;

use self::{
    batcher::Batcher,
    http::App,
    metrics::Metrics,
    phase::{Phase, ServedModel},
    verified_load::{Paths, load_checked, read_verified},
};
pub use error::ServeError;

use crate::{
    arguments::{socket_address, whole},
    error::{CommandError, chain},
    reporting::Reporter,
};

/// What a server grants its clients. Running requests are bounded by the queue; probes use the same port.
const LIMITS: Limits = Limits {
    connections: 1024,
    head: Duration::from_secs(10),
    body: Duration::from_secs(20),
    lifetime: Duration::from_hours(1),
};

/// The greatest value of a numeric argument.
const MOST: u64 = u16::MAX as u64;

/// Verify a model's signature, promotion and ring, then serve it over HTTP.
#[derive(Clone, Debug, clap::Args)]
pub struct Serve {
    /// The model directory.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Required digest of the model.
    #[arg(long, value_name = "HEX")]
    model_digest: ModelDigest,
    /// The OMS signature bundle.
    #[arg(long, value_name = "FILE")]
    oms_bundle: PathBuf,
    /// The promotion bundle.
    #[arg(long, value_name = "FILE")]
    promotion: PathBuf,
    /// Required digest of the promotion statement.
    #[arg(long, value_name = "HEX")]
    promotion_digest: PromotionDigest,
    /// The public key that verifies both bundles, in PEM.
    #[arg(long, value_name = "FILE")]
    public_key: PathBuf,
    /// Required fingerprint of the public key.
    #[arg(long, value_name = "HEX")]
    key_fingerprint: Sha256,
    /// The ring that the promotion must be for.
    #[arg(long, value_parser = PossibleValuesParser::new(Ring::ALL.map(Ring::name)))]
    ring: String,
    /// Address and port to listen on.
    #[arg(long, default_value = "127.0.0.1:8000", value_parser = socket_address)]
    listen: SocketAddr,
    /// Where to compute; auto takes a GPU if this program was built with CUDA and finds one, else the processor.
    #[arg(long, default_value = "auto", value_parser = crate::device::parser())]
    device: Device,
    /// Number of requests that are generated at the same time.
    #[arg(long, default_value_t = 8, value_parser = whole::<u16>(1..=MOST))]
    slots: u16,
    /// Number of requests that may wait; further ones are refused with 429.
    #[arg(long, default_value_t = 64, value_parser = whole::<u16>(0..=MOST))]
    queue: u16,
    /// Name of the model in the OpenAI-shaped API; the beginning of its digest by default.
    #[arg(long, value_name = "NAME", env = "CODEX_OBJECT_NAME")]
    name: Option<String>,
    /// Seconds after SIGTERM in which the server is unready but accepts requests, until endpoints are updated.
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = whole::<u16>(0..=MOST))]
    drain_delay: u16,
    /// Seconds that running requests then have to finish.
    #[arg(long, value_name = "SECONDS", default_value_t = 20, value_parser = whole::<u16>(0..=MOST))]
    drain_deadline: u16,
}

impl Serve {
    /// Serves until SIGTERM or Ctrl-C.
    ///
    /// # Errors
    /// The model is refused or cannot be loaded (exit code 2); the address is unavailable, or requests did not finish in time
    /// (exit code 1).
    pub fn run(self) -> Result<i32, CommandError> {
        let reporter = Arc::new(Reporter::<ServingState>::from_env().map_err(CommandError::bad_input)?);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(CommandError::failed)?;
        let outcome = runtime.block_on(self.serve(&reporter));
        // Do not wait for a large model to be read after a request to stop.
        runtime.shutdown_background();
        match outcome {
            Ok(()) => Ok(exit::FINISHED),
            Err(error) => Err(error.into()),
        }
    }

    async fn serve(self, reporter: &Arc<Reporter<ServingState>>) -> Result<(), ServeError> {
        let stop = Shutdown::on_signals()?;
        let listener = TcpListener::bind(self.listen)
            .await
            .map_err(|source| ServeError::Listen { address: self.listen, source })?;
        let outcome = Server::of(self).run(listener, reporter, &stop).await;
        // After the drain deadline there is no time left for a final report.
        if let Err(error) = &outcome
            && !matches!(error, ServeError::CutOff { .. })
        {
            reporter.fail(error.failure());
            let (reporter, code) = (Arc::clone(reporter), error.exit());
            // The reporter logs whether the report was delivered.
            drop(tokio::task::spawn_blocking(move || reporter.finish(code)).await);
        }
        outcome
    }
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

/// A server before it listens.
struct Server {
    paths: Paths,
    expected: Expected,
    slots: usize,
    device: Device,
    queue: usize,
    drain_delay: Duration,
    drain_deadline: Duration,
    limits: Limits,
    name: Option<String>,
}

impl Server {
    fn of(arguments: Serve) -> Self {
        Self {
            paths: Paths {
                model: arguments.model,
                oms_bundle: arguments.oms_bundle,
                promotion: arguments.promotion,
                public_key: arguments.public_key,
            },
            expected: Expected {
                model_digest: arguments.model_digest,
                key_fingerprint: arguments.key_fingerprint,
                ring: arguments.ring,
                promotion_digest: arguments.promotion_digest,
            },
            slots: arguments.slots.into(),
            device: arguments.device,
            queue: arguments.queue.into(),
            drain_delay: Duration::from_secs(arguments.drain_delay.into()),
            drain_deadline: Duration::from_secs(arguments.drain_deadline.into()),
            limits: LIMITS,
            name: arguments.name,
        }
    }

    /// Serves on `listener` until `stop`. Returns after the last request is answered.
    async fn run(
        self,
        listener: TcpListener,
        reporter: &Reporter<ServingState>,
        stop: &Shutdown,
    ) -> Result<(), ServeError> {
        if let Ok(address) = listener.local_addr() {
            tracing::info!(%address, "listening; not ready until the model is verified");
        }
        let (phase, watched) = watch::channel(Phase::Verifying);
        let metrics = Arc::new(Metrics::new().map_err(ServeError::Metrics)?);
        crate::gpu::register(metrics.registry(), self.device).map_err(ServeError::Metrics)?;
        let app = App::new(self.expected.clone(), watched, Arc::clone(&metrics), self.name.clone());
        let closing = CancellationToken::new();
        let http = codex_http::Server::new(listener, self.limits).on_refused(move || metrics.refused());
        let http = tokio::spawn(http.serve(http::router(app), closing.clone()));
        let served = self.until_stopped(&phase, reporter, stop).await;
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
        reporter: &Reporter<ServingState>,
        stop: &Shutdown,
    ) -> Result<(), ServeError> {
        let model = tokio::select! {
            () = stop.requested.cancelled() => return Ok(()),
            model = self.open(phase) => Arc::new(model?),
        };
        phase.send_replace(Phase::Ready(Arc::clone(&model)));
        reporter.update(|state| {
            state.stage = Stage::Running;
            state.verified = Some(model.verified.signed.model);
            state.promotion = Some(model.verified.promoted.digest);
        });
        tracing::info!(model = %model.verified.signed.model, ring = %self.expected.ring, "ready");
        tokio::select! {
            () = stop.requested.cancelled() => {}
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

    /// Reads, verifies and loads the model, and runs the self-check.
    async fn open(&self, phase: &watch::Sender<Phase>) -> Result<ServedModel, ServeError> {
        let (paths, expected) = (self.paths.clone(), self.expected.clone());
        let (slots, device) = (self.slots, self.device);
        let (verified, files) = blocking(move || read_verified(&paths, &expected)).await?;
        phase.send_replace(Phase::Loading);
        let generator = blocking(move || load_checked(&files, slots, device)).await?;
        let (tokenizer, context) = (generator.tokenizer().clone(), generator.config().max_position_embeddings);
        let ends = generator.config().eos_token_ids.clone();
        let batcher = Batcher::start(generator, self.queue).map_err(ServeError::Engine)?;
        Ok(ServedModel { verified, tokenizer, ends, context, batcher })
    }
}

/// Runs blocking work on a thread for it.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ServeError> + Send + 'static,
) -> Result<T, ServeError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|source| Err(ServeError::Engine(source.into())))
}
