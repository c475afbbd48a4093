//! The chain up to a serving ReasoningPod: what is signed, created, kept and deleted.

use codex_configs::{BenchmarkFile, benchmark};
use codex_crds::{Evaluation, ReasoningPod, TrainingRun};
use codex_plan::{Admission, Received};
use codex_provenance::{
    Sha256,
    manifest::{File, Manifest, SCHEMA},
};
use codex_signing::key::PrivateKey;
use k8s_openapi::api::apps::v1::Deployment;
use serde_json::{Value, json};

use super::{
    signer::list,
    world::{World, path, run},
};
use crate::{observe::Observe, signer::new_secret};

pub(super) const TEAM: &str = "/namespaces/team";

pub(super) fn manifest() -> Manifest {
    Manifest {
        schema: SCHEMA,
        files: vec![File { path: "model.safetensors".into(), size: 9, sha256: Sha256::of("m") }],
    }
}

fn evaluation() -> Value {
    json!({
        "apiVersion": "codex-ml.dev/v1alpha1", "kind": "Evaluation", "metadata": {"name": "e", "uid": "e-uid"},
        "spec": {"trainingRun": "a", "preset": "cot-lite", "gates": [{"metric": "exact_match", "min": "0.95", "confidence": "0.95"}]},
    })
}

pub(super) fn pod(dry_run: bool) -> Value {
    json!({
        "apiVersion": "codex-ml.dev/v1alpha1", "kind": "ReasoningPod", "metadata": {"name": "p", "uid": "p-uid"},
        "spec": {"rolloutRing": "0D_base_", "trainingRun": "a", "evaluations": ["e"], "dryRun": dry_run, "replicas": 1},
    })
}

/// Reconciles until nothing is written any more. Returns all requests but those for Events.
pub(super) async fn settle<K: Observe>(world: &World, name: &str) -> Vec<String> {
    let mut all = Vec::new();
    for _ in 0..8 {
        let (requests, result) = world.reconcile::<K>(name).await;
        result.unwrap();
        // Where policies are missing, each reconciliation lists the EndpointSlices of the Service.
        let lists = |line: &String| line.starts_with("GET ") && line.ends_with("/endpointslices");
        let requests: Vec<_> = requests.into_iter().filter(|line| !lists(line)).collect();
        if requests.is_empty() {
            return all;
        }
        all.extend(requests.into_iter().filter(|line| !line.contains("/events")));
    }
    panic!("{name} does not settle: {all:#?}");
}

/// Reports that a Job's only pod has finished with `state`.
pub(super) fn finish(world: &World, kind: &str, job: &str, object: &str, state: &Value) {
    let job_path = format!("/apis/batch/v1{TEAM}/jobs/{job}");
    let mut live = world.api.object(&job_path).unwrap();
    let digest = live["metadata"]["annotations"]["codex-ml.dev/config-digest"].clone();
    let at = "2026-01-01T00:00:00Z";
    live["status"] = json!({
        "startTime": at, "completionTime": at, "succeeded": 1,
        "conditions": [{"type": "Complete", "status": "True", "lastTransitionTime": at}],
    });
    world.api.put(&job_path, live);
    let report = json!({
        "schemaVersion": 1, "kind": kind, "namespace": "team", "name": object, "objectUid": format!("{object}-uid"),
        "podUid": format!("{job}-pod"), "attempt": 1, "seq": 9, "configDigest": digest, "state": state,
    });
    let report = serde_json::from_value(report).unwrap();
    world.context.inbox.offer(Received {
        report,
        pod: format!("{job}-x"),
        at: world.context.now(),
        contradiction: None,
    });
}

/// Returns a world with a trained model and a finished evaluation.
pub(super) async fn judged(successes: u64) -> World {
    judge(World::new().await, successes).await
}

/// Returns the world after a run has trained a model and an evaluation has scored it.
async fn judge(world: World, successes: u64) -> World {
    world.api.put(&path("trainingruns", "a"), run("a"));
    settle::<TrainingRun>(&world, "a").await;
    let manifest = manifest();
    let model = json!({
        "digest": manifest.digest(), "omsRoot": manifest.oms_root(), "manifest": manifest, "parameters": 7,
    });
    let data = json!([{"name": "sums", "sha256": Sha256::of("d"), "size": 1, "records": 1000}]);
    let state = json!({"training": {"stage": "Finished", "stepsExecuted": 100, "data": data, "model": model, "progress": {
        "step": 100, "totalSteps": 100, "loss": 0.1, "tokensPerSecond": 1.0, "etaSeconds": 0,
    }}});
    finish(&world, "TrainingRun", "codex-t-a", "a", &state);
    settle::<TrainingRun>(&world, "a").await;
    assert_eq!(world.api.object(&path("trainingruns", "a")).unwrap()["status"]["phase"], json!("Succeeded"));
    world.api.put(&path("evaluations", "e"), evaluation());
    settle::<Evaluation>(&world, "e").await;
    let read = |file: &BenchmarkFile| json!({"name": file.name, "sha256": file.digest(), "size": 1, "records": 600});
    let data: Vec<_> = benchmark("cot-lite").iter().map(read).collect();
    let state = json!({"evaluation": {
        "stage": "Finished", "done": 600, "total": 600, "modelDigest": manifest.digest(), "data": data,
        "metrics": {"exact_match": {"kind": "share", "successes": successes, "n": 600}},
    }});
    finish(&world, "Evaluation", "codex-e-e", "e", &state);
    settle::<Evaluation>(&world, "e").await;
    world
}

pub(super) fn bundles(world: &World) -> Vec<String> {
    let state = world.context.stores.config_maps.all();
    let mut names: Vec<_> = state.map(|it| it.metadata.name.clone().unwrap()).collect();
    names.retain(|name| name.starts_with("codex-oms-") || name.starts_with("codex-promo-"));
    names.sort();
    names
}

#[tokio::test]
async fn a_passing_model_is_signed_twice_and_then_served() {
    let world = judged(600).await;
    world.api.put(&path("reasoningpods", "p"), pod(false));
    let requests = settle::<ReasoningPod>(&world, "p").await;
    let writes: Vec<_> = requests.iter().filter(|line| !line.starts_with("GET")).cloned().collect();
    assert!(writes.len() <= 12, "{writes:#?}");
    let at = |what: &str| {
        writes.iter().position(|line| line.contains(what)).unwrap_or_else(|| panic!("no {what}: {writes:#?}"))
    };
    let signed = writes.iter().filter(|line| line.starts_with(&format!("POST /api/v1{TEAM}/configmaps"))).count();
    assert_eq!(signed, 2, "{writes:#?}");
    assert!(
        writes.iter().rposition(|line| line.starts_with("POST")).unwrap() < at("deployments/codex-s-p"),
        "signed before it is served"
    );
    for child in ["services/p ", "poddisruptionbudgets/codex-s-p", "networkpolicies/codex-s-p", "deployments/codex-s-p"]
    {
        assert!(writes[at(child)].ends_with("as codex-controller"), "{writes:#?}");
    }
    assert!(
        writes
            .iter()
            .filter(|line| line.contains("/status"))
            .all(|line| line.ends_with("as codex-controller/status force"))
    );
    assert_eq!(bundles(&world).len(), 2);
    let bundle = world.api.object(&format!("/api/v1{TEAM}/configmaps/codex-oms-a-uid")).unwrap();
    assert_eq!(bundle["immutable"], json!(true));
    assert_eq!(bundle["data"]["key.pem"], json!(world.context.signer.trusted().keys[0].to_pem()));
}

#[tokio::test]
async fn an_expired_key_is_replaced_and_a_valid_one_is_not() {
    const SYSTEM: &str = "/api/v1/namespaces/codex-system";
    let world = judged(600).await;
    world.api.put(&path("reasoningpods", "p"), pod(false));
    settle::<ReasoningPod>(&world, "p").await;
    let signed = bundles(&world);
    let former = world.context.signer.trusted().keys.remove(0);
    let next = PrivateKey::generate().unwrap();
    let listed = |limits: &str| {
        let former = format!("{limits}{}", former.to_pem());
        let list = list(&[("2026.pub", former), ("2027.pub", next.public().to_pem().to_owned())]);
        world.api.put(&format!("{SYSTEM}/configmaps/codex-trusted-keys"), list);
    };
    listed("");
    world
        .api
        .put(&format!("{SYSTEM}/secrets/codex-signing-key"), serde_json::to_value(new_secret(&next).unwrap()).unwrap());
    world.context.signer.refresh().await;
    world.api.requests();
    let requests = settle::<ReasoningPod>(&world, "p").await;
    assert!(requests.is_empty(), "a rotation writes nothing: {requests:#?}");

    listed("notAfter: 2020-01-01T00:00:00Z\n");
    world.context.signer.refresh().await;
    world.api.requests();
    settle::<ReasoningPod>(&world, "p").await;
    let again: Vec<_> = bundles(&world).into_iter().filter(|name| !signed.contains(name)).collect();
    let short = next.public().fingerprint().short();
    assert!(again.len() == 2 && again.iter().all(|name| name.ends_with(&format!("-{short}"))), "{again:?}");
    for name in &again {
        let bundle = world.api.object(&format!("/api/v1{TEAM}/configmaps/{name}")).unwrap();
        assert_eq!((&bundle["data"]["key.pem"], &bundle["immutable"]), (&json!(next.public().to_pem()), &json!(true)));
    }
    let live = world.api.object(&format!("/apis/apps/v1{TEAM}/deployments/codex-s-p")).unwrap();
    let arguments = live["spec"]["template"]["spec"]["containers"][0]["args"].as_array().unwrap();
    assert!(arguments.contains(&json!(next.public().fingerprint())), "{arguments:?}");
    assert!(!arguments.contains(&json!(former.fingerprint())), "{arguments:?}");
    let status = world.api.object(&path("reasoningpods", "p")).unwrap()["status"].clone();
    assert_eq!(status["manifest"]["signer"], json!(short));
    assert!(settle::<ReasoningPod>(&world, "p").await.is_empty(), "and nothing more");
}

#[tokio::test]
async fn a_dry_run_and_a_failed_gate_sign_and_create_nothing() {
    for (successes, dry_run, phase) in [(600, true, "DryRun"), (300, false, "Blocked")] {
        let world = judged(successes).await;
        world.api.put(&path("reasoningpods", "p"), pod(dry_run));
        let requests = settle::<ReasoningPod>(&world, "p").await;
        let status = format!("PATCH {}/status as codex-controller/status force", path("reasoningpods", "p"));
        assert!(requests.iter().all(|line| *line == status), "{requests:#?}");
        let pod = world.api.object(&path("reasoningpods", "p")).unwrap();
        assert_eq!(pod["status"]["phase"], json!(phase), "{pod}");
        assert!(bundles(&world).is_empty());
    }
}

#[tokio::test]
async fn turning_dry_run_on_stops_the_server_and_keeps_the_bundles() {
    let world = judged(600).await;
    world.api.put(&path("reasoningpods", "p"), pod(false));
    settle::<ReasoningPod>(&world, "p").await;
    let mut live = world.api.object(&path("reasoningpods", "p")).unwrap();
    live["spec"]["dryRun"] = json!(true);
    world.api.put(&path("reasoningpods", "p"), live);
    let requests = settle::<ReasoningPod>(&world, "p").await;
    assert!(requests.contains(&format!("DELETE /apis/apps/v1{TEAM}/deployments/codex-s-p")), "{requests:#?}");
    assert!(
        !requests
            .iter()
            .any(|line| line.contains("/configmaps/codex-oms-") || line.contains("/configmaps/codex-promo-")),
        "{requests:#?}"
    );
    assert_eq!(bundles(&world).len(), 2);
}

#[tokio::test]
async fn the_number_of_servers_is_left_to_the_autoscaler() {
    let world = judged(600).await;
    let mut scaled = pod(false);
    scaled["spec"]["autoscaling"] = json!({"metrics": {"queueDepth": 4}});
    world.api.put(&path("reasoningpods", "p"), scaled);
    settle::<ReasoningPod>(&world, "p").await;
    let autoscaler = format!("/apis/autoscaling/v2{TEAM}/horizontalpodautoscalers/codex-s-p");
    let deployment = format!("/apis/apps/v1{TEAM}/deployments/codex-s-p");
    let target = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "codex-s-p"});
    assert_eq!(world.api.object(&autoscaler).unwrap()["spec"]["scaleTargetRef"], target);
    let mut live = world.api.object(&deployment).unwrap();
    assert_eq!(live["spec"]["replicas"], json!(2), "minReplicas");
    live["spec"]["replicas"] = json!(5);
    world.api.put(&deployment, live);
    // A change of the Deployment for another reason leaves the number alone, too.
    let mut labelled = world.api.object(&deployment).unwrap();
    labelled["metadata"]["labels"]["app.kubernetes.io/part-of"] = json!("another");
    world.api.put(&deployment, labelled);
    let requests = settle::<ReasoningPod>(&world, "p").await;
    assert!(requests.contains(&format!("PATCH {deployment} as codex-controller force")), "{requests:#?}");
    assert_eq!(world.api.object(&deployment).unwrap()["spec"]["replicas"], json!(5));
    let mut live = world.api.object(&path("reasoningpods", "p")).unwrap();
    live["spec"].as_object_mut().unwrap().remove("autoscaling");
    world.api.put(&path("reasoningpods", "p"), live);
    let requests = settle::<ReasoningPod>(&world, "p").await;
    assert!(requests.contains(&format!("DELETE {autoscaler}")), "{requests:#?}");
    assert_eq!(world.api.object(&deployment).unwrap()["spec"]["replicas"], json!(1), "spec.replicas");
}

#[tokio::test]
async fn a_request_that_waits_at_the_activator_starts_a_server() {
    let world = judged(600).await;
    let mut idle = pod(false);
    idle["spec"]["autoscaling"] = json!({"minReplicas": 0, "idleSeconds": 10});
    world.api.put(&path("reasoningpods", "p"), idle);
    settle::<ReasoningPod>(&world, "p").await;
    let deployment = |name: &str| world.api.object(&format!("/apis/apps/v1{TEAM}/deployments/{name}"));
    let replicas = || deployment("codex-s-p").unwrap()["spec"]["replicas"].clone();
    let selected = |service: &str| {
        let found = world.api.object(&format!("/api/v1{TEAM}/services/{service}"));
        found.map(|found| found["spec"]["selector"]["app.kubernetes.io/component"].clone())
    };
    let condition = |kind: &str| {
        let status = world.api.object(&path("reasoningpods", "p")).unwrap()["status"].clone();
        status["conditions"].as_array().unwrap().iter().find(|it| it["type"] == kind).cloned()
    };
    assert_eq!(replicas(), json!(0));
    assert_eq!((selected("p"), selected("codex-a-p")), (Some(json!("activator")), Some(json!("server"))));

    // Its pod runs. A pod that an editor labels likewise would get requests, so it is named.
    let activator = deployment("codex-a-p").unwrap();
    let place = |name: &str, owner: Option<(&str, &str)>| {
        let mut pod = server_pod(name, owner, &activator["spec"]["template"]);
        pod["metadata"]["labels"]["app.kubernetes.io/component"] = json!("activator");
        let running = json!({"running": {"startedAt": "2026-01-01T00:00:00Z"}});
        let status = json!({"name": "activator", "ready": true, "restartCount": 0, "image": "", "imageID": "", "state": running});
        pod["status"] = json!({"containerStatuses": [status]});
        world.api.put(&format!("/api/v1{TEAM}/pods/{name}"), pod);
    };
    place("holds", Some(("codex-a-p-1", "set")));
    settle::<ReasoningPod>(&world, "p").await;
    assert_eq!(condition("Ready").unwrap()["reason"], "Idle");
    place("mine", None);
    settle::<ReasoningPod>(&world, "p").await;
    let told = condition("ForeignPods").unwrap();
    assert!(told["message"].as_str().unwrap().contains("mine"), "{told}");
    let mut gone = world.api.object(&format!("/api/v1{TEAM}/pods/mine")).unwrap();
    gone["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    world.api.put(&format!("/api/v1{TEAM}/pods/mine"), gone);

    let say = |seq: u64, waiting: bool| {
        let report = json!({
            "schemaVersion": 1, "kind": "ReasoningPod", "namespace": "team", "name": "p", "objectUid": "p-uid",
            "podUid": "holds-uid", "attempt": 1, "seq": seq,
            "state": {"serving": {"stage": "Running", "waiting": waiting}},
        });
        let report = serde_json::from_value(report).unwrap();
        let received = Received { report, pod: "holds".to_owned(), at: world.context.now(), contradiction: None };
        world.context.inbox.offer(received);
    };
    say(1, false);
    let requests = settle::<ReasoningPod>(&world, "p").await;
    assert!(!requests.iter().any(|line| line.contains("/deployments/")), "{requests:#?}");
    say(2, true);
    let requests = settle::<ReasoningPod>(&world, "p").await;
    let patched = format!("PATCH /apis/apps/v1{TEAM}/deployments/codex-s-p as codex-controller force");
    assert!(requests.contains(&patched), "{requests:#?}");
    assert_eq!((replicas(), condition("Idle").unwrap()["reason"].clone()), (json!(1), json!("Activated")));
    assert_eq!(selected("p"), Some(json!("activator")), "no server is ready yet");

    // spec.replicas 0 stops everything.
    let mut live = world.api.object(&path("reasoningpods", "p")).unwrap();
    live["spec"]["replicas"] = json!(0);
    world.api.put(&path("reasoningpods", "p"), live);
    settle::<ReasoningPod>(&world, "p").await;
    assert_eq!((replicas(), deployment("codex-a-p"), selected("codex-a-p")), (json!(0), None, None));
    assert_eq!(selected("p"), Some(json!("server")));
}

#[tokio::test]
async fn a_bundle_that_cannot_be_created_stalls_the_pod_with_reason_and_generation() {
    let bundle = format!("/api/v1{TEAM}/configmaps/codex-oms-a-uid");
    for (reason, said) in [("NameTaken", "does not belong to this TrainingRun"), ("Refused", "Injected")] {
        let world = judged(600).await;
        world.api.put(&path("reasoningpods", "p"), pod(true));
        settle::<ReasoningPod>(&world, "p").await;
        if reason == "NameTaken" {
            world.api.put(
                &bundle,
                json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "codex-oms-a-uid"}}),
            );
            world.api.hide(&bundle);
        } else {
            world.api.fail(&format!("POST /api/v1{TEAM}/configmaps"), Some(403));
        }
        let mut live = world.api.object(&path("reasoningpods", "p")).unwrap();
        live["spec"]["dryRun"] = json!(false);
        live["metadata"]["generation"] = json!(2);
        world.api.put(&path("reasoningpods", "p"), live);
        world.reconcile::<ReasoningPod>("p").await.1.unwrap_err();
        let status = world.api.object(&path("reasoningpods", "p")).unwrap()["status"].clone();
        let stalled = status["conditions"].as_array().unwrap().iter().find(|it| it["type"] == "Stalled").unwrap();
        assert_eq!((&stalled["reason"], &status["observedGeneration"]), (&json!(reason), &json!(2)), "{status}");
        assert!(stalled["message"].as_str().unwrap().contains(said), "{stalled}");
    }
}

/// A pod of `owner` with the labels that the Service selects and the spec of `template`.
fn server_pod(name: &str, owner: Option<(&str, &str)>, template: &Value) -> Value {
    let mut labels = json!({"codex-ml.dev/reasoning-pod": "p", "app.kubernetes.io/component": "server"});
    let owners: Vec<_> = owner
        .iter()
        .map(|(name, uid)| json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": name, "uid": uid, "controller": true}))
        .collect();
    if owner.is_some() {
        labels["app.kubernetes.io/managed-by"] = json!("codex-controller");
    }
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "uid": format!("{name}-uid"), "labels": labels, "ownerReferences": owners},
        "spec": template["spec"],
    })
}

#[tokio::test]
async fn pods_behind_the_service_that_the_controller_did_not_create_are_named() {
    let world = judged(600).await;
    world.api.put(&path("reasoningpods", "p"), pod(false));
    settle::<ReasoningPod>(&world, "p").await;
    let live = world.api.object(&format!("/apis/apps/v1{TEAM}/deployments/codex-s-p")).unwrap();
    let template = &live["spec"]["template"];
    let mut former = template.clone();
    former["spec"]["containers"][0]["image"] = json!("codex:former");
    // The deployment controller copies the annotations of the Deployment, with the seal over its template.
    let set = |name: &str, template: &Value, sealed: bool| {
        let mut deployment: Deployment = serde_json::from_value(live.clone()).unwrap();
        deployment.spec.as_mut().unwrap().template = serde_json::from_value(template.clone()).unwrap();
        let mut annotations = live["metadata"]["annotations"].clone();
        if sealed {
            annotations["codex-ml.dev/seal"] = json!(world.context.seal.of("p-uid", &deployment).unwrap());
        }
        let owner = json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "name": "codex-s-p", "uid": live["metadata"]["uid"], "controller": true,
        });
        let metadata = json!({"name": name, "uid": name, "annotations": annotations, "ownerReferences": [owner]});
        let spec = json!({"selector": {}, "template": template});
        let set = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": metadata, "spec": spec});
        world.api.put(&format!("/apis/apps/v1{TEAM}/replicasets/{name}"), set);
    };
    set("codex-s-p-2", template, true);
    set("codex-s-p-1", &former, true);
    set("codex-s-p-0", &former, false);
    let put =
        |pod: Value| world.api.put(&format!("/api/v1{TEAM}/pods/{}", pod["metadata"]["name"].as_str().unwrap()), pod);
    put(server_pod("current", Some(("codex-s-p-2", "codex-s-p-2")), template));
    put(server_pod("former", Some(("codex-s-p-1", "codex-s-p-1")), &former));
    // ReplicaSets are requested at each reconciliation while pods of former templates exist.
    world.reconcile::<ReasoningPod>("p").await.1.unwrap();
    let conditions = || world.api.object(&path("reasoningpods", "p")).unwrap()["status"]["conditions"].clone();
    let of = |kind: &str| conditions().as_array().unwrap().iter().find(|it| it["type"] == kind).cloned();
    assert_eq!(of("ForeignPods"), None, "{}", conditions());
    put(server_pod("copied", Some(("codex-s-p-0", "codex-s-p-0")), &former));
    put(server_pod("labelled", None, template));
    put(server_pod("reowned", Some(("codex-s-p-2", "another-uid")), &former));
    world.reconcile::<ReasoningPod>("p").await.1.unwrap();
    let told = of("ForeignPods").unwrap();
    assert!(told["message"].as_str().unwrap().contains("copied, labelled, reowned: delete them"), "{told}");
    assert_eq!(
        (&of("Ready").unwrap()["status"], &of("Stalled").unwrap()["reason"]),
        (&json!("False"), &json!("ForeignPods"))
    );
}

#[tokio::test]
async fn a_promotion_without_policies_has_weak_evidence_and_says_why() {
    let world = World::new().await;
    world.context.admission.see(Admission::flawed("the policies were not read"));
    let world = judge(world, 600).await;
    world.api.put(&path("reasoningpods", "p"), pod(false));
    settle::<ReasoningPod>(&world, "p").await;
    for (plural, name) in [("evaluations", "e"), ("reasoningpods", "p")] {
        let status = world.api.object(&path(plural, name)).unwrap()["status"].clone();
        assert_eq!(status["evidence"], json!("weak"), "{status}");
        assert!(status["evidenceReason"].as_str().unwrap().contains("policies were not read"), "{status}");
    }
}

#[tokio::test]
async fn numbers_of_a_forged_status_are_never_signed() {
    let world = judged(300).await;
    // The evaluation failed. Another client writes numbers that pass, with matching digests and without a seal.
    let mut forged = world.api.object(&path("evaluations", "e")).unwrap();
    assert_eq!(forged["status"]["verdict"], json!("Failed"));
    forged["status"]["verdict"] = json!("Passed");
    forged["status"]["metrics"][0]["successes"] = json!(600);
    forged["status"]["evidence"] = json!("strong");
    world.api.put(&path("evaluations", "e"), forged);
    world.api.put(&path("reasoningpods", "p"), pod(false));
    settle::<ReasoningPod>(&world, "p").await;
    assert!(bundles(&world).is_empty());
    // The evaluation is judged again from the pod's report.
    settle::<Evaluation>(&world, "e").await;
    let status = world.api.object(&path("evaluations", "e")).unwrap()["status"].clone();
    assert_eq!((&status["verdict"], &status["metrics"][0]["successes"]), (&json!("Failed"), &json!(300)), "{status}");
    settle::<ReasoningPod>(&world, "p").await;
    assert!(bundles(&world).is_empty());
}

/// Returns a status that was recorded for a former ReasoningPod: it served another model, tried a canary, and redeployed.
fn former_status(other: &str) -> Value {
    let at = "2026-01-01T00:00:00Z";
    let counted = json!({"requests": 9, "errors": 9, "refused": 0, "completed": 0, "slow": 0});
    let verified = json!({"digest": other, "by": "codex-s-p-x", "at": at});
    json!({
        "observedGeneration": 1, "phase": "Serving", "trainingRunUid": "former-run", "model": &other[..12], "url": "http://p.team.svc",
        "manifest": {"digest": other, "short": &other[..12], "signer": &other[..16], "bundle": "codex-oms-a-uid"},
        "promotion": {"ring": "0D_base_", "digest": other, "bundle": "codex-promo-1", "signer": &other[..16]},
        "verified": verified, "replicas": 1, "readyReplicas": 1, "ready": "1/1", "evidence": "strong", "reportDigest": other,
        "rollout": {
            "phase": "RolledBack", "revision": 3, "attempt": other, "canaryDigest": other, "promotion": other, "step": 1, "of": "1",
            "started": at, "before": counted, "traffic": counted, "verified": verified, "reason": "it failed",
        },
        "history": [{
            "revision": 2, "digest": other, "promotion": other, "started": at, "ended": at, "result": "Promoted", "reason": "it passed",
        }],
        "current": {"trainingRun": "a", "evaluations": ["e"], "cycle": at},
        "conditions": [
            {"type": "Ready", "status": "True", "reason": "Serving", "message": "it serves", "lastTransitionTime": at},
            {"type": "Verified", "status": "True", "reason": "Verified", "message": "it is", "lastTransitionTime": at},
        ],
    })
}

/// Returns the status of `p` without what differs between two worlds: times, keys, and the digests of what they sign.
fn comparable(world: &World) -> Value {
    let mut status = world.api.object(&path("reasoningpods", "p")).unwrap()["status"].clone();
    status["lastPhaseTransitionTime"].take();
    if let Some(seen) = status.pointer_mut("/redeploy/seen") {
        seen.take();
    }
    for (part, fields) in [("manifest", &["signer"][..]), ("promotion", &["signer", "digest", "bundle"][..])] {
        for field in fields {
            status.get_mut(part).and_then(|part| part.get_mut(field)).map(Value::take);
        }
    }
    for condition in status["conditions"].as_array_mut().unwrap() {
        condition["lastTransitionTime"].take();
    }
    status["seal"].take();
    status
}

#[tokio::test]
async fn a_restored_status_serves_and_signs_nothing_and_becomes_that_of_a_new_object() {
    let other = "1".repeat(64);
    for (case, successes, redeploys) in [
        ("no run", None, false),
        ("failed", Some(300), false),
        ("passed", Some(600), false),
        ("redeploys", Some(600), true),
    ] {
        let mut new = pod(false);
        if redeploys {
            let mut template = evaluation()["spec"].clone();
            template.as_object_mut().unwrap().remove("trainingRun");
            // The first cycle begins in January: until then only a recorded one could be served.
            new["spec"] = json!({"rolloutRing": "0D_base_", "replicas": 1, "redeploy": {
                "schedule": {"cron": "0 0 1 1 *"},
                "template": {"trainingRun": run("a")["spec"], "evaluations": [{"name": "e", "spec": template}]},
            }});
        }
        let mut former = new.clone();
        (former["metadata"]["uid"], former["status"]) = (json!("former-uid"), former_status(&other));
        let world = match successes {
            None => World::new().await,
            Some(successes) => judged(successes).await,
        };
        let mut restored = world.sealed::<ReasoningPod>(former);
        restored["metadata"]["uid"] = json!("p-uid");
        world.api.put(&path("reasoningpods", "p"), restored);
        let (requests, result) = world.reconcile::<ReasoningPod>("p").await;
        result.unwrap();
        let status = world.api.object(&path("reasoningpods", "p")).unwrap()["status"].clone();
        let discarded = status["conditions"].as_array().unwrap().iter().find(|it| it["type"] == "StatusDiscarded");
        let discarded = discarded.unwrap_or_else(|| panic!("{case}: {status}"));
        assert_eq!(discarded["reason"], json!("Restored"), "{case}: {discarded}");
        assert!(discarded["message"].as_str().unwrap().contains("former object (uid former-uid)"), "{discarded}");
        let later = settle::<ReasoningPod>(&world, "p").await;

        let as_new = match successes {
            None => World::new().await,
            Some(successes) => judged(successes).await,
        };
        as_new.api.put(&path("reasoningpods", "p"), new);
        settle::<ReasoningPod>(&as_new, "p").await;
        let (status, expected) = (comparable(&world), comparable(&as_new));
        assert_eq!(status, expected, "{case}");
        assert!(!status.to_string().contains(&other[..12]), "{case}: {status}");
        let writes =
            |kind: &str| requests.iter().chain(&later).any(|line| !line.starts_with("GET") && line.contains(kind));
        let passed = case == "passed";
        assert_eq!((writes("/configmaps"), bundles(&world).len()), (passed, if passed { 2 } else { 0 }), "{case}");
        assert_eq!(writes("/deployments/"), passed, "{case}");
        let servers = world.api.object(&format!("/apis/apps/v1{TEAM}/deployments/codex-s-p"));
        let model = servers.map(|servers| servers["metadata"]["annotations"]["codex-ml.dev/model-digest"].clone());
        assert_eq!(model, passed.then(|| json!(manifest().digest())), "{case}");
    }
}

/// Returns an EndpointSlice that the cluster wrote for the Service `p`.
fn cluster_slice(name: &str, ours: bool) -> Value {
    let mut labels = json!({"kubernetes.io/service-name": "p", "codex-ml.dev/reasoning-pod": "p"});
    if ours {
        labels["app.kubernetes.io/managed-by"] = json!("codex-controller");
    }
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": name, "labels": labels},
        "addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.66"]}],
    })
}

#[tokio::test]
async fn without_policies_the_service_lists_only_verified_servers() {
    let world = judged(600).await;
    world.api.put(&path("reasoningpods", "p"), pod(false));
    settle::<ReasoningPod>(&world, "p").await;
    let live = world.api.object(&format!("/apis/apps/v1{TEAM}/deployments/codex-s-p")).unwrap();
    let template = &live["spec"]["template"];
    let service = format!("/api/v1{TEAM}/services/p");
    let slices = format!("/apis/discovery.k8s.io/v1{TEAM}/endpointslices");
    let endpoints = format!("/api/v1{TEAM}/endpoints/p");
    let own = format!("{slices}/codex-s-p-ipv4");
    let selector = || world.api.object(&service).unwrap()["spec"]["selector"].clone();
    let planned = selector();
    assert!(planned.is_object(), "{planned}");
    let put = |name: &str, owner: Option<(&str, &str)>, address: &str| {
        let mut pod = server_pod(name, owner, template);
        let running = json!({"running": {"startedAt": "2026-01-01T00:00:00Z"}});
        let container =
            json!({"name": "server", "ready": true, "restartCount": 0, "image": "", "imageID": "", "state": running});
        pod["status"] = json!({"podIPs": [{"ip": address}], "containerStatuses": [container]});
        world.api.put(&format!("/api/v1{TEAM}/pods/{name}"), pod);
    };
    put("verified", Some(("codex-s-p-1", "set")), "10.0.0.1");
    put("silent", Some(("codex-s-p-1", "set")), "10.0.0.2");
    put("mine", None, "10.0.0.66");
    let report = json!({
        "schemaVersion": 1, "kind": "ReasoningPod", "namespace": "team", "name": "p", "objectUid": "p-uid",
        "podUid": "verified-uid", "attempt": 1, "seq": 1, "state": {"serving": {
            "stage": "Running", "verified": live["metadata"]["annotations"]["codex-ml.dev/model-digest"],
            "promotion": live["metadata"]["annotations"]["codex-ml.dev/promotion-digest"],
        }},
    });
    let report = serde_json::from_value(report).unwrap();
    let received = Received { report, pod: "verified".to_owned(), at: world.context.now(), contradiction: None };
    world.context.inbox.offer(received);
    // The cluster copies the Service's labels to its slices. An editor who removes the label hides one from the cache.
    world.api.put(&format!("{slices}/p-1"), cluster_slice("p-1", true));
    world.api.put(&format!("{slices}/p-2"), cluster_slice("p-2", false));
    world.api.put(&endpoints, json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "p"}}));
    settle::<ReasoningPod>(&world, "p").await;
    assert_eq!((selector(), world.api.object(&own)), (planned.clone(), None), "the policies are in place");

    world.context.admission.see(Admission::flawed("a binding does not exist"));
    let requests = settle::<ReasoningPod>(&world, "p").await;
    assert_eq!(selector(), Value::Null);
    let written = world.api.object(&own).unwrap();
    let addresses: Vec<_> =
        written["endpoints"].as_array().unwrap().iter().map(|it| it["addresses"][0].clone()).collect();
    assert_eq!(addresses, ["10.0.0.1"], "{written}");
    for gone in [&format!("{slices}/p-1"), &format!("{slices}/p-2"), &endpoints] {
        assert!(requests.contains(&format!("DELETE {gone}")), "{gone}: {requests:#?}");
        assert_eq!(world.api.object(gone), None);
    }
    let at = |what: &str| requests.iter().position(|line| line.starts_with(what)).unwrap();
    assert!(at(&format!("PATCH {own}")) < at(&format!("PATCH {service}")), "{requests:#?}");
    let status = world.api.object(&path("reasoningpods", "p")).unwrap()["status"].clone();
    let told = status["conditions"].as_array().unwrap().iter().find(|it| it["type"] == "EndpointsWritten").unwrap();
    assert!(told["message"].as_str().unwrap().ends_with("a binding does not exist"), "{told}");

    // A selector that an editor adds is removed, with the slices that the cluster made of it.
    let mut changed = world.api.object(&service).unwrap();
    changed["spec"]["selector"] = json!({"any": "pod"});
    world.api.put(&service, changed);
    world.api.put(&format!("{slices}/p-3"), cluster_slice("p-3", true));
    settle::<ReasoningPod>(&world, "p").await;
    assert_eq!((selector(), world.api.object(&format!("{slices}/p-3"))), (Value::Null, None));

    // The slice stays until the cluster has written its own.
    world.context.admission.see(Admission { flaw: None, ..Admission::default() });
    settle::<ReasoningPod>(&world, "p").await;
    assert_eq!((selector(), world.api.object(&own).is_some()), (planned, true));
    world.api.put(&format!("{slices}/p-4"), cluster_slice("p-4", true));
    let requests = settle::<ReasoningPod>(&world, "p").await;
    assert_eq!(requests, [format!("DELETE {own}")]);
}
