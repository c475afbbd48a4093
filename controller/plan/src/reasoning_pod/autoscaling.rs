//! Automatic scaling: the HorizontalPodAutoscaler, and the number of servers that a plan sets or leaves to it. Pure.

use std::time::Duration;

use codex_crds::{Autoscaling, ConditionType, Reason, child};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        autoscaling::v2::{
            CrossVersionObjectReference, HorizontalPodAutoscaler, HorizontalPodAutoscalerCondition,
            HorizontalPodAutoscalerSpec, MetricIdentifier, MetricSpec, MetricTarget, PodsMetricSource,
            ResourceMetricSource,
        },
    },
    apimachinery::pkg::api::resource::Quantity,
};
use kube::ResourceExt;

use super::{idle, servers::Wanted, view::View};
use crate::{
    conditions::{Conditions, Truth},
    metadata::Component,
    throttle,
};

/// The field manager of children.
const MANAGER: &str = "codex-controller";
/// The metric of pods that counts waiting prompts: a gauge of the server.
const QUEUE_DEPTH: &str = "codex_ml_inference_requests_waiting";
/// The metric of pods with their latency. The server exposes a histogram, and Prometheus' adapter computes this from it.
const P95_SECONDS: &str = "codex_ml_inference_latency_p95_seconds";
/// The reason of a HorizontalPodAutoscaler whose target has no replicas.
const DISABLED: &str = "ScalingDisabled";
/// How long the cluster may fail to scale before a condition says so. The metrics of a new pod take about a minute.
const GRACE: SignedDuration = SignedDuration::from_secs(120);

/// Returns the autoscaling of the spec, unless `spec.replicas` is 0.
fn active<'a>(view: &View<'a>) -> Option<&'a Autoscaling> {
    let spec = view.spec();
    spec.autoscaling.as_ref().filter(|_| spec.replicas > 0)
}

/// Returns the number of servers of a Deployment that has none.
fn start(view: &View<'_>, scaling: &Autoscaling) -> i32 {
    if scaling.idle_after().is_some() {
        return scaling.least();
    }
    let status = view.observed.autoscaler.as_ref().and_then(|found| found.status.as_ref());
    let desired = status.map_or(scaling.min_replicas, |status| status.desired_replicas);
    // A spec that is older than the rule may have them in the wrong order.
    desired.min(scaling.max_replicas).max(scaling.min_replicas)
}

/// Returns the number of servers in the live Deployment, unless it is 0: then the cluster does not scale it.
fn live(view: &View<'_>) -> Option<i32> {
    let spec = view.servers.as_ref()?.live.spec.as_ref()?;
    spec.replicas.filter(|count| *count > 0)
}

/// Returns the number of servers to plan; `None` leaves the number in the Deployment alone.
///
/// Apply without the field resets it to 1 while this controller is its only manager, so the live number is applied until the
/// HorizontalPodAutoscaler has changed it and thereby manages the field.
pub(super) fn replicas(view: &View<'_>) -> Option<i32> {
    let Some(scaling) = active(view) else { return Some(view.spec().replicas) };
    if idle::sleeps(view) {
        return Some(0);
    }
    let Some(count) = live(view) else { return Some(start(view, scaling)) };
    view.servers.as_ref().is_some_and(|servers| manages_replicas(servers.live)).then_some(count)
}

/// Whether this controller manages `spec.replicas` of the Deployment.
fn manages_replicas(live: &Deployment) -> bool {
    live.managed_fields().iter().any(|entry| {
        let fields = entry.fields_v1.as_ref().and_then(|fields| fields.0.pointer("/f:spec/f:replicas"));
        entry.manager.as_deref() == Some(MANAGER) && fields.is_some()
    })
}

/// Returns the number of servers to wait for.
pub(super) fn wanted(view: &View<'_>) -> Wanted {
    let Some(scaling) = active(view) else { return Wanted::exactly(view.spec().replicas) };
    if idle::sleeps(view) {
        return Wanted::exactly(0);
    }
    let replicas = live(view).unwrap_or_else(|| start(view, scaling));
    // Servers that are added under load do not make the others unready.
    Wanted { replicas, least: replicas.min(scaling.least()), scaled: true }
}

/// Returns the HorizontalPodAutoscaler to create.
pub(super) fn autoscaler(view: &View<'_>) -> Option<HorizontalPodAutoscaler> {
    let scaling = active(view).filter(|_| !view.is_revoked())?;
    let name = child::server(&view.owner.name);
    Some(HorizontalPodAutoscaler {
        metadata: view.owner.child(name.clone(), Component::Server, &view.observed.settings.version),
        spec: Some(HorizontalPodAutoscalerSpec {
            scale_target_ref: CrossVersionObjectReference {
                api_version: Some("apps/v1".to_owned()),
                kind: "Deployment".to_owned(),
                name,
            },
            min_replicas: Some(scaling.least()),
            max_replicas: scaling.max_replicas,
            metrics: Some(metrics(scaling)),
            behavior: scaling.behavior.clone(),
        }),
        status: None,
    })
}

fn metrics(scaling: &Autoscaling) -> Vec<MetricSpec> {
    let cpu = scaling.cpu().map(|percent| MetricSpec {
        type_: "Resource".to_owned(),
        resource: Some(ResourceMetricSource {
            name: "cpu".to_owned(),
            target: MetricTarget {
                type_: "Utilization".to_owned(),
                average_utilization: Some(percent),
                ..MetricTarget::default()
            },
        }),
        ..MetricSpec::default()
    });
    let of_pods = |name: &str, value: String| MetricSpec {
        type_: "Pods".to_owned(),
        pods: Some(PodsMetricSource {
            metric: MetricIdentifier { name: name.to_owned(), selector: None },
            target: MetricTarget {
                type_: "AverageValue".to_owned(),
                average_value: Some(Quantity(value)),
                ..MetricTarget::default()
            },
        }),
        ..MetricSpec::default()
    };
    let more = scaling.metrics.clone().unwrap_or_default();
    let queue = more.queue_depth.map(|depth| of_pods(QUEUE_DEPTH, depth.to_string()));
    let latency = more.p95_seconds.map(|seconds| of_pods(P95_SECONDS, seconds));
    [cpu, queue, latency].into_iter().flatten().collect()
}

/// Returns the condition by which the cluster says that it cannot scale.
fn failing<'a>(view: &View<'a>) -> Option<&'a HorizontalPodAutoscalerCondition> {
    let found = conditions_of(view);
    found.iter().find(|it| {
        let kind = matches!(it.type_.as_str(), "AbleToScale" | "ScalingActive");
        // The cluster scales nothing while there are no servers, and says so for a while after they are back.
        kind && it.status == "False" && it.reason.as_deref() != Some(DISABLED)
    })
}

fn conditions_of<'a>(view: &View<'a>) -> &'a [HorizontalPodAutoscalerCondition] {
    let status = view.observed.autoscaler.as_ref().and_then(|found| found.status.as_ref());
    status.and_then(|status| status.conditions.as_deref()).unwrap_or_default()
}

/// Returns when a failure has lasted for too long.
fn late(failing: &HorizontalPodAutoscalerCondition) -> Option<Timestamp> {
    failing.last_transition_time.as_ref()?.0.checked_add(GRACE).ok()
}

/// Returns when to plan again because the cluster may still fail to scale.
pub(super) fn due(view: &View<'_>) -> Option<Duration> {
    let at = late(failing(view).filter(|_| autoscaler(view).is_some())?)?;
    (view.now < at).then(|| throttle::until(view.now, at))
}

/// Sets `ScalingActive`. The message does not change with the number of servers.
pub(super) fn condition(view: &View<'_>, conditions: &mut Conditions<'_>) {
    const KIND: ConditionType = ConditionType::ScalingActive;
    let Some(scaling) = active(view).filter(|_| !view.is_revoked()) else { return };
    let name = child::server(&view.owner.name);
    if idle::sleeps(view) {
        let message = format!("the HorizontalPodAutoscaler {name} rests while no server runs");
        return conditions.set(KIND, Truth::Unknown, Reason::Idle, &message);
    }
    if let Some(failing) = failing(view) {
        if late(failing).is_some_and(|at| view.now >= at) {
            let said = failing.message.as_deref().or(failing.reason.as_deref()).unwrap_or("no message");
            let message = format!("the HorizontalPodAutoscaler {name} cannot scale the servers: {said}");
            return conditions.set(KIND, false, Reason::ScalingFailed, &message);
        }
        if conditions.knew(KIND) {
            return conditions.keep(KIND);
        }
    } else if conditions_of(view).iter().any(|it| it.type_ == "ScalingActive" && it.status == "True") {
        let (least, most) = (scaling.least(), scaling.max_replicas);
        let message = format!("the HorizontalPodAutoscaler {name} keeps between {least} and {most} servers");
        return conditions.set(KIND, true, Reason::Scaling, &message);
    }
    let message = format!("the HorizontalPodAutoscaler {name} has not computed a number of servers yet");
    conditions.set(KIND, Truth::Unknown, Reason::WaitingForMetrics, &message);
}
