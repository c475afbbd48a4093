//! Rings: while the rings of run and pod differ, nothing new rolls out and servers stay; each ring has its own promotion.

use codex_crds::{ConditionType, ReasoningPod, TrainingRun, child};
use codex_tests::{
    Result, Team, objects,
    team::{SOON, condition},
    wait::until,
};
use codex_verdict::Ring;
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, Service},
};
use kube::{
    ResourceExt as _,
    api::{Patch, PatchParams},
};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn while_rings_differ_nothing_new_rolls_out_and_servers_stay() -> Result<()> {
    let team = Team::new("rings").await?;
    team.create(&objects::run("run", &[])).await?;
    team.create(&objects::evaluation("judged", "run", &team.problems)).await?;
    team.create(&objects::reasoning_pod("served", "run", "judged")).await?;
    let mut elsewhere = objects::reasoning_pod("elsewhere", "run", "judged");
    elsewhere.spec.rollout_ring = Ring::Base0B;
    team.create(&elsewhere).await?;

    let first = team.serving("served").await?.status.unwrap();
    let promotion = first.promotion.clone().unwrap();
    assert_eq!(promotion.ring, Ring::Base0A);
    let served = team.pods("codex-ml.dev/reasoning-pod", "served").await?;

    // A ReasoningPod in another ring gets no servers.
    let blocked = team.blocked("elsewhere").await?.status.unwrap();
    let told = blocked.blocked_by.join("; ");
    assert!(told.contains("0A_base_") && told.contains("0B_base_"), "{told}");
    let matched = condition(Some(&blocked.conditions), ConditionType::RingMatched).unwrap();
    assert_eq!((matched.status.as_str(), matched.reason.as_str()), ("False", "RingsDiffer"));
    assert!(team.api::<Deployment>().get_opt(&child::server("elsewhere")).await?.is_none());

    // A serving one continues while its ring is ahead of the run's.
    let ahead = json!({ "spec": { "rolloutRing": "0B_base_" } });
    team.change::<ReasoningPod>("served", ahead.clone()).await?;
    let stays = until(&team.api::<ReasoningPod>(), "served", "it says that the rings differ", SOON, |pod| {
        let status = pod.status.as_ref();
        let matched = condition(status.map(|status| &*status.conditions), ConditionType::RingMatched);
        matched.is_some_and(|it| it.status == "False" && it.observed_generation == pod.metadata.generation)
    })
    .await?;
    let status = stays.status.unwrap();
    assert_eq!((status.ready_replicas, &status.promotion), (Some(1), &Some(promotion.clone())));
    assert!(!status.blocked_by.is_empty());
    let now = team.pods("codex-ml.dev/reasoning-pod", "served").await?;
    assert_eq!(uids(&now), uids(&served), "the same pods serve");
    team.infer("served", "1+1:").await?;

    // A foreign change of its Deployment is reverted, and it continues to serve.
    let server = child::server("served");
    let before = team.api::<Deployment>().get(&server).await?.spec.unwrap().template;
    let env = json!([{ "name": "server", "env": [{ "name": "FOREIGN", "value": "1" }] }]);
    let foreign = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": server },
        "spec": { "template": { "spec": { "containers": env } } },
    });
    let apply = PatchParams::apply("somebody");
    let changed = team.api::<Deployment>().patch(&server, &apply, &Patch::Apply(foreign)).await?;
    assert_ne!(changed.spec.unwrap().template.spec, before.spec);
    until(&team.api::<Deployment>(), &server, "its template is what it was", SOON, |deployment| {
        deployment.spec.as_ref().is_some_and(|spec| spec.template.spec == before.spec)
    })
    .await?;
    assert_eq!(team.api::<ReasoningPod>().get("served").await?.status.unwrap().promotion, Some(promotion.clone()));
    team.infer("served", "1+1:").await?;

    // A pause, a removed label and another selector of its Service are reverted, and neither object is recreated.
    let service = team.api::<Service>().get("served").await?;
    let label = "app.kubernetes.io/managed-by";
    let paused = json!({ "metadata": { "labels": { label: null } }, "spec": { "paused": true } });
    let paused = team.change::<Deployment>(&server, paused).await?;
    let back = until(&team.api::<Deployment>(), &server, "it has its label and is not paused", SOON, |deployment| {
        let pauses = deployment.spec.as_ref().and_then(|spec| spec.paused) == Some(true);
        deployment.labels().contains_key(label) && !pauses
    })
    .await?;
    assert_eq!(back.uid(), paused.uid());
    let led = team.change::<Service>("served", json!({ "spec": { "selector": { "elsewhere": "yes" } } })).await?;
    assert_eq!(led.uid(), service.uid(), "it was not recreated");
    until(&team.api::<Service>(), "served", "it selects the servers again", SOON, |live| {
        live.spec.as_ref().unwrap().selector == service.spec.as_ref().unwrap().selector
    })
    .await?;
    team.infer("served", "1+1:").await?;

    // With the run in the same ring, it gets a new promotion and rolls out; the old promotion is kept.
    let model = team.api::<TrainingRun>().get("run").await?.status.unwrap().model.unwrap().digest;
    team.change::<TrainingRun>("run", ahead).await?;
    let advanced = until(&team.api::<ReasoningPod>(), "served", "it serves in the next ring", SOON, |pod| {
        let status = pod.status.as_ref();
        let ring = status.and_then(|status| status.promotion.as_ref()).map(|promotion| promotion.ring);
        let ready = condition(status.map(|status| &*status.conditions), ConditionType::Ready);
        ring == Some(Ring::Base0B) && ready.is_some_and(|ready| ready.status == "True")
    })
    .await?;
    let status = advanced.status.unwrap();
    assert_ne!(status.promotion.as_ref().unwrap().digest, promotion.digest);
    assert_eq!(status.manifest, first.manifest, "a ring is no part of the signature");
    team.api::<ConfigMap>().get(&promotion.bundle).await?;
    let now = team.pods("codex-ml.dev/reasoning-pod", "served").await?;
    assert!(now.iter().any(|pod| !uids(&served).contains(&pod.uid())), "new pods serve");
    assert_eq!(team.infer("served", "1+1:").await?["model_digest"], json!(model));

    // The blocked one now starts without help.
    team.serving("elsewhere").await?;
    let run = team.api::<TrainingRun>().get("run").await?.status.unwrap();
    assert_eq!(
        (run.work.attempts, run.model.unwrap().digest),
        (Some(1), model),
        "moving to the next ring does not retrain"
    );
    team.done();
    Ok(())
}

fn uids(pods: &[k8s_openapi::api::core::v1::Pod]) -> Vec<Option<String>> {
    pods.iter().map(kube::ResourceExt::uid).collect()
}
