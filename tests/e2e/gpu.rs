//! A run that asks for a GPU is placed on the node that has one. The GPU is a number in the status of the node, so the pod is scheduled
//! and does not start.

use std::panic::{AssertUnwindSafe, resume_unwind};

use codex_crds::{ConditionType, TrainingRun};
use codex_tests::{
    Result, Team, objects,
    team::{SOON, blocking, condition},
    wait::until,
};
use futures::FutureExt as _;
use k8s_openapi::api::{
    core::v1::{Namespace, Node, Pod},
    node::v1::RuntimeClass,
};
use kube::{
    Api, Resource as _,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

/// The resource, and the key of the taint that nodes with it usually have.
const GPU: &str = "nvidia.com/gpu";
/// An image that no registry has.
const CUDA_IMAGE: &str = "localhost:1/codex-cuda:none";

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_asks_for_a_gpu_is_placed_on_the_node_that_has_one() -> Result<()> {
    let team = Team::alone("gpu").await?;
    let Some(node) = team.installation.cluster.node() else {
        team.skip("the placement on a GPU node", "the nodes of this cluster are not ours to change");
        team.done();
        return Ok(());
    };
    let nodes: Api<Node> = Api::all(team.client.clone());
    let taints = nodes.get(node).await?.spec.and_then(|spec| spec.taints);
    let installation = team.installation;
    let told = AssertUnwindSafe(async {
        blocking(move || installation.apply_with_variables(&[("CODEX_CUDA_IMAGE", CUDA_IMAGE)])).await?;
        Box::pin(placed(&team, &nodes, node)).await
    })
    .catch_unwind()
    .await;
    // Other tests need the node and the installed controller, even if this one fails.
    equip(&nodes, node, Value::Null).await?;
    taint(&nodes, node, json!(taints)).await?;
    blocking(move || installation.apply()).await?;
    told.unwrap_or_else(|panic| resume_unwind(panic))?;
    team.done();
    Ok(())
}

async fn placed(team: &Team, nodes: &Api<Node>, node: &str) -> Result<()> {
    // A runtime class is cluster-scoped. The namespace owns this one, so it is deleted with the team.
    let mine = Api::<Namespace>::all(team.client.clone()).get(&team.namespace).await?.owner_ref(&());
    let class = json!({ "metadata": { "name": team.namespace, "ownerReferences": [mine] }, "handler": "runc" });
    Api::<RuntimeClass>::all(team.client.clone()).create(&PostParams::default(), &read(class)).await?;

    let mut run = objects::run("run", &["training.device=cuda"]);
    let mut pod = json!(run.spec.pod);
    pod["resources"]["limits"][GPU] = json!("1");
    pod["runtimeClassName"] = json!(team.namespace);
    pod["sharedMemory"] = json!("64Mi");
    run.spec.pod = read(pod);
    team.create(&run).await?;
    waits(team, "run", &format!("Insufficient {GPU}")).await?;

    // Only pods that tolerate the taint may be placed on a node with a GPU.
    taint(nodes, node, json!([{ "key": GPU, "value": "present", "effect": "NoSchedule" }])).await?;
    equip(nodes, node, json!("1")).await?;
    let placed = team
        .pod("batch.kubernetes.io/job-name", "codex-t-run", "is placed", |pod: &Pod| {
            pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some())
        })
        .await?;
    let spec = placed.spec.unwrap();
    assert_eq!((spec.node_name.as_deref(), spec.runtime_class_name.as_ref()), (Some(node), Some(&team.namespace)));
    let [container] = &spec.containers[..] else { panic!("one container") };
    assert_eq!(container.image.as_deref(), Some(CUDA_IMAGE));
    let resources = json!(container.resources);
    assert_eq!((&resources["limits"][GPU], &resources["requests"][GPU]), (&json!("1"), &json!("1")));
    let tolerations = spec.tolerations.unwrap_or_default();
    assert!(
        tolerations.iter().any(|it| it.key.as_deref() == Some(GPU) && it.effect.as_deref() == Some("NoSchedule")),
        "{tolerations:?}"
    );
    let shared = container.volume_mounts.iter().flatten().find(|mount| mount.mount_path == "/dev/shm").unwrap();
    let volume = spec.volumes.iter().flatten().find(|volume| volume.name == shared.name).unwrap();
    assert_eq!(json!(volume.empty_dir), json!({ "medium": "Memory", "sizeLimit": "64Mi" }));
    waits(team, "run", CUDA_IMAGE).await?;

    // The GPU is taken: the next run waits for it.
    run.metadata.name = Some("next".to_owned());
    team.create(&run).await?;
    waits(team, "next", &format!("Insufficient {GPU}")).await
}

/// Waits until a run waits for its pod and quotes the cluster with these words.
async fn waits(team: &Team, name: &str, words: &str) -> Result<()> {
    let what = format!("it waits for its pod and says {words}");
    until(&team.api::<TrainingRun>(), name, &what, SOON, |run| {
        let ready = condition(run.status.as_ref().map(|status| &*status.conditions), ConditionType::Ready);
        ready.is_some_and(|ready| ready.reason == "WaitingForPod" && ready.message.contains(words))
    })
    .await
    .map(drop)
}

/// Sets the number of GPUs in the status of the node, as a device plugin makes the kubelet do; null removes it.
async fn equip(nodes: &Api<Node>, node: &str, number: Value) -> Result<()> {
    let status = json!({ "capacity": { GPU: number }, "allocatable": { GPU: number } });
    nodes.patch_status(node, &PatchParams::default(), &Patch::Merge(json!({ "status": status }))).await?;
    Ok(())
}

/// Sets the taints of the node.
async fn taint(nodes: &Api<Node>, node: &str, taints: Value) -> Result<()> {
    nodes.patch(node, &PatchParams::default(), &Patch::Merge(json!({ "spec": { "taints": taints } }))).await?;
    Ok(())
}

fn read<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}
