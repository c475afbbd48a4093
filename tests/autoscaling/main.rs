//! Automatic scaling with the real HorizontalPodAutoscaler, metrics-server, Prometheus and its adapter: run by `make test-autoscaling`,
//! which builds or installs them.
//!
//! Both servers of metrics are processes of this machine. The API server reaches them as aggregated APIs. The local cluster has no
//! certificate for that, so the requests that it forwards are anonymous, and the test allows anonymous requests to read these
//! metrics while it runs.

#![allow(clippy::unwrap_used, clippy::panic, reason = "an unexpected result ends the test")]

use std::{
    fs,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use codex_crds::{ConditionType, ReasoningPod, child};
use codex_metrics::{label::target::NAMESPACE, server::LATENCY};
use codex_tests::{
    Error, Result, Team, install, objects,
    process::{Beside, free_port, output, output_with},
    prometheus::{Prometheus, Window, now},
    team::{SOON, condition},
    wait::{until, until_found},
};
use k8s_openapi::api::{apps::v1::Deployment, autoscaling::v2::HorizontalPodAutoscaler, core::v1::Event};
use kube::{Client, api::ListParams};
use serde_json::{Value, json};
use tokio::{task::JoinHandle, time::sleep};

/// The time in which metrics arrive: two scrapes, two rounds of the adapter and of the autoscaler, and the reconciliation. A latency
/// falls once the two minutes have passed over which the adapter computes it.
const MEASURED: Duration = Duration::from_secs(240);
/// The clients that ask at once. A server of the tiny model runs 8 of their requests, so that prompts wait.
const CLIENTS: usize = 64;
/// The answers that each request of a load wants: the server and not the proxy before it is then what takes time.
const CHOICES: usize = 8;
/// The clients whose requests run at once on one server.
const FEW_CLIENTS: usize = 6;
/// How long the latency without load is measured, and the same in the notation of Prometheus.
const UNLOADED: (Duration, &str) = (Duration::from_secs(30), "30s");
/// The share of requests without load that may take longer than the target.
const SLOW: f64 = 0.01;
/// The time between two decisions of the HorizontalPodAutoscaler.
const DECIDES: Duration = Duration::from_secs(15);
/// The share of a target by which a metric may exceed it before servers are added.
const TOLERANCE: f64 = 0.1;
/// The namespace of the Services through which the API server reaches the servers of metrics.
const SYSTEM: &str = "kube-system";
const QUEUE_DEPTH: &str = "codex_ml_inference_requests_waiting";
const P95: &str = "codex_ml_inference_latency_p95_seconds";

/// Objects of the whole cluster; deleted when dropped.
struct Registered<'a> {
    team: &'a Team,
    objects: String,
}

impl<'a> Registered<'a> {
    fn create(team: &'a Team, objects: &[Value]) -> Result<Self> {
        let objects = json!({ "apiVersion": "v1", "kind": "List", "items": objects }).to_string();
        let registered = Self { team, objects };
        let mut kubectl = team.installation.cluster.kubectl()?;
        output_with(kubectl.args(["apply", "--filename", "-"]), &registered.objects)?;
        Ok(registered)
    }
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        let Ok(mut kubectl) = self.team.installation.cluster.kubectl() else { return };
        kubectl.args(["delete", "--ignore-not-found", "--wait=false", "--filename", "-"]);
        let _ = output_with(&mut kubectl, &self.objects);
    }
}

/// Returns the objects by which the API server forwards `version.group` to a port of this machine.
fn aggregated(name: &str, group: &str, version: &str, host: IpAddr, port: u16) -> Vec<Value> {
    let metadata = json!({ "name": name, "namespace": SYSTEM });
    let ports = json!([{ "name": "https", "port": port, "protocol": "TCP" }]);
    vec![
        json!({ "apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": { "ports": ports } }),
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "ports": ports,
            "metadata": { "name": name, "namespace": SYSTEM, "labels": { "kubernetes.io/service-name": name } },
            "endpoints": [{ "addresses": [host.to_string()], "conditions": { "ready": true } }],
        }),
        json!({
            "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": { "name": format!("{version}.{group}") },
            "spec": {
                "group": group, "version": version, "groupPriorityMinimum": 100, "versionPriority": 100,
                "insecureSkipTLSVerify": true, "service": { "name": name, "namespace": SYSTEM, "port": port },
            },
        }),
    ]
}

/// Returns the rights of the requests that the API server forwards.
fn readable() -> Vec<Value> {
    let name = "codex-tests-read-metrics";
    let groups = ["metrics.k8s.io", "custom.metrics.k8s.io"];
    vec![
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": { "name": name },
            "rules": [
                { "apiGroups": groups, "resources": ["*"], "verbs": ["get", "list"] },
                { "nonResourceURLs": ["/apis", "/apis/*", "/openapi/*"], "verbs": ["get"] },
            ],
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": { "name": name },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name },
            "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "system:anonymous" }],
        }),
    ]
}

/// Starts a server of metrics that the API server reaches at this port.
fn serve(team: &Team, variable: &str, port: u16, arguments: &[String], config: Option<&str>) -> Result<Beside> {
    let kubeconfig = team.installation.cluster.kubeconfig().display().to_string();
    let host = team.installation.cluster.host_address()?;
    Beside::start(variable, "test-autoscaling", |command, folder| {
        command.args(["authentication", "authorization"].map(|what| format!("--{what}-kubeconfig={kubeconfig}")));
        command.args(["--authentication-skip-lookup=true".to_owned(), format!("--secure-port={port}")]);
        command
            .args([format!("--bind-address={host}"), format!("--cert-dir={}", folder.join("certificates").display())]);
        command.args(arguments);
        if let Some(config) = config {
            let file = folder.join("config.yaml");
            fs::write(&file, config).map_err(Error::io(format!("writing {}", file.display())))?;
            command.arg(format!("--config={}", file.display()));
        }
        Ok(())
    })
}

/// Reads the value of a metric of each server.
fn read(team: &Team, metric: &str) -> Result<Value> {
    let path = format!("/apis/custom.metrics.k8s.io/v1beta1/namespaces/{}/pods/*/{metric}", team.namespace);
    let text = output(team.kubectl()?.args(["get", "--raw", &path]))?;
    Ok(serde_json::from_str(&text).unwrap())
}

fn replicas(found: &Deployment) -> i32 {
    found.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(0)
}

/// Asks for answers to one question, through the proxy of the API server.
async fn ask(client: &Client, namespace: &str, choices: usize) -> Result<Value> {
    let path = format!("/api/v1/namespaces/{namespace}/services/served:8000/proxy/v1/completions");
    let body = json!({ "prompt": "12+345:", "max_tokens": 16, "n": choices, "temperature": 1 });
    let request = http::Request::post(path).header("content-type", "application/json");
    let request = request.body(body.to_string().into_bytes()).map_err(kube::Error::HttpError)?;
    Ok(client.request(request).await?)
}

/// Clients that ask one question after another; told to stop when dropped.
struct Clients {
    stop: Arc<AtomicBool>,
    running: Vec<JoinHandle<()>>,
}

impl Clients {
    /// Starts so many clients, each of whose requests wants so many answers.
    fn start(team: &Team, count: usize, choices: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let running = (0..count).map(|_| {
            let (client, namespace, stop) = (team.client.clone(), team.namespace.clone(), Arc::clone(&stop));
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    // A server that has just been added may not answer yet.
                    let _ = ask(&client, &namespace, choices).await;
                }
            })
        });
        let running = running.collect();
        Self { stop, running }
    }

    /// Returns once the last question is answered.
    async fn end(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.running.drain(..) {
            let _ = client.await;
        }
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Waits until clients make the HorizontalPodAutoscaler add a server for this reason, and until it removes the server without them.
async fn follows_the_load(team: &Team, clients: usize, why: &str) -> Result<()> {
    let (deployments, server) = (team.api::<Deployment>(), child::server("served"));
    let begun = Instant::now();
    let clients = Clients::start(team, clients, CHOICES);
    until(&deployments, &server, &format!("a server is added: {why}"), MEASURED, |found| replicas(found) > 1).await?;
    let added = begun.elapsed().as_secs();
    decided(team, why).await?;
    clients.end().await;
    let ended = Instant::now();
    let what = format!("one server is left after {why}");
    until(&deployments, &server, &what, MEASURED, |found| replicas(found) == 1).await?;
    println!("{why}: a server was added after {added} s, and removed {} s after the load", ended.elapsed().as_secs());
    decided(team, "All metrics below target").await
}

/// Waits until an Event of the HorizontalPodAutoscaler names this reason for another number of servers.
async fn decided(team: &Team, why: &str) -> Result<()> {
    let told = format!("; reason: {why}");
    until_found(&format!("an Event says{told}"), SOON, async || {
        let events = team.api::<Event>().list(&ListParams::default().fields("reason=SuccessfulRescale")).await?;
        let said = |event: &Event| event.message.as_ref().is_some_and(|message| message.ends_with(&told));
        Ok(events.iter().any(said).then_some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_follow_the_load_by_latency_by_cpu_and_by_waiting_prompts() -> Result<()> {
    let team = Team::alone("scaled").await?;
    let host = team.installation.cluster.host_address()?;
    let kubeconfig = team.installation.cluster.kubeconfig().display().to_string();
    let prometheus = Prometheus::start(team.client.clone(), &team.namespace).await?;
    let (of_resources, of_pods) = (free_port(&host.to_string())?, free_port(&host.to_string())?);
    let mut metrics_server = serve(
        &team,
        "METRICS_SERVER",
        of_resources,
        &[
            format!("--kubeconfig={kubeconfig}"),
            "--kubelet-insecure-tls".to_owned(),
            "--kubelet-preferred-address-types=InternalIP".to_owned(),
            "--metric-resolution=10s".to_owned(),
            "--kubelet-request-timeout=5s".to_owned(),
        ],
        None,
    )?;
    // The rules that are shipped, as values of the chart that installs the adapter.
    let shipped = install::repository().join("manifests/autoscaling/prometheus-adapter.yaml");
    let text = fs::read_to_string(&shipped).map_err(Error::io(format!("reading {}", shipped.display())))?;
    let values: Value = serde_yaml::from_str(&text).unwrap();
    let rules = json!({ "rules": values["rules"]["custom"] }).to_string();
    let mut adapter = serve(
        &team,
        "PROMETHEUS_ADAPTER",
        of_pods,
        &[
            format!("--lister-kubeconfig={kubeconfig}"),
            format!("--prometheus-url={}", prometheus.url()),
            "--metrics-relist-interval=5s".to_owned(),
        ],
        Some(&rules),
    )?;
    let objects: Vec<_> = aggregated("codex-tests-metrics-server", "metrics.k8s.io", "v1beta1", host, of_resources)
        .into_iter()
        .chain(aggregated("codex-tests-adapter", "custom.metrics.k8s.io", "v1beta1", host, of_pods))
        .chain(readable())
        .collect();
    let registered = Registered::create(&team, &objects)?;

    team.create(&objects::run("learns", &[])).await?;
    team.create(&objects::evaluation("judged", "learns", &team.problems)).await?;
    team.create(&objects::reasoning_pod("served", "learns", "judged")).await?;
    team.trained("learns").await?;
    team.serving("served").await?;
    metrics_server.runs()?;
    adapter.runs()?;

    // One metric decides at a time: the others have no target, or one that is out of reach. Latency is first, because the adapter computes
    // it over two minutes, in which nothing else may have loaded the server.
    follows_the_latency(&team, &prometheus, &mut adapter).await?;
    team.change::<ReasoningPod>("served", json!({ "spec": { "autoscaling": by_cpu() } })).await?;
    follows_the_load(&team, FEW_CLIENTS, "cpu resource utilization (percentage of request) above target").await?;
    metrics_server.runs()?;
    team.change::<ReasoningPod>("served", json!({ "spec": { "autoscaling": by_queue() } })).await?;
    follows_the_load(&team, CLIENTS, &format!("pods metric {QUEUE_DEPTH} above target")).await?;
    adapter.runs()?;

    let pod = until(&team.api::<ReasoningPod>(), "served", "it says that it scales", SOON, |pod| {
        let status = pod.status.as_ref();
        let found = status.and_then(|status| condition(Some(&status.conditions), ConditionType::ScalingActive));
        found.is_some_and(|found| found.status == "True")
    })
    .await?;
    assert!(pod.spec.replicas == 1, "the controller leaves the spec alone");
    team.serving("served").await?;
    drop(registered);
    team.done();
    Ok(())
}

/// Waits until the adapter serves both metrics of the servers.
async fn adapter_serves(team: &Team, adapter: &mut Beside) -> Result<()> {
    for metric in [QUEUE_DEPTH, P95] {
        let found = until_found(&format!("the adapter serves {metric}"), MEASURED, async || {
            adapter.runs()?;
            let found = read(team, metric).ok().filter(|found| found["items"][0]["value"].is_string());
            Ok(found)
        })
        .await?;
        let pod = found["items"][0]["describedObject"]["name"].as_str().unwrap();
        assert!(pod.starts_with(&child::server("served")), "{found}");
    }
    Ok(())
}

/// Measures the latency without load, sets a target above it, and waits until the HorizontalPodAutoscaler leaves the server alone
/// while one client asks, and follows the load of many.
async fn follows_the_latency(team: &Team, prometheus: &Prometheus, adapter: &mut Beside) -> Result<()> {
    let client = Clients::start(team, 1, 1);
    adapter_serves(team, adapter).await?;
    sleep(UNLOADED.0).await;
    let target = above_the_unloaded(team, prometheus).await?;
    team.change::<ReasoningPod>("served", json!({ "spec": { "autoscaling": by_latency(target) } })).await?;
    leaves_one_server(team, target).await?;
    follows_the_load(team, CLIENTS, &format!("pods metric {P95} above target")).await?;
    client.end().await;
    Ok(())
}

/// Returns the smallest edge of the histogram that is at least twice as high as one within which nearly all requests without load were
/// completed. Of two servers, the HorizontalPodAutoscaler keeps both while they take more than half of the target.
async fn above_the_unloaded(team: &Team, prometheus: &Prometheus) -> Result<f64> {
    let (of_team, range) = ([NAMESPACE.is(&team.namespace)], UNLOADED.1);
    let value = async |query: String| -> Result<f64> {
        let at = now();
        let found = prometheus.query_range(&query, Window { start: at, end: at, step: 1.0 }).await?;
        let value = found.first().and_then(|series| series.samples.last()).map(|(_, value)| *value);
        Ok(value.unwrap_or_else(|| panic!("Prometheus has no result for {query}")))
    };
    let p95 = value(LATENCY.quantile(0.95, &of_team, &[], range).to_string()).await?;
    for edge in LATENCY.buckets {
        if value(LATENCY.share_above(*edge, &of_team, &[], range).to_string()).await? <= SLOW {
            assert!(p95 <= *edge, "{p95} is above {edge}");
            let target = LATENCY.buckets.iter().find(|other| **other >= 2.0 * edge).unwrap();
            println!("without load, the p95 of the latency is {p95:.4} s; the target is {target} s");
            return Ok(*target);
        }
    }
    panic!("without load, the p95 of the latency is {p95} s, and more than {SLOW} of the requests exceed every edge");
}

/// Waits until the HorizontalPodAutoscaler has read a latency below the target, and has added no server after two more decisions.
async fn leaves_one_server(team: &Team, target: f64) -> Result<()> {
    let (scalers, server) = (team.api::<HorizontalPodAutoscaler>(), child::server("served"));
    let read = |found: &HorizontalPodAutoscaler| read_latency(found).is_some_and(|latency| latency > 0.0);
    until(&scalers, &server, "it has read the latency", MEASURED, read).await?;
    sleep(2 * DECIDES).await;
    let found = scalers.get(&server).await?;
    let latency = read_latency(&found).unwrap();
    assert!(latency > 0.0 && latency <= target * (1.0 + TOLERANCE), "{latency} s without load, above {target} s");
    let deployment = team.api::<Deployment>().get(&server).await?;
    assert_eq!(replicas(&deployment), 1, "a server was added at {latency} s, below the target of {target} s");
    Ok(())
}

/// Returns the latency in seconds by which a HorizontalPodAutoscaler decided last.
fn read_latency(found: &HorizontalPodAutoscaler) -> Option<f64> {
    let metrics = found.status.as_ref()?.current_metrics.as_ref()?;
    let latency = metrics.iter().filter_map(|metric| metric.pods.as_ref()).find(|pods| pods.metric.name == P95)?;
    let text = &latency.current.average_value.as_ref()?.0;
    match text.strip_suffix('m') {
        Some(thousandths) => Some(thousandths.parse::<f64>().ok()? / 1_000.0),
        None => text.parse().ok(),
    }
}

/// Returns the change to autoscaling by CPU. Servers request 50 millicores, of which an idle one uses few.
fn by_cpu() -> Value {
    json!({ "targetCPUUtilizationPercentage": 60, "metrics": null })
}

/// Returns the change to autoscaling by waiting prompts. No request takes as long as the target of the latency.
fn by_queue() -> Value {
    json!({ "targetCPUUtilizationPercentage": null, "metrics": { "queueDepth": 4, "p95Seconds": "1000" } })
}

/// Returns the autoscaling by latency.
fn by_latency(target: f64) -> Value {
    json!({
        "minReplicas": 1,
        "maxReplicas": 2,
        "metrics": { "p95Seconds": target.to_string() },
        // Otherwise it waits for five minutes before servers go.
        "behavior": { "scaleDown": { "stabilizationWindowSeconds": 0 } },
    })
}
