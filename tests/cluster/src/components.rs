//! The processes of the cluster: their names, their order and how each is started.

use std::path::{Path, PathBuf};

use crate::layout::{Layout, cache_home};
use crate::network::{HOST, NODE, PODS, SERVICES, port};
use crate::process::Identity;
use crate::{Error, Result, process, tools};

/// One process of the cluster. The order is the order of starting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Component {
    /// The database.
    Etcd,
    /// The container runtime.
    Containerd,
    /// The API server.
    ApiServer,
    /// The controllers of Kubernetes' own kinds.
    ControllerManager,
    /// The scheduler.
    Scheduler,
    /// The kubelet.
    Kubelet,
    /// kube-proxy.
    Proxy,
    /// The DNS server, `CoreDNS`.
    Dns,
    /// The process that wipes and recreates released volumes.
    Volumes,
}

/// How a component is started.
pub(crate) struct Start {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
}

impl Component {
    /// All of them, in the order of starting.
    pub const ALL: [Self; 9] = [
        Self::Etcd,
        Self::Containerd,
        Self::ApiServer,
        Self::ControllerManager,
        Self::Scheduler,
        Self::Kubelet,
        Self::Proxy,
        Self::Dns,
        Self::Volumes,
    ];

    /// Returns the name in files, logs and output.
    pub fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::Containerd => "containerd",
            Self::ApiServer => "kube-apiserver",
            Self::ControllerManager => "kube-controller-manager",
            Self::Scheduler => "kube-scheduler",
            Self::Kubelet => "kubelet",
            Self::Proxy => "kube-proxy",
            Self::Dns => "coredns",
            Self::Volumes => "volumes",
        }
    }

    /// Finds a component by name.
    ///
    /// # Errors
    /// If no component has this name; the message lists all names.
    pub fn parse(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|component| component.name() == name).ok_or_else(|| Error::Input {
            field: "component",
            value: name.into(),
            expected: format!("one of {}", Self::ALL.map(Self::name).join(", ")),
        })
    }

    /// Returns its process, if it runs.
    pub(crate) fn running(self, layout: &Layout) -> Option<Identity> {
        process::recorded(&layout.pid(self.name())).filter(Identity::runs)
    }

    /// Starts it.
    ///
    /// # Errors
    /// If its program is missing or does not start.
    pub(crate) fn start(self, layout: &Layout) -> Result<Identity> {
        let Start { program, arguments } = self.command(layout)?;
        let text = |path: &Path| path.display().to_string();
        // The programs are in the cache of the user who started the command, not of root.
        let environment = [("HOME", text(layout.state())), ("XDG_CACHE_HOME", text(&cache_home()))];
        process::spawn(&program, &arguments, &environment, &layout.log(self.name()), &layout.pid(self.name()))
    }

    /// Returns its program and arguments.
    ///
    /// # Errors
    /// If no module builds its program.
    pub(crate) fn command(self, layout: &Layout) -> Result<Start> {
        let program = match self {
            Self::Containerd => Some(PathBuf::from("/usr/bin/containerd")),
            Self::Volumes => Some(std::env::current_exe().map_err(Error::io("find", "/proc/self/exe"))?),
            _ => tools::path(self.name()),
        };
        let program = program.ok_or_else(|| Error::Prerequisite(format!("no module builds {}", self.name())))?;
        let kubeconfig = format!("--kubeconfig={}", layout.kubeconfig(self.name()).display());
        let arguments = match self {
            Self::Etcd => etcd(layout),
            Self::Containerd => vec![format!("--config={}", layout.config("containerd.toml").display())],
            Self::ApiServer => api_server(layout),
            Self::ControllerManager => controller_manager(layout, kubeconfig),
            Self::Scheduler => vec![
                kubeconfig,
                "--bind-address=127.0.0.1".into(),
                format!("--secure-port={}", port::SCHEDULER),
                "--leader-elect=false".into(),
                "--kube-api-qps=200".into(),
                "--kube-api-burst=400".into(),
            ],
            Self::Kubelet => vec![
                kubeconfig,
                format!("--config={}", layout.config("kubelet.yaml").display()),
                format!("--root-dir={}", layout.at("kubelet").display()),
                format!("--cert-dir={}", layout.at("kubelet/pki").display()),
                format!("--hostname-override={NODE}"),
                format!("--node-ip={HOST}"),
            ],
            Self::Proxy => vec![format!("--config={}", layout.config("kube-proxy.yaml").display())],
            Self::Dns => vec![format!("-conf={}", layout.config("Corefile").display())],
            Self::Volumes => vec![crate::cli::KEEP_VOLUMES.into()],
        };
        Ok(Start { program, arguments })
    }
}

fn etcd(layout: &Layout) -> Vec<String> {
    let (client, peer) = (port::ETCD, port::ETCD_PEER);
    let mut arguments = vec![
        "--name=codex".to_owned(),
        format!("--data-dir={}", layout.at("etcd").display()),
        format!("--listen-client-urls=https://127.0.0.1:{client}"),
        format!("--advertise-client-urls=https://127.0.0.1:{client}"),
        format!("--listen-peer-urls=https://127.0.0.1:{peer}"),
        format!("--initial-advertise-peer-urls=https://127.0.0.1:{peer}"),
        format!("--initial-cluster=codex=https://127.0.0.1:{peer}"),
        format!("--listen-metrics-urls=http://127.0.0.1:{}", port::ETCD_HEALTH),
        // After a crash of the machine the cluster is recreated anyway. A crash of the process loses nothing.
        "--unsafe-no-fsync".into(),
        "--quota-backend-bytes=4294967296".into(),
        "--log-level=warn".into(),
    ];
    for side in ["", "peer-"] {
        arguments.push(format!("--{side}client-cert-auth"));
        arguments.push(format!("--{side}trusted-ca-file={}", layout.pki("ca.crt").display()));
        arguments.push(format!("--{side}cert-file={}", layout.pki("etcd.crt").display()));
        arguments.push(format!("--{side}key-file={}", layout.pki("etcd.key").display()));
    }
    arguments
}

fn api_server(layout: &Layout) -> Vec<String> {
    let pki = |flag: &str, file: &str| format!("--{flag}={}", layout.pki(file).display());
    vec![
        format!("--bind-address={HOST}"),
        format!("--advertise-address={HOST}"),
        format!("--secure-port={}", port::API),
        format!("--service-cluster-ip-range={SERVICES}"),
        format!("--etcd-servers=https://127.0.0.1:{}", port::ETCD),
        pki("etcd-cafile", "ca.crt"),
        pki("etcd-certfile", "apiserver-etcd.crt"),
        pki("etcd-keyfile", "apiserver-etcd.key"),
        pki("client-ca-file", "ca.crt"),
        pki("tls-cert-file", "apiserver.crt"),
        pki("tls-private-key-file", "apiserver.key"),
        pki("kubelet-certificate-authority", "ca.crt"),
        pki("kubelet-client-certificate", "apiserver-kubelet.crt"),
        pki("kubelet-client-key", "apiserver-kubelet.key"),
        "--kubelet-preferred-address-types=InternalIP".into(),
        "--authorization-mode=Node,RBAC".into(),
        // The second one is on in OpenShift: owner references that block deletion need rights on the owner's finalizers.
        "--enable-admission-plugins=NodeRestriction,OwnerReferencesPermissionEnforcement".into(),
        "--allow-privileged".into(),
        // The issuer's address is real, so pods and processes of this machine can both fetch its keys.
        format!("--service-account-issuer=https://{HOST}:{}", port::API),
        pki("service-account-key-file", "service-accounts.pub"),
        pki("service-account-signing-key-file", "service-accounts.key"),
        format!("--audit-policy-file={}", layout.config("audit.yaml").display()),
        format!("--audit-log-path={}", layout.audit_log().display()),
        "--audit-log-format=json".into(),
        "--audit-log-maxsize=500".into(),
        "--audit-log-maxbackup=4".into(),
    ]
}

fn controller_manager(layout: &Layout, kubeconfig: String) -> Vec<String> {
    let pki = |flag: &str, file: &str| format!("--{flag}={}", layout.pki(file).display());
    vec![
        kubeconfig,
        "--bind-address=127.0.0.1".into(),
        format!("--secure-port={}", port::CONTROLLER_MANAGER),
        "--leader-elect=false".into(),
        "--use-service-account-credentials".into(),
        format!("--cluster-cidr={PODS}"),
        "--allocate-node-cidrs=false".into(),
        pki("root-ca-file", "ca.crt"),
        pki("service-account-private-key-file", "service-accounts.key"),
        pki("cluster-signing-cert-file", "ca.crt"),
        pki("cluster-signing-key-file", "ca.key"),
        "--kube-api-qps=200".into(),
        "--kube-api-burst=400".into(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_distinct_and_parse() {
        for component in Component::ALL {
            assert_eq!(Component::parse(component.name()).unwrap(), component);
        }
        let error = Component::parse("kubelt").unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("kubelet") && error.to_string().contains("kubelt"));
    }

    #[test]
    fn servers_listen_on_loopback_or_the_bridge() {
        let layout = Layout::below("/nowhere".as_ref());
        for component in [Component::Etcd, Component::ApiServer, Component::ControllerManager, Component::Scheduler] {
            let Start { arguments, .. } = component.command(&layout).unwrap();
            for argument in arguments.iter().filter(|argument| argument.contains("listen") || argument.contains("bind"))
            {
                assert!(argument.contains("127.0.0.1") || argument.contains("10.213.0.1"), "{argument}");
            }
        }
    }
}
