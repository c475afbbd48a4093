//! `kubectl drain` of the node of two servers: the PodDisruptionBudget lets it evict one at a time, and no request is lost.
//!
//! The local cluster has one node, so replacements can start only because the node is opened again as soon as `kubectl drain` has
//! cordoned it. Pods of other tests would have to wait meanwhile, so that no other test runs.

use std::{pin::pin, time::Duration};

use codex_cluster::Cluster;
use codex_crds::label;
use codex_tests::{Result, Team, objects, process::output, team::blocking};
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::time::sleep;

use crate::{
    load,
    traffic::{replaced, under_load},
};

/// The name of the ReasoningPod, by whose label the drain selects pods: it meets none of other namespaces.
const DRAINED: &str = "drained";
/// How often the node is looked at, to open it again.
const EVERY: Duration = Duration::from_millis(100);

/// Opens the node for new pods when dropped, also if the test fails.
struct Open {
    cluster: Cluster,
    node: &'static str,
}

impl Drop for Open {
    fn drop(&mut self) {
        let Ok(mut kubectl) = self.cluster.kubectl() else { return };
        if let Err(error) = output(kubectl.args(["uncordon", self.node])) {
            eprintln!("{error}");
        }
    }
}

/// Opens the node for new pods as soon as it is cordoned.
async fn open(nodes: &Api<Node>, node: &str) -> Result<()> {
    loop {
        let cordoned = nodes.get(node).await?.spec.is_some_and(|spec| spec.unschedulable == Some(true));
        if cordoned {
            let opened = Patch::Merge(json!({ "spec": { "unschedulable": null } }));
            nodes.patch(node, &PatchParams::default(), &opened).await?;
            return Ok(());
        }
        sleep(EVERY).await;
    }
}

/// Drains the node of the servers, and opens it again at once.
async fn drain(team: &Team, node: &'static str) -> Result<()> {
    let cluster = team.installation.cluster.clone();
    let mut kubectl = cluster.kubectl()?;
    kubectl.args(["drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=240s"]);
    kubectl.args(["--pod-selector", &format!("{}={DRAINED}", label::REASONING_POD)]);
    let nodes: Api<Node> = Api::all(team.client.clone());
    let _open = Open { cluster, node };
    let mut drained = pin!(blocking(move || output(&mut kubectl)));
    tokio::select! {
        biased;
        opened = open(&nodes, node) => opened?,
        ended = &mut drained => panic!("the node was not cordoned: {ended:?}"),
    }
    let told = drained.await?;
    assert!(told.contains(&format!("node/{node} cordoned")), "{told}");
    assert!(told.contains(&format!("node/{node} drained")), "{told}");
    // Each attempt is a line: the budget refuses the second eviction until the first server is replaced.
    let attempts = told.lines().filter(|line| line.starts_with("evicting pod ")).count();
    assert!(attempts > 2, "the budget refuses no eviction: {told}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_is_lost_while_kubectl_drains_the_node() -> Result<()> {
    let team = Team::alone("drain").await?;
    let Some(node) = team.installation.cluster.node() else {
        team.skip("kubectl drain", "only the node of the local cluster may be cordoned");
        team.done();
        return Ok(());
    };
    team.create(&objects::run("learns", &[])).await?;
    team.create(&objects::evaluation("judged", "learns", &team.problems)).await?;
    let mut pod = objects::reasoning_pod(DRAINED, "learns", "judged");
    pod.spec.replicas = 2;
    team.create(&pod).await?;
    team.trained("learns").await?;
    team.serving(DRAINED).await?;
    let address = load::address(&team, DRAINED).await?;

    let drained = Box::pin(replaced(&team, DRAINED, drain(&team, node)));
    under_load(address, "kubectl drain", drained).await?;
    team.serving(DRAINED).await?;
    team.done();
    Ok(())
}
