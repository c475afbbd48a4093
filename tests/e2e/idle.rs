//! Scale to zero: no server runs until a request comes, it is held and answered, and the server stops again.

use std::time::{Duration, Instant};

use codex_crds::{ConditionType, ReasoningPod, ReasoningPodPhase, ReasoningPodStatus, child, label};
use codex_tests::{
    Result, Team, objects,
    team::{SOON, condition},
    wait::{until, until_found},
};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Event, Pod, Service},
};
use kube::{ResourceExt as _, api::ListParams};
use serde_json::json;

/// `spec.autoscaling.idleSeconds`, the least that is allowed.
const IDLE_SECONDS: u64 = 10;
/// Requests that come at once while no server runs.
const CLIENTS: usize = 8;

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_held_until_a_server_has_started_and_the_server_stops_once_it_is_idle() -> Result<()> {
    let team = Team::new("idle").await?;
    team.create(&objects::run("learns", &[])).await?;
    team.create(&objects::evaluation("judged", "learns", &team.problems)).await?;
    let mut pod = objects::reasoning_pod("served", "learns", "judged");
    let autoscaling = json!({ "minReplicas": 0, "maxReplicas": 2, "idleSeconds": IDLE_SECONDS });
    pod.spec.autoscaling = Some(serde_json::from_value(autoscaling).unwrap());
    team.create(&pod).await?;
    team.trained("learns").await?;

    // No server runs, and it is ready.
    let status = idle(&team).await?;
    assert_eq!((status.ready.as_deref(), status.verified), (Some("0/0"), None));
    assert!(status.url.is_some_and(|url| url.starts_with("http://served.")));
    let ready = condition(Some(&status.conditions), ConditionType::Ready).unwrap();
    assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("True", "Idle"));
    assert_eq!(servers(&team).await?, Vec::<String>::new());
    assert_eq!(selected(&team).await?, "activator");

    // Requests wait for a server, and each is answered by the model.
    let begun = Instant::now();
    let answers = futures::future::join_all((0..CLIENTS).map(|_| team.infer("served", "1+1:"))).await;
    eprintln!("{CLIENTS} requests to no server were answered within {:.1} s", begun.elapsed().as_secs_f64());
    for answer in answers {
        assert!(answer?["model_digest"].is_string());
    }
    let served = team.serving("served").await?.status.unwrap();
    assert_eq!((served.ready.as_deref(), served.verified.is_some()), (Some("1/1"), true));
    let awake = condition(Some(&served.conditions), ConditionType::Idle).unwrap();
    assert_eq!((awake.status.as_str(), awake.reason.as_str()), ("False", "Activated"));
    until_found("the Service sends requests to the server", SOON, async || {
        Ok((selected(&team).await? == "server").then_some(()))
    })
    .await?;
    assert!(measured(&team, "codex_ml_activator_activations_total").await? >= 1.0);
    assert!(measured(&team, "codex_ml_activator_hold_seconds_count").await? >= 1.0);
    assert!(measured(&team, "codex_ml_activator_requests_held").await? < 1.0);
    let mine = servers(&team).await?;
    assert_eq!(mine.len(), 1);

    // While requests come, it stays for longer than it may be idle.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(2 * IDLE_SECONDS) {
        team.infer("served", "2+2:").await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(servers(&team).await?, mine);

    // Then it stops, and an idle minute, which is shortened here, writes nothing.
    let status = idle(&team).await?;
    assert_eq!(status.verified, None);
    until_found("the server has gone", SOON, async || Ok(servers(&team).await?.is_empty().then_some(()))).await?;
    until(&team.api::<ReasoningPod>(), "served", "it counts no server", SOON, |pod| {
        pod.status.as_ref().is_some_and(|status| status.ready.as_deref() == Some("0/0"))
    })
    .await?;
    let before = team.api::<ReasoningPod>().get("served").await?.resource_version();
    tokio::time::sleep(Duration::from_secs(IDLE_SECONDS)).await;
    assert_eq!(team.api::<ReasoningPod>().get("served").await?.resource_version(), before);
    let events = team.api::<Event>().list(&ListParams::default()).await?;
    for reason in ["Idle", "Activated"] {
        assert!(events.iter().any(|event| event.reason.as_deref() == Some(reason)), "an Event {reason}");
    }

    // Another request starts another server; spec.replicas 0 stops that and the activator.
    team.infer("served", "3+3:").await?;
    team.serving("served").await?;
    let again = servers(&team).await?;
    assert!(again.len() == 1 && again != mine, "{again:?}");
    team.change::<ReasoningPod>("served", json!({ "spec": { "replicas": 0 } })).await?;
    let all = async || team.pods(label::REASONING_POD, "served").await;
    until_found("no pod is left", SOON, async || Ok(all().await?.is_empty().then_some(()))).await?;
    assert!(team.api::<Deployment>().get_opt(&child::activator("served")).await?.is_none());
    assert!(!team.answers("served", "1+1:").await, "nothing answers");
    team.done();
    Ok(())
}

/// Waits until no server should run.
async fn idle(team: &Team) -> Result<ReasoningPodStatus> {
    let found = until(&team.api::<ReasoningPod>(), "served", "it is idle", SOON, |pod| {
        pod.status.as_ref().and_then(|status| status.phase) == Some(ReasoningPodPhase::Idle)
    })
    .await?;
    Ok(found.status.unwrap())
}

/// Returns the uids of the servers.
async fn servers(team: &Team) -> Result<Vec<String>> {
    let all = team.pods(label::REASONING_POD, "served").await?;
    Ok(all.iter().filter(|pod| component(pod) == Some("server")).filter_map(kube::ResourceExt::uid).collect())
}

fn component(pod: &Pod) -> Option<&str> {
    pod.labels().get("app.kubernetes.io/component").map(String::as_str)
}

/// Returns the component that the Service selects.
async fn selected(team: &Team) -> Result<String> {
    let selector = team.api::<Service>().get("served").await?.spec.unwrap().selector.unwrap();
    Ok(selector["app.kubernetes.io/component"].clone())
}

/// Returns a number of the activator's metrics.
async fn measured(team: &Team, metric: &str) -> Result<f64> {
    let all = team.pods(label::REASONING_POD, "served").await?;
    let name = all.iter().find(|pod| component(pod) == Some("activator")).unwrap().name_any();
    let path = format!("/api/v1/namespaces/{}/pods/{name}:9464/proxy/metrics", team.namespace);
    let request = http::Request::get(path).body(Vec::new()).map_err(kube::Error::HttpError)?;
    let text = team.client.request_text(request).await?;
    let value = text.lines().find_map(|line| line.strip_prefix(metric)?.trim().parse().ok());
    Ok(value.unwrap_or_else(|| panic!("{metric} is missing: {text}")))
}
