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
mod error;
mod errors;
mod filter;
mod golden;
mod grammar;
mod http;
pub(crate) mod local;
mod metrics;
mod openai;
mod phase;
mod place;
mod shadow;
#[cfg(test)]
mod tests;
mod thinking;
mod tls;
mod verified_load;

#[cfg(test)]
pub(crate) use openai::read_any;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use clap::builder::PossibleValuesParser;
use codex_configs::Device;
use codex_http::Limits;
use codex_provenance::{ModelDigest, PromotionDigest, Sha256, attestation::AttestationKind};
use codex_reports::{ServingState, Stage, exit};
use codex_signing::{
    keyless::{IdentityPattern, KeylessError},
    verify::Expected,
};
use codex_verdict::Ring;
use tokio::{net::TcpListener, signal::unix::SignalKind, sync::watch};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use self::{
    access::{Access, Quota},
    activity::Activity,
    batcher::{Batcher, Room},
    capture::Capture,
    errors::Errors,
    filter::Filter,
    grammar::Grammars,
    http::{App, Gates, Side},
    metrics::Metrics,
    openai::Specials,
    phase::{Phase, ServedModel},
    place::SPARE,
    shadow::{Mirror, Shadow},
    thinking::Granted,
    tls::Certificate,
    verified_load::{Paths, TrustedRoot, check, load_unsigned, load_verified},
};
#[cfg(test)]
pub(crate) use self::{openai::tests::chat_model, tests::Case};
pub use activator::Activate;
pub use error::ServeError;

use crate::{
    arguments::{socket_address, whole},
    artifacts::errors::ServerErrorSource,
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

/// The arguments of a signed model.
const SIGNED: [&str; 13] = [
    "model",
    "model_digest",
    "oms_bundle",
    "promotion",
    "promotion_digest",
    "attestation",
    "public_key",
    "key_fingerprint",
    "certificate_identity",
    "certificate_oidc_issuer",
    "trusted_root",
    "trusted_root_digest",
    "ring",
];

/// The time between two reports of the requests that were answered.
const TRAFFIC: Duration = Duration::from_secs(10);

/// The greatest value of a numeric argument.
const MOST: u64 = u16::MAX as u64;

/// Verify a model's signature, promotion and ring, then serve it over HTTP.
#[derive(Clone, Debug, clap::Args)]
pub struct Serve {
    /// Model directory to serve without a signature; needs --unsigned.
    #[arg(value_name = "DIR", requires = "unsigned", conflicts_with_all = SIGNED)]
    directory: Option<PathBuf>,
    /// Serve a model that nobody signed, to this machine only.
    #[arg(long, requires = "directory")]
    unsigned: bool,
    /// The model directory.
    #[arg(long, value_name = "DIR", required_unless_present = "unsigned")]
    model: Option<PathBuf>,
    /// Required digest of the model.
    #[arg(long, value_name = "HEX", required_unless_present = "unsigned")]
    model_digest: Option<ModelDigest>,
    /// The OMS signature bundle.
    #[arg(long, value_name = "FILE", required_unless_present = "unsigned")]
    oms_bundle: Option<PathBuf>,
    /// The promotion bundle.
    #[arg(long, value_name = "FILE", required_unless_present = "unsigned")]
    promotion: Option<PathBuf>,
    /// Required digest of the promotion statement.
    #[arg(long, value_name = "HEX", required_unless_present = "unsigned")]
    promotion_digest: Option<PromotionDigest>,
    /// An attestation that must be beside the promotion, with its kind: slsaProvenance, testResult or verificationSummary. May be
    /// repeated. Each must be signed as the promotion is, and say what it says.
    #[arg(long, value_name = "KIND=FILE", value_parser = attestation)]
    attestation: Vec<(AttestationKind, PathBuf)>,
    /// A public key that verifies a bundle, in PEM. May be repeated, if different keys signed the two bundles.
    #[arg(long, value_name = "FILE", required_unless_present_any = ["unsigned", "certificate_identity"])]
    public_key: Vec<PathBuf>,
    /// A fingerprint that public keys and identities may have. May be repeated; each must have one of them.
    #[arg(long, value_name = "HEX", required_unless_present = "unsigned")]
    key_fingerprint: Vec<Sha256>,
    /// An identity that may have signed with a certificate, such as
    /// `https://kubernetes.io/namespaces/codex-system/serviceaccounts/codex-controller`. May be repeated.
    #[arg(long, value_name = "SUBJECT", requires_all = ["certificate_oidc_issuer", "trusted_root"])]
    certificate_identity: Vec<String>,
    /// The issuer of that identity's tokens; one for each identity, in the same order.
    #[arg(long, value_name = "URL", requires = "certificate_identity")]
    certificate_oidc_issuer: Vec<String>,
    /// The trusted root that verifies certificates, log entries and timestamps, in JSON.
    #[arg(long, value_name = "FILE", requires_all = ["certificate_identity", "trusted_root_digest"])]
    trusted_root: Option<PathBuf>,
    /// Required SHA-256 of the trusted root.
    #[arg(long, value_name = "HEX", requires = "trusted_root")]
    trusted_root_digest: Option<Sha256>,
    /// The ring that the promotion must be for.
    #[arg(long, required_unless_present = "unsigned", value_parser = PossibleValuesParser::new(Ring::ALL.map(Ring::name)))]
    ring: Option<String>,
    /// Require an API key: a directory with a file for each key, such as a mounted Secret. It is read again every few seconds.
    #[arg(long, value_name = "DIR")]
    api_keys: Option<PathBuf>,
    /// The most requests of a key within a time, such as 30/60s, which is the default with --api-keys. Without keys, the most of
    /// all clients together.
    #[arg(long, value_name = "COUNT/TIME", value_parser = str::parse::<Quota>)]
    rate_limit: Option<Quota>,
    /// The most tokens of a key within a time, such as 1000000/1d, those of prompts included. Without keys, of all clients.
    #[arg(long, value_name = "COUNT/TIME", value_parser = str::parse::<Quota>)]
    token_budget: Option<Quota>,
    /// Seconds from the arrival of a request to the end of its response, at most; then it is answered with 504, and its generation
    /// ends. Without it, there is no limit.
    #[arg(long, value_name = "SECONDS", value_parser = whole::<u32>(1..=86_400))]
    request_timeout: Option<u32>,
    /// Tokens that a chat may reason before its reasoning is closed and the answer begins, unless the request says otherwise. Without
    /// it, reasoning may take all tokens of the response.
    #[arg(long, value_name = "TOKENS", value_parser = whole::<usize>(0..=1 << 40))]
    thinking_budget: Option<usize>,
    /// Tokens of the response of a chat that are kept for its answer: reasoning is closed before it takes them.
    #[arg(long, value_name = "TOKENS", default_value_t = 0, value_parser = whole::<usize>(0..=1 << 40))]
    answer_reserve: usize,
    /// Address and port to listen on.
    #[arg(long, default_value = "127.0.0.1:8000", value_parser = socket_address)]
    listen: SocketAddr,
    /// Address and port of a second listener, without TLS, that has /metrics, /ready and /status, for the cluster only. The first one then
    /// has neither /metrics nor /ready. /health is on both.
    #[arg(long, value_name = "ADDRESS", value_parser = socket_address)]
    admin_listen: Option<SocketAddr>,
    /// Where to compute; auto takes a GPU if this program was built with CUDA and finds one, else the processor.
    #[arg(long, default_value = "auto", value_parser = crate::device::parser())]
    device: Device,
    /// Number of requests that are generated at the same time.
    #[arg(long, visible_alias = "max-num-seqs", default_value_t = 8, value_parser = whole::<u16>(1..=MOST))]
    slots: u16,
    /// Number of requests that may wait; further ones are refused with 429.
    #[arg(long, visible_alias = "max-queued-requests", default_value_t = 64, value_parser = whole::<u16>(0..=MOST))]
    queue: u16,
    /// Tokens whose keys and values running requests have together, at most; at least a whole context. When they are full, the request
    /// that came last waits, and its tokens are computed again. Allows more --slots in the same memory [default: a whole context for
    /// each slot].
    #[arg(long, value_name = "TOKENS", value_parser = whole::<usize>(1..=1 << 40))]
    kv_cache: Option<usize>,
    /// Tokens whose keys and values are kept for later prompts that begin alike, over all idle slots; 0 keeps none.
    #[arg(long, value_name = "TOKENS", default_value_t = 16_384, value_parser = whole::<usize>(0..=1 << 40))]
    prefix_cache: usize,
    /// The most tokens that one step computes: one for each response, and chunks of prompts. Less lets long prompts delay other
    /// responses less; more processes them faster. At least --slots [default: 256, 2048 on a GPU, or --slots if that is more].
    #[arg(long, value_name = "TOKENS", value_parser = whole::<usize>(1..=1 << 20))]
    max_num_batched_tokens: Option<usize>,
    /// Check prompts and answers by these safety rules, in YAML. The file is read again every few seconds.
    #[arg(long, value_name = "FILE")]
    safety_rules: Option<PathBuf>,
    /// Append what safety rules hit to this file, as JSON lines without the texts; - is standard output.
    #[arg(long, value_name = "FILE", requires = "safety_rules")]
    safety_events: Option<PathBuf>,
    /// Append failures of the server to this file, as JSON lines without texts of requests or keys. At 4 MiB it is renamed to FILE.1, in
    /// place of an earlier one, and begins anew.
    #[arg(long, value_name = "FILE")]
    errors: Option<PathBuf>,
    /// Serve HTTPS with this certificate, in PEM, the server's own first. Both files are read again every few seconds.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_certificate: Option<PathBuf>,
    /// The private key of the certificate, in PEM.
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    tls_key: Option<PathBuf>,
    /// Report the numbers of requests to the controller, which analyses canaries.
    #[arg(long)]
    report_traffic: bool,
    /// Report to the controller when the last request ended; it stops servers that are idle.
    #[arg(long)]
    report_activity: bool,
    /// Send copies of answered requests to the shadows in FILE, which is read again every few seconds. While FILE is missing, no
    /// copies are sent.
    #[arg(long, value_name = "FILE", conflicts_with = "shadow")]
    mirror: Option<PathBuf>,
    /// Be a shadow: accept only copies of requests from the servers in FILE, and compare the answers. FILE is read again every few
    /// seconds.
    #[arg(long, value_name = "FILE")]
    shadow: Option<PathBuf>,
    #[command(flatten)]
    capture: capture::Arguments,
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

/// Reads a kind of attestation and the path of its bundle.
fn attestation(text: &str) -> Result<(AttestationKind, PathBuf), String> {
    let (kind, path) = text.split_once('=').ok_or("write KIND=FILE, such as testResult=test-result.json")?;
    if path.is_empty() { Err("the path after = is empty".to_owned()) } else { Ok((kind.parse()?, path.into())) }
}

impl Serve {
    /// Serves until SIGTERM or Ctrl-C.
    ///
    /// # Errors
    /// The model is refused or cannot be loaded (exit code 2); the address is unavailable, or requests did not finish in time
    /// (exit code 1).
    pub fn run(self) -> Result<i32, CommandError> {
        let reporter = Arc::new(Reporter::<ServingState>::from_env().map_err(CommandError::bad_input)?);
        run_on_two_threads(self.serve(&reporter))
    }

    /// Returns the identities that may have signed.
    fn identities(&self) -> Result<Vec<IdentityPattern>, ServeError> {
        let (subjects, issuers) = (&self.certificate_identity, &self.certificate_oidc_issuer);
        if subjects.len() != issuers.len() {
            return Err(ServeError::Identities { subjects: subjects.len(), issuers: issuers.len() });
        }
        let patterns = issuers.iter().zip(subjects).map(|(issuer, subject)| IdentityPattern::new(issuer, subject));
        Ok(patterns.collect::<Result<_, _>>().map_err(KeylessError::from)?)
    }

    async fn serve(self, reporter: &Arc<Reporter<ServingState>>) -> Result<(), ServeError> {
        let stop = Shutdown::on_signals()?;
        if self.unsigned && !self.listen.ip().is_loopback() {
            return Err(ServeError::Public(self.listen));
        }
        let slots = usize::from(self.slots);
        if let Some(tokens) = self.max_num_batched_tokens.filter(|tokens| *tokens < slots) {
            return Err(ServeError::Budget { tokens, slots });
        }
        let (listener, admin) = listeners(self.listen, self.admin_listen).await?;
        let identities = self.identities()?;
        let Some(server) = Server::of(self, identities) else { return Err(ServeError::Arguments) };
        let server = Server { admin, ..server };
        let outcome = server.run(listener, reporter, &stop).await;
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
    /// How often comparisons are reported.
    compared: Duration,
    /// What is captured of requests.
    capture: Option<capture::Settings>,
    /// The file of failures.
    errors: Option<PathBuf>,
    name: Option<String>,
}

impl Server {
    /// Returns `None` if an argument is missing, which the command line does not allow.
    fn of(arguments: Serve, identities: Vec<IdentityPattern>) -> Option<Self> {
        let source = match arguments.directory {
            Some(directory) => Source::Unsigned(directory),
            None => Source::Signed {
                paths: Paths {
                    model: arguments.model?,
                    oms_bundle: arguments.oms_bundle?,
                    promotion: arguments.promotion?,
                    attestations: arguments.attestation,
                    public_keys: arguments.public_key,
                    identities,
                    trusted_root: arguments
                        .trusted_root
                        .zip(arguments.trusted_root_digest)
                        .map(|(path, digest)| TrustedRoot { path, digest }),
                },
                expected: Expected {
                    model_digest: arguments.model_digest?,
                    key_fingerprints: arguments.key_fingerprint,
                    ring: arguments.ring?,
                    promotion_digest: arguments.promotion_digest?,
                },
            },
        };
        Some(Self {
            source,
            admin: None,
            access: access::Settings {
                keys: arguments.api_keys,
                rate: arguments.rate_limit,
                tokens: arguments.token_budget,
            },
            filter: filter::Settings { rules: arguments.safety_rules, events: arguments.safety_events },
            tls: arguments
                .tls_certificate
                .zip(arguments.tls_key)
                .map(|(certificate, key)| tls::Settings { certificate, key }),
            reload: access::RELOAD,
            time_limit: arguments.request_timeout.map(|seconds| Duration::from_secs(seconds.into())),
            device: arguments.device,
            room: Room {
                running: arguments.slots.into(),
                queue: arguments.queue.into(),
                cache: arguments.kv_cache,
                prefixes: arguments.prefix_cache,
                batched: arguments.max_num_batched_tokens,
            },
            granted: Granted { budget: arguments.thinking_budget, reserve: arguments.answer_reserve },
            drain_delay: Duration::from_secs(arguments.drain_delay.into()),
            drain_deadline: Duration::from_secs(arguments.drain_deadline.into()),
            limits: LIMITS,
            traffic: arguments.report_traffic.then_some(TRAFFIC),
            activity: arguments.report_activity,
            mirror: arguments.mirror,
            shadow: arguments.shadow,
            compared: TRAFFIC,
            capture: arguments.capture.settings(),
            errors: arguments.errors,
            name: arguments.name,
        })
    }

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
        let shadow = self.shadow.clone().map(|path| Shadow::new(path, Arc::clone(&metrics)));
        let gates = Gates {
            access: Arc::clone(&access),
            filter: filter.clone(),
            shadow: shadow.clone(),
            errors: Arc::clone(errors),
        };
        let app = App::new(expected, gates, watched, Arc::clone(&metrics), self.name.clone());
        let engine_metrics = Arc::clone(&metrics);
        let closing = CancellationToken::new();
        let mut http = codex_http::Server::new(listener, self.limits).on_refused(move || metrics.refused());
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
        let (digest, verified, generator, golden) = blocking(move || {
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
            crate::device::announce(device, generator.path());
            check(&mut generator)?;
            let promoted = verified.as_ref().map(|verified| &verified.promoted.promotion.reasons.evaluations);
            let golden =
                promoted.map(|evaluations| golden::reproduce(&mut generator, evaluations, &counts)).transpose()?;
            Ok((digest, verified, generator, golden))
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
        let capture = capture.zip(store);
        let capture = capture.map(|(settings, store)| Capture::start(settings, store, digest, Arc::clone(&metrics)));
        let batcher = Batcher::start(generator, self.room, metrics).map_err(ServeError::Engine)?;
        let batcher = batcher.with_time_limit(self.time_limit).with_errors(Arc::clone(errors));
        let batcher = batcher.with_mirror(mirror).with_capture(capture.transpose()?);
        let granted = self.granted;
        Ok(ServedModel { digest, verified, golden, tokenizer, specials, context, granted, grammars, batcher })
    }
}

/// What is read from files that may change.
#[derive(Clone)]
struct Reloaded {
    access: Arc<Access>,
    filter: Option<Arc<Filter>>,
    certificate: Option<Arc<Certificate>>,
    mirror: Option<Arc<Mirror>>,
    shadow: Option<Arc<Shadow>>,
    errors: Arc<Errors>,
}

impl Reloaded {
    fn reload(&self) {
        let Self { access, filter, certificate, mirror, shadow, errors } = self;
        errors.reread(ServerErrorSource::ApiKeys, access.reload());
        if let Some(filter) = filter {
            errors.reread(ServerErrorSource::SafetyRules, filter.reload());
        }
        if let Some(certificate) = certificate {
            errors.reread(ServerErrorSource::Certificate, certificate.reload());
        }
        // A server has one of them.
        if let Some(mirror) = mirror {
            errors.reread(ServerErrorSource::Shadows, mirror.reload());
        }
        if let Some(shadow) = shadow {
            errors.reread(ServerErrorSource::Shadows, shadow.reload());
        }
    }
}

/// Reads files that may change again, forever.
async fn reload(files: Reloaded, period: Duration) {
    loop {
        tokio::time::sleep(period).await;
        let files = files.clone();
        if tokio::task::spawn_blocking(move || files.reload()).await.is_err() {
            tracing::error!(
                "reading API keys, safety rules, certificate and shadows again failed: changes need a restart"
            );
            return;
        }
    }
}

/// Runs blocking work on a thread for it.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ServeError> + Send + 'static,
) -> Result<T, ServeError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|source| Err(ServeError::Engine(source.into())))
}
