//! Scale to zero: when the servers stop, the activator that holds requests meanwhile, and what starts a server again. Pure.
//!
//! Whether servers run is the number of replicas in the Deployment, so a restart of the controller neither starts nor stops any. A
//! server stops once all of them have reported that their last request is long enough ago. It starts while an activator reports
//! that requests wait; activators repeat that every few seconds.

use std::{collections::BTreeMap, time::Duration};

use codex_crds::{ConditionType, Reason, WorkerPod, child};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::{
        apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment},
        core::v1::{PodTemplateSpec, ResourceRequirements},
        networking::v1::{
            NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicySpec,
        },
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{LabelSelector, ObjectMeta},
        util::intstr::IntOrString,
    },
};

use super::{
    children::{ADMIN_PORT, PORT, probe, reports, server},
    servers::Servers,
    status::distrusted,
    view::View,
};
use crate::{
    conditions::Conditions,
    metadata::Component,
    network_policy::{in_cluster, port},
    pod_template::{Mounts, Port, Probes, Template},
    throttle,
};

/// The argument of servers that report when their last request ended.
const REPORTS: &str = "--report-activity";
/// Seconds from SIGTERM to SIGKILL: the activator forwards what it holds, or gives it up.
const GRACE_SECONDS: i64 = 60;
/// What an activator requests. It holds up to 64 MiB of requests.
const REQUESTS: [(&str, &str); 2] = [("cpu", "10m"), ("memory", "32Mi")];
/// The most memory of an activator.
const LIMITS: [(&str, &str); 1] = [("memory", "192Mi")];

/// Returns the seconds without a request after which the spec lets the servers stop.
fn idle_seconds(view: &View<'_>) -> Option<i64> {
    let spec = view.spec();
    // The API server refuses these together.
    let excluded =
        spec.rollout.is_some() || spec.redeploy.is_some() || spec.shadow.is_some() || spec.serving.tls.is_some();
    let seconds = spec.autoscaling.as_ref()?.idle_after()?;
    (!excluded).then_some(seconds.into())
}

/// Returns the seconds without a request after which the servers stop; `None` if they never do, or none is wanted.
fn idle_after(view: &View<'_>) -> Option<i64> {
    idle_seconds(view).filter(|_| view.spec().replicas > 0)
}

/// Whether the servers stop while idle. What serves a denied model stops in any case, and nothing starts it.
pub(super) fn stops(view: &View<'_>) -> bool {
    idle_after(view).is_some() && !view.is_revoked()
}

/// Returns the argument of servers that makes them report when their last request ended.
pub(super) fn argument(view: &View<'_>) -> Option<String> {
    idle_seconds(view).map(|_| REPORTS.to_owned())
}

/// Whether the servers of a Deployment report when their last request ended, if that is needed.
pub(super) fn fits(view: &View<'_>, live: &Deployment) -> bool {
    let template = live.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
    let mut arguments =
        template.into_iter().flat_map(|spec| &spec.containers).filter_map(|it| it.args.as_ref()).flatten();
    idle_seconds(view).is_none() || arguments.any(|argument| argument == REPORTS)
}

/// Whether no server should run: none does and no request waits for one, or all that run are idle.
pub(super) fn sleeps(view: &View<'_>) -> bool {
    if !stops(view) {
        return false;
    }
    let Some(servers) = &view.servers else { return !view.observed.tampered };
    let running = servers.live.spec.as_ref().and_then(|spec| spec.replicas) != Some(0);
    if view.activator.as_ref().is_some_and(Servers::waiting) && (running || unsigned(view).is_none()) {
        return false;
    }
    // A server that refuses the model stays, so that the status shows why.
    !running || (servers.refusal().is_none() && stops_at(view).is_some_and(|at| view.now >= at))
}

/// Returns why no server may start although one was rolled out: what it would serve no longer counts as signed.
fn unsigned(view: &View<'_>) -> Option<String> {
    distrusted(view).or_else(|| {
        let missing = view.observed.missing_bundles.first()?;
        Some(format!("the ConfigMap {missing}, with which servers verify the model, no longer exists"))
    })
}

/// Returns when the servers that run have been idle for long enough.
fn stops_at(view: &View<'_>) -> Option<Timestamp> {
    let since = view.servers.as_ref()?.idle_since()?;
    since.checked_add(SignedDuration::from_secs(idle_after(view)?)).ok()
}

/// Returns when to plan again because the servers may be idle for long enough by then.
pub(super) fn due(view: &View<'_>) -> Option<Duration> {
    let at = stops_at(view).filter(|at| stops(view) && view.now < *at)?;
    Some(throttle::until(view.now, at))
}

/// Whether the Service sends requests to the activator: while no server is ready, or should be.
pub(super) fn holds(view: &View<'_>) -> bool {
    stops(view) && (sleeps(view) || view.servers.as_ref().is_none_or(|servers| servers.ready().next().is_none()))
}

/// Whether a request would be held.
pub(super) fn is_ready(view: &View<'_>) -> bool {
    view.activator.as_ref().is_some_and(|activator| activator.ready().next().is_some())
}

/// Returns why no request would be held.
pub(super) fn obstacle(view: &View<'_>) -> String {
    let found = view.activator.as_ref().and_then(Servers::obstacle);
    found.unwrap_or_else(|| "the activator, which holds requests while no server runs, is starting".to_owned())
}

fn metadata(view: &View<'_>) -> ObjectMeta {
    view.owner.child(child::activator(&view.owner.name), Component::Activator, &view.observed.settings.version)
}

fn selector(view: &View<'_>) -> LabelSelector {
    LabelSelector { match_labels: Some(view.owner.selector(Component::Activator)), match_expressions: None }
}

/// Returns the Deployment of the activator. It runs on any node: servers that need a special one would keep that node from being
/// removed.
pub(super) fn deployment(view: &View<'_>) -> Option<Deployment> {
    if !stops(view) {
        return None;
    }
    let (settings, name) = (&view.observed.settings, view.owner.name.as_str());
    let quantities = |list: &[(&str, &str)]| -> BTreeMap<String, Quantity> {
        list.iter().map(|(name, size)| ((*name).to_owned(), Quantity((*size).to_owned()))).collect()
    };
    let worker = WorkerPod {
        resources: Some(ResourceRequirements {
            requests: Some(quantities(&REQUESTS)),
            limits: Some(quantities(&LIMITS)),
            ..ResourceRequirements::default()
        }),
        image_pull_secrets: view.spec().pod.image_pull_secrets.clone(),
        priority_class_name: view.spec().pod.priority_class_name.clone(),
        security_context: view.spec().pod.security_context.clone(),
        ..WorkerPod::default()
    };
    let arguments = [
        ("--server", format!("{}.{}.svc:{PORT}", child::activator(name), view.owner.namespace)),
        ("--listen", format!("0.0.0.0:{PORT}")),
        ("--admin-listen", format!("0.0.0.0:{ADMIN_PORT}")),
    ];
    let arguments = arguments.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]);
    let template = Template {
        owner: &view.owner,
        component: Component::Activator,
        settings,
        image: &settings.worker_image,
        args: std::iter::once("activate".to_owned()).chain(arguments).collect(),
        env: Vec::new(),
        worker: &worker,
        config_map: server(view),
        mounts: Mounts::default(),
        restart_policy: None,
        grace_seconds: GRACE_SECONDS,
        ports: vec![Port::Http(PORT), Port::Admin(ADMIN_PORT)],
        probes: Probes {
            startup: None,
            liveness: Some(probe("/health", 10, 3)),
            readiness: Some(probe("/ready", 2, 3)),
        },
    };
    let metadata = ObjectMeta {
        labels: Some(view.owner.labels(Component::Activator, &settings.version)),
        annotations: template.scraped(),
        ..ObjectMeta::default()
    };
    Some(Deployment {
        metadata: self::metadata(view),
        spec: Some(DeploymentSpec {
            replicas: Some(1),
            selector: selector(view),
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".to_owned()),
                rolling_update: Some(RollingUpdateDeployment {
                    max_unavailable: Some(IntOrString::Int(0)),
                    max_surge: Some(IntOrString::Int(1)),
                }),
            }),
            template: PodTemplateSpec { metadata: Some(metadata), spec: Some(template.spec()) },
            ..DeploymentSpec::default()
        }),
        status: None,
    })
}

/// Returns the policy of the activator: everybody may send it requests, and it reaches nothing but the servers and the controller.
pub(super) fn policy(view: &View<'_>) -> Option<NetworkPolicy> {
    if !stops(view) {
        return None;
    }
    let servers = LabelSelector { match_labels: Some(view.owner.selector(Component::Server)), match_expressions: None };
    let servers = NetworkPolicyPeer { pod_selector: Some(servers), ..NetworkPolicyPeer::default() };
    let forwarded = NetworkPolicyEgressRule { ports: Some(vec![port("TCP", PORT)]), to: Some(vec![servers]) };
    Some(NetworkPolicy {
        metadata: metadata(view),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(selector(view)),
            policy_types: Some(vec!["Ingress".to_owned(), "Egress".to_owned()]),
            ingress: Some(vec![
                NetworkPolicyIngressRule { ports: Some(vec![port("TCP", PORT)]), from: None },
                NetworkPolicyIngressRule { ports: Some(vec![port("TCP", ADMIN_PORT)]), from: Some(vec![in_cluster()]) },
            ]),
            egress: Some(reports(view).into_iter().chain([forwarded]).collect()),
        }),
    })
}

/// Sets `Idle`. The message does not change with the number of servers.
pub(super) fn condition(view: &View<'_>, conditions: &mut Conditions<'_>) {
    let Some(seconds) = idle_after(view).filter(|_| stops(view)) else { return };
    if !sleeps(view) {
        let message = format!("servers run; they stop {seconds} s after the last request");
        return conditions.set(ConditionType::Idle, false, Reason::Activated, &message);
    }
    let message = match unsigned(view) {
        Some(why) => format!("no server runs, and a request starts none: {why}"),
        None => "no server runs; a request starts one".to_owned(),
    };
    conditions.set(ConditionType::Idle, true, Reason::Idle, &message);
}
