//! Bases from a hub, and bases that must be signed.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use clap::Parser;
use codex_provenance::{
    ModelDigest,
    manifest::Manifest,
    oms::{self, SIGNATURE},
};
use codex_reports::exit;
use codex_signing::key::{PrivateKey, Signer as _};

use super::base::{model, run, train, write_base, write_data};
use crate::{
    artifacts::metadata::RunMetadata,
    error::chain,
    hub::server::{Behaviour, COMMIT, NAME, Server},
    model::read_directory,
    training::{Base, TrainError, command::Train},
};

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    train: Train,
}

/// Returns the base of a command line, whose output is `output`.
fn base_of(output: &Path, arguments: &[&str]) -> Result<Base, TrainError> {
    let fixed = ["train", "--template", "lora", "--output", output.to_str().unwrap()];
    let train = Arguments::try_parse_from([&fixed, arguments].concat()).unwrap().train;
    train.base(&|| false).map(Option::unwrap)
}

/// A hub with a base, and the digest of the base.
fn hub(change: impl FnOnce(&mut Behaviour)) -> (Server, ModelDigest) {
    let place = tempfile::tempdir().unwrap();
    let digest = write_base(place.path());
    let files = read_directory(place.path()).unwrap();
    let large = BTreeSet::from(["model.safetensors".to_owned()]);
    let mut behaviour = Behaviour { files, large, ..Behaviour::default() };
    behaviour.files.insert("README.md".to_owned(), b"words".to_vec());
    change(&mut behaviour);
    (Server::start(behaviour), digest)
}

#[test]
fn a_base_of_a_hub_is_downloaded_once_and_its_commit_is_recorded() {
    let (server, digest) = hub(|_| ());
    let place = tempfile::tempdir().unwrap();
    let output = place.path().join("output");
    let from_hub = ["--base-from-hub", NAME, "--hub-endpoint", &server.endpoint];
    let base = base_of(&output, &from_hub).unwrap();
    assert_eq!(base.digest(), digest);
    let reported = base.reported();
    assert_eq!((reported.digest, reported.commit.as_deref(), reported.signer), (digest, Some(COMMIT), None));
    assert!(base.path().starts_with(output.join("base")));

    let files = write_data(place.path());
    let ended = model(train(&run(&files, &["training.method=none"]), &base, &files, &output));
    assert_eq!(ended.digest, digest);
    let metadata = fs::read(output.join("artifacts/run_metadata.json")).unwrap();
    let metadata: RunMetadata = serde_json::from_slice(&metadata).unwrap();
    let recorded = metadata.base.unwrap();
    assert_eq!((recorded.repository.as_deref(), recorded.commit.as_deref()), (Some(NAME), Some(COMMIT)));

    // Another attempt needs no hub.
    server.set(|it| it.refusals = Some((404, "RepoNotFound", 100)));
    let expected = digest.to_string();
    base_of(&output, &[&from_hub[..], &["--base-digest", &expected]].concat()).unwrap();
    assert!(server.seen().is_empty());
    let other = codex_provenance::Sha256::of("other").to_string();
    let error = base_of(&output, &[&from_hub[..], &["--base-digest", &other]].concat()).unwrap_err();
    assert_eq!(error.exit(), exit::BAD_INPUT);
    assert!(error.to_string().contains(&other), "{error}");
}

#[test]
fn failures_of_a_hub_are_final_only_if_another_attempt_cannot_help() {
    let place = tempfile::tempdir().unwrap();
    for (status, exit, reason) in [
        (401, exit::BAD_INPUT, "InvalidConfiguration"),
        (403, exit::BAD_INPUT, "InvalidConfiguration"),
        (404, exit::BAD_INPUT, "InvalidConfiguration"),
        (410, exit::FAILED, "DownloadFailed"),
    ] {
        let (server, _) = hub(|it| it.refusals = Some((status, "", 100)));
        let error = base_of(place.path(), &["--base-from-hub", NAME, "--hub-endpoint", &server.endpoint]).unwrap_err();
        let failure = error.failure();
        assert_eq!((error.exit(), &*failure.reason, failure.is_final), (exit, reason, exit == 2), "{status}");
        let told = format!("the base cannot be downloaded: {}", if status == 404 { "the hub has no" } else { "" });
        assert!(failure.message.starts_with(&told), "{}", failure.message);
    }
    let error = base_of(place.path(), &["--base-from-hub", NAME, "--hub-endpoint", "hub"]).unwrap_err();
    assert!(error.exit() == exit::BAD_INPUT && chain(&error).contains("the endpoint of the hub is \"hub\""), "{error}");
}

/// A signed base with its key beside it.
struct Signed {
    place: tempfile::TempDir,
    key: PrivateKey,
}

impl Signed {
    fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        let signed = Self { key: PrivateKey::generate().unwrap(), place };
        write_base(&signed.base());
        signed.sign(&Manifest::of_dir(&signed.base()).unwrap());
        fs::write(signed.pem(), signed.key.public().to_pem()).unwrap();
        signed
    }

    fn sign(&self, manifest: &Manifest) {
        fs::write(self.base().join(SIGNATURE), self.key.sign(&oms::payload(manifest, "base")).unwrap()).unwrap();
    }

    fn base(&self) -> PathBuf {
        self.place.path().join("base")
    }

    fn pem(&self) -> PathBuf {
        self.place.path().join("key.pem")
    }

    fn open(&self, arguments: &[&str]) -> Result<Base, TrainError> {
        let (base, pem) = (self.base(), self.pem());
        let own = ["--base", base.to_str().unwrap(), "--base-signed-by", pem.to_str().unwrap()];
        base_of(&self.place.path().join("output"), &[&own, arguments].concat())
    }

    fn refused(&self) -> String {
        let error = self.open(&[]).unwrap_err();
        let failure = error.failure();
        assert!(error.exit() == exit::BAD_INPUT && failure.reason == "BaseMismatch", "{failure:?}");
        failure.message
    }
}

#[test]
fn a_signed_base_is_accepted_and_its_signer_recorded() {
    let signed = Signed::new();
    let digest = write_base(&signed.place.path().join("unsigned"));
    let base = signed.open(&["--base-digest", &digest.to_string()]).unwrap();
    let signer = signed.key.public().fingerprint();
    assert_eq!((base.digest(), base.reported().signer), (digest, Some(signer)));
    assert_eq!(base.described().signer, Some(signer));
    let files = write_data(signed.place.path());
    let output = signed.place.path().join("output");
    let ended = model(train(&run(&files, &["training.method=none"]), &base, &files, &output));
    // The model of the run is not the one that was signed, even if its files are the same.
    assert_eq!(ended.digest, digest);
    assert!(!output.join("model").join(SIGNATURE).exists());
    // A signature that nobody requires is no part of the base either.
    assert_eq!(Base::open(&signed.base(), None).unwrap().digest(), digest);
}

#[test]
fn a_changed_added_or_missing_file_is_named() {
    for (file, told) in [("config.json", "config.json was changed"), ("README.md", "README.md")] {
        let signed = Signed::new();
        fs::write(signed.base().join(file), "{}").unwrap();
        let message = signed.refused();
        assert!(message.contains("is not signed as --base-signed-by requires") && message.contains(told), "{message}");
    }
    let signed = Signed::new();
    fs::remove_file(signed.base().join("tokenizer_config.json")).unwrap();
    assert!(signed.refused().contains("tokenizer_config.json"));
}

#[test]
fn another_key_and_a_missing_or_damaged_signature_are_refused() {
    let signed = Signed::new();
    fs::write(signed.pem(), PrivateKey::generate().unwrap().public().to_pem()).unwrap();
    assert!(signed.refused().contains("is not signed as --base-signed-by requires"));
    fs::remove_file(signed.base().join(SIGNATURE)).unwrap();
    let told = signed.refused();
    assert!(told.contains("has no model.sig, but --base-signed-by requires a signature"), "{told}");
    fs::write(signed.base().join(SIGNATURE), "no bundle").unwrap();
    assert!(signed.refused().contains("OMS bundle is not a Sigstore bundle"));
}

#[test]
fn a_key_that_is_none_is_bad_input() {
    let signed = Signed::new();
    fs::write(signed.pem(), "no key").unwrap();
    let error = signed.open(&[]).unwrap_err();
    let told = error.to_string();
    assert!(error.exit() == exit::BAD_INPUT && told.starts_with("--base-signed-by: "), "{told}");
    fs::remove_file(signed.pem()).unwrap();
    let told = signed.open(&[]).unwrap_err().to_string();
    assert!(told.contains("key.pem does not exist"), "{told}");
}

#[test]
fn a_signed_repository_may_have_files_that_a_download_leaves_out() {
    let signed = Signed::new();
    // The signature covers README.md, which is not downloaded.
    fs::write(signed.base().join("README.md"), "words").unwrap();
    fs::remove_file(signed.base().join(SIGNATURE)).unwrap();
    signed.sign(&Manifest::of_dir(&signed.base()).unwrap());
    let bundle = fs::read(signed.base().join(SIGNATURE)).unwrap();
    let (server, digest) = hub(|it| drop(it.files.insert(SIGNATURE.to_owned(), bundle)));
    let pem = signed.pem();
    let open = |output: &str| {
        let hub = ["--base-from-hub", NAME, "--hub-endpoint", &server.endpoint];
        let own = ["--base-signed-by", pem.to_str().unwrap()];
        base_of(&signed.place.path().join(output), &[&hub[..], &own].concat())
    };
    let base = open("one").unwrap();
    assert_eq!((base.digest(), base.reported().signer), (digest, Some(signed.key.public().fingerprint())));
    // A file that a download takes must be there, and as it was signed.
    server.set(|it| drop(it.files.insert("generation_config.json".to_owned(), b"{}".to_vec())));
    assert!(chain(&open("two").unwrap_err()).contains("generation_config.json"));
    server.set(|it| {
        it.files.remove("generation_config.json");
        it.files.remove("tokenizer_config.json");
    });
    assert!(chain(&open("three").unwrap_err()).contains("tokenizer_config.json"));
}

#[test]
fn arguments_that_exclude_each_other_are_refused() {
    for arguments in [
        &["--base", "x", "--base-from-hub", "a/b"][..],
        &["--base-signed-by", "key.pem"],
        &["--base-digest", "0123"],
        &["--base-from-hub", "small"],
    ] {
        let fixed = ["train", "--template", "lora", "--output", "x"];
        assert!(Arguments::try_parse_from([&fixed, arguments].concat()).is_err(), "{arguments:?}");
    }
}
