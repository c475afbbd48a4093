//! Running servers stay, whatever happens to the run, the key and the status.

use codex_crds::{ConditionType, ReasoningPodPhase};
use codex_plan::{
    Kept, KeptKind,
    conditions::{find, is_true},
    reasoning_pod::{self, ObservedReasoningPod, Signer},
};
use codex_provenance::Sha256;

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
    }))
    .unwrap();
    let pod = template(&observed);
    let added = [
        ["--api-keys", "/keys"],
        ["--safety-rules", "/safety/rules.yaml"],
        ["--safety-events", "-"],
        ["--rate-limit", "60/60s"],
        ["--token-budget", "1000/1d"],
        ["--thinking-budget", "0"],
        ["--answer-reserve", "256"],
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
