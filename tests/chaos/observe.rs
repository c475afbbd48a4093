//! Shows the witness every version of the objects that it watches, and every request of the audit log. Talks to the API server
//! itself, not through the proxy, and outlives its failures.

use std::{
    fmt::Debug,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use codex_crds::{Evaluation, ReasoningPod, TrainingRun};
use codex_tests::{Error, Result, Team, audit::Follower, install::NAMESPACE};
use futures::StreamExt as _;
use k8s_openapi::{
    NamespaceResourceScope,
    api::{apps::v1::Deployment, batch::v1::Job, coordination::v1::Lease, core::v1::ConfigMap},
};
use kube::{
    Api, Resource,
    api::ListParams,
    runtime::{WatchStreamExt as _, watcher, watcher::Event},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::{task::JoinSet, time::sleep};

use crate::invariants::Witness;

/// A witness that several tasks tell what they see.
pub(crate) type Shared = Arc<Mutex<Witness>>;

/// Locks the witness.
pub(crate) fn lock(witness: &Shared) -> MutexGuard<'_, Witness> {
    witness.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts to watch. It ends when the set is dropped.
///
/// # Errors
/// If the audit log cannot be opened.
pub(crate) fn begin(team: &Team, witness: &Shared) -> Result<JoinSet<()>> {
    let log = team.installation.cluster.audit_log().ok_or_else(|| Error::Impossible {
        what: "the audit log is read".to_owned(),
        why: "only the local cluster has one".to_owned(),
        state: "run `make chaos` without CLUSTER".to_owned(),
    })?;
    let mut tasks = JoinSet::new();
    tasks.spawn(read_log(Follower::from_now(log)?, Arc::clone(witness)));
    tasks.spawn(watch::<Lease>(Api::namespaced(team.client.clone(), NAMESPACE), Arc::clone(witness)));
    tasks.spawn(watch::<Job>(team.api(), Arc::clone(witness)));
    tasks.spawn(watch::<ConfigMap>(team.api(), Arc::clone(witness)));
    tasks.spawn(watch::<Deployment>(team.api(), Arc::clone(witness)));
    tasks.spawn(watch::<TrainingRun>(team.api(), Arc::clone(witness)));
    tasks.spawn(watch::<Evaluation>(team.api(), Arc::clone(witness)));
    tasks.spawn(watch::<ReasoningPod>(team.api(), Arc::clone(witness)));
    Ok(tasks)
}

async fn read_log(mut log: Follower, witness: Shared) {
    loop {
        match log.news() {
            Ok(news) => news.iter().for_each(|request| lock(&witness).see_request(request)),
            Err(error) => eprintln!("the audit log cannot be read: {error}"),
        }
        sleep(Duration::from_secs(1)).await;
    }
}

async fn watch<K>(api: Api<K>, witness: Shared)
where
    K: Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned + Send + 'static,
{
    let mut events = watcher(api, watcher::Config::default()).default_backoff().boxed();
    while let Some(event) = events.next().await {
        // The watcher restarts by itself.
        let Ok(event) = event else { continue };
        let mut witness = lock(&witness);
        match event {
            Event::Init => witness.begin_again(&K::kind(&())),
            Event::Apply(object) | Event::InitApply(object) => witness.see(&value(&object)),
            Event::Delete(object) => witness.lose(&value(&object)),
            Event::InitDone => {}
        }
    }
}

/// Lists the team's objects of the three kinds.
///
/// # Errors
/// If the API server does not answer.
pub(crate) async fn objects(team: &Team) -> Result<Vec<Value>> {
    let mut all = list::<TrainingRun>(team, &ListParams::default()).await?;
    all.extend(list::<Evaluation>(team, &ListParams::default()).await?);
    all.extend(list::<ReasoningPod>(team, &ListParams::default()).await?);
    Ok(all)
}

/// Lists the team's objects of one kind.
///
/// # Errors
/// If the API server does not answer.
pub(crate) async fn list<K>(team: &Team, which: &ListParams) -> Result<Vec<Value>>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned,
{
    Ok(team.api::<K>().list(which).await?.items.iter().map(value).collect())
}

fn value<K: Serialize>(object: &K) -> Value {
    serde_json::to_value(object).unwrap_or_default()
}
