//! Pruning, and the correction of drift.

use codex_crds::TrainingRun;
use codex_plan::Desired;
use serde_json::json;

use super::world::{World, path, run};
use crate::{apply::apply, observe::get};

#[tokio::test]
async fn children_that_are_not_planned_are_deleted_except_bundles() {
    let world = World::new().await;
    world.api.put(&path("trainingruns", "a"), run("a"));
    let owned = |name: &str, owner: &str| {
        json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": name, "ownerReferences": [{
                "apiVersion": "codex-ml.dev/v1alpha1", "kind": "TrainingRun", "name": "a", "uid": owner, "controller": true,
            }]},
        })
    };
    for (name, owner) in
        [("old", "a-uid"), ("codex-oms-a-uid", "a-uid"), ("codex-promo-123", "a-uid"), ("others", "b-uid")]
    {
        world.api.put(&format!("/api/v1/namespaces/team/configmaps/{name}"), owned(name, owner));
    }
    let object = get(&world.context.stores.training_runs, "team", "a").unwrap();
    apply(&world.context, &*object, &Desired::default()).await.unwrap();
    assert_eq!(world.api.requests(), ["DELETE /api/v1/namespaces/team/configmaps/old"]);
    apply(&world.context, &*object, &Desired::default()).await.unwrap();
    assert!(world.api.requests().is_empty());
}

#[tokio::test]
async fn drift_in_a_config_map_is_corrected() {
    let world = World::new().await;
    world.api.put(&path("trainingruns", "a"), run("a"));
    world.reconcile::<TrainingRun>("a").await.1.unwrap();
    let config = "/api/v1/namespaces/team/configmaps/codex-t-a";
    let mut changed = world.api.object(config).unwrap();
    let before = changed["data"].clone();
    changed["data"]["config.yaml"] = json!("nothing");
    world.api.put(config, changed);
    let (requests, result) = world.reconcile::<TrainingRun>("a").await;
    result.unwrap();
    assert_eq!(requests, [format!("PATCH {config} as codex-controller force")]);
    assert_eq!(world.api.object(config).unwrap()["data"], before);
}
