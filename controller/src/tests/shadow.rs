//! Shadows: the incumbent's ConfigMap names them, and they accept the keys that its pods have reported.

use codex_crds::ReasoningPod;
use codex_plan::Received;
use serde_json::{Value, json};

use super::{
    reasoning_pod::{TEAM, bundles, judged, pod, settle},
    world::{World, path},
};

/// Returns a file in the ConfigMap of a ReasoningPod's servers.
fn file(world: &World, pod: &str, name: &str) -> Value {
    let config_map = world.api.object(&format!("/api/v1{TEAM}/configmaps/codex-s-{pod}")).unwrap();
    serde_json::from_str(config_map["data"][name].as_str().unwrap()).unwrap()
}

#[tokio::test]
async fn a_shadow_and_its_incumbent_learn_of_each_other() {
    let world = judged(600).await;
    world.api.put(&path("reasoningpods", "p"), pod(false));
    settle::<ReasoningPod>(&world, "p").await;
    assert_eq!(file(&world, "p", "mirror.json"), json!({"shadows": []}));
    let template = |name: &str| {
        let live = world.api.object(&format!("/apis/apps/v1{TEAM}/deployments/codex-s-{name}")).unwrap();
        live["spec"]["template"].clone()
    };
    let before = template("p");
    // The API server sets the time at which the promotion was recorded.
    let status = world.api.object(&path("reasoningpods", "p")).unwrap()["status"].clone();
    let bundle = format!("/api/v1{TEAM}/configmaps/{}", status["promotion"]["bundle"].as_str().unwrap());
    let mut promotion = world.api.object(&bundle).unwrap();
    promotion["metadata"]["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
    world.api.put(&bundle, promotion);

    let mut shadow = pod(false);
    shadow["metadata"] = json!({"name": "next", "uid": "next-uid"});
    shadow["spec"]["shadow"] = json!({"of": "p", "samplePercent": 10, "maxDivergence": "0.01"});
    world.api.put(&path("reasoningpods", "next"), shadow);
    settle::<ReasoningPod>(&world, "next").await;
    let shown = world.api.object(&path("reasoningpods", "next")).unwrap()["status"].clone();
    assert_eq!(shown["promotion"], status["promotion"], "it runs on what is recorded, and gets no promotion");
    settle::<ReasoningPod>(&world, "p").await;
    let target = json!({"uid": "next-uid", "url": "http://next.team.svc:8000", "samplePercent": 10});
    assert_eq!(file(&world, "p", "mirror.json"), json!({"shadows": [target]}));
    assert_eq!(template("p"), before, "it is not restarted");
    assert_eq!(file(&world, "next", "shadow.json"), json!({"uid": "next-uid", "keys": []}));

    // A server of the incumbent reports the key of its copies.
    let labels = json!({"app.kubernetes.io/managed-by": "codex-controller", "codex-ml.dev/reasoning-pod": "p"});
    let owner = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "r-uid", "controller": true});
    world.api.put(
        &format!("/api/v1{TEAM}/pods/x"),
        json!({
            "apiVersion": "v1", "kind": "Pod", "spec": {"containers": []},
            "metadata": {"name": "x", "uid": "x-uid", "labels": labels, "ownerReferences": [owner]},
        }),
    );
    let says = |pod: &str, key: &str| {
        let report = json!({
            "schemaVersion": 1, "kind": "ReasoningPod", "namespace": "team", "name": "p", "objectUid": "p-uid",
            "podUid": pod, "attempt": 1, "seq": 9, "state": {"serving": {"stage": "Running", "copiesKey": key}},
        });
        let report = serde_json::from_value(report).unwrap();
        let received = Received { report, pod: pod.to_owned(), at: world.context.now(), contradiction: None };
        world.context.inbox.offer(received);
    };
    let key = "a".repeat(64);
    says("x-uid", &key);
    says("gone-uid", &"b".repeat(64));
    settle::<ReasoningPod>(&world, "next").await;
    assert_eq!(file(&world, "next", "shadow.json")["keys"], json!([key]), "the other pod does not exist");
    let status = world.api.object(&path("reasoningpods", "next")).unwrap()["status"].clone();
    assert_eq!(status["shadow"]["sources"], json!([{"pod": "x-uid", "key": key}]));
}

#[tokio::test]
async fn a_shadow_runs_on_the_promotion_of_the_ring_before_with_the_signature_that_it_names() {
    let world = judged(600).await;
    let ring = |name: &str| {
        let mut run = world.api.object(&path("trainingruns", "a")).unwrap();
        run["spec"]["rolloutRing"] = json!(name);
        world.api.put(&path("trainingruns", "a"), run);
    };
    ring("0C_base_");
    let mut earlier = pod(false);
    earlier["spec"]["rolloutRing"] = json!("0C_base_");
    world.api.put(&path("reasoningpods", "p"), earlier);
    settle::<ReasoningPod>(&world, "p").await;
    let promoted = world.api.object(&path("reasoningpods", "p")).unwrap()["status"].clone();
    ring("0D_base_");
    let mut shadow = pod(false);
    shadow["metadata"] = json!({"name": "next", "uid": "next-uid"});
    shadow["spec"]["shadow"] = json!({"of": "p", "samplePercent": 10, "maxDivergence": "0.01"});
    world.api.put(&path("reasoningpods", "next"), shadow);
    let before = bundles(&world);
    settle::<ReasoningPod>(&world, "next").await;
    let status = || world.api.object(&path("reasoningpods", "next")).unwrap()["status"].clone();
    assert!(status()["blockedBy"][0].as_str().unwrap().contains("has no recorded promotion into 0C_base_"));

    let bundle = format!("/api/v1{TEAM}/configmaps/{}", promoted["promotion"]["bundle"].as_str().unwrap());
    let mut promotion = world.api.object(&bundle).unwrap();
    promotion["metadata"]["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
    world.api.put(&bundle, promotion);
    settle::<ReasoningPod>(&world, "next").await;
    assert_eq!(
        (&status()["promotion"], &status()["manifest"]["bundle"]),
        (&promoted["promotion"], &promoted["manifest"]["bundle"])
    );
    assert_eq!(bundles(&world), before, "nothing is signed for a shadow");
    let live = world.api.object(&format!("/apis/apps/v1{TEAM}/deployments/codex-s-next")).unwrap();
    let arguments = live["spec"]["template"]["spec"]["containers"][0]["args"].to_string();
    assert!(arguments.contains(r#""--ring","0C_base_""#) && arguments.contains("--shadow"), "{arguments}");
}
