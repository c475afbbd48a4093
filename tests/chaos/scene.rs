//! Everything that faults need: a team, two controllers behind a proxy and a relay, a volume of a fixed size. Puts all of it back.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use codex_cluster::{Cluster, Component};
use codex_tests::{
    Error, Result, Team, host,
    install::{CONTROLLER, NAMESPACE},
    team::blocking,
    wait::{until, until_found, until_gone},
};
use k8s_openapi::api::{
    apps::v1::Deployment,
    coordination::v1::Lease,
    core::v1::{Namespace, Node, Pod, Secret, Service},
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams},
    config::AuthInfo,
};
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::{
    lies::Sender,
    observe::Shared,
    plan,
    proxy::{Mode, Proxy},
    relay::{Relay, Traffic},
    volume::Volume,
};

/// The time limit for one part of the cluster to be whole again.
pub(crate) const PATIENCE: Duration = Duration::from_secs(150);
/// The time limit for a controller to lead. The kubelet waits up to five minutes before it starts a container again that ended often,
/// as that of a leader that loses its Lease does.
pub(crate) const LEADS: Duration = Duration::from_secs(360);
/// How long a kubelet that was started may take to register its node.
const REGISTERS: Duration = Duration::from_secs(30);

/// The scene of the faults.
pub(crate) struct Scene {
    pub(crate) team: Team,
    pub(crate) cluster: Cluster,
    pub(crate) node: &'static str,
    /// How long the Lease of the controllers lasts.
    pub(crate) lease: Duration,
    pub(crate) proxy: Proxy,
    pub(crate) relay: Relay,
    pub(crate) volume: Volume,
    pub(crate) sender: Sender,
    pub(crate) witness: Shared,
}

/// Continues what an earlier run left paused. Does nothing if no local cluster runs.
///
/// # Errors
/// If this process is not root.
pub(crate) fn continue_all() -> Result<()> {
    if let Ok(cluster) = Cluster::find() {
        for component in Component::ALL {
            cluster.continue_component(component)?;
        }
    }
    Ok(())
}

impl Scene {
    /// Starts the proxy and the relay, and mounts the volume. The operator is as it was.
    ///
    /// # Errors
    /// If a part of it cannot be made.
    pub(crate) async fn prepare(team: Team, seed: u64, witness: &Shared) -> Result<Self> {
        let cluster = team.installation.cluster.clone();
        let node = cluster.node().ok_or_else(|| Error::Impossible {
            what: "parts of the cluster are disturbed".to_owned(),
            why: "only those of the local cluster are processes of this machine".to_owned(),
            state: "run `make chaos` without CLUSTER".to_owned(),
        })?;
        let host = cluster.host_address()?;
        let (certificate, key) = cluster.serving_certificate("codex-chaos")?;
        let mut upstream = team.installation.config().await?;
        // The requests of the controllers have credentials of their own.
        upstream.auth_info = AuthInfo::default();
        // Their own client decides what to do about a refusal.
        upstream.default_retry = false;
        let proxy = Proxy::start(host, (&certificate, &key), Client::try_from(upstream)?, seed).await?;
        let relay = Relay::start(host, endpoint(&team.client).await?).await?;
        let sender = Sender::new(&format!("https://{}", relay.address()), &authority(&team.client).await?)?;
        let volume = Volume::create(&team, node).await?;
        let lease = plan::lease(seed);
        Ok(Self { team, cluster, node, lease, proxy, relay, volume, sender, witness: Arc::clone(witness) })
    }

    /// Runs two controllers that reach the API server through the proxy, and whose pods reach the endpoint through the relay.
    ///
    /// # Errors
    /// If they do not run in time.
    pub(crate) async fn redirect(&self) -> Result<()> {
        let (host, port) = (self.proxy.address().ip().to_string(), self.proxy.address().port().to_string());
        let reports = format!("https://{}{}", self.relay.address(), codex_reports::PATH);
        let lease = self.lease.as_secs().to_string();
        let installation = self.team.installation;
        blocking(move || {
            installation.apply_with_variables(&[
                ("KUBERNETES_SERVICE_HOST", &host),
                ("KUBERNETES_SERVICE_PORT", &port),
                ("CODEX_REPORT_URL", &reports),
                ("CODEX_LEASE_DURATION", &lease),
            ])
        })
        .await?;
        let deployments: Api<Deployment> = self.system();
        let two = Patch::Merge(json!({ "spec": { "replicas": 2 } }));
        deployments.patch_scale(CONTROLLER, &PatchParams::default(), &two).await?;
        until_found("two controllers run", PATIENCE, async || {
            let running = self.controllers().await?.iter().filter(|pod| is_running(pod)).count();
            Ok((running == 2).then_some(()))
        })
        .await?;
        let (requests, _) = self.proxy.counts();
        println!("Two controllers run behind the proxy, which has passed on {requests} requests.");
        println!("Their Lease lasts {} s.", self.lease.as_secs());
        Ok(())
    }

    /// Returns an API client for the controller's namespace.
    pub(crate) fn system<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.team.client.clone(), NAMESPACE)
    }

    /// Lists the pods of the controllers.
    ///
    /// # Errors
    /// If the API server does not answer.
    pub(crate) async fn controllers(&self) -> Result<Vec<Pod>> {
        let labelled = ListParams::default().labels(&format!("app.kubernetes.io/name={CONTROLLER}"));
        Ok(self.system::<Pod>().list(&labelled).await?.items)
    }

    /// Returns the name of the pod that holds the Lease; empty if none does.
    ///
    /// # Errors
    /// If the API server does not answer.
    pub(crate) async fn holder(&self) -> Result<String> {
        let lease = self.system::<Lease>().get(CONTROLLER).await?;
        Ok(lease.spec.and_then(|spec| spec.holder_identity).unwrap_or_default())
    }

    /// Waits for a leader whose container runs, and returns its pod.
    ///
    /// # Errors
    /// If there is none in time.
    pub(crate) async fn leader(&self) -> Result<Pod> {
        until_found("a controller that runs holds the Lease", LEADS, async || {
            // An earlier fault may have left the API server late.
            let holder = self.holder().await.unwrap_or_default();
            let controllers = self.controllers().await.unwrap_or_default();
            Ok(controllers.into_iter().find(|pod| pod.name_any() == holder && is_running(pod)))
        })
        .await
    }

    /// Repairs the cluster after a fault: starts what has exited, and waits for API server and node.
    ///
    /// # Errors
    /// If a part does not become healthy.
    pub(crate) async fn mend(&self) -> Result<()> {
        let cluster = self.cluster.clone();
        blocking(move || {
            for component in Component::ALL {
                cluster.continue_component(component)?;
            }
            for component in Component::ALL {
                // codex-cluster itself keeps the volumes.
                if component != Component::Volumes && !cluster.runs(component) {
                    println!("  {} has exited and is started", component.name());
                    cluster.start_component(component)?;
                }
            }
            Ok(())
        })
        .await?;
        let nodes: Api<Node> = Api::all(self.team.client.clone());
        let deadline = Instant::now() + PATIENCE;
        let mut registers = Instant::now();
        loop {
            let schedulable = Patch::Merge(json!({ "spec": { "unschedulable": null } }));
            match nodes.get_opt(self.node).await {
                Ok(Some(node)) if is_ready(&node) => return Ok(()),
                Ok(Some(node)) if node.spec.as_ref().is_some_and(|spec| spec.unschedulable == Some(true)) => {
                    let _ = nodes.patch(self.node, &PatchParams::default(), &schedulable).await;
                }
                // A kubelet registers its node when it starts.
                Ok(None) if Instant::now() >= registers => {
                    self.restart(Component::Kubelet).await?;
                    registers = Instant::now() + REGISTERS;
                }
                Ok(_) | Err(_) => {}
            }
            if Instant::now() > deadline {
                return Err(Error::Timeout {
                    what: "the node is ready again".to_owned(),
                    patience: PATIENCE,
                    state: "codex-cluster status".to_owned(),
                });
            }
            sleep(Duration::from_millis(500)).await;
        }
    }

    /// Kills a component and starts it again.
    ///
    /// # Errors
    /// If it does not become healthy.
    pub(crate) async fn restart(&self, component: Component) -> Result<()> {
        let cluster = self.cluster.clone();
        blocking(move || {
            cluster.kill_component(component)?;
            Ok(cluster.start_component(component)?)
        })
        .await
    }

    /// Puts everything back: the cluster's components, the operator as it is installed otherwise, and the namespace of the team.
    ///
    /// # Errors
    /// If a part cannot be restored; the others are.
    pub(crate) async fn restore(self) -> Result<()> {
        println!("Putting everything back.");
        self.proxy.set(Mode::Pass);
        self.relay.set(Traffic::Pass);
        let freed = self.volume.free();
        let mended = self.mend().await;
        for pod in self.controllers().await.unwrap_or_default() {
            let _ = host::signal_pod(&pod.uid().unwrap_or_default(), "CONT");
        }
        let restored = restore_operator(&self.team).await;
        let deleted = self.delete_namespace().await;
        let removed = self.volume.remove(self.team.client.clone()).await;
        self.team.done();
        freed.and(mended).and(restored).and(deleted).and(removed)
    }

    /// Deletes the team's namespace and waits until nothing uses the volume.
    async fn delete_namespace(&self) -> Result<()> {
        let namespaces: Api<Namespace> = Api::all(self.team.client.clone());
        namespaces.delete(&self.team.namespace, &DeleteParams::background()).await?;
        until_gone(&namespaces, &self.team.namespace, PATIENCE).await
    }
}

/// Installs the operator as every other test has it: one controller, without proxy and relay.
///
/// # Errors
/// If it does not become ready.
async fn restore_operator(team: &Team) -> Result<()> {
    let installation = team.installation;
    blocking(move || installation.apply()).await?;
    let deployments: Api<Deployment> = Api::namespaced(team.client.clone(), NAMESPACE);
    let one = Patch::Merge(json!({ "spec": { "replicas": 1 } }));
    deployments.patch_scale(CONTROLLER, &PatchParams::default(), &one).await?;
    let is_one = |deployment: &Deployment| {
        let status = deployment.status.clone().unwrap_or_default();
        status.observed_generation == deployment.metadata.generation
            && (status.replicas, status.ready_replicas) == (Some(1), Some(1))
    };
    until(&deployments, CONTROLLER, "one controller runs", PATIENCE, is_one).await.map(drop)
}

/// Returns the address of the report endpoint's Service.
async fn endpoint(client: &Client) -> Result<SocketAddr> {
    let services: Api<Service> = Api::namespaced(client.clone(), NAMESPACE);
    let spec = services.get(CONTROLLER).await?.spec.unwrap_or_default();
    let ports = spec.ports.iter().flatten();
    let port = ports.into_iter().find(|port| port.name.as_deref() == Some("reports")).map(|port| port.port);
    let address = spec.cluster_ip.as_deref().and_then(|address| address.parse().ok());
    let found = address.zip(port.and_then(|port| u16::try_from(port).ok()));
    found.map(|(address, port): (std::net::IpAddr, u16)| SocketAddr::from((address, port))).ok_or_else(|| {
        Error::Impossible {
            what: "the report endpoint has an address".to_owned(),
            why: format!("the Service {CONTROLLER} has no cluster IP or no port called reports"),
            state: format!("kubectl --namespace {NAMESPACE} get service {CONTROLLER}"),
        }
    })
}

/// Returns the certificate in PEM of the report endpoint's authority.
async fn authority(client: &Client) -> Result<String> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
    let secret = secrets.get("codex-reports-tls").await?;
    let certificate = secret.data.as_ref().and_then(|data| data.get("ca.crt"));
    Ok(certificate.map(|bytes| String::from_utf8_lossy(&bytes.0).into_owned()).unwrap_or_default())
}

/// Whether every container of a pod runs.
pub(crate) fn is_running(pod: &Pod) -> bool {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    let all = |statuses: &Vec<k8s_openapi::api::core::v1::ContainerStatus>| {
        statuses.iter().all(|status| status.state.as_ref().is_some_and(|state| state.running.is_some()))
    };
    pod.metadata.deletion_timestamp.is_none() && statuses.is_some_and(all)
}

/// Whether a node takes pods.
fn is_ready(node: &Node) -> bool {
    let spec = node.spec.clone().unwrap_or_default();
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let ready = conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True");
    ready && spec.unschedulable != Some(true) && spec.taints.unwrap_or_default().is_empty()
}
