//! What the pods of a TrainingRun or an Evaluation mount.

use std::collections::BTreeSet;

use codex_crds::{ConfigMapKey, DataItem, is_subdomain};
use codex_plan::{ClusterWarning, References, RefusedPod, unexplained};
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{ConfigMap, Pod},
};
use kube::Api;

use super::{cache::Name, error::ObserveError, stores::get, warnings::warnings, workers};
use crate::{context::Context, drift::Role};

/// A Job with its pods. Without a Job, and while no pod starts for no known reason, also the references that pods mount.
pub(super) struct Work {
    pub job: Option<Job>,
    pub pods: Vec<Pod>,
    pub references: Option<References>,
    /// What the cluster says about the Job or about pods that do not start.
    pub warnings: Vec<ClusterWarning>,
    /// The Job's pods whose reports are refused.
    pub refused: Vec<RefusedPod>,
}

/// What pods mount, by the names of objects in the namespace.
pub(super) struct Mounted<'a> {
    pub data: &'a [DataItem],
    /// The claims that hold no data.
    pub claims: &'a [&'a str],
    /// The ConfigMaps that hold no data.
    pub config_maps: &'a [&'a str],
}

/// Observes the pods of a Job, as new as they are `needed`, and why they do not start.
pub(super) async fn work(
    context: &Context,
    namespace: &str,
    job: Option<Job>,
    mounted: Mounted<'_>,
    role: Role,
    needed: workers::Needed,
) -> Result<Work, ObserveError> {
    let pods = match &job {
        Some(job) => workers::up_to_date(context, job, role, needed).await?,
        None => workers::Pods::default(),
    };
    let late = unexplained(job.as_ref(), &pods.genuine, context.now());
    let wanted = job.is_none() || !late.is_empty();
    let references = if wanted { Some(references(context, namespace, mounted).await?) } else { None };
    let warnings = warnings(context, namespace, &late).await;
    Ok(Work { job, pods: pods.genuine, references, warnings, refused: pods.refused })
}

/// Returns the claims and the ConfigMaps that hold data.
pub(super) fn of_data(data: &[DataItem]) -> impl Iterator<Item = Name> {
    data.iter().flat_map(|item| {
        let claim = item.source.persistent_volume_claim.as_ref().map(|claim| Name::Claim(claim.claim_name.clone()));
        let config_map = item.source.config_map.as_ref().map(|key| Name::ConfigMap(key.name.clone()));
        claim.into_iter().chain(config_map)
    })
}

/// Returns the text under a key of a ConfigMap, if it exists.
pub(super) async fn text(
    context: &Context,
    namespace: &str,
    source: &ConfigMapKey,
) -> Result<Option<String>, ObserveError> {
    let found = config_map(context, namespace, &source.name).await?;
    Ok(found.and_then(|found| found.data?.remove(&source.key)))
}

/// Returns a ConfigMap of a user. An invalid name could be a path to another resource of the API. It counts as missing.
async fn config_map(context: &Context, namespace: &str, name: &str) -> Result<Option<ConfigMap>, ObserveError> {
    if !is_subdomain(name) {
        return Ok(None);
    }
    let api: Api<ConfigMap> = Api::namespaced(context.client.clone(), namespace);
    let failed = |source| ObserveError::Client { kind: "ConfigMap", name: name.to_owned(), source };
    api.get_opt(name).await.map_err(failed)
}

/// Returns which claims and ConfigMaps exist among those that an object mounts.
async fn references(context: &Context, namespace: &str, mounted: Mounted<'_>) -> Result<References, ObserveError> {
    let Mounted { data, claims, config_maps } = mounted;
    let of_data = data.iter().filter_map(|item| item.source.persistent_volume_claim.as_ref());
    let mounted = claims.iter().copied().chain(of_data.map(|claim| claim.claim_name.as_str()));
    let exist = mounted.filter(|name| get(&context.stores.claims, namespace, name).is_some());
    let mut references = References { claims: exist.map(str::to_owned).collect(), ..References::default() };
    let of_data = data.iter().filter_map(|item| Some(item.source.config_map.as_ref()?.name.as_str()));
    let names: BTreeSet<_> = config_maps.iter().copied().chain(of_data).collect();
    for name in names {
        if let Some(found) = config_map(context, namespace, name).await? {
            let texts = found.data.unwrap_or_default().into_keys();
            let keys = texts.chain(found.binary_data.unwrap_or_default().into_keys()).collect();
            references.config_maps.insert(name.to_owned(), keys);
        }
    }
    Ok(references)
}
