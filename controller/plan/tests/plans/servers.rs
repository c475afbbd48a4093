//! Running servers stay, whatever happens to the run, the key and the status.

use codex_crds::{ConditionType, ReasoningPodPhase, ReasoningPodStatus};
use codex_plan::{
    ClusterWarning, Kept, KeptKind, Plan,
    conditions::{find, is_true},
    reasoning_pod::{self, ObservedReasoningPod, Signer},
};
use codex_provenance::Sha256;
use serde_json::{Value, json};

use crate::{make, properties::busy};

/// A ReasoningPod that serves, and the same one after its pod template was modified and the signer and the run were lost.
fn orphaned() -> (ObservedReasoningPod, ObservedReasoningPod) {
    let before = busy().observed_pod();
    let mut after = before.clone();
    (after.deployment, after.tampered, after.pods) = (None, true, Vec::new());
    after.run = None;
    after.signer = Signer::Unavailable { fingerprint: Some(Sha256::of("key")), reason: "the key is lost".to_owned() };
    (before, after)
}

#[test]
fn a_modified_template_is_restored_without_the_run_and_without_the_key() {
    let (before, after) = orphaned();
    let plan = reasoning_pod::plan(&after, make::at(1_000));
    assert_eq!(plan.status.phase, Some(ReasoningPodPhase::Blocked));
    let template = |deployment: &k8s_openapi::api::apps::v1::Deployment| deployment.spec.clone().unwrap().template;
    assert_eq!(
        plan.desired.deployments.iter().map(template).collect::<Vec<_>>(),
        [template(&before.deployment.unwrap())]
    );
    assert_eq!(plan.desired.services.len(), 1);
    let status = before.object.status.unwrap();
    assert_eq!((&plan.status.manifest, &plan.status.promotion), (&status.manifest, &status.promotion));
    assert!(
        plan.status.blocked_by.iter().all(|sentence| !sentence.contains("codex-s-rc")),
        "{:?}",
        plan.status.blocked_by
    );
}

#[test]
fn a_modified_template_that_cannot_be_restored_keeps_its_servers_and_stalls() {
    type Loss = fn(&mut ObservedReasoningPod);
    let losses: [Loss; 3] = [
        |observed| observed.object.status.as_mut().unwrap().promotion = None,
        |observed| observed.object.status.as_mut().unwrap().manifest.as_mut().unwrap().location = None,
        // Servers verify with the pinned key, and another one is pinned now.
        |observed| {
            observed.signer =
                Signer::Unavailable { fingerprint: Some(Sha256::of("another")), reason: "lost".to_owned() };
        },
    ];
    for (index, lose) in losses.into_iter().enumerate() {
        let (_, mut after) = orphaned();
        lose(&mut after);
        let plan = reasoning_pod::plan(&after, make::at(1_000));
        let desired = &plan.desired;
        assert_eq!(desired.kept, [Kept { kind: KeptKind::Deployment, name: "codex-s-rc".to_owned() }], "{index}");
        let around = (desired.services.len(), desired.pod_disruption_budgets.len(), desired.network_policies.len());
        assert_eq!((desired.deployments.len(), around), (0, (1, 1, 1)), "{index}");
        assert!(is_true(&plan.status.conditions, ConditionType::Stalled), "{index}");
        let stalled = find(&plan.status.conditions, ConditionType::Stalled).unwrap();
        assert!(stalled.message.contains("delete the Deployment"), "{}", stalled.message);
        after.object.spec.dry_run = true;
        let plan = reasoning_pod::plan(&after, make::at(1_000));
        assert_eq!(plan.desired, codex_plan::Desired::default(), "a dry run stops what serves");
    }
}

#[test]
fn servers_mount_their_keys_and_rules_and_get_their_limits() {
    let mut observed = busy().observed_pod();
    let template = |observed: &ObservedReasoningPod| {
        let plan = reasoning_pod::plan(observed, make::at(1_000));
        let mut deployments = plan.desired.deployments.into_iter();
        deployments.next().unwrap().spec.unwrap().template.spec.unwrap()
    };
    let arguments = |pod: &k8s_openapi::api::core::v1::PodSpec| pod.containers[0].args.clone().unwrap();
    let before = arguments(&template(&observed));
    observed.object.spec.serving = serde_json::from_value(json!({
        "apiKeys": { "secret": "team-keys" }, "rateLimit": "60/60s", "tokenBudget": "1000/1d",
        "safety": { "configMap": "team-rules" }, "thinkingBudget": 0, "answerReserve": 256,
        "device": "cpu", "maxNumSeqs": 32, "maxQueuedRequests": 0, "maxNumBatchedTokens": 512,
        "kvCacheTokens": 16384, "prefixCacheTokens": 0,
    }))
    .unwrap();
    let pod = template(&observed);
    let added = [
        ["--device", "cpu"],
        ["--api-keys", "/keys"],
        ["--safety-rules", "/safety/rules.yaml"],
        ["--safety-events", "-"],
        ["--rate-limit", "60/60s"],
        ["--token-budget", "1000/1d"],
        ["--thinking-budget", "0"],
        ["--answer-reserve", "256"],
        ["--slots", "32"],
        ["--queue", "0"],
        ["--max-num-batched-tokens", "512"],
        ["--kv-cache", "16384"],
        ["--prefix-cache", "0"],
    ];
    assert_eq!(arguments(&pod), [before, added.concat().iter().map(ToString::to_string).collect()].concat());
    let volumes = pod.volumes.unwrap();
    let mounted = |path: &str| {
        let mounts = pod.containers[0].volume_mounts.as_ref().unwrap();
        let mount = mounts.iter().find(|mount| mount.mount_path == path).unwrap();
        assert_eq!((mount.read_only, &mount.sub_path), (Some(true), &None));
        volumes.iter().find(|volume| volume.name == mount.name).unwrap()
    };
    assert_eq!(mounted("/keys").secret.as_ref().unwrap().secret_name.as_deref(), Some("team-keys"));
    assert_eq!(mounted("/safety").config_map.as_ref().unwrap().name, "team-rules");
}

/// What a plan says about the ports of its servers: of the container, of the probes, of Services, and of the network policy.
fn ports(plan: &Plan<ReasoningPodStatus>) -> Value {
    let pod = plan.desired.deployments[0].spec.clone().unwrap().template;
    let container = pod.spec.unwrap().containers.remove(0);
    let probes = [container.startup_probe, container.liveness_probe, container.readiness_probe];
    let probes = probes.map(|probe| probe.unwrap().http_get.unwrap());
    let services = plan.desired.services.iter().map(|service| service.spec.clone().unwrap().ports);
    json!({
        "container": container.ports,
        "probes": probes,
        "scraped": pod.metadata.unwrap().annotations.unwrap()["prometheus.io/port"],
        "services": services.collect::<Vec<_>>(),
        "ingress": plan.desired.network_policies[0].spec.clone().unwrap().ingress,
        "url": plan.status.url,
    })
}

#[test]
fn probes_and_metrics_have_a_port_that_no_service_has() {
    let found = ports(&reasoning_pod::plan(&busy().observed_pod(), make::at(1_000)));
    assert_eq!(
        found["container"],
        json!([{ "name": "http", "containerPort": 8000 }, { "name": "admin", "containerPort": 9464 }])
    );
    for (probe, path) in found["probes"].as_array().unwrap().iter().zip(["/health", "/health", "/ready"]) {
        assert_eq!(*probe, json!({ "path": path, "port": "admin" }));
    }
    assert_eq!(found["scraped"], "9464");
    assert_eq!(found["services"], json!([[{ "name": "http", "port": 8000, "protocol": "TCP", "targetPort": "http" }]]));
    let admin = json!({ "ports": [{ "port": 9464, "protocol": "TCP" }], "from": [{ "namespaceSelector": {} }] });
    assert_eq!(found["ingress"], json!([{ "ports": [{ "port": 8000, "protocol": "TCP" }] }, admin]));
}

#[test]
fn a_certificate_encrypts_what_clients_use_and_nothing_else() {
    let mut observed = busy().observed_pod();
    let plain = ports(&reasoning_pod::plan(&observed, make::at(1_000)));
    observed.object.spec.serving = make::from(json!({ "tls": { "secret": "team-tls" } }));
    let plan = reasoning_pod::plan(&observed, make::at(1_000));
    let encrypted = ports(&plan);
    for same in ["container", "probes", "scraped", "ingress"] {
        assert_eq!(plain[same], encrypted[same], "{same}");
    }
    let port =
        json!({ "name": "https", "appProtocol": "https", "port": 8000, "protocol": "TCP", "targetPort": "http" });
    assert_eq!(encrypted["services"], json!([[port]]));
    let pod = plan.desired.deployments[0].spec.clone().unwrap().template.spec.unwrap();
    let arguments = pod.containers[0].args.clone().unwrap();
    let added = ["--tls-certificate", "/tls/tls.crt", "--tls-key", "/tls/tls.key"];
    assert!(arguments.windows(4).any(|window| window == added), "{arguments:?}");
    // The kubelet names a key that the Secret lacks, and updates the files of a mounted folder.
    let mount = pod.containers[0].volume_mounts.iter().flatten().find(|mount| mount.mount_path == "/tls").unwrap();
    assert_eq!((mount.read_only, &mount.sub_path), (Some(true), &None));
    let volume = pod.volumes.unwrap().into_iter().find(|volume| volume.name == mount.name).unwrap();
    let items = ["tls.crt", "tls.key"].map(|key| json!({ "key": key, "path": key }));
    assert_eq!(json!(volume.secret), json!({ "secretName": "team-tls", "items": items }));
}

#[test]
fn a_missing_certificate_is_told_in_the_words_of_the_cluster() {
    let mut observed = busy().observed_pod();
    observed.object.spec.serving = make::from(json!({ "tls": { "secret": "team-tls" } }));
    let plan = reasoning_pod::plan(&observed, make::at(1_000));
    observed.deployment = plan.desired.deployments.first().cloned();
    let mut pod = observed.pods[0].clone();
    let template = observed.deployment.as_ref().unwrap().spec.as_ref().unwrap().template.clone();
    pod.spec = template.spec;
    pod.metadata.creation_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(make::at(0)));
    pod.status = None;
    let message = "MountVolume.SetUp failed for volume \"files-4\" : secret \"team-tls\" not found";
    observed.warnings = vec![ClusterWarning {
        about: pod.metadata.uid.clone().unwrap(),
        reason: "FailedMount".to_owned(),
        message: message.to_owned(),
    }];
    observed.pods = vec![pod];
    let plan = reasoning_pod::plan(&observed, make::at(1_000));
    let ready = find(&plan.status.conditions, ConditionType::Ready).unwrap();
    assert!(ready.message.contains("FailedMount") && ready.message.contains(message), "{}", ready.message);
}
