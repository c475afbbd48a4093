//! Jobs, Deployments and their pods, as far as the controller created them. They are read from the caches.
//!
//! Jobs and Deployments without a valid seal, and pods that differ from their template, may come from anyone. They are
//! not observed, so that nothing of them reaches a status.

use k8s_openapi::api::{
    apps::v1::Deployment,
    batch::v1::Job,
    core::v1::{Pod, PodSpec},
};
use kube::{Resource, ResourceExt};
use tracing::debug;

use super::stores::get;
use crate::{
    context::Context,
    drift::{Difference, pod_difference},
    ownership::{controller, is_controlled_by},
};

/// Returns the Job `name` if the controller created it for this owner.
pub fn job(context: &Context, namespace: &str, name: &str, owner: &str) -> Option<Job> {
    let job = get(&context.stores.jobs, namespace, name)?;
    let ours = is_controlled_by(&*job, owner) && context.seal.holds(owner, &*job);
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

/// Returns the pods of a Job.
pub fn of_job(context: &Context, job: &Job) -> Vec<Pod> {
    let uid = job.uid().unwrap_or_default();
    let template = job.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
    genuine(context, job.namespace().as_deref(), template, |pod| is_controlled_by(pod, &uid))
}

/// Returns the pods of a Deployment that match its current template. They belong to a ReplicaSet, whose name begins with
/// the Deployment's.
pub fn of_deployment(context: &Context, deployment: &Deployment) -> Vec<Pod> {
    let prefix = format!("{}-", deployment.name_any());
    let template = deployment.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
    genuine(context, deployment.namespace().as_deref(), template, |pod| {
        controller(pod).is_some_and(|owner| owner.kind == "ReplicaSet" && owner.name.starts_with(&prefix))
    })
}

fn genuine(
    context: &Context,
    namespace: Option<&str>,
    template: Option<&PodSpec>,
    owned: impl Fn(&Pod) -> bool,
) -> Vec<Pod> {
    let Some(template) = template else { return Vec::new() };
    let pods = context.stores.pods.state_filter(|pod| pod.meta().namespace.as_deref() == namespace && owned(pod));
    pods.into_iter().filter(|pod| changed(template, pod).is_none()).map(|pod| Pod::clone(&pod)).collect()
}

/// Returns the first difference between a pod and its template.
pub fn changed(template: &PodSpec, pod: &Pod) -> Option<Difference> {
    let json = |spec: Option<&PodSpec>| serde_json::to_value(spec).unwrap_or_default();
    pod_difference(&json(Some(template)), &json(pod.spec.as_ref()))
}
