//! The ids that pods run with: those of the object, else those of the controller's setting, which may leave them to the cluster.

use std::sync::Arc;

use codex_crds::PodIds;
use codex_plan::{RunAs, Settings, evaluation, reasoning_pod, training_run};
use k8s_openapi::api::{apps::v1::Deployment, core::v1::PodSpec};
use serde_json::{Value, json};

use crate::{make, properties::busy, world::World};

fn settings(run_as: &str) -> Arc<Settings> {
    Arc::new(Settings { run_as: run_as.parse().unwrap(), ..Settings::clone(&make::settings()) })
}

/// Returns the security context of a pod. Its container names no ids.
fn context(pod: &PodSpec) -> Value {
    let container = json!(pod.containers[0].security_context);
    assert!(container.get("runAsUser").is_none() && container.get("runAsGroup").is_none(), "{container}");
    json!(pod.security_context)
}

/// Returns the security contexts of a trainer, an evaluator, a server and an activator.
fn contexts(run_as: &str, named: Option<&PodIds>) -> [Value; 4] {
    let mut run = World::new().observed_run();
    run.settings = settings(run_as);
    run.object.spec.pod.worker.security_context = named.cloned().map(Box::new);
    let job = training_run::plan(&run, make::at(1)).desired.jobs.remove(0);
    let trainer = job.spec.unwrap().template.spec.unwrap();

    let mut judged = busy().observed_evaluation();
    (judged.job, judged.pods, judged.reports, judged.object.status) = (None, Vec::new(), Vec::new(), None);
    judged.settings = settings(run_as);
    judged.object.spec.pod.security_context = named.cloned().map(Box::new);
    let job = evaluation::plan(&judged, make::at(1_000)).desired.jobs.remove(0);
    let evaluator = job.spec.unwrap().template.spec.unwrap();

    let mut served = busy().observed_pod();
    (served.deployment, served.pods) = (None, Vec::new());
    served.settings = settings(run_as);
    served.object.spec.pod.security_context = named.cloned().map(Box::new);
    served.object.spec.autoscaling = Some(make::from(json!({ "minReplicas": 0 })));
    let deployments = reasoning_pod::plan(&served, make::at(1_000)).desired.deployments;
    let of = |name: &str| -> PodSpec {
        let found = deployments.iter().find(|it| it.metadata.name.as_deref() == Some(name));
        found.unwrap().spec.clone().unwrap().template.spec.unwrap()
    };
    [&trainer, &evaluator, &of("codex-s-rc"), &of("codex-a-rc")].map(context)
}

#[test]
fn all_pods_run_with_the_ids_of_the_setting() {
    let of = |ids: Value| {
        let mut context = json!({
            "runAsNonRoot": true, "fsGroupChangePolicy": "OnRootMismatch", "seccompProfile": { "type": "RuntimeDefault" },
        });
        context.as_object_mut().unwrap().extend(ids.as_object().unwrap().clone());
        [(); 4].map(|()| context.clone())
    };
    let all = |id: i64| json!({ "runAsUser": id, "runAsGroup": id, "fsGroup": id });
    assert_eq!(make::settings().run_as, RunAs::default());
    assert_eq!(contexts("65532", None), of(all(65_532)));
    assert_eq!(contexts("1000650000", None), of(all(1_000_650_000)));
    assert_eq!(contexts("platform", None), of(json!({})), "the cluster fills them in");
    let named = PodIds { run_as_user: Some(1_000), supplemental_groups: vec![3_000], ..PodIds::default() };
    let ids = json!({ "runAsUser": 1_000, "supplementalGroups": [3_000] });
    assert_eq!(contexts("platform", Some(&named)), of(ids));
    let ids = json!({ "runAsUser": 1_000, "runAsGroup": 65_532, "fsGroup": 65_532, "supplementalGroups": [3_000] });
    assert_eq!(contexts("65532", Some(&named)), of(ids));
}

#[test]
fn another_setting_restarts_no_server_and_another_id_of_the_object_does() {
    let mut observed = busy().observed_pod();
    let spec = |deployment: &Deployment| deployment.spec.clone().unwrap().template;
    let before = spec(observed.deployment.as_ref().unwrap());
    observed.settings = settings("platform");
    let plan = reasoning_pod::plan(&observed, make::at(1_000));
    assert_eq!(spec(&plan.desired.deployments[0]), before);
    observed.settings = make::settings();
    let named = PodIds { run_as_user: Some(1_000), ..PodIds::default() };
    observed.object.spec.pod.security_context = Some(Box::new(named));
    let plan = reasoning_pod::plan(&observed, make::at(1_000));
    let after = spec(&plan.desired.deployments[0]);
    assert_eq!(after.spec.unwrap().security_context.unwrap().run_as_user, Some(1_000));
}
