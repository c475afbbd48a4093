//! What surrounds the pods of TrainingRuns and Evaluations: the NetworkPolicy that they share, ids of their own, and settings that change
//! before a pod has started.

use codex_crds::{ConditionType, PodIds, TrainingRun, child};
use codex_tests::{
    Result, Team, objects,
    team::{SOON, condition},
    wait::{until, until_gone},
};
use k8s_openapi::api::{batch::v1::Job, networking::v1::NetworkPolicy};
use kube::{ResourceExt, api::DeleteParams};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn trainers_have_a_policy_and_the_ids_of_their_object() -> Result<()> {
    let team = Team::new("pods").await?;
    let mut run = objects::run("run", &["training.max_steps=2", "training.warmup_steps=0"]);
    let ids = PodIds { supplemental_groups: vec![3_000], ..PodIds::default() };
    run.spec.pod.worker.security_context = Some(Box::new(ids));
    team.create(&run).await?;
    let policies = team.api::<NetworkPolicy>();
    let policy = until(&policies, child::WORKERS, "the policy of trainers exists", SOON, |_| true).await?;
    let spec = json!(policy.spec);
    assert_eq!(spec["policyTypes"], json!(["Ingress"]));
    assert_eq!(
        spec["ingress"],
        json!([{ "ports": [{ "protocol": "TCP", "port": 9464 }], "from": [{ "namespaceSelector": {} }] }])
    );
    // Its pod counts as the one that was asked for.
    team.trained("run").await?;
    let trainers = team.pods("batch.kubernetes.io/job-name", "codex-t-run").await?;
    let context = trainers[0].spec.as_ref().unwrap().security_context.as_ref().unwrap();
    assert_eq!((context.run_as_user, context.supplemental_groups.as_deref()), (Some(65_532), Some(&[3_000][..])));
    team.api::<TrainingRun>().delete("run", &DeleteParams::default()).await?;
    until_gone(&policies, child::WORKERS, SOON).await?;
    team.done();
    Ok(())
}

/// A pod that fits no node has not started, so the settings that keep it from starting may change.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_fits_no_node_starts_once_its_settings_fit_and_keeps_them_from_then_on() -> Result<()> {
    let team = Team::new("fits").await?;
    let mut run = objects::run("run", &["training.max_steps=2", "training.warmup_steps=0"]);
    run.spec.pod.worker.node_selector = [("example.com/nowhere".to_owned(), "true".to_owned())].into();
    team.create(&run).await?;
    until(&team.api::<TrainingRun>(), "run", "its pod cannot be scheduled", SOON, |run| {
        let conditions = run.status.as_ref().map(|status| &*status.conditions);
        condition(conditions, ConditionType::Ready).is_some_and(|ready| ready.message.contains("cannot be scheduled"))
    })
    .await?;
    let job = async || team.api::<Job>().get(&child::trainer("run")).await.map(|job| job.uid());
    let before = job().await?;
    let select = |selector| json!({ "spec": { "pod": { "nodeSelector": selector } } });
    team.change::<TrainingRun>("run", select(json!(null))).await?;
    let run = team.trained("run").await?;
    assert_ne!(job().await?, before, "the template of a Job cannot be changed");
    assert!(run.status.unwrap().work.started_at.is_some());
    let refused =
        team.change::<TrainingRun>("run", select(json!({ "example.com/nowhere": "true" }))).await.unwrap_err();
    let told = "spec.pod is immutable once a pod has started (status.startedAt)";
    assert!(refused.to_string().contains(told), "{refused}");
    team.done();
    Ok(())
}
