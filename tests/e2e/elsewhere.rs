//! A controller in another namespace than `codex-system`: it writes nothing while the installed one owns the objects, and works after
//! that once the admission policies name its service account, as docs/install.md describes.

use std::panic::{AssertUnwindSafe, resume_unwind};

use codex_crds::{ReasoningPod, TrainingRun, child};
use codex_provenance::EvidenceStrength;
use codex_tests::{
    Result, Team,
    audit::Follower,
    install::{CONTROLLER, CONTROLLER_USER, NAMESPACE},
    objects,
    process::output,
    team::{SOON, blocking},
    wait::{until_found, until_gone},
};
use futures::FutureExt as _;
use k8s_openapi::api::{
    apps::v1::Deployment, core::v1::Namespace, networking::v1::NetworkPolicy, rbac::v1::ClusterRoleBinding,
};
use kube::{Api, api::DeleteParams};

use crate::killed_controller::scale;

#[tokio::test(flavor = "multi_thread")]
async fn a_second_controller_waits_for_the_first_and_works_once_its_principal_is_patched() -> Result<()> {
    let team = Team::alone("elsewhere").await?;
    let elsewhere = format!("{}-controller", team.namespace);
    let told = Box::pin(AssertUnwindSafe(one_after_the_other(&team, &elsewhere)).catch_unwind()).await;
    // Other tests need the installed controller, even if this one fails.
    let (installation, deleted) = (team.installation, elsewhere.clone());
    Api::<Namespace>::all(team.client.clone()).delete(&deleted, &DeleteParams::default()).await.ok();
    blocking(move || installation.apply()).await?;
    scale(&team, 1).await?;
    told.unwrap_or_else(|panic| resume_unwind(panic))?;
    team.done();
    Ok(())
}

async fn one_after_the_other(team: &Team, elsewhere: &str) -> Result<()> {
    let waits = Box::pin(waits_for_the_first(team, elsewhere)).await;
    if waits.is_err() {
        tell(team, elsewhere).await;
    }
    waits?;
    scale(team, 0).await?;
    Box::pin(chain(team, elsewhere)).await
}

/// Starts the second controller beside the installed one, and checks that it says who owns the objects and writes only its Lease and its
/// Secrets, while the first one takes a run to its end.
async fn waits_for_the_first(team: &Team, elsewhere: &str) -> Result<()> {
    let log = team.installation.cluster.audit_log().map(Follower::from_now).transpose()?;
    let (installation, namespace, watched) = (team.installation, elsewhere.to_owned(), team.namespace.clone());
    blocking(move || installation.apply_beside(&namespace, &watched)).await?;
    until_found("the log of the second controller says who owns the objects", SOON, async || {
        // There is no log before its pod has started.
        let told = last_words(team, elsewhere).await.unwrap_or_default();
        let owner = format!("of the Lease {NAMESPACE}/{CONTROLLER} reconciles those in all namespaces");
        Ok((told.contains("standing by: another controller owns the objects") && told.contains(&owner)).then_some(()))
    })
    .await?;

    team.create(&objects::run("first", &["training.max_steps=1", "training.warmup_steps=0"])).await?;
    team.trained("first").await?;
    // The second controller begins with an empty namespace.
    team.api::<TrainingRun>().delete("first", &DeleteParams::foreground()).await?;
    until_gone(&team.api::<TrainingRun>(), "first", SOON).await?;
    until_gone(&team.api::<NetworkPolicy>(), child::WORKERS, SOON).await?;
    let second = Api::<Deployment>::namespaced(team.client.clone(), elsewhere).get(CONTROLLER).await?;
    let status = second.status.unwrap_or_default();
    assert_eq!((status.replicas, status.ready_replicas.unwrap_or(0)), (Some(1), 0), "it still stands by");

    let Some(mut log) = log else {
        team.skip("the requests of a controller that stands by", "this cluster shows no audit log");
        return Ok(());
    };
    let requests = log.news()?;
    let writes = |user: &str| -> Vec<_> {
        let writes = requests.iter().filter(|request| !["get", "list", "watch"].contains(&&*request.verb));
        writes.filter(|request| request.user.username == user).map(|it| (it.right(), it.object())).collect()
    };
    let second = writes(&format!("system:serviceaccount:{elsewhere}:{CONTROLLER}"));
    let foreign: Vec<_> = second
        .iter()
        .filter(|(_, object)| object.namespace != elsewhere || !["leases", "secrets"].contains(&&*object.resource))
        .collect();
    assert!(foreign.is_empty(), "the second controller asked for more than its Lease and its Secrets: {foreign:#?}");
    assert!(second.iter().any(|(_, object)| object.resource == "leases"), "it holds its own Lease: {second:#?}");
    let first = writes(CONTROLLER_USER);
    assert!(
        first
            .iter()
            .any(|(right, object)| object.namespace == team.namespace && right.ends_with("trainingruns/status")),
        "the first controller writes the status of the run: {first:#?}"
    );
    Ok(())
}

async fn chain(team: &Team, elsewhere: &str) -> Result<()> {
    let (installation, namespace, watched) = (team.installation, elsewhere.to_owned(), team.namespace.clone());
    let applied = blocking(move || installation.apply_elsewhere(&namespace, &watched)).await;
    if applied.is_err() {
        tell(team, elsewhere).await;
    }
    applied?;
    let bindings: Api<ClusterRoleBinding> = Api::all(team.client.clone());
    let subjects = bindings.get(CONTROLLER).await?.subjects.unwrap_or_default();
    assert!(subjects.iter().all(|subject| subject.namespace.as_deref() == Some(elsewhere)), "{subjects:?}");

    let chain = async {
        team.create(&objects::run("run", &["training.max_steps=1", "training.warmup_steps=0"])).await?;
        team.trained("run").await?;
        // The run has learnt nothing in one step, so the gate is on what every model reaches.
        let mut easy = objects::evaluation("easy", "run", &team.problems);
        easy.spec.gates[0].min = Some(codex_verdict::Decimal("0".to_owned()));
        easy.spec.gates[0].confidence = None;
        team.create(&easy).await?;
        let status = team.judged("easy").await?.status.unwrap_or_default();
        assert_eq!((status.evidence, status.evidence_reason), (Some(EvidenceStrength::Strong), None));
        team.create(&objects::reasoning_pod("served", "run", "easy")).await?;
        team.serving("served").await
    };
    let served: Result<ReasoningPod> = chain.await;
    if served.is_err() {
        tell(team, elsewhere).await;
    }
    let status = served?.status.unwrap_or_default();
    assert_eq!(status.evidence, Some(EvidenceStrength::Strong), "{:?}", status.evidence_reason);
    // The servers and their Service would outlive the controller that made them.
    team.api::<ReasoningPod>().delete("served", &DeleteParams::foreground()).await?;
    Ok(())
}

/// Prints the end of the log of the controller in this namespace.
async fn tell(team: &Team, namespace: &str) {
    if let Ok(told) = last_words(team, namespace).await {
        eprintln!("{told}");
    }
}

/// Returns the end of the log of the controller in this namespace.
async fn last_words(team: &Team, namespace: &str) -> Result<String> {
    let mut kubectl = team.kubectl()?;
    kubectl.args(["--namespace", namespace, "logs", "--tail=40", &format!("deployment/{CONTROLLER}")]);
    blocking(move || output(&mut kubectl)).await
}
