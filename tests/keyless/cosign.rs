//! cosign itself verifies every bundle that the controller makes, offline: run by `make test-cosign`, which builds it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use codex_controller::keyless::KeylessSigner;
use codex_provenance::Sha256;
use codex_signing::key::{PrivateKey, Signer as _};
use codex_tests::{
    process::output,
    statements::{Statement, statements},
};
use serde_json::{Value, json};

use crate::{
    instance::{Instance, base64},
    issuer::Issuer,
    signature::signer,
};

pub(crate) const SUBJECT: &str = "https://kubernetes.io/namespaces/codex-system/serviceaccounts/codex-controller";
/// Nothing answers there: a request that cosign makes fails.
const NOWHERE: &str = "http://127.0.0.1:9";

/// Who must have signed.
enum Wanted<'a> {
    Key(&'a Path),
    Identity { root: &'a Path, issuer: &'a str, subject: &'a str },
}

/// Lets cosign verify a bundle: its signature, its type, and the digest that it is about. Nothing can be downloaded.
fn cosign(bundle: &Path, wanted: &Wanted<'_>, predicate_type: &str, subject: Sha256) -> codex_tests::Result<String> {
    let program = std::env::var_os("COSIGN").map(PathBuf::from);
    let program = program.unwrap_or_else(|| panic!("COSIGN is not set: run `make test-cosign`"));
    let home = tempfile::tempdir().unwrap();
    let mut cosign = Command::new(program);
    cosign.arg("verify-blob-attestation").arg("--bundle").arg(bundle).args(["--type", predicate_type]);
    cosign.args(["--digest", &subject.to_string(), "--digestAlg", "sha256"]);
    match wanted {
        // No transparency log has what a key signed.
        Wanted::Key(key) => cosign.arg("--key").arg(key).arg("--insecure-ignore-tlog"),
        // No log of certificates has those of a private Fulcio.
        Wanted::Identity { root, issuer, subject } => cosign
            .arg("--trusted-root")
            .arg(root)
            .args(["--certificate-oidc-issuer", issuer, "--certificate-identity", subject])
            .args(["--use-signed-timestamps", "--insecure-ignore-sct"]),
    };
    for proxy in ["HTTP_PROXY", "HTTPS_PROXY"] {
        cosign.env(proxy, NOWHERE);
    }
    output(cosign.env("HOME", home.path()).env("TUF_ROOT", home.path().join("tuf")))
}

/// Returns a bundle whose payload differs in one byte.
pub(crate) fn tampered(bundle: &[u8]) -> Vec<u8> {
    use ::base64::{Engine as _, engine::general_purpose::STANDARD};
    let mut bundle: Value = serde_json::from_slice(bundle).unwrap();
    let mut payload = STANDARD.decode(bundle["dsseEnvelope"]["payload"].as_str().unwrap()).unwrap();
    let last = payload.len() - 3;
    payload[last] ^= 1;
    bundle["dsseEnvelope"]["payload"] = json!(base64(&payload));
    bundle.to_string().into_bytes()
}

/// Every bundle is accepted as it was signed, and refused if it was changed, is of another type or about another digest, or if
/// somebody else is wanted.
fn check(folder: &Path, statement: &Statement, bundle: &[u8], wanted: &Wanted<'_>, another: &Wanted<'_>) {
    let Statement { name, predicate_type, subject, .. } = statement;
    let path = folder.join(format!("{name}.json"));
    fs::write(&path, bundle).unwrap();
    if let Err(why) = cosign(&path, wanted, predicate_type, *subject) {
        panic!("cosign refuses {name}: {why}");
    }
    assert!(cosign(&path, another, predicate_type, *subject).is_err(), "{name}: another signer");
    assert!(cosign(&path, wanted, predicate_type, Sha256::of("another model")).is_err(), "{name}: another digest");
    assert!(cosign(&path, wanted, "https://example.com/v1", *subject).is_err(), "{name}: another type");
    fs::write(&path, tampered(bundle)).unwrap();
    assert!(cosign(&path, wanted, predicate_type, *subject).is_err(), "{name}: another payload");
}

pub(crate) fn model(folder: &Path) -> PathBuf {
    let model = folder.join("model");
    fs::create_dir(&model).unwrap();
    for (name, contents) in [("config.json", "{}"), ("model.safetensors", "weights")] {
        fs::write(model.join(name), contents).unwrap();
    }
    model
}

#[test]
fn cosign_verifies_what_a_key_signed() {
    let folder = tempfile::tempdir().unwrap();
    let (key, other) = (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
    let path = |name: &str| folder.path().join(name);
    for (name, key) in [("key.pem", &key), ("other.pem", &other)] {
        fs::write(path(name), key.public().to_pem()).unwrap();
    }
    for statement in statements(&model(folder.path())).unwrap() {
        let bundle = key.sign(&statement.payload).unwrap();
        let (wanted, another) = (path("key.pem"), path("other.pem"));
        check(folder.path(), &statement, &bundle, &Wanted::Key(&wanted), &Wanted::Key(&another));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cosign_verifies_what_an_identity_signed() {
    let issuer = Issuer::start();
    let instance = tokio::task::block_in_place(|| Instance::start("127.0.0.1", &issuer.url, None));
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root.json");
    fs::write(&root, instance.trusted_root()).unwrap();
    let signing: KeylessSigner =
        signer(folder.path(), &issuer.token("codex-system", "codex-controller"), &instance).await;
    let identity = |subject| Wanted::Identity { root: &root, issuer: &issuer.url, subject };
    let another = "https://kubernetes.io/namespaces/team-a/serviceaccounts/default";
    for statement in statements(&model(folder.path())).unwrap() {
        let bundle = signing.sign(&statement.payload).await.unwrap();
        tokio::task::block_in_place(|| {
            check(folder.path(), &statement, &bundle, &identity(SUBJECT), &identity(another));
        });
    }
}
