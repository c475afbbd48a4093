//! The life of the process: servers up, Lease, first look, controllers, and the way back down.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum_server::Handle;
use codex_plan::Settings;
use kube::{
    Client,
    runtime::events::{Recorder, Reporter},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinSet,
    time::{interval, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{
    BUILD, MANAGER,
    backoff::Backoff,
    by_uid::ByUid,
    context::Context,
    endpoint::{self, Endpoint},
    error::{chain, client_category},
    flags::Flags,
    health::{self, Health, Standing},
    inbox::Inbox,
    lease::{Candidate, LeaseError},
    metrics::Metrics,
    observe::{Stores, Wake},
    reconcile::control,
    seal::{Seal, SealError},
    signer::{Signer, SignerError},
    tls::{self, TlsError},
    unmended::Unmended,
};

/// How long what was begun may take when the process is asked to stop.
const DRAIN: Duration = Duration::from_secs(15);
/// How often is forgotten what belongs to objects that are gone.
const SWEEP: Duration = Duration::from_mins(5);

/// Why the process stops.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// No cluster is configured.
    #[error("no cluster: {0}")]
    Config(#[source] Box<kube::Error>),
    /// An address that is taken, say.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// No signal handlers.
    #[error("signals cannot be heard: {0}")]
    Signals(#[source] std::io::Error),
    /// Metrics with one name.
    #[error("metrics cannot be registered: {0}")]
    Metrics(#[from] prometheus::Error),
    /// The report endpoint's certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The key of seals.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The signing key.
    #[error(transparent)]
    Signer(#[from] SignerError),
    /// Another process leads.
    #[error("stopped acting: {0}")]
    Lease(#[from] LeaseError),
    /// A task that should have run for ever.
    #[error("a task of the controller ended: {0}")]
    Task(String),
}

impl OperatorError {
    /// A word for logs.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Config(source) => client_category(source),
            Self::Listen { .. } => "listen",
            Self::Signals(_) => "signals",
            Self::Metrics(_) => "metrics",
            Self::Tls(source) => source.category(),
            Self::Seal(source) => source.category(),
            Self::Signer(source) => source.category(),
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
    // One provider for all TLS; a second installation of the same one is no failure.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    info!(version = BUILD, namespace = flags.namespace, "codex-controller starts");
    let stop = stop_on_signal()?;
    let client = Client::try_default().await.map_err(|source| OperatorError::Config(Box::new(source)))?;
    let metrics = Metrics::new()?;
    let (standing, seen) = watch::channel(Standing::Waiting);
    let (acting, context) = watch::channel(None);
    let mut servers = JoinSet::new();
    let health_handle = Handle::new();
    servers.spawn({
        let (address, handle) = (flags.health_listen, health_handle.clone());
        let health = Health { metrics: metrics.clone(), standing: seen };
        async move {
            health::serve(address, handle, health).await.map_err(|source| OperatorError::Listen { address, source })
        }
    });
    let certificates = tls::certificates(client.clone(), &flags.namespace, &flags.report_url()).await?;
    let reports_handle = Handle::new();
    servers.spawn({
        let (address, handle) = (flags.listen, reports_handle.clone());
        let endpoint = Endpoint::new(client.clone(), metrics.clone(), context);
        let server = certificates.server;
        async move {
            endpoint::serve(address, handle, server, endpoint)
                .await
                .map_err(|source| OperatorError::Listen { address, source })
        }
    });
    let lead = lead(&flags, client, metrics, certificates.authority, &stop, &standing, &acting);
    let result = tokio::select! {
        result = lead => result,
        Some(ended) = servers.join_next() => match ended {
            Ok(Err(failure)) => Err(failure),
            Ok(Ok(())) => Err(OperatorError::Task("a server stopped serving".to_owned())),
            Err(panicked) => Err(OperatorError::Task(panicked.to_string())),
        },
    };
    acting.send_replace(None);
    standing.send_replace(Standing::Waiting);
    let patience = Duration::from_secs(2);
    health_handle.graceful_shutdown(Some(patience));
    reports_handle.graceful_shutdown(Some(patience));
    // Connections that stay open longer are cut off.
    let _ = timeout(patience + Duration::from_secs(1), async { while servers.join_next().await.is_some() {} }).await;
    info!("codex-controller stops");
    result
}

/// Waits for the Lease and acts while it is held.
async fn lead(
    flags: &Flags,
    client: Client,
    metrics: Metrics,
    authority: String,
    stop: &CancellationToken,
    standing: &watch::Sender<Standing>,
    acting: &watch::Sender<Option<Arc<Context>>>,
) -> Result<(), OperatorError> {
    let identity = flags.identity();
    let candidate = Candidate::new(client.clone(), &flags.namespace, &flags.lease_name, identity.clone());
    let mut held = tokio::select! {
        held = candidate.acquire() => held,
        () = stop.cancelled() => return Ok(()),
    };
    metrics.leads(true);
    let work = async {
        let settings = Arc::new(Settings {
            version: BUILD.to_owned(),
            trainer_image: flags.trainer_image.clone(),
            worker_image: flags.worker_image.clone(),
            report_url: flags.report_url(),
            report_ca: authority,
            controller_namespace: flags.namespace.clone(),
            report_port: i32::from(flags.listen.port()),
        });
        let seal = Seal::load(client.clone(), &flags.namespace).await?;
        let signer = Arc::new(Signer::load(client.clone(), &flags.namespace).await?);
        let (wake, queues) = Wake::new();
        let mut tasks = JoinSet::new();
        let stores = tokio::select! {
            stores = Stores::follow(&client, &flags.watch_namespaces, &metrics, &wake, &mut tasks) => Arc::new(stores),
            () = stop.cancelled() => return Ok(()),
        };
        let reporter =
            Reporter { controller: MANAGER.to_owned(), instance: Some(identity.chars().take(128).collect()) };
        let context = Arc::new(Context {
            recorder: Recorder::new(client.clone(), reporter),
            client,
            settings,
            stores: stores.clone(),
            wake: wake.clone(),
            inbox: Arc::new(Inbox::default()),
            signer: signer.clone(),
            seal,
            metrics: metrics.clone(),
            backoff: Backoff::default(),
            unmended: Unmended::default(),
            written: ByUid::default(),
        });
        tasks.spawn({
            let (context, signer) = (context.clone(), signer);
            async move { signer.watch(|| wake_pods(&context)).await }
        });
        tasks.spawn(sweep(context.clone()));
        info!(
            runs = stores.runs.len(),
            evaluations = stores.evaluations.len(),
            pods = stores.pods.len(),
            "the caches are filled; reconciling"
        );
        acting.send_replace(Some(context.clone()));
        standing.send_replace(Standing::Acting(stores));
        let controllers = async {
            tokio::join!(
                control(context.clone(), queues.runs),
                control(context.clone(), queues.evaluations),
                control(context.clone(), queues.pods),
            );
        };
        tokio::pin!(controllers);
        tokio::select! {
            () = &mut controllers => Err(OperatorError::Task("the controllers".to_owned())),
            Some(ended) = tasks.join_next() => {
                let why = ended.map_or_else(|panicked| panicked.to_string(), |()| "a watch".to_owned());
                Err(OperatorError::Task(why))
            }
            () = stop.cancelled() => {
                info!("finishing what was begun");
                acting.send_replace(None);
                standing.send_replace(Standing::Waiting);
                wake.close();
                if timeout(DRAIN, controllers).await.is_err() {
                    warn!("not everything that was begun is finished: the next process goes on");
                }
                Ok(())
            }
        }
    };
    let result = tokio::select! {
        lost = held.keep() => {
            metrics.leads(false);
            return Err(lost.into());
        }
        result = work => result,
    };
    metrics.leads(false);
    if let Err(failure) = held.release().await {
        warn!(error = chain(&failure), "the Lease was not given back; it expires");
    }
    result
}

/// The signer came or went: every ReasoningPod looks again.
fn wake_pods(context: &Context) {
    use kube::ResourceExt;
    for pod in context.stores.pods.state() {
        let namespace = pod.namespace().unwrap_or_default();
        context.wake.wake(codex_reports::Kind::ReasoningPod, &namespace, &pod.name_any());
    }
}

async fn sweep(context: Arc<Context>) {
    let mut rounds = interval(SWEEP);
    loop {
        rounds.tick().await;
        context.sweep();
    }
}

/// A token that SIGTERM and SIGINT cancel.
fn stop_on_signal() -> Result<CancellationToken, OperatorError> {
    let stop = CancellationToken::new();
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let mut heard = signal(kind).map_err(OperatorError::Signals)?;
        let stop = stop.clone();
        tokio::spawn(async move {
            if heard.recv().await.is_some() {
                info!("asked to stop");
                stop.cancel();
            } else {
                error!("signals are no longer heard");
            }
        });
    }
    Ok(stop)
}
