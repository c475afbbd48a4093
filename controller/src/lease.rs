//! Leader election by a Lease: its holder reconciles, all other processes stand by. Expiry is measured with the monotonic
//! clock of the process, so that clock skew between machines does not matter.
//!
//! The holder renews with one PUT on the resourceVersion that it wrote last. An idle controller therefore costs one write
//! every [`Timing::renew`] and no reads. A candidate regards a Lease as expired if it has not changed for the duration that the Lease
//! itself states, so processes with different durations can compete.

use std::time::Duration;

use codex_crds::annotation;
use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{Api, Client, ResourceExt, api::ObjectMeta};
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tracing::{debug, info, warn};

use crate::{
    api::post_params,
    backoff::jittered,
    error::{answered, client_category, remedy},
    fence::Fence,
    installations::{Installation, Others},
};

/// How long a holder waits before it looks again whether another installation reconciles its objects. It renews the Lease then.
const RIVALS: Duration = Duration::from_secs(5);

/// The times of a Lease. All of them follow from its duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Seconds.
    duration: u16,
}

impl Default for Timing {
    fn default() -> Self {
        Self::lasting(Self::DEFAULT)
    }
}

impl Timing {
    /// The duration by default, in seconds.
    pub const DEFAULT: u16 = 30;
    /// The shortest duration, in seconds: a holder must survive a slow answer of the API server.
    pub const SHORTEST: u16 = 5;
    /// The longest duration, in seconds.
    pub const LONGEST: u16 = 300;

    /// Returns the times of a Lease with a duration of so many seconds, from [`Self::SHORTEST`] to [`Self::LONGEST`]; others are brought
    /// into these bounds.
    pub fn lasting(seconds: u16) -> Self {
        Self { duration: seconds.clamp(Self::SHORTEST, Self::LONGEST) }
    }

    /// Returns the duration of the Lease: how long it is valid without being renewed.
    pub fn duration(self) -> Duration {
        Duration::from_secs(self.duration.into())
    }

    /// Returns how often the holder renews the Lease: three times in its duration.
    pub fn renew(self) -> Duration {
        self.duration() / 3
    }

    /// Returns how long a holder writes without a successful renewal. It stops a third of the duration before the Lease expires: that
    /// much time a request has to arrive.
    pub fn deadline(self) -> Duration {
        self.duration() * 2 / 3
    }

    /// Returns how long to wait between attempts.
    pub fn retry(self) -> Duration {
        self.duration() / 15
    }
}

/// Why a process does not hold the Lease.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// A request to the API server failed.
    #[error("the Lease {name} cannot be read or written: {source}{}", remedy(.source))]
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
    #[error("the Lease {name} could not be renewed for {} s", .after.as_secs_f32())]
    Expired {
        /// The name of the Lease.
        name: String,
        /// How long it could not be renewed.
        after: Duration,
    },
    /// The API server did not answer in time.
    #[error("the API server gave no answer about the Lease {name} for {} s", .after.as_secs_f32())]
    Late {
        /// The name of the Lease.
        name: String,
        /// How long it was waited for.
        after: Duration,
    },
}

impl LeaseError {
    /// Whether a holder has lost the Lease, and need not try again.
    fn is_final(&self) -> bool {
        matches!(self, Self::Taken { .. } | Self::Expired { .. })
    }

    /// Returns the category for logs.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Client { source, .. } => client_category(source),
            Self::Taken { .. } => "lease_taken",
            Self::Expired { .. } => "lease_expired",
            Self::Late { .. } => "connection",
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
    timing: Timing,
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
    /// The duration that it states.
    duration: Duration,
}

impl Seen {
    /// Returns the time until the Lease has expired, if it does not change; `None` after that.
    fn expires_in(&self) -> Option<Duration> {
        let expired = self.since + self.duration + Duration::from_millis(1);
        expired.checked_duration_since(Instant::now()).filter(|rest| !rest.is_zero())
    }
}

impl Candidate {
    /// Creates a candidate for the Lease `name` in `namespace` with the holder identity `identity`.
    pub fn new(client: Client, namespace: &str, name: &str, identity: String) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            identity,
            timing: Timing::default(),
            fence: Fence::default(),
            installation: Installation::default(),
        }
    }

    /// Sets the namespaces whose objects this process reconciles. An empty list stands for all namespaces.
    #[must_use]
    pub fn watching(self, namespaces: &[String]) -> Self {
        Self { installation: Installation::watching(namespaces), ..self }
    }

    /// Returns the holder identity.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// Sets the times of the Lease.
    #[must_use]
    pub fn timed(self, timing: Timing) -> Self {
        Self { timing, ..self }
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
    pub async fn acquire_and_tell(self, tell: impl Fn(&LeaseError)) -> HeldLease {
        let mut seen: Option<Seen> = None;
        let mut logged = String::new();
        let patience = self.timing.deadline();
        loop {
            // A connection that died unnoticed must not keep a process from taking over.
            let late = |_| LeaseError::Late { name: self.name.clone(), after: patience };
            match timeout(patience, self.attempt(&mut seen)).await.map_err(late).flatten() {
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
                        tell(&failure);
                        logged = now;
                    }
                }
            }
            let pause = jittered(self.timing.retry());
            // Not later than at its end, if it is not renewed until then.
            sleep(seen.as_ref().and_then(Seen::expires_in).map_or(pause, |end| end.min(pause))).await;
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
        self.fence.open_until(began + self.timing.deadline());
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
                lease_duration_seconds: Some(self.timing.duration.into()),
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
    /// Returns the fence that is open while this process holds the Lease and has renewed it in time.
    #[cfg(test)]
    pub(crate) fn fence(&self) -> Fence {
        self.candidate.fence()
    }

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
                    match self.renew_or_give_up().await {
                        Ok(()) => {}
                        Err(lost) if lost.is_final() => return Err(lost),
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
            match self.renew_or_give_up().await {
                Ok(()) => {}
                Err(lost) if lost.is_final() => return Err(lost),
                Err(failure) => debug!("{failure}"),
            }
            if Instant::now() >= self.deadline() {
                return Err(self.expired());
            }
            sleep(jittered(RIVALS.min(self.candidate.timing.renew()))).await;
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
        let (renew, retry) = (self.candidate.timing.renew(), self.candidate.timing.retry());
        loop {
            sleep_until(self.renewed + jittered(renew)).await;
            loop {
                match self.renew_in_time().await {
                    Ok(()) => break,
                    Err(lost) if lost.is_final() => return lost,
                    Err(failure) => warn!("{failure}"),
                }
                if Instant::now() + retry >= self.deadline() {
                    return self.expired();
                }
                sleep(jittered(retry)).await;
            }
        }
    }

    /// Returns when this process ceases to write, unless it renews the Lease before.
    fn deadline(&self) -> Instant {
        self.renewed + self.candidate.timing.deadline()
    }

    fn expired(&self) -> LeaseError {
        LeaseError::Expired { name: self.candidate.name.clone(), after: self.candidate.timing.deadline() }
    }

    /// Renews the Lease, which may be late: nothing is written yet that another holder could contradict, and a Lease that was taken is not
    /// changed. A request that is not answered is given up.
    async fn renew_or_give_up(&mut self) -> Result<(), LeaseError> {
        let after = self.candidate.timing.deadline();
        let late = LeaseError::Late { name: self.candidate.name.clone(), after };
        timeout(after, self.renew()).await.unwrap_or(Err(late))
    }

    async fn renew_in_time(&mut self) -> Result<(), LeaseError> {
        let (deadline, expired) = (self.deadline(), self.expired());
        timeout_at(deadline, self.renew()).await.unwrap_or(Err(expired))
    }

    async fn renew(&mut self) -> Result<(), LeaseError> {
        let Candidate { api, name, identity, .. } = &self.candidate;
        let began = Instant::now();
        let claim = self.candidate.claim(Some(&self.lease));
        match api.replace(name, &post_params(), &claim).await {
            Ok(lease) => {
                self.lease = lease;
                self.renewed = began;
                self.candidate.fence.open_until(began + self.candidate.timing.deadline());
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
        Some(seen) if seen.version == version => seen.since.elapsed() > seen.duration,
        _ => {
            let duration = Duration::from_secs(duration as u64);
            *seen = Some(Seen { version, since: Instant::now(), duration });
            false
        }
    }
}

/// Returns the identity of the holder; empty if no process holds the Lease.
pub(crate) fn holder(lease: &Lease) -> &str {
    lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default()
}
