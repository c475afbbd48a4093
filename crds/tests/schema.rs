//! Every field of the CRDs has a description for `kubectl explain` and a bound, and its description names its default.

#![allow(clippy::unwrap_used)]

use codex_crds::manifests;
use codex_verdict::Ring;
use serde_json::Value;

/// Types of Kubernetes itself, described and bounded by it.
const FOREIGN: [&str; 8] =
    ["affinity", "behavior", "tolerations", "resources", "env", "imagePullSecrets", "nodeSelector", "conditions"];

fn walk(path: &str, schema: &Value, faults: &mut Vec<String>) {
    let leaf = path.rsplit('.').next().unwrap_or_default();
    let has = |key: &str| schema.get(key).is_some();
    let description = schema["description"].as_str().unwrap_or_default();
    if description.is_empty() && !path.ends_with("[]") {
        faults.push(format!("{path} has no description"));
    }
    if let Value::Bool(_) | Value::Number(_) = schema["default"] {
        let sentence = format!("Defaults to {}.", schema["default"]);
        if !description.contains(&sentence) {
            faults.push(format!("{path} does not say: {sentence}"));
        }
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

/// Returns the kind and the schema of each CRD.
fn schemas() -> Vec<(String, Value)> {
    let schema = |crd| {
        let mut crd = serde_json::to_value(crd).unwrap();
        let kind = crd["spec"]["names"]["kind"].as_str().unwrap().to_owned();
        (kind, crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"].take())
    };
    manifests::all().into_iter().map(|(_, crd)| schema(crd)).collect()
}

#[test]
fn every_field_has_a_description_and_a_bound() {
    let mut faults = Vec::new();
    for (kind, schema) in schemas() {
        for part in ["spec", "status"] {
            // Policies and sign-offs have no status.
            if !schema["properties"][part].is_null() {
                walk(&format!("{kind}.{part}"), &schema["properties"][part], &mut faults);
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Objects refer to nothing outside their namespace, so that no tenant reads what is another's. Routes are the exception of the Gateway
/// API: there, `allowedRoutes` of the Gateway is the grant.
#[test]
fn no_field_but_the_gateway_of_routes_names_a_namespace() {
    fn of(path: &str, schema: &Value, found: &mut Vec<String>) {
        for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{name}");
            if name.to_lowercase().contains("namespace") {
                found.push(path.clone());
            }
            of(&path, inner, found);
        }
        for part in ["items", "additionalProperties"] {
            if schema[part].is_object() {
                of(&format!("{path}[]"), &schema[part], found);
            }
        }
    }
    let mut found = Vec::new();
    for (kind, schema) in &schemas() {
        of(kind, &schema["properties"]["spec"], &mut found);
    }
    // Terms of Kubernetes' own affinity select pods to be near or far; they read nothing.
    found.retain(|path| !path.contains(".affinity."));
    assert_eq!(found, ["ReasoningPod.rollout.gateway.parentRefs[].namespace"]);
}

#[test]
fn descriptions_of_rings_name_all_rings() {
    let mut rings = 0;
    for (kind, schema) in schemas() {
        let Some(description) = schema["properties"]["spec"]["properties"]["rolloutRing"]["description"].as_str()
        else {
            continue;
        };
        rings += 1;
        let missing: Vec<_> = Ring::ALL.into_iter().filter(|ring| !description.contains(ring.name())).collect();
        assert!(missing.is_empty(), "{kind}: {missing:?} not in: {description}");
    }
    assert_eq!(rings, 2);
}

#[test]
fn fields_that_cannot_work_are_absent_or_refused() {
    let schemas = schemas();
    for (kind, schema) in &schemas {
        assert!(!schema.to_string().contains("fileKeyRef"), "{kind}");
        let pod = &schema["properties"]["spec"]["properties"]["pod"];
        if pod.is_null() {
            continue;
        }
        assert_eq!(pod["properties"]["resources"]["properties"]["claims"]["maxItems"], 8, "{kind}");
        let rules = pod["x-kubernetes-validations"].as_array().unwrap();
        let message = "pod.resources.claims must name entries of pod.resourceClaims: add the claim there, or remove it";
        assert!(rules.iter().any(|rule| rule["message"] == message), "{kind}");
    }
    let (_, run) = schemas.iter().find(|(kind, _)| kind == "TrainingRun").unwrap();
    let sources =
        &run["properties"]["spec"]["properties"]["pod"]["properties"]["env"]["items"]["properties"]["valueFrom"];
    let mut sources: Vec<_> = sources["properties"].as_object().unwrap().keys().collect();
    sources.sort();
    assert_eq!(sources, ["configMapKeyRef", "fieldRef", "resourceFieldRef", "secretKeyRef"]);
}

#[test]
fn both_policies_have_one_schema_and_no_status() {
    let schemas = schemas();
    let of = |kind: &str| schemas.iter().find(|(name, _)| name == kind).unwrap().1["properties"].clone();
    let (mut cluster, mut team) = (of("ClusterPromotionPolicy"), of("PromotionPolicy"));
    assert!(cluster["status"].is_null() && team["status"].is_null() && of("SignOff")["status"].is_null());
    for schema in [&mut cluster, &mut team] {
        assert!(schema["spec"]["properties"]["rules"]["items"]["properties"]["signOffs"].is_object());
        schema["spec"].as_object_mut().unwrap().remove("description");
    }
    assert_eq!(cluster["spec"], team["spec"]);
}
