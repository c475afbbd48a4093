//! The controller is killed after each of its writes, and the chain ends as if it had not been: nothing is duplicated or
//! lost.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    panic::{AssertUnwindSafe, resume_unwind},
};

use codex_crds::{Evaluation, ReasoningPod, TrainingRun, child};
use codex_tests::{
    Error, Result, Team,
    audit::{Follower, ObjectRef, Request},
    install::{CONTROLLER, CONTROLLER_USER, NAMESPACE},
    objects,
    process::Controller,
    team::{SOON, TRAINED},
    wait::{until, until_found},
};
use codex_verdict::Verdict;
use futures::FutureExt as _;
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::Deployment,
        batch::v1::Job,
        coordination::v1::Lease,
        core::v1::{ConfigMap, Service},
        networking::v1::NetworkPolicy,
        policy::v1::PodDisruptionBudget,
    },
};
use kube::{Api, Resource, ResourceExt as _, api::ListParams};
use serde::de::DeserializeOwned;
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_killed_after_each_write_duplicates_and_loses_nothing() -> Result<()> {
    let team = Team::alone("killed").await?;
    let Some(audit_log) = team.installation.cluster.audit_log() else {
        team.skip("a controller killed after each of its writes", "this cluster shows no audit log");
        team.done();
        return Ok(());
    };
    scale(&team, 0).await?;
    let controller = Controller::new(team.installation)?;
    let told = Box::pin(AssertUnwindSafe(chain_under_fire(&team, &controller, audit_log)).catch_unwind()).await;
    // Other tests need the installed controller, even if this one fails.
    scale(&team, 1).await?;
    told.unwrap_or_else(|panic| resume_unwind(panic))?;
    team.done();
    Ok(())
}

async fn chain_under_fire(team: &Team, controller: &Controller, audit_log: std::path::PathBuf) -> Result<()> {
    let mut everything = Follower::from_now(audit_log.clone())?;
    let (cancel, cancelled) = tokio::sync::oneshot::channel();
    team.create(&objects::run("run", &[])).await?;
    team.create(&objects::evaluation("judged", "run", &team.problems)).await?;
    team.create(&objects::reasoning_pod("served", "run", "judged")).await?;
    let namespace = team.namespace.clone();
    let (chain, kills) = tokio::join!(
        async {
            let chain = Box::pin(chain(team)).await;
            let _ = cancel.send(());
            chain
        },
        fire(controller, audit_log, namespace, cancelled),
    );
    let kills = kills?;
    chain.inspect_err(|_| eprintln!("the controller said:\n{}", controller.last_words()))?;
    eprintln!("the controller was killed {kills} times");
    assert!(kills >= 10, "the controller was killed {kills} times");

    // Every object was created once, and the work was done once.
    let mut made: BTreeMap<ObjectRef, usize> = BTreeMap::new();
    let ours = |request: &Request| request.user.username == CONTROLLER_USER && in_namespace(request, &team.namespace);
    for request in everything.news()?.into_iter().filter(|request| ours(request) && request.is_creation()) {
        let object = request.object();
        if object.resource != "events" {
            *made.entry(object).or_default() += 1;
        }
    }
    let doubled: Vec<_> = made.iter().filter(|(_, count)| **count > 1).collect();
    assert!(doubled.is_empty(), "created more than once: {doubled:#?}");
    // A write whose client was killed is logged as a timeout although it was done, so also count the objects.
    let there = (
        names::<Job>(team).await?,
        names::<Deployment>(team).await?,
        names::<Service>(team).await?,
        names::<PodDisruptionBudget>(team).await?,
        names::<NetworkPolicy>(team).await?,
    );
    let one = |name: &str| vec![name.to_owned()];
    let jobs = vec!["codex-e-judged".to_owned(), "codex-t-run".to_owned()];
    let server = child::server("served");
    let policies = vec![server.clone(), child::WORKERS.to_owned()];
    assert_eq!(there, (jobs, one(&server), one("served"), one(&server), policies));
    for (job, what) in [("codex-t-run", "trainer"), ("codex-e-judged", "evaluator")] {
        let pods = team.pods("batch.kubernetes.io/job-name", job).await?;
        assert_eq!(pods.len(), 1, "one {what} did the work");
    }
    Ok(())
}

/// Runs the controller and kills it whenever the audit log shows one of its writes, until the chain is done. Returns the
/// number of kills.
async fn fire(
    controller: &Controller,
    audit_log: std::path::PathBuf,
    namespace: String,
    mut cancelled: tokio::sync::oneshot::Receiver<()>,
) -> Result<usize> {
    let mut kills = 0;
    loop {
        let mut log = Follower::from_now(audit_log.clone())?;
        let running = controller.start()?;
        let write = |request: &Request| {
            request.is_write() && request.user.username == CONTROLLER_USER && in_namespace(request, &namespace)
        };
        // If the controller has nothing left to write, this waits for the chain to finish.
        tokio::select! {
            _ = &mut cancelled => return Ok(kills),
            seen = log.next("a write of the controller", TRAINED, write) => {
                running.kill();
                match seen {
                    Ok(_) => kills += 1,
                    Err(Error::Timeout { .. }) => {}
                    Err(other) => return Err(other),
                }
            }
        }
    }
}

/// Checks that the chain reaches its end with all its records.
async fn chain(team: &Team) -> Result<()> {
    let run = team.trained("run").await?;
    let model = run.status.as_ref().unwrap().model.clone().unwrap();
    let judged = team.judged("judged").await?.status.unwrap();
    assert_eq!((judged.verdict, judged.model.unwrap().digest), (Some(Verdict::Passed), model.digest));
    let pod = until(&team.api::<ReasoningPod>(), "served", "it serves", TRAINED, |pod| {
        let status = pod.status.as_ref();
        let everything = status.is_some_and(|status| {
            status.manifest.is_some() && status.promotion.is_some() && status.url.is_some() && status.selector.is_some()
        });
        everything && status.and_then(|status| status.verified.as_ref()).is_some_and(|it| it.digest == model.digest)
    })
    .await?;
    let status = pod.status.unwrap();
    let run_status = run.status.as_ref().unwrap();
    assert_eq!((run_status.work.attempts, run_status.steps_executed), (Some(1), Some(objects::STEPS)));
    assert!(
        run_status.config_digest.is_some() && !run_status.data_digests.is_empty() && run_status.completed_at.is_some()
    );
    for bundle in [&status.manifest.unwrap().bundle, &status.promotion.unwrap().bundle] {
        team.api::<ConfigMap>().get(bundle).await?;
    }
    // The servers can be ready before their other children exist.
    let server = child::server("served");
    until_found("all children of the ReasoningPod exist", SOON, async || {
        let there = (
            team.api::<Deployment>().get_opt(&server).await?,
            team.api::<PodDisruptionBudget>().get_opt(&server).await?,
            team.api::<NetworkPolicy>().get_opt(&server).await?,
            team.api::<Service>().get_opt("served").await?,
        );
        Ok(matches!(there, (Some(_), Some(_), Some(_), Some(_))).then_some(()))
    })
    .await?;
    let evaluation = team.api::<Evaluation>().get("judged").await?;
    assert!(evaluation.status.unwrap().report_digest.is_some());
    assert_eq!(team.api::<TrainingRun>().get("run").await?.uid(), run.uid());
    Ok(())
}

/// Lists the names of all objects of a kind in the team's namespace, sorted.
async fn names<K>(team: &Team) -> Result<Vec<String>>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let mut names: Vec<_> = team.api::<K>().list(&ListParams::default()).await?.items.iter().map(K::name_any).collect();
    names.sort();
    Ok(names)
}

fn in_namespace(request: &Request, namespace: &str) -> bool {
    request.object_ref.as_ref().is_some_and(|object| object.namespace == namespace)
}

/// Scales the installed controller, and waits until it is gone or holds the Lease.
pub(crate) async fn scale(team: &Team, replicas: i32) -> Result<()> {
    let deployments: Api<Deployment> = Api::namespaced(team.client.clone(), NAMESPACE);
    let change = kube::api::Patch::Merge(json!({ "spec": { "replicas": replicas } }));
    deployments.patch_scale(CONTROLLER, &kube::api::PatchParams::default(), &change).await?;
    let scaled = |deployment: &Deployment| {
        let status = deployment.status.clone().unwrap_or_default();
        status.observed_generation == deployment.metadata.generation
            && status.replicas.unwrap_or(0) == replicas
            && status.ready_replicas.unwrap_or(0) == replicas
    };
    until(&deployments, CONTROLLER, &format!("{replicas} replicas"), SOON, scaled).await?;
    if replicas > 0 {
        let leases: Api<Lease> = Api::namespaced(team.client.clone(), NAMESPACE);
        let held = |lease: &Lease| {
            let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.clone()).unwrap_or_default();
            holder.starts_with(CONTROLLER)
        };
        until(&leases, CONTROLLER, "the installed controller holds the Lease", SOON, held).await?;
    }
    Ok(())
}
