//! A controller in another namespace than `codex-system` works once the admission policies name its service account, as
//! docs/install.md describes.

use std::panic::{AssertUnwindSafe, resume_unwind};

use codex_crds::ReasoningPod;
use codex_provenance::EvidenceStrength;
use codex_tests::{Result, Team, install::CONTROLLER, objects, process::output, team::blocking};
use futures::FutureExt as _;
use k8s_openapi::api::{core::v1::Namespace, rbac::v1::ClusterRoleBinding};
use kube::{Api, api::DeleteParams};

use crate::killed_controller::scale;

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_in_another_namespace_works_once_its_principal_is_patched() -> Result<()> {
    let team = Team::alone("elsewhere").await?;
    let elsewhere = format!("{}-controller", team.namespace);
    // It would write the same statuses.
    scale(&team, 0).await?;
    let told = Box::pin(AssertUnwindSafe(chain(&team, &elsewhere)).catch_unwind()).await;
    // Other tests need the installed controller, even if this one fails.
    let (installation, deleted) = (team.installation, elsewhere.clone());
    Api::<Namespace>::all(team.client.clone()).delete(&deleted, &DeleteParams::default()).await.ok();
    blocking(move || installation.apply()).await?;
    scale(&team, 1).await?;
    told.unwrap_or_else(|panic| resume_unwind(panic))?;
    team.done();
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
    let Ok(mut kubectl) = team.kubectl() else { return };
    kubectl.args(["--namespace", namespace, "logs", "--tail=40", &format!("deployment/{CONTROLLER}")]);
    if let Ok(told) = blocking(move || output(&mut kubectl)).await {
        eprintln!("{told}");
    }
}
