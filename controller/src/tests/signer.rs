//! The signing key at the first start and at later starts.

use codex_signing::key::PrivateKey;
use k8s_openapi::{ByteString, api::core::v1::ConfigMap};
use kube::api::DeleteParams;
use serde_json::json;

use super::world::Api;
use crate::signer::{Expiries, NAME, Signer, Signing, new_secret};

const SECRET: &str = "/api/v1/namespaces/codex-system/secrets/codex-signing-key";
const PIN: &str = "/api/v1/namespaces/codex-system/configmaps/codex-signing-key";
const LISTED: &str = "/api/v1/namespaces/codex-system/configmaps/codex-trusted-keys";
const SIGSTORE: &str = "/api/v1/namespaces/codex-system/configmaps/codex-sigstore";

async fn load(api: &Api) -> Signer {
    Signer::load(api.client(), "codex-system", Signing::Key).await.unwrap()
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
            format!("GET {LISTED}"),
            format!("GET {SIGSTORE}"),
            format!("GET {SECRET}"),
            format!("POST {} {manager}", collection(SECRET)),
            format!("POST {} {manager}", collection(PIN)),
        ]
    );
    let second = load(&api).await;
    assert_eq!(second.fingerprint(), first.fingerprint());
    let read = [PIN, LISTED, SIGSTORE, SECRET].map(|path| format!("GET {path}"));
    assert_eq!(api.requests(), read);
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
    assert!(changed.sign(&[b"x"]).await.is_err());
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
    assert!(unusable.fingerprint().is_none() && unusable.sign(&[b"x"]).await.is_err());
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

/// The list of trusted keys with these entries.
pub(super) fn list(entries: &[(&str, String)]) -> serde_json::Value {
    let data: serde_json::Map<_, _> = entries.iter().map(|(name, text)| ((*name).to_owned(), json!(text))).collect();
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "codex-trusted-keys"}, "data": data})
}

#[tokio::test]
async fn keys_are_rotated_by_the_list_without_a_restart() {
    let api = Api::default();
    let signer = load(&api).await;
    let former = signer.trusted().keys.remove(0);
    let next = PrivateKey::generate().unwrap();
    // Both keys are listed before the Secret changes, and the pin no longer matters.
    let limited = format!("notAfter: 2027-06-01T00:00:00Z\n{}", former.to_pem());
    api.put(LISTED, list(&[("2026.pub", limited), ("2027.pub", next.public().to_pem().to_owned())]));
    signer.refresh().await;
    signer.available().unwrap();
    assert_eq!(signer.fingerprint(), Some(former.fingerprint()));
    let end = "2027-06-01T00:00:00Z".parse().unwrap();
    let before = "2027-05-31T23:59:59Z".parse().unwrap();
    assert!(signer.signs_at(before) && !signer.signs_at(end), "the signing key expires");
    assert_eq!(signer.expiries(before), Expiries { signing: Some(end), others: None });
    api.put(SECRET, serde_json::to_value(new_secret(&next).unwrap()).unwrap());
    signer.refresh().await;
    assert_eq!(signer.fingerprint(), Some(next.public().fingerprint()));
    assert!(signer.signs_at(end) && signer.trusted().keys.len() == 2);
    assert_eq!(signer.expiries(before), Expiries { signing: None, others: Some(end) });
    assert_eq!(signer.expiries(end), Expiries::default(), "an expired key needs no more attention");
    assert_eq!(signer.sign(&[b"{}"]).await.unwrap().key.as_deref(), Some(next.public().to_pem()));
    let fingerprints: Vec<_> = signer.listed(&[]).iter().map(|listed| listed.fingerprint).collect();
    assert_eq!(fingerprints, [former.fingerprint(), next.public().fingerprint()]);
    // A start finds the same.
    assert_eq!(load(&api).await.fingerprint(), signer.fingerprint());
    // Without the list, the pin counts again, and the Secret does not hold its key.
    let lists = kube::Api::<ConfigMap>::namespaced(api.client(), "codex-system");
    lists.delete("codex-trusted-keys", &DeleteParams::default()).await.unwrap();
    signer.refresh().await;
    let told = signer.available().unwrap_err();
    assert!(told.contains("not the pinned one") && told.contains("codex-trusted-keys"), "{told}");
    assert_eq!(signer.fingerprint(), Some(former.fingerprint()));
}

#[tokio::test]
async fn a_list_without_a_usable_key_signs_nothing_and_pins_nothing() {
    let api = Api::default();
    let key = PrivateKey::generate().unwrap();
    api.put(LISTED, list(&[("team.pub", key.public().to_pem().to_owned())]));
    let signer = load(&api).await;
    assert!(api.object(SECRET).is_none() && api.object(PIN).is_none(), "no key is created");
    assert!(signer.available().unwrap_err().contains("does not exist"));
    assert_eq!(
        (signer.fingerprint(), signer.trusted().keys.len()),
        (None, 1),
        "what the listed key signed is still verified"
    );
    api.put(SECRET, serde_json::to_value(new_secret(&PrivateKey::generate().unwrap()).unwrap()).unwrap());
    signer.refresh().await;
    assert!(signer.available().unwrap_err().contains("does not list"));
    api.put(SECRET, serde_json::to_value(new_secret(&key).unwrap()).unwrap());
    signer.refresh().await;
    signer.available().unwrap();
    assert!(api.object(PIN).is_none());
}

/// The ConfigMap of a Sigstore instance.
fn sigstore() -> serde_json::Value {
    let service = |version: u32| {
        json!([{"url": "https://service", "majorApiVersion": version, "validFor": {"start": "2020-01-01T00:00:00Z"},
            "operator": "o"}])
    };
    let signing = json!({
        "mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json",
        "caUrls": service(1), "rekorTlogUrls": service(2), "tsaUrls": service(1),
        "rekorTlogConfig": {"selector": "ANY"}, "tsaConfig": {"selector": "ANY"},
    });
    let root = include_str!("../../../provenance/signing/tests/fixtures/keyless/trusted_root.json");
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "codex-sigstore"},
        "data": {"signing_config.json": signing.to_string(), "trusted_root.json": root}})
}

async fn load_keyless(api: &Api, folder: &std::path::Path) -> Signer {
    let token = crate::keyless::token(folder, "sigstore");
    Signer::load(api.client(), "codex-system", Signing::Keyless(token)).await.unwrap()
}

#[tokio::test]
async fn without_a_key_the_service_account_signs() {
    let (api, folder) = (Api::default(), tempfile::tempdir().unwrap());
    let signer = load_keyless(&api, folder.path()).await;
    let told = signer.available().unwrap_err();
    assert!(told.contains("the ConfigMap codex-sigstore does not exist"), "{told}");
    assert!(api.object(SECRET).is_none() && api.object(PIN).is_none(), "no key is created");
    assert!(signer.trusted().is_empty() && signer.sign(&[b"{}"]).await.is_err());
    api.put(SIGSTORE, sigstore());
    signer.refresh().await;
    signer.available().unwrap();
    let listed = signer.listed(&[]);
    let identity = listed[0].identity.clone().unwrap();
    assert!(identity.subject.ends_with("/codex-system/serviceaccounts/codex-controller"), "{identity}");
    assert_eq!((listed.len(), signer.fingerprint()), (1, Some(identity.fingerprint())));
    assert!(signer.signs_at("2027-01-01T00:00:00Z".parse().unwrap()));
    assert_eq!(
        signer.trusted_root().unwrap().text.len(),
        sigstore()["data"]["trusted_root.json"].as_str().unwrap().trim().len()
    );
    // A list that does not name it.
    let pattern = |namespace: &str| {
        format!("issuer: {}\nsubject: https://kubernetes.io/namespaces/{namespace}/serviceaccounts/*", identity.issuer)
    };
    api.put(LISTED, list(&[("tenants.identity", pattern("other"))]));
    signer.refresh().await;
    let told = signer.available().unwrap_err();
    assert!(told.contains("does not list") && told.contains(&identity.subject), "{told}");
    // Keys and identities together.
    let key = PrivateKey::generate().unwrap();
    let limited = format!("notAfter: 2027-06-01T00:00:00Z\n{}", pattern("codex-system"));
    api.put(LISTED, list(&[("us.identity", limited), ("former.pub", key.public().to_pem().to_owned())]));
    signer.refresh().await;
    signer.available().unwrap();
    let end = "2027-06-01T00:00:00Z".parse().unwrap();
    assert!(!signer.signs_at(end));
    assert_eq!(signer.expiries("2027-05-01T00:00:00Z".parse().unwrap()), Expiries { signing: Some(end), others: None });
    assert_eq!(signer.listed(&[]).len(), 2);
    // A root that is damaged verifies nothing.
    let mut damaged = sigstore();
    damaged["data"]["trusted_root.json"] = json!("{}");
    api.put(SIGSTORE, damaged);
    signer.refresh().await;
    let told = signer.available().unwrap_err();
    assert!(told.contains("nothing verifies them") && told.contains("trusted_root.json"), "{told}");
}

#[tokio::test]
async fn a_pinned_key_stays_trusted_after_the_change_to_keyless() {
    let (api, folder) = (Api::default(), tempfile::tempdir().unwrap());
    let key = load(&api).await.fingerprint().unwrap();
    api.put(SIGSTORE, sigstore());
    let signer = load_keyless(&api, folder.path()).await;
    signer.available().unwrap();
    let listed: Vec<_> = signer.listed(&[]).iter().map(|it| it.fingerprint).collect();
    assert_eq!(listed, [key, signer.fingerprint().unwrap()]);
    assert_ne!(signer.fingerprint(), Some(key));
}
