//! Scale to zero: no server stops while it may answer, none starts what is denied, and an idle minute writes nothing.

use codex_crds::{ConditionType, ReasoningPodPhase, ReasoningPodStatus};
use codex_plan::{
    Plan, Received,
    conditions::find,
    reasoning_pod::{self, ObservedReasoningPod, Signer, TrustedKey},
};
use codex_provenance::{Sha256, Validity};
use codex_reports::{Device, Kind, ServingState, Stage, State};
use codex_verdict::policy::Denied;
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod, discovery::v1::EndpointSlice};
use kube::ResourceExt;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::{make, policies::denying, properties::busy};

/// The seconds without a request after which servers stop.
const IDLE: i64 = 60;
/// The second at which plans are made.
const NOW: i64 = 1_000;

fn plan(observed: &ObservedReasoningPod, second: i64) -> Plan<ReasoningPodStatus> {
    reasoning_pod::plan(observed, make::at(second))
}

fn planned<'a>(plan: &'a Plan<ReasoningPodStatus>, name: &str) -> Option<&'a Deployment> {
    plan.desired.deployments.iter().find(|deployment| deployment.name_any() == name)
}

fn replicas(plan: &Plan<ReasoningPodStatus>) -> Option<i32> {
    planned(plan, "codex-s-rc").unwrap().spec.as_ref().unwrap().replicas
}

/// Returns the component that a Service selects.
fn selected(plan: &Plan<ReasoningPodStatus>, service: &str) -> Option<String> {
    let found = plan.desired.services.iter().find(|found| found.name_any() == service)?;
    found.spec.as_ref().unwrap().selector.as_ref()?.get("app.kubernetes.io/component").cloned()
}

/// What a server has reported.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Says {
    Nothing,
    Busy,
    IdleSince(i64),
}

fn say(observed: &mut ObservedReasoningPod, pod: &str, state: ServingState) {
    observed.reports.retain(|known| known.pod != pod);
    let report = make::report(Kind::ReasoningPod, "pod-1", pod, 1, None, State::Serving(state));
    observed.reports.push(Received { report, pod: pod.to_owned(), at: make::at(NOW), contradiction: None });
}

/// Returns a ReasoningPod that stops while idle, with these ready servers and a ready activator.
fn scene(servers: &[Says], waiting: bool) -> ObservedReasoningPod {
    let mut observed = busy().observed_pod();
    let autoscaling = json!({"minReplicas": 0, "idleSeconds": IDLE});
    observed.object.spec.autoscaling = Some(make::from(autoscaling));
    // The template is replaced once, by one whose servers report.
    observed.deployment = planned(&plan(&observed, NOW - 100), "codex-s-rc").cloned();
    observed.activator = planned(&plan(&observed, NOW - 100), "codex-a-rc").cloned();
    let count = i32::try_from(servers.len()).unwrap();
    let live = observed.deployment.as_mut().unwrap();
    live.spec.as_mut().unwrap().replicas = Some(count);
    live.metadata.generation = Some(1);
    let status = json!({"observedGeneration": 1, "replicas": count, "updatedReplicas": count, "readyReplicas": count});
    live.status = Some(make::from(status));
    let annotations = live.annotations().clone();
    observed.reports.clear();
    let pod = |name: &str, annotations: Value| -> Pod {
        make::from(json!({
            "metadata": {"name": name, "uid": name, "namespace": "team", "annotations": annotations},
            "status": {"podIPs": [{"ip": "10.0.0.1"}], "containerStatuses": [{
                "name": "any", "image": "", "imageID": "", "ready": true, "restartCount": 0,
                "state": {"running": {"startedAt": make::at(0)}},
            }]},
        }))
    };
    observed.pods.clear();
    for (index, says) in servers.iter().enumerate() {
        let name = format!("server-{index}");
        observed.pods.push(pod(&name, json!(annotations)));
        let state = ServingState {
            stage: Stage::Running,
            verified: annotations["codex-ml.dev/model-digest"].parse().ok(),
            promotion: annotations["codex-ml.dev/promotion-digest"].parse().ok(),
            idle_since: if let Says::IdleSince(second) = says { Some(make::at(*second).as_second()) } else { None },
            ..ServingState::default()
        };
        if *says != Says::Nothing {
            say(&mut observed, &name, state);
        }
    }
    observed.activator_pods = vec![pod("holds", Value::Null)];
    say(&mut observed, "holds", ServingState { stage: Stage::Running, waiting, ..ServingState::default() });
    observed
}

fn says() -> impl Strategy<Value = Says> {
    prop_oneof![Just(Says::Nothing), Just(Says::Busy), (NOW - 2 * IDLE..=NOW).prop_map(Says::IdleSince),]
}

#[test]
fn the_device_of_the_server_that_verified_the_model_is_recorded() {
    let mut observed = scene(&[Says::Busy], false);
    assert_eq!(plan(&observed, NOW).status.device, None);
    let device = Device {
        name: "NVIDIA H100 80GB HBM3".to_owned(),
        engine: "candle-cuda-bf16".to_owned(),
        driver: Some("580.65.06".to_owned()),
        memory_bytes: Some(85_520_809_984),
        fallback: None,
    };
    for received in &mut observed.reports {
        if let State::Serving(state) = &mut received.report.state {
            state.device = state.verified.map(|_| device.clone());
        }
    }
    let status = plan(&observed, NOW).status;
    let recorded = status.device.clone().unwrap();
    assert_eq!((recorded.name, recorded.engine), (device.name, device.engine));
    // A restarted controller has no report until the server repeats it.
    observed.reports.clear();
    observed.object.status = Some(status.clone());
    assert_eq!(plan(&observed, NOW).status.device, status.device);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn servers_stop_only_when_all_are_idle_and_start_only_for_a_request(
        servers in proptest::collection::vec(says(), 0..4),
        waiting: bool,
        denied: bool,
        wanted in 0..3,
    ) {
        let mut observed = scene(&servers, waiting);
        observed.object.spec.replicas = wanted;
        if denied {
            let model = observed.run.as_ref().unwrap().status.as_ref().unwrap().model.as_ref().unwrap().digest;
            observed.policies = denying(Denied { models: vec![model], ..Denied::default() });
        }
        let planned_now = plan(&observed, NOW);
        let stopped = replicas(&planned_now) == Some(0);
        let idle = |says: &Says| matches!(says, Says::IdleSince(second) if NOW - second >= IDLE);
        let ends = denied || wanted == 0;
        let sleeps = !waiting && servers.iter().all(idle);
        prop_assert_eq!(stopped, ends || sleeps, "{:?}", servers);

        // The activator is there exactly while it may be needed, and gets the requests while no server is ready.
        prop_assert_eq!(planned(&planned_now, "codex-a-rc").is_some(), !ends);
        let holds = !ends && (sleeps || servers.is_empty());
        prop_assert_eq!(selected(&planned_now, "rc").unwrap(), if holds { "activator" } else { "server" });
        prop_assert_eq!(selected(&planned_now, "codex-a-rc"), (!ends).then(|| "server".to_owned()));
        prop_assert_eq!(planned_now.desired.network_policies.len(), if ends { 1 } else { 2 });
        let told = find(&planned_now.status.conditions, ConditionType::Idle).map(|told| told.status == "True");
        prop_assert_eq!(told, (!ends).then_some(sleeps));
        if sleeps && !ends {
            prop_assert_eq!(planned_now.status.phase, Some(ReasoningPodPhase::Idle));
            prop_assert!(find(&planned_now.status.conditions, ConditionType::Ready).unwrap().status == "True");
        }

        // It is planned again when the last of them has been idle for long enough.
        if !waiting && !ends && !servers.is_empty() && !sleeps {
            let last = servers.iter().map(|says| if let Says::IdleSince(second) = says { Some(*second) } else { None });
            if let Some(last) = last.collect::<Option<Vec<_>>>().and_then(|all| all.into_iter().max()) {
                let due = planned_now.requeue.unwrap();
                prop_assert!(due.as_secs() <= u64::try_from(last + IDLE - NOW).unwrap(), "{:?}", due);
                prop_assert_eq!(replicas(&plan(&observed, last + IDLE)), Some(0));
            }
        }

        // Nothing is written in an idle minute.
        observed.object.status = Some(planned_now.status);
        if sleeps && !ends {
            let live = observed.deployment.as_mut().unwrap();
            live.spec.as_mut().unwrap().replicas = Some(0);
            live.status = Some(make::from(json!({"observedGeneration": 1, "replicas": 0})));
            observed.pods.clear();
            let first = plan(&observed, NOW + 1);
            observed.object.status = Some(first.status.clone());
            // Reports are kept in memory, and the controller restarts.
            observed.reports.clear();
            let later = plan(&observed, NOW + 60);
            prop_assert_eq!((&later.status, &later.desired), (&first.status, &first.desired));
            prop_assert!(first.events.is_empty() && later.events.is_empty(), "{:?}", first.events);
        }
    }
}

#[test]
fn what_no_longer_counts_as_signed_is_not_started() {
    let mut observed = scene(&[], true);
    assert_eq!(replicas(&plan(&observed, NOW)), Some(1));
    observed.object.status = Some(plan(&observed, NOW).status);
    // Another key signs from now on, and the former one expired. The signer is away, so nothing is signed again.
    let key = |name: &str, not_after: Option<i64>| TrustedKey {
        fingerprint: Sha256::of(name),
        validity: Validity { not_before: None, not_after: not_after.map(make::at) },
        identity: None,
    };
    observed.trusted = vec![key("next", None), key("key", Some(NOW - 10))];
    observed.signer = Signer::Unavailable { fingerprint: Some(Sha256::of("next")), reason: "it is away".to_owned() };
    let blocked = plan(&observed, NOW);
    assert_eq!(replicas(&blocked), Some(0));
    let idle = find(&blocked.status.conditions, ConditionType::Idle).unwrap();
    assert!(idle.message.starts_with("no server runs, and a request starts none: "), "{}", idle.message);
    // Servers that run already stay, as without scale to zero.
    let mut running = scene(&[Says::Busy], true);
    running.object.status = Some(plan(&running, NOW).status);
    (running.trusted, running.signer) = (observed.trusted, observed.signer);
    assert_ne!(replicas(&plan(&running, NOW)), Some(0));

    let mut lost = scene(&[], true);
    lost.missing_bundles = ["codex-promo-1".to_owned()].into();
    assert_eq!(replicas(&plan(&lost, NOW)), Some(0), "no server could verify the model");
}

#[test]
fn what_excludes_scale_to_zero_keeps_a_server_although_the_api_server_should_have_refused_it() {
    for patch in [json!({"rollout": {}}), json!({"serving": {"tls": {"secret": "team-tls"}}})] {
        let mut observed = scene(&[Says::IdleSince(0)], false);
        let mut spec = json!(observed.object.spec);
        spec.as_object_mut().unwrap().extend(patch.as_object().unwrap().clone());
        observed.object.spec = make::from(spec);
        let planned_now = plan(&observed, NOW);
        assert_ne!(replicas(&planned_now), Some(0), "{patch}");
        assert!(planned(&planned_now, "codex-a-rc").is_none(), "{patch}");
        assert_eq!(planned_now.desired.horizontal_pod_autoscalers[0].spec.as_ref().unwrap().min_replicas, Some(1));
    }
}

#[test]
fn without_policies_the_controller_lists_the_activator_while_no_server_is_ready() {
    let addresses = |plan: &Plan<ReasoningPodStatus>, service: &str| -> Vec<String> {
        let of = |slice: &&EndpointSlice| slice.labels()["kubernetes.io/service-name"] == service;
        let slices = plan.desired.endpoint_slices.iter().filter(of);
        let names = slices.flat_map(|slice| &slice.endpoints).filter_map(|it| it.target_ref.as_ref()?.name.clone());
        names.collect()
    };
    for (servers, own, of_servers) in
        [(&[][..], "holds", &[][..]), (&[Says::Busy][..], "server-0", &["server-0".to_owned()][..])]
    {
        let mut observed = scene(servers, true);
        observed.unprotected = Some("a binding does not exist".to_owned());
        let planned_now = plan(&observed, NOW);
        assert_eq!((selected(&planned_now, "rc"), selected(&planned_now, "codex-a-rc")), (None, None));
        assert_eq!(addresses(&planned_now, "rc"), [own]);
        assert_eq!(addresses(&planned_now, "codex-a-rc"), of_servers);
    }
}

#[test]
fn an_activator_that_does_not_run_is_named() {
    let mut observed = scene(&[], false);
    observed.activator_pods = vec![make::from(json!({
        "metadata": {"name": "holds", "uid": "holds", "namespace": "team", "creationTimestamp": make::at(0)},
        "status": {"conditions": [{"type": "PodScheduled", "status": "False", "message": "no node has room"}]},
    }))];
    let status = plan(&observed, NOW).status;
    assert_eq!(status.phase, Some(ReasoningPodPhase::RollingOut));
    let ready = find(&status.conditions, ConditionType::Ready).unwrap();
    assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("False", "RollingOut"));
    assert_eq!(ready.message, "pod holds cannot be scheduled: no node has room");
}

/// The activator holds what servers see, and nothing more: no model, no key, no certificate.
#[test]
fn an_activator_has_few_rights_and_runs_on_any_node() {
    let mut observed = scene(&[], false);
    observed.object.spec.serving = make::from(json!({"apiKeys": {"secret": "team-keys"}}));
    observed.object.spec.pod = make::from(json!({
        "nodeSelector": {"gpu": "yes"}, "imagePullSecrets": [{"name": "registry"}],
        "resources": {"limits": {"nvidia.com/gpu": "1"}},
    }));
    let planned_now = plan(&observed, NOW);
    let pod = planned(&planned_now, "codex-a-rc").unwrap().spec.clone().unwrap().template.spec.unwrap();
    assert_eq!((pod.node_selector, pod.tolerations, pod.automount_service_account_token), (None, None, Some(false)));
    assert_eq!(pod.image_pull_secrets.unwrap()[0].name, "registry");
    let container = &pod.containers[0];
    assert_eq!(container.image.as_deref(), Some("codex:dev"));
    let arguments = ["activate", "--server", "codex-a-rc.team.svc:8000", "--listen", "0.0.0.0:8000"];
    assert_eq!(container.args.as_ref().unwrap()[..5], arguments);
    let mut mounted: Vec<_> = container.volume_mounts.iter().flatten().map(|mount| mount.mount_path.as_str()).collect();
    mounted.sort_unstable();
    assert_eq!(mounted, ["/etc/codex", "/tmp", "/var/run/secrets/codex"]);
    let context = container.security_context.as_ref().unwrap();
    assert_eq!((context.read_only_root_filesystem, context.allow_privilege_escalation), (Some(true), Some(false)));
    assert!(planned_now.desired.pod_disruption_budgets.iter().all(|budget| budget.name_any() == "codex-s-rc"));
    let policy = planned_now.desired.network_policies.iter().find(|policy| policy.name_any() == "codex-a-rc").unwrap();
    let egress = json!(policy.spec.as_ref().unwrap().egress);
    assert_eq!(egress[2]["to"][0]["podSelector"]["matchLabels"]["app.kubernetes.io/component"], "server");
    assert_eq!((egress.as_array().unwrap().len(), &egress[2]["ports"][0]["port"]), (3, &json!(8000)));
}
