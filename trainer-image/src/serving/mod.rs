//! `codex serve`: holds a model in memory, verifies exactly the bytes that it holds, and only then answers. Does I/O.
//!
//! The order never changes: the address is listened on (alive, not ready), every file is read once and hashed on the way,
//! key, signature, promotion and ring are checked against those bytes, the model is loaded from those bytes, a self-check
//! generates, and then `/ready` says yes. A model that is refused is reported with the reason `VerificationFailed`, and the
//! process ends with [`exit::BAD_INPUT`]; in a Deployment the kubelet starts it again with growing pauses, so that a pod that
//! refuses its model stays un-ready, keeps saying why in its termination message, and recovers by itself once the volume is
//! put right.
//!
//! Threads: two for HTTP, one for the engine, and rayon's, whose number is that of the CPUs which the cgroup's quota leaves.

mod engine;
mod error;
mod hold;
mod http;
mod metrics;
mod phase;
#[cfg(test)]
mod tests;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use clap::builder::PossibleValuesParser;
use codex_provenance::{ModelDigest, PromotionDigest, Sha256};
use codex_reports::{ServingState, Stage, exit};
use codex_signing::verify::Expected;
use codex_verdict::Ring;
use tokio::{net::TcpListener, signal::unix::SignalKind, sync::watch};
use tokio_util::sync::CancellationToken;

use self::{
    engine::Engine,
    hold::Paths,
    http::App,
    metrics::Metrics,
    phase::{Model, Phase},
};
pub use error::ServeError;

use crate::{
    error::{CommandError, chain},
    reporting::Reporter,
};

/// Serve a model, after checking its bytes against its signature, its promotion and its ring.
#[derive(Clone, Debug, clap::Args)]
pub struct Serve {
    /// The model directory.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// The digest that the model must have.
    #[arg(long, value_name = "HEX")]
    model_digest: ModelDigest,
    /// The OMS signature bundle.
    #[arg(long, value_name = "FILE")]
    oms_bundle: PathBuf,
    /// The promotion bundle.
    #[arg(long, value_name = "FILE")]
    promotion: PathBuf,
    /// The digest that the promotion statement must have.
    #[arg(long, value_name = "HEX")]
    promotion_digest: PromotionDigest,
    /// The public key that both bundles were signed with, in PEM.
    #[arg(long, value_name = "FILE")]
    public_key: PathBuf,
    /// The fingerprint that the public key must have.
    #[arg(long, value_name = "HEX")]
    key_fingerprint: Sha256,
    /// The ring that the model is served in.
    #[arg(long, value_parser = PossibleValuesParser::new(Ring::ALL.map(Ring::name)))]
    ring: String,
    /// Where to listen.
    #[arg(long, default_value = "127.0.0.1:8000")]
    listen: SocketAddr,
    /// How many requests are worked on at the same time.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..))]
    slots: u16,
    /// How many more requests may wait before others are refused with 429.
    #[arg(long, default_value_t = 64)]
    queue: u16,
    /// Seconds to go on answering, not ready, after SIGTERM, until nobody sends requests here any more.
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    drain_delay: u16,
    /// Seconds that requests under way then have to finish.
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    drain_deadline: u16,
}

impl Serve {
    /// Serves until SIGTERM or Ctrl-C.
    ///
    /// # Errors
    /// A model that is refused or cannot be loaded (exit 2), an address that cannot be listened on, requests that did not
    /// finish in time (exit 1).
    pub fn run(self) -> Result<i32, CommandError> {
        let reporter = Arc::new(Reporter::<ServingState>::from_env().map_err(CommandError::bad_input)?);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(CommandError::failed)?;
        let outcome = runtime.block_on(self.serve(&reporter));
        // Reading a large model is not worth waiting for when nobody wants it any more.
        runtime.shutdown_background();
        match outcome {
            Ok(()) => Ok(exit::FINISHED),
            Err(error) => Err(error.into()),
        }
    }

    async fn serve(self, reporter: &Arc<Reporter<ServingState>>) -> Result<(), ServeError> {
        let stop = Stop::on_signals()?;
        let listener = TcpListener::bind(self.listen)
            .await
            .map_err(|source| ServeError::Listen { address: self.listen, source })?;
        let outcome = Server::of(self).run(listener, reporter, &stop).await;
        // Who was asked to end and ran out of time spends none on a last word.
        if let Err(error) = &outcome
            && !matches!(error, ServeError::CutOff { .. })
        {
            reporter.fail(error.failure());
            let (reporter, code) = (Arc::clone(reporter), error.exit());
            // What came of it is logged by the reporter; it changes nothing here.
            drop(tokio::task::spawn_blocking(move || reporter.finish(code)).await);
        }
        outcome
    }
}

/// The wish to stop.
#[derive(Clone, Debug, Default)]
struct Stop {
    /// Somebody asked.
    asked: CancellationToken,
    /// Somebody sits before a terminal and waits.
    at_once: CancellationToken,
}

impl Stop {
    fn on_signals() -> Result<Self, ServeError> {
        let signal = |kind| tokio::signal::unix::signal(kind).map_err(ServeError::Signals);
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let stop = Self::default();
        let asked = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => asked.at_once.cancel(),
            }
            asked.asked.cancel();
        });
        Ok(stop)
    }
}

/// A server before it listens.
struct Server {
    paths: Paths,
    expected: Expected,
    slots: usize,
    queue: usize,
    drain_delay: Duration,
    drain_deadline: Duration,
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
            queue: arguments.queue.into(),
            drain_delay: Duration::from_secs(arguments.drain_delay.into()),
            drain_deadline: Duration::from_secs(arguments.drain_deadline.into()),
        }
    }

    /// Serves on `listener` until `stop`; returns once every request is answered.
    async fn run(
        self,
        listener: TcpListener,
        reporter: &Reporter<ServingState>,
        stop: &Stop,
    ) -> Result<(), ServeError> {
        if let Ok(address) = listener.local_addr() {
            tracing::info!(%address, "listening; not ready before the model is verified");
        }
        let (phase, watched) = watch::channel(Phase::Verifying);
        let metrics = Arc::new(Metrics::new().map_err(ServeError::Metrics)?);
        let app = App::new(self.expected.clone(), watched, metrics);
        let closing = CancellationToken::new();
        let http = axum::serve(listener, http::router(app)).with_graceful_shutdown(closing.clone().cancelled_owned());
        let http = tokio::spawn(http.into_future());
        let served = self.until_stopped(&phase, reporter, stop).await;
        if let Err(error) = &served {
            phase.send_replace(Phase::Refused(chain(error).into()));
            // The listener stays open while the last word is delivered: probes then see why.
            return served;
        }
        closing.cancel();
        match tokio::time::timeout(self.drain_deadline, http).await {
            Ok(Ok(result)) => result.map_err(ServeError::Http),
            Ok(Err(source)) => Err(ServeError::Http(std::io::Error::other(source))),
            Err(_) => Err(ServeError::CutOff { requests: phase.borrow().active(), deadline: self.drain_deadline }),
        }
    }

    /// Verifies, loads and answers; returns when it is time to close the door.
    async fn until_stopped(
        &self,
        phase: &watch::Sender<Phase>,
        reporter: &Reporter<ServingState>,
        stop: &Stop,
    ) -> Result<(), ServeError> {
        let model = tokio::select! {
            () = stop.asked.cancelled() => return Ok(()),
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
            () = stop.asked.cancelled() => {}
            () = model.engine.ended() => return Err(ServeError::Engine(std::io::Error::other("it panicked"))),
        }
        tracing::info!("asked to stop: not ready any more, requests under way are finished");
        phase.send_replace(Phase::Draining(model));
        tokio::select! {
            () = tokio::time::sleep(self.drain_delay) => {}
            () = stop.at_once.cancelled() => {}
        }
        Ok(())
    }

    /// Reads, verifies, loads and tries the model.
    async fn open(&self, phase: &watch::Sender<Phase>) -> Result<Model, ServeError> {
        let (paths, expected, slots) = (self.paths.clone(), self.expected.clone(), self.slots);
        let (verified, files) = blocking(move || hold::hold(&paths, &expected)).await?;
        phase.send_replace(Phase::Loading);
        let generator = blocking(move || hold::load(&files, slots)).await?;
        let (tokenizer, context) = (generator.tokenizer().clone(), generator.config().max_position_embeddings);
        let engine = Engine::start(generator, self.queue).map_err(ServeError::Engine)?;
        Ok(Model { verified, tokenizer, context, engine })
    }
}

/// Runs long work where it holds up nobody.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ServeError> + Send + 'static,
) -> Result<T, ServeError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|source| Err(ServeError::Engine(source.into())))
}
