//! The initial objects of the cluster: the storage class and its volumes, the DNS Service, and the rights of the
//! cluster's own users. Applied with kubectl, server side.

use std::process::Command;

use serde_json::{Value, json};

use crate::layout::Layout;
use crate::network::{DNS_SERVICE, HOST, NODE, port};
use crate::volumes;
use crate::{Result, command, tools};

/// The field manager of this crate.
const MANAGER: &str = "codex-cluster";

/// Applies the objects.
///
/// # Errors
/// If kubectl fails.
pub(crate) fn apply_all(layout: &Layout) -> Result<()> {
    let mut items = vec![storage_class()];
    items.extend((0..volumes::POOL).map(|number| volume(layout, number)));
    items.extend(dns());
    items.extend(rights("coredns", "system:coredns", &dns_rules()));
    items.extend(rights("volumes", "codex-cluster-volumes", &volume_rules()));
    items.push(json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": { "name": "codex-cluster:issuer-discovery" },
        "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io",
            "kind": "ClusterRole",
            "name": "system:service-account-issuer-discovery",
        },
        "subjects": [
            { "apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:unauthenticated" },
        ],
    }));
    apply(layout, "admin", &items)
}

/// Applies `items` as `user`.
///
/// # Errors
/// If kubectl fails.
pub(crate) fn apply(layout: &Layout, user: &str, items: &[Value]) -> Result<()> {
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": items });
    let mut apply = kubectl(layout, user);
    apply.args(["apply", "--server-side", "--force-conflicts", "--validate=false", "-f", "-"]);
    apply.arg(format!("--field-manager={MANAGER}"));
    command::with_input(&mut apply, &list.to_string())?;
    Ok(())
}

/// kubectl as one of the cluster's users.
pub(crate) fn kubectl(layout: &Layout, user: &str) -> Command {
    let mut command = Command::new(tools::path("kubectl").unwrap_or_else(|| "kubectl".into()));
    command.arg("--kubeconfig").arg(layout.kubeconfig(user)).arg("--cache-dir").arg(layout.at("kubectl-cache"));
    command
}

/// Returns the volume with this number.
pub(crate) fn volume(layout: &Layout, number: usize) -> Value {
    let name = volumes::name(number);
    json!({
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": { "name": name },
        "spec": {
            "storageClassName": volumes::CLASS,
            "capacity": { "storage": volumes::SIZE },
            "accessModes": ["ReadWriteOnce", "ReadWriteMany", "ReadOnlyMany"],
            "persistentVolumeReclaimPolicy": "Retain",
            "local": { "path": layout.volumes().join(&name) },
            "nodeAffinity": { "required": { "nodeSelectorTerms": [{ "matchExpressions": [
                { "key": "kubernetes.io/hostname", "operator": "In", "values": [NODE] },
            ]}]}},
        },
    })
}

fn storage_class() -> Value {
    json!({
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {
            "name": volumes::CLASS,
            "annotations": { "storageclass.kubernetes.io/is-default-class": "true" },
        },
        "provisioner": "kubernetes.io/no-provisioner",
        "volumeBindingMode": "WaitForFirstConsumer",
        "reclaimPolicy": "Retain",
    })
}

/// Returns a Service without a selector, and its endpoints: the DNS server, a process of this machine.
fn dns() -> [Value; 2] {
    let ports = ["UDP", "TCP"].map(|protocol| {
        json!({ "name": format!("dns-{}", protocol.to_lowercase()), "protocol": protocol, "port": port::DNS })
    });
    let service_ports = ["UDP", "TCP"].map(|protocol| {
        let name = format!("dns-{}", protocol.to_lowercase());
        json!({ "name": name, "protocol": protocol, "port": 53, "targetPort": port::DNS })
    });
    [
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "name": "kube-dns", "namespace": "kube-system", "labels": { "k8s-app": "kube-dns" } },
            "spec": { "clusterIP": DNS_SERVICE, "ports": service_ports },
        }),
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": "kube-dns",
                "namespace": "kube-system",
                "labels": {
                    "kubernetes.io/service-name": "kube-dns",
                    "endpointslice.kubernetes.io/managed-by": MANAGER,
                },
            },
            "addressType": "IPv4",
            "endpoints": [{ "addresses": [HOST], "conditions": { "ready": true }, "nodeName": NODE }],
            "ports": ports,
        }),
    ]
}

fn dns_rules() -> Value {
    json!([
        { "apiGroups": [""], "resources": ["services", "namespaces", "pods"], "verbs": ["list", "watch"] },
        { "apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"] },
    ])
}

fn volume_rules() -> Value {
    json!([{
        "apiGroups": [""],
        "resources": ["persistentvolumes"],
        "verbs": ["get", "list", "watch", "create", "patch", "delete"],
    }])
}

fn rights(name: &str, user: &str, rules: &Value) -> [Value; 2] {
    let name = format!("codex-cluster:{name}");
    let api = "rbac.authorization.k8s.io";
    [
        json!({
            "apiVersion": format!("{api}/v1"),
            "kind": "ClusterRole",
            "metadata": { "name": name },
            "rules": rules,
        }),
        json!({
            "apiVersion": format!("{api}/v1"),
            "kind": "ClusterRoleBinding",
            "metadata": { "name": name },
            "roleRef": { "apiGroup": api, "kind": "ClusterRole", "name": name },
            "subjects": [{ "apiGroup": api, "kind": "User", "name": user }],
        }),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_lies_in_its_own_directory() {
        let layout = Layout::below("/nowhere".as_ref());
        let (first, second) = (volume(&layout, 0), volume(&layout, 1));
        assert_ne!(first["metadata"]["name"], second["metadata"]["name"]);
        assert!(
            first["spec"]["local"]["path"].as_str().unwrap().ends_with(first["metadata"]["name"].as_str().unwrap())
        );
    }

    #[test]
    fn the_class_is_the_default() {
        let annotations = &storage_class()["metadata"]["annotations"];
        assert_eq!(annotations["storageclass.kubernetes.io/is-default-class"], "true");
    }
}
