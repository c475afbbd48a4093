//! Canaries that are compared: copies come from the present servers only, no server is restarted for them, and answers that differ stop a
//! canary.

use codex_crds::{AgreementStatus, ReasoningPodStatus, RolloutPhase, RolloutResult, annotation};
use codex_plan::{Plan, reasoning_pod::ObservedReasoningPod};
use codex_provenance::ModelDigest;
use codex_reports::{Comparison, LATENCY_EDGES, MirrorFile, ServingState, ShadowFile, State, Traffic};
use k8s_openapi::api::{apps::v1::Deployment, core::v1::PodTemplateSpec};
use kube::ResourceExt;
use serde_json::json;

use super::{named, phase, plan, report, trying, trying_with};
use crate::make;

/// Returns a ReasoningPod whose canary is compared, once its first step has begun.
fn compared() -> ObservedReasoningPod {
    let agreement = json!({"samplePercent": 25, "maxDivergence": "0.05"});
    let analysis = json!({"intervalSeconds": 10, "minRequests": 20, "agreement": agreement});
    let mut observed = trying_with(json!({"steps": [75, 100], "analysis": analysis}));
    for (pod, digit) in observed.pods.clone().iter().zip(["a", "b"]) {
        serving(&mut observed, &pod.uid().unwrap()).copies_key = Some(digit.repeat(64));
    }
    answer(&mut observed, 0, [(0, 0, 0); 2], 1_010);
    let begun = plan(&observed, 1_010).status;
    assert!(begun.rollout.as_ref().unwrap().step_started.is_some(), "{:?}", begun.rollout);
    observed.object.status = Some(begun);
    observed
}

/// Returns what a pod has reported.
fn serving<'a>(observed: &'a mut ObservedReasoningPod, uid: &str) -> &'a mut ServingState {
    let received = observed.reports.iter_mut().find(|received| received.report.pod_uid == uid).unwrap();
    let State::Serving(state) = &mut received.report.state else { panic!("{uid} serves nothing") };
    state
}

/// Lets each of the two servers of the canary report so many answered requests, and its copies: compared, agreed and skipped.
fn answer(observed: &mut ObservedReasoningPod, requests: u64, copies: [(u64, u64, u64); 2], second: i64) {
    let latency = vec![requests; LATENCY_EDGES.len()];
    let traffic = Traffic { requests, completed: requests, latency, ..Traffic::default() };
    report(observed, ["x", "y"].map(|name| (name, traffic.clone())), second);
    let present = observed.deployment.as_ref().unwrap().annotations();
    let model: ModelDigest = present[annotation::MODEL_DIGEST].parse().unwrap();
    for (name, (compared, agreed, skipped)) in ["x", "y"].into_iter().zip(copies) {
        let comparison = Comparison { compared, agreed, skipped, ..Comparison::of(model) };
        serving(observed, name).comparisons = vec![comparison];
    }
}

fn file(plan: &Plan<ReasoningPodStatus>, name: &str) -> Option<String> {
    plan.desired.config_maps[0].data.as_ref().unwrap().get(name).cloned()
}

fn mirrors(plan: &Plan<ReasoningPodStatus>) -> MirrorFile {
    serde_json::from_str(&file(plan, "mirror.json").unwrap()).unwrap()
}

fn accepts(plan: &Plan<ReasoningPodStatus>) -> ShadowFile {
    serde_json::from_str(&file(plan, "compare.json").unwrap()).unwrap()
}

fn template(deployment: &Deployment) -> PodTemplateSpec {
    deployment.spec.clone().unwrap().template
}

fn arguments(deployment: &Deployment) -> Vec<String> {
    template(deployment).spec.unwrap().containers[0].args.clone().unwrap()
}

#[test]
fn a_canary_gets_signed_copies_and_no_present_server_is_restarted_for_them() {
    let observed = compared();
    let planned = plan(&observed, 1_011);
    let stable = named(&planned, "codex-s-rc").unwrap();
    assert_eq!(template(stable), template(observed.deployment.as_ref().unwrap()));
    let of_canary = arguments(named(&planned, "codex-c-rc").unwrap());
    assert!(of_canary.windows(2).any(|pair| pair == ["--compare", "/etc/codex/compare.json"]), "{of_canary:?}");
    assert!(!of_canary.iter().any(|argument| argument == "--mirror"), "{of_canary:?}");

    let MirrorFile { shadows } = mirrors(&planned);
    let [target] = &shadows[..] else { panic!("{shadows:?}") };
    assert_eq!((target.url.as_str(), target.sample_percent), ("http://codex-c-rc.team.svc:8000", 25));
    let accepted = accepts(&planned);
    assert_eq!((accepted.uid.as_str(), accepted.uid.as_str()), ("pod-1/canary-1", target.uid.as_str()));
    let mut keys = accepted.keys;
    keys.sort();
    assert_eq!(keys, ["a".repeat(64), "b".repeat(64)]);
    let services = &planned.desired.services;
    let service = services.iter().find(|service| service.name_any() == "codex-c-rc").unwrap().spec.clone().unwrap();
    assert_eq!(service.selector.unwrap()["codex-ml.dev/track"], "canary");
    let egress = planned.desired.network_policies[0].spec.clone().unwrap().egress.unwrap();
    let peer = egress[2].to.as_ref().unwrap()[0].pod_selector.clone().unwrap().match_labels.unwrap();
    assert_eq!((peer["codex-ml.dev/reasoning-pod"].as_str(), peer["codex-ml.dev/track"].as_str()), ("rc", "canary"));

    // Keys outlive the controller, which keeps reports in memory, and not their pods.
    let mut restarted = observed.clone();
    restarted.reports.clear();
    assert_eq!(accepts(&plan(&restarted, 1_012)).keys.len(), 2);
    restarted.pods.truncate(1);
    assert_eq!(accepts(&plan(&restarted, 1_012)).keys.len(), 1);

    // Without admission policies the controller writes the endpoints of both Services.
    let mut unprotected = observed;
    unprotected.unprotected = Some("the policies do not exist".to_owned());
    for pod in &mut unprotected.canary_pods {
        pod.status.get_or_insert_default().pod_ips = Some(vec![make::from(json!({"ip": "10.0.0.9"}))]);
    }
    let written = plan(&unprotected, 1_012).desired.endpoint_slices;
    let of = |name: &str| written.iter().any(|slice| slice.labels()["kubernetes.io/service-name"] == name);
    assert!(of("codex-c-rc") && of("rc"), "{written:?}");
}

#[test]
fn without_the_criterion_nothing_is_copied() {
    let planned = plan(&trying(), 1_011);
    assert_eq!((mirrors(&planned).shadows, file(&planned, "compare.json")), (Vec::new(), None));
    let of_canary = arguments(named(&planned, "codex-c-rc").unwrap());
    assert!(!of_canary.iter().any(|argument| argument == "--compare"), "{of_canary:?}");
    assert_eq!(planned.desired.services.len(), 1);
    assert_eq!(planned.desired.network_policies[0].spec.clone().unwrap().egress.unwrap().len(), 2);
}

#[test]
fn a_controller_upgrade_restarts_no_canary_that_is_compared() {
    let mut observed = compared();
    let mut settings = (*make::settings()).clone();
    (settings.version, settings.worker_image) = ("0.2.0".to_owned(), "codex:next".to_owned());
    observed.settings = settings.into();
    let live = template(observed.canary.as_ref().unwrap());
    let next = |observed: &ObservedReasoningPod| template(named(&plan(observed, 1_011), "codex-c-rc").unwrap());
    assert_eq!(next(&observed), live);
    // One of a version that did not know the criterion could never be decided.
    let canary = observed.canary.as_mut().unwrap().spec.as_mut().unwrap().template.spec.as_mut().unwrap();
    canary.containers[0].args.as_mut().unwrap().retain(|argument| !argument.contains("compare"));
    let replaced = next(&observed);
    assert_eq!(replaced.spec.unwrap().containers[0].image.as_deref(), Some("codex:next"));
}

#[test]
fn a_canary_that_agrees_is_promoted_and_its_last_step_compares_nothing() {
    let mut observed = compared();
    answer(&mut observed, 30, [(20, 20, 5), (10, 10, 0)], 1_030);
    let passed = plan(&observed, 1_030).status;
    let rollout = passed.rollout.as_ref().unwrap();
    assert_eq!((rollout.phase, rollout.step), (RolloutPhase::Running, 100), "{}", rollout.reason);
    observed.object.status = Some(passed);
    let last = plan(&observed, 1_031);
    assert!(mirrors(&last).shadows.is_empty(), "at 100 the present servers answer nothing");
    assert_eq!(accepts(&last), ShadowFile::default());
    observed.object.status = Some(last.status);
    answer(&mut observed, 60, [(20, 20, 5), (10, 10, 0)], 1_050);
    let promoting = plan(&observed, 1_050).status.rollout.unwrap();
    assert_eq!(promoting.phase, RolloutPhase::Promoting, "{}", promoting.reason);
    assert_eq!(promoting.traffic.agreement, Some(AgreementStatus::default()));
}

#[test]
fn a_canary_that_answers_differently_is_rolled_back_with_the_numbers() {
    let mut observed = compared();
    answer(&mut observed, 30, [(30, 10, 4), (10, 10, 0)], 1_015);
    let failed = plan(&observed, 1_015);
    assert_eq!(phase(&failed), Some(RolloutPhase::RolledBack));
    let told = "20 of 40 requests were answered differently than by the present servers, so at least 0.3";
    let status = &failed.status;
    let rollout = status.rollout.as_ref().unwrap();
    assert!(rollout.reason.starts_with(told), "{}", rollout.reason);
    assert!(rollout.reason.ends_with("spec.rollout.analysis.agreement.maxDivergence is 0.05"), "{}", rollout.reason);
    assert_eq!(rollout.traffic.agreement, Some(AgreementStatus { compared: 40, agreed: 20, skipped: 4 }));
    assert_eq!((status.history[0].result, &status.history[0].reason), (RolloutResult::RolledBack, &rollout.reason));
    let event = failed.events.iter().find(|event| event.reason == "RolledBack").unwrap();
    assert!(event.note.contains(told), "{}", event.note);
    observed.object.status = Some(failed.status);
    assert!(mirrors(&plan(&observed, 1_016)).shadows.is_empty(), "what is stopped gets no copies");
}

#[test]
fn a_canary_with_too_few_comparisons_waits_and_says_why() {
    let waits = |observed: &ObservedReasoningPod| {
        let rollout = plan(observed, 2_000).status.rollout.unwrap();
        assert_eq!((rollout.phase, rollout.step), (RolloutPhase::Running, 75), "{}", rollout.reason);
        rollout.reason
    };
    let mut observed = compared();
    answer(&mut observed, 30, [(12, 12, 3), (7, 7, 0)], 2_000);
    assert_eq!(
        waits(&observed),
        "spec.rollout.analysis.agreement is not decided: waiting for compared requests: 19 of 20; 3 copies were not compared, because \
         the canary was busy or its tokenizer differs"
    );
    // Servers of an earlier version compare nothing.
    for name in ["x", "y"] {
        serving(&mut observed, name).comparisons.clear();
    }
    assert!(waits(&observed).ends_with("waiting for compared requests: 0 of 20"));
    // Nor do those of another model, whose comparisons say nothing about the present one.
    serving(&mut observed, "x").comparisons = vec![make::comparison(50, 0, 0)];
    assert!(waits(&observed).ends_with("waiting for compared requests: 0 of 20"));
    // Present servers of an earlier version sign no copies.
    for pod in observed.pods.clone() {
        serving(&mut observed, &pod.uid().unwrap()).copies_key = None;
    }
    observed.object.status.as_mut().unwrap().rollout.as_mut().unwrap().sources.clear();
    assert!(
        waits(&observed).ends_with("no present server has reported the key with which it signs copies of requests")
    );
}
