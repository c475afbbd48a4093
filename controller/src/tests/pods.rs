//! What surrounds the pods of TrainingRuns and Evaluations: the policy that they share, and ids that a platform fills in.

use std::sync::Arc;

use codex_crds::{Evaluation, TrainingRun};
use codex_plan::{RunAs, Settings};
use serde_json::{Value, json};

use super::{
    evaluation::{evaluation, finished},
    world::{World, path, run},
};
use crate::{
    apply::delete_shared,
    drift::Role,
    observe::{
        get,
        workers::{self, Needed},
    },
};

const POLICY: &str = "/apis/networking.k8s.io/v1/namespaces/team/networkpolicies/codex-workers";
const JOB: &str = "/apis/batch/v1/namespaces/team/jobs/codex-t-a";

fn of_policies(requests: Vec<String>) -> Vec<String> {
    requests.into_iter().filter(|line| line.contains("networkpolicies")).collect()
}

#[tokio::test]
async fn a_namespace_has_one_policy_whatever_the_number_of_objects() {
    let world = World::new().await;
    for name in ["b", "c"] {
        world.api.put(&path("trainingruns", name), run(name));
    }
    world.api.put(&path("trainingruns", "a"), world.sealed::<TrainingRun>(finished()));
    world.api.put(&path("evaluations", "e"), evaluation());
    let mut written = Vec::new();
    for name in ["b", "c", "b"] {
        written.extend(of_policies(world.reconcile::<TrainingRun>(name).await.0));
    }
    let (requests, result) = world.reconcile::<Evaluation>("e").await;
    result.unwrap();
    assert!(requests.iter().any(|line| line.contains("/jobs/codex-e-e")), "{requests:?}");
    written.extend(of_policies(requests));
    assert_eq!(written, [format!("GET {POLICY}"), format!("PATCH {POLICY} as codex-controller")]);
    let policy = world.api.object(POLICY).unwrap();
    assert!(policy["metadata"]["ownerReferences"].is_null(), "{policy}");
    assert_eq!(policy["spec"]["ingress"][0]["ports"], json!([{"protocol": "TCP", "port": 9464}]));
}

#[tokio::test]
async fn a_changed_policy_is_corrected_and_a_deleted_one_is_written_again() {
    let world = World::new().await;
    world.api.put(&path("trainingruns", "a"), run("a"));
    world.reconcile::<TrainingRun>("a").await.1.unwrap();
    let planned = world.api.object(POLICY).unwrap();
    let mut open = planned.clone();
    open["spec"]["ingress"] = json!([{}]);
    world.api.put(POLICY, open);
    let (requests, result) = world.reconcile::<TrainingRun>("a").await;
    result.unwrap();
    assert_eq!(of_policies(requests), [format!("PATCH {POLICY} as codex-controller force")]);
    assert_eq!(world.api.object(POLICY).unwrap()["spec"], planned["spec"]);
    world.api.remove(POLICY);
    world.reconcile::<TrainingRun>("a").await.1.unwrap();
    assert_eq!(world.api.object(POLICY).unwrap()["spec"], planned["spec"]);
}

#[tokio::test]
async fn a_policy_of_another_client_is_left_alone_and_nothing_runs_without_ours() {
    let world = World::new().await;
    let mut foreign = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "codex-workers"},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress"]},
    });
    world.api.put(POLICY, foreign.clone());
    world.api.hide(POLICY);
    world.api.put(&path("trainingruns", "a"), run("a"));
    let (requests, result) = world.reconcile::<TrainingRun>("a").await;
    let said = result.unwrap_err().to_string();
    assert!(said.contains("the NetworkPolicy codex-workers exists and was not created by this controller"), "{said}");
    assert!(!requests.iter().any(|line| line.contains("/jobs") && !line.starts_with("GET ")), "{requests:?}");
    let live = world.api.object(POLICY).unwrap();
    foreign["metadata"] = live["metadata"].clone();
    assert_eq!(live, foreign);
    delete_shared(&world.context, "team").await.unwrap();
    assert!(world.api.object(POLICY).is_some());
}

#[tokio::test]
async fn the_policy_goes_with_the_last_object_that_needs_it() {
    let world = World::new().await;
    world.api.put(&path("trainingruns", "a"), run("a"));
    world.api.put(&path("evaluations", "e"), evaluation());
    world.reconcile::<TrainingRun>("a").await.1.unwrap();
    for last in [path("trainingruns", "a"), path("evaluations", "e")] {
        delete_shared(&world.context, "team").await.unwrap();
        assert!(world.api.object(POLICY).is_some(), "{last} is there");
        world.api.remove(&last);
    }
    world.api.requests();
    delete_shared(&world.context, "team").await.unwrap();
    assert_eq!(world.api.requests(), [format!("DELETE {POLICY}")]);
    delete_shared(&world.context, "team").await.unwrap();
    assert!(world.api.requests().is_empty());
}

#[tokio::test]
async fn the_pods_of_a_job_that_ended_are_listed_until_the_cache_shows_how_each_ended() {
    let world = World::new().await;
    world.api.put(&path("trainingruns", "a"), run("a"));
    world.reconcile::<TrainingRun>("a").await.1.unwrap();
    let mut job = world.api.object(JOB).unwrap();
    let owner = json!({"apiVersion": "batch/v1", "kind": "Job", "name": "codex-t-a", "uid": job["metadata"]["uid"], "controller": true});
    let place = "/api/v1/namespaces/team/pods/codex-t-a-x";
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "spec": job["spec"]["template"]["spec"], "status": {"phase": "Succeeded"},
        "metadata": {"name": "codex-t-a-x", "labels": job["spec"]["template"]["metadata"]["labels"], "ownerReferences": [owner]},
    });
    world.api.put(place, pod.clone());
    world.api.hide(place);
    let found = async || {
        let job = get(&world.context.stores.jobs, "team", "codex-t-a").unwrap();
        let pods = workers::up_to_date(&world.context, &job, Role::Trainer, Needed::Ends).await.unwrap();
        (pods.genuine.len(), world.api.requests())
    };
    world.api.requests();
    assert_eq!(found().await, (0, Vec::new()), "the Job is at work");
    job["status"] = json!({"conditions": [{"type": "Complete", "status": "True"}]});
    world.api.put(JOB, job);
    let listed = vec!["GET /api/v1/namespaces/team/pods".to_owned()];
    assert_eq!(found().await, (1, listed), "the cache lacks the pod");
    world.api.put(place, pod);
    assert_eq!(found().await, (1, Vec::new()), "the cache shows how it ended");
}

/// Changes the settings of a pod that the cache lacks and that has this status, and returns the requests of the reconciliation and the
/// conditions of its run.
async fn changed_beside(status: Value) -> (Vec<String>, String) {
    let world = World::new().await;
    world.api.put(&path("trainingruns", "a"), run("a"));
    world.reconcile::<TrainingRun>("a").await.1.unwrap();
    let job = world.api.object(JOB).unwrap();
    let owner = json!({"apiVersion": "batch/v1", "kind": "Job", "name": "codex-t-a", "uid": job["metadata"]["uid"], "controller": true});
    let place = "/api/v1/namespaces/team/pods/codex-t-a-x";
    world.api.put(
        place,
        json!({
            "apiVersion": "v1", "kind": "Pod", "spec": job["spec"]["template"]["spec"], "status": status,
            "metadata": {"name": "codex-t-a-x", "labels": job["spec"]["template"]["metadata"]["labels"], "ownerReferences": [owner]},
        }),
    );
    world.api.hide(place);
    let mut changed = world.api.object(&path("trainingruns", "a")).unwrap();
    changed["spec"]["pod"] = json!({"nodeSelector": {"size": "large"}});
    world.api.put(&path("trainingruns", "a"), changed);
    let (requests, result) = world.reconcile::<TrainingRun>("a").await;
    result.unwrap();
    (requests, world.api.object(&path("trainingruns", "a")).unwrap()["status"]["conditions"].to_string())
}

#[tokio::test]
async fn a_job_is_replaced_only_if_the_api_server_has_no_pod_of_it_that_has_started() {
    let deletion = format!("DELETE {JOB}");
    let (requests, _) = changed_beside(json!({"phase": "Pending"})).await;
    assert!(requests.contains(&deletion), "{requests:?}");
    let container = json!({
        "name": "trainer", "image": "codex:1", "imageID": "", "ready": true, "restartCount": 0,
        "state": {"running": {"startedAt": "2027-01-15T08:00:00Z"}},
    });
    let (requests, conditions) = changed_beside(json!({"phase": "Running", "containerStatuses": [container]})).await;
    assert!(!requests.contains(&deletion), "{requests:?}");
    assert!(conditions.contains("spec.pod was changed when a pod had started already"), "{conditions}");
}

/// Returns the field in which a pod, as `restricted-v2` of `OpenShift` admits it, differs from the template of its Job under this setting.
async fn differs_under_restricted_v2(run_as: &str, change: impl FnOnce(&mut Value)) -> Option<String> {
    let mut world = World::new().await;
    let context = Arc::get_mut(&mut world.context).unwrap();
    let run_as: RunAs = run_as.parse().unwrap();
    context.settings = Arc::new(Settings { run_as, ..Settings::clone(&context.settings) });
    world.api.put(&path("trainingruns", "a"), run("a"));
    world.reconcile::<TrainingRun>("a").await.1.unwrap();
    let job = world.api.object(JOB).unwrap();
    let mut spec = job["spec"]["template"]["spec"].clone();
    let ids = &mut spec["securityContext"];
    ids["seLinuxOptions"] = json!({"level": "s0:c26,c5"});
    if ids["fsGroup"].is_null() {
        ids["fsGroup"] = json!(1_000_650_000);
    }
    if ids["runAsUser"].is_null() {
        spec["containers"][0]["securityContext"]["runAsUser"] = json!(1_000_650_000);
    }
    change(&mut spec);
    let owner = json!({"apiVersion": "batch/v1", "kind": "Job", "name": "codex-t-a", "uid": job["metadata"]["uid"], "controller": true});
    let metadata = json!({
        "name": "codex-t-a-x", "uid": "pod-uid", "labels": job["spec"]["template"]["metadata"]["labels"],
        "ownerReferences": [owner],
    });
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec});
    world.api.put("/api/v1/namespaces/team/pods/codex-t-a-x", pod);
    let job = get(&world.context.stores.jobs, "team", "codex-t-a").unwrap();
    let pods = workers::up_to_date(&world.context, &job, Role::Strict, Needed::Cached).await.unwrap();
    assert_eq!(pods.genuine.len() + pods.refused.len(), 1);
    pods.refused.first().map(|refused| refused.why.split(' ').next().unwrap().to_owned())
}

#[tokio::test]
async fn a_pod_whose_ids_the_platform_filled_in_is_the_one_that_was_asked_for() {
    for setting in ["platform", "65532", "1000650000"] {
        assert_eq!(differs_under_restricted_v2(setting, |_| {}).await, None, "{setting}");
    }
    let another = |spec: &mut Value| spec["securityContext"]["runAsUser"] = json!(1_000_660_000);
    assert_eq!(differs_under_restricted_v2("platform", another).await, None);
    let found = differs_under_restricted_v2("65532", another).await;
    assert_eq!(
        found.as_deref(),
        Some("spec.securityContext.runAsUser"),
        "ids that are asked for are not another's to choose"
    );
    let root = |spec: &mut Value| spec["containers"][0]["securityContext"]["runAsUser"] = json!(0);
    let found = differs_under_restricted_v2("platform", root).await;
    assert_eq!(found.as_deref(), Some("spec.containers[trainer].securityContext.runAsUser"));
}
