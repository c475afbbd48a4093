//! A model that is signed through the real services, and what a verifier must not accept.

use std::{path::Path, sync::Arc};

use codex_controller::keyless::{Http, KeylessError, KeylessSigner, Settings, Unfinished, trusted_root};
use codex_provenance::{manifest::Manifest, oms};
use codex_signing::{
    keyless::Keyless,
    verify::{Trusts as _, verify_signature},
};
use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::{Value, json};

use crate::{
    instance::{Instance, Service, base64},
    issuer::Issuer,
};

/// A change of a bundle.
type Change = Box<dyn Fn(&mut Value)>;

fn settings(instance: &Instance) -> Settings {
    let data = [
        ("signing_config.json", instance.signing_config()),
        ("trusted_root.json", instance.trusted_root()),
        ("allowHTTP", "true".to_owned()),
    ];
    let data = data.into_iter().map(|(name, text)| (name.to_owned(), text)).collect();
    let found = ConfigMap { data: Some(data), ..ConfigMap::default() };
    let root = trusted_root(Some(&found)).unwrap().map(|(root, _)| root);
    Settings::read(Some(&found), root).unwrap()
}

pub(crate) async fn signer(folder: &Path, token: &str, instance: &Instance) -> KeylessSigner {
    let path = folder.join("token");
    std::fs::write(&path, token).unwrap();
    let settings = settings(instance);
    let http = Box::new(Http::new(&settings).unwrap());
    KeylessSigner::new(path, settings, http, Arc::new(Unfinished::default())).await.unwrap()
}

fn edited(bundle: &[u8], edit: &dyn Fn(&mut Value)) -> Vec<u8> {
    let mut value = serde_json::from_slice(bundle).unwrap();
    edit(&mut value);
    serde_json::to_vec(&value).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_is_signed_by_an_identity_and_altered_bundles_are_refused() {
    let issuer = Issuer::start();
    let mut instance = Instance::start("127.0.0.1", &issuer.url, None);
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    std::fs::create_dir(&model).unwrap();
    std::fs::write(model.join("config.json"), "{}").unwrap();
    let manifest = Manifest::of_dir(&model).unwrap();
    let payload = oms::payload(&manifest, "run");
    let signer_of = async |account: &str, instance: &Instance| {
        signer(folder.path(), &issuer.token("codex-system", account), instance).await
    };

    // A log that is away: the certificate and the timestamp wait for it.
    let signing = signer_of("codex-controller", &instance).await;
    instance.kill(Service::Rekor);
    let told = signing.sign(&payload).await.unwrap_err();
    assert!(matches!(told, KeylessError::Away(_)) && told.waits() && told.to_string().contains("Rekor"), "{told}");
    instance.run(Service::Rekor);
    tokio::time::sleep(std::time::Duration::from_secs(6)).await;
    let bundle = signing.sign(&payload).await.unwrap();
    assert_eq!(signing.sign(&payload).await.unwrap(), bundle, "what is not recorded yet is not signed again");

    let (root, subject) =
        (instance.trusted_root(), "https://kubernetes.io/namespaces/codex-system/serviceaccounts/codex-controller");
    let trust = |root: &str, subject: &str, issuer: &str| Keyless::new(root, subject, issuer).unwrap();
    for accepted in [subject, "https://kubernetes.io/namespaces/*/serviceaccounts/codex-controller"] {
        let keyless = trust(&root, accepted, &issuer.url);
        let signed = verify_signature(&manifest, &bundle, &keyless, Some(manifest.digest())).unwrap();
        assert_eq!(signed.identity.unwrap().subject, subject);
    }
    let told =
        |keyless: &Keyless, bundle: &[u8]| keyless.open(bundle).map(|opened| opened.signer).unwrap_err().to_string();
    let another = "https://kubernetes.io/namespaces/team-a/serviceaccounts/default";
    assert!(told(&trust(&root, another, &issuer.url), &bundle).contains("was signed by another identity"));
    assert!(told(&trust(&root, subject, "https://other.example.com"), &bundle).contains("of another issuer"));

    // Another account of the same cluster.
    let other = signer_of("default", &instance).await.sign(&payload).await.unwrap();
    let keyless = trust(&root, subject, &issuer.url);
    assert!(told(&keyless, &other).contains("was signed by another identity"));

    // Parts of another bundle, and altered ones.
    let other: Value = serde_json::from_slice(&other).unwrap();
    let of_other = |pointer: &'static str| -> Change {
        let part = other.pointer(pointer).unwrap().clone();
        Box::new(move |bundle| *bundle.pointer_mut(pointer).unwrap() = part.clone())
    };
    let stamps = "/verificationMaterial/timestampVerificationData/rfc3161Timestamps";
    let changes: Vec<(&str, Change)> = vec![
        ("no timestamp", Box::new(move |bundle| *bundle.pointer_mut(stamps).unwrap() = json!([]))),
        ("the timestamp of another signature", of_other("/verificationMaterial/timestampVerificationData")),
        ("the entry of another signature", of_other("/verificationMaterial/tlogEntries")),
        ("the proof of another entry", of_other("/verificationMaterial/tlogEntries/0/inclusionProof")),
        ("the certificate of another account", of_other("/verificationMaterial/certificate")),
        ("no entry", Box::new(|bundle| bundle["verificationMaterial"]["tlogEntries"] = json!([]))),
        (
            "a forged inclusion proof",
            Box::new(|bundle| {
                let proof = &mut bundle["verificationMaterial"]["tlogEntries"][0]["inclusionProof"];
                proof["hashes"] = json!([base64(&[7; 32])]);
            }),
        ),
        (
            "another payload",
            Box::new(|bundle| {
                let other = json!({"_type": "https://in-toto.io/Statement/v1", "predicateType": "x", "predicate": {},
                    "subject": [{"name": "a", "digest": {"sha256": "0".repeat(64)}}]});
                bundle["dsseEnvelope"]["payload"] = json!(base64(other.to_string().as_bytes()));
            }),
        ),
    ];
    for (what, change) in changes {
        assert!(keyless.open(&edited(&bundle, &*change)).is_err(), "{what}");
    }

    // A token that Fulcio does not accept.
    let stranger = Issuer::start();
    let refused = signer(folder.path(), &stranger.token("codex-system", "codex-controller"), &instance).await;
    let why = refused.sign(&payload).await.unwrap_err();
    assert!(!why.waits() && why.to_string().contains("Fulcio at "), "{why}");

    // Another instance with the same issuer: its certificates, its log and its clock count for nothing here.
    // The timestamp authority of this version has one port for its metrics, so that two cannot run at a time.
    instance.kill(Service::Timestamp);
    let foreign = Instance::start("127.0.0.1", &issuer.url, None);
    let signed_there = signer_of("codex-controller", &foreign).await.sign(&payload).await.unwrap();
    assert!(told(&keyless, &signed_there).contains("is not validly signed by an identity"));
    assert!(trust(&foreign.trusted_root(), subject, &issuer.url).open(&signed_there).is_ok());
    let mixed = |field: &str| {
        let mut root: Value = serde_json::from_str(&root).unwrap();
        let there: Value = serde_json::from_str(&foreign.trusted_root()).unwrap();
        root[field] = there[field].clone();
        trust(&root.to_string(), subject, &issuer.url).open(&bundle).is_err()
    };
    for field in ["tlogs", "certificateAuthorities", "timestampAuthorities"] {
        assert!(mixed(field), "{field}");
    }
}
