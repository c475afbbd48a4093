//! Canaries: one that fails is stopped by itself while the servers stay, and one that answers well and as they do replaces them.

use std::{convert::Infallible, time::Duration};

use codex_crds::{ConditionType, ReasoningPod, RolloutPhase, RolloutResult, child, label};
use codex_tests::{
    Result, Team, objects,
    team::{SOON, condition},
    wait::{until, until_found, until_gone},
};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, Pod},
};
use kube::ResourceExt as _;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::load::{self, Kind, Load};

/// The time until the kubelet has updated a mounted ConfigMap and enough requests have failed.
const BROKEN: Duration = Duration::from_secs(240);
/// The time until the kubelet has updated a mounted ConfigMap and enough requests were compared and answered.
const COMPARED: Duration = Duration::from_secs(300);
/// The ConfigMap with safety rules.
const RULES: &str = "rules";

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_that_fails_is_stopped_by_itself_and_one_that_passes_is_promoted() -> Result<()> {
    let team = Team::new("canary").await?;
    team.create(&objects::run("learns", &[])).await?;
    team.create(&objects::evaluation("judged", "learns", &team.problems)).await?;
    let mut pod = objects::reasoning_pod("served", "learns", "judged");
    // It would run for an hour, but for its errors.
    let analysis = json!({ "intervalSeconds": 3600, "minRequests": 20, "maxErrorRate": "0.1" });
    pod.spec.rollout = Some(serde_json::from_value(json!({ "steps": [100], "analysis": analysis })).unwrap());
    team.create(&pod).await?;
    team.trained("learns").await?;
    team.serving("served").await?;
    let stable = uids(&team).await?;

    // Other settings are tried by a canary, beside the servers.
    let rules = |text: &str| json!({ "data": { "rules.yaml": text } });
    let mut config_map = rules("rules: [{ id: blocked, action: block, literal: never }]");
    config_map["metadata"] = json!({ "name": RULES });
    team.create(&serde_json::from_value::<ConfigMap>(config_map).unwrap()).await?;
    let settings = json!({ "spec": { "serving": { "safety": { "configMap": RULES } } } });
    team.change::<ReasoningPod>("served", settings).await?;
    let running = until(&team.api::<ReasoningPod>(), "served", "its canary is ready", SOON, |pod| {
        let rollout = pod.status.as_ref().and_then(|status| status.rollout.as_ref());
        rollout.is_some_and(|rollout| rollout.phase == RolloutPhase::Running && rollout.step_started.is_some())
    })
    .await?;
    let status = running.status.unwrap();
    let rollout = status.rollout.unwrap();
    assert_eq!((rollout.step, rollout.of.as_str()), (100, "1/1"));
    assert_eq!(rollout.verified.map(|verified| verified.digest), Some(rollout.canary_digest));
    assert_eq!(status.ready.as_deref(), Some("1/1"), "the servers stay");
    let canary = condition(Some(&status.conditions), ConditionType::Canary).unwrap();
    assert_eq!((canary.status.as_str(), canary.reason.as_str()), ("True", "CanaryRunning"));

    // Its requests fail once its rules are broken: no text is admitted without a check.
    let load = load::address(&team, "served").await?.map(Load::start);
    team.change::<ConfigMap>(RULES, rules("rules: [")).await?;
    let failed = tokio::select! {
        failed = rolled_back(&team) => failed?,
        never = ask(&team) => match never {},
    };
    let decided = Instant::now();
    let status = failed.status.unwrap();
    let rollout = status.rollout.unwrap();
    assert!(rollout.traffic.errors >= 1 && rollout.traffic.errors <= rollout.traffic.requests, "{rollout:?}");
    assert!(rollout.reason.contains("requests failed") && rollout.reason.contains("maxErrorRate"), "{rollout:?}");
    assert_eq!((status.history.len(), status.history[0].result), (1, RolloutResult::RolledBack));
    let stalled = condition(Some(&status.conditions), ConditionType::Stalled).unwrap();
    assert_eq!(stalled.reason, "RolledBack");
    until_gone(&team.api::<Deployment>(), &child::canary("served"), SOON).await?;
    if let Some(load) = load {
        tell_last_answer(load, decided).await;
    }
    team.infer("served", "1+1:").await?;
    assert_eq!(uids(&team).await?, stable, "the same servers answer");

    // It is not tried again, also when the servers are scaled; and going back is no rollout.
    team.change::<ReasoningPod>("served", json!({ "spec": { "replicas": 2 } })).await?;
    let scaled = until(&team.api::<ReasoningPod>(), "served", "two servers are ready", SOON, |pod| {
        pod.status.as_ref().is_some_and(|status| status.ready.as_deref() == Some("2/2"))
    })
    .await?;
    let rollout = scaled.status.and_then(|status| status.rollout);
    assert_eq!(rollout.map(|rollout| rollout.phase), Some(RolloutPhase::RolledBack));
    assert!(team.api::<Deployment>().get_opt(&child::canary("served")).await?.is_none());
    team.change::<ReasoningPod>("served", json!({ "spec": { "replicas": 1, "serving": { "safety": null } } })).await?;
    let back = team.serving("served").await?.status.unwrap();
    assert_eq!((back.rollout, back.history.len()), (None, 1));
    let stable = uids(&team).await?;

    // A canary that answers well, and as the servers do, replaces them.
    let agreement = json!({ "samplePercent": 100, "maxDivergence": "0.01" });
    let analysis = json!({ "intervalSeconds": 1, "minRequests": 5, "agreement": agreement });
    let rollout = json!({ "steps": [50, 100], "analysis": analysis });
    let better = json!({ "spec": { "serving": { "rateLimit": "100000/60s" }, "rollout": rollout } });
    team.change::<ReasoningPod>("served", better).await?;
    // Its first step does not end before copies were compared.
    let promoted = until_found("the canary was promoted", COMPARED, async || {
        let _ = team.infer("served", "1+1:").await;
        let pod = team.api::<ReasoningPod>().get("served").await?;
        let first = pod.status.as_ref().and_then(|status| status.history.first());
        Ok(first.is_some_and(|first| first.result == RolloutResult::Promoted).then_some(pod))
    })
    .await?;
    assert_eq!(promoted.status.unwrap().history.len(), 2);
    team.serving("served").await?;
    until_gone(&team.api::<Deployment>(), &child::canary("served"), SOON).await?;
    let deployment = team.api::<Deployment>().get(&child::server("served")).await?;
    let arguments = serde_json::to_value(&deployment.spec.unwrap().template.spec.unwrap().containers[0].args).unwrap();
    let holds = |argument: &str| arguments.as_array().unwrap().contains(&Value::from(argument));
    assert!(holds("--rate-limit") && !holds("--report-traffic") && !holds("--compare"), "{arguments}");
    let now = uids(&team).await?;
    assert!(now.iter().all(|uid| !stable.contains(uid)), "new servers answer");
    team.done();
    Ok(())
}

/// Waits until the canary was rolled back.
async fn rolled_back(team: &Team) -> Result<ReasoningPod> {
    until(&team.api::<ReasoningPod>(), "served", "the canary was rolled back", BROKEN, |pod| {
        let rollout = pod.status.as_ref().and_then(|status| status.rollout.as_ref());
        rollout.is_some_and(|rollout| rollout.phase == RolloutPhase::RolledBack)
    })
    .await
}

/// Sends requests one after another, forever.
async fn ask(team: &Team) -> Infallible {
    loop {
        let _ = team.infer("served", "1+1:").await;
        sleep(Duration::from_millis(100)).await;
    }
}

/// Ends a load under which a canary was rolled back, and prints when the canary answered last: it fails every request that reaches it, and
/// the servers fail none.
async fn tell_last_answer(load: Load, decided: Instant) {
    // What a slow client began to send before does not count.
    let sent: Vec<_> = load.end().await.into_iter().filter(|request| request.kind != Kind::Slow).collect();
    let by_canary = sent.iter().filter(|request| request.lost.is_some()).map(|request| request.ended);
    let Some(last) = by_canary.max() else { panic!("the canary failed no request") };
    let after = sent.iter().filter(|request| request.ended > last).count();
    assert!(after > 0, "the servers answer after the canary");
    let delay = last.saturating_duration_since(decided);
    println!("rollback: decision -> last old answer {:.2} s; then {after} requests, 0 lost", delay.as_secs_f64());
}

/// Returns the uids of the servers that are no canary.
async fn uids(team: &Team) -> Result<Vec<String>> {
    let servers = team.pods(label::REASONING_POD, "served").await?;
    let stays = |pod: &Pod| !pod.labels().contains_key(label::TRACK) && pod.metadata.deletion_timestamp.is_none();
    Ok(servers.into_iter().filter(stays).filter_map(|pod| pod.uid()).collect())
}
