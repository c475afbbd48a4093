//! The HTTPRoute that gives a canary an exact share of the requests, and what its Gateways say about it. Pure.

use std::time::Duration;

use codex_crds::{ConditionType, ParentRef, Reason, RolloutGateway, RolloutPhase, child};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use serde_json::json;

use super::{canary, children::PORT, servers::Wanted, stage::Stage, view::View};
use crate::{
    conditions::{Conditions, Truth},
    http_route::{
        BackendRef, GROUP, HttpRoute, HttpRouteSpec, HttpRouteStatus, ParentReference, RouteParentStatus, Rule,
    },
    metadata::Component,
};

/// The sum of the weights, which are percents.
const ALL: i32 = 100;
/// When to look again for the Gateway API. Its installation is no event of a watch.
const AGAIN: Duration = Duration::from_secs(60);

/// Returns where the spec attaches the route.
pub(super) fn gateway<'a>(view: &View<'a>) -> Option<&'a RolloutGateway> {
    view.spec().rollout.as_ref()?.gateway.as_ref()
}

/// Returns the weight of the canary. A step has its weight from when all its servers were ready, and the weight of the step before it
/// until then.
fn weight(view: &View<'_>, stage: &Stage) -> i32 {
    let (Some(held), Some(canary)) = (&view.status.rollout, &view.canary) else { return 0 };
    if !canary::answers(view, stage) || canary.counts(Wanted::exactly(0)).ready == 0 {
        return 0;
    }
    match held.phase {
        RolloutPhase::Promoting => ALL,
        RolloutPhase::Running if held.step_started.is_some() => held.step,
        RolloutPhase::Running => {
            let steps = view.spec().rollout.iter().flat_map(|rollout| &rollout.steps);
            steps.copied().filter(|step| *step < held.step).max().unwrap_or(0)
        }
        RolloutPhase::RolledBack => 0,
    }
}

/// Returns the route to create. It always names both Services, so that no step needs an order among Service and route.
pub(super) fn planned(view: &View<'_>, stage: &Stage) -> Option<HttpRoute> {
    let gateway = gateway(view).filter(|_| view.observed.gateway_api)?;
    let canary = weight(view, stage);
    let backend = |name: String, weight: i32| BackendRef {
        group: String::new(),
        kind: "Service".to_owned(),
        name,
        port: Some(PORT),
        weight,
        filters: Vec::new(),
    };
    let name = view.owner.name.as_str();
    Some(HttpRoute {
        metadata: view.owner.child(child::server(name), Component::Server, &view.observed.settings.version),
        spec: HttpRouteSpec {
            parent_refs: gateway.parent_refs.iter().map(parent).collect(),
            hostnames: gateway.hostnames.clone(),
            rules: vec![Rule {
                matches: vec![json!({"path": {"type": "PathPrefix", "value": "/"}})],
                filters: Vec::new(),
                backend_refs: vec![backend(name.to_owned(), ALL - canary), backend(child::canary(name), canary)],
            }],
        },
        status: None,
    })
}

fn parent(parent: &ParentRef) -> ParentReference {
    let ParentRef { name, namespace, section_name, port } = parent.clone();
    ParentReference { group: GROUP.to_owned(), kind: "Gateway".to_owned(), namespace, name, section_name, port }
}

/// Returns the weight of the canary in the live route, once its Gateways have accepted it.
pub(super) fn share(view: &View<'_>) -> Option<String> {
    state(view).ok()?;
    let rule = view.observed.http_route.as_ref()?.spec.rules.first()?;
    let canary = child::canary(&view.owner.name);
    let all: i32 = rule.backend_refs.iter().map(|backend| backend.weight).sum();
    let weight = rule.backend_refs.iter().find(|backend| backend.name == canary)?.weight;
    Some(format!("{weight}/{all}"))
}

/// Returns why no request reaches the canary through a Gateway.
pub(super) fn obstacle(view: &View<'_>) -> Option<String> {
    gateway(view)?;
    state(view).err().map(|obstacle| obstacle.message)
}

/// Why the route is not in effect.
struct Obstacle {
    truth: Truth,
    reason: Reason,
    message: String,
}

fn state(view: &View<'_>) -> Result<(), Obstacle> {
    let name = child::server(&view.owner.name);
    let obstacle = |truth, reason, message| Err(Obstacle { truth, reason, message });
    if !view.observed.gateway_api {
        let message = format!(
            "the cluster has no HTTPRoutes of {GROUP}/v1, or the controller may not list them: install the Gateway API, or remove \
             spec.rollout.gateway"
        );
        return obstacle(Truth::False, Reason::GatewayApiMissing, message);
    }
    let namespace = view.owner.namespace.as_str();
    let status = view.observed.http_route.as_ref().and_then(|route| route.status.as_ref());
    for wanted in gateway(view).into_iter().flat_map(|gateway| &gateway.parent_refs).map(parent) {
        let shown = format!("{}/{}", wanted.namespace.as_deref().unwrap_or(namespace), wanted.name);
        let mut answers = answers(status, &wanted, namespace).peekable();
        if answers.peek().is_none() {
            let message = format!(
                "the Gateway {shown} has not answered for the HTTPRoute {name} yet: it does not exist, or no implementation of the \
                 Gateway API is running"
            );
            return obstacle(Truth::Unknown, Reason::WaitingForGateway, message);
        }
        if let Some(refused) = answers.find_map(|answer| refusal(&answer.conditions)) {
            let message =
                format!("the Gateway {shown} refuses the HTTPRoute {name}: {}: {}", refused.reason, refused.message);
            return obstacle(Truth::False, Reason::RouteRefused, message);
        }
    }
    Ok(())
}

fn answers<'a>(
    status: Option<&'a HttpRouteStatus>,
    wanted: &'a ParentReference,
    namespace: &'a str,
) -> impl Iterator<Item = &'a RouteParentStatus> {
    let place = |parent: &'a ParentReference| parent.namespace.as_deref().unwrap_or(namespace);
    status.into_iter().flat_map(|status| &status.parents).filter(move |answer| {
        let found = &answer.parent_ref;
        let same = (&found.name, &found.section_name, found.port) == (&wanted.name, &wanted.section_name, wanted.port);
        same && place(found) == place(wanted) && answer.conditions.iter().any(|it| it.type_ == "Accepted")
    })
}

/// Returns the condition by which a Gateway refuses a route or does not find its Services.
fn refusal(conditions: &[Condition]) -> Option<&Condition> {
    conditions.iter().find(|it| matches!(it.type_.as_str(), "Accepted" | "ResolvedRefs") && it.status == "False")
}

/// Sets `RouteAccepted`.
pub(super) fn condition(view: &View<'_>, conditions: &mut Conditions<'_>) {
    const KIND: ConditionType = ConditionType::RouteAccepted;
    if gateway(view).is_none() {
        return;
    }
    match state(view) {
        Ok(()) => {
            let message = format!("every Gateway has accepted the HTTPRoute {}", child::server(&view.owner.name));
            conditions.set(KIND, true, Reason::Accepted, &message);
        }
        Err(Obstacle { truth, reason, message }) => conditions.set(KIND, truth, reason, &message),
    }
}

/// Returns when to plan again because the Gateway API may have been installed.
pub(super) fn due(view: &View<'_>) -> Option<Duration> {
    gateway(view).filter(|_| !view.observed.gateway_api).map(|_| AGAIN)
}
