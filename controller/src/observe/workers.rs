//! Jobs, Deployments and their pods, as far as the controller created them. They are read from the caches.
//!
//! Jobs and Deployments without a valid seal, and pods that differ from their template, may come from anyone. They are
//! not observed, so that nothing of them reaches a status.

use std::sync::Arc;

use codex_plan::RefusedPod;
use k8s_openapi::api::{
    apps::v1::Deployment,
    batch::v1::Job,
    core::v1::{Pod, PodSpec},
};
use kube::{Api, ResourceExt, api::ListParams};
use tracing::debug;

use super::{
    cache::Name,
    error::ObserveError,
    stores::{OURS, get},
};
use crate::{
    context::Context,
    drift::{Difference, Role, pod_difference},
    known::set_content,
    ownership::is_controlled_by,
};

/// Returns the Job `name` if the controller created it for this owner.
pub fn job(context: &Context, namespace: &str, name: &str, owner: &str) -> Option<Job> {
    let job = get(&context.stores.jobs, namespace, name)?;
    let sealed = || context.known.holds(&*job, ("sealed for", owner), || context.seal.holds(owner, &*job));
    let ours = is_controlled_by(&*job, owner) && sealed();
    ours.then(|| Job::clone(&job))
}

/// Returns `found` if the controller created it for this owner, and whether it belongs to the owner but was modified. A
/// modified Deployment is not returned; the plan restores it.
pub fn deployment(context: &Context, found: Option<Deployment>, owner: &str) -> (Option<Deployment>, bool) {
    let Some(deployment) = found.filter(|found| is_controlled_by(found, owner)) else { return (None, false) };
    if !context.seal.holds(owner, &deployment) {
        debug!("the Deployment {} has no valid seal", deployment.name_any());
        return (None, true);
    }
    (Some(deployment), false)
}

/// The pods of a Job or a Deployment.
#[derive(Default)]
pub struct Pods {
    /// Those that match their template.
    pub genuine: Vec<Pod>,
    /// Those that do not, each with the first field that differs.
    pub refused: Vec<RefusedPod>,
}

/// How new the observation of the pods of a Job must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needed {
    /// As the cache has them: the work is settled, and its pods decide nothing any more.
    Cached,
    /// How each pod ended, once the Job has ended: work must not count as failed because the last words of its pod are not known yet.
    Ends,
    /// Also whether a pod has started: otherwise the Job is deleted, and the pod would lose its work.
    Starts,
}

fn cached(context: &Context, job: &Job) -> Vec<Arc<Pod>> {
    let (namespace, uid) = (job.namespace().unwrap_or_default(), job.uid().unwrap_or_default());
    context.stores.pods.naming(&namespace, &Name::Owner(uid))
}

/// Returns the pods of a Job as the API server has them, unless the cache shows what is needed: the watch of pods may be late.
///
/// # Errors
/// When the pods cannot be listed.
pub async fn up_to_date(context: &Context, job: &Job, role: Role, needed: Needed) -> Result<Pods, ObserveError> {
    let cached = cached(context, job);
    let ends = !has_ended(job) || (!cached.is_empty() && cached.iter().all(|pod| has_terminated(pod)));
    let known = match needed {
        Needed::Cached => true,
        Needed::Ends => ends,
        Needed::Starts => ends && cached.iter().any(|pod| has_started(pod)),
    };
    if known {
        return Ok(sorted(context, job, role, cached));
    }
    let (name, uid) = (job.name_any(), job.uid().unwrap_or_default());
    let api: Api<Pod> = Api::namespaced(context.client.clone(), &job.namespace().unwrap_or_default());
    let selector = job.spec.as_ref().and_then(|spec| spec.selector.as_ref()?.match_labels.as_ref());
    let labels =
        selector.map(|labels| labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(","));
    let listed = api.list(&ListParams::default().labels(labels.as_deref().unwrap_or(OURS))).await;
    let listed = listed.map_err(|source| ObserveError::Client { kind: "pods of the Job", name, source })?;
    let own = listed.items.into_iter().filter(|pod| is_controlled_by(pod, &uid)).map(|mut pod| {
        // Only the cache knows what has changed since.
        set_content(&mut pod, None);
        Arc::new(pod)
    });
    Ok(sorted(context, job, role, own.collect()))
}

fn has_ended(job: &Job) -> bool {
    let conditions = job.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.filter(|it| it.status == "True").any(|it| it.type_ == "Complete" || it.type_ == "Failed")
}

fn has_terminated(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

fn has_started(pod: &Pod) -> bool {
    let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    let mut states = statuses.flat_map(|status| [&status.state, &status.last_state]).flatten();
    states.any(|state| state.running.is_some() || state.terminated.is_some())
}

/// Tells the genuine pods of a Job from the others.
fn sorted(context: &Context, job: &Job, role: Role, all: Vec<Arc<Pod>>) -> Pods {
    let uid = job.uid().unwrap_or_default();
    let mut pods = Pods::default();
    let Some(template) = job.spec.as_ref().and_then(|spec| spec.template.spec.as_ref()) else { return pods };
    for pod in all {
        let mut difference = None;
        // The template of a Job cannot be changed.
        let genuine = context.known.holds(&*pod, ("pod of", &uid, role), || {
            difference = changed(template, &pod, role);
            difference.is_none()
        });
        if genuine {
            pods.genuine.push(Pod::clone(&pod));
        } else if let Some(difference) = difference {
            pods.refused.push(RefusedPod { pod: pod.name_any(), why: difference.to_string() });
        }
    }
    pods.refused.sort();
    pods
}

/// Adds the pods whose reports the endpoint refused to those whose spec differs.
pub(super) fn with_endpoint(
    context: &Context,
    namespace: &str,
    uid: &str,
    mut refused: Vec<RefusedPod>,
) -> Vec<RefusedPod> {
    for known in context.refused.get(uid).unwrap_or_default() {
        let exists = get(&context.stores.pods, namespace, &known.pod).is_some();
        if exists && !refused.iter().any(|refused| refused.pod == known.pod) {
            refused.push(known);
        }
    }
    refused
}

/// Returns the first difference between a pod and its template that its role does not tolerate.
pub fn changed(template: &PodSpec, pod: &Pod, role: Role) -> Option<Difference> {
    let json = |spec: Option<&PodSpec>| serde_json::to_value(spec).unwrap_or_default();
    pod_difference(&json(Some(template)), &json(pod.spec.as_ref()), role)
}
