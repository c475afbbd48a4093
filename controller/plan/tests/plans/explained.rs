//! The lists in `kubectl explain` match the known names.

use codex_configs::{PRESETS, TASKS, TEMPLATES};
use codex_crds::manifests;
use serde_json::Value;

/// The sentence that `kubectl explain` shows for a field; a list's elements are gone into as it does.
fn sentence(kind: &str, path: &str) -> String {
    let crds = manifests::all();
    let (_, crd) = crds.iter().find(|(_, crd)| crd.spec.names.kind == kind).unwrap();
    let mut schema = serde_json::to_value(&crd.spec.versions[0].schema).unwrap()["openAPIV3Schema"].take();
    for name in path.split('.') {
        let within = if schema["items"].is_null() { &schema } else { &schema["items"] };
        schema = within["properties"][name].clone();
        assert_ne!(schema, Value::Null, "{path} has no {name}");
    }
    schema["description"].as_str().unwrap().to_owned()
}

/// The words of a list behind the colon of its sentence.
fn listed(sentence: &str) -> Vec<String> {
    let (_, list) = sentence.split_once(": ").unwrap();
    let words = list.trim_end_matches('.').replace(" or ", ", ");
    let mut words: Vec<_> = words.split(", ").map(str::to_owned).collect();
    words.sort();
    words
}

fn sorted(known: &[&str]) -> Vec<String> {
    let mut known: Vec<_> = known.iter().map(|name| (*name).to_owned()).collect();
    known.sort();
    known
}

#[test]
fn the_names_that_fields_list_are_those_that_are_known() {
    for (kind, path, known) in [
        ("TrainingRun", "spec.template", TEMPLATES),
        ("TrainingRun", "spec.data.source.synthetic.task", TASKS),
        ("Evaluation", "spec.data.source.synthetic.task", TASKS),
        ("Evaluation", "spec.preset", PRESETS),
        ("Evaluation", "spec.gates.metric", codex_verdict::Metric::NAMES),
    ] {
        let said = sentence(kind, path);
        assert_eq!(listed(&said), sorted(known), "{kind} {path}: {said}");
    }
    assert!(sentence("TrainingRun", "spec.data").contains(codex_configs::VALIDATION));
}
