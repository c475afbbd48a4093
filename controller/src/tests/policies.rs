//! Promotion policies: which promotions count, and how fast a denied model is scaled to zero.

use codex_crds::ReasoningPod;
use codex_provenance::attestation::AttestationKind;
use serde_json::{Value, json};

use super::{
    reasoning_pod::{TEAM, bundles, judged, manifest, pod, settle},
    world::{World, path},
};

/// Returns a policy for the ring of [`pod`] and the one before.
fn policy(spec: &Value) -> Value {
    json!({
        "apiVersion": "codex-ml.dev/v1alpha1", "kind": "PromotionPolicy", "metadata": {"name": "guard", "uid": "guard-uid"},
        "spec": spec,
    })
}

/// Moves the run and its ReasoningPod to a ring.
async fn move_to(world: &World, ring: &str) -> Value {
    let mut run = world.api.object(&path("trainingruns", "a")).unwrap();
    run["spec"]["rolloutRing"] = json!(ring);
    world.api.put(&path("trainingruns", "a"), run);
    let mut pod = world.api.object(&path("reasoningpods", "p")).unwrap_or_else(|| pod(false));
    pod["spec"]["rolloutRing"] = json!(ring);
    world.api.put(&path("reasoningpods", "p"), pod);
    settle::<ReasoningPod>(world, "p").await;
    world.api.object(&path("reasoningpods", "p")).unwrap()["status"].clone()
}

fn blocked(status: &Value) -> String {
    status["blockedBy"].as_array().into_iter().flatten().map(|it| it.as_str().unwrap()).collect::<Vec<_>>().join("; ")
}

#[tokio::test]
async fn only_a_promotion_that_the_controller_signed_counts_for_the_next_ring() {
    let world = judged(600).await;
    let requires = json!({"rules": [{"ring": "0D_base_", "requires": {"ring": "0C_base_"}}]});
    world.api.put(&path("promotionpolicies", "guard"), policy(&requires));
    let status = move_to(&world, "0D_base_").await;
    assert!(blocked(&status).contains("PromotionPolicy guard, rule for 0D_base_: the model has no recorded promotion"));
    assert!(bundles(&world).is_empty());
    let status = move_to(&world, "0C_base_").await;
    let name = status["promotion"]["bundle"].as_str().unwrap().to_owned();
    let bundle = format!("/api/v1{TEAM}/configmaps/{name}");
    let mut genuine = world.api.object(&bundle).unwrap();
    genuine["metadata"]["creationTimestamp"] = json!("2026-01-01T00:00:00Z");

    // A forged bundle under the same name and labels counts for nothing.
    let mut forged = genuine.clone();
    let text = forged["data"]["bundle.json"].as_str().unwrap().to_owned();
    let payload = text.find("\"payload\":\"").unwrap() + 20;
    let other = if &text[payload..=payload] == "A" { "B" } else { "A" };
    forged["data"]["bundle.json"] = json!(format!("{}{other}{}", &text[..payload], &text[payload + 1..]));
    world.api.put(&bundle, forged);
    let status = move_to(&world, "0D_base_").await;
    assert!(blocked(&status).contains("no recorded promotion in 0C_base_"), "{status:#}");

    world.api.put(&bundle, genuine);
    let status = move_to(&world, "0D_base_").await;
    assert_eq!((blocked(&status).as_str(), &status["promotion"]["ring"]), ("", &json!("0D_base_")), "{status:#}");
}

#[tokio::test]
async fn a_denied_model_is_scaled_to_zero_in_one_reconciliation() {
    let world = judged(600).await;
    world.api.put(&path("reasoningpods", "p"), pod(false));
    settle::<ReasoningPod>(&world, "p").await;
    let replicas = || {
        let path = format!("/apis/apps/v1{TEAM}/deployments/codex-s-p");
        world.api.object(&path).unwrap()["spec"]["replicas"].as_i64()
    };
    assert_eq!(replicas(), Some(1));
    let denies = |models: &Value| json!({"denied": {"models": models}});
    world.api.put(&path("promotionpolicies", "guard"), policy(&denies(&json!([manifest().digest()]))));
    world.reconcile::<ReasoningPod>("p").await.1.unwrap();
    assert_eq!(replicas(), Some(0));
    let status = world.api.object(&path("reasoningpods", "p")).unwrap()["status"].clone();
    assert!(blocked(&status).contains("PromotionPolicy guard, denied.models: "), "{status:#}");
    world.api.put(&path("promotionpolicies", "guard"), policy(&denies(&json!([]))));
    world.reconcile::<ReasoningPod>("p").await.1.unwrap();
    assert_eq!(replicas(), Some(1));
}

#[tokio::test]
async fn attestations_that_a_policy_demands_are_signed_and_must_stay_valid() {
    let world = judged(600).await;
    let entries = AttestationKind::ALL.map(AttestationKind::entry);
    let demands = json!({"rules": [{"ring": "0D_base_", "attestations": AttestationKind::ALL}]});
    world.api.put(&path("promotionpolicies", "guard"), policy(&demands));
    let status = move_to(&world, "0D_base_").await;
    assert_eq!(blocked(&status), "", "{status:#}");
    let bundle = format!("/api/v1{TEAM}/configmaps/{}", status["promotion"]["bundle"].as_str().unwrap());
    let genuine = world.api.object(&bundle).unwrap();
    let names: Vec<_> = genuine["data"].as_object().unwrap().keys().map(String::as_str).collect();
    let mut expected = [&["bundle.json", "key.pem"][..], &entries].concat();
    expected.sort_unstable();
    assert_eq!(names, expected);
    for kind in AttestationKind::ALL {
        let mut without = genuine.clone();
        without["data"].as_object_mut().unwrap().remove(kind.entry());
        world.api.put(&bundle, without);
        let status = move_to(&world, "0D_base_").await;
        let told = blocked(&status);
        assert!(told.contains(&format!("cannot be used: the attestation {kind} is missing")), "{told}");
    }
    let mut swapped = genuine.clone();
    swapped["data"][entries[0]] = genuine["data"][entries[1]].clone();
    world.api.put(&bundle, swapped);
    let told = blocked(&move_to(&world, "0D_base_").await);
    assert!(told.contains("the attestation is refused: testResult is given twice"), "{told}");
    let mut forged = genuine.clone();
    forged["data"][entries[2]] = genuine["data"]["bundle.json"].clone();
    world.api.put(&bundle, forged);
    let told = blocked(&move_to(&world, "0D_base_").await);
    assert!(told.contains("the attestation is refused: its predicate type is"), "{told}");
    world.api.put(&bundle, genuine);
    assert_eq!(blocked(&move_to(&world, "0D_base_").await), "");
}

/// Anyone who may write ConfigMaps can put an entry beside a promotion: unless a policy demands it, nobody reads it.
#[tokio::test]
async fn what_nobody_demands_is_not_read() {
    let world = judged(600).await;
    let demands = |kinds: &Value| policy(&json!({"rules": [{"ring": "0D_base_", "attestations": kinds}]}));
    let [first, second, third, _] = AttestationKind::ALL;
    world.api.put(&path("promotionpolicies", "guard"), demands(&json!([first])));
    let status = move_to(&world, "0D_base_").await;
    let served = status["promotion"].clone();
    assert_eq!((blocked(&status).as_str(), &served["attestations"]), ("", &json!([first])), "{status:#}");
    let bundle = format!("/api/v1{TEAM}/configmaps/{}", served["bundle"].as_str().unwrap());
    let mut edited = world.api.object(&bundle).unwrap();
    let unsigned =
        json!({"mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json", "dsseEnvelope": {"signatures": []}});
    edited["data"][second.entry()] = json!(unsigned.to_string());
    edited["data"][third.entry()] = json!("no JSON");
    world.api.put(&bundle, edited.clone());
    let status = move_to(&world, "0D_base_").await;
    assert_eq!((blocked(&status).as_str(), &status["promotion"]), ("", &served), "{status:#}");
    // The same entry where it is demanded.
    edited["data"][first.entry()] = json!(unsigned.to_string());
    world.api.put(&bundle, edited);
    let told = blocked(&move_to(&world, "0D_base_").await);
    assert!(told.contains("cannot be used: the attestation "), "{told}");
}
