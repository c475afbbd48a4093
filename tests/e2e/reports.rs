//! Who may report: the controller refuses a pod that claims to belong to a run and differs from its template.

use codex_crds::{TrainingRun, TrainingRunPhase, child};
use codex_tests::{
    Result, Team, objects,
    team::SOON,
    wait::{Sight, until, until_gone},
};
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{EmptyDirVolumeSource, Pod, PodSpec},
};
use kube::ResourceExt as _;
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_with_a_forged_owner_and_another_spec_is_refused() -> Result<()> {
    let team = Team::new("forger").await?;
    // The genuine trainer is never scheduled, so every report about this run is forged.
    let mut run = objects::run("run", &["training.max_steps=1", "training.warmup_steps=0"]);
    run.spec.pod.worker.node_selector = [("codex-ml.dev/nowhere".to_owned(), "true".to_owned())].into();
    let run = team.create(&run).await?;
    let job = until(&team.api::<Job>(), &child::trainer("run"), "it exists", SOON, |_| true).await?;
    let template = job.spec.as_ref().unwrap().template.spec.clone().unwrap();

    let labels = job.spec.as_ref().unwrap().template.metadata.clone().unwrap().labels;
    let by_job = json!({ "apiVersion": "batch/v1", "kind": "Job", "name": job.name_any(), "uid": job.uid() });
    let by_run =
        json!({ "apiVersion": "codex-ml.dev/v1alpha1", "kind": "TrainingRun", "name": "run", "uid": run.uid() });
    for (name, owner, labels) in
        [("owned-by-run", by_run, None), ("owned-by-job", by_job.clone(), None), ("in-the-jobs-place", by_job, labels)]
    {
        let pod = team.create(&forged(name, owner, labels.as_ref(), &template)).await?.name_any();
        // It does train, and the controller refuses its report.
        let ended = until(&team.api::<Pod>(), &pod, "it has finished", SOON, |pod| {
            match pod.status.as_ref().and_then(|status| status.phase.as_deref()) {
                Some("Succeeded") => Sight::There,
                Some("Failed") => Sight::Impossible("it failed to train".to_owned()),
                _ => Sight::NotYet,
            }
        })
        .await?;
        let log = team.logs(&ended.name_any()).await?;
        assert!(log.contains("the controller refused the final report") && log.contains("403"), "{name}: {log}");
    }
    // The controller also removes a Job that a user created in the run's name.
    let mut intruder = job.clone();
    let labels = job.metadata.labels.clone();
    intruder.metadata = serde_json::from_value(json!({
        "name": "intruder",
        "labels": labels,
        "ownerReferences": job.metadata.owner_references,
    }))
    .unwrap();
    intruder.status = None;
    let spec = intruder.spec.as_mut().unwrap();
    (spec.selector, spec.suspend, spec.template.metadata) = (None, Some(true), None);
    team.create(&intruder).await?;
    until_gone(&team.api::<Job>(), "intruder", SOON).await?;

    let status = team.api::<TrainingRun>().get("run").await?.status.unwrap();
    assert_eq!(
        (status.phase, &status.model, status.work.attempts.unwrap_or(0)),
        (Some(TrainingRunPhase::Pending), &None, 0)
    );
    assert!(status.progress.is_none(), "{status:#?}");
    team.done();
    Ok(())
}

/// Returns the trainer's pod with another output volume and no node selector, as an attacker would create it to pass off
/// their model as the run's.
fn forged(
    name: &str,
    mut owner: Value,
    labels: Option<&std::collections::BTreeMap<String, String>>,
    template: &PodSpec,
) -> Pod {
    owner["controller"] = json!(true);
    let mut spec = template.clone();
    spec.node_selector = None;
    for volume in spec.volumes.iter_mut().flatten().filter(|volume| volume.persistent_volume_claim.is_some()) {
        volume.persistent_volume_claim = None;
        volume.empty_dir = Some(EmptyDirVolumeSource::default());
    }
    serde_json::from_value(json!({
        "metadata": { "name": name, "ownerReferences": [owner], "labels": labels },
        "spec": spec,
    }))
    .unwrap()
}
