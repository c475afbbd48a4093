//! Requests while servers are replaced, restarted, evicted and stopped, and servers with a certificate and safety rules: nothing is lost,
//! and what a platform team looks for is where it looks.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use codex_crds::{ConditionType, ReasoningPod, SafetyRules, Tls, child, label};
use codex_tests::{
    Error, Result, Team, objects,
    process::output,
    team::{SOON, blocking, condition},
    wait::{until, until_found},
};
use k8s_openapi::{
    ByteString,
    api::{
        apps::v1::Deployment,
        core::v1::{ConfigMap, Pod, Secret, Service},
    },
};
use kube::{
    Api, ResourceExt as _,
    api::{EvictParams, ObjectMeta},
};
use serde_json::{Value, json};

use crate::load::{self, Kind, Load};

/// The time until the kubelet has updated a mounted Secret, and until it says why a pod does not start.
const MOUNTED: Duration = Duration::from_secs(240);
/// Requests of a kind, at least: fewer lose none by chance.
const ENOUGH: usize = 10;
/// The annotation of pod templates by which `kubectl rollout restart` replaces pods.
const RESTARTED: &str = "kubectl.kubernetes.io/restartedAt";

/// Sends a load while `work` runs. No request may be lost.
pub(crate) async fn under_load(
    address: Option<SocketAddr>,
    what: &str,
    work: impl Future<Output = Result<()>>,
) -> Result<()> {
    let load = address.map(Load::start);
    work.await?;
    let Some(load) = load else { return Ok(()) };
    let sent = load.end().await;
    let counts = Kind::ALL.map(|kind| (kind, sent.iter().filter(|request| request.kind == kind).count()));
    let lost: Vec<_> = sent.iter().filter_map(|request| Some((request.kind, request.lost.as_deref()?))).collect();
    println!("{what}: {} requests {counts:?}, {} lost", sent.len(), lost.len());
    assert!(lost.is_empty(), "{what}: lost {lost:#?}");
    assert!(counts.iter().all(|(_, count)| *count >= ENOUGH), "{what}: too few requests to lose one: {counts:?}");
    Ok(())
}

/// Returns the uids of the servers of a ReasoningPod.
async fn servers(team: &Team, name: &str) -> Result<Vec<String>> {
    Ok(team.pods(label::REASONING_POD, name).await?.iter().filter_map(kube::ResourceExt::uid).collect())
}

/// Does `work`, which replaces both servers of a ReasoningPod, and waits until two others are ready and the former ones are gone.
pub(crate) async fn replaced(team: &Team, name: &str, work: impl Future<Output = Result<()>>) -> Result<()> {
    let before = servers(team, name).await?;
    assert_eq!(before.len(), 2);
    work.await?;
    until_found("two other servers are ready", MOUNTED, async || {
        let now = team.pods(label::REASONING_POD, name).await?;
        let other = |pod: &Pod| is_ready(pod) && pod.uid().is_some_and(|uid| !before.contains(&uid));
        Ok((now.len() == 2 && now.iter().all(other)).then_some(()))
    })
    .await
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|it| it.type_ == "Ready" && it.status == "True"))
}

async fn restart(team: &Team) -> Result<()> {
    let mut kubectl = team.kubectl()?;
    kubectl.args(["rollout", "restart", &format!("deployment/{}", child::server("served"))]);
    blocking(move || output(&mut kubectl).map(drop)).await
}

/// The controller leaves the mark of a restart alone, also when it writes the Deployment again, and restarts nothing then.
async fn the_mark_of_a_restart_stays(team: &Team) -> Result<()> {
    let (api, name, label) = (team.api::<Deployment>(), child::server("served"), "app.kubernetes.io/part-of");
    let mark = |found: &Deployment| {
        found.spec.as_ref()?.template.metadata.as_ref()?.annotations.as_ref()?.get(RESTARTED).cloned()
    };
    let (before, running) = (mark(&api.get(&name).await?), servers(team, "served").await?);
    assert!(before.is_some(), "kubectl sets {RESTARTED}");
    team.change::<Deployment>(&name, json!({ "metadata": { "labels": { label: "another" } } })).await?;
    let restored = until(&api, &name, "its label is back", SOON, |found| {
        found.labels().get(label).is_some_and(|value| value == "codex")
    })
    .await?;
    assert_eq!(mark(&restored), before);
    assert_eq!(servers(team, "served").await?, running);
    Ok(())
}

/// Evicts the servers one after another: each as soon as the PodDisruptionBudget allows it.
async fn evict(team: &Team) -> Result<()> {
    // The refusals of the budget are counted.
    let client = team.installation.client_without_retries().await?;
    let pods: Api<Pod> = Api::namespaced(client, &team.namespace);
    let mut refused = 0;
    for pod in team.pods(label::REASONING_POD, "served").await? {
        until_found("the budget allows an eviction", MOUNTED, async || {
            match pods.evict(&pod.name_any(), &EvictParams::default()).await {
                Ok(_) => Ok(Some(())),
                Err(kube::Error::Api(status)) if status.code == 429 => {
                    refused += 1;
                    Ok(None)
                }
                Err(error) => Err(error.into()),
            }
        })
        .await?;
    }
    assert!(refused > 0, "the second eviction waits until the first server is replaced");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_is_lost_while_servers_are_replaced_restarted_evicted_and_stopped() -> Result<()> {
    let team = Team::new("traffic").await?;
    team.create(&objects::run("learns", &[])).await?;
    team.create(&objects::evaluation("judged", "learns", &team.problems)).await?;
    let mut pod = objects::reasoning_pod("served", "learns", "judged");
    pod.spec.replicas = 2;
    team.create(&pod).await?;
    team.serving("served").await?;
    let address = load::address(&team, "served").await?;

    let another = Box::pin(replaced(&team, "served", async {
        let settings = json!({ "spec": { "serving": { "requestTimeoutSeconds": 60 } } });
        team.change::<ReasoningPod>("served", settings).await.map(drop)
    }));
    under_load(address, "another template", another).await?;
    let restarted = Box::pin(replaced(&team, "served", restart(&team)));
    under_load(address, "kubectl rollout restart", restarted).await?;
    the_mark_of_a_restart_stays(&team).await?;
    let evicted = Box::pin(replaced(&team, "served", evict(&team)));
    under_load(address, "eviction of both servers", evicted).await?;
    let fewer = Box::pin(async {
        team.change::<ReasoningPod>("served", json!({ "spec": { "replicas": 1 } })).await?;
        until_found("one server is left", MOUNTED, async || {
            Ok((servers(&team, "served").await?.len() == 1).then_some(()))
        })
        .await
    });
    under_load(address, "scale-down from 2 to 1", fewer).await?;
    team.serving("served").await?;
    team.done();
    Ok(())
}

/// Returns a certificate for a name, as a Secret of the type `kubernetes.io/tls`.
fn certificate() -> Secret {
    let made = rcgen::generate_simple_self_signed(["served".to_owned()]).unwrap();
    let data = [("tls.crt", made.cert.pem()), ("tls.key", made.signing_key.serialize_pem())];
    Secret {
        metadata: ObjectMeta { name: Some("team-tls".to_owned()), ..ObjectMeta::default() },
        type_: Some("kubernetes.io/tls".to_owned()),
        data: Some(data.map(|(key, pem)| (key.to_owned(), ByteString(pem.into_bytes()))).into()),
        ..Secret::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_use_the_certificate_of_a_secret_and_tell_what_safety_rules_hit() -> Result<()> {
    let team = Team::new("encrypted").await?;
    let rules = "rules: [{ id: project, action: block, literal: '9+9' }]";
    team.create(&ConfigMap {
        metadata: ObjectMeta { name: Some("team-rules".to_owned()), ..ObjectMeta::default() },
        data: Some(BTreeMap::from([("rules.yaml".to_owned(), rules.to_owned())])),
        ..ConfigMap::default()
    })
    .await?;
    team.create(&objects::run("learns", &[])).await?;
    team.create(&objects::evaluation("judged", "learns", &team.problems)).await?;
    let mut pod = objects::reasoning_pod("served", "learns", "judged");
    pod.spec.serving.tls = Some(Tls { secret: "team-tls".to_owned() });
    pod.spec.serving.safety = Some(SafetyRules { config_map: "team-rules".to_owned() });
    team.create(&pod).await?;
    // Until the Secret exists, the status has the sentence of the cluster.
    until_found("the missing Secret is named", MOUNTED, async || {
        let status = team.api::<ReasoningPod>().get("served").await?.status.unwrap_or_default();
        let ready = condition(Some(&status.conditions), ConditionType::Ready);
        let told = |message: &str| message.contains("FailedMount") && message.contains("\"team-tls\" not found");
        Ok(ready.is_some_and(|ready| told(&ready.message)).then_some(()))
    })
    .await?;
    let secret = team.create(&certificate()).await?;
    let status = team.serving("served").await?.status.unwrap();
    assert!(status.url.as_ref().is_some_and(|url| url.starts_with("https://served.")), "{:?}", status.url);
    let ports = team.api::<Service>().get("served").await?.spec.unwrap().ports.unwrap();
    assert_eq!((ports.len(), ports[0].name.as_deref(), ports[0].port), (1, Some("https"), 8000));

    team.infer("https:served", "1+1:").await?;
    assert!(!team.answers("served", "1+1:").await, "plain HTTP is no answer");
    assert!(!team.answers("https:served", "9+9:").await, "a rule blocks it");
    let name = team.pods(label::REASONING_POD, "served").await?[0].name_any();
    let log = team.logs(&name).await?;
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let events: Vec<Value> = lines.filter(|line| line["type"] == "safety_event").collect();
    let [event] = &events[..] else { panic!("{events:?} in {log}") };
    assert_eq!((&event["rule"], &event["blocked"]), (&json!("project"), &json!(true)));
    assert!(!log.contains("9+9"), "an event holds nothing of the text: {log}");

    // Probes and metrics are plain, on a port that no Service has.
    let metrics = format!("/api/v1/namespaces/{}/pods/{name}:9464/proxy/metrics", team.namespace);
    let metrics = http::Request::get(metrics).body(Vec::new()).map_err(kube::Error::HttpError)?;
    let metrics = team.client.request_text(metrics).await?;
    let counted = "codex_ml_inference_safety_hits_total{action=\"block\",direction=\"prompt\",result=\"refused\",rule=\"project\"} 1";
    assert!(metrics.lines().any(|line| line == counted), "{metrics}");

    // A renewed certificate restarts no server.
    let renewed = Secret { data: certificate().data, ..secret };
    team.api::<Secret>().replace("team-tls", &kube::api::PostParams::default(), &renewed).await.map_err(Error::from)?;
    until_found("the server uses the new certificate", MOUNTED, async || {
        Ok(team.logs(&name).await?.contains("new connections use the new certificate").then_some(()))
    })
    .await?;
    team.infer("https:served", "1+1:").await?;
    let pods = team.pods(label::REASONING_POD, "served").await?;
    assert_eq!((pods.len(), pods[0].name_any()), (1, name));
    team.done();
    Ok(())
}
