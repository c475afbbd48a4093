//! Every object in `manifests/samples/` matches its CRD, and plans for it find nothing to correct.
//!
//! Rules in CEL are checked by an API server, in `tests/e2e/documents.rs`.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use boon::{Compiler, Schemas};
use codex_crds::{ClusterPromotionPolicy, Evaluation, PromotionPolicy, ReasoningPod, TrainingRun, manifests};
use codex_plan::{
    conditions::find,
    evaluation::{self, ObservedEvaluation},
    training_run::{self, ObservedTrainingRun},
};
use codex_verdict::{
    Ring,
    policy::{Candidate, Earlier, Facts, Policy, breaches},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::make;

/// Lists the YAML files below a folder, without kustomizations.
fn files(folder: &Path, all: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, all);
        } else if path.extension().is_some_and(|it| it == "yaml") && path.file_stem().unwrap() != "kustomization" {
            all.push(path);
        }
    }
}

/// Returns the objects of all samples, each with its file.
fn samples() -> Vec<(String, Value)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../manifests/samples");
    let mut paths = Vec::new();
    files(&root, &mut paths);
    paths.sort();
    let of = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        let place = path.strip_prefix(&root).unwrap().display().to_string();
        let objects = serde_yaml::Deserializer::from_str(&text).map(|it| Value::deserialize(it).unwrap());
        objects.map(|object| (place.clone(), object)).collect::<Vec<_>>()
    };
    paths.into_iter().flat_map(of).collect()
}

/// Collects the fields of `written` that `read` lacks: the API server refuses them as unknown.
fn unknown(written: &Value, read: &Value, path: &str, all: &mut Vec<String>) {
    match (written, read) {
        (Value::Object(written), Value::Object(read)) => {
            for (name, inner) in written {
                let path = format!("{path}.{name}");
                match read.get(name) {
                    Some(read) => unknown(inner, read, &path, all),
                    None => all.push(path),
                }
            }
        }
        (Value::Array(written), Value::Array(read)) => {
            for (index, (written, read)) in written.iter().zip(read).enumerate() {
                unknown(written, read, &format!("{path}[{index}]"), all);
            }
        }
        _ => {}
    }
}

/// Reads an object. Its spec may hold only known fields.
fn read<K: DeserializeOwned + Serialize>(place: &str, object: &Value) -> K {
    let typed: K = serde_json::from_value(object.clone()).unwrap_or_else(|why| panic!("{place}: {why}"));
    let mut all = Vec::new();
    unknown(&object["spec"], &serde_json::to_value(&typed).unwrap()["spec"], "spec", &mut all);
    assert!(all.is_empty(), "{place} has unknown fields: {all:?}");
    typed
}

/// Checks an object with the schema of its CRD.
fn matches_schema(place: &str, object: &Value) {
    let kind = object["kind"].as_str().unwrap();
    let crds = manifests::all();
    let (_, crd) = crds.iter().find(|(_, crd)| crd.spec.names.kind == kind).unwrap();
    let schema = serde_json::to_value(&crd.spec.versions[0].schema).unwrap()["openAPIV3Schema"].take();
    let (mut schemas, mut compiler) = (Schemas::new(), Compiler::new());
    compiler.add_resource("crd.json", schema).unwrap();
    let schema = compiler.compile("crd.json", &mut schemas).unwrap();
    let result = schemas.validate(object, schema);
    assert!(result.is_ok(), "{place}: {kind} {}: {}", object["metadata"]["name"], result.unwrap_err());
}

/// Asserts that a plan found the configuration and the references of an object valid.
fn is_resolved(place: &str, status: &impl Serialize) {
    let status = serde_json::to_value(status).unwrap();
    let conditions: Vec<_> = serde_json::from_value(status["conditions"].clone()).unwrap();
    let resolved = find(&conditions, codex_crds::ConditionType::ConfigResolved).unwrap();
    assert_eq!(resolved.status, "True", "{place}: {}", resolved.message);
}

#[test]
fn every_sample_is_valid() {
    let mut kinds = BTreeSet::new();
    for (place, object) in samples() {
        let kind = object["kind"].as_str().unwrap().to_owned();
        match kind.as_str() {
            "TrainingRun" => {
                let object: TrainingRun = {
                    matches_schema(&place, &object);
                    read(&place, &object)
                };
                let observed: ObservedTrainingRun =
                    make::from(json!({ "object": object, "settings": *make::settings() }));
                is_resolved(&place, &training_run::plan(&observed, make::at(0)).status);
            }
            "Evaluation" => {
                let mut object: Evaluation = {
                    matches_schema(&place, &object);
                    read(&place, &object)
                };
                // Without the Evaluations that it is compared with, which would be awaited first.
                object.spec.gates.retain(|gate| gate.better_than.is_none() && gate.not_worse_than.is_none());
                let observed: ObservedEvaluation =
                    make::from(json!({ "object": object, "settings": *make::settings() }));
                is_resolved(&place, &evaluation::plan(&observed, make::at(0)).status);
            }
            "ReasoningPod" => {
                matches_schema(&place, &object);
                read::<ReasoningPod>(&place, &object);
            }
            "PromotionPolicy" => {
                matches_schema(&place, &object);
                read::<PromotionPolicy>(&place, &object);
            }
            "PersistentVolumeClaim" | "ConfigMap" | "Job" => {}
            other => panic!("{place}: {other} is not among the kinds that this test checks"),
        }
        kinds.insert(kind);
    }
    for kind in ["TrainingRun", "Evaluation", "ReasoningPod", "PromotionPolicy"] {
        assert!(kinds.contains(kind), "no sample of {kind}: {kinds:?}");
    }
}

#[test]
fn samples_refer_to_objects_of_samples() {
    let objects = samples();
    let named = |kind: &str| -> BTreeSet<&str> {
        let of_kind = objects.iter().filter(|(_, object)| object["kind"] == kind);
        of_kind.map(|(_, object)| object["metadata"]["name"].as_str().unwrap()).collect()
    };
    let (claims, runs, evaluations) = (named("PersistentVolumeClaim"), named("TrainingRun"), named("Evaluation"));
    for (place, object) in &objects {
        let spec = &object["spec"];
        for pointer in ["/output", "/base", "/model"] {
            let claim = spec.pointer(&format!("{pointer}/persistentVolumeClaim/claimName")).and_then(Value::as_str);
            assert!(claim.is_none_or(|claim| claims.contains(claim)), "{place}: the claim {claim:?} is in no sample");
        }
        for pointer in ["/trainingRun", "/base/trainingRun/name"] {
            let run = spec.pointer(pointer).and_then(Value::as_str);
            assert!(run.is_none_or(|run| runs.contains(run)), "{place}: the TrainingRun {run:?} is in no sample");
        }
        for evaluation in spec["evaluations"].as_array().into_iter().flatten() {
            assert!(evaluations.contains(evaluation.as_str().unwrap()), "{place}: {evaluation} is in no sample");
        }
    }
}

/// The shipped policies accept the demo's evaluation, and pin the problems that the preset has.
#[test]
fn shipped_policies_accept_the_demo_and_refuse_a_jump_to_main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../manifests/policies");
    let mut paths = Vec::new();
    files(&root, &mut paths);
    let mut policies: Vec<Policy> = Vec::new();
    for path in paths {
        let place = path.display().to_string();
        let object: Value = serde_yaml::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        matches_schema(&place, &object);
        policies.push(Policy::from(&read::<ClusterPromotionPolicy>(&place, &object)));
    }
    assert_eq!(policies.len(), 3);
    let benchmark = codex_configs::benchmark("cot-lite");
    let problems = benchmark.iter().find(|file| file.name == "problems").unwrap().digest();
    let objects = samples();
    let demo = objects.iter().find(|(_, object)| object["metadata"]["name"] == "cot-lite").unwrap();
    let demo: Evaluation = read(&demo.0, &demo.1);
    let data = std::collections::BTreeMap::from([("problems".to_owned(), problems)]);
    let candidate = Candidate::new("cot-lite".to_owned(), demo.spec.preset, &demo.spec.gates, &data);
    let facts = |ring, earlier| Facts {
        ring,
        evaluations: vec![candidate.clone()],
        earlier,
        sign_offs: Vec::new(),
        parity: Vec::new(),
        attestations: std::collections::BTreeSet::new(),
        now: make::at(90_000),
    };
    for ring in [Ring::Base0A, Ring::Base0B, Ring::Base0C, Ring::Base0D] {
        assert_eq!(breaches(&policies, &facts(ring, Vec::new())), []);
    }
    let told = breaches(&policies, &facts(Ring::Main, Vec::new()));
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].sentence.starts_with("ClusterPromotionPolicy ring-by-ring, rule for main: "), "{told:?}");
    let earlier = |second| vec![Earlier { ring: Ring::Base0D, since: make::at(second) }];
    assert_eq!(breaches(&policies, &facts(Ring::Main, earlier(0))), []);
    assert!(breaches(&policies, &facts(Ring::Main, earlier(89_000)))[0].due.is_some());
}
