//! The Helm chart of `manifests/helm/` is the kustomize installation with values: its templates are made from the same files.
//!
//! `templates_are_up_to_date` needs no Helm. The tests of `make test-helm` render, install and remove the chart.

#![allow(clippy::unwrap_used, clippy::panic, reason = "an unexpected result ends the test")]

mod template;

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
};

const REGENERATE: &str = "UPDATE=1 cargo test --release --locked --workspace --test chart";

fn manifests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests")
}

#[test]
fn templates_are_up_to_date() {
    let directory = manifests().join("helm/codex-operator/templates");
    let files: BTreeMap<String, String> = template::files(&manifests());
    if env::var_os("UPDATE").is_some() {
        for (name, content) in &files {
            fs::write(directory.join(name), content).unwrap();
        }
    }
    for (name, expected) in &files {
        let found = fs::read_to_string(directory.join(name)).unwrap_or_default();
        assert!(
            found == *expected,
            "the chart's templates/{name} differs from the manifests: regenerate it with\n    {REGENERATE}\n"
        );
    }
    let mut there: Vec<_> =
        fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    there.sort();
    let expected: Vec<_> = files.into_keys().chain(["NOTES.txt".to_owned()]).collect();
    let sorted = |mut names: Vec<String>| {
        names.sort();
        names
    };
    assert_eq!(there, sorted(expected), "templates/ must hold exactly the generated files and NOTES.txt");
}
