//! Automatic scaling: the HorizontalPodAutoscaler, and the number of servers that the controller leaves to it.

use codex_crds::{ReasoningPod, child};
use codex_tests::{
    Result, Team, objects,
    team::SOON,
    wait::{until, until_gone},
};
use k8s_openapi::api::{apps::v1::Deployment, autoscaling::v2::HorizontalPodAutoscaler};
use kube::api::{Patch, PatchParams};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn the_number_of_servers_is_left_to_the_autoscaler() -> Result<()> {
    let team = Team::new("autoscaling").await?;
    team.create(&objects::run("learns", &[])).await?;
    team.create(&objects::evaluation("judged", "learns", &team.problems)).await?;
    let mut pod = objects::reasoning_pod("served", "learns", "judged");
    pod.spec.autoscaling = Some(serde_json::from_value(json!({ "maxReplicas": 4 })).unwrap());
    team.create(&pod).await?;
    team.trained("learns").await?;
    let server = child::server("served");

    // Two servers, which the HorizontalPodAutoscaler of the cluster finds.
    team.serving("served").await?;
    let found =
        until(&team.api::<HorizontalPodAutoscaler>(), &server, "the cluster has read the scale", SOON, |found| {
            let conditions = found.status.as_ref().and_then(|status| status.conditions.as_ref());
            conditions.is_some_and(|all| all.iter().any(|it| it.type_ == "AbleToScale" && it.status == "True"))
        })
        .await?;
    let spec = found.spec.unwrap();
    assert_eq!((spec.min_replicas, spec.max_replicas, spec.metrics.unwrap().len()), (Some(2), 4, 1));
    let replicas = |found: &Deployment| found.spec.as_ref().and_then(|spec| spec.replicas);
    assert_eq!(replicas(&team.api::<Deployment>().get(&server).await?), Some(2));

    // What the scale subresource sets stays, also after the controller applied the Deployment again.
    let scale = json!({ "spec": { "replicas": 3 } });
    team.api::<Deployment>().patch_scale(&server, &PatchParams::default(), &Patch::Merge(scale)).await?;
    let label = "app.kubernetes.io/part-of";
    team.change::<Deployment>(&server, json!({ "metadata": { "labels": { label: "another" } } })).await?;
    let restored = until(&team.api::<Deployment>(), &server, "its label is back", SOON, |found| {
        found.metadata.labels.as_ref().and_then(|labels| labels.get(label)).is_some_and(|value| value == "codex")
    })
    .await?;
    assert_eq!(replicas(&restored), Some(3));
    until(&team.api::<ReasoningPod>(), "served", "three servers are ready", SOON, |pod| {
        pod.status.as_ref().is_some_and(|status| status.ready.as_deref() == Some("3/3") && status.replicas == Some(3))
    })
    .await?;

    // Without autoscaling, spec.replicas counts again.
    team.change::<ReasoningPod>("served", json!({ "spec": { "autoscaling": null } })).await?;
    until_gone(&team.api::<HorizontalPodAutoscaler>(), &server, SOON).await?;
    until(&team.api::<Deployment>(), &server, "it has one server", SOON, |found| replicas(found) == Some(1)).await?;
    let pod = team.serving("served").await?;
    assert_eq!(pod.status.unwrap().ready.as_deref(), Some("1/1"));
    team.done();
    Ok(())
}
