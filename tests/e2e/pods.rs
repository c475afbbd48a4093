//! What surrounds the pods of TrainingRuns and Evaluations: the NetworkPolicy that they share, and ids of their own.

use codex_crds::{PodIds, TrainingRun, child};
use codex_tests::{
    Result, Team, objects,
    team::SOON,
    wait::{until, until_gone},
};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::DeleteParams;
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
