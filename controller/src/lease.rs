//! Leader election by a Lease: its holder reconciles, all other processes stand by. Expiry is measured with the monotonic
//! clock of the process, so that clock skew between machines does not matter.
//!
//! The holder renews with one PUT on the resourceVersion that it wrote last. An idle controller therefore costs one write
//! every [`RENEW`] and no reads. A candidate regards a Lease as expired if it has not changed for its own duration.

use std::time::Duration;

use codex_crds::annotation;
use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{Api, Client, ResourceExt, api::ObjectMeta};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tracing::{debug, info, warn};

use crate::{
    api::post_params,
    backoff::jittered,
    error::{answered, client_category},
    fence::Fence,
    installations::{Installation, Others},
};

/// The duration of the Lease: how long it is valid without being renewed.
pub const DURATION: Duration = Duration::from_secs(30);
/// How often the holder renews the Lease.
pub const RENEW: Duration = Duration::from_secs(10);
/// How long a holder keeps reconciling without a successful renewal. It stops well before the Lease expires.
pub const DEADLINE: Duration = Duration::from_secs(20);
/// How long a holder waits before it looks again whether another installation reconciles its objects.
const RIVALS: Duration = Duration::from_secs(5);
/// How long to wait between attempts.
const RETRY: Duration = Duration::from_secs(2);

/// Why a process does not hold the Lease.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// A request to the API server failed.
    #[error("the Lease {name} cannot be read or written: {source}")]
    Client {
        /// The name of the Lease.
        name: String,
        /// The client's error.
        #[source]
        source: kube::Error,
    },
    /// Another process holds it.
    #[error("the Lease {name} is held by {holder}")]
    Taken {
        /// The name of the Lease.
        name: String,
        /// The identity of the holder.
        holder: String,
    },
    /// The Lease was not renewed in time.
    #[error("the Lease {name} could not be renewed for {} s", DEADLINE.as_secs())]
    Expired {
        /// The name of the Lease.
        name: String,
    },
}

impl LeaseError {
    /// Returns the category for logs.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Client { source, .. } => client_category(source),
            Self::Taken { .. } => "lease_taken",
            Self::Expired { .. } => "lease_expired",
        }
    }
}

/// A process that tries to acquire the Lease.
#[derive(Clone)]
pub struct Candidate {
    api: Api<Lease>,
    namespace: String,
    name: String,
    identity: String,
    fence: Fence,
    installation: Installation,
}

/// The Lease, held by this process.
pub struct HeldLease {
    candidate: Candidate,
    lease: Lease,
    renewed: Instant,
}

/// The version of the Lease that was seen last, and when it was first seen.
pub(crate) struct Seen {
    version: Option<String>,
    since: Instant,
}

impl Candidate {
    /// Creates a candidate for the Lease `name` in `namespace` with the holder identity `identity`.
    pub fn new(client: Client, namespace: &str, name: &str, identity: String) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            identity,
            fence: Fence::default(),
            installation: Installation::default(),
        }
    }

    /// Sets the namespaces whose objects this process reconciles; all namespaces if there are none.
    #[must_use]
    pub fn watching(self, namespaces: &[String]) -> Self {
        Self { installation: Installation::watching(namespaces), ..self }
    }

    /// Returns the fence that is open while this process holds the Lease and has renewed it in time.
    pub fn fence(&self) -> Fence {
        self.fence.clone()
    }

    /// Waits until this process holds the Lease. Failures are logged and retried.
    pub async fn acquire(self) -> HeldLease {
        self.acquire_and_tell(|_| {}).await
    }

    /// Waits until this process holds the Lease, and calls `tell` with each new reason to wait.
    pub async fn acquire_and_tell(self, tell: impl Fn(&str)) -> HeldLease {
        let mut seen: Option<Seen> = None;
        let mut logged = String::new();
        loop {
            match self.attempt(&mut seen).await {
                Ok(held) => {
                    info!(lease = self.name, identity = self.identity, "acquired the Lease");
                    return held;
                }
                Err(failure) => {
                    let now = failure.to_string();
                    if now == logged {
                        debug!("{now}");
                    } else {
                        if let LeaseError::Taken { .. } = failure {
                            info!("standing by: {now}");
                        } else {
                            warn!("{now}");
                        }
                        tell(&now);
                        logged = now;
                    }
                }
            }
            sleep(jittered(RETRY)).await;
        }
    }

    async fn attempt(&self, seen: &mut Option<Seen>) -> Result<HeldLease, LeaseError> {
        let began = Instant::now();
        let found = self.api.get_opt(&self.name).await.map_err(|source| self.client(source))?;
        let lease = match found {
            None => self.api.create(&post_params(), &self.claim(None)).await,
            Some(found) => {
                let holder = holder(&found);
                if !holder.is_empty() && holder != self.identity && !is_expired(&found, seen) {
                    return Err(LeaseError::Taken { name: self.name.clone(), holder: holder.to_owned() });
                }
                self.api.replace(&self.name, &post_params(), &self.claim(Some(&found))).await
            }
        };
        let lease = lease.map_err(|source| self.client(source))?;
        self.fence.open_until(began + DEADLINE);
        Ok(HeldLease { candidate: self.clone(), lease, renewed: began })
    }

    fn claim(&self, found: Option<&Lease>) -> Lease {
        let before = found.and_then(|lease| lease.spec.clone()).unwrap_or_default();
        let mine = before.holder_identity.as_deref() == Some(&self.identity);
        let now = MicroTime(Timestamp::now());
        let transitions = before.lease_transitions.unwrap_or(0);
        let mut lease = Lease {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                namespace: Some(self.namespace.clone()),
                resource_version: found.and_then(|lease| lease.metadata.resource_version.clone()),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.identity.clone()),
                lease_duration_seconds: Some(DURATION.as_secs() as i32),
                acquire_time: if mine { before.acquire_time } else { Some(now.clone()) },
                renew_time: Some(now),
                lease_transitions: Some(if mine || found.is_none() { transitions } else { transitions + 1 }),
                ..LeaseSpec::default()
            }),
        };
        self.installation.mark(&mut lease);
        lease
    }

    fn client(&self, source: kube::Error) -> LeaseError {
        LeaseError::Client { name: self.name.clone(), source }
    }
}

impl HeldLease {
    /// Waits until no other installation reconciles objects that this one watches, and says in the Lease that this one does. Calls
    /// `tell` with each new reason to wait. The Lease is renewed meanwhile.
    ///
    /// # Errors
    /// When the Lease is lost.
    pub async fn claim_objects(&mut self, tell: impl Fn(&str)) -> Result<(), LeaseError> {
        let (mut others, mut told) = (Others::default(), String::new());
        loop {
            let said = match self.rival(&mut others).await {
                Ok(None) => {
                    self.candidate.installation.reconciles(true);
                    match self.renew().await {
                        Ok(()) => {}
                        Err(lost @ LeaseError::Taken { .. }) => return Err(lost),
                        Err(failure) => debug!("{failure}"),
                    }
                    // Another installation may have looked before this one said so: then it has said so by now.
                    match self.rival(&mut others).await {
                        Ok(None) if self.says_so() => return Ok(()),
                        Ok(None) => "the Lease does not say yet that this controller reconciles the objects".to_owned(),
                        Ok(Some(rival)) => rival,
                        Err(failure) => failure.to_string(),
                    }
                }
                Ok(Some(rival)) => rival,
                Err(failure) => failure.to_string(),
            };
            self.candidate.installation.reconciles(false);
            if said != told {
                tell(&said);
                told = said;
            }
            match self.renew().await {
                Ok(()) => {}
                Err(lost @ LeaseError::Taken { .. }) => return Err(lost),
                Err(failure) => debug!("{failure}"),
            }
            if Instant::now() >= self.renewed + DEADLINE {
                return Err(LeaseError::Expired { name: self.candidate.name.clone() });
            }
            sleep(jittered(RIVALS)).await;
        }
    }

    /// Whether the Lease, as it was written last, says that this process reconciles.
    fn says_so(&self) -> bool {
        self.lease.annotations().get(annotation::RECONCILES).is_some_and(|said| said == "true")
    }

    async fn rival(&self, others: &mut Others) -> Result<Option<String>, LeaseError> {
        let Candidate { api, namespace, name, installation, .. } = &self.candidate;
        let found = others.rival(api.clone().into_client(), installation, (namespace, name)).await;
        found.map_err(|source| self.candidate.client(source))
    }

    /// Renews the Lease until it is lost, and returns why. Writes through the fence end with it.
    pub async fn keep(&mut self) -> LeaseError {
        let lost = self.renew_until_lost().await;
        self.candidate.fence.close();
        lost
    }

    async fn renew_until_lost(&mut self) -> LeaseError {
        loop {
            let deadline = self.renewed + DEADLINE;
            sleep_until(self.renewed + jittered(RENEW)).await;
            loop {
                match timeout_at(deadline, self.renew()).await {
                    Ok(Ok(())) => break,
                    Ok(Err(lost @ LeaseError::Taken { .. })) => return lost,
                    Ok(Err(failure)) => warn!("{failure}"),
                    Err(_) => return LeaseError::Expired { name: self.candidate.name.clone() },
                }
                if Instant::now() + RETRY >= deadline {
                    return LeaseError::Expired { name: self.candidate.name.clone() };
                }
                sleep(jittered(RETRY)).await;
            }
        }
    }

    async fn renew(&mut self) -> Result<(), LeaseError> {
        let Candidate { api, name, identity, .. } = &self.candidate;
        let began = Instant::now();
        let claim = self.candidate.claim(Some(&self.lease));
        match api.replace(name, &post_params(), &claim).await {
            Ok(lease) => {
                self.lease = lease;
                self.renewed = began;
                self.candidate.fence.open_until(began + DEADLINE);
                Ok(())
            }
            // Another client changed the Lease. It is lost only if its holder changed.
            Err(source) if answered(&source, 409) || answered(&source, 404) => {
                let found = api.get_opt(name).await.map_err(|source| self.candidate.client(source))?;
                match found {
                    Some(found) if holder(&found) == identity => {
                        self.lease = found;
                        Err(self.candidate.client(source))
                    }
                    found => {
                        let holder = found.as_ref().map(holder).filter(|holder| !holder.is_empty());
                        let holder = holder.unwrap_or("no process (it was deleted or released)").to_owned();
                        Err(LeaseError::Taken { name: name.clone(), holder })
                    }
                }
            }
            Err(source) => Err(self.candidate.client(source)),
        }
    }

    /// Releases the Lease, so that the next process need not wait.
    ///
    /// # Errors
    /// When the request fails; the Lease then expires by itself.
    pub async fn release(self) -> Result<(), LeaseError> {
        let Candidate { api, name, fence, .. } = &self.candidate;
        fence.close();
        self.candidate.installation.reconciles(false);
        let mut claim = self.candidate.claim(Some(&self.lease));
        if let Some(spec) = &mut claim.spec {
            spec.holder_identity = None;
            spec.lease_duration_seconds = Some(1);
        }
        api.replace(name, &post_params(), &claim).await.map_err(|source| self.candidate.client(source))?;
        info!(lease = name, "released the Lease");
        Ok(())
    }
}

/// Returns whether the Lease has not changed for longer than its duration.
pub(crate) fn is_expired(found: &Lease, seen: &mut Option<Seen>) -> bool {
    let version = found.metadata.resource_version.clone();
    let duration = found.spec.as_ref().and_then(|spec| spec.lease_duration_seconds).unwrap_or(0).max(0);
    match seen {
        Some(seen) if seen.version == version => seen.since.elapsed() > Duration::from_secs(duration as u64),
        _ => {
            *seen = Some(Seen { version, since: Instant::now() });
            false
        }
    }
}

/// Returns the identity of the holder; empty if no process holds the Lease.
pub(crate) fn holder(lease: &Lease) -> &str {
    lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default()
}
