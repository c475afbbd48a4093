//! The reference implementation of OpenSSF Model Signing made `fixtures/model.sig` (see `fixtures/make.sh`): what it
//! signs is accepted here, and our statement about the same files says the same.

#![allow(clippy::unwrap_used)]

use std::{collections::BTreeSet, fs, path::Path};

use codex_provenance::{manifest::Manifest, oms};
use codex_signing::{
    bundle,
    key::PublicKey,
    verify::{VerifyError, verify_signature},
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
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let directory = tempfile::tempdir().unwrap();
    for (path, contents) in FILES {
        let path = directory.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
    }
    let key = PublicKey::from_pem(&fs::read_to_string(fixtures.join("key.pem")).unwrap()).unwrap();
    (directory, fs::read(fixtures.join("model.sig")).unwrap(), key)
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
