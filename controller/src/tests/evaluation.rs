//! The reconciliation of an Evaluation.

use codex_crds::{Evaluation, TrainingRun};
use serde_json::{Value, json};

use super::world::{World, path, run};

pub(super) fn evaluation() -> Value {
    json!({
        "apiVersion": "codex-ml.dev/v1alpha1", "kind": "Evaluation",
        "metadata": {"name": "e", "uid": "e-uid"},
        "spec": {
            "trainingRun": "a", "preset": "cot-lite",
            "gates": [{"metric": "exact_match", "min": "0.95", "confidence": "0.95"}],
        },
    })
}

/// Returns the run `a`, which has a model.
pub(super) fn finished() -> Value {
    let mut run = run("a");
    let (digest, file) = ("1".repeat(64), "2".repeat(64));
    run["status"] = json!({
        "observedGeneration": 1, "phase": "Succeeded", "completedAt": "2026-01-01T00:00:00Z", "configDigest": "3".repeat(64),
        "model": {
            "digest": digest, "short": "111111111111", "omsRoot": "4".repeat(64), "location": "runs/runs/a-uid/model",
            "parameters": 1, "sizeBytes": 1, "files": [{"path": "config.json", "size": 1, "sha256": file}],
        },
        "conditions": [{"type": "Trained", "status": "True", "reason": "Succeeded", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
    });
    run
}

#[tokio::test]
async fn an_evaluation_waits_for_its_run_and_then_writes_a_config_map_a_job_and_a_status() {
    let world = World::new().await;
    world.api.put(&path("evaluations", "e"), evaluation());
    let (requests, result) = world.reconcile::<Evaluation>("e").await;
    result.unwrap();
    assert!(!requests.iter().any(|line| line.contains("jobs") || line.contains("configmaps")), "{requests:?}");
    let waiting = world.api.object(&path("evaluations", "e")).unwrap();
    assert!(waiting["status"]["conditions"].to_string().contains("NotFound"), "{waiting}");
    world.api.put(&path("trainingruns", "a"), world.sealed::<TrainingRun>(finished()));
    world.api.requests();
    let (requests, result) = world.reconcile::<Evaluation>("e").await;
    result.unwrap();
    let others: Vec<_> = requests.into_iter().filter(|line| !line.contains("/events")).collect();
    assert_eq!(
        others,
        [
            "GET /api/v1/namespaces/team/configmaps/codex-e-e".to_owned(),
            format!("GET {}", path("evaluations", "e")),
            "GET /apis/batch/v1/namespaces/team/jobs/codex-e-e".to_owned(),
            "PATCH /api/v1/namespaces/team/configmaps/codex-e-e as codex-controller".to_owned(),
            "GET /apis/networking.k8s.io/v1/namespaces/team/networkpolicies/codex-workers".to_owned(),
            "PATCH /apis/networking.k8s.io/v1/namespaces/team/networkpolicies/codex-workers as codex-controller"
                .to_owned(),
            "PATCH /apis/batch/v1/namespaces/team/jobs/codex-e-e as codex-controller".to_owned(),
            format!("PATCH {}/status as codex-controller/status force", path("evaluations", "e")),
        ]
    );
    for round in 0..3 {
        let (requests, result) = world.reconcile::<Evaluation>("e").await;
        result.unwrap();
        assert!(requests.is_empty(), "round {round}: {requests:?}");
    }
    let job = world.api.object("/apis/batch/v1/namespaces/team/jobs/codex-e-e").unwrap();
    assert!(job["metadata"]["annotations"]["codex-ml.dev/seal"].is_string(), "{job}");
    assert!(world.context.stores.training_runs.all().any(|run| run.status.is_some()));
}

#[tokio::test]
async fn an_evaluation_of_a_given_model_needs_no_run_and_two_claims() {
    let world = World::new().await;
    let mut given = evaluation();
    given["spec"].as_object_mut().unwrap().remove("trainingRun");
    given["spec"]["model"] = json!({"persistentVolumeClaim": {"claimName": "given", "path": "llama"}});
    given["spec"]["output"] = json!({"persistentVolumeClaim": {"claimName": "runs", "subPath": "scores"}});
    world.api.put(&path("evaluations", "e"), given);
    let (requests, result) = world.reconcile::<Evaluation>("e").await;
    result.unwrap();
    assert!(!requests.iter().any(|line| line.contains("jobs")), "{requests:?}");
    let waiting = world.api.object(&path("evaluations", "e")).unwrap()["status"].to_string();
    assert!(
        waiting.contains("spec.model.persistentVolumeClaim.claimName names the PersistentVolumeClaim"),
        "{waiting}"
    );
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "given"}});
    world.api.put("/api/v1/namespaces/team/persistentvolumeclaims/given", claim);
    world.reconcile::<Evaluation>("e").await.1.unwrap();
    let job = world.api.object("/apis/batch/v1/namespaces/team/jobs/codex-e-e").unwrap();
    let container = &job["spec"]["template"]["spec"]["containers"][0];
    assert!(
        container["args"].to_string().contains("\"--model\",\"/model/llama\",\"--output\",\"/output\""),
        "{container}"
    );
    assert_eq!(container["volumeMounts"][1]["subPath"], "scores/evaluations/e-uid");
    for round in 0..3 {
        let (requests, result) = world.reconcile::<Evaluation>("e").await;
        result.unwrap();
        assert!(requests.is_empty(), "round {round}: {requests:?}");
    }
}

#[tokio::test]
async fn the_job_of_a_replaced_run_is_deleted_before_that_of_the_next_one_is_created() {
    let world = World::new().await;
    world.api.put(&path("trainingruns", "a"), world.sealed::<TrainingRun>(finished()));
    let mut yearly = evaluation();
    yearly["metadata"]["creationTimestamp"] = json!("2024-06-01T00:00:00Z");
    yearly["spec"]["schedule"] = json!({"cron": "0 0 1 1 *", "concurrencyPolicy": "Replace"});
    world.api.put(&path("evaluations", "e"), yearly);
    let job = |number: i64| format!("/apis/batch/v1/namespaces/team/jobs/codex-e-{number}-e");
    for round in 0..4 {
        world.reconcile::<Evaluation>("e").await.1.unwrap();
        assert_eq!(world.api.object(&job(1)).is_some(), round > 0, "a run is recorded before its Job is created");
    }
    // A year passes.
    let mut object = world.api.object(&path("evaluations", "e")).unwrap();
    let runs = &mut object["status"]["schedule"];
    assert_eq!(runs["active"]["number"], 1, "{runs}");
    (runs["lastScheduleTime"], runs["active"]["scheduled"]) =
        (json!("2025-01-01T00:00:00Z"), json!("2025-01-01T00:00:00Z"));
    runs.as_object_mut().unwrap().remove("missed");
    world.api.put(&path("evaluations", "e"), world.sealed::<Evaluation>(object));
    let (requests, result) = world.reconcile::<Evaluation>("e").await;
    result.unwrap();
    let others: Vec<_> = requests.into_iter().filter(|line| !line.contains("/events")).collect();
    assert_eq!(others, [format!("PATCH {}/status as codex-controller/status force", path("evaluations", "e"))]);
    let runs = world.api.object(&path("evaluations", "e")).unwrap()["status"]["schedule"].clone();
    assert_eq!(
        (&runs["active"]["number"], &runs["history"][0]["reason"]),
        (&json!(2), &json!("RunReplaced")),
        "{runs}"
    );
    let (requests, result) = world.reconcile::<Evaluation>("e").await;
    result.unwrap();
    let of_jobs: Vec<_> = requests.into_iter().filter(|line| line.contains("/jobs/")).collect();
    assert_eq!(
        of_jobs,
        [format!("GET {}", job(2)), format!("DELETE {}", job(1)), format!("PATCH {} as codex-controller", job(2)),]
    );
    for round in 0..3 {
        let (requests, result) = world.reconcile::<Evaluation>("e").await;
        result.unwrap();
        assert!(requests.is_empty(), "round {round}: {requests:?}");
    }
}

#[tokio::test]
async fn a_status_without_a_valid_seal_is_not_believed() {
    let world = World::new().await;
    let digest = "1".repeat(64);
    let forged = json!({
        "verdict": "Passed", "gatesPassed": "1/1", "completedAt": "2026-01-01T00:00:00Z", "trainingRunUid": "a-uid",
        "model": {"digest": digest, "short": "111111111111"}, "reportDigest": "5".repeat(64), "evidence": "strong",
        "metrics": [{"name": "exact_match", "kind": "share", "n": 1_000_000, "successes": 1_000_000}],
    });
    let mut object = evaluation();
    object["status"] = forged.clone();
    world.api.put(&path("evaluations", "e"), object);
    // The model of a run counts only with a seal, too.
    world.api.put(&path("trainingruns", "a"), finished());
    world.reconcile::<Evaluation>("e").await.1.unwrap();
    let status = world.api.object(&path("evaluations", "e")).unwrap()["status"].clone();
    assert_eq!(
        (&status["verdict"], &status["metrics"], &status["evidence"]),
        (&Value::Null, &Value::Null, &Value::Null)
    );
    assert_eq!(status["phase"], json!("Pending"), "{status}");
    let discarded = status["conditions"].as_array().unwrap().iter().find(|it| it["type"] == "StatusDiscarded").unwrap();
    assert_eq!(discarded["reason"], json!("NotSealed"), "{discarded}");
    assert!(world.api.object("/apis/batch/v1/namespaces/team/jobs/codex-e-e").is_none());
    // With a sealed run the evaluation starts from nothing.
    world.api.put(&path("trainingruns", "a"), world.sealed::<TrainingRun>(finished()));
    world.reconcile::<Evaluation>("e").await.1.unwrap();
    assert!(world.api.object("/apis/batch/v1/namespaces/team/jobs/codex-e-e").is_some());
    let status = world.api.object(&path("evaluations", "e")).unwrap()["status"].clone();
    assert!(status["seal"].as_str().unwrap().starts_with("e-uid:"), "{status}");
}

#[tokio::test]
async fn a_restored_status_is_told_apart_and_starts_nothing() {
    let world = World::new().await;
    let mut former = finished();
    former["metadata"]["uid"] = json!("former-uid");
    let mut restored = world.sealed::<TrainingRun>(former);
    restored["metadata"]["uid"] = json!("a-uid");
    world.api.put(&path("trainingruns", "a"), restored);
    for _ in 0..2 {
        world.reconcile::<TrainingRun>("a").await.1.unwrap();
        let status = world.api.object(&path("trainingruns", "a")).unwrap()["status"].clone();
        assert_eq!((&status["model"], &status["phase"]), (&Value::Null, &json!("Failed")), "{status}");
        let stalled = status["conditions"].as_array().unwrap().iter().find(|it| it["type"] == "Stalled").unwrap();
        assert_eq!(stalled["reason"], json!("Restored"));
        assert!(stalled["message"].as_str().unwrap().contains("backup tools"), "{stalled}");
    }
    assert!(world.api.object("/apis/batch/v1/namespaces/team/jobs/codex-t-a").is_none());
}
