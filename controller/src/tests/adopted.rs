//! A run that is deleted while its model is served, and put back: the signed provenance proves the former one, and nothing is trained.

use codex_crds::{ReasoningPod, TrainingRun};
use codex_provenance::{Sha256, attestation::AttestationKind};
use codex_reports::{FORMER_VARIABLE, Former};
use codex_signing::{
    bundle,
    key::{PrivateKey, PublicKey, Signer as _},
};
use serde_json::{Value, json};

use super::{
    reasoning_pod::{TEAM, bundles, finish, judged, manifest, pod, settle},
    world::{World, path, run},
};

fn image() -> String {
    format!("registry.example.com/codex@sha256:{}", "1".repeat(64))
}

fn computation() -> Value {
    json!({"program": Sha256::of("p"), "engine": "cpu-f32", "kernels": "x86_64 avx2"})
}

/// Returns a world in which the model of a run with an image by digest is served, and the path of its promotion.
async fn served() -> (World, String) {
    let world = judged(600).await;
    let mut run = world.api.object(&path("trainingruns", "a")).unwrap();
    run["spec"]["pod"] = json!({"image": image()});
    run["status"]["imageId"] = json!(image());
    run["status"]["computation"] = computation();
    let run = world.sealed::<TrainingRun>(run);
    world.api.put(&path("trainingruns", "a"), run);
    world.api.put(&path("reasoningpods", "p"), pod(false));
    settle::<ReasoningPod>(&world, "p").await;
    let promotion = bundles(&world).into_iter().find(|name| name.starts_with("codex-promo-")).unwrap();
    (world, format!("/api/v1{TEAM}/configmaps/{promotion}"))
}

/// Deletes the run with its Job and creates it again, and returns what its trainer is told.
async fn put_back(world: &World, uid: &str) -> Option<Former> {
    let job = format!("/apis/batch/v1{TEAM}/jobs/codex-t-a");
    for gone in [&path("trainingruns", "a"), &job, &format!("/api/v1{TEAM}/configmaps/codex-t-a")] {
        world.api.remove(gone);
    }
    settle::<ReasoningPod>(world, "p").await;
    let mut again = run("a");
    again["metadata"]["uid"] = json!(uid);
    again["spec"]["pod"] = json!({"image": image()});
    world.api.put(&path("trainingruns", "a"), again);
    settle::<TrainingRun>(world, "a").await;
    let job = world.api.object(&job).unwrap();
    let variables = job["spec"]["template"]["spec"]["containers"][0]["env"].as_array().unwrap();
    let variable = variables.iter().find(|variable| variable["name"] == FORMER_VARIABLE)?;
    Some(serde_json::from_str(variable["value"].as_str().unwrap()).unwrap())
}

#[tokio::test]
async fn a_run_that_is_put_back_adopts_its_model_and_trains_nothing() {
    let (world, promotion) = served().await;
    let former = put_back(&world, "again-uid").await.unwrap();
    assert_eq!((former.directory.as_str(), former.run.uid.as_str()), ("/former/a-uid", "a-uid"));
    let manifest = manifest();
    assert_eq!((former.model, former.image_id), (manifest.digest(), image()));
    let model = json!({
        "digest": manifest.digest(), "omsRoot": manifest.oms_root(), "manifest": manifest, "parameters": 7,
    });
    let data = json!([{"name": "sums", "sha256": Sha256::of("d"), "size": 1, "records": 1000}]);
    let state = json!({"training": {
        "stage": "Finished", "data": data, "model": model, "computation": computation(),
        "adoption": {"run": "a-uid", "model": manifest.digest()},
    }});
    finish(&world, "TrainingRun", "codex-t-a", "again", &state);
    settle::<TrainingRun>(&world, "a").await;
    let status = world.api.object(&path("trainingruns", "a")).unwrap()["status"].clone();
    assert_eq!(status["phase"], json!("Succeeded"), "{status:#}");
    assert_eq!((&status["adoption"]["uid"], &status["adoption"]["refused"]), (&json!("a-uid"), &Value::Null));
    let trained = status["conditions"].as_array().unwrap().iter().find(|it| it["type"] == "Trained").unwrap();
    assert_eq!((&trained["status"], &trained["reason"]), (&json!("True"), &json!("Adopted")));
    assert!(status["progress"].is_null() && status["stepsExecuted"].is_null(), "{status:#}");
    // The proof is what the promotion of the former run was signed with.
    let entry = AttestationKind::SlsaProvenance.entry();
    let payload = payload(&world.api.object(&promotion).unwrap(), entry);
    assert_eq!(status["adoption"]["provenance"], json!(Sha256::of(payload)));
    assert!(settle::<TrainingRun>(&world, "a").await.is_empty(), "the sealed status is believed");
}

fn payload(config_map: &Value, entry: &str) -> Vec<u8> {
    let key = PublicKey::from_pem(config_map["data"]["key.pem"].as_str().unwrap()).unwrap();
    bundle::open(config_map["data"][entry].as_str().unwrap().as_bytes(), &key).unwrap()
}

/// Anyone who may write ConfigMaps can edit a bundle, or put one there.
#[tokio::test]
async fn only_provenance_that_the_controller_signed_proves_a_former_run() {
    let (world, promotion) = served().await;
    let genuine = world.api.object(&promotion).unwrap();
    let entry = AttestationKind::SlsaProvenance.entry();
    let statement = payload(&genuine, entry);
    let sign = |payload: &[u8]| String::from_utf8(PrivateKey::generate().unwrap().sign(payload).unwrap()).unwrap();
    let mut forged = [genuine.clone(), genuine.clone(), genuine.clone(), genuine.clone()];
    forged[0]["data"][entry] = json!(sign(&statement));
    forged[1]["data"]["bundle.json"] = json!(sign(&payload(&genuine, "bundle.json")));
    forged[2]["data"][entry] = genuine["data"][AttestationKind::TestResult.entry()].clone();
    forged[3]["data"].as_object_mut().unwrap().remove(entry);
    for (index, forged) in forged.into_iter().enumerate() {
        world.api.put(&promotion, forged);
        assert_eq!(put_back(&world, &format!("uid-{index}")).await, None, "{index}");
    }
    // The owner does not count: a copy in Git proves as much as the original.
    let mut copy = genuine;
    copy["metadata"].as_object_mut().unwrap().remove("ownerReferences");
    world.api.put(&promotion, copy);
    assert!(put_back(&world, "uid-copy").await.is_some());
    let denied = json!({"denied": {"models": [manifest().digest()]}});
    world.api.put(
        &path("promotionpolicies", "guard"),
        json!({
            "apiVersion": "codex-ml.dev/v1alpha1", "kind": "PromotionPolicy",
            "metadata": {"name": "guard", "uid": "guard-uid"}, "spec": denied,
        }),
    );
    assert_eq!(put_back(&world, "uid-denied").await, None, "what a policy denies is not adopted");
}
