//! Leader election by a Lease: one process acts, others wait. Talks to the API server; takes time from its monotonic
//! clock, so that clocks of other machines do not matter.
//!
//! A holder renews by one PUT that names the resourceVersion it wrote last, so an idle controller costs one write every
//! [`RENEW`] and no read. Whoever waits judges a Lease dead when it has not changed for its own duration.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tracing::{debug, info, warn};

use crate::{
    MANAGER,
    backoff::jittered,
    error::{answered, client_category},
};

/// How long a Lease holds without being renewed.
pub const DURATION: Duration = Duration::from_secs(30);
/// How often it is renewed.
pub const RENEW: Duration = Duration::from_secs(10);
/// A holder that could not renew for so long stops acting, well before anybody else may begin.
pub const DEADLINE: Duration = Duration::from_secs(20);
/// How long to wait before trying again.
const RETRY: Duration = Duration::from_secs(2);

/// Why a process is not, or no longer, the leader.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// The API server.
    #[error("the Lease {name} cannot be read or written: {source}")]
    Client {
        /// Which.
        name: String,
        /// Why.
        #[source]
        source: kube::Error,
    },
    /// Another process holds it.
    #[error("the Lease {name} is held by {holder}")]
    Taken {
        /// Which.
        name: String,
        /// By whom.
        holder: String,
    },
    /// Nobody could be asked in time.
    #[error("the Lease {name} could not be renewed for {} s", DEADLINE.as_secs())]
    Expired {
        /// Which.
        name: String,
    },
}

impl LeaseError {
    /// A word for metric labels.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Client { source, .. } => client_category(source),
            Self::Taken { .. } => "lease_taken",
            Self::Expired { .. } => "lease_expired",
        }
    }
}

/// Who asks for which Lease.
#[derive(Clone)]
pub struct Candidate {
    api: Api<Lease>,
    name: String,
    identity: String,
}

/// A Lease that this process holds.
pub struct Held {
    candidate: Candidate,
    lease: Lease,
    renewed: Instant,
}

/// What a Lease looked like, and since when.
struct Seen {
    version: Option<String>,
    since: Instant,
}

impl Candidate {
    /// Asks for the Lease `name` in `namespace` under the name `identity`.
    pub fn new(client: Client, namespace: &str, name: &str, identity: String) -> Self {
        Self { api: Api::namespaced(client, namespace), name: name.to_owned(), identity }
    }

    /// Waits until this process holds the Lease. What goes wrong meanwhile is logged and tried again.
    pub async fn acquire(self) -> Held {
        let mut seen: Option<Seen> = None;
        let mut said = String::new();
        loop {
            match self.attempt(&mut seen).await {
                Ok(held) => {
                    info!(lease = self.name, identity = self.identity, "this process is the leader");
                    return held;
                }
                Err(failure) => {
                    let now = failure.to_string();
                    if now == said {
                        debug!("{now}");
                    } else {
                        if let LeaseError::Taken { .. } = failure {
                            info!("waiting: {now}");
                        } else {
                            warn!("{now}");
                        }
                        said = now;
                    }
                }
            }
            sleep(jittered(RETRY)).await;
        }
    }

    async fn attempt(&self, seen: &mut Option<Seen>) -> Result<Held, LeaseError> {
        let began = Instant::now();
        let found = self.api.get_opt(&self.name).await.map_err(|source| self.client(source))?;
        let lease = match found {
            None => self.api.create(&post(), &self.claim(None)).await,
            Some(found) => {
                let holder = holder(&found);
                if !holder.is_empty() && holder != self.identity && !is_dead(&found, seen) {
                    return Err(LeaseError::Taken { name: self.name.clone(), holder: holder.to_owned() });
                }
                self.api.replace(&self.name, &post(), &self.claim(Some(&found))).await
            }
        };
        let lease = lease.map_err(|source| self.client(source))?;
        Ok(Held { candidate: self.clone(), lease, renewed: began })
    }

    fn claim(&self, found: Option<&Lease>) -> Lease {
        let before = found.and_then(|lease| lease.spec.clone()).unwrap_or_default();
        let mine = before.holder_identity.as_deref() == Some(&self.identity);
        let now = MicroTime(Timestamp::now());
        let transitions = before.lease_transitions.unwrap_or(0);
        Lease {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
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
        }
    }

    fn client(&self, source: kube::Error) -> LeaseError {
        LeaseError::Client { name: self.name.clone(), source }
    }
}

impl Held {
    /// Renews until the Lease is lost.
    pub async fn keep(&mut self) -> LeaseError {
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
        let Candidate { api, name, identity } = &self.candidate;
        let began = Instant::now();
        let claim = self.candidate.claim(Some(&self.lease));
        match api.replace(name, &post(), &claim).await {
            Ok(lease) => {
                self.lease = lease;
                self.renewed = began;
                Ok(())
            }
            // Somebody else wrote it: it is lost only if somebody else holds it.
            Err(source) if answered(&source, 409) || answered(&source, 404) => {
                let found = api.get_opt(name).await.map_err(|source| self.candidate.client(source))?;
                match found {
                    Some(found) if holder(&found) == identity => {
                        self.lease = found;
                        Err(self.candidate.client(source))
                    }
                    found => {
                        let holder = found.as_ref().map(holder).filter(|holder| !holder.is_empty());
                        let holder = holder.unwrap_or("nobody: it was deleted or given back").to_owned();
                        Err(LeaseError::Taken { name: name.clone(), holder })
                    }
                }
            }
            Err(source) => Err(self.candidate.client(source)),
        }
    }

    /// Gives the Lease back, so that the next process need not wait.
    ///
    /// # Errors
    /// When the API server does not take it; then it expires.
    pub async fn release(self) -> Result<(), LeaseError> {
        let Candidate { api, name, .. } = &self.candidate;
        let mut claim = self.candidate.claim(Some(&self.lease));
        if let Some(spec) = &mut claim.spec {
            spec.holder_identity = None;
            spec.lease_duration_seconds = Some(1);
        }
        api.replace(name, &post(), &claim).await.map_err(|source| self.candidate.client(source))?;
        info!(lease = name, "the Lease is given back");
        Ok(())
    }
}

/// Whether the Lease has not changed for as long as its holder promised to renew it.
fn is_dead(found: &Lease, seen: &mut Option<Seen>) -> bool {
    let version = found.metadata.resource_version.clone();
    let promised = found.spec.as_ref().and_then(|spec| spec.lease_duration_seconds).unwrap_or(0).max(0);
    match seen {
        Some(seen) if seen.version == version => seen.since.elapsed() > Duration::from_secs(promised as u64),
        _ => {
            *seen = Some(Seen { version, since: Instant::now() });
            false
        }
    }
}

fn post() -> PostParams {
    PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() }
}

fn holder(lease: &Lease) -> &str {
    lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default()
}
