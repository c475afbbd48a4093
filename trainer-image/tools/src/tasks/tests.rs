use std::{fs, fs::File, path::Path, time::Duration};

use codex_provenance::{manifest::Manifest, oms};
use codex_signing::key::{PrivateKey, Signer as _};
use jiff::SignedDuration;

use super::{
    partial,
    verify::{self, Verdict},
};

fn model(path: &Path, key: Option<&PrivateKey>) {
    fs::create_dir_all(path).unwrap();
    fs::write(path.join("config.json"), "{}").unwrap();
    fs::write(path.join("model.safetensors"), "weights").unwrap();
    if let Some(key) = key {
        let payload = oms::payload(&Manifest::of_dir(path).unwrap(), "model");
        fs::write(path.join("model.sig"), key.sign(&payload).unwrap()).unwrap();
    }
}

#[test]
fn every_model_below_a_folder_is_verified() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    let (key, other) = (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
    fs::write(at("key.pem"), key.public().to_pem()).unwrap();
    model(&at("a/signed"), Some(&key));
    model(&at("b/deep/changed"), Some(&key));
    fs::write(at("b/deep/changed/config.json"), "{\"x\": 1}").unwrap();
    model(&at("c-unsigned"), None);
    model(&at("d-foreign"), Some(&other));
    model(&at("e-broken"), None);
    fs::write(at("e-broken/model.sig"), "no bundle").unwrap();
    model(&at("f.partial"), None);
    fs::create_dir(at("g-empty")).unwrap();
    let found = verify::models(place.path()).unwrap();
    assert_eq!(found, ["a/signed", "b/deep/changed", "c-unsigned", "d-foreign", "e-broken"].map(at));
    let verdicts: Vec<Verdict> = found.iter().map(|path| verify::verify(path, &at("key.pem"), None).unwrap()).collect();
    assert!(matches!(&verdicts[0], Verdict::Signed { signer, .. } if *signer == key.public().fingerprint()));
    assert!(matches!(&verdicts[1], Verdict::Refused(why) if why.contains("config.json")), "{:?}", verdicts[1]);
    assert!(matches!(&verdicts[2], Verdict::Unsigned(_)));
    assert!(matches!(&verdicts[3], Verdict::Refused(_)) && matches!(&verdicts[4], Verdict::Refused(_)), "{verdicts:?}");
    let error = verify::verify(&found[0], &at("none.pem"), None).unwrap_err();
    assert!(error.exit == 2 && error.sentence().starts_with("--key"), "{}", error.sentence());
}

#[test]
fn only_old_partial_files_that_nothing_uses_are_found() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    fs::create_dir_all(at("x/model.partial/deep")).unwrap();
    fs::write(at("x/model.partial/deep/a"), "12345").unwrap();
    fs::write(at("x/b.partial"), "123").unwrap();
    fs::write(at("x/kept"), "123").unwrap();
    fs::create_dir(at("busy.partial")).unwrap();
    std::os::unix::fs::symlink(at("x"), at("link.partial")).unwrap();
    let find = |age| partial::find(place.path(), age).unwrap();
    assert_eq!(find(SignedDuration::from_hours(1)), []);
    let lock = File::open(at("busy.partial")).unwrap();
    lock.lock().unwrap();
    let found = find(SignedDuration::ZERO);
    assert_eq!(found, [(at("x/b.partial"), 3), (at("x/model.partial"), 5)]);
    for (path, _) in &found {
        partial::remove(path).unwrap();
    }
    assert!(at("x/kept").exists() && !at("x/b.partial").exists() && !at("x/model.partial").exists());
    partial::remove(&at("busy.partial")).unwrap();
    assert!(at("busy.partial").exists(), "a process works in it");
    drop(lock);
    // The newest file of a directory counts.
    let past = std::time::SystemTime::now() - Duration::from_secs(7200);
    File::open(at("busy.partial")).unwrap().set_modified(past).unwrap();
    assert_eq!(find(SignedDuration::from_hours(1)), [(at("busy.partial"), 0)]);
}
