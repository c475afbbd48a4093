//! Limits of a namespace, weights of policies, and the choice of a ReasoningPod.

#![allow(clippy::unwrap_used, reason = "an unexpected result ends the test")]

use std::path::Path;

use serde_json::{Value, json};

use super::*;

fn pod(resources: &Value) -> Value {
    json!({
        "apiVersion": "codex-ml.dev/v1alpha1", "kind": "ReasoningPod", "metadata": { "name": "rc", "namespace": "team" },
        "spec": {
            "rolloutRing": "0D_base_", "trainingRun": "cot", "evaluations": ["lite"], "replicas": 2,
            "pod": { "resources": resources, "priorityClassName": "gold" },
        },
    })
}

/// Requests of one core and 2Gi, and limits of two cores and 4Gi.
fn usual() -> Value {
    json!({ "requests": { "cpu": "1", "memory": "2Gi" }, "limits": { "cpu": "2", "memory": "4Gi" } })
}

fn quota(spec: &Value, used: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ResourceQuota", "metadata": { "name": "compute", "namespace": "team" },
        "spec": spec, "status": { "used": used },
    })
}

fn range(entry: &Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "LimitRange", "metadata": { "name": "sizes" }, "spec": { "limits": [entry] } })
}

fn chain(objects: Vec<Value>) -> Chain {
    Chain::of("the namespace team", objects, None).unwrap()
}

/// Returns why limits refuse the servers.
fn refused(resources: &Value, limits: Value) -> Vec<String> {
    let chain = chain(vec![pod(resources), limits]);
    chain.allowances().unwrap().refusals(&chain)
}

#[test]
fn a_quota_counts_every_server_exactly() {
    let enough =
        json!({ "requests.cpu": "2", "memory": "4096Mi", "limits.memory": "8Gi", "pods": "2", "services": "0" });
    assert!(refused(&usual(), quota(&json!({ "hard": enough }), &json!({}))).is_empty());
    for (hard, used, expected) in [
        (
            json!({ "requests.cpu": "1999m" }),
            json!({}),
            "ResourceQuota compute allows 1.999 of requests.cpu, others use 0, and spec.replicas: 2 needs 2: lower it",
        ),
        (
            json!({ "memory": "6Gi" }),
            json!({ "memory": "2049Mi" }),
            "allows 6Gi of requests.memory, others use 2049Mi, and spec.replicas: 2 needs 4Gi",
        ),
        (json!({ "limits.cpu": "3" }), json!({}), "allows 3 of limits.cpu"),
        (json!({ "count/pods": "3" }), json!({ "count/pods": "2" }), "allows 3 of pods, others use 2"),
    ] {
        let told = refused(&usual(), quota(&json!({ "hard": hard }), &used));
        assert!(told.len() == 1 && told[0].contains(expected), "{told:?}");
    }
    let unset = json!({ "requests": { "cpu": "1" } });
    let told = refused(&unset, quota(&json!({ "hard": { "limits.memory": "8Gi" } }), &json!({})));
    assert!(told[0].contains("limits limits.memory, and spec.pod.resources.limits.memory is not set"), "{told:?}");
    let gpu = json!({ "limits": { "nvidia.com/gpu": 1 } });
    let told = refused(&gpu, quota(&json!({ "hard": { "requests.nvidia.com/gpu": "1" } }), &json!({})));
    assert!(told[0].contains("allows 1 of requests.nvidia.com/gpu"), "{told:?}");
    assert!(refused(&usual(), quota(&json!({ "hard": { "requests.nvidia.com/gpu": "1" } }), &json!({}))).is_empty());
}

#[test]
fn servers_that_are_replaced_do_not_count() {
    let full =
        quota(&json!({ "hard": { "requests.cpu": "2", "pods": "2" } }), &json!({ "requests.cpu": "2", "pods": "2" }));
    let chain = chain(vec![pod(&usual()), full]);
    let allowances = chain.allowances().unwrap();
    assert_eq!(allowances.refusals(&chain).len(), 2);
    let mut own = Usage::default();
    for _ in 0..2 {
        own.add_pod();
        own.add_container(&usual());
    }
    let allowances = allowances.with_own(own);
    assert!(allowances.refusals(&chain).is_empty(), "{allowances:?}");
    assert_eq!(allowances.told(&chain).unwrap(), "the servers are within ResourceQuota compute");
}

#[test]
fn a_quota_binds_the_pods_that_its_scopes_select() {
    let scoped = |name: &str, operator: &str, values: &Value| {
        let expression = json!({ "scopeName": name, "operator": operator, "values": values });
        json!({ "hard": { "pods": "0" }, "scopeSelector": { "matchExpressions": [expression] } })
    };
    let binds = |spec: &Value| !refused(&usual(), quota(spec, &json!({}))).is_empty();
    for (name, operator, values, expected) in [
        ("PriorityClass", "In", json!(["gold"]), true),
        ("PriorityClass", "NotIn", json!(["gold"]), false),
        ("PriorityClass", "Exists", json!([]), true),
        ("PriorityClass", "DoesNotExist", json!([]), false),
        ("Terminating", "Exists", json!([]), false),
        ("NotTerminating", "Exists", json!([]), true),
    ] {
        assert_eq!(binds(&scoped(name, operator, &values)), expected, "{name} {operator}");
    }
    assert!(!binds(&json!({ "hard": { "pods": "0" }, "scopes": ["BestEffort"] })));
    assert!(binds(&json!({ "hard": { "pods": "0" }, "scopes": ["NotBestEffort", "NotTerminating"] })));
}

#[test]
fn a_range_has_bounds_defaults_and_a_ratio() {
    for (entry, expected) in [
        (json!({ "min": { "cpu": "1001m" } }), vec!["requests.cpu is 1, and LimitRange sizes asks for at least 1.001"]),
        (
            json!({ "max": { "memory": "1Gi" } }),
            vec!["limits.memory is 4Gi, and LimitRange sizes asks for at most 1Gi", "requests.memory is 2Gi"],
        ),
        (
            json!({ "maxLimitRequestRatio": { "cpu": "1.5" } }),
            vec!["limits.cpu is 2, and LimitRange sizes asks for at most 1.5 times"],
        ),
        (json!({ "maxLimitRequestRatio": { "cpu": "2" } }), vec![]),
        (json!({ "max": { "cpu": "2", "memory": "4Gi" }, "min": { "cpu": "1" } }), vec![]),
    ] {
        for kind in ["Container", "Pod"] {
            let mut entry = entry.clone();
            entry["type"] = kind.into();
            let told = refused(&usual(), range(&entry));
            assert_eq!(told.len(), expected.len(), "{told:?}");
            for (told, expected) in told.iter().zip(&expected) {
                assert!(told.contains(expected), "{told}");
            }
        }
    }
    // The defaults of a range fill what the servers leave out, and a missing limit is the most.
    let asking = json!({ "requests": { "cpu": "1" } });
    assert!(refused(&asking, range(&json!({ "type": "Container", "max": { "cpu": "2" } }))).is_empty());
    let told =
        refused(&asking, range(&json!({ "type": "Container", "default": { "cpu": "3" }, "max": { "cpu": "2" } })));
    assert!(told[0].contains("limits.cpu is 3"), "{told:?}");
    let told = refused(&asking, range(&json!({ "type": "Pod", "max": { "cpu": "2" } })));
    assert!(told[0].contains("spec.pod.resources.limits.cpu is not set"), "{told:?}");
    assert!(
        refused(&usual(), range(&json!({ "type": "PersistentVolumeClaim", "max": { "storage": "1" } }))).is_empty()
    );
}

#[test]
fn limits_of_other_namespaces_do_not_count_and_wrong_ones_are_named() {
    let mut elsewhere = quota(&json!({ "hard": { "pods": "0" } }), &json!({}));
    elsewhere["metadata"]["namespace"] = "other".into();
    let chain = chain(vec![pod(&usual()), elsewhere]);
    assert_eq!(chain.allowances().unwrap(), Allowances::default());
    let wrong = self::chain(vec![pod(&usual()), quota(&json!({ "hard": { "pods": "two" } }), &json!({}))]);
    let why = wrong.allowances().unwrap_err();
    assert!(why.starts_with("ResourceQuota compute: spec.hard.pods is \"two\": write a quantity"), "{why}");
}

fn policy(kind: &str, namespace: Option<&str>, weights: [&str; 3]) -> Value {
    let [evidence, traces, deployment] = weights;
    json!({
        "apiVersion": "codex-ml.dev/v1alpha1", "kind": kind, "metadata": { "name": "p", "namespace": namespace },
        "spec": { "readiness": { "evidence": evidence, "traces": traces, "deployment": deployment } },
    })
}

#[test]
fn policies_state_weights_and_the_least_readiness_counts() {
    let chain = chain(vec![
        pod(&usual()),
        policy("ClusterPromotionPolicy", None, ["0.5", "0.5", "0"]),
        policy("PromotionPolicy", Some("team"), ["0.1", "0.2", "0.7"]),
        policy("PromotionPolicy", Some("other"), ["1", "0", "0"]),
    ]);
    let stated = chain.weights().unwrap();
    let weights = Weights::chosen(None, &stated).unwrap();
    assert_eq!(weights.iter().map(ToString::to_string).collect::<Vec<_>>(), ["0.5,0.5,0", "0.1,0.2,0.7"]);
    let facts = Facts {
        chain: Some(&chain),
        ring: chain.ring,
        records: Records::default(),
        model: Err("no files".to_owned()),
        judged: Vec::new(),
        measured: Vec::new(),
        damaged: Vec::new(),
        coverage: vec![1.0, 0.9],
        signatures: Signatures::Missing("no bundle".to_owned()),
        unsigned: true,
        allowances: Allowances::default(),
    };
    let runs = [Surveyed { name: "cot".to_owned(), facts }];
    let of = |weights: &[Weights]| survey(chain.ring, None, "2026-11-28".to_owned(), weights, &runs);
    let [first, second] = [of(&weights[..1]), of(&weights[1..])];
    assert!((first.readiness - 0.45).abs() < 1e-9, "{first:?}");
    let least = if first.readiness < second.readiness { first } else { second };
    assert_eq!(of(&weights), least);
    assert_eq!(of(&[]).weights, Weights::default());

    let given: Weights = "0.5,0.5,0".parse().unwrap();
    assert_eq!(Weights::chosen(Some(given), &stated[..1]).unwrap(), [given]);
    let why = Weights::chosen(Some(given), &stated).unwrap_err();
    assert_eq!(why, "--weights: PromotionPolicy p states the weights 0.1,0.2,0.7: remove the flag");
    let wrong = self::chain(vec![pod(&usual()), policy("PromotionPolicy", None, ["0.5", "0.5", "0.5"])]);
    let why = wrong.weights().unwrap_err();
    assert!(why.starts_with("PromotionPolicy p: spec.readiness: 0.5, 0.5, 0.5 are invalid: write evidence"), "{why}");
}

#[test]
fn one_reasoning_pod_is_chosen() {
    let mut other = pod(&usual());
    other["metadata"]["name"] = "main".into();
    let both = || vec![pod(&usual()), other.clone()];
    assert_eq!(Chain::of("f", both(), Some("main")).unwrap().name, "main");
    assert!(Chain::of("f", both(), None).unwrap_err().contains("choose by --pod one of rc, main"));
    assert!(Chain::of("f", both(), Some("x")).unwrap_err().contains("no ReasoningPod x: use one of rc, main"));
    assert!(Chain::of("f", Vec::new(), None).unwrap_err().contains("it holds no ReasoningPod"));
}

#[test]
fn surveys_on_the_command_line_have_a_date_and_a_file() {
    assert_eq!(surveys::date("2026-11-28").unwrap().to_string(), "2026-11-28");
    for wrong in ["", "today", "2026-13-01", "28.11.2026"] {
        assert_eq!(surveys::date(wrong).unwrap_err(), "write a date, such as 2026-11-28", "{wrong}");
    }
    let folder = Path::new("no-folder");
    let why = surveys::at_hand(Some(&folder.join("survey.json")), folder).unwrap_err();
    assert!(why.starts_with("no-folder/survey.json cannot be used: "), "{why}");
    assert!(surveys::at_hand(None, folder).unwrap().is_empty());
}
