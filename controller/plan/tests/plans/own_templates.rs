//! Templates of runs that a ConfigMap holds, pinned by their digest.

use codex_configs::{Resolved, Training};
use codex_crds::{ConditionType, TrainingRunStatus};
use codex_plan::{
    CONFIG_FILE, Plan,
    conditions::find,
    training_run::{self, ObservedTrainingRun},
};
use codex_provenance::Sha256;
use serde_json::json;

use crate::{make, world::World};

const TEXT: &str = "defaults:\n  - cot-starter\n  - _self_\ntraining:\n  keep_last: 7\n";

/// A run whose template is under the key `ours.yaml` of the ConfigMap `templates`, which has these keys and this text.
fn observed(text: Option<&str>, keys: &[&str]) -> ObservedTrainingRun {
    let mut observed = World::new().observed_run();
    "ours".clone_into(&mut observed.object.spec.template);
    observed.object.spec.template_from = Some(make::from(json!({
        "configMap": { "name": "templates", "key": "ours.yaml" }, "sha256": Sha256::of(TEXT).to_string(),
    })));
    observed.template = text.map(str::to_owned);
    if !keys.is_empty() {
        let keys = keys.iter().map(|key| (*key).to_owned()).collect();
        observed.references.as_mut().unwrap().config_maps.insert("templates".to_owned(), keys);
    }
    observed
}

fn plan(observed: &ObservedTrainingRun) -> Plan<TrainingRunStatus> {
    training_run::plan(observed, make::at(100))
}

fn ready(plan: &Plan<TrainingRunStatus>) -> (String, String) {
    let ready = find(&plan.status.conditions, ConditionType::Ready).unwrap();
    (ready.reason.clone(), ready.message.clone())
}

#[test]
fn a_missing_template_is_waited_for_by_name() {
    let cases: [(&[&str], &str); 3] = [
        (&[], r#"spec.templateFrom.configMap.name names the ConfigMap "templates", which does not exist"#),
        (
            &["other.yaml"],
            r#"spec.templateFrom.configMap.key is "ours.yaml", which the ConfigMap "templates" does not have"#,
        ),
        (&["ours.yaml"], "which is binary in the ConfigMap"),
    ];
    for (keys, told) in cases {
        let plan = plan(&observed(None, keys));
        let (reason, message) = ready(&plan);
        assert_eq!(reason, "NotFound", "{message}");
        assert!(message.contains(told), "{message}");
        assert!(plan.desired.jobs.is_empty() && plan.status.config_digest.is_none());
        assert!(plan.requeue.is_some(), "it is looked for again");
    }
}

#[test]
fn another_text_than_the_pinned_one_trains_nothing() {
    let changed = format!("{TEXT}\n# changed\n");
    let plan = plan(&observed(Some(&changed), &["ours.yaml"]));
    let (reason, message) = ready(&plan);
    assert_eq!(reason, "InvalidConfiguration");
    let (found, pinned) = (Sha256::of(&changed).to_string(), Sha256::of(TEXT).to_string());
    assert!(message.contains(&found) && message.contains(&pinned), "{message}");
    assert!(message.contains(r#"the key "ours.yaml" of the ConfigMap "templates""#), "{message}");
    assert!(plan.desired.jobs.is_empty());
}

#[test]
fn pods_get_the_settings_of_the_template_and_a_job_keeps_them() {
    let first = observed(Some(TEXT), &["ours.yaml"]);
    let mut planned = plan(&first);
    let digest = planned.status.config_digest.expect("the configuration is valid");
    let mounted = planned.desired.config_maps[0].data.as_ref().unwrap()[CONFIG_FILE].clone();
    let resolved = Resolved::<Training>::from_yaml(mounted.as_bytes()).expect("the pod reads it");
    assert_eq!(resolved.digest(), digest, "one digest in controller and pod");
    assert_eq!((resolved.spec().template.as_str(), resolved.spec().settings.training.keep_last), ("ours", 7));

    // The ConfigMap is not read again once there is a Job.
    let mut running = observed(None, &[]);
    running.job = Some(planned.desired.jobs.remove(0));
    let again = plan(&running);
    assert_eq!(again.status.config_digest, Some(digest));
    assert_ne!(ready(&again).0, "InvalidConfiguration");
    assert_ne!(ready(&again).0, "NotFound");
}
