//! The one test of this crate that needs the cluster: it brings the local one up, as root. It is run by name:
//! `cargo test --release -p codex-cluster --test local -- --ignored`.

use std::time::{Duration, Instant};

use codex_cluster::{Cluster, Target};

#[test]
#[ignore = "brings the local cluster up, which needs root"]
fn a_cluster_is_ensured_once_and_then_found() {
    let cluster = Cluster::ensure_target(Target::Local).unwrap();
    let began = Instant::now();
    let again = Cluster::ensure_target(Target::Local).unwrap();
    assert!(began.elapsed() < Duration::from_secs(5), "a cluster that is up took {:?}", began.elapsed());
    assert_eq!(again.kubeconfig(), Cluster::find().unwrap().kubeconfig());

    let node = cluster.kubectl().unwrap().args(["get", "nodes", "--output=name"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&node.stdout).trim(), format!("node/{}", cluster.node().unwrap()));
    assert!(cluster.host_address().unwrap().is_ipv4());
    assert!(cluster.audit_log().unwrap().exists());
    assert!(cluster.authority().unwrap().exists());
    assert!(cluster.volume_directory("codex-local-000").unwrap().is_dir());
}
