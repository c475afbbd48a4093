//! Objects as an API server stored them with each release (`stored/VERSION`): the types of this version read them, and write
//! every field as it was.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::{
    fs,
    path::{Path, PathBuf},
};

use codex_crds::{ClusterPromotionPolicy, Evaluation, GROUP, PromotionPolicy, ReasoningPod, SignOff, TrainingRun};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

/// The kinds that every release has.
const KINDS: [&str; 6] =
    ["TrainingRun", "Evaluation", "ReasoningPod", "PromotionPolicy", "ClusterPromotionPolicy", "SignOff"];
/// What objects of every release show, by kind: a field and its value.
const STATES: [(&str, &str, &str); 4] = [
    ("TrainingRun", "/status/phase", "Running"),
    ("TrainingRun", "/status/phase", "Succeeded"),
    ("Evaluation", "/status/verdict", "Passed"),
    ("ReasoningPod", "/status/phase", "Serving"),
];

/// Returns the paths in a folder, sorted.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

/// Returns the objects of our kinds of each release, each release with its folder.
fn releases() -> Vec<(PathBuf, Vec<Value>)> {
    let folders = entries(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stored"));
    let ours = |object: &Value| object["apiVersion"].as_str().unwrap().split('/').next() == Some(GROUP);
    let objects = |folder: &PathBuf| {
        let lists = entries(folder).into_iter().map(|path| {
            let list: Value = serde_yaml::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
            list["items"].as_array().unwrap_or_else(|| panic!("{} is no List", path.display())).clone()
        });
        lists.flatten().filter(ours).collect()
    };
    folders.into_iter().map(|folder| (folder.clone(), objects(&folder))).collect()
}

/// Collects the fields of `stored` that are absent from `written` or have another value there.
fn lost(stored: &Value, written: &Value, path: &str, all: &mut Vec<String>) {
    match (stored, written) {
        (Value::Object(stored), Value::Object(written)) => {
            for (name, inner) in stored {
                let path = format!("{path}.{name}");
                match written.get(name) {
                    Some(written) => lost(inner, written, &path, all),
                    None => all.push(format!("{path} is lost")),
                }
            }
        }
        (Value::Array(stored), Value::Array(written)) if stored.len() == written.len() => {
            for (index, (stored, written)) in stored.iter().zip(written).enumerate() {
                lost(stored, written, &format!("{path}[{index}]"), all);
            }
        }
        // JSON does not tell 1 from 1.0.
        (Value::Number(stored), Value::Number(written)) if stored.as_f64() == written.as_f64() => {}
        _ if stored == written => {}
        _ => all.push(format!("{path}: {stored} became {written}")),
    }
}

/// Reads an object as this type and returns what the type writes.
fn written<K: Serialize + DeserializeOwned>(object: &Value) -> Value {
    let typed: K = serde_json::from_value(object.clone()).unwrap_or_else(|why| panic!("{why}: {object:#}"));
    serde_json::to_value(typed).unwrap()
}

#[test]
fn objects_of_each_release_are_read_and_written_without_a_loss() {
    let mut faults = Vec::new();
    for (folder, objects) in releases() {
        for object in objects {
            let kind = object["kind"].as_str().unwrap();
            let written = match kind {
                "TrainingRun" => written::<TrainingRun>(&object),
                "Evaluation" => written::<Evaluation>(&object),
                "ReasoningPod" => written::<ReasoningPod>(&object),
                "PromotionPolicy" => written::<PromotionPolicy>(&object),
                "ClusterPromotionPolicy" => written::<ClusterPromotionPolicy>(&object),
                "SignOff" => written::<SignOff>(&object),
                other => panic!("{}: {other} is not among the kinds that this test reads", folder.display()),
            };
            let name = object["metadata"]["name"].as_str().unwrap();
            lost(&object, &written, &format!("{}: {kind} {name}", folder.display()), &mut faults);
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn each_release_has_objects_of_every_kind_and_state() {
    let releases = releases();
    assert!(!releases.is_empty(), "no release has stored objects");
    for (folder, objects) in &releases {
        let has = |kind: &str, field: &str, value: &str| {
            let mut of_kind = objects.iter().filter(|object| object["kind"] == kind);
            of_kind.any(|object| object.pointer(field).and_then(Value::as_str) == Some(value))
        };
        for kind in KINDS {
            assert!(has(kind, "/kind", kind), "{} has no {kind}", folder.display());
        }
        for (kind, field, value) in STATES {
            assert!(has(kind, field, value), "{} has no {kind} with {value} in {field}", folder.display());
        }
    }
}
