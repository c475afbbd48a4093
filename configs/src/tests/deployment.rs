//! Deployment presets: the fields that they give, and what is refused.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{data, overrides, starter};
use crate::{DEPLOYMENT_PRESETS, compose_training, deployment, deployment_preset, is_evaluation, keys::DEPLOYMENT};

fn of(preset: &str, texts: &[&str]) -> Value {
    deployment(preset, &overrides(texts)).expect("a good deployment")
}

#[test]
fn the_first_preset_has_every_key() {
    let lines = crate::lines(include_str!("../../deploy/reasoning_pod.yaml"));
    let groups: BTreeSet<&str> = lines.keys().filter_map(|key| key.rsplit_once('.')).map(|(group, _)| group).collect();
    let written: BTreeSet<&str> = lines.keys().map(String::as_str).filter(|key| !groups.contains(key)).collect();
    assert_eq!(written, DEPLOYMENT.iter().map(|key| key.path).collect::<BTreeSet<_>>());
}

#[test]
fn presets_decide_number_and_size_of_servers() {
    assert_eq!(
        of("reasoning_pod", &[]),
        json!({
            "dryRun": true,
            "autoscaling": { "minReplicas": 2, "maxReplicas": 10, "targetCPUUtilizationPercentage": 70 },
            "pod": { "resources": {
                "requests": { "cpu": "1", "memory": "2Gi" }, "limits": { "cpu": "2", "memory": "4Gi" },
            } },
        })
    );
    let single = of("single", &[]);
    assert_eq!((&single["replicas"], &single["autoscaling"]), (&json!(1), &Value::Null));
    let changed = of("single", &["deployment.replicas=3", "deployment.serving.rate_limit=30/60s"]);
    assert_eq!((&changed["replicas"], &changed["serving"]), (&json!(3), &json!({ "rateLimit": "30/60s" })));
    let shadow = of("single", &["deployment.shadow.of=cot-rc", "deployment.dry_run=false"]);
    let compared = json!({ "of": "cot-rc", "samplePercent": 10, "maxDivergence": "0.01" });
    assert_eq!((&shadow["shadow"], &shadow["dryRun"]), (&compared, &json!(false)));
}

#[test]
fn a_preset_is_known_by_its_fields() {
    for preset in DEPLOYMENT_PRESETS {
        assert_eq!(deployment_preset(&of(preset, &[])), Some(*preset));
        // What differs between the ReasoningPods of a preset.
        let other = ["deployment.dry_run=false", "deployment.shadow.of=cot-rc"];
        assert_eq!(deployment_preset(&of(preset, &other)), Some(*preset));
        assert_eq!(deployment_preset(&of(preset, &["deployment.resources.limits.cpu=3"])), None);
    }
    assert_eq!(deployment_preset(&json!({})), None);
}

#[test]
fn wrong_deployments_are_refused() {
    let told =
        |preset: &str, text: &str| deployment(preset, &overrides(&[text])).expect_err("must be refused").to_string();
    assert_eq!(
        told("singel", "deployment.replicas=1"),
        r#"deployment.preset "singel" is unknown (did you mean single?): use one of reasoning_pod, single"#
    );
    assert!(told("single", "deployment.replica=2").contains("did you mean deployment.replicas?"));
    assert!(told("single", "deployment.replicas=0").ends_with("write a whole number from 1 to 1000"));
    assert_eq!(
        told("reasoning_pod", "deployment.autoscaling.min_replicas=11"),
        "deployment.autoscaling.min_replicas is 11: write at most deployment.autoscaling.max_replicas (10)"
    );
}

#[test]
fn a_run_names_the_presets_that_it_is_meant_for() {
    let config = "evaluation: {preset: cot-lite}\ndeployment:\n  preset: single\n";
    let settings = starter(&[], Some(config)).spec().settings.clone();
    let presets = (settings.evaluation.preset.as_deref(), settings.deployment.preset.as_deref());
    assert_eq!(presets, (Some("cot-lite"), Some("single")));
    assert!(!is_evaluation(config) && is_evaluation("evaluation: {preset: cot-lite, limit: 5}"));
    assert_eq!(starter(&["deployment.preset=single", "~deployment.preset"], None), starter(&[], None));
    let told = |text: &str| {
        let composed = compose_training("cot-starter", &overrides(&[text]), None, 42, data());
        composed.expect_err("must be refused").to_string()
    };
    assert!(
        told("deployment.preset=singel").starts_with(r#"deployment.preset "singel" is unknown (did you mean single?)"#)
    );
    assert!(told("evaluation.preset=cot-lit").contains("did you mean cot-lite?"));
}
