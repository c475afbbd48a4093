//! Jobs, Deployments and their pods, as far as they are the controller's own. From caches.
//!
//! What carries no valid seal, and pods that are not as their template says, could have been made by anybody: they are
//! not observed, so that nothing they show reaches a status.

use k8s_openapi::api::{
    apps::v1::Deployment,
    batch::v1::Job,
    core::v1::{Pod, PodSpec},
};
use kube::{Resource, ResourceExt};
use tracing::debug;

use super::get;
use crate::{
    context::Context,
    drift::{Difference, pod_difference},
    ownership::{controller, is_controlled_by},
};

/// A Job of ours.
pub fn job(context: &Context, namespace: &str, name: &str, owner: &str) -> Option<Job> {
    let job = get(&context.stores.jobs, namespace, name)?;
    let ours = is_controlled_by(&*job, owner) && context.seal.holds(owner, &*job);
    ours.then(|| Job::clone(&job))
}

/// `found`, if it is a Deployment of ours, and whether it is one whose template somebody changed: that one is made anew.
pub fn deployment(context: &Context, found: Option<Deployment>, owner: &str) -> (Option<Deployment>, bool) {
    let Some(deployment) = found.filter(|found| is_controlled_by(found, owner)) else { return (None, false) };
    if !context.seal.holds(owner, &deployment) {
        debug!("the Deployment {} is not as the controller made it", deployment.name_any());
        return (None, true);
    }
    (Some(deployment), false)
}

/// The pods of a Job.
pub fn of_job(context: &Context, job: &Job) -> Vec<Pod> {
    let uid = job.uid().unwrap_or_default();
    let template = job.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
    genuine(context, job.namespace().as_deref(), template, |pod| is_controlled_by(pod, &uid))
}

/// The pods of a Deployment that are as its template says now. Between the two stands a ReplicaSet, whose name begins
/// with the Deployment's.
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
    let pods = context.stores.workers.state_filter(|pod| pod.meta().namespace.as_deref() == namespace && owned(pod));
    pods.into_iter().filter(|pod| changed(template, pod).is_none()).map(|pod| Pod::clone(&pod)).collect()
}

/// Where a pod is not as its template says.
pub fn changed(template: &PodSpec, pod: &Pod) -> Option<Difference> {
    let json = |spec: Option<&PodSpec>| serde_json::to_value(spec).unwrap_or_default();
    pod_difference(&json(Some(template)), &json(pod.spec.as_ref()))
}
