//! The reconciliation of a TrainingRun.

use std::sync::Arc;

use codex_crds::TrainingRun;
use codex_plan::StatusSeal;
use serde_json::{json, to_value};

use super::{
    evaluation::finished,
    reasoning_pod::judged,
    world::{World, path, run},
};
use crate::{
    observe::{Observe as _, get},
    reconcile::attend,
};

const CHILDREN: &str = "/namespaces/team";

#[tokio::test]
async fn a_run_writes_a_config_map_a_job_and_a_status_and_then_nothing() {
    let world = World::new().await;
    world.api.put(&path("trainingruns", "a"), run("a"));
    let (requests, result) = world.reconcile::<TrainingRun>("a").await;
    result.unwrap();
    let (events, others): (Vec<_>, Vec<_>) = requests.into_iter().partition(|line| line.contains("/events"));
    assert_eq!(
        others,
        [
            format!("GET /api/v1{CHILDREN}/configmaps/codex-t-a"),
            // What the Job needs is read meanwhile.
            format!("GET {}", path("trainingruns", "a")),
            format!("GET /apis/batch/v1{CHILDREN}/jobs/codex-t-a"),
            format!("PATCH /api/v1{CHILDREN}/configmaps/codex-t-a as codex-controller"),
            format!("GET /apis/networking.k8s.io/v1{CHILDREN}/networkpolicies/codex-workers"),
            format!("PATCH /apis/networking.k8s.io/v1{CHILDREN}/networkpolicies/codex-workers as codex-controller"),
            format!("PATCH /apis/batch/v1{CHILDREN}/jobs/codex-t-a as codex-controller"),
            format!("PATCH {}/status as codex-controller/status force", path("trainingruns", "a")),
        ]
    );
    assert!(events.iter().all(|line| line == &format!("POST /apis/events.k8s.io/v1{CHILDREN}/events")), "{events:?}");
    for round in 0..3 {
        let (requests, result) = world.reconcile::<TrainingRun>("a").await;
        result.unwrap();
        assert!(requests.is_empty(), "round {round}: {requests:?}");
    }
}

#[tokio::test]
async fn an_object_is_not_reconciled_because_its_own_status_was_written() {
    let world = World::new().await;
    world.api.put(&path("trainingruns", "a"), run("a"));
    let attended = async || {
        let run = get(&world.context.stores.training_runs, "team", "a").unwrap();
        Box::pin(attend(run, &world.context)).await.unwrap().1
    };
    let queues = &world.context.queues;
    queues.add_changed::<TrainingRun>("team", "a");
    assert!(attended().await, "it is new");
    queues.add_changed::<TrainingRun>("team", "a");
    assert!(!attended().await, "only its status changed");
    assert!(attended().await, "it is time: nothing changed");
    let mut labelled = world.api.object(&path("trainingruns", "a")).unwrap();
    for (also_other, of_own_status) in [(true, false), (false, true)] {
        labelled["metadata"]["labels"] = json!({ "other": also_other.to_string() });
        labelled["status"] = json!(null);
        world.api.put(&path("trainingruns", "a"), labelled.clone());
        queues.add_changed::<TrainingRun>("team", "a");
        assert!(attended().await, "another client changed it");
        queues.add_changed::<TrainingRun>("team", "a");
        if also_other {
            queues.add::<TrainingRun>("team", "a");
        }
        assert_eq!(attended().await, !of_own_status);
    }
}

#[tokio::test]
async fn an_object_that_was_not_used_lately_is_the_same_when_it_is_read() {
    let world = judged(600).await;
    let stores = &world.context.stores;
    let run_before = get(&stores.training_runs, "team", "a").unwrap();
    let evaluation_before = get(&stores.evaluations, "team", "e").unwrap();
    let other = world.api.object(&path("evaluations", "e")).unwrap();
    for number in 0..200 {
        let name = format!("other-{number}");
        world.api.put(&path("trainingruns", &name), run(&name));
        let mut other = other.clone();
        other["metadata"] = json!({ "name": name, "namespace": "team" });
        world.api.put(&path("evaluations", &name), other);
    }
    assert_eq!((stores.training_runs.all().count(), stores.evaluations.all().count()), (201, 201));
    let run_after = get(&stores.training_runs, "team", "a").unwrap();
    let evaluation_after = get(&stores.evaluations, "team", "e").unwrap();
    assert!(!Arc::ptr_eq(&run_before, &run_after) && !Arc::ptr_eq(&evaluation_before, &evaluation_after));
    assert_eq!(to_value(&run_before).unwrap(), to_value(&run_after).unwrap());
    assert_eq!(to_value(&evaluation_before).unwrap(), to_value(&evaluation_after).unwrap());
    assert!(run_after.status.is_some() && evaluation_after.status.is_some());
    let context = &world.context;
    assert_eq!(
        (run_after.check_seal(context), evaluation_after.check_seal(context)),
        (StatusSeal::Valid, StatusSeal::Valid)
    );
}

#[tokio::test]
async fn a_foreign_job_is_not_changed_and_the_status_says_so_once() {
    let world = World::new().await;
    world.api.put(&path("trainingruns", "a"), run("a"));
    let job = "/apis/batch/v1/namespaces/team/jobs/codex-t-a";
    let foreign = json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "codex-t-a"},
        "spec": {"template": {"spec": {"containers": [{"name": "x", "image": "x"}]}}},
    });
    let before = world.api.put(job, foreign);
    let (requests, result) = world.reconcile::<TrainingRun>("a").await;
    assert_eq!(result.unwrap_err().category(), "name_taken");
    assert!(!requests.iter().any(|line| line.contains("jobs") && !line.starts_with("GET")), "{requests:?}");
    assert_eq!(world.api.object(job).unwrap(), before);
    let run = world.api.object(&path("trainingruns", "a")).unwrap();
    let stalled = run["status"]["conditions"].as_array().unwrap().iter().find(|it| it["type"] == "Stalled").unwrap();
    assert_eq!((&stalled["status"], &stalled["reason"]), (&json!("True"), &json!("NameTaken")));
    assert!(stalled["message"].as_str().unwrap().contains("the Job codex-t-a exists"), "{stalled}");
    let (requests, result) = world.reconcile::<TrainingRun>("a").await;
    assert_eq!(result.unwrap_err().category(), "name_taken");
    assert!(requests.iter().all(|line| line.starts_with("GET")), "{requests:?}");
}

#[tokio::test]
async fn a_modified_job_with_our_owner_reference_is_foreign() {
    let world = World::new().await;
    world.api.put(&path("trainingruns", "a"), run("a"));
    world.reconcile::<TrainingRun>("a").await.1.unwrap();
    let path = "/apis/batch/v1/namespaces/team/jobs/codex-t-a";
    let mut job = world.api.object(path).unwrap();
    job["spec"]["template"]["spec"]["containers"][0]["image"] = json!("evil:1");
    world.api.put(path, job);
    let (requests, result) = world.reconcile::<TrainingRun>("a").await;
    assert_eq!(result.unwrap_err().category(), "name_taken");
    assert!(!requests.iter().any(|line| line.starts_with("PATCH /apis/batch")), "{requests:?}");
}

#[tokio::test]
async fn a_removed_deadline_is_removed_from_the_job() {
    let world = World::new().await;
    let mut limited = run("a");
    limited["spec"]["activeDeadlineSeconds"] = json!(600);
    world.api.put(&path("trainingruns", "a"), limited);
    world.reconcile::<TrainingRun>("a").await.1.unwrap();
    let job = "/apis/batch/v1/namespaces/team/jobs/codex-t-a";
    assert_eq!(world.api.object(job).unwrap()["spec"]["activeDeadlineSeconds"], json!(600));
    let mut unlimited = world.api.object(&path("trainingruns", "a")).unwrap();
    unlimited["spec"].as_object_mut().unwrap().remove("activeDeadlineSeconds");
    world.api.put(&path("trainingruns", "a"), unlimited);
    let (requests, result) = world.reconcile::<TrainingRun>("a").await;
    result.unwrap();
    let writes: Vec<_> = requests.iter().filter(|line| line.contains("/jobs/")).collect();
    // The apply omits the field. Because another manager owns it, a patch removes it.
    assert_eq!(
        writes,
        [&format!("PATCH {job} as codex-controller force"), &format!("PATCH {job} as codex-controller")]
    );
    assert_eq!(world.api.object(job).unwrap()["spec"].get("activeDeadlineSeconds"), None);
    assert!(world.reconcile::<TrainingRun>("a").await.0.is_empty());
}

#[tokio::test]
async fn a_failed_write_is_an_error_and_the_next_reconciliation_continues() {
    let world = World::new().await;
    world.api.put(&path("trainingruns", "a"), run("a"));
    let job = "PATCH /apis/batch/v1/namespaces/team/jobs/codex-t-a";
    world.api.fail(job, Some(500));
    let (_, result) = world.reconcile::<TrainingRun>("a").await;
    assert_eq!(result.unwrap_err().category(), "server");
    world.api.fail(job, None);
    let (requests, result) = world.reconcile::<TrainingRun>("a").await;
    result.unwrap();
    assert!(!requests.iter().any(|line| line.contains("configmaps")), "{requests:?}");
    assert!(requests.iter().any(|line| line.starts_with(job)), "{requests:?}");
}

#[tokio::test]
async fn a_job_that_the_api_server_rejects_stalls_with_its_message_and_is_retried() {
    let world = World::new().await;
    world.api.put(&path("trainingruns", "a"), run("a"));
    let job = "PATCH /apis/batch/v1/namespaces/team/jobs/codex-t-a";
    world.api.fail(job, Some(422));
    let (requests, result) = world.reconcile::<TrainingRun>("a").await;
    assert_eq!(result.unwrap_err().category(), "invalid");
    assert_eq!(requests.iter().filter(|line| line.contains("/events")).count(), 1, "{requests:#?}");
    let live = world.api.object(&path("trainingruns", "a")).unwrap();
    let said = |kind: &str| {
        let conditions = live["status"]["conditions"].as_array().unwrap();
        let found = conditions.iter().find(|it| it["type"] == kind).unwrap();
        (found["status"].clone(), found["reason"].clone(), found["message"].as_str().unwrap().to_owned())
    };
    let sentence = format!("the Job codex-t-a cannot be applied: {job}: Injected");
    assert_eq!(said("Stalled"), (json!("True"), json!("Refused"), sentence.clone()));
    assert_eq!(said("Ready"), (json!("False"), json!("Refused"), sentence));
    assert_eq!(live["status"]["phase"], json!("Stalled"));
    // During the backoff a change still triggers an attempt, but the status stays as it is, whatever the rejection.
    world.context.backoff.failed("a-uid");
    world.api.fail(job, Some(403));
    let (requests, result) = world.reconcile::<TrainingRun>("a").await;
    assert_eq!(result.unwrap_err().category(), "forbidden");
    assert!(requests.iter().any(|line| line.starts_with(job)), "{requests:#?}");
    assert!(!requests.iter().any(|line| line.contains("/status") || line.contains("/events")), "{requests:#?}");
    world.api.fail(job, None);
    world.reconcile::<TrainingRun>("a").await.1.unwrap();
    let live = world.api.object(&path("trainingruns", "a")).unwrap();
    assert!(!live["status"]["conditions"].to_string().contains("Refused"), "{live}");
}

#[tokio::test]
async fn a_config_map_with_an_invalid_name_counts_as_missing_and_is_not_requested() {
    let world = World::new().await;
    let mut lost = run("a");
    let source = json!({"configMap": {"name": "../secrets/codex-seal", "key": "seal.key"}});
    lost["spec"]["data"] = json!([{"name": "sums", "sha256": "0".repeat(64), "source": source}]);
    world.api.put(&path("trainingruns", "a"), lost);
    let (requests, result) = world.reconcile::<TrainingRun>("a").await;
    result.unwrap();
    assert!(!requests.iter().any(|line| line.starts_with("GET")), "{requests:?}");
    let run = world.api.object(&path("trainingruns", "a")).unwrap();
    assert!(run["status"]["conditions"].to_string().contains("which does not exist in this namespace"), "{run}");
}

#[tokio::test]
async fn a_run_without_its_claim_waits_and_creates_no_job() {
    let world = World::new().await;
    let mut lonely = run("a");
    lonely["spec"]["output"]["persistentVolumeClaim"]["claimName"] = json!("nowhere");
    world.api.put(&path("trainingruns", "a"), lonely);
    let (requests, result) = world.reconcile::<TrainingRun>("a").await;
    result.unwrap();
    assert!(!requests.iter().any(|line| line.contains("jobs")), "{requests:?}");
    let run = world.api.object(&path("trainingruns", "a")).unwrap();
    assert!(run["status"]["conditions"].to_string().contains("nowhere"), "{run}");
}

/// Returns a run whose base is the run `base`.
fn based(name: &str, base: &str) -> serde_json::Value {
    let mut run = run(name);
    run["spec"]["base"] = json!({"trainingRun": {"name": base}});
    run
}

#[tokio::test]
async fn a_run_waits_for_the_run_that_is_its_base_and_then_mounts_its_model() {
    let world = World::new().await;
    world.api.put(&path("trainingruns", "tuned"), based("tuned", "a"));
    let told = async |told: &str| {
        let (requests, result) = world.reconcile::<TrainingRun>("tuned").await;
        result.unwrap();
        assert!(!requests.iter().any(|line| line.contains("jobs")), "{requests:?}");
        let run = world.api.object(&path("trainingruns", "tuned")).unwrap();
        assert!(run["status"]["conditions"].to_string().contains(told), "{told}: {run}");
    };
    told("which does not exist in this namespace").await;
    world.api.put(&path("trainingruns", "a"), run("a"));
    told("TrainingRun a has no model yet").await;
    let mut failed = run("a");
    failed["status"] = json!({"phase": "Failed", "conditions": [{
        "type": "Stalled", "status": "True", "reason": "DataMismatch", "message": "the data was changed",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }]});
    world.api.put(&path("trainingruns", "a"), failed);
    told("TrainingRun a has no model and is stalled: the data was changed").await;
    world.api.put(&path("trainingruns", "a"), world.sealed::<TrainingRun>(finished()));
    world.reconcile::<TrainingRun>("tuned").await.1.unwrap();
    let job = world.api.object("/apis/batch/v1/namespaces/team/jobs/codex-t-tuned").unwrap();
    let pod = &job["spec"]["template"]["spec"];
    let args = pod["containers"][0]["args"].to_string();
    assert!(args.contains(&format!("\"--base\",\"/base\",\"--base-digest\",\"{}\"", "1".repeat(64))), "{args}");
    let mounts = pod["containers"][0]["volumeMounts"].as_array().unwrap();
    let base = mounts.iter().find(|mount| mount["mountPath"] == "/base").unwrap();
    // Output and base are folders of the same claim.
    assert_eq!(
        base,
        &json!({"name": "claim-0", "mountPath": "/base", "subPath": "runs/a-uid/model", "readOnly": true})
    );
    for round in 0..3 {
        let (requests, result) = world.reconcile::<TrainingRun>("tuned").await;
        result.unwrap();
        assert!(requests.is_empty(), "round {round}: {requests:?}");
    }
}

#[tokio::test]
async fn runs_whose_bases_form_a_cycle_say_so() {
    let world = World::new().await;
    world.api.put(&path("trainingruns", "a"), based("a", "b"));
    world.api.put(&path("trainingruns", "b"), based("b", "c"));
    world.api.put(&path("trainingruns", "c"), based("c", "a"));
    for (name, cycle) in [("a", "a → b → c → a"), ("b", "b → c → a → b")] {
        world.reconcile::<TrainingRun>(name).await.1.unwrap();
        let run = world.api.object(&path("trainingruns", name)).unwrap();
        let conditions = run["status"]["conditions"].to_string();
        assert!(conditions.contains(&format!("spec.base leads back to this TrainingRun ({cycle})")), "{conditions}");
    }
}

#[tokio::test]
async fn a_run_without_the_claim_of_its_base_waits_and_creates_no_job() {
    let world = World::new().await;
    let mut tuned = run("tuned");
    tuned["spec"]["base"] = json!({"persistentVolumeClaim": {"claimName": "nowhere"}});
    world.api.put(&path("trainingruns", "tuned"), tuned);
    let (requests, result) = world.reconcile::<TrainingRun>("tuned").await;
    result.unwrap();
    assert!(!requests.iter().any(|line| line.contains("jobs")), "{requests:?}");
    let run = world.api.object(&path("trainingruns", "tuned")).unwrap();
    let conditions = run["status"]["conditions"].to_string();
    assert!(conditions.contains("spec.base.persistentVolumeClaim.claimName names the PersistentVolumeClaim"), "{run}");
}
