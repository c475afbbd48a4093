//! The NetworkPolicy that the trainers and evaluators of a namespace share.

use std::collections::BTreeMap;

use codex_plan::{
    KeptKind, evaluation,
    network_policy::of_workers,
    training_run::{self, ObservedTrainingRun},
};
use k8s_openapi::api::batch::v1::Job;
use serde_json::json;

use crate::{make, properties::busy, world::World};

/// Whether a policy selects pods with these labels.
fn selects(selector: &serde_json::Value, labels: &BTreeMap<String, String>) -> bool {
    let equal = selector["matchLabels"].as_object().unwrap().iter();
    let listed = selector["matchExpressions"].as_array().unwrap().iter();
    equal.into_iter().all(|(key, value)| labels.get(key).is_some_and(|found| json!(found) == *value))
        && listed.into_iter().all(|demand| {
            assert_eq!(demand["operator"], "In");
            let found = labels.get(demand["key"].as_str().unwrap());
            demand["values"]
                .as_array()
                .unwrap()
                .iter()
                .any(|value| Some(value.as_str().unwrap()) == found.map(String::as_str))
        })
}

#[test]
fn trainers_and_evaluators_of_a_namespace_share_one_policy_for_their_metrics() {
    let run = World::new().observed_run();
    let mut judged = busy().observed_evaluation();
    (judged.job, judged.pods, judged.reports, judged.object.status) = (None, Vec::new(), Vec::new(), None);
    let plans = [training_run::plan(&run, make::at(1)).desired, evaluation::plan(&judged, make::at(1_000)).desired];
    let policy = of_workers("team");
    assert!(policy.metadata.owner_references.is_none());
    let spec = json!(policy.spec);
    assert_eq!(spec["policyTypes"], json!(["Ingress"]), "what trainers reach is not limited");
    assert_eq!(
        spec["ingress"],
        json!([{ "ports": [{ "protocol": "TCP", "port": 9464 }], "from": [{ "namespaceSelector": {} }] }])
    );
    for desired in &plans {
        assert_eq!(desired.shared_policies, std::slice::from_ref(&policy));
        let pod = desired.jobs[0].spec.as_ref().unwrap().template.metadata.as_ref().unwrap();
        assert!(selects(&spec["podSelector"], pod.labels.as_ref().unwrap()), "{pod:?}");
    }
    let servers = codex_plan::reasoning_pod::plan(&busy().observed_pod(), make::at(1_000)).desired;
    assert!(servers.shared_policies.is_empty(), "servers have policies of their own");
    let pod = servers.deployments[0].spec.as_ref().unwrap().template.metadata.as_ref().unwrap();
    assert!(!selects(&spec["podSelector"], pod.labels.as_ref().unwrap()), "{pod:?}");
}

#[test]
fn a_policy_is_desired_as_long_as_a_job_may_have_pods() {
    let mut run = World::new().observed_run();
    run.object.spec.suspend = true;
    assert!(training_run::plan(&run, make::at(1)).desired.shared_policies.is_empty(), "there is no Job");
    run.object.spec.suspend = false;
    let mut job: Job = training_run::plan(&run, make::at(1)).desired.jobs.remove(0);
    let kept = |run: &ObservedTrainingRun| {
        let desired = training_run::plan(run, make::at(2)).desired;
        assert!(desired.kept.iter().any(|kept| kept.kind == KeptKind::Job), "{desired:?}");
        desired.shared_policies.len()
    };
    run.job = Some(job.clone());
    assert_eq!(kept(&run), 1);
    job.status = Some(make::from(json!({
        "conditions": [{"type": "Complete", "status": "True", "lastTransitionTime": make::at(1)}],
        "completionTime": make::at(1),
    })));
    run.job = Some(job);
    assert_eq!(kept(&run), 0);
}
