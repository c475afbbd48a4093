//! What a promotion rests on: sealed numbers, policies that were in place, and pods that the controller created.

use codex_crds::{ConditionType, Evaluation, ReasoningPod};
use codex_provenance::EvidenceStrength;
use codex_tests::{
    Result, Team, objects,
    process::output,
    team::{SOON, blocking, condition},
    wait::{until, until_found},
};
use k8s_openapi::{
    api::{
        admissionregistration::v1::ValidatingAdmissionPolicyBinding,
        core::v1::{Pod, Service},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn numbers_and_pods_of_others_are_not_believed() -> Result<()> {
    let team = Team::new("evidence").await?;
    team.create(&objects::run("run", &["training.max_steps=1", "training.warmup_steps=0"])).await?;
    team.trained("run").await?;
    team.create(&objects::evaluation("judged", "run", &team.problems)).await?;
    let judged = team.judged("judged").await?.status.unwrap_or_default();
    assert_eq!((judged.evidence, judged.evidence_reason.as_deref()), (Some(EvidenceStrength::Strong), None));
    let name = judged.seal.as_deref().unwrap_or_default().split(':').next().unwrap_or_default().to_owned();
    assert_eq!(Some(name), team.api::<Evaluation>().get("judged").await?.uid());

    // An administrator may write the status. What the seal does not cover is computed again, and what it covers is discarded.
    let metrics: Vec<Value> = judged
        .metrics
        .iter()
        .map(|metric| json!({ "name": metric.name, "kind": "share", "n": 1_000_000, "successes": 1_000_000 }))
        .collect();
    for forged in
        [json!({ "verdict": "Passed", "gatesPassed": "9/9" }), json!({ "verdict": "Passed", "metrics": metrics })]
    {
        let patch = Patch::Merge(json!({ "status": forged }));
        team.api::<Evaluation>().patch_status("judged", &PatchParams::default(), &patch).await?;
        let same = until(&team.api::<Evaluation>(), "judged", "its status is mended", SOON, |evaluation| {
            evaluation.status.as_ref().is_some_and(|status| {
                (status.verdict, &status.metrics, &status.gates_passed)
                    == (judged.verdict, &judged.metrics, &judged.gates_passed)
            })
        })
        .await?;
        assert_eq!(same.status.unwrap_or_default().report_digest, judged.report_digest);
    }

    // The run has learnt nothing in one step, so the gate is on what every model reaches.
    let mut easy = objects::evaluation("easy", "run", &team.problems);
    easy.spec.gates[0].min = Some(codex_verdict::Decimal("0".to_owned()));
    easy.spec.gates[0].confidence = None;
    team.create(&easy).await?;
    team.judged("easy").await?;
    team.create(&objects::reasoning_pod("served", "run", "easy")).await?;
    let served = team.serving("served").await?.status.unwrap_or_default();
    assert_eq!(served.evidence, Some(EvidenceStrength::Strong), "{:?}", served.evidence_reason);

    // A pod with the labels that the Service selects. Only an administrator may create it.
    let server = team.pods(codex_crds::label::REASONING_POD, "served").await?.remove(0);
    let mut spec = json!(server.spec);
    for field in ["nodeName", "tolerations", "serviceAccount", "priority", "preemptionPolicy"] {
        spec.as_object_mut().unwrap().remove(field);
    }
    spec["nodeSelector"] = json!({ "example.com/nowhere": "true" });
    let metadata = json!({ "name": "foreign", "labels": server.metadata.labels });
    let foreign: Pod = serde_json::from_value(json!({ "metadata": metadata, "spec": spec })).unwrap();
    let mut labels = foreign.clone();
    labels.labels_mut().remove("pod-template-hash");
    team.api::<Pod>().create(&PostParams::default(), &labels).await?;
    let told = until(&team.api::<ReasoningPod>(), "served", "it names the foreign pod", SOON, |pod| {
        let conditions = pod.status.as_ref().map(|status| &*status.conditions);
        condition(conditions, ConditionType::ForeignPods).is_some_and(|told| told.message.contains("foreign"))
    })
    .await?;
    let status = told.status.unwrap_or_default();
    assert_eq!(condition(Some(&status.conditions), ConditionType::Ready).unwrap().status, "False");
    assert_eq!(status.ready.as_deref(), Some("1/1"));
    team.api::<Pod>().delete("foreign", &DeleteParams::default().grace_period(0)).await?;
    team.serving("served").await?;

    // A replaced pod is ours, also while both templates run.
    let mut restart = team.kubectl()?;
    restart.args(["delete", "pod", &server.name_any(), "--wait=false"]);
    blocking(move || output(&mut restart)).await?;
    let after = team.serving("served").await?.status.unwrap_or_default();
    assert!(condition(Some(&after.conditions), ConditionType::ForeignPods).is_none(), "{:?}", after.conditions);
    team.done();
    Ok(())
}

/// Returns the uids of the pods to which the Service `name` sends requests, from all of its EndpointSlices.
async fn targets(team: &Team, name: &str) -> Result<Vec<String>> {
    let of_service = ListParams::default().labels(&format!("kubernetes.io/service-name={name}"));
    let slices = team.api::<EndpointSlice>().list(&of_service).await?.items;
    let targets = slices.into_iter().flat_map(|slice| slice.endpoints).filter_map(|it| it.target_ref?.uid);
    let targets: std::collections::BTreeSet<_> = targets.collect();
    Ok(targets.into_iter().collect())
}

/// Waits until the Service `served` has a selector or not, and sends requests to exactly these pods.
async fn until_sent_to(team: &Team, selects: bool, wanted: &[String]) -> Result<()> {
    until_found(&format!("requests go to {wanted:?}"), SOON, async || {
        let service = team.api::<Service>().get("served").await?;
        let selector = service.spec.and_then(|spec| spec.selector);
        Ok((selector.is_some() == selects && targets(team, "served").await? == wanted).then_some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_labelled_pod_receives_nothing_without_policies() -> Result<()> {
    let team = Team::alone("unprotected").await?;
    team.create(&objects::run("run", &["training.max_steps=1", "training.warmup_steps=0"])).await?;
    team.trained("run").await?;
    let mut easy = objects::evaluation("easy", "run", &team.problems);
    easy.spec.gates[0].min = Some(codex_verdict::Decimal("0".to_owned()));
    easy.spec.gates[0].confidence = None;
    team.create(&easy).await?;
    team.judged("easy").await?;
    team.create(&objects::reasoning_pod("served", "run", "easy")).await?;
    team.serving("served").await?;
    let server = team.pods(codex_crds::label::REASONING_POD, "served").await?.remove(0);
    let own = [server.uid().unwrap_or_default()];
    until_sent_to(&team, true, &own).await?;

    let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(team.client.clone());
    let mut binding = bindings.get("codex-workloads").await?;
    bindings.delete("codex-workloads", &DeleteParams::default()).await?;
    // The binding comes back also if this fails.
    let unprotected = Box::pin(unprotected(&team, &server, &own)).await;
    let ObjectMeta { name, labels, annotations, .. } = binding.metadata;
    binding.metadata = ObjectMeta { name, labels, annotations, ..ObjectMeta::default() };
    bindings.create(&PostParams::default(), &binding).await?;
    unprotected?;

    team.api::<Pod>().delete("foreign", &DeleteParams::default().grace_period(0)).await?;
    until_sent_to(&team, true, &own).await?;
    // On a busy machine the server may miss a probe meanwhile.
    until(&team.api::<ReasoningPod>(), "served", "the selector is back", SOON, |pod| {
        let Some(status) = &pod.status else { return false };
        let holds = |kind| condition(Some(&status.conditions), kind).map(|it| it.status.as_str());
        holds(ConditionType::EndpointsWritten).is_none() && holds(ConditionType::Ready) == Some("True")
    })
    .await?;
    team.done();
    Ok(())
}

/// Adds a pod with the labels of servers while a policy is missing.
async fn unprotected(team: &Team, server: &Pod, own: &[String]) -> Result<()> {
    until_sent_to(team, false, own).await?;
    let mut foreign = Pod { metadata: ObjectMeta::default(), spec: server.spec.clone(), status: None };
    foreign.metadata.name = Some("foreign".to_owned());
    foreign.metadata.labels.clone_from(&server.metadata.labels);
    foreign.labels_mut().remove("pod-template-hash");
    if let Some(spec) = &mut foreign.spec {
        (spec.service_account, spec.priority, spec.preemption_policy, spec.tolerations) = (None, None, None, None);
    }
    let api = team.api::<Pod>();
    api.create(&PostParams::default(), &foreign).await?;
    // It is a whole server, which verifies the model and becomes ready. Nobody planned it.
    until(&api, "foreign", "it is ready", SOON, |pod| {
        let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
        statuses.is_some_and(|all| all.iter().all(|status| status.ready))
    })
    .await?;
    let told = until(&team.api::<ReasoningPod>(), "served", "it names the foreign pod", SOON, |pod| {
        let conditions = pod.status.as_ref().map(|status| &*status.conditions);
        condition(conditions, ConditionType::ForeignPods)
            .is_some_and(|told| told.message.contains("receive no requests"))
    })
    .await?;
    let status = told.status.unwrap_or_default();
    assert_eq!(condition(Some(&status.conditions), ConditionType::Ready).unwrap().status, "True");
    let written = condition(Some(&status.conditions), ConditionType::EndpointsWritten).unwrap();
    assert!(written.message.contains("codex-workloads does not exist"), "{}", written.message);
    // A selector that somebody adds is removed, with the slices that the cluster makes of it.
    let selector = json!({ "spec": { "selector": { "app.kubernetes.io/component": "server" } } });
    team.api::<Service>().patch("served", &PatchParams::default(), &Patch::Merge(selector)).await?;
    until_sent_to(team, false, own).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_evaluation_without_a_policy_has_weak_evidence() -> Result<()> {
    let team = Team::alone("weak").await?;
    team.create(&objects::run("run", &["training.max_steps=1", "training.warmup_steps=0"])).await?;
    team.trained("run").await?;
    let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(team.client.clone());
    let mut binding = bindings.get("codex-report-tokens").await?;
    bindings.delete("codex-report-tokens", &DeleteParams::default()).await?;
    // The binding comes back also if this fails.
    let judged = async {
        team.create(&objects::evaluation("unprotected", "run", &team.problems)).await?;
        team.judged("unprotected").await
    }
    .await;
    let ObjectMeta { name, labels, annotations, .. } = binding.metadata;
    binding.metadata = ObjectMeta { name, labels, annotations, ..ObjectMeta::default() };
    bindings.create(&PostParams::default(), &binding).await?;
    let status = judged?.status.unwrap_or_default();
    assert_eq!(status.evidence, Some(EvidenceStrength::Weak));
    let why = status.evidence_reason.unwrap_or_default();
    assert!(why.contains("codex-report-tokens does not exist"), "{why}");
    // The policy is back before this Job is created.
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    team.create(&objects::evaluation("protected", "run", &team.problems)).await?;
    let status = team.judged("protected").await?.status.unwrap_or_default();
    assert_eq!((status.evidence, status.evidence_reason), (Some(EvidenceStrength::Strong), None));
    team.done();
    Ok(())
}
