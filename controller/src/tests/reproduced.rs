//! A run that reproduces another one: its verdict is signed once, verified, and signed again when the bundle is gone.

use codex_crds::TrainingRun;
use codex_provenance::Sha256;
use codex_signing::{
    bundle,
    key::{PrivateKey, PublicKey, Signer as _},
};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, api::DeleteParams};
use serde_json::{Value, json};

use super::{
    reasoning_pod::{TEAM, finish, manifest, settle},
    world::{World, path, run},
};

/// Trains a run to its end.
async fn train(world: &World, name: &str, object: Value) {
    world.api.put(&path("trainingruns", name), object);
    settle::<TrainingRun>(world, name).await;
    let manifest = manifest();
    let model = json!({
        "digest": manifest.digest(), "omsRoot": manifest.oms_root(), "manifest": manifest, "parameters": 7,
    });
    let computation = json!({"program": Sha256::of("p"), "engine": "cpu-f32", "kernels": "x86_64 avx2"});
    let data = json!([{"name": "sums", "sha256": Sha256::of("d"), "size": 1, "records": 1000}]);
    let state = json!({"training": {"stage": "Finished", "data": data, "model": model, "computation": computation}});
    finish(world, "TrainingRun", &format!("codex-t-{name}"), name, &state);
}

fn condition(world: &World, kind: &str) -> (Value, Value) {
    let run = world.api.object(&path("trainingruns", "b")).unwrap();
    let conditions = run["status"]["conditions"].as_array().unwrap();
    let found = conditions.iter().find(|it| it["type"] == kind).cloned().unwrap_or_default();
    (found["status"].clone(), found["reason"].clone())
}

#[tokio::test]
async fn a_verdict_is_signed_once_verified_and_signed_again_when_it_is_gone() {
    let world = World::new().await;
    train(&world, "a", run("a")).await;
    settle::<TrainingRun>(&world, "a").await;
    let mut again = run("b");
    again["spec"]["reproduces"] = json!({"name": "a"});
    train(&world, "b", again).await;
    let posts = |requests: Vec<String>| {
        requests.into_iter().filter(|line| line.starts_with("POST ") && line.contains("configmaps")).count()
    };
    assert_eq!(posts(settle::<TrainingRun>(&world, "b").await), 1, "the verdict is signed once");
    assert_eq!(condition(&world, "Reproduced"), (json!("True"), json!("Reproduced")));
    assert_eq!(condition(&world, "Signed"), (json!("True"), json!("BundlesRecorded")));
    let run = world.api.object(&path("trainingruns", "b")).unwrap();
    let name = run["status"]["reproduction"]["bundle"].as_str().unwrap().to_owned();
    let place = format!("/api/v1{TEAM}/configmaps/{name}");
    let genuine = world.api.object(&place).unwrap();
    assert_eq!(genuine["immutable"], json!(true));
    let key = PublicKey::from_pem(genuine["data"]["key.pem"].as_str().unwrap()).unwrap();
    let payload = |config_map: &Value| {
        bundle::open(config_map["data"]["bundle.json"].as_str().unwrap().as_bytes(), &key).unwrap()
    };
    let signed = payload(&genuine);
    assert!(name.ends_with(&Sha256::of(&signed).short()), "the name covers the statement");

    // The same statement of another key, and another statement of the right one.
    let mut forged = genuine.clone();
    let other = PrivateKey::generate().unwrap();
    forged["data"]["bundle.json"] = json!(String::from_utf8(other.sign(&signed).unwrap()).unwrap());
    world.api.put(&place, forged.clone());
    assert_eq!(posts(settle::<TrainingRun>(&world, "b").await), 0);
    assert_eq!(condition(&world, "Signed"), (json!("False"), json!("ForeignSignature")));
    forged["data"]["bundle.json"] = json!("{}");
    world.api.put(&place, forged);
    settle::<TrainingRun>(&world, "b").await;
    assert_eq!(condition(&world, "Signed"), (json!("False"), json!("VerificationFailed")));
    assert_eq!(condition(&world, "Reproduced").0, json!("True"), "the verdict is in the sealed status");

    let api: Api<ConfigMap> = Api::namespaced(world.context.client.clone(), "team");
    api.delete(&name, &DeleteParams::default()).await.unwrap();
    assert_eq!(posts(settle::<TrainingRun>(&world, "b").await), 1, "it is signed again");
    assert_eq!(condition(&world, "Signed").0, json!("True"));
    assert_eq!(payload(&world.api.object(&place).unwrap()), signed, "the statement is the same");

    // A status of another client signs nothing.
    let mut edited = world.api.object(&path("trainingruns", "b")).unwrap();
    edited["status"]["reproduction"]["uid"] = json!("another");
    world.api.put(&path("trainingruns", "b"), edited);
    api.delete(&name, &DeleteParams::default()).await.unwrap();
    world.api.requests();
    let (requests, _) = world.reconcile::<TrainingRun>("b").await;
    assert_eq!(posts(requests), 0);
}
