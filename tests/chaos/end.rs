//! What is checked once the faults have stopped: everything ends as it must, is true, is quiet, and leaves nothing behind.

use std::time::Duration;

use codex_tests::{Result, Team};
use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::Deployment,
    batch::v1::Job,
    core::v1::{ConfigMap, Pod, Service},
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
};
use kube::api::ListParams;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::{
    invariants::unsettled,
    observe::{list, lock, objects},
    scene::Scene,
    workload::{Workload, delete_all, services},
};

/// The time limit for everything to end. The Job controller waits up to ten minutes before it replaces a pod that failed often.
const SETTLE: Duration = Duration::from_secs(720);
/// The time limit for a server to answer, and for children to follow their owners.
const SOON: Duration = Duration::from_secs(120);
/// How long the controllers must write nothing, and how often they may need to get there.
const QUIET: Duration = Duration::from_secs(20);
const ATTEMPTS: usize = 4;
/// The label of every child.
const CHILDREN: &str = "app.kubernetes.io/managed-by=codex-controller";

/// Checks the end of a run. Violations are recorded by the witness.
///
/// # Errors
/// If the API server does not answer.
pub(crate) async fn check(scene: &Scene, workload: &Workload) -> Result<()> {
    println!("The faults have stopped. Waiting until everything has ended as it must.");
    let chains = workload.chains();
    let begun = Instant::now();
    let open = loop {
        let open = unsettled(&chains, &objects(&scene.team).await?);
        if open.is_empty() || begun.elapsed() > SETTLE {
            break open;
        }
        sleep(Duration::from_secs(1)).await;
    };
    if open.is_empty() {
        println!("All {} chains have ended as they must after {} s.", chains.len(), begun.elapsed().as_secs());
    }
    for line in open {
        lock(&scene.witness).add(format!("not ended {} s after the last fault: {line}", SETTLE.as_secs()));
    }
    for service in services(&chains) {
        answers(scene, service).await?;
    }
    quiet(scene).await;
    nothing_left(scene).await
}

/// Invariant 14.
async fn answers(scene: &Scene, name: &str) -> Result<()> {
    let runs = list::<codex_crds::TrainingRun>(&scene.team, &ListParams::default()).await?;
    let run = runs.iter().find(|run| run["metadata"]["name"] == name);
    let model = run.map_or(Value::Null, |run| run["status"]["model"]["digest"].clone());
    let deadline = Instant::now() + SOON;
    loop {
        let answer = scene.team.infer(name, "12+7:").await;
        match answer {
            Ok(answer) if answer["model_digest"] == model => return Ok(()),
            Ok(answer) => {
                let said =
                    format!("{name} answers with the model {}, but its run made {model}", answer["model_digest"]);
                lock(&scene.witness).add(said);
                return Ok(());
            }
            Err(error) if Instant::now() > deadline => {
                lock(&scene.witness).add(format!("{name} does not answer: {error}"));
                return Ok(());
            }
            Err(_) => sleep(Duration::from_secs(1)).await,
        }
    }
}

/// Invariant 15.
async fn quiet(scene: &Scene) {
    let mut writes = Vec::new();
    for _ in 0..ATTEMPTS {
        let since = Timestamp::now();
        sleep(QUIET).await;
        writes = lock(&scene.witness).writes_since(since);
        if writes.is_empty() {
            return;
        }
    }
    for write in writes {
        lock(&scene.witness).add(format!("a settled controller writes: {write}"));
    }
}

/// Invariant 16.
async fn nothing_left(scene: &Scene) -> Result<()> {
    println!("Deleting every object, and waiting for their children.");
    delete_all(&scene.team).await?;
    let deadline = Instant::now() + SOON;
    loop {
        let left = children(&scene.team).await?;
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            for child in left {
                lock(&scene.witness).add(format!("{child} outlives its owner"));
            }
            return Ok(());
        }
        sleep(Duration::from_secs(1)).await;
    }
}

async fn children(team: &Team) -> Result<Vec<String>> {
    let ours = ListParams::default().labels(CHILDREN);
    let mut all = objects(team).await?;
    all.extend(list::<Job>(team, &ours).await?);
    all.extend(list::<Deployment>(team, &ours).await?);
    all.extend(list::<ConfigMap>(team, &ours).await?);
    all.extend(list::<Service>(team, &ours).await?);
    all.extend(list::<PodDisruptionBudget>(team, &ours).await?);
    all.extend(list::<NetworkPolicy>(team, &ours).await?);
    all.extend(list::<Pod>(team, &ours).await?);
    let name = |object: &Value| format!("{} {}", object["kind"], object["metadata"]["name"]).replace('"', "");
    Ok(all.iter().map(name).collect())
}
