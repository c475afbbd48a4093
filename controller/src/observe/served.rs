//! The pods behind the Service of a ReasoningPod: those of its Deployments, and those of others. They are read from the caches;
//! ReplicaSets are requested, only while pods of former templates exist.

use std::collections::{BTreeMap, BTreeSet};

use codex_crds::label;
use codex_plan::RefusedPod;
use k8s_openapi::{
    api::{
        apps::v1::{Deployment, DeploymentSpec, ReplicaSet},
        core::v1::Pod,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Api, ResourceExt};

use super::{cache::Name, error::ObserveError, stores::OURS, workers::changed};
use crate::{
    context::Context,
    drift::Role,
    ownership::{controller, is_controlled_by},
};

/// The pods of a Deployment.
#[derive(Default)]
pub(super) struct Served {
    /// The pods of the Deployment's current template.
    pub current: Vec<Pod>,
    /// The pods of its former templates.
    pub former: Vec<Pod>,
    /// Pods of the Deployment that differ from their template.
    pub refused: Vec<RefusedPod>,
}

/// Observes the pods of a Deployment that the ReasoningPod with the uid `owner` owns.
pub(super) async fn served(context: &Context, owner: &str, deployment: &Deployment) -> Result<Served, ObserveError> {
    let mut served = Served::default();
    let namespace = deployment.namespace().unwrap_or_default();
    let Some(template) = deployment.spec.as_ref().and_then(|spec| spec.template.spec.as_ref()) else {
        return Ok(served);
    };
    let prefix = format!("{}-", deployment.name_any());
    let of_set =
        |pod: &Pod| controller(pod).is_some_and(|owner| owner.kind == "ReplicaSet" && owner.name.starts_with(&prefix));
    let mut sets: BTreeMap<String, Option<ReplicaSet>> = BTreeMap::new();
    let labels = deployment.spec.as_ref().and_then(|spec| spec.template.metadata.as_ref()?.labels.as_ref());
    let Some(name) = labels.and_then(|labels| labels.get(label::REASONING_POD)) else { return Ok(served) };
    for pod in context.stores.pods.naming(&namespace, &Name::ReasoningPod(name.clone())) {
        if !of_set(&pod) {
            continue;
        }
        let Some(difference) = changed(template, &pod, Role::Strict) else {
            served.current.push(Pod::clone(&pod));
            continue;
        };
        let Some(reference) = controller(&*pod) else { continue };
        let set = match sets.get(&reference.name) {
            Some(known) => known.clone(),
            None => former(context, &namespace, &reference.name, owner, deployment).await?,
        };
        sets.insert(reference.name.clone(), set.clone());
        let set = set.filter(|set| set.uid().as_ref() == Some(&reference.uid));
        let Some(of_set) = set.and_then(|set| set.spec?.template?.spec) else { continue };
        if changed(&of_set, &pod, Role::Strict).is_none() {
            served.former.push(Pod::clone(&pod));
        } else {
            served.refused.push(RefusedPod { pod: pod.name_any(), why: difference.to_string() });
        }
    }
    served.refused.sort();
    Ok(served)
}

/// Returns the names of the pods that bear the labels of the servers or the activator of the ReasoningPod `name`, and are not among
/// `all`.
pub(super) fn foreign(context: &Context, namespace: &str, name: &str, all: &[&Served]) -> BTreeSet<String> {
    let genuine = all.iter().flat_map(|served| served.current.iter().chain(&served.former)).map(ResourceExt::name_any);
    let refused = all.iter().flat_map(|served| &served.refused).map(|refused| refused.pod.clone());
    let known: BTreeSet<String> = genuine.chain(refused).collect();
    let behind = context.stores.labelled.naming(namespace, &Name::ReasoningPod(name.to_owned()));
    let behind = behind.into_iter().filter(|pod| {
        pod.labels().get("app.kubernetes.io/component").is_some_and(|found| found == "server" || found == "activator")
            && pod.metadata.deletion_timestamp.is_none()
    });
    let mut foreign = BTreeSet::new();
    for pod in behind {
        let name = pod.name_any();
        // The cache of our pods may not show a new one yet.
        let ours = OURS.split_once('=').is_some_and(|(key, value)| pod.labels().get(key).is_some_and(|it| it == value));
        let unseen = ours && super::get(&context.stores.pods, namespace, &name).is_none();
        if !unseen && !known.contains(&name) {
            foreign.insert(name);
        }
    }
    foreign
}

/// Returns a ReplicaSet of the Deployment, if the controller made its template. The deployment controller copies the
/// annotations of the Deployment, and so the seal, to the ReplicaSet.
async fn former(
    context: &Context,
    namespace: &str,
    name: &str,
    owner: &str,
    deployment: &Deployment,
) -> Result<Option<ReplicaSet>, ObserveError> {
    let api: Api<ReplicaSet> = Api::namespaced(context.client.clone(), namespace);
    let failed = |source| ObserveError::Client { kind: "ReplicaSet", name: name.to_owned(), source };
    let found = api.get_opt(name).await.map_err(failed)?;
    let uid = deployment.uid().unwrap_or_default();
    Ok(found.filter(|set| is_controlled_by(set, &uid) && context.seal.holds(owner, &as_deployment(set))))
}

/// Returns the Deployment that the seal of a ReplicaSet covers.
fn as_deployment(set: &ReplicaSet) -> Deployment {
    let metadata = ObjectMeta {
        namespace: set.metadata.namespace.clone(),
        annotations: set.metadata.annotations.clone(),
        ..ObjectMeta::default()
    };
    let template = set.spec.as_ref().and_then(|spec| spec.template.clone()).unwrap_or_default();
    Deployment { metadata, spec: Some(DeploymentSpec { template, ..DeploymentSpec::default() }), status: None }
}
