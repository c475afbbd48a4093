//! Children of a ReasoningPod that others changed: what is restored, and what stays.

use codex_crds::ReasoningPod;
use serde_json::{Value, json};

use super::{
    reasoning_pod::{TEAM, bundles, judged, pod, settle},
    world::path,
};

#[tokio::test]
async fn drift_in_a_deployment_is_corrected() {
    let world = judged(600).await;
    world.api.put(&path("reasoningpods", "p"), pod(false));
    settle::<ReasoningPod>(&world, "p").await;
    let deployment = format!("/apis/apps/v1{TEAM}/deployments/codex-s-p");
    let before = world.api.object(&deployment).unwrap();
    let mut changed = before.clone();
    changed["spec"]["template"]["spec"]["containers"][0]["image"] = json!("evil:1");
    world.api.put(&deployment, changed);
    let requests = settle::<ReasoningPod>(&world, "p").await;
    assert!(requests.contains(&format!("PATCH {deployment} as codex-controller force")), "{requests:#?}");
    assert_eq!(world.api.object(&deployment).unwrap()["spec"], before["spec"]);
}

#[tokio::test]
async fn the_route_of_a_gateway_is_restored_and_goes_with_its_field() {
    let world = judged(600).await;
    let mut routed = pod(false);
    routed["spec"]["rollout"] = json!({"gateway": {"parentRefs": [{"name": "public"}], "hostnames": ["a.example"]}});
    world.api.put(&path("reasoningpods", "p"), routed);
    settle::<ReasoningPod>(&world, "p").await;
    let route = format!("/apis/gateway.networking.k8s.io/v1{TEAM}/httproutes/codex-s-p");
    let canary = format!("/api/v1{TEAM}/services/codex-c-p");
    let before = world.api.object(&route).unwrap();
    assert_eq!(before["spec"]["parentRefs"][0]["name"], "public");
    assert!(world.api.object(&canary).is_some());
    let mut diverted = before.clone();
    diverted["spec"]["rules"][0]["filters"] =
        json!([{"type": "RequestRedirect", "requestRedirect": {"hostname": "b"}}]);
    // What the API server fills in is no difference.
    diverted["spec"]["rules"][0]["name"] = json!("any");
    world.api.put(&route, diverted);
    let requests = settle::<ReasoningPod>(&world, "p").await;
    assert!(requests.contains(&format!("PATCH {route} as codex-controller force")), "{requests:#?}");
    let mut live = world.api.object(&path("reasoningpods", "p")).unwrap();
    live["spec"]["rollout"].as_object_mut().unwrap().remove("gateway");
    world.api.put(&path("reasoningpods", "p"), live);
    let requests = settle::<ReasoningPod>(&world, "p").await;
    assert!(requests.contains(&format!("DELETE {route}")), "{requests:#?}");
    assert!(world.api.object(&canary).is_none(), "its Service goes, too");
}

#[tokio::test]
async fn a_bundle_without_its_labels_gets_them_back() {
    let world = judged(600).await;
    world.api.put(&path("reasoningpods", "p"), pod(false));
    settle::<ReasoningPod>(&world, "p").await;
    for name in bundles(&world) {
        let bundle = format!("/api/v1{TEAM}/configmaps/{name}");
        let before = world.api.object(&bundle).unwrap();
        let mut changed = before.clone();
        changed["metadata"]["labels"] = json!({});
        world.api.put(&bundle, changed);
        world.api.hide(&bundle);
        let (requests, result) = world.reconcile::<ReasoningPod>("p").await;
        result.unwrap();
        assert!(requests.contains(&format!("PATCH {bundle} as codex-controller")), "{requests:#?}");
        let after = world.api.object(&bundle).unwrap();
        assert_eq!((&after["metadata"]["labels"], &after["data"]), (&before["metadata"]["labels"], &before["data"]));
        assert!(world.reconcile::<ReasoningPod>("p").await.0.is_empty());
    }
}

#[tokio::test]
async fn fields_that_divert_or_stop_the_servers_are_removed() {
    type Change = fn(&mut Value);
    let world = judged(600).await;
    world.api.put(&path("reasoningpods", "p"), pod(false));
    settle::<ReasoningPod>(&world, "p").await;
    let changes: [(&str, Change); 4] = [
        ("/api/v1/namespaces/team/services/p", |child| child["spec"]["selector"]["more"] = json!("x")),
        ("/apis/policy/v1/namespaces/team/poddisruptionbudgets/codex-s-p", |child| {
            child["spec"]["selector"]["matchLabels"]["more"] = json!("x");
        }),
        ("/apis/networking.k8s.io/v1/namespaces/team/networkpolicies/codex-s-p", |child| {
            child["spec"]["podSelector"]["matchLabels"]["more"] = json!("x");
        }),
        ("/apis/apps/v1/namespaces/team/deployments/codex-s-p", |child| child["spec"]["paused"] = json!(true)),
    ];
    for (child, change) in changes {
        let before = world.api.object(child).unwrap();
        let mut changed = before.clone();
        change(&mut changed);
        world.api.put(child, changed);
        let requests = settle::<ReasoningPod>(&world, "p").await;
        assert!(requests.iter().all(|line| line.starts_with(&format!("PATCH {child}"))), "{requests:#?}");
        assert_eq!(world.api.object(child).unwrap()["spec"], before["spec"], "{child}");
    }
}

#[tokio::test]
async fn a_modified_deployment_of_a_blocked_pod_is_restored() {
    let world = judged(600).await;
    world.api.put(&path("reasoningpods", "p"), pod(false));
    settle::<ReasoningPod>(&world, "p").await;
    let deployment = format!("/apis/apps/v1{TEAM}/deployments/codex-s-p");
    let before = world.api.object(&deployment).unwrap();
    let promotion = world.api.object(&path("reasoningpods", "p")).unwrap()["status"]["promotion"].clone();
    // The rings differ: nothing new is rolled out, and the servers stay.
    let mut live = world.api.object(&path("reasoningpods", "p")).unwrap();
    live["spec"]["rolloutRing"] = json!("main");
    world.api.put(&path("reasoningpods", "p"), live);
    settle::<ReasoningPod>(&world, "p").await;
    let mut changed = before.clone();
    changed["spec"]["template"]["spec"]["containers"][0]["image"] = json!("evil:1");
    world.api.put(&deployment, changed);
    let requests = settle::<ReasoningPod>(&world, "p").await;
    assert!(!requests.iter().any(|line| line.starts_with("DELETE")), "{requests:#?}");
    assert_eq!(world.api.object(&deployment).unwrap()["spec"], before["spec"]);
    let pod = world.api.object(&path("reasoningpods", "p")).unwrap();
    assert_eq!((&pod["status"]["phase"], &pod["status"]["promotion"]), (&json!("Blocked"), &promotion), "{pod}");
}

#[tokio::test]
async fn a_modified_deployment_is_restored_although_its_run_is_gone() {
    let world = judged(600).await;
    world.api.put(&path("reasoningpods", "p"), pod(false));
    settle::<ReasoningPod>(&world, "p").await;
    let deployment = format!("/apis/apps/v1{TEAM}/deployments/codex-s-p");
    let before = world.api.object(&deployment).unwrap();
    world.api.hide(&path("trainingruns", "a"));
    let mut changed = before.clone();
    changed["spec"]["template"]["spec"]["containers"][0]["image"] = json!("evil:1");
    world.api.put(&deployment, changed);
    let requests = settle::<ReasoningPod>(&world, "p").await;
    assert!(!requests.iter().any(|line| line.starts_with("DELETE")), "{requests:#?}");
    assert_eq!(world.api.object(&deployment).unwrap()["spec"], before["spec"]);
}

#[tokio::test]
async fn servers_of_a_blocked_pod_without_their_label_keep_their_service() {
    let world = judged(600).await;
    world.api.put(&path("reasoningpods", "p"), pod(false));
    settle::<ReasoningPod>(&world, "p").await;
    let mut live = world.api.object(&path("reasoningpods", "p")).unwrap();
    live["spec"]["rolloutRing"] = json!("main");
    world.api.put(&path("reasoningpods", "p"), live);
    settle::<ReasoningPod>(&world, "p").await;
    let deployment = format!("/apis/apps/v1{TEAM}/deployments/codex-s-p");
    let before = world.api.object(&deployment).unwrap();
    let mut bare = before.clone();
    bare["metadata"]["labels"].as_object_mut().unwrap().remove("app.kubernetes.io/managed-by");
    world.api.put(&deployment, bare);
    world.api.hide(&deployment);
    let requests = settle::<ReasoningPod>(&world, "p").await;
    assert!(!requests.iter().any(|line| line.starts_with("DELETE")), "{requests:#?}");
    assert!(requests.contains(&format!("PATCH {deployment} as codex-controller force")), "{requests:#?}");
    let after = world.api.object(&deployment).unwrap();
    assert_eq!((&after["metadata"]["labels"], &after["spec"]), (&before["metadata"]["labels"], &before["spec"]));
}

#[tokio::test]
async fn an_unmended_deployment_is_written_once_per_backoff() {
    let world = judged(600).await;
    world.api.put(&path("reasoningpods", "p"), pod(false));
    settle::<ReasoningPod>(&world, "p").await;
    let deployment = format!("/apis/apps/v1{TEAM}/deployments/codex-s-p");
    let image = "/spec/template/spec/containers/0/image";
    world.api.admit(&deployment, image, json!("evil:1"));
    let mut changed = world.api.object(&deployment).unwrap();
    *changed.pointer_mut(image).unwrap() = json!("evil:1");
    world.api.put(&deployment, changed);
    let mut rounds = Vec::new();
    for _ in 0..3 {
        let (requests, result) = world.reconcile::<ReasoningPod>("p").await;
        assert_eq!(result.unwrap_err().category(), "foreign_fields");
        world.context.backoff.failed("p-uid");
        rounds.push(requests);
    }
    let events = |requests: &[String]| requests.iter().filter(|line| line.contains("/events")).count();
    assert_eq!((events(&rounds[0]), rounds[1..].concat()), (1, Vec::new()), "{rounds:#?}");
}
