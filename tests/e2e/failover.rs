//! Two controllers, timed as with high availability: both are ready, and when the leader stands still, the other one leads within ten
//! seconds. The old leader does nothing when it goes on.

use std::{
    panic::{AssertUnwindSafe, resume_unwind},
    time::{Duration, Instant},
};

use codex_cluster::Target;
use codex_crds::label;
use codex_tests::{
    Result, Team, host,
    install::{CONTROLLER, NAMESPACE},
    objects,
    team::{SOON, blocking},
    wait::until_found,
};
use futures::FutureExt as _;
use k8s_openapi::api::{coordination::v1::Lease, core::v1::Pod, discovery::v1::EndpointSlice};
use kube::{Api, ResourceExt as _, api::ListParams};

use crate::killed_controller::scale;

/// As in `manifests/overlays/high-availability`.
const DURATION: &str = "7";
/// How long a cluster may be without a controller that acts.
const LONGEST: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
async fn another_controller_leads_within_ten_seconds() -> Result<()> {
    let team = Team::alone("failover").await?;
    let installation = team.installation;
    if *installation.cluster.target() != Target::Local {
        team.skip("a leader that stands still", "its processes are not on this machine");
        team.done();
        return Ok(());
    }
    let told = AssertUnwindSafe(fail_over(&team)).catch_unwind().await;
    // Other tests need the installed controller, even if this one fails.
    blocking(move || installation.apply()).await?;
    scale(&team, 1).await?;
    told.unwrap_or_else(|panic| resume_unwind(panic))?;
    team.done();
    Ok(())
}

async fn fail_over(team: &Team) -> Result<()> {
    let installation = team.installation;
    blocking(move || installation.apply_with_variables(&[("CODEX_LEASE_DURATION", DURATION)])).await?;
    // It waits until both are ready.
    scale(team, 2).await?;
    let old = leader(team).await?;
    reached(team, &old.name_any()).await?;

    let uid = old.uid().unwrap_or_default();
    host::signal_pod(&uid, "STOP")?;
    let stopped = Instant::now();
    let next = until_found("another controller leads", SOON, async || {
        let next = leader(team).await?;
        Ok((next.name_any() != old.name_any()).then_some(next))
    })
    .await;
    let took = stopped.elapsed();
    // A process that stands still would outlive the test.
    let next = match next {
        Ok(next) => next.name_any(),
        Err(failure) => {
            host::signal_pod(&uid, "CONT")?;
            return Err(failure);
        }
    };
    eprintln!("{next} led {:.1} s after {} stood still", took.as_secs_f32(), old.name_any());
    let routed = reached(team, &next).await;
    host::signal_pod(&uid, "CONT")?;
    routed?;
    assert!(took < LONGEST, "{took:?}");

    // The old leader sees that it has lost the Lease, and stands by after its restart.
    until_found("the old leader is ready again", SOON, async || {
        let pods: Api<Pod> = Api::namespaced(team.client.clone(), NAMESPACE);
        let status = pods.get(&old.name_any()).await?.status.unwrap_or_default();
        let container = status.container_statuses.unwrap_or_default().pop();
        Ok(container.filter(|it| it.restart_count > 0 && it.ready).map(drop))
    })
    .await?;
    assert_eq!(leader(team).await?.name_any(), next, "it took nothing back");
    reached(team, &next).await?;
    // Reports arrive.
    team.create(&objects::run("run", &["training.max_steps=1", "training.warmup_steps=0"])).await?;
    team.trained("run").await?;
    Ok(())
}

/// Returns the pod that holds the Lease and bears the label, once it is the only one.
async fn leader(team: &Team) -> Result<Pod> {
    until_found("one pod is labelled, and holds the Lease", SOON, async || {
        let leases: Api<Lease> = Api::namespaced(team.client.clone(), NAMESPACE);
        let holder = leases.get(CONTROLLER).await?.spec.and_then(|spec| spec.holder_identity).unwrap_or_default();
        let pods: Api<Pod> = Api::namespaced(team.client.clone(), NAMESPACE);
        let mut labelled = pods.list(&ListParams::default().labels(&format!("{}=true", label::LEADER))).await?.items;
        labelled.retain(|pod| pod.metadata.deletion_timestamp.is_none());
        let one = labelled.len() == 1;
        Ok(labelled.pop().filter(|pod| one && pod.name_any() == holder))
    })
    .await
}

/// Waits until the Service for reports sends requests to this pod alone.
async fn reached(team: &Team, pod: &str) -> Result<()> {
    let slices: Api<EndpointSlice> = Api::namespaced(team.client.clone(), NAMESPACE);
    let of_service = ListParams::default().labels(&format!("kubernetes.io/service-name={CONTROLLER}"));
    until_found("reports reach the leader alone", SOON, async || {
        let slices = slices.list(&of_service).await?.items;
        let endpoints = slices.into_iter().flat_map(|slice| slice.endpoints);
        let ready = endpoints.filter(|it| it.conditions.as_ref().and_then(|it| it.ready) != Some(false));
        let names: Vec<_> = ready.filter_map(|it| it.target_ref.and_then(|target| target.name)).collect();
        Ok((names == [pod]).then_some(()))
    })
    .await
}
