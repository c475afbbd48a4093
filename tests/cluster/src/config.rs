//! Renders the configuration files of the components. Pure, except for [`write_all`].

use std::fs;
use std::path::PathBuf;

use crate::certificates::write;
use crate::host::Cgroups;
use crate::layout::Layout;
use crate::network::{BRIDGE, DNS_SERVICE, DOMAIN, HOST, NODE, PODS, SERVICES, port};
use crate::{Error, Result, images};

/// Writes every configuration file.
///
/// # Errors
/// If a file cannot be written.
pub(crate) fn write_all(layout: &Layout, cgroups: Cgroups) -> Result<()> {
    for (path, text) in files(layout, cgroups) {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        }
        write(&path, &text, 0o644)?;
    }
    Ok(())
}

/// Returns every configuration file with its path.
pub(crate) fn files(layout: &Layout, cgroups: Cgroups) -> [(PathBuf, String); 8] {
    let registry = format!("{HOST}:{}", port::REGISTRY);
    [
        (layout.config("audit.yaml"), AUDIT.to_owned()),
        (layout.config("containerd.toml"), containerd(layout, cgroups)),
        (layout.config("cni/codex.conflist"), cni(layout)),
        (layout.config("registries").join(&registry).join("hosts.toml"), plain_registry(&registry)),
        (layout.config("kubelet.yaml"), kubelet(layout, cgroups)),
        (layout.config("kube-proxy.yaml"), proxy(layout)),
        (layout.config("Corefile"), corefile(layout)),
        (layout.config("resolv.conf"), format!("nameserver {DNS_SERVICE}\n")),
    ]
}

/// The audit policy: metadata, once per request. Enough to count the writes and LISTs of each user.
const AUDIT: &str = "apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  nonResourceURLs: ['/healthz*', '/livez*', '/readyz*']
- level: Metadata
";

fn containerd(layout: &Layout, cgroups: Cgroups) -> String {
    // Without CAP_SYS_RESOURCE a process cannot lower its OOM score, and every sandbox would fail to start.
    format!(
        r#"version = 2
root = "{root}"
state = "{state}"
oom_score = 0
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
  "io.containerd.tracing.processor.v1.otlp",
  "io.containerd.internal.v1.tracing",
]

[grpc]
  address = "{socket}"

[plugins."io.containerd.internal.v1.opt"]
  path = "{root}/opt"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  tolerate_missing_hugetlb_controller = true
  stream_server_address = "127.0.0.1"

  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"

    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"

      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = {systemd}

  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{cni}"

  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{registries}"
"#,
        root = layout.at("containerd").display(),
        state = layout.containerd_run().display(),
        socket = layout.containerd_socket().display(),
        pause = images::PAUSE,
        systemd = cgroups.systemd,
        cni = layout.config("cni").display(),
        registries = layout.config("registries").display(),
    )
}

/// The configuration of a registry without TLS.
fn plain_registry(registry: &str) -> String {
    format!("[host.\"http://{registry}\"]\n  capabilities = [\"pull\", \"resolve\"]\n")
}

/// The CNI configuration: pods are on the bridge and reach each other, this machine and Services, and nothing else.
fn cni(layout: &Layout) -> String {
    let config = serde_json::json!({
        "cniVersion": "0.4.0",
        "name": "codex",
        "plugins": [{
            "type": "bridge",
            "bridge": BRIDGE,
            "isGateway": true,
            "ipMasq": false,
            "hairpinMode": true,
            "ipam": {
                "type": "host-local",
                "dataDir": layout.run().join("addresses"),
                "ranges": [[{ "subnet": PODS, "gateway": HOST }]],
                "routes": [{ "dst": SERVICES, "gw": HOST }],
            },
        }],
    });
    format!("{config:#}\n")
}

fn kubelet(layout: &Layout, cgroups: Cgroups) -> String {
    format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: {HOST}
port: {port}
readOnlyPort: 0
healthzBindAddress: 127.0.0.1
healthzPort: {health}
tlsCertFile: {certificate}
tlsPrivateKeyFile: {key}
authentication:
  anonymous: {{ enabled: false }}
  webhook: {{ enabled: true }}
  x509: {{ clientCAFile: {authority} }}
authorization: {{ mode: Webhook }}
containerRuntimeEndpoint: unix://{socket}
cgroupDriver: {driver}
failCgroupV1: false
failSwapOn: false
enforceNodeAllocatable: []
oomScoreAdj: 0
# File-system statistics need a root device that cAdvisor knows, which virtual machines may lack.
localStorageCapacityIsolation: false
evictionHard:
  memory.available: 100Mi
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
clusterDNS: [{DNS_SERVICE}]
clusterDomain: {DOMAIN}
resolvConf: {resolv}
podLogsDir: {logs}
volumePluginDir: {plugins}
staticPodPath: ''
serializeImagePulls: false
maxPods: 200
nodeStatusUpdateFrequency: 5s
",
        port = port::KUBELET,
        health = port::KUBELET_HEALTH,
        certificate = layout.pki("kubelet-server.crt").display(),
        key = layout.pki("kubelet-server.key").display(),
        authority = layout.pki("ca.crt").display(),
        socket = layout.containerd_socket().display(),
        driver = cgroups.driver(),
        resolv = layout.config("resolv.conf").display(),
        logs = layout.at("pod-logs").display(),
        plugins = layout.at("volume-plugins").display(),
    )
}

fn proxy(layout: &Layout) -> String {
    // Every Service packet is masqueraded: on one bridge the answer would otherwise bypass the translation.
    format!(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
clusterCIDR: {PODS}
hostnameOverride: {NODE}
bindAddress: {HOST}
healthzBindAddress: 127.0.0.1:{health}
metricsBindAddress: 127.0.0.1:{metrics}
nodePortAddresses: [{PODS}]
oomScoreAdj: 0
iptables:
  masqueradeAll: true
  minSyncPeriod: 100ms
conntrack:
  maxPerCore: 0
  min: 0
clientConnection:
  kubeconfig: {kubeconfig}
",
        health = port::PROXY_HEALTH,
        metrics = port::PROXY_METRICS,
        kubeconfig = layout.kubeconfig("kube-proxy").display(),
    )
}

fn corefile(layout: &Layout) -> String {
    format!(
        ".:{port} {{
    bind {HOST}
    errors
    ready 127.0.0.1:{ready}
    kubernetes {DOMAIN} in-addr.arpa ip6.arpa {{
        kubeconfig {kubeconfig}
        pods insecure
        ttl 5
    }}
    cache 5
    loadbalance
}}
",
        port = port::DNS,
        ready = port::DNS_READY,
        kubeconfig = layout.kubeconfig("coredns").display(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: Cgroups = Cgroups { unified: false, systemd: false };
    const V2: Cgroups = Cgroups { unified: true, systemd: true };

    #[test]
    fn what_is_yaml_parses() {
        let layout = Layout::below("/nowhere".as_ref());
        for text in [AUDIT.to_owned(), kubelet(&layout, V1), proxy(&layout)] {
            let value: serde_yaml::Value = serde_yaml::from_str(&text).unwrap();
            assert!(value["kind"].is_string(), "{text}");
        }
    }

    #[test]
    fn kubelet_and_containerd_agree_on_the_cgroup_driver() {
        let layout = Layout::below("/nowhere".as_ref());
        assert!(kubelet(&layout, V1).contains("cgroupDriver: cgroupfs"));
        assert!(containerd(&layout, V1).contains("SystemdCgroup = false"));
        assert!(kubelet(&layout, V2).contains("cgroupDriver: systemd"));
        assert!(containerd(&layout, V2).contains("SystemdCgroup = true"));
    }

    #[test]
    fn nothing_listens_everywhere() {
        let layout = Layout::below("/nowhere".as_ref());
        for text in [kubelet(&layout, V1), proxy(&layout), corefile(&layout), containerd(&layout, V1)] {
            assert!(!text.contains("0.0.0.0"), "{text}");
        }
    }
}
