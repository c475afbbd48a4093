//! A TrainingRun and an Evaluation are deleted while their model is served, in each of the ways that the cluster knows: the server keeps
//! answering, the status says what is missing, and nothing waits on a finalizer.

use std::collections::BTreeSet;

use codex_crds::{ConditionType, Evaluation, ReasoningPod, ReasoningPodPhase, TrainingRun, child, label};
use codex_tests::{
    Result, Team, objects,
    process::{output, output_with},
    team::{SOON, blocking, condition},
    wait::{until, until_found, until_gone},
};
use codex_verdict::Decimal;
use k8s_openapi::api::{
    apps::v1::Deployment,
    batch::v1::Job,
    core::v1::{ConfigMap, Pod},
};
use kube::{
    Resource as _, ResourceExt,
    api::{DeleteParams, PropagationPolicy},
};
use serde_json::{Value, json};

/// The ways to delete an object, as `kubectl delete --cascade` names them.
const WAYS: [(&str, PropagationPolicy); 3] = [
    ("background", PropagationPolicy::Background),
    ("foreground", PropagationPolicy::Foreground),
    ("orphan", PropagationPolicy::Orphan),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_server_outlives_its_run_and_its_evaluation_however_they_are_deleted() -> Result<()> {
    let team = Team::new("deletion").await?;
    for (name, _) in &WAYS {
        team.create(&objects::run(name, &["training.max_steps=1", "training.warmup_steps=0"])).await?;
        // The run has learnt nothing in one step, so the gate is on what every model reaches.
        let mut easy = objects::evaluation(name, name, &team.problems);
        easy.spec.gates[0].min = Some(Decimal("0".to_owned()));
        easy.spec.gates[0].confidence = None;
        team.create(&easy).await?;
        team.create(&objects::reasoning_pod(name, name, name)).await?;
    }
    for (name, _) in &WAYS {
        team.trained(name).await?;
        team.serving(name).await?;
    }
    for (name, way) in &WAYS {
        let delete = DeleteParams { propagation_policy: Some(way.clone()), ..DeleteParams::default() };
        let bundles = bundles(&team, name).await?;
        assert_eq!(bundles.len(), 2, "{bundles:?}");

        team.api::<Evaluation>().delete(name, &delete).await?;
        until_gone(&team.api::<Evaluation>(), name, SOON).await?;
        let removed = format!("Evaluation {name} was removed while its model is served");
        stays(&team, name, &removed).await?;

        team.api::<TrainingRun>().delete(name, &delete).await?;
        until_gone(&team.api::<TrainingRun>(), name, SOON).await?;
        let removed = format!("TrainingRun {name} was removed while its model is served");
        let pod = stays(&team, name, &removed).await?;

        // The bundles that the server mounts belong to the ReasoningPod alone.
        for bundle in &bundles {
            let kept = until(&team.api::<ConfigMap>(), bundle, "its run is no owner any more", SOON, |found| {
                found.owner_references().iter().all(|owner| Some(&owner.uid) == pod.metadata.uid.as_ref())
            })
            .await?;
            assert_eq!(kept.owner_references().len(), 1, "{bundle}");
        }
        for job in [child::trainer(name), child::evaluator(name)] {
            if *way == PropagationPolicy::Orphan {
                let job = team.api::<Job>().get(&job).await?;
                assert!(job.owner_references().is_empty() && job.metadata.deletion_timestamp.is_none());
            } else {
                until_gone(&team.api::<Job>(), &job, SOON).await?;
            }
        }
    }

    // A server can start again without the run: what it mounts still exists.
    let (name, _) = WAYS[0];
    let former = team.pods(label::REASONING_POD, name).await?;
    let former: BTreeSet<_> = former.iter().filter_map(ResourceExt::uid).collect();
    for pod in team.pods(label::REASONING_POD, name).await? {
        team.api::<Pod>().delete(&pod.name_any(), &DeleteParams::default()).await?;
    }
    team.pod(label::REASONING_POD, name, "a new one is ready", |pod| {
        let mut conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let ready = conditions.any(|it| it.type_ == "Ready" && it.status == "True");
        ready && pod.uid().is_some_and(|uid| !former.contains(&uid))
    })
    .await?;
    until_found("it answers", SOON, async || Ok(team.answers(name, "1+1:").await.then_some(()))).await?;

    // The last owner goes, and with it the servers and the bundles.
    for (name, _) in &WAYS {
        let bundles = bundles(&team, name).await?;
        team.api::<ReasoningPod>().delete(name, &DeleteParams::foreground()).await?;
        until_gone(&team.api::<ReasoningPod>(), name, SOON).await?;
        assert!(team.api::<Deployment>().get_opt(&child::server(name)).await?.is_none());
        for bundle in &bundles {
            until_gone(&team.api::<ConfigMap>(), bundle, SOON).await?;
        }
    }
    team.done();
    Ok(())
}

/// Returns the names of the bundles that the servers of a ReasoningPod were started with.
async fn bundles(team: &Team, name: &str) -> Result<Vec<String>> {
    let status = team.api::<ReasoningPod>().get(name).await?.status.unwrap_or_default();
    let manifest = status.manifest.map(|manifest| manifest.bundle);
    Ok(manifest.into_iter().chain(status.promotion.map(|promotion| promotion.bundle)).collect())
}

/// Waits until a ReasoningPod says what was removed, and requires that its server answers and is still signed.
async fn stays(team: &Team, name: &str, removed: &str) -> Result<ReasoningPod> {
    let pod = until(&team.api::<ReasoningPod>(), name, removed, SOON, |pod| {
        pod.status.as_ref().is_some_and(|status| status.blocked_by.iter().any(|it| it.starts_with(removed)))
    })
    .await?;
    let status = pod.status.as_ref().unwrap();
    assert_eq!((status.phase, status.ready_replicas), (Some(ReasoningPodPhase::Blocked), Some(1)), "{status:#?}");
    for (kind, expected) in [(ConditionType::Stalled, "NotFound"), (ConditionType::Signed, "BundlesRecorded")] {
        let found = condition(Some(&status.conditions), kind).unwrap();
        assert_eq!((&*found.status, &*found.reason), ("True", expected), "{}: {}", kind.name(), found.message);
    }
    let way_out = "or delete this ReasoningPod to stop the servers";
    assert!(status.blocked_by.iter().any(|it| it.contains(way_out)), "{:?}", status.blocked_by);
    assert!(team.answers(name, "1+1:").await, "{name} no longer answers");
    Ok(pod)
}

/// Every child that the controller creates blocks the deletion of its owner, and the API server of the local cluster demands the right to
/// update finalizers of the owner for that, so all tests prove that the controller's role has it.
#[tokio::test(flavor = "multi_thread")]
async fn an_owner_reference_that_blocks_deletion_needs_the_right_to_finalizers() -> Result<()> {
    let team = Team::new("finalizers").await?;
    if team.installation.cluster.node().is_none() {
        team.skip("rights on finalizers", "this cluster may not run OwnerReferencesPermissionEnforcement");
        team.done();
        return Ok(());
    }
    let mut run = objects::run("run", &[]);
    run.spec.suspend = true;
    let run = team.create(&run).await?;
    let account = format!("{}:default", team.namespace);
    let mut grant = team.kubectl()?;
    grant.args(["create", "rolebinding", "edits", "--clusterrole=edit", "--serviceaccount", &account]);
    blocking(move || output(&mut grant)).await?;
    let owned = |name: &str, blocks: bool| {
        let mut owner = json!(run.owner_ref(&()));
        owner["blockOwnerDeletion"] = json!(blocks);
        json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name, "ownerReferences": [owner] } })
    };
    let create = async |object: Value| {
        let mut kubectl = team.kubectl()?;
        kubectl.arg(format!("--as=system:serviceaccount:{account}")).args(["create", "--filename=-"]);
        blocking(move || output_with(&mut kubectl, &object.to_string())).await
    };
    create(owned("weak", false)).await?;
    let refused = create(owned("strong", true)).await.unwrap_err().to_string();
    assert!(refused.contains("cannot set blockOwnerDeletion"), "{refused}");
    team.done();
    Ok(())
}
