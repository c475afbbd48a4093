//! The role of the controller and the kinds that own children.

#![allow(clippy::unwrap_used)]

use codex_crds::manifests;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde::Deserialize as _;
use serde_yaml::Value;

/// Children block the deletion of their owner. Where the API server enforces permissions of owner references, setting such a
/// reference needs the right to update the owner's finalizers.
#[test]
fn the_role_may_set_owner_references_that_block_deletion() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/controller/rbac.yaml");
    let text = std::fs::read_to_string(path).unwrap();
    let roles: Vec<Value> =
        serde_yaml::Deserializer::from_str(&text).map(|document| Value::deserialize(document).unwrap()).collect();
    let role = roles.iter().find(|role| role["kind"] == "ClusterRole").unwrap();
    let holds = |rule: &Value, list: &str, wanted: &str| {
        rule[list].as_sequence().is_some_and(|items| items.iter().any(|item| item == wanted))
    };
    // Kinds without a status own no children.
    let reports =
        |crd: &CustomResourceDefinition| crd.spec.versions.iter().any(|version| version.subresources.is_some());
    for (_, crd) in manifests::all().into_iter().filter(|(_, crd)| reports(crd)) {
        let wanted = format!("{}/finalizers", crd.spec.names.plural);
        let granted = role["rules"].as_sequence().unwrap().iter().any(|rule| {
            holds(rule, "apiGroups", &crd.spec.group)
                && holds(rule, "resources", &wanted)
                && holds(rule, "verbs", "update")
        });
        assert!(granted, "update on {wanted} is missing in {path}");
    }
}
