//! Signatures of the reference implementation of OpenSSF Model Signing, made by `fixtures/make.sh`, verify here, and our
//! statement about the same files equals the one of the reference. Bundles of Sigstore's conformance suite, in
//! `fixtures/conformance`, are opened or refused as it says.

#![allow(clippy::unwrap_used)]

use std::{collections::BTreeSet, fs, path::Path};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use codex_provenance::{manifest::Manifest, oms};
use codex_signing::{
    bundle,
    key::PublicKey,
    verify::{VerifyError, read_promotion, verify_signature},
};
use serde_json::Value;

const FILES: [(&str, &str); 8] = [
    ("a/b.txt", "slash sorts before dash"),
    ("a-b.txt", "dash"),
    ("a/.gitignore", "kept: not at the top"),
    (".gitignore", "left out"),
    (".git/HEAD", "left out"),
    ("config.json", r#"{"hidden_size": 64}"#),
    ("größe.txt", "not ASCII"),
    ("empty", ""),
];

fn sample() -> (tempfile::TempDir, Vec<u8>, PublicKey) {
    signed("model.sig", "key.pem")
}

/// The sample model, a signature and a key from the fixtures.
fn signed(signature: &str, key: &str) -> (tempfile::TempDir, Vec<u8>, PublicKey) {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let directory = tempfile::tempdir().unwrap();
    for (path, contents) in FILES {
        let path = directory.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
    }
    let key = PublicKey::from_pem(&fs::read_to_string(fixtures.join(key)).unwrap()).unwrap();
    (directory, fs::read(fixtures.join(signature)).unwrap(), key)
}

#[test]
fn what_the_reference_signs_is_accepted() {
    let (directory, signature, key) = sample();
    let manifest = Manifest::of_dir(directory.path()).unwrap();
    let signed = verify_signature(&manifest, &signature, &key, Some(manifest.digest())).unwrap();
    assert_eq!((signed.model, signed.signer), (manifest.digest(), key.fingerprint()));
}

#[test]
fn our_statement_says_what_the_reference_says() {
    let (directory, signature, key) = sample();
    let theirs: Value = serde_json::from_slice(&bundle::open(&signature, &key).unwrap()).unwrap();
    let manifest = Manifest::of_dir(directory.path()).unwrap();
    let mut ours: Value = serde_json::from_slice(&oms::payload(&manifest, "sample")).unwrap();
    // The reference lists what it leaves out in no particular order.
    let sorted = |statement: &Value| {
        let paths = statement["predicate"]["serialization"]["ignore_paths"].as_array().unwrap();
        paths.iter().map(|path| path.as_str().unwrap().to_owned()).collect::<BTreeSet<_>>()
    };
    assert_eq!(sorted(&ours), sorted(&theirs));
    ours["predicate"]["serialization"]["ignore_paths"] = theirs["predicate"]["serialization"]["ignore_paths"].clone();
    assert_eq!(ours, theirs);
}

#[test]
fn what_the_reference_signed_does_not_cover_other_files() {
    let (directory, signature, key) = sample();
    fs::write(directory.path().join("config.json"), r#"{"hidden_size": 65}"#).unwrap();
    fs::rename(directory.path().join("empty"), directory.path().join("blank")).unwrap();
    let manifest = Manifest::of_dir(directory.path()).unwrap();
    let error = verify_signature(&manifest, &signature, &key, None).unwrap_err();
    assert!(matches!(error, VerifyError::Files(_)));
    let told = error.to_string();
    for part in ["config.json was changed", "empty is missing", "blank was added"] {
        assert!(told.contains(part), "{told}");
    }
}

#[test]
fn signatures_with_p384_keys_verify() {
    let (directory, signature, key) = signed("p384.sig", "p384.pem");
    let manifest = Manifest::of_dir(directory.path()).unwrap();
    let verified = verify_signature(&manifest, &signature, &key, Some(manifest.digest())).unwrap();
    assert_eq!((verified.signer, verified.skipped.len()), (key.fingerprint(), 0));
    let (_, _, other) = sample();
    let told = verify_signature(&manifest, &signature, &other, None).unwrap_err().to_string();
    assert!(told.starts_with("the OMS bundle was signed with another key: it names "), "{told}");
    let last = signature.len() - 100;
    let mut changed = signature;
    changed[last] ^= 1;
    assert!(verify_signature(&manifest, &changed, &key, None).is_err());
}

#[test]
fn p384_keys_are_checked_as_p256_keys_are() {
    let (_, _, key) = signed("p384.sig", "p384.pem");
    let body: String = key.to_pem().lines().filter(|line| !line.starts_with('-')).collect();
    let mut der = STANDARD.decode(body).unwrap();
    *der.last_mut().unwrap() ^= 1;
    let off = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der));
    assert!(PublicKey::from_pem(&off).unwrap_err().to_string().ends_with("its point is not on the curve"));
}

#[test]
fn ignored_paths_of_the_reference_are_skipped_and_named() {
    let (directory, signature, key) = signed("ignored.sig", "p384.pem");
    let write = |path: &str| {
        let path = directory.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "not signed").unwrap();
    };
    write("a.md");
    write("notes/draft.md");
    let verify = || verify_signature(&Manifest::of_dir(directory.path()).unwrap(), &signature, &key, None);
    assert_eq!(verify().unwrap().skipped, ["a.md", "notes/draft.md"]);
    write("notes/model.safetensors");
    assert!(verify().unwrap_err().to_string().contains("does not cover \"notes/model.safetensors\""));
    fs::remove_file(directory.path().join("notes/model.safetensors")).unwrap();
    write("b.md");
    assert!(verify().unwrap_err().to_string().ends_with("b.md was added"));
}

#[test]
fn a_single_file_verifies_under_any_name() {
    let (directory, signature, key) = signed("file.sig", "p384.pem");
    let verify = |name: &str| {
        let manifest = Manifest::of_file(&directory.path().join(name)).unwrap();
        verify_signature(&manifest, &signature, &key, None)
    };
    verify("config.json").unwrap();
    fs::copy(directory.path().join("config.json"), directory.path().join("renamed")).unwrap();
    verify("renamed").unwrap();
    assert!(verify("empty").unwrap_err().to_string().contains("empty was changed"));
    // The statement covers one file and no directory.
    let manifest = Manifest::of_dir(directory.path()).unwrap();
    assert!(verify_signature(&manifest, &signature, &key, None).is_err());
}

/// Returns a bundle of the conformance suite, and the key that signed it.
fn vector(name: &str) -> (Vec<u8>, PublicKey) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/conformance").join(name);
    let key = PublicKey::from_pem(&fs::read_to_string(folder.join("key.pub")).unwrap()).unwrap();
    (fs::read(folder.join("bundle.sigstore.json")).unwrap(), key)
}

#[test]
fn a_valid_bundle_of_the_conformance_suite_is_opened_with_its_key_alone() {
    let (bundle, key) = vector("intoto-canonical-log-entry");
    let statement: Value = serde_json::from_slice(&bundle::open(&bundle, &key).unwrap()).unwrap();
    assert_eq!(statement["subject"][0]["name"], "a.txt");
    let (_, other) = vector("dsse-statement-missing-type_fail");
    assert!(bundle::open(&bundle, &other).is_err());
    let mut changed: Value = serde_json::from_slice(&bundle).unwrap();
    let payload = changed["dsseEnvelope"]["payload"].as_str().unwrap().replace("YS50eHQ", "Yi50eHQ");
    changed["dsseEnvelope"]["payload"] = payload.into();
    let changed = serde_json::to_vec(&changed).unwrap();
    assert!(changed != bundle && bundle::open(&changed, &key).is_err());
}

/// Their signatures are valid, and what they hold is no statement.
#[test]
fn statements_of_no_known_type_are_refused_as_the_conformance_suite_demands() {
    let (directory, _, _) = sample();
    let manifest = Manifest::of_dir(directory.path()).unwrap();
    for (name, why) in [
        ("dsse-statement-missing-type_fail", "missing field `_type`"),
        ("dsse-statement-unknown-type_fail", "its type is \"https://in-toto.io/Statement/v2\""),
    ] {
        let (bundle, key) = vector(name);
        assert!(bundle::open(&bundle, &key).is_ok(), "{name}: the signature is valid");
        let told = verify_signature(&manifest, &bundle, &key, None).unwrap_err();
        assert!(matches!(&told, VerifyError::OmsStatement(told) if told.contains(why)), "{name}: {told}");
        let told = read_promotion(&bundle, &key).unwrap_err();
        assert!(matches!(&told, VerifyError::PromotionStatement(told) if told.contains(why)), "{name}: {told}");
    }
}
