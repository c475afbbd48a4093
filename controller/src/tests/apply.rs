//! Pruning, and the correction of drift.

use std::collections::BTreeSet;

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

#[tokio::test]
async fn a_job_that_was_to_be_changed_and_is_gone_is_not_created_again() {
    let world = World::new().await;
    world.api.put(&path("trainingruns", "a"), run("a"));
    world.reconcile::<TrainingRun>("a").await.1.unwrap();
    let job = "/apis/batch/v1/namespaces/team/jobs/codex-t-a";
    let mut suspended = world.api.object(&path("trainingruns", "a")).unwrap();
    suspended["spec"]["suspend"] = json!(true);
    world.api.put(&path("trainingruns", "a"), suspended);
    world.api.vanish(job);
    let (requests, result) = world.reconcile::<TrainingRun>("a").await;
    assert_eq!(requests, [format!("PATCH {job} as codex-controller force")]);
    assert_eq!(result.unwrap_err().category(), "gone");
    assert!(world.api.object(job).is_none());
}

/// The cache of runs is late: it shows neither that a run has ended nor what its status records of that.
#[tokio::test]
async fn what_a_late_cache_does_not_show_is_neither_begun_again_nor_overwritten() {
    let world = World::new().await;
    let (path, job) = (path("trainingruns", "a"), "/apis/batch/v1/namespaces/team/jobs/codex-t-a");
    world.api.put(&path, run("a"));
    world.reconcile::<TrainingRun>("a").await.1.unwrap();
    let mut ended = world.api.object(&path).unwrap();
    ended["status"]["completedAt"] = json!("2026-03-01T00:00:00Z");
    world.api.put_unseen(&path, world.sealed::<TrainingRun>(ended.clone()));
    // Its Job still exists, and the status that is planned from it is not written.
    let mut suspended = world.api.object(job).unwrap();
    suspended["status"] = json!({"active": 1, "startTime": "2026-03-01T00:00:00Z"});
    world.api.put(job, suspended);
    let (requests, result) = world.reconcile::<TrainingRun>("a").await;
    assert!(requests.iter().any(|line| line.starts_with(&format!("PATCH {path}/status"))), "{requests:?}");
    assert_eq!(result.unwrap_err().category(), "conflict");
    assert_eq!(world.api.object(&path).unwrap()["status"]["completedAt"], ended["status"]["completedAt"]);
    // Somebody deletes the Job, and it is not created again.
    world.api.remove(job);
    let (requests, result) = world.reconcile::<TrainingRun>("a").await;
    assert_eq!(requests, [format!("GET {path}"), format!("GET {job}")]);
    assert_eq!(result.unwrap_err().category(), "outdated");
    assert!(world.api.object(job).is_none());
}

#[tokio::test]
async fn bundles_are_owned_by_who_serves_them_and_outlive_their_run() {
    let world = World::new().await;
    world.api.put(&path("trainingruns", "a"), run("a"));
    let bundle = "/api/v1/namespaces/team/configmaps/codex-oms-b-uid";
    let owner = json!({
        "apiVersion": "codex-ml.dev/v1alpha1", "kind": "TrainingRun", "name": "b", "uid": "b-uid", "controller": true,
    });
    world.api.put(
        bundle,
        json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "codex-oms-b-uid", "ownerReferences": [owner]},
        }),
    );
    let object = get(&world.context.stores.training_runs, "team", "a").unwrap();
    let name = BTreeSet::from(["codex-oms-b-uid".to_owned()]);
    let mounted = Desired { mounted_bundles: name.clone(), ..Desired::default() };
    let released = Desired { released_bundles: name, ..Desired::default() };
    let owners = || {
        let owners = world.api.object(bundle).unwrap()["metadata"]["ownerReferences"].clone();
        let owners = owners.as_array().unwrap().iter().map(|owner| (owner["uid"].clone(), owner["controller"].clone()));
        owners.collect::<Vec<_>>()
    };
    let (run, server) = ((json!("b-uid"), json!(true)), (json!("a-uid"), json!(null)));
    let patched = [format!("PATCH {bundle} as codex-controller")];
    // Who serves becomes an owner, once, and controls nothing.
    apply(&world.context, &*object, &mounted).await.unwrap();
    assert_eq!((world.api.requests(), owners()), (patched.to_vec(), vec![run.clone(), server]));
    apply(&world.context, &*object, &mounted).await.unwrap();
    assert!(world.api.requests().is_empty());
    // It is one no longer, and the run stays one.
    apply(&world.context, &*object, &released).await.unwrap();
    assert_eq!((world.api.requests(), owners()), (patched.to_vec(), vec![run]));
    // The run was deleted, and the garbage collector removed it from the owners: the bundle goes with the last one.
    apply(&world.context, &*object, &mounted).await.unwrap();
    let mut alone = world.api.object(bundle).unwrap();
    alone["metadata"]["ownerReferences"].as_array_mut().unwrap().remove(0);
    world.api.put(bundle, alone);
    world.api.requests();
    apply(&world.context, &*object, &mounted).await.unwrap();
    assert!(world.api.requests().is_empty());
    apply(&world.context, &*object, &released).await.unwrap();
    assert_eq!(world.api.requests(), [format!("DELETE {bundle}")]);
    // What does not exist is left out.
    apply(&world.context, &*object, &mounted).await.unwrap();
    assert!(world.api.requests().is_empty());
}
