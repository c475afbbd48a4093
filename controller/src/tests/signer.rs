//! The signing key at the first start and at later starts.

use k8s_openapi::ByteString;
use serde_json::json;

use super::world::Api;
use crate::signer::{NAME, Signer};

const SECRET: &str = "/api/v1/namespaces/codex-system/secrets/codex-signing-key";
const PIN: &str = "/api/v1/namespaces/codex-system/configmaps/codex-signing-key";

async fn load(api: &Api) -> Signer {
    Signer::load(api.client(), "codex-system").await.unwrap()
}

#[tokio::test]
async fn the_key_is_created_once_and_then_loaded() {
    let api = Api::default();
    let first = load(&api).await;
    first.available().unwrap();
    let manager = "as codex-controller";
    let collection = |path: &str| path.rsplit_once('/').unwrap().0.to_owned();
    assert_eq!(
        api.requests(),
        [
            format!("GET {PIN}"),
            format!("GET {SECRET}"),
            format!("POST {} {manager}", collection(SECRET)),
            format!("POST {} {manager}", collection(PIN)),
        ]
    );
    let second = load(&api).await;
    assert_eq!(second.fingerprint(), first.fingerprint());
    assert_eq!(api.requests(), [format!("GET {PIN}"), format!("GET {SECRET}")]);
    assert_eq!(api.object(PIN).unwrap()["data"]["fingerprint"], json!(first.fingerprint().unwrap().to_string()));
    assert_eq!(api.object(PIN).unwrap()["immutable"], json!(true));
    assert!(api.object(SECRET).unwrap()["data"]["private.pem"].is_string());
}

#[tokio::test]
async fn a_missing_or_changed_key_signs_nothing_and_is_not_replaced() {
    let api = Api::default();
    let first = load(&api).await;
    let other = Api::default();
    load(&other).await;
    api.put(SECRET, other.object(SECRET).unwrap());
    let changed = load(&api).await;
    assert_eq!(changed.fingerprint(), first.fingerprint());
    assert!(first.fingerprint().is_some());
    assert!(changed.available().unwrap_err().contains("not the pinned one"));
    assert!(changed.sign(b"x").is_err());
    let lost = Api::default();
    lost.put(PIN, api.object(PIN).unwrap());
    let lost_signer = load(&lost).await;
    assert!(lost_signer.available().unwrap_err().contains(&format!("the Secret {NAME} does not exist")));
    assert!(lost.object(SECRET).is_none(), "no key was created");
}

#[tokio::test]
async fn an_unusable_key_or_pin_stops_no_start() {
    let good = Api::default();
    let fingerprint = load(&good).await.fingerprint();
    let api = Api::default();
    let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMAA=\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let mut secret = good.object(SECRET).unwrap();
    let usable = secret["data"]["private.pem"].clone();
    secret["data"]["private.pem"] = json!(ByteString(encrypted.into()));
    api.put(SECRET, secret.clone());
    let unusable = load(&api).await;
    let told = unusable.available().unwrap_err();
    assert!(told.contains("none is pinned") && told.contains("encrypted") && told.contains("P-256"), "{told}");
    assert!(unusable.fingerprint().is_none() && unusable.sign(b"x").is_err());
    assert!(api.object(PIN).is_none(), "nothing is pinned");
    // The next start with a usable key pins it.
    secret["data"]["private.pem"] = usable;
    api.put(SECRET, secret);
    let usable = load(&api).await;
    usable.available().unwrap();
    assert_eq!(usable.fingerprint(), fingerprint);
    let mut pin = api.object(PIN).unwrap();
    pin["data"]["key.pem"] = json!("");
    api.put(PIN, pin);
    let told = load(&api).await.available().unwrap_err();
    assert!(told.contains("has no valid public key") && told.contains("restart the controller"), "{told}");
}
