//! The checklist, the survey and the map of objects of a cluster.

use codex_checklist::{Chain, Checklist, State, Subject, Survey, Surveyed, Weights, settings, survey};
use codex_crds::{Evaluation, ReasoningPod, SignOff, TrainingRun};
use codex_provenance::{
    Sha256,
    manifest::{File, Manifest, SCHEMA},
};
use codex_verdict::{Gate, GateSpec, gates_digest};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::promotion::{
    gather,
    snapshot::{Policies, Snapshot},
};

fn of<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn manifest() -> Manifest {
    let file = |path: &str, size| File { path: path.to_owned(), size, sha256: Sha256::of(path) };
    Manifest { schema: SCHEMA, files: vec![file("config.json", 2), file("model.safetensors", 1000)] }
}

fn gates() -> Value {
    json!([{ "metric": "exact_match", "min": "0.95", "confidence": "0.95" }, { "metric": "trace_coverage", "min": "0.8" }])
}

/// The status of an Evaluation, whose second gate has this verdict.
fn verdict(second: &str) -> Value {
    let specs: Vec<GateSpec> = of(gates());
    let gates: Vec<Gate> = specs.iter().map(|spec| Gate::try_from(spec).unwrap()).collect();
    let result = |metric: &str, verdict: &str| json!({ "metric": metric, "verdict": verdict, "message": "0.9 of 600" });
    json!({
        "observedGeneration": 1, "phase": "Judged", "verdict": second, "reportDigest": Sha256::of("report"),
        "gatesDigest": gates_digest(&gates),
        "model": { "digest": manifest().digest(), "short": manifest().digest().short() },
        "gates": [result("exact_match", "Passed"), result("trace_coverage", second)],
        "metrics": [{ "name": "trace_coverage", "n": 1000, "kind": "mean", "sum": "9e2", "sumOfSquares": "8.5e2" }],
    })
}

fn run() -> TrainingRun {
    let files: Vec<Value> =
        manifest().files.iter().map(|it| json!({ "path": it.path, "size": it.size, "sha256": it.sha256 })).collect();
    of(json!({
        "apiVersion": "codex-ml.dev/v1alpha1", "kind": "TrainingRun",
        "metadata": { "name": "cot", "namespace": "team", "uid": "cot-uid", "generation": 1 },
        "spec": {
            "rolloutRing": "0D_base_", "template": "cot-starter",
            "data": [{ "name": "sums", "sha256": Sha256::of("sums"), "source": { "configMap": { "name": "d", "key": "k" } } }],
            "output": { "persistentVolumeClaim": { "claimName": "models" } },
        },
        "status": {
            "observedGeneration": 1, "phase": "Succeeded", "configDigest": Sha256::of("configuration"),
            "dataDigests": [{ "name": "sums", "sha256": Sha256::of("sums") }],
            "model": {
                "digest": manifest().digest(), "short": manifest().digest().short(), "omsRoot": Sha256::of("root"),
                "location": "models/cot-uid/model", "parameters": 10, "sizeBytes": 1002, "files": files,
            },
        },
    }))
}

/// A run whose model passed, and a ReasoningPod that has promoted it.
fn snapshot() -> Snapshot {
    let evaluation: Evaluation = of(json!({
        "apiVersion": "codex-ml.dev/v1alpha1", "kind": "Evaluation",
        "metadata": { "name": "lite", "namespace": "team", "generation": 1 },
        "spec": { "trainingRun": "cot", "preset": "cot-lite", "gates": gates() }, "status": verdict("Passed"),
    }));
    let pod: ReasoningPod = of(json!({
        "apiVersion": "codex-ml.dev/v1alpha1", "kind": "ReasoningPod",
        "metadata": { "name": "rc", "namespace": "team", "generation": 1 },
        "spec": {
            "rolloutRing": "0D_base_", "trainingRun": "cot", "evaluations": ["lite"], "dryRun": false,
            "pod": { "resources": { "requests": { "cpu": "200m", "memory": "128Mi" }, "limits": { "memory": "512Mi" } } },
        },
        "status": {
            "observedGeneration": 1,
            "manifest": {
                "digest": manifest().digest(), "short": manifest().digest().short(), "signer": "5c70e12b7a06",
                "bundle": "codex-oms-cot-uid",
            },
            "promotion": { "ring": "0D_base_", "digest": Sha256::of("promotion"), "bundle": "codex-promo-1" },
        },
    }));
    let bundle = |name: &str| of(json!({ "metadata": { "name": name, "namespace": "team" } }));
    Snapshot {
        namespace: "team".to_owned(),
        pod,
        run: Some(run()),
        evaluations: vec![evaluation],
        sign_offs: Vec::new(),
        quotas: Vec::new(),
        ranges: Vec::new(),
        servers: Vec::new(),
        configuration: None,
        template: None,
        bundles: vec![bundle("codex-oms-cot-uid"), bundle("codex-promo-1")],
    }
}

fn chain(snapshot: &Snapshot) -> Chain {
    gather::chain(snapshot, &Policies::default()).unwrap()
}

fn surveyed(snapshot: &Snapshot, unsigned: bool) -> Survey {
    let chain = chain(snapshot);
    let facts = gather::facts(snapshot, &chain, unsigned).unwrap();
    survey(chain.ring, None, "2026-11-28".to_owned(), &[], &[Surveyed { name: "cot".to_owned(), facts }])
}

/// Checks with a survey about the model at hand.
fn checked(snapshot: &Snapshot, unsigned: bool) -> Checklist {
    let chain = chain(snapshot);
    let facts = gather::facts(snapshot, &chain, unsigned).unwrap();
    let survey = surveyed(&self::snapshot(), false);
    Checklist::of(&chain, &facts, &[("survey-0D_base_-local-2026-11-28.json".to_owned(), survey)], ".")
}

fn state(checklist: &Checklist, subject: Subject) -> State {
    checklist.checks.iter().find(|check| check.subject == subject).unwrap().state
}

#[test]
fn a_promoted_model_may_roll_out() {
    let checklist = checked(&snapshot(), false);
    assert!(!checklist.blocked, "{checklist}");
    let told = checklist.to_string();
    assert!(told.starts_with("ReasoningPod rc may roll out into 0D_base_\nmodel "), "{told}");
    for expected in [
        "ok      ring: TrainingRun cot and ReasoningPod rc are both in 0D_base_",
        "ok      artifacts: the status of TrainingRun cot, ",
        "ok      manifest: 2 files with 1002 bytes are the model that 1 evaluation measured",
        "ok      evaluations: lite: 2 of 2 gates passed",
        "ok      signatures: promoted into 0D_base_ by the statement ",
        "ok      status report: survey-0D_base_-local-2026-11-28.json of 2026-11-28: readiness 0.98",
        "ok      resources: 1 server with 200m cores and 128Mi of memory",
    ] {
        assert!(told.contains(expected), "{expected}: {told}");
    }
    let survey = surveyed(&snapshot(), false);
    let run = &survey.runs[0];
    assert_eq!((run.gates_passed, run.gates, run.checks.len(), run.run_id.as_deref()), (2, 2, 6, Some("cot-uid")));
    assert!((run.traces - 0.9).abs() < 1e-9 && (survey.readiness - 0.98).abs() < 1e-9, "{survey:?}");
}

#[test]
fn every_reason_is_named_at_once() {
    let mut found = snapshot();
    let run = found.run.as_mut().unwrap();
    run.spec.rollout_ring = codex_verdict::Ring::Base0C;
    run.status.as_mut().unwrap().data_digests[0].sha256 = of(json!(Sha256::of("others")));
    found.evaluations[0].status = of(verdict("Failed"));
    found.bundles.clear();
    found.quotas = vec![of(json!({
        "metadata": { "name": "compute", "namespace": "team" },
        "spec": { "hard": { "requests.cpu": "100m", "limits.memory": "1Gi" } },
    }))];
    let checklist = checked(&found, false);
    let told = checklist.to_string();
    assert!(told.starts_with("DEPLOYMENT BLOCKED: rc into 0D_base_: 5 of 7 checks do not hold\n"), "{told}");
    for expected in [
        "ring: TrainingRun cot is in 0C_base_, and ReasoningPod rc is in 0D_base_",
        "artifacts: the data drifted: the trainer read sums",
        "evaluations: lite: trace_coverage Failed: 0.9 of 600",
        "signatures: the ConfigMap codex-oms-cot-uid does not exist",
        "resources: ResourceQuota compute allows 0.1 of requests.cpu, others use 0, and spec.replicas: 1 needs 0.2",
    ] {
        assert!(told.contains(expected), "{expected}: {told}");
    }
    assert!(told.ends_with("\nnothing was created"), "{told}");
}

#[test]
fn what_the_cluster_has_not_reached_blocks() {
    let mut found = snapshot();
    found.pod.status = None;
    assert_eq!(state(&checked(&found, false), Subject::Signatures), State::Blocked);
    assert_eq!(state(&checked(&found, true), Subject::Signatures), State::Waived);

    let mut found = snapshot();
    found.evaluations[0].status = None;
    let told = checked(&found, true).to_string();
    assert!(told.contains("lite: the controller has not seen the latest change of its spec"), "{told}");
    found.evaluations.clear();
    let told = checked(&found, true).to_string();
    assert!(told.contains("evaluations: lite: the namespace team does not hold it"), "{told}");

    let mut found = snapshot();
    found.run.as_mut().unwrap().status = None;
    let told = checked(&found, true).to_string();
    assert!(told.contains("manifest: TrainingRun cot has no model: it is Pending"), "{told}");
    assert!(told.contains("artifacts: status.dataDigests of TrainingRun cot is empty"), "{told}");
    found.run = None;
    let told = checked(&found, true).to_string();
    assert!(told.contains("ring: the ring of the run is not declared"), "{told}");
}

#[test]
fn records_that_contradict_each_other_block() {
    let mut found = snapshot();
    found.run.as_mut().unwrap().status.as_mut().unwrap().model.as_mut().unwrap().files[0].size = 3;
    let told = checked(&found, false).to_string();
    assert!(told.contains("manifest: status.model of TrainingRun cot contradicts itself"), "{told}");

    // The verdict is about other gates than the spec has.
    let mut found = snapshot();
    found.evaluations[0].spec.gates.pop();
    let told = checked(&found, false).to_string();
    assert!(told.contains("lite: its verdict is about other gates"), "{told}");

    let mut found = snapshot();
    found.configuration = Some(of(json!({ "metadata": { "name": "codex-t-cot" }, "data": { "config.yaml": "a: b" } })));
    let told = checked(&found, false).to_string();
    assert!(told.contains("artifacts: the ConfigMap codex-t-cot cannot be used: "), "{told}");
}

#[test]
fn a_sign_off_waives_a_failed_gate_of_exactly_this_model() {
    let mut found = snapshot();
    found.evaluations[0].status = of(verdict("Failed"));
    let sign_off = |model: Sha256| -> SignOff {
        of(json!({
            "apiVersion": "codex-ml.dev/v1alpha1", "kind": "SignOff", "metadata": { "name": "ada", "namespace": "team" },
            "spec": {
                "reasoningPod": "rc", "by": "ada", "reason": "read it", "modelDigest": model,
                "reportDigest": Sha256::of("report"),
            },
        }))
    };
    found.sign_offs = vec![sign_off(manifest().digest().0)];
    assert_eq!(state(&checked(&found, false), Subject::Evaluations), State::Waived);
    found.sign_offs = vec![sign_off(Sha256::of("another"))];
    let told = checked(&found, false).to_string();
    assert!(told.contains("lite: SignOff ada does not count: it names the model "), "{told}");
}

#[test]
fn present_servers_do_not_fill_the_quota() {
    let mut found = snapshot();
    found.quotas = vec![of(json!({
        "metadata": { "name": "compute" }, "spec": { "hard": { "requests.cpu": "200m" } },
        "status": { "used": { "requests.cpu": "200m" } },
    }))];
    assert_eq!(state(&checked(&found, false), Subject::Resources), State::Blocked);
    let resources = json!({ "requests": { "cpu": "0.2" } });
    let container = json!({ "name": "server", "resources": resources });
    found.servers = vec![of(json!({ "metadata": { "name": "s" }, "spec": { "containers": [container] } }))];
    assert_eq!(state(&checked(&found, false), Subject::Resources), State::Holds);
}

#[test]
fn the_weights_of_policies_count() {
    let policy = of(json!({
        "apiVersion": "codex-ml.dev/v1alpha1", "kind": "PromotionPolicy", "metadata": { "name": "p", "namespace": "team" },
        "spec": { "readiness": { "evidence": "0", "traces": "1", "deployment": "0" } },
    }));
    let policies = Policies { of_namespace: vec![policy], of_cluster: Vec::new() };
    let stated = gather::chain(&snapshot(), &policies).unwrap().weights().unwrap();
    let traces = Weights { evidence: 0.0, traces: 1.0, deployment: 0.0 };
    assert_eq!(stated, [("PromotionPolicy p".to_owned(), traces)]);
}

#[test]
fn the_map_shows_what_the_cluster_has() {
    let chain = chain(&snapshot());
    let settings = settings(Some(&chain), &[], &["evaluation".to_owned(), "deployment".to_owned()]).unwrap();
    let shown: Vec<_> = settings.iter().map(|it| format!("{} -> {}", it.path, it.value)).collect();
    let deployment = ["deployment.rollout_ring -> 0D_base_", "deployment.preset -> custom"];
    assert_eq!(shown, [&["evaluation.preset -> cot-lite"][..], &deployment].concat());
}

#[test]
fn the_map_reads_a_template_in_a_config_map() {
    let text = "defaults: [cot-starter, {/reasoning: baseline}]\n";
    let mut found = snapshot();
    let run = found.run.as_mut().unwrap();
    run.spec.template = "ours".to_owned();
    run.spec.template_from = Some(of(json!({
        "configMap": { "name": "templates", "key": "ours.yaml" }, "sha256": Sha256::of(text).to_string(),
    })));
    let mode = |found: &Snapshot| settings(Some(&chain(found)), &[], &["trace_mode".to_owned()]);
    assert!(mode(&found).unwrap_err().contains("which the namespace team does not hold"));
    found.template = Some(of(json!({ "metadata": { "name": "templates" }, "data": { "ours.yaml": text } })));
    assert_eq!(mode(&found).unwrap()[0].value, "weights");
}
