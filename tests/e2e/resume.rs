//! Interruptions: a killed and a suspended run resume, and both make the same model as an uninterrupted run.

use std::{fs, path::Path};

use codex_crds::{ConditionType, TrainingRun, TrainingRunPhase};
use codex_tests::{
    Result, Team, host,
    objects::{self, CHECKPOINT_EVERY},
    team::{SOON, TRAINED, condition},
    wait::{until, until_found},
};
use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};
use kube::ResourceExt as _;
use serde_json::json;

use crate::documents::scrape;

/// Enough that a run is still training when its first checkpoint has been seen.
const TOTAL: i64 = 1500;

#[tokio::test(flavor = "multi_thread")]
async fn interrupted_runs_make_the_model_of_an_uninterrupted_one() -> Result<()> {
    let team = Team::new("resume").await?;
    let overrides = format!("training.max_steps={TOTAL}");
    // Killed with SIGKILL, without a chance to write anything.
    let killed = team.create(&objects::run("killed", &[&overrides])).await?;
    let pod = first_checkpoint(&team, &killed).await?;
    if team.installation.cluster.node().is_some() {
        assert!(host::kill_pod(&pod.uid().unwrap())? > 0, "a process of the pod was killed");
    } else {
        team.api::<Pod>().delete(&pod.name_any(), &kube::api::DeleteParams::default().grace_period(0)).await?;
    }

    // Suspended, and its newest checkpoint damaged while it is suspended.
    let suspended = team.create(&objects::run("suspended", &[&overrides])).await?;
    let trainer = first_checkpoint(&team, &suspended).await?;
    let metrics = format!("/api/v1/namespaces/{}/pods/{}:9464/proxy/metrics", team.namespace, trainer.name_any());
    let metrics = scrape(&team, &metrics).await?;
    assert!(metrics.contains("\ncodex_ml_training_steps_total "), "{metrics}");
    team.change::<TrainingRun>("suspended", json!({ "spec": { "suspend": true } })).await?;
    let held = until(&team.api::<TrainingRun>(), "suspended", "it is suspended", SOON, |run| {
        let status = run.status.as_ref();
        let said = condition(status.map(|status| &*status.conditions), ConditionType::Ready);
        status.and_then(|status| status.phase) == Some(TrainingRunPhase::Suspended)
            && said.is_some_and(|said| said.reason == "Suspended")
    })
    .await?;
    until_found("no trainer of the suspended run is left", SOON, async || {
        let pods = team.pods("batch.kubernetes.io/job-name", "codex-t-suspended").await?;
        let ended = pods.iter().all(|pod| phase(pod) == "Succeeded" || phase(pod) == "Failed");
        Ok(ended.then_some(()))
    })
    .await?;
    assert!(held.status.as_ref().is_some_and(|status| status.model.is_none()));
    let folder = team.folder(&held).await?;
    if folder.is_none() {
        team.skip("a damaged checkpoint", "the files of this cluster's volumes cannot be changed");
    }
    let damaged = folder.map(|folder| damage_newest(&folder.join("checkpoints")));
    team.change::<TrainingRun>("suspended", json!({ "spec": { "suspend": false } })).await?;

    // The deadline is removed while the run trains, and its Job loses its deadline as well.
    let mut plain = objects::run("plain", &[&overrides]);
    plain.spec.active_deadline_seconds = Some(86_400);
    team.create(&plain).await?;
    let timed = |job: &Job| job.spec.as_ref().is_some_and(|spec| spec.active_deadline_seconds.is_some());
    until(&team.api::<Job>(), "codex-t-plain", "it has a deadline", SOON, timed).await?;
    team.change::<TrainingRun>("plain", json!({ "spec": { "activeDeadlineSeconds": null } })).await?;
    until(&team.api::<Job>(), "codex-t-plain", "it has no deadline", SOON, |job| !timed(job)).await?;
    let digest = |run: &TrainingRun| run.status.as_ref().unwrap().model.as_ref().unwrap().digest;
    let plain = team.trained("plain").await?;
    let status = plain.status.as_ref().unwrap();
    assert_eq!((status.work.attempts, status.steps_executed), (Some(1), Some(TOTAL)));

    let killed = team.trained("killed").await?;
    assert_eq!(digest(&killed), digest(&plain), "the killed run makes the same model, byte for byte");
    let status = killed.status.as_ref().unwrap();
    assert_eq!(status.work.attempts, Some(2));
    let executed = status.steps_executed.unwrap();
    assert!((TOTAL..=TOTAL + CHECKPOINT_EVERY).contains(&executed), "{executed} steps were executed for {TOTAL}");

    let suspended = team.trained("suspended").await?;
    assert_eq!(digest(&suspended), digest(&plain), "the suspended run makes the same model, byte for byte");
    let status = suspended.status.as_ref().unwrap();
    assert_eq!(status.work.attempts, Some(2));
    assert!(status.work.active_seconds.is_some_and(|seconds| seconds > 0), "the time before the suspension counts");
    if let Some(damaged) = damaged {
        // The damaged checkpoint is skipped, and the log says so.
        let pods = team.pods("batch.kubernetes.io/job-name", "codex-t-suspended").await?;
        let log = team.logs(&pods.last().unwrap().name_any()).await?;
        assert!(log.contains(&damaged) && log.contains("training resumes from"), "{log}");
    }

    // Two runs with the same model, ring and evidence: each has its own promotion, and both are served.
    for run in ["plain", "killed"] {
        team.create(&objects::evaluation(&format!("{run}-judged"), run, &team.problems)).await?;
        team.create(&objects::reasoning_pod(&format!("{run}-served"), run, &format!("{run}-judged"))).await?;
    }
    let mut promotions = Vec::new();
    for run in ["plain", "killed"] {
        let status = team.serving(&format!("{run}-served")).await?.status.unwrap();
        promotions.push(status.promotion.unwrap().bundle);
    }
    assert_ne!(promotions[0], promotions[1]);
    team.done();
    Ok(())
}

/// Waits until a run has written a checkpoint, and returns its running pod. No other run must train meanwhile, because it
/// could end unseen.
async fn first_checkpoint(team: &Team, run: &TrainingRun) -> Result<Pod> {
    let name = run.name_any();
    let folder = until_found("the claim has its volume", TRAINED, async || {
        if team.installation.cluster.node().is_none() {
            return Ok(Some(None));
        }
        let folder = team.folder(run).await?;
        Ok(folder.filter(|folder| folder.is_dir()).map(Some))
    })
    .await?;
    if let Some(folder) = folder {
        let checkpoints = folder.join("checkpoints");
        until_found("a checkpoint is written", TRAINED, async || Ok(newest(&checkpoints).map(drop))).await?;
    } else {
        let there = |run: &TrainingRun| run.status.as_ref().is_some_and(|status| status.last_checkpoint.is_some());
        until(&team.api::<TrainingRun>(), &name, "its first checkpoint is reported", TRAINED, there).await?;
    }
    let job = format!("codex-t-{name}");
    team.pod("batch.kubernetes.io/job-name", &job, "works", |pod| phase(pod) == "Running").await
}

/// Returns the name of the newest checkpoint.
fn newest(checkpoints: &Path) -> Option<String> {
    let names = fs::read_dir(checkpoints).ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter(|name| name.starts_with("step-")).max()
}

/// Truncates the newest checkpoint, and returns its name.
fn damage_newest(checkpoints: &Path) -> String {
    let newest = newest(checkpoints).unwrap_or_else(|| panic!("no checkpoint in {}", checkpoints.display()));
    let file = fs::File::options().write(true).open(checkpoints.join(&newest).join("state.safetensors")).unwrap();
    file.set_len(file.metadata().unwrap().len() / 2).unwrap();
    newest
}

fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}
