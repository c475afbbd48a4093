//! The cluster of all tests: it is created once and then found, and it describes itself correctly.

use codex_cluster::{Cluster, Target};
use codex_tests::{Installation, Result, process::output, skip, team::blocking};

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_created_once_and_then_found() -> Result<()> {
    let cluster = &Installation::ensure().await?.cluster;
    if *cluster.target() != Target::Local {
        skip(cluster.target(), "the local cluster", "another cluster was chosen");
        return Ok(());
    }
    let began = |cluster: &Cluster| -> Result<String> {
        output(cluster.kubectl()?.args(["get", "nodes", "--output=jsonpath={.items[*].metadata.uid}"]))
    };
    let before = began(cluster)?;
    let again = blocking(|| Ok(Cluster::ensure_target(Target::Local)?)).await?;
    assert_eq!(began(&again)?, before, "nothing is created again");
    assert_eq!(again.kubeconfig(), Cluster::find()?.kubeconfig());

    let node = output(cluster.kubectl()?.args(["get", "nodes", "--output=name"]))?;
    assert_eq!(node.trim(), format!("node/{}", cluster.node().unwrap()));
    assert!(cluster.host_address()?.is_ipv4());
    assert!(cluster.audit_log().unwrap().exists());
    assert!(cluster.authority().unwrap().exists());
    assert!(cluster.volume_directory("codex-local-000").unwrap().is_dir());
    Ok(())
}
