//! The life of the process: start the servers, acquire the Lease, fill the caches, reconcile, shut down.

use std::{future::pending, net::SocketAddr, sync::Arc, time::Duration};

use axum::http::Request;
use codex_crds::{ReasoningPod, TrainingRun};
use codex_plan::Settings;
use jiff::Timestamp;
use kube::{
    Client, Config, ResourceExt,
    client::{Body, ClientBuilder, retry::RetryPolicy},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch::{Sender, channel},
    task::{JoinError, JoinSet},
    time::{interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tower::{BoxError, Layer, retry::RetryLayer, service_fn};
use tracing::{error, info, warn};

use crate::{
    BUILD,
    admission::AdmissionWatch,
    apply::delete_shared,
    backoff::{Backoff, Waits},
    by_uid::ByUid,
    census::Leader,
    clock::Clock,
    context::Context,
    endpoint::{self, Endpoint},
    error::{chain, client_category},
    fence::Fence,
    flags::Flags,
    health::{self, Health, Leadership, Standby},
    inbox::Inbox,
    kinds::kinds,
    known::Known,
    leader,
    lease::{Candidate, HeldLease, LeaseError, Timing},
    ledger::Ledger,
    metrics::Metrics,
    observe::{Asked, Queues, Requests, watch},
    ownership::is_shared,
    reconcile::control,
    recorder::Recorder,
    requests::CountRequests,
    seal::Seal,
    signer::Signer,
    tls::{self, TlsError},
    traces::{self, Traces},
    unmended::Unmended,
};

/// How long reconciliations in progress may take after a signal to stop.
const DRAIN: Duration = Duration::from_secs(15);
/// How long connections may stay open after that.
const CONNECTION_GRACE: Duration = Duration::from_secs(2);
/// How often the state of objects that no longer exist is dropped.
const SWEEP: Duration = Duration::from_mins(5);

/// Why the process failed.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// The configuration of the client cannot be loaded.
    #[error("the configuration of the cluster cannot be loaded: {0}")]
    Config(#[source] Box<kube::Error>),
    /// An address cannot be bound.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// The signal handlers cannot be installed.
    #[error("the signal handlers cannot be installed: {0}")]
    Signals(#[source] std::io::Error),
    /// The metrics cannot be registered.
    #[error("metrics cannot be registered: {0}")]
    Metrics(#[from] prometheus::Error),
    /// `--report-url` is invalid.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The Lease was lost.
    #[error("leadership lost: {0}")]
    Lease(#[from] LeaseError),
    /// A task ended that runs until the process stops.
    #[error("a task ended unexpectedly: {0}")]
    Task(String),
}

impl OperatorError {
    /// Returns the category for logs.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Config(source) => client_category(source),
            Self::Listen { .. } => "listen",
            Self::Signals(_) => "signals",
            Self::Metrics(_) => "metrics",
            Self::Tls(source) => source.category(),
            Self::Lease(source) => source.category(),
            Self::Task(_) => "task",
        }
    }
}

/// Runs until a signal stops it, or the Lease is lost.
///
/// # Errors
/// See [`OperatorError`].
pub async fn run(flags: Flags) -> Result<(), OperatorError> {
    // Installing the provider again fails and changes nothing.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    info!(version = BUILD, namespace = flags.namespace, "codex-controller is starting");
    let stop = stop_on_signal()?;
    let metrics = Metrics::new()?;
    let client = client(&metrics).await.map_err(|source| OperatorError::Config(Box::new(source)))?;
    let (leadership, leadership_seen) = channel(Leadership::Standby(Standby::Starting));
    let (active, context) = channel(None);
    let mut servers = JoinSet::new();
    let closing = CancellationToken::new();
    servers.spawn({
        let (address, closing) = (flags.health_listen, closing.clone());
        let health = Health { metrics: metrics.clone(), leadership: leadership_seen };
        async move {
            health::serve(address, closing, health).await.map_err(|source| OperatorError::Listen { address, source })
        }
    });
    if flags.watch_namespaces.0.contains(&flags.namespace) {
        warn!(
            "the controller's own namespace {} is watched: who may create pods there can read its keys; watch the namespaces of \
             teams only, and give the controller one of its own",
            flags.namespace
        );
    }
    // Only the Lease decides by itself when it tries again.
    let patient = retried(&client);
    let report_url = flags.report_url();
    tls::check_url(&report_url)?;
    let certificates = async || tls::certificates(patient.clone(), &flags.namespace, &report_url).await;
    let certificates = tokio::select! {
        certificates = persistently(certificates, |why| tell_keys(&leadership, why)) => certificates,
        Some(ended) = servers.join_next() => return Err(ended_early(ended)),
        () = stop.cancelled() => return Ok(()),
    };
    metrics.certificate_expires(certificates.expires);
    let candidate = Candidate::new(client.clone(), &flags.namespace, &flags.lease_name, flags.identity())
        .timed(Timing::lasting(flags.lease_duration))
        .watching(&flags.watch_namespaces.0);
    servers.spawn({
        let (address, closing) = (flags.listen, closing.clone());
        let endpoint = Endpoint::new(patient, metrics.clone(), context).behind(candidate.fence());
        let server = certificates.server;
        async move {
            endpoint::serve(address, closing, server, endpoint)
                .await
                .map_err(|source| OperatorError::Listen { address, source })
        }
    });
    let lead = lead(&flags, candidate, client, metrics, certificates.authority, &stop, &leadership, &active);
    let result = tokio::select! {
        result = lead => result,
        Some(ended) = servers.join_next() => Err(ended_early(ended)),
    };
    active.send_replace(None);
    leadership.send_replace(Leadership::Standby(Standby::Stopping));
    closing.cancel();
    // Connections that stay open longer are closed with the servers.
    let _ = timeout(CONNECTION_GRACE, async { while servers.join_next().await.is_some() {} }).await;
    info!("codex-controller has stopped");
    result
}

/// Returns why a server ended that runs until the process stops.
fn ended_early(ended: Result<Result<(), OperatorError>, JoinError>) -> OperatorError {
    match ended {
        Ok(Err(failure)) => failure,
        Ok(Ok(())) => OperatorError::Task("an HTTP server".to_owned()),
        Err(panicked) => OperatorError::Task(panicked.to_string()),
    }
}

/// Tries something until it succeeds. Each failure is logged, and told to `tell`: what administrators repair takes effect without a
/// restart.
pub(crate) async fn persistently<T, E: std::error::Error + 'static>(
    attempt: impl AsyncFn() -> Result<T, E>,
    tell: impl Fn(&str),
) -> T {
    let mut waits = Waits::default();
    loop {
        match attempt().await {
            Ok(made) => return made,
            Err(failure) => {
                let (why, wait) = (failure.to_string(), waits.after_failure());
                error!(again_in_seconds = wait.as_secs(), error = chain(&failure), "the controller is not ready");
                tell(&why);
                sleep(wait).await;
            }
        }
    }
}

/// Says that this process is not ready, because its keys cannot be loaded.
fn tell_keys(leadership: &Sender<Leadership>, why: &str) {
    leadership.send_replace(Leadership::Standby(Standby::Keys(why.to_owned())));
}

/// Returns the client for the API server, which counts its requests.
async fn client(metrics: &Metrics) -> kube::Result<Client> {
    let mut config = Config::infer().await.map_err(kube::Error::InferConfig)?;
    // kube's own retry would be below the fence, and send a write again although the Lease has expired since.
    config.default_retry = false;
    Ok(ClientBuilder::try_from(config)?.with_layer(&CountRequests(metrics.clone())).build())
}

/// Returns the client that sends requests again which the API server refuses for now. Each attempt passes through the layers of
/// `client`, such as the fence.
pub(crate) fn retried(client: &Client) -> Client {
    let (inner, namespace) = (client.clone(), client.default_namespace().to_owned());
    let send = service_fn(move |request: Request<Body>| {
        let inner = inner.clone();
        async move { inner.send(request).await.map_err(BoxError::from) }
    });
    Client::new(RetryLayer::new(RetryPolicy::server_retry()).layer(send), namespace)
}

/// Returns the client with a fence around its writes.
pub(crate) fn fenced(client: &Client, fence: &Fence) -> Client {
    let (inner, namespace) = (client.clone(), client.default_namespace().to_owned());
    let send = service_fn(move |request: Request<Body>| {
        let inner = inner.clone();
        async move { inner.send(request).await }
    });
    Client::new(fence.layer(send), namespace)
}

/// Waits for the Lease and reconciles while it is held.
#[allow(clippy::too_many_arguments, reason = "everything that a process begins with")]
async fn lead(
    flags: &Flags,
    candidate: Candidate,
    client: Client,
    metrics: Metrics,
    authority: String,
    stop: &CancellationToken,
    leadership: &Sender<Leadership>,
    active: &Sender<Option<Arc<Context>>>,
) -> Result<(), OperatorError> {
    let identity = candidate.identity().to_owned();
    // Writes of this process end when its Lease does, even those of a reconciliation that is not cancelled yet.
    let client = retried(&fenced(&client, &candidate.fence()));
    let mut held = tokio::select! {
        held = candidate.acquire_and_tell(|why| {
            leadership.send_replace(Leadership::Standby(match why {
                LeaseError::Taken { .. } => Standby::Ready(why.to_string()),
                _ => Standby::Lease(why.to_string()),
            }));
        }) => held,
        () = stop.cancelled() => return Ok(()),
    };
    let claimed = held.claim_objects(|why| {
        warn!("standing by: {why}");
        leadership.send_replace(Leadership::Standby(Standby::Objects(why.to_owned())));
    });
    tokio::select! {
        claimed = claimed => claimed?,
        () = stop.cancelled() => {
            release(held).await;
            return Ok(());
        }
    }
    let fill = |why: &str| drop(leadership.send_replace(Leadership::Standby(Standby::Caches(why.to_owned()))));
    fill("");
    metrics.leads(true);
    let work = async {
        let settings = Arc::new(Settings {
            version: BUILD.to_owned(),
            trainer_image: flags.trainer_image.clone(),
            cuda_image: flags.cuda_image.clone(),
            run_as: flags.run_as,
            attested_images: flags.attested_images.0.clone(),
            worker_image: flags.worker_image.clone(),
            report_url: flags.report_url(),
            report_ca: authority,
            controller_namespace: flags.namespace.clone(),
            report_port: i32::from(flags.listen.port()),
        });
        let keys = async {
            let tell = |why: &str| tell_keys(leadership, why);
            let seal = persistently(async || Seal::load(client.clone(), &flags.namespace).await, tell).await;
            let signer = async || Signer::load_or_wait(client.clone(), &flags.namespace, flags.signing()).await;
            (seal, Arc::new(persistently(signer, tell).await))
        };
        let (seal, signer) = tokio::select! {
            keys = keys => keys,
            () = stop.cancelled() => return Ok(()),
        };
        metrics.signs(signer.signs_at(Timestamp::now()));
        let (queues, requests) = Queues::new();
        let mut tasks = JoinSet::new();
        let admission = Arc::new(AdmissionWatch::default());
        tasks.spawn({
            let (admission, client) = (admission.clone(), client.clone());
            async move { admission.watch(client).await }
        });
        let (stores, failures) = tokio::select! {
            (stores, failures) = watch(&client, &flags.watch_namespaces.0, &metrics, &queues, &mut tasks, fill) => {
                (Arc::new(stores), failures)
            }
            () = stop.cancelled() => return Ok(()),
        };
        // A verdict that is due at once must not find the policies unread.
        admission.first().await;
        let traces = traces(&metrics, &mut tasks);
        let context = Arc::new(Context {
            clock: Clock::System,
            recorder: Recorder::new(client.clone(), &identity),
            client,
            settings,
            stores: stores.clone(),
            queues: queues.clone(),
            inbox: Arc::new(Inbox::default()),
            signer: signer.clone(),
            seal,
            admission,
            refused: ByUid::default(),
            writers: ByUid::default(),
            metrics: metrics.clone(),
            traces,
            backoff: Backoff::default(),
            unmended: Unmended::default(),
            known: Known::default(),
            written: ByUid::default(),
            obstructions: ByUid::default(),
            settled: ByUid::default(),
            sharing: tokio::sync::Mutex::default(),
            asked: Asked::default(),
            ledger: Ledger::default(),
        });
        tasks.spawn({
            let (context, signer) = (context.clone(), signer);
            async move { Box::pin(signer.watch(|| signer_changed(&context))).await }
        });
        tasks.spawn({
            let context = context.clone();
            async move { context.admission.each(|| queue_reasoning_pods(&context)).await }
        });
        tasks.spawn(sweep(context.clone()));
        info!(
            training_runs = stores.training_runs.len(),
            evaluations = stores.evaluations.len(),
            reasoning_pods = stores.reasoning_pods.len(),
            "the caches are filled; reconciling"
        );
        active.send_replace(Some(context.clone()));
        let (inbox, queues_of_leader) = (context.inbox.clone(), queues.clone());
        let leader = Leader { stores, inbox, queues: queues_of_leader, failures, since: context.now() };
        let marked = async {
            if let Some(pod) = &flags.pod_name {
                let mark = async || leader::mark(&context.client, &flags.namespace, pod).await;
                persistently(mark, |why| {
                    leadership.send_replace(Leadership::Standby(Standby::Label(why.to_owned())));
                })
                .await;
            }
            leadership.send_replace(Leadership::Active(leader.into()));
            pending::<()>().await;
        };
        let controllers = control_all(context.clone(), requests);
        tokio::pin!(controllers);
        tokio::select! {
            () = &mut controllers => Err(OperatorError::Task("the controllers".to_owned())),
            () = marked => Err(OperatorError::Task("the label of the leader".to_owned())),
            Some(ended) = tasks.join_next() => {
                let why = ended.map_or_else(|panicked| panicked.to_string(), |()| "a watch".to_owned());
                Err(OperatorError::Task(why))
            }
            () = stop.cancelled() => {
                info!("finishing the reconciliations in progress");
                active.send_replace(None);
                leadership.send_replace(Leadership::Standby(Standby::Stopping));
                queues.close();
                if timeout(DRAIN, controllers).await.is_err() {
                    warn!("reconciliations were cut off; the next leader continues them");
                }
                Ok(())
            }
        }
    };
    let result = tokio::select! {
        lost = held.keep() => {
            metrics.leads(false);
            metrics.signs(false);
            return Err(lost.into());
        }
        result = work => result,
    };
    metrics.leads(false);
    metrics.signs(false);
    release(held).await;
    result
}

/// Starts the export of spans, if a collector is configured. A wrong configuration is logged: it is no reason not to reconcile.
fn traces(metrics: &Metrics, tasks: &mut JoinSet<()>) -> Option<Traces> {
    let config = traces::config(|name| std::env::var(name).ok());
    let started = config.and_then(|config| config.map(|config| Traces::new(config, metrics.clone())).transpose());
    match started {
        Ok(started) => started.map(|(traces, task)| {
            tasks.spawn(task);
            traces
        }),
        Err(why) => {
            error!("no spans are exported: {why}");
            None
        }
    }
}

async fn release(held: HeldLease) {
    if let Err(failure) = held.release().await {
        warn!(error = chain(&failure), "the Lease could not be released and expires by itself");
    }
}

macro_rules! control_kinds {
    (reconciled { $($field:ident: $kind:ty, $label:expr;)* } referenced { $($referenced:tt)* }) => {
        /// Runs the controller of every reconciled kind until the queues are closed.
        async fn control_all(context: Arc<Context>, requests: Requests) {
            tokio::join!($(control::<$kind>(context.clone(), requests.$field)),*);
        }
    };
}

kinds!(control_kinds);

/// Queues every ReasoningPod, because the trusted keys changed, or whether and why the signer is available.
fn signer_changed(context: &Context) {
    measure_signer(context);
    queue_reasoning_pods(context);
    for run in context.stores.training_runs.all().filter(|run| run.spec.reproduces.is_some()) {
        context.queues.add::<TrainingRun>(&run.namespace().unwrap_or_default(), &run.name_any());
    }
}

/// Records whether the signer can sign now, and when keys expire.
fn measure_signer(context: &Context) {
    let now = context.now();
    context.metrics.signs(context.signer.signs_at(now));
    context.metrics.keys_expire(&context.signer.expiries(now));
}

/// Queues every ReasoningPod.
fn queue_reasoning_pods(context: &Context) {
    for pod in context.stores.reasoning_pods.all() {
        context.queues.add::<ReasoningPod>(&pod.namespace().unwrap_or_default(), &pod.name_any());
    }
}

async fn sweep(context: Arc<Context>) {
    let mut rounds = interval(SWEEP);
    loop {
        rounds.tick().await;
        context.sweep();
        sweep_shared(&context).await;
        // Keys begin and cease to count by themselves.
        measure_signer(&context);
    }
}

/// Deletes what is shared in namespaces without an object that needs it.
async fn sweep_shared(context: &Context) {
    for policy in context.stores.network_policies.all().filter(|policy| is_shared(&**policy)) {
        if let Err(failure) = delete_shared(context, &policy.namespace().unwrap_or_default()).await {
            warn!(category = failure.category(), error = chain(&failure), "the next sweep tries again");
        }
    }
}

/// Returns a token that SIGTERM and SIGINT cancel.
fn stop_on_signal() -> Result<CancellationToken, OperatorError> {
    let stop = CancellationToken::new();
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let mut signals = signal(kind).map_err(OperatorError::Signals)?;
        let stop = stop.clone();
        tokio::spawn(async move {
            if signals.recv().await.is_some() {
                info!("received a signal to stop");
                stop.cancel();
            } else {
                error!("signals are no longer received");
            }
        });
    }
    Ok(stop)
}
