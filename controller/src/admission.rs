//! Watches the admission policies that protect evidence.
//!
//! The policies and bindings of the whole cluster are watched; those with other names are ignored. A cluster in which they
//! cannot be read is no error: its evidence is weak, and the log says so once.

use std::{collections::BTreeMap, fmt::Debug, time::Duration};

use codex_plan::Admission;
use futures::{Stream, StreamExt, future::ready, pin_mut, stream};
use jiff::Timestamp;
use k8s_openapi::api::admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding};
use kube::{
    Api, Client, Resource, ResourceExt,
    runtime::{WatchStreamExt, watcher},
};
use serde::de::DeserializeOwned;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tracing::{info, warn};

use crate::error::{chain, said};

/// How long the start of the controller waits for the policies.
const FIRST: Duration = Duration::from_secs(5);

/// How long after a failure the policies are listed again.
const RETRY: Duration = Duration::from_secs(5);

/// The state of the admission policies, as the watch shows it.
#[derive(Debug)]
pub struct AdmissionWatch {
    /// `None` until the policies were read or could not be read.
    state: watch::Sender<Option<Admission>>,
}

impl Default for AdmissionWatch {
    fn default() -> Self {
        Self { state: watch::Sender::new(None) }
    }
}

impl AdmissionWatch {
    /// Returns the current state.
    pub fn current(&self) -> Admission {
        self.state.borrow().clone().unwrap_or_default()
    }

    /// Waits a few seconds until the policies were read or could not be read.
    pub async fn first(&self) {
        let mut state = self.state.subscribe();
        // After the time limit the evidence is weak, and the state says why.
        let _ = timeout(FIRST, state.wait_for(Option::is_some)).await;
    }

    /// Calls `changed` at each change of the state. Never returns.
    pub async fn each(&self, changed: impl Fn()) {
        let mut state = self.state.subscribe();
        while state.changed().await.is_ok() {
            changed();
        }
    }

    /// Returns a watch that has seen this state.
    #[cfg(test)]
    pub(crate) fn seen(state: Admission) -> Self {
        Self { state: watch::Sender::new(Some(state)) }
    }

    /// Replaces the state.
    #[cfg(test)]
    pub(crate) fn see(&self, state: Admission) {
        self.state.send_replace(Some(state));
    }

    /// Watches the policies and bindings. Never returns.
    pub async fn watch(&self, client: Client) {
        let policies = changes::<ValidatingAdmissionPolicy>(client.clone()).map(Change::Policy);
        let bindings = changes::<ValidatingAdmissionPolicyBinding>(client).map(Change::Binding);
        let all = futures::stream::select(policies, bindings);
        pin_mut!(all);
        let mut state = Seen::default();
        while let Some(change) = all.next().await {
            match change {
                Change::Policy(event) => state.policies.take(event),
                Change::Binding(event) => state.bindings.take(event),
            }
            let Some(now) = state.assess(Timestamp::now()) else { continue };
            if self.state.borrow().as_ref() != Some(&now) {
                match &now.flaw {
                    None => info!("the admission policies are in place"),
                    Some(flaw) => warn!("the evidence of evaluations is weak: {flaw}"),
                }
                self.state.send_replace(Some(now));
            }
        }
    }
}

/// An event of one of the two watches.
enum Change {
    Policy(watcher::Result<watcher::Event<ValidatingAdmissionPolicy>>),
    Binding(watcher::Result<watcher::Event<ValidatingAdmissionPolicyBinding>>),
}

fn changes<K>(client: Client) -> impl Stream<Item = watcher::Result<watcher::Event<K>>>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let events = move || watcher(Api::all(client.clone()), watcher::Config::default()).default_backoff().boxed();
    stream::unfold(events(), move |mut watched| {
        let events = events.clone();
        async move {
            let event = watched.next().await?;
            // A watch that resumes shows no listing, and so not that it works again.
            if matches!(&event, Err(failure) if !expired(failure)) {
                watched = stream::once(sleep(RETRY)).filter_map(|()| ready(None)).chain(events()).boxed();
            }
            Some((event, watched))
        }
    })
}

/// Whether a watch failed because the API server no longer has the events since its position, which is routine.
fn expired(failure: &watcher::Error) -> bool {
    matches!(failure, watcher::Error::WatchError(status) if status.code == 410)
}

/// Whether the API server refuses to show the objects.
fn refused(failure: &watcher::Error) -> bool {
    use watcher::Error::{InitialListFailed, WatchFailed, WatchStartFailed};
    let (InitialListFailed(source) | WatchStartFailed(source) | WatchFailed(source)) = failure else { return false };
    matches!(source, kube::Error::Api(status) if [401, 403, 404].contains(&status.code))
}

/// The objects of a kind that a watch has shown.
#[derive(Debug)]
struct Shown<K> {
    objects: BTreeMap<String, K>,
    /// The objects of a listing in progress.
    listing: Option<BTreeMap<String, K>>,
    /// Whether a listing has ended, or why it failed.
    listed: Option<Result<(), String>>,
}

impl<K> Default for Shown<K> {
    fn default() -> Self {
        Self { objects: BTreeMap::new(), listing: None, listed: None }
    }
}

impl<K: Resource<DynamicType = ()>> Shown<K> {
    fn take(&mut self, event: watcher::Result<watcher::Event<K>>) {
        match event {
            Ok(watcher::Event::Init) => self.listing = Some(BTreeMap::new()),
            Ok(watcher::Event::InitApply(object)) => {
                self.listing.get_or_insert_default().insert(object.name_any(), object);
            }
            Ok(watcher::Event::InitDone) => {
                self.objects = self.listing.take().unwrap_or_default();
                self.listed = Some(Ok(()));
            }
            Ok(watcher::Event::Apply(object)) => {
                self.objects.insert(object.name_any(), object);
            }
            Ok(watcher::Event::Delete(object)) => {
                self.objects.remove(&object.name_any());
            }
            Err(failure) if expired(&failure) => {}
            // While the API server does not answer, what was last seen stands. The next listing shows what changed meanwhile.
            Err(failure) if self.listed == Some(Ok(())) && !refused(&failure) => {}
            Err(failure) => {
                let why = match &failure {
                    watcher::Error::InitialListFailed(source) | watcher::Error::WatchStartFailed(source) => {
                        said(source)
                    }
                    other => chain(other),
                };
                self.listed = Some(Err(format!("the {} objects cannot be read: {why}", K::kind(&()))));
            }
        }
    }
}

/// What both watches have shown.
#[derive(Debug, Default)]
struct Seen {
    policies: Shown<ValidatingAdmissionPolicy>,
    bindings: Shown<ValidatingAdmissionPolicyBinding>,
    /// When the policies last had a flaw that was seen.
    flawed: Option<Timestamp>,
}

impl Seen {
    /// Returns the state of the policies; `None` until both kinds were listed or could not be.
    fn assess(&mut self, now: Timestamp) -> Option<Admission> {
        let listed = [self.policies.listed.as_ref()?, self.bindings.listed.as_ref()?];
        if let Some(why) = listed.into_iter().find_map(|listed| listed.as_ref().err()) {
            return Some(Admission::flawed(why));
        }
        let policies: Vec<_> = self.policies.objects.values().cloned().collect();
        let bindings: Vec<_> = self.bindings.objects.values().cloned().collect();
        let state = Admission::assess(&policies, &bindings, self.flawed);
        if state.flaw.is_some() {
            self.flawed = Some(now);
        }
        Some(state)
    }
}

#[cfg(test)]
mod tests {
    use kube::runtime::watcher::{self, Event};
    use serde_json::json;

    use super::*;

    fn refused() -> watcher::Error {
        let status = json!({
            "kind": "Status", "status": "Failure", "reason": "Forbidden", "code": 403,
            "message": "validatingadmissionpolicies is forbidden",
        });
        watcher::Error::InitialListFailed(kube::Error::Api(Box::new(serde_json::from_value(status).unwrap())))
    }

    #[test]
    fn a_cluster_that_refuses_the_policies_has_weak_evidence_and_says_why() {
        let now = Timestamp::UNIX_EPOCH;
        let mut seen = Seen::default();
        assert_eq!(seen.assess(now), None);
        seen.policies.take(Err(refused()));
        assert_eq!(seen.assess(now), None, "the bindings are still being listed");
        seen.bindings.take(Err(refused()));
        let flaw = seen.assess(now).unwrap().flaw.unwrap();
        assert!(flaw.contains("cannot be read: validatingadmissionpolicies is forbidden"), "{flaw}");
        for event in [Event::Init, Event::InitDone] {
            seen.policies.take(Ok(event));
        }
        for event in [Event::Init, Event::InitDone] {
            seen.bindings.take(Ok(event));
        }
        let flaw = seen.assess(now).unwrap().flaw.unwrap();
        assert!(flaw.contains("codex-report-tokens does not exist"), "{flaw}");
        assert_eq!(seen.flawed, Some(now));
    }

    #[test]
    fn a_lost_connection_changes_nothing_and_a_refusal_does() {
        let mut shown = Shown::<ValidatingAdmissionPolicy>::default();
        for event in [Event::Init, Event::InitDone] {
            shown.take(Ok(event));
        }
        shown.take(Err(watcher::Error::NoResourceVersion));
        assert_eq!(shown.listed, Some(Ok(())));
        shown.take(Err(refused()));
        assert!(shown.listed.unwrap().unwrap_err().contains("forbidden"));
        // Before the first listing nothing is known.
        let mut shown = Shown::<ValidatingAdmissionPolicy>::default();
        shown.take(Err(watcher::Error::NoResourceVersion));
        assert!(shown.listed.unwrap().is_err());
    }
}
