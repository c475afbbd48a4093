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

/// The overlay for a controller that watches some namespaces divides the rules of the ClusterRole, and changes none.
#[test]
fn the_namespaced_overlay_has_the_rules_of_the_cluster_role() {
    let read = |path: &str| -> serde_json::Value {
        let text = fs::read_to_string(manifests().join(path)).unwrap();
        let first = serde_yaml::Deserializer::from_str(&text).next().unwrap();
        serde::Deserialize::deserialize(first).unwrap()
    };
    let all = read("controller/rbac.yaml");
    let overlay = read("overlays/namespaced/kustomization.yaml");
    let patches: Vec<serde_json::Value> = overlay["patches"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|patch| patch["target"]["kind"] == "ClusterRole")
        .map(|patch| serde_yaml::from_str(patch["patch"].as_str().unwrap()).unwrap())
        .collect();
    let mut rules = read("overlays/namespaced/tenant/role.yaml")["rules"].as_array().unwrap().clone();
    rules.extend(patches[0][0]["value"].as_array().unwrap().iter().cloned());
    assert_eq!(&rules, all["rules"].as_array().unwrap());
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
