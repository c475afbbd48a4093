//! Canaries: decisions are recorded before they are carried out, and nothing unproved replaces the servers.

mod agreement;

use codex_crds::{ConditionType, ReasoningPodStatus, RolloutPhase, RolloutResult, annotation};
use codex_plan::{
    Plan, Received,
    conditions::find,
    reasoning_pod::{self, Bundle, ObservedReasoningPod},
};
use codex_provenance::{ModelDigest, PromotionDigest, Sha256};
use codex_reports::{Kind, LATENCY_EDGES, Rejected, ServingState, Stage, State, Times, Traffic};
use codex_verdict::policy::Denied;
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod, discovery::v1::EndpointSlice};
use kube::ResourceExt;
use serde_json::{Value, json};

use crate::{make, policies::denying, properties::busy};

fn plan(observed: &ObservedReasoningPod, second: i64) -> Plan<ReasoningPodStatus> {
    reasoning_pod::plan(observed, make::at(second))
}

fn named<'a>(plan: &'a Plan<ReasoningPodStatus>, name: &str) -> Option<&'a Deployment> {
    plan.desired.deployments.iter().find(|deployment| deployment.name_any() == name)
}

fn promotion(deployment: &Deployment) -> String {
    deployment.annotations()[annotation::PROMOTION_DIGEST].clone()
}

fn phase(plan: &Plan<ReasoningPodStatus>) -> Option<RolloutPhase> {
    plan.status.rollout.as_ref().map(|rollout| rollout.phase)
}

/// Returns a ReasoningPod whose two servers serve while the canary of another promotion has begun.
pub(crate) fn trying() -> ObservedReasoningPod {
    let analysis = json!({"intervalSeconds": 10, "minRequests": 5, "maxP95Seconds": "0.7"});
    trying_with(json!({"steps": [100], "analysis": analysis}))
}

/// Returns one with this `spec.rollout`, whose first step has two servers.
fn trying_with(rollout: Value) -> ObservedReasoningPod {
    let mut observed = busy().observed_pod();
    observed.object.spec.rollout = Some(make::from(rollout));
    let Bundle::Valid(promotion) = &mut observed.promotion else { panic!("{:?}", observed.promotion) };
    promotion.digest = PromotionDigest(Sha256::of("next"));
    let begun = plan(&observed, 1_000);
    assert_eq!(phase(&begun), Some(RolloutPhase::Running));
    assert!(named(&begun, "codex-c-rc").is_none(), "the canary is recorded before it starts");
    observed.object.status = Some(begun.status);
    observed.canary = named(&plan(&observed, 1_001), "codex-c-rc").cloned();
    assert!(observed.canary.is_some());
    observed
}

/// Lets the two servers of the canary be ready and report so many requests and errors, all of the first one. They do not know what servers
/// of later versions report.
pub(crate) fn answer(observed: &mut ObservedReasoningPod, requests: u64, errors: u64, second: i64) {
    let completed = requests - errors;
    let latency = vec![completed; LATENCY_EDGES.len()];
    let traffic = Traffic { requests, errors, completed, latency, ..Traffic::default() };
    let idle = Traffic { latency: vec![0; LATENCY_EDGES.len()], ..Traffic::default() };
    report(observed, [("x", traffic), ("y", idle)], second);
}

/// Lets the two servers of the canary be ready and report their traffic.
fn report(observed: &mut ObservedReasoningPod, traffic: [(&str, Traffic); 2], second: i64) {
    let canary = observed.canary.as_mut().unwrap();
    canary.metadata.generation = Some(1);
    canary.status = Some(make::from(json!({
        "observedGeneration": 1, "replicas": 2, "updatedReplicas": 2, "readyReplicas": 2,
    })));
    let annotations = canary.annotations().clone();
    for (name, traffic) in traffic {
        let state = json!({"running": {"startedAt": make::at(1_002)}});
        let status = json!({"containerStatuses": [{
            "name": "server", "image": "codex:dev", "imageID": "", "ready": true, "restartCount": 0, "state": state,
        }]});
        let pod: Pod = make::from(json!({
            "metadata": {"name": name, "uid": name, "namespace": "team", "annotations": annotations}, "status": status,
        }));
        observed.canary_pods.retain(|known| known.name_any() != name);
        observed.canary_pods.push(pod);
        let state = State::Serving(ServingState {
            stage: Stage::Running,
            verified: annotations[annotation::MODEL_DIGEST].parse().ok(),
            promotion: annotations[annotation::PROMOTION_DIGEST].parse().ok(),
            traffic: Some(traffic),
            ..ServingState::default()
        });
        let report = make::report(Kind::ReasoningPod, "pod-1", name, second.unsigned_abs(), None, state);
        observed.reports.retain(|known| known.pod != name);
        observed.reports.push(Received { report, pod: name.to_owned(), at: make::at(second), contradiction: None });
    }
}

#[test]
fn a_rollout_that_is_added_together_with_other_settings_begins_with_a_canary() {
    let mut observed = busy().observed_pod();
    assert!(observed.object.spec.rollout.is_none());
    let made = named(&plan(&observed, 1_000), "codex-s-rc").unwrap().annotations().clone();
    let live = observed.deployment.as_mut().unwrap();
    live.metadata.annotations.get_or_insert_default().extend(made);
    observed.object.spec.rollout = Some(make::from(json!({})));
    assert_eq!(phase(&plan(&observed, 1_001)), None, "the servers are already what the spec asks for");
    for settings in [json!({"rateLimit": "5/60s"}), json!({"maxNumSeqs": 16}), json!({"device": "cpu"})] {
        observed.object.spec.serving = make::from(settings);
        assert_eq!(phase(&plan(&observed, 1_002)), Some(RolloutPhase::Running));
    }
}

#[test]
fn a_canary_that_failed_is_stopped_once_that_is_recorded_and_not_tried_again() {
    let mut observed = trying();
    let former = promotion(observed.deployment.as_ref().unwrap());
    answer(&mut observed, 100, 60, 1_010);
    let failed = plan(&observed, 1_010);
    assert_eq!(phase(&failed), Some(RolloutPhase::RolledBack));
    assert!(named(&failed, "codex-c-rc").is_some(), "the failure is recorded before the canary is stopped");
    assert!(failed.events.iter().any(|event| event.reason == "RolledBack"), "{:?}", failed.events);
    assert!(failed.status.blocked_by[0].contains("60 of 100 requests failed"), "{:?}", failed.status.blocked_by);
    observed.object.status = Some(failed.status);
    for restarted in [false, true] {
        if restarted {
            observed.reports.clear();
            (observed.canary, observed.status_written_at) = (None, None);
            observed.canary_pods.clear();
        }
        let stays = plan(&observed, 1_020);
        // Its Deployment is deleted once its pods are gone.
        let left = named(&stays, "codex-c-rc").map(|canary| canary.spec.as_ref().unwrap().replicas);
        assert_eq!(left, (!restarted).then_some(Some(0)));
        assert_eq!(promotion(named(&stays, "codex-s-rc").unwrap()), former);
        assert_eq!(find(&stays.status.conditions, ConditionType::Stalled).unwrap().reason, "RolledBack");
        assert_eq!(stays.status.history.len(), 1);
        assert!(stays.events.is_empty(), "{:?}", stays.events);
    }
    observed.object.spec.rollout.as_mut().unwrap().analysis.max_error_rate = "1".to_owned();
    let again = plan(&observed, 1_030).status;
    assert_eq!(again.rollout.map(|rollout| (rollout.phase, rollout.revision)), Some((RolloutPhase::Running, 2)));
    assert_eq!(again.history[0].result, RolloutResult::RolledBack);
}

#[test]
fn servers_are_replaced_once_the_promotion_is_recorded() {
    let mut observed = trying();
    let former = promotion(observed.deployment.as_ref().unwrap());
    answer(&mut observed, 3, 0, 1_010);
    let started = plan(&observed, 1_010);
    let rollout = started.status.rollout.clone().unwrap();
    assert!(rollout.step_started.is_some() && rollout.verified.is_some(), "{rollout:?}");
    assert_eq!(rollout.reason, "waiting for requests: 3 of 5");
    let selector = |plan: &Plan<ReasoningPodStatus>| plan.desired.services[0].spec.clone().unwrap().selector.unwrap();
    assert_eq!(selector(&started)["codex-ml.dev/track"], "canary", "at the last step it answers alone");
    observed.object.status = Some(started.status);
    answer(&mut observed, 9, 0, 1_015);
    let early = plan(&observed, 1_015);
    assert_eq!(phase(&early), Some(RolloutPhase::Running), "the step lasts for 10 s");
    observed.object.status = Some(early.status);
    let passed = plan(&observed, 1_030);
    assert_eq!(phase(&passed), Some(RolloutPhase::Promoting));
    assert_eq!(promotion(named(&passed, "codex-s-rc").unwrap()), former, "the promotion is recorded first");
    observed.object.status = Some(passed.status);
    let replaces = plan(&observed, 1_031);
    assert_ne!(promotion(named(&replaces, "codex-s-rc").unwrap()), former);
    assert!(named(&replaces, "codex-c-rc").is_some(), "the canary answers until the servers are replaced");
    assert_eq!(selector(&replaces)["codex-ml.dev/track"], "canary");
}

/// What a server of a canary reports after so many answered requests, of which each criterion of [`limited`] holds so many against it.
fn analysed(requests: u64, refused: u64, late: u64, sluggish: u64) -> Traffic {
    let times = |slow: u64| Some(Times { responses: requests, within: vec![requests - slow; 13] });
    Traffic {
        requests,
        completed: requests,
        latency: vec![requests; LATENCY_EDGES.len()],
        rejected: Some(Rejected { keys: 0, prompts: refused, answers: 0 }),
        first_token: times(late),
        inter_token: times(sluggish),
        ..Traffic::default()
    }
}

/// Returns a ReasoningPod whose canary has every criterion, once its step has begun.
fn limited() -> ObservedReasoningPod {
    let mut observed = trying();
    let analysis = json!({
        "intervalSeconds": 10, "minRequests": 20,
        "maxRefusalRate": "0.1", "maxFirstTokenSeconds": "0.5", "maxInterTokenSeconds": "0.05",
    });
    observed.object.spec.rollout.as_mut().unwrap().analysis = make::from(analysis);
    observed.object.status = Some(plan(&observed, 1_003).status);
    report(&mut observed, ["x", "y"].map(|name| (name, analysed(0, 0, 0, 0))), 1_010);
    let begun = plan(&observed, 1_010).status;
    assert!(begun.rollout.as_ref().unwrap().step_started.is_some(), "{:?}", begun.rollout);
    observed.object.status = Some(begun);
    observed
}

#[test]
fn each_criterion_fails_a_canary_and_says_so() {
    for (traffic, told) in [
        (analysed(30, 15, 0, 0), "15 of 60 requests were refused"),
        (
            analysed(30, 0, 15, 0),
            "15 of 45 responses had their first token later than spec.rollout.analysis.maxFirstTokenSeconds",
        ),
        (
            analysed(30, 0, 0, 15),
            "15 of 45 responses took longer between tokens than spec.rollout.analysis.maxInterTokenSeconds",
        ),
    ] {
        let mut observed = limited();
        report(&mut observed, [("x", traffic), ("y", analysed(15, 0, 0, 0))], 1_015);
        let failed = plan(&observed, 1_015).status;
        let rollout = failed.rollout.unwrap();
        assert_eq!(rollout.phase, RolloutPhase::RolledBack, "{rollout:?}");
        assert!(rollout.reason.starts_with(told), "{}: {told}", rollout.reason);
        assert_eq!(failed.history[0].result, RolloutResult::RolledBack);
        assert_eq!(failed.history[0].reason, rollout.reason);
    }
}

#[test]
fn a_canary_within_every_criterion_is_promoted() {
    let mut observed = limited();
    // A twentieth of them may be slow, and a tenth may be refused.
    report(&mut observed, [("x", analysed(50, 5, 3, 3)), ("y", analysed(50, 5, 2, 2))], 1_030);
    let passed = plan(&observed, 1_030).status.rollout.unwrap();
    assert_eq!(passed.phase, RolloutPhase::Promoting, "{}", passed.reason);
    let traffic = passed.traffic;
    assert_eq!((traffic.requests, traffic.rejected.map(|it| it.before)), (100, Some(10)));
    assert_eq!(traffic.first_token.map(|it| (it.responses, it.slow)), Some((100, 5)));
}

#[test]
fn a_criterion_that_is_not_decided_keeps_a_canary_at_its_step() {
    let undecided = |change: &dyn Fn(&mut Traffic)| {
        let mut observed = limited();
        let mut traffic = analysed(50, 0, 0, 0);
        change(&mut traffic);
        report(&mut observed, [("x", traffic), ("y", analysed(0, 0, 0, 0))], 2_000);
        let waits = plan(&observed, 2_000).status.rollout.unwrap();
        assert_eq!(waits.phase, RolloutPhase::Running, "{}", waits.reason);
        waits.reason
    };
    // Servers of an earlier version do not report the numbers.
    for (field, change) in [
        ("maxRefusalRate", (|it: &mut Traffic| it.rejected = None) as fn(&mut Traffic)),
        ("maxFirstTokenSeconds", |it| it.first_token = None),
        ("maxInterTokenSeconds", |it| it.inter_token = None),
    ] {
        let why = undecided(&change);
        let told = format!("spec.rollout.analysis.{field} is not decided: servers of the canary do not report ");
        assert!(why.starts_with(&told), "{why}");
    }
    // Fewer responses than minRequests say little.
    let few = Some(Times { responses: 7, within: vec![7; 13] });
    let why = undecided(&|it| it.inter_token.clone_from(&few));
    assert!(why.ends_with("waiting for responses of two tokens or more: 7 of 20"), "{why}");
    let why = undecided(&|it| it.first_token.clone_from(&few));
    assert!(why.ends_with("waiting for responses with a first token: 7 of 20"), "{why}");
}

#[test]
fn a_deleted_deployment_comes_back_with_the_former_model() {
    let mut observed = trying();
    let former = promotion(observed.deployment.as_ref().unwrap());
    observed.deployment = None;
    observed.pods.clear();
    let restored = plan(&observed, 1_010);
    assert_eq!(promotion(named(&restored, "codex-s-rc").unwrap()), former);
    assert_eq!(phase(&restored), Some(RolloutPhase::Running));
}

#[test]
fn with_a_gateway_the_service_of_the_servers_leaves_the_canary_out() {
    let mut observed = trying();
    let gateway = json!({"parentRefs": [{"name": "public"}]});
    observed.object.spec.rollout.as_mut().unwrap().gateway = Some(make::from(gateway));
    observed.gateway_api = true;
    observed.object.status = Some(plan(&observed, 1_003).status);
    let labels = |pods: &mut Vec<Pod>, hash: &str| {
        for pod in pods {
            pod.labels_mut().insert("pod-template-hash".to_owned(), hash.to_owned());
        }
    };
    labels(&mut observed.pods, "5d8f");
    answer(&mut observed, 0, 0, 1_010);
    let service = |plan: &Plan<ReasoningPodStatus>, name: &str| {
        let found = plan.desired.services.iter().find(|service| service.name_any() == name);
        found.map(|service| service.spec.clone().unwrap().selector)
    };
    let begun = plan(&observed, 1_010);
    assert_eq!(service(&begun, "rc").unwrap().unwrap()["pod-template-hash"], "5d8f");
    assert_eq!(service(&begun, "codex-c-rc").unwrap().unwrap()["codex-ml.dev/track"], "canary");
    let weights = |plan: &Plan<ReasoningPodStatus>| -> Vec<(String, i32)> {
        let backends = &plan.desired.http_routes[0].spec.rules[0].backend_refs;
        backends.iter().map(|backend| (backend.name.clone(), backend.weight)).collect()
    };
    let all = |servers, canary| vec![("rc".to_owned(), servers), ("codex-c-rc".to_owned(), canary)];
    assert_eq!(weights(&begun), all(100, 0), "no Gateway has accepted the route, so the step has not begun");

    // Without admission policies the controller writes the endpoints of both Services.
    observed.unprotected = Some("the policies do not exist".to_owned());
    let written = plan(&observed, 1_010);
    let addresses = |service: &str| -> Vec<String> {
        let of = |slice: &&EndpointSlice| slice.labels()["kubernetes.io/service-name"] == service;
        let slices = written.desired.endpoint_slices.iter().filter(of);
        slices.flat_map(|slice| &slice.endpoints).filter_map(|it| it.target_ref.as_ref()?.name.clone()).collect()
    };
    assert_eq!(service(&written, "rc"), Some(None));
    assert!(!addresses("rc").contains(&"x".to_owned()) && !addresses("codex-c-rc").contains(&"a".to_owned()));

    // A server that a restart of the same template makes has another hash, so the Service selects all servers.
    observed.unprotected = None;
    let mut restarted = observed.pods.clone();
    labels(&mut restarted, "9b1e");
    observed.pods.extend(restarted);
    assert!(!service(&plan(&observed, 1_010), "rc").unwrap().unwrap().contains_key("pod-template-hash"));
    observed.pods.retain(|pod| pod.labels()["pod-template-hash"] == "5d8f");
    // So has a ready server of a former template.
    observed.former_pods = observed.pods.clone();
    labels(&mut observed.former_pods, "7c9a");
    assert!(!service(&plan(&observed, 1_010), "rc").unwrap().unwrap().contains_key("pod-template-hash"));
    // A canary without servers gets nothing, whatever its step.
    observed.object.spec.rollout.as_mut().unwrap().gateway.as_mut().unwrap().hostnames = vec!["a.example".to_owned()];
    let other = plan(&observed, 1_011);
    assert_eq!(weights(&other), all(100, 0));
    assert_eq!(other.desired.http_routes[0].spec.hostnames, ["a.example"]);
}

#[test]
fn a_denied_canary_goes_and_the_servers_stay() {
    let mut observed = trying();
    let denied = ModelDigest(Sha256::of("denied"));
    assert!(named(&plan(&observed, 1_010), "codex-c-rc").is_some());
    let canary = observed.canary.as_mut().unwrap();
    canary.metadata.annotations.as_mut().unwrap().insert(annotation::MODEL_DIGEST.to_owned(), denied.to_string());
    observed.policies = denying(Denied { models: vec![denied], ..Denied::default() });
    let drained = plan(&observed, 1_010);
    assert!(named(&drained, "codex-c-rc").is_none());
    assert_eq!(named(&drained, "codex-s-rc").unwrap().spec.as_ref().unwrap().replicas, Some(2));
}

#[test]
fn without_a_ready_server_the_servers_are_replaced_at_once() {
    let mut observed = trying();
    observed.object.status.as_mut().unwrap().rollout = None;
    observed.deployment.as_mut().unwrap().status.as_mut().unwrap().ready_replicas = None;
    let direct = plan(&observed, 1_010);
    assert_eq!(direct.desired.deployments.len(), 1);
    assert_eq!(promotion(&direct.desired.deployments[0]), PromotionDigest(Sha256::of("next")).to_string());
    assert_eq!(direct.status.rollout, None);
}
