//! What every field of the CRDs has: a sentence for `kubectl explain`, and a bound.

use codex_crds::manifests;
use serde_json::Value;

/// Types of Kubernetes itself, described and bounded by it.
const FOREIGN: [&str; 7] =
    ["affinity", "tolerations", "resources", "env", "imagePullSecrets", "nodeSelector", "conditions"];

fn walk(path: &str, schema: &Value, faults: &mut Vec<String>) {
    let leaf = path.rsplit('.').next().unwrap_or_default();
    let has = |key: &str| schema.get(key).is_some();
    if schema["description"].as_str().is_none_or(str::is_empty) && !path.ends_with("[]") {
        faults.push(format!("{path} has no description"));
    }
    if FOREIGN.contains(&leaf) {
        return;
    }
    match schema["type"].as_str() {
        Some("object") => {
            for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
                walk(&format!("{path}.{name}"), inner, faults);
            }
            if !has("properties") {
                faults.push(format!("{path} is an object without properties"));
            }
        }
        Some("array") => {
            if !has("maxItems") && !has("x-kubernetes-list-type") {
                faults.push(format!("{path} has no maxItems"));
            }
            walk(&format!("{path}[]"), &schema["items"], faults);
        }
        Some("string") if !has("maxLength") && !has("enum") && schema["format"] != "date-time" => {
            faults.push(format!("{path} has no maxLength"));
        }
        Some("string" | "boolean" | "integer") => {}
        other => faults.push(format!("{path} has type {other:?}")),
    }
    if schema["format"].as_str().is_some_and(|format| format.starts_with('u')) {
        faults.push(format!("{path} has a format that the API server does not know"));
    }
    if has("oneOf") || has("anyOf") || has("allOf") {
        faults.push(format!("{path} has a composed schema, which kubectl explain does not show"));
    }
}

#[test]
fn every_field_has_a_sentence_and_a_bound() {
    let mut faults = Vec::new();
    for (_, crd) in manifests::all() {
        let crd = serde_json::to_value(crd).unwrap();
        let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        for part in ["spec", "status"] {
            let path = format!("{}.{part}", crd["spec"]["names"]["kind"].as_str().unwrap());
            walk(&path, &schema["properties"][part], &mut faults);
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
