//! sigstore-sign signs the same statements at the same services, and its bundles are verified like ours: run by `make test-keyless`, which
//! builds it from `tests/keyless/peer`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use codex_signing::{keyless::Keyless, verify::Trusts as _};
use codex_tests::{
    process::output,
    statements::{Statement, statements},
};
use serde_json::Value;

use crate::{
    cosign::{SUBJECT, model, tampered},
    instance::Instance,
    issuer::Issuer,
    signature::signer,
};

/// Lets sigstore-sign sign a payload with the services of an instance, as the account of a token.
fn sign(folder: &Path, instance: &Instance, token: &str, payload: &[u8]) -> Vec<u8> {
    let program = std::env::var_os("SIGSTORE_SIGN").map(PathBuf::from);
    let program = program.unwrap_or_else(|| panic!("SIGSTORE_SIGN is not set: run `make test-keyless`"));
    // It would ask a proxy even for addresses of this machine.
    let mut command = Command::new(program);
    command.env_clear();
    let files =
        [("config", instance.signing_config().into_bytes()), ("token", token.into()), ("statement", payload.into())];
    for (name, contents) in files {
        let path = folder.join(name);
        fs::write(&path, contents).unwrap();
        command.arg(path);
    }
    output(&mut command).unwrap().into_bytes()
}

/// Returns the names in a value, and what is the same in every bundle of an instance.
fn shape(bundle: &[u8]) -> (Vec<String>, Vec<Value>) {
    let bundle: Value = serde_json::from_slice(bundle).unwrap();
    let mut names = Vec::new();
    collect(&bundle, "", &mut names);
    names.sort_unstable();
    names.dedup();
    let same = ["/mediaType", "/verificationMaterial/tlogEntries/0/kindVersion", "/dsseEnvelope/payloadType"];
    (names, same.map(|pointer| bundle.pointer(pointer).unwrap().clone()).to_vec())
}

/// Adds the names below a path.
fn collect(value: &Value, path: &str, names: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                names.push(format!("{path}/{name}"));
                collect(field, &format!("{path}/{name}"), names);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, path, names)),
        _ => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_sigstore_sign_signs_is_verified_as_ours_and_has_the_same_shape() {
    let issuer = Issuer::start();
    let instance = tokio::task::block_in_place(|| Instance::start("127.0.0.1", &issuer.url, None));
    let folder = tempfile::tempdir().unwrap();
    let token = issuer.token("codex-system", "codex-controller");
    let ours = signer(folder.path(), &token, &instance).await;
    let trust = |subject: &str| Keyless::new(&instance.trusted_root(), subject, &issuer.url).unwrap();
    let (trusted, another) = (trust(SUBJECT), trust("https://kubernetes.io/namespaces/team-a/serviceaccounts/default"));
    for Statement { name, payload, .. } in statements(&model(folder.path())).unwrap() {
        let theirs = tokio::task::block_in_place(|| sign(folder.path(), &instance, &token, &payload));
        let opened = trusted.open(&theirs).unwrap_or_else(|why| panic!("{name}: {why}"));
        assert_eq!((opened.payload, opened.identity.unwrap().subject), (payload.clone(), SUBJECT.to_owned()), "{name}");
        let told = another.open(&theirs).map(|opened| opened.signer).unwrap_err().to_string();
        assert!(told.contains("was signed by another identity"), "{name}: {told}");
        assert!(trusted.open(&tampered(&theirs)).is_err(), "{name}: another payload");
        assert_eq!(shape(&ours.sign(&payload).await.unwrap()), shape(&theirs), "{name}");
    }
}
