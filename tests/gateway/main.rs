//! Canaries with exact weights through a real implementation of the Gateway API, Traefik: run by `make test-gateway`, which builds it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "an unexpected result ends the test")]

use std::time::Duration;

use codex_crds::{ConditionType, ReasoningPod, RolloutResult, child, label};
use codex_tests::{
    Result, Team, objects,
    process::{Beside, free_port, output, output_with},
    team::{SOON, condition},
    wait::{until, until_found},
};
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::{Client, Config, ResourceExt as _};
use serde_json::{Value, json};

/// The time in which the controller finds out that the Gateway API was installed.
const INSTALLED: Duration = Duration::from_secs(420);
/// The time of a step, in which its requests are counted.
const STEP: Duration = Duration::from_secs(240);
/// The requests that are counted. Traefik takes every twentieth for a weight of 5 of 100.
const REQUESTS: usize = 200;
/// The CRDs, as kubectl names them.
const CRDS: &str = "gateway.networking.k8s.io_";

/// The CRDs of the Gateway API; deleted when dropped.
struct GatewayApi<'a> {
    team: &'a Team,
    files: Vec<String>,
}

impl GatewayApi<'_> {
    fn kubectl(&self, verb: &[&str]) -> Result<String> {
        let mut kubectl = self.team.kubectl()?;
        kubectl.args(verb);
        for file in &self.files {
            kubectl.args(["--filename", file]);
        }
        output(&mut kubectl)
    }
}

impl Drop for GatewayApi<'_> {
    fn drop(&mut self) {
        let _ = self.kubectl(&["delete", "--ignore-not-found", "--wait=false"]);
    }
}

fn gateway_api(team: &Team) -> GatewayApi<'_> {
    let folder = std::env::var("GATEWAY_API")
        .unwrap_or_else(|_| panic!("run `make test-gateway`, which names the folder of the CRDs"));
    let files = std::fs::read_dir(&folder).unwrap().map(|file| file.unwrap().path().display().to_string());
    // The admission policy beside them concerns upgrades only.
    let files = files.filter(|file| file.contains(CRDS) && !file.contains("_vap_")).collect();
    GatewayApi { team, files }
}

/// Waits until the condition `RouteAccepted` has a reason.
async fn routed(team: &Team, reason: &str, patience: Duration) -> Result<ReasoningPod> {
    until(&team.api::<ReasoningPod>(), "served", reason, patience, |pod| {
        let found =
            pod.status.as_ref().and_then(|status| condition(Some(&status.conditions), ConditionType::RouteAccepted));
        found.is_some_and(|found| found.reason == reason)
    })
    .await
}

/// Sends a prompt through the Gateway.
async fn ask(gateway: &Client) -> Result<Value> {
    let body = json!({ "prompt": "1+1:" }).to_string().into_bytes();
    let request = http::Request::post("/infer").header("host", "models.example.com").body(body);
    Ok(gateway.request(request.map_err(kube::Error::HttpError)?).await?)
}

/// Returns the number of requests that the canary, or the other servers, have answered.
async fn answered(team: &Team, canary: bool) -> Result<u64> {
    let mut sum = 0;
    for pod in team.pods(label::REASONING_POD, "served").await? {
        if pod.labels().contains_key(label::TRACK) != canary || !is_running(&pod) {
            continue;
        }
        let path = format!("/api/v1/namespaces/{}/pods/{}:9464/proxy/metrics", team.namespace, pod.name_any());
        let request = http::Request::get(path).body(Vec::new()).map_err(kube::Error::HttpError)?;
        let text = team.client.request_text(request).await?;
        let line = text.lines().find(|line| line.starts_with("codex_ml_inference_requests_total{endpoint=\"/infer\"}"));
        sum += line.and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(sum)
}

fn is_running(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    phase == Some("Running") && pod.metadata.deletion_timestamp.is_none()
}

fn gateway(port: u16) -> String {
    let class = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass", "metadata": { "name": "codex-tests" },
        "spec": { "controllerName": "traefik.io/gateway-controller" },
    });
    let gateway = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": { "name": "public" },
        "spec": { "gatewayClassName": "codex-tests", "listeners": [{ "name": "web", "port": port, "protocol": "HTTP" }] },
    });
    json!({ "apiVersion": "v1", "kind": "List", "items": [class, gateway] }).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_gets_exactly_the_weight_of_its_step() -> Result<()> {
    let team = Team::alone("gateway").await?;
    let api = gateway_api(&team);
    api.kubectl(&["delete", "--ignore-not-found"])?;
    team.create(&objects::run("learns", &[])).await?;
    team.create(&objects::evaluation("judged", "learns", &team.problems)).await?;
    let mut pod = objects::reasoning_pod("served", "learns", "judged");
    let rollout = json!({
        "steps": [5, 100],
        "analysis": { "intervalSeconds": 1, "minRequests": 8 },
        "gateway": { "parentRefs": [{ "name": "public" }], "hostnames": ["models.example.com"] },
    });
    pod.spec.rollout = Some(serde_json::from_value(rollout).unwrap());
    team.create(&pod).await?;
    team.trained("learns").await?;

    // Without the CRDs everything else works, and a condition names what is missing.
    team.serving("served").await?;
    routed(&team, "GatewayApiMissing", SOON).await?;
    api.kubectl(&["apply", "--server-side"])?;
    routed(&team, "WaitingForGateway", INSTALLED).await?;

    let port = free_port("127.0.0.1")?;
    let kubeconfig = team.installation.cluster.kubeconfig().to_owned();
    let mut traefik = Beside::start("TRAEFIK", "test-gateway", |command, _| {
        command.args(["--providers.kubernetesgateway=true", "--global.checknewversion=false", "--log.level=INFO"]);
        command.args([
            format!("--entrypoints.web.address=127.0.0.1:{port}"),
            "--global.sendanonymoususage=false".to_owned(),
        ]);
        command.env("KUBECONFIG", kubeconfig);
        Ok(())
    })?;
    output_with(team.kubectl()?.args(["apply", "--filename", "-"]), &gateway(port))?;
    let accepted = routed(&team, "Accepted", SOON).await;
    traefik.runs()?;
    accepted?;
    let mut config = Config::new(format!("http://127.0.0.1:{port}").parse().unwrap());
    config.root_cert = Some(Vec::new());
    let through = Client::try_from(config)?;
    until_found("the Gateway answers", SOON, async || Ok(ask(&through).await.ok())).await?;

    // The first step: one of two servers is a canary, and it gets 5 of 100 requests.
    let settings = json!({ "spec": { "serving": { "rateLimit": "100000/60s" } } });
    team.change::<ReasoningPod>("served", settings).await?;
    until(&team.api::<ReasoningPod>(), "served", "the canary has its weight", STEP, |pod| {
        let rollout = pod.status.as_ref().and_then(|status| status.rollout.as_ref());
        rollout.is_some_and(|rollout| rollout.share.as_deref() == Some("5/100"))
    })
    .await?;
    let selector = team.api::<Service>().get("served").await?.spec.unwrap().selector.unwrap();
    assert!(selector.contains_key("pod-template-hash"), "the Service leaves the canary out: {selector:?}");
    let selector = team.api::<Service>().get(&child::canary("served")).await?.spec.unwrap().selector.unwrap();
    assert_eq!(selector[label::TRACK], "canary");
    // The gateway reads the new weight a moment later.
    until_found("the canary answers", SOON, async || {
        ask(&through).await?;
        Ok((answered(&team, true).await? > 0).then_some(()))
    })
    .await?;
    let before = (answered(&team, false).await?, answered(&team, true).await?);
    for _ in 0..REQUESTS {
        ask(&through).await?;
    }
    let now = (answered(&team, false).await?, answered(&team, true).await?);
    let (servers, canary) = (now.0 - before.0, now.1 - before.1);
    assert!((9..=11).contains(&canary), "5 of 100 of {REQUESTS}: {canary} by the canary, {servers} by the servers");
    assert_eq!(servers + canary, u64::try_from(REQUESTS).unwrap(), "every request was answered once");

    // The last step: all requests go to the canary, none is lost, and it replaces the servers.
    let mut everything = false;
    let promoted = until_found("the canary is promoted", STEP, async || {
        ask(&through).await?;
        let pod = team.api::<ReasoningPod>().get("served").await?;
        let status = pod.status.as_ref().unwrap();
        everything |= status.rollout.as_ref().is_some_and(|rollout| rollout.share.as_deref() == Some("100/100"));
        let first = status.history.first();
        Ok(first.is_some_and(|first| first.result == RolloutResult::Promoted).then_some(pod))
    })
    .await?;
    assert!(everything, "{:?}", promoted.status);
    team.serving("served").await?;
    for _ in 0..20 {
        ask(&through).await?;
    }

    // The Gateway API goes, and the servers stay.
    drop(traefik);
    api.kubectl(&["delete"])?;
    routed(&team, "GatewayApiMissing", INSTALLED).await?;
    team.infer("served", "1+1:").await?;
    drop(api);
    team.done();
    Ok(())
}
