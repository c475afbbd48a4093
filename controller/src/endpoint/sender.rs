//! Senders: whether the pod that speaks works for the object that it speaks of, and is what the controller planned.
//!
//! From the pod's uid every step up is by uid: pod → Job, or pod → ReplicaSet → Deployment, → object. The Job or the
//! Deployment must carry the controller's seal, and the pod must be as its template says. Caches answer; the API server
//! is asked only for a pod that the cache does not have yet, and for a `ReplicaSet`, which nobody watches.

use std::sync::Arc;

use codex_crds::annotation;
use codex_provenance::ConfigDigest;
use codex_reports::{Kind, Report, Stage, State};
use k8s_openapi::{
    api::{
        apps::v1::ReplicaSet,
        core::v1::{Pod, PodSpec},
    },
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{Api, Resource, ResourceExt};

use super::{Refusal, token::PodIdentity};
use crate::{
    context::Context,
    metrics,
    observe::{
        get,
        workers::{changed, controller},
    },
};

/// Checks that `pod` may send `report`.
///
/// # Errors
/// One sentence that says what does not fit.
pub(super) async fn check(context: &Context, pod: &PodIdentity, report: &Report) -> Result<(), Refusal> {
    let kind = metrics::name(report.kind);
    let refuse = |why: String| Err(Refusal::Forbidden(why));
    if report.pod_uid != pod.uid {
        return refuse(format!(
            "podUid is {}, and the token was issued to the pod {} ({})",
            report.pod_uid, pod.name, pod.uid
        ));
    }
    if report.namespace != pod.namespace {
        return refuse(format!("namespace is {}, and the pod runs in {}", report.namespace, pod.namespace));
    }
    let fits = matches!(
        (report.kind, &report.state),
        (Kind::TrainingRun, State::Training(_))
            | (Kind::Evaluation, State::Evaluation(_))
            | (Kind::ReasoningPod, State::Serving(_))
    );
    if !fits {
        return Err(Refusal::Invalid(format!("state is not what a pod of a {kind} says")));
    }
    let object = object(context, report)?;
    if object != report.object_uid {
        return refuse(format!("objectUid is {}, and the {kind} {} is {object} now", report.object_uid, report.name));
    }
    let live = live(context, pod).await?;
    let owner = owner(&*live)?;
    let parent = match report.kind {
        Kind::TrainingRun | Kind::Evaluation => job(context, pod, owner)?,
        Kind::ReasoningPod => deployment(context, pod, owner).await?,
    };
    if parent.owner != report.object_uid {
        return refuse(format!("the pod {} does not work for the {kind} {}", pod.name, report.name));
    }
    if !parent.genuine {
        return refuse(format!("the {} of the pod {} was not made by this controller", parent.kind, pod.name));
    }
    if let Some(difference) = changed(&parent.template, &live) {
        return refuse(format!("the pod {} is not what the controller planned: {difference}", pod.name));
    }
    digest(report, parent.config)
}

/// The uid of a report's object, as the cache has it.
fn object(context: &Context, report: &Report) -> Result<String, Refusal> {
    let (stores, namespace, name) = (&context.stores, &report.namespace, &report.name);
    let found = match report.kind {
        Kind::TrainingRun => get(&stores.runs, namespace, name).and_then(|run| run.uid()),
        Kind::Evaluation => get(&stores.evaluations, namespace, name).and_then(|evaluation| evaluation.uid()),
        Kind::ReasoningPod => get(&stores.pods, namespace, name).and_then(|pod| pod.uid()),
    };
    found.ok_or_else(|| Refusal::Forbidden(format!("there is no {} {namespace}/{name}", metrics::name(report.kind))))
}

/// The pod as it is now.
async fn live(context: &Context, pod: &PodIdentity) -> Result<Arc<Pod>, Refusal> {
    let cached = get(&context.stores.workers, &pod.namespace, &pod.name);
    if let Some(cached) = cached.filter(|cached| cached.uid().as_ref() == Some(&pod.uid)) {
        return Ok(cached);
    }
    let api: Api<Pod> = Api::namespaced(context.client.clone(), &pod.namespace);
    let found = api.get_opt(&pod.name).await.map_err(|source| Refusal::Client {
        what: format!("the pod {} cannot be read now", pod.name),
        source: Box::new(source),
    })?;
    found.filter(|found| found.uid().as_ref() == Some(&pod.uid)).map(Arc::new).ok_or_else(|| {
        Refusal::Forbidden(format!("the pod {} that the token was issued to ({}) is gone", pod.name, pod.uid))
    })
}

fn owner<K: Resource>(object: &K) -> Result<&OwnerReference, Refusal> {
    controller(object).ok_or_else(|| {
        Refusal::Forbidden(format!("nothing controls the {}: it works for no object", object.name_any()))
    })
}

/// What made a pod.
struct Parent {
    kind: &'static str,
    /// The uid of the object that it belongs to.
    owner: String,
    /// Whether the controller made it.
    genuine: bool,
    template: PodSpec,
    /// The digest of the resolved configuration, from an annotation that the seal covers.
    config: Option<ConfigDigest>,
}

fn job(context: &Context, pod: &PodIdentity, reference: &OwnerReference) -> Result<Parent, Refusal> {
    if reference.kind != "Job" || !reference.api_version.starts_with("batch/") {
        return Err(Refusal::Forbidden(format!("the pod {} belongs to a {}, not to a Job", pod.name, reference.kind)));
    }
    let Some(job) = get(&context.stores.jobs, &pod.namespace, &reference.name) else {
        return Err(Refusal::Unavailable(format!("the Job {} is not known yet", reference.name)));
    };
    if job.uid().as_ref() != Some(&reference.uid) {
        return Err(Refusal::Forbidden(format!("the Job {} of the pod {} is gone", reference.name, pod.name)));
    }
    let object = owner(&*job)?.uid.clone();
    Ok(Parent {
        kind: "Job",
        genuine: context.seal.holds(&object, &*job),
        template: job.spec.as_ref().and_then(|spec| spec.template.spec.clone()).unwrap_or_default(),
        config: job.annotations().get(annotation::CONFIG_DIGEST).and_then(|digest| digest.parse().ok()),
        owner: object,
    })
}

async fn deployment(context: &Context, pod: &PodIdentity, reference: &OwnerReference) -> Result<Parent, Refusal> {
    if reference.kind != "ReplicaSet" || !reference.api_version.starts_with("apps/") {
        let why = format!("the pod {} belongs to a {}, not to a ReplicaSet", pod.name, reference.kind);
        return Err(Refusal::Forbidden(why));
    }
    let api: Api<ReplicaSet> = Api::namespaced(context.client.clone(), &pod.namespace);
    let found = api.get_opt(&reference.name).await.map_err(|source| Refusal::Client {
        what: format!("the ReplicaSet {} cannot be read now", reference.name),
        source: Box::new(source),
    })?;
    let set = found.filter(|set| set.uid().as_ref() == Some(&reference.uid)).ok_or_else(|| {
        Refusal::Forbidden(format!("the ReplicaSet {} of the pod {} is gone", reference.name, pod.name))
    })?;
    let above = owner(&set)?;
    let Some(deployment) = get(&context.stores.deployments, &pod.namespace, &above.name) else {
        return Err(Refusal::Unavailable(format!("the Deployment {} is not known yet", above.name)));
    };
    if above.kind != "Deployment" || deployment.uid().as_ref() != Some(&above.uid) {
        return Err(Refusal::Forbidden(format!("the Deployment {} of the pod {} is gone", above.name, pod.name)));
    }
    let object = owner(&*deployment)?.uid.clone();
    Ok(Parent {
        kind: "Deployment",
        genuine: context.seal.holds(&object, &*deployment),
        template: deployment.spec.as_ref().and_then(|spec| spec.template.spec.clone()).unwrap_or_default(),
        config: None,
        owner: object,
    })
}

/// Whether the pod worked with the configuration that the controller resolved.
fn digest(report: &Report, expected: Option<ConfigDigest>) -> Result<(), Refusal> {
    let Some(expected) = expected else { return Ok(()) };
    let stage = match &report.state {
        State::Training(state) => state.stage,
        State::Evaluation(state) => state.stage,
        State::Serving(_) => return Ok(()),
    };
    match report.config_digest {
        Some(found) if found == expected => Ok(()),
        Some(found) => {
            Err(Refusal::Forbidden(format!("configDigest is {found}, and the controller resolved {expected}")))
        }
        // A pod that has not read its configuration yet, or could not, has only that to tell.
        None if matches!(stage, Stage::Starting | Stage::Failed) => Ok(()),
        None => Err(Refusal::Forbidden(format!("configDigest is missing, and the controller resolved {expected}"))),
    }
}
