//! Authorization of senders: the pod must work for the object that it reports about and must match its plan.
//!
//! Owner references lead by uid from the pod to the object: pod → Job → object, or pod → ReplicaSet → Deployment →
//! object. The Job or Deployment must carry the controller's seal, and the pod must match its template. The caches hold
//! what is needed, except for pods that they do not show yet and ReplicaSets, which are not watched.

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

use super::{rejection::Rejection, token::PodIdentity};
use crate::{
    context::Context,
    drift::Role,
    observe::{get, workers::changed},
    ownership::controller,
};

/// Checks that `pod` may send `report`, and returns the live pod.
///
/// # Errors
/// A rejection that names the field or object that does not match.
pub(super) async fn authorize(context: &Context, pod: &PodIdentity, report: &Report) -> Result<Arc<Pod>, Rejection> {
    let kind = report.kind.name();
    let reject = |why: String| Err(Rejection::Forbidden(why));
    if report.pod_uid != pod.uid {
        return reject(format!(
            "podUid is {}, but the token belongs to the pod {} ({})",
            report.pod_uid, pod.name, pod.uid
        ));
    }
    if report.namespace != pod.namespace {
        return reject(format!("namespace is {}, but the pod is in {}", report.namespace, pod.namespace));
    }
    let fits = matches!(
        (report.kind, &report.state),
        (Kind::TrainingRun, State::Training(_))
            | (Kind::Evaluation, State::Evaluation(_))
            | (Kind::ReasoningPod, State::Serving(_))
    );
    if !fits {
        return Err(Rejection::Invalid(format!("state does not match the kind {kind}")));
    }
    let unknown = match report.kind {
        Kind::TrainingRun => context.stores.unknown_training(&report.namespace),
        Kind::Evaluation => context.stores.unknown_evaluation(&report.namespace),
        Kind::ReasoningPod => context.stores.unknown_serving(&report.namespace),
    };
    if let Some(why) = unknown {
        return Err(Rejection::Unavailable(why));
    }
    let object = object(context, report)?;
    if object != report.object_uid {
        return reject(format!(
            "objectUid is {}, but the {kind} {} has the uid {object}",
            report.object_uid, report.name
        ));
    }
    let live = live(context, pod).await?;
    let owner = owner(&*live)?;
    let parent = match report.kind {
        Kind::TrainingRun | Kind::Evaluation => job(context, pod, owner)?,
        Kind::ReasoningPod => deployment(context, pod, owner).await?,
    };
    if parent.owner != report.object_uid {
        return reject(format!("the pod {} does not belong to the {kind} {}", pod.name, report.name));
    }
    if !parent.genuine {
        return reject(format!("the {} of the pod {} was not created by this controller", parent.kind, pod.name));
    }
    let role = if report.kind == Kind::TrainingRun { Role::Trainer } else { Role::Strict };
    if let Some(difference) = changed(&parent.template, &live, role) {
        return reject(format!("the pod {} differs from its template: {difference}", pod.name));
    }
    check_digest(report, parent.config)?;
    Ok(live)
}

/// Returns the uid of the report's object from the cache.
fn object(context: &Context, report: &Report) -> Result<String, Rejection> {
    let (stores, namespace, name) = (&context.stores, &report.namespace, &report.name);
    let found = match report.kind {
        Kind::TrainingRun => get(&stores.training_runs, namespace, name).and_then(|run| run.uid()),
        Kind::Evaluation => get(&stores.evaluations, namespace, name).and_then(|evaluation| evaluation.uid()),
        Kind::ReasoningPod => get(&stores.reasoning_pods, namespace, name).and_then(|pod| pod.uid()),
    };
    found.ok_or_else(|| Rejection::Forbidden(format!("the {} {namespace}/{name} does not exist", report.kind.name())))
}

/// Returns the live pod.
async fn live(context: &Context, pod: &PodIdentity) -> Result<Arc<Pod>, Rejection> {
    let cached = get(&context.stores.pods, &pod.namespace, &pod.name);
    if let Some(cached) = cached.filter(|cached| cached.uid().as_ref() == Some(&pod.uid)) {
        return Ok(cached);
    }
    let api: Api<Pod> = Api::namespaced(context.client.clone(), &pod.namespace);
    let found = api.get_opt(&pod.name).await.map_err(|source| Rejection::Client {
        what: format!("the pod {} cannot be read", pod.name),
        source: Box::new(source),
    })?;
    found.filter(|found| found.uid().as_ref() == Some(&pod.uid)).map(Arc::new).ok_or_else(|| {
        Rejection::Forbidden(format!("the pod {} of the token ({}) no longer exists", pod.name, pod.uid))
    })
}

fn owner<K: Resource>(object: &K) -> Result<&OwnerReference, Rejection> {
    controller(object).ok_or_else(|| {
        Rejection::Forbidden(format!(
            "{} has no controlling owner reference, so it does not belong to an object",
            object.name_any()
        ))
    })
}

/// The Job or Deployment of a pod.
struct Parent {
    kind: &'static str,
    /// The uid of the object that controls it.
    owner: String,
    /// Whether it carries the controller's seal.
    genuine: bool,
    template: PodSpec,
    /// The digest of the resolved configuration, from an annotation that the seal covers.
    config: Option<ConfigDigest>,
}

fn job(context: &Context, pod: &PodIdentity, reference: &OwnerReference) -> Result<Parent, Rejection> {
    if reference.kind != "Job" || !reference.api_version.starts_with("batch/") {
        return Err(Rejection::Forbidden(format!(
            "the pod {} belongs to a {}; expected a Job",
            pod.name, reference.kind
        )));
    }
    let Some(job) = get(&context.stores.jobs, &pod.namespace, &reference.name) else {
        return Err(Rejection::Unavailable(format!("the Job {} is not in the cache yet", reference.name)));
    };
    if job.uid().as_ref() != Some(&reference.uid) {
        return Err(Rejection::Forbidden(format!(
            "the Job {} of the pod {} no longer exists",
            reference.name, pod.name
        )));
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

async fn deployment(context: &Context, pod: &PodIdentity, reference: &OwnerReference) -> Result<Parent, Rejection> {
    if reference.kind != "ReplicaSet" || !reference.api_version.starts_with("apps/") {
        let why = format!("the pod {} belongs to a {}; expected a ReplicaSet", pod.name, reference.kind);
        return Err(Rejection::Forbidden(why));
    }
    let api: Api<ReplicaSet> = Api::namespaced(context.client.clone(), &pod.namespace);
    let found = api.get_opt(&reference.name).await.map_err(|source| Rejection::Client {
        what: format!("the ReplicaSet {} cannot be read", reference.name),
        source: Box::new(source),
    })?;
    let set = found.filter(|set| set.uid().as_ref() == Some(&reference.uid)).ok_or_else(|| {
        Rejection::Forbidden(format!("the ReplicaSet {} of the pod {} no longer exists", reference.name, pod.name))
    })?;
    let above = owner(&set)?;
    let Some(deployment) = get(&context.stores.deployments, &pod.namespace, &above.name) else {
        return Err(Rejection::Unavailable(format!("the Deployment {} is not in the cache yet", above.name)));
    };
    if above.kind != "Deployment" || deployment.uid().as_ref() != Some(&above.uid) {
        return Err(Rejection::Forbidden(format!(
            "the Deployment {} of the pod {} no longer exists",
            above.name, pod.name
        )));
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

/// Checks that the pod used the configuration that the controller resolved.
fn check_digest(report: &Report, expected: Option<ConfigDigest>) -> Result<(), Rejection> {
    let Some(expected) = expected else { return Ok(()) };
    match report.config_digest {
        Some(found) if found == expected => Ok(()),
        Some(found) => {
            Err(Rejection::Changed(format!("configDigest is {found}, but the controller resolved {expected}")))
        }
        // The pod has not read its configuration yet, or reports that it cannot.
        None if matches!(report.state.stage(), Stage::Starting | Stage::Failed) => Ok(()),
        None => Err(Rejection::Changed(format!("configDigest is missing, but the controller resolved {expected}"))),
    }
}
