//! Requests while servers are replaced and stopped, and servers with a certificate and safety rules: nothing is lost, and what a platform
//! team looks for is where it looks.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use codex_crds::{ConditionType, ReasoningPod, SafetyRules, Tls, label};
use codex_tests::{Error, Result, Team, objects, team::condition, wait::until_found};
use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Secret, Service},
};
use kube::{ResourceExt as _, api::ObjectMeta};
use serde_json::{Value, json};

/// Clients that send one request after the other.
const CLIENTS: usize = 4;
/// The time until the kubelet has updated a mounted Secret, and until it says why a pod does not start.
const MOUNTED: Duration = Duration::from_secs(240);

/// Sends requests until it is told to stop. Returns how many were answered, and what became of the others.
async fn client(team: Arc<Team>, ended: Arc<AtomicBool>) -> (u64, Vec<String>) {
    let (mut answered, mut lost) = (0, Vec::new());
    while !ended.load(Ordering::Relaxed) {
        let prompt = format!("{}+{}:", 10 + answered % 90, 10 + answered * 7 % 90);
        match team.infer("served", &prompt).await {
            Ok(_) => answered += 1,
            Err(error) => lost.push(error.to_string()),
        }
    }
    (answered, lost)
}

/// Returns the uids of the servers.
async fn servers(team: &Team) -> Result<Vec<String>> {
    Ok(team.pods(label::REASONING_POD, "served").await?.iter().filter_map(kube::ResourceExt::uid).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_is_lost_while_servers_are_replaced_and_stopped() -> Result<()> {
    let team = Arc::new(Team::new("traffic").await?);
    team.create(&objects::run("learns", &[])).await?;
    team.create(&objects::evaluation("judged", "learns", &team.problems)).await?;
    let mut pod = objects::reasoning_pod("served", "learns", "judged");
    pod.spec.replicas = 2;
    team.create(&pod).await?;
    team.serving("served").await?;
    let before = servers(&team).await?;
    assert_eq!(before.len(), 2);

    let ended = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..CLIENTS).map(|_| tokio::spawn(client(Arc::clone(&team), Arc::clone(&ended)))).collect();
    // Another template replaces every server.
    team.change::<ReasoningPod>("served", json!({ "spec": { "serving": { "requestTimeoutSeconds": 60 } } })).await?;
    team.serving("served").await?;
    until_found("the former servers have gone", MOUNTED, async || {
        let now = servers(&team).await?;
        Ok((now.len() == 2 && now.iter().all(|uid| !before.contains(uid))).then_some(()))
    })
    .await?;
    team.change::<ReasoningPod>("served", json!({ "spec": { "replicas": 1 } })).await?;
    until_found("one server is left", MOUNTED, async || Ok((servers(&team).await?.len() == 1).then_some(()))).await?;
    ended.store(true, Ordering::Relaxed);
    let mut all = 0;
    for client in clients {
        let (answered, lost) = client.await.unwrap();
        assert_eq!(lost, Vec::<String>::new());
        all += answered;
    }
    assert!(all >= 20, "{all} requests are too few to lose one");
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
