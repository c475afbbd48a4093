//! What a promotion rests on: sealed numbers, policies that were in place, and pods that the controller created.

use codex_crds::{ConditionType, Evaluation, ReasoningPod};
use codex_provenance::EvidenceStrength;
use codex_tests::{
    Result, Team, objects,
    process::output,
    team::{SOON, blocking, condition},
    wait::until,
};
use k8s_openapi::{
    api::{admissionregistration::v1::ValidatingAdmissionPolicyBinding, core::v1::Pod},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, PostParams},
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
