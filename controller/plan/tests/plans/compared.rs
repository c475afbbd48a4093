//! Evaluations that are compared with other ones.

use codex_crds::{ConditionType, EvaluationPhase, EvaluationStatus};
use codex_plan::{
    Plan, Received,
    conditions::find,
    evaluation::{self, ObservedEvaluation},
};
use codex_provenance::{DataDigest, EvidenceStrength, Sha256};
use codex_reports::{EvaluationState, Kind, State};
use codex_verdict::{Measurement, Verdict};
use kube::ResourceExt;
use serde_json::{Value, json};

use crate::{
    make,
    properties::{judged, trained},
    world::World,
};

/// An Evaluation that can start and is compared with `before`, which had 100 of 500 right answers.
fn observed(gate: &Value) -> ObservedEvaluation {
    let run = trained();
    let mut observed = World::new().observed_evaluation();
    observed.object.spec.gates = vec![make::from(gate.clone())];
    observed.compared.insert("before".to_owned(), judged(&run, "before", 100));
    observed.run = Some(run);
    observed
}

fn better() -> Value {
    json!({"metric": "exact_match", "betterThan": {"evaluation": "before"}, "confidence": "0.95"})
}

fn plan(observed: &ObservedEvaluation) -> Plan<EvaluationStatus> {
    evaluation::plan(observed, make::at(100))
}

fn ready(plan: &Plan<EvaluationStatus>) -> (String, String) {
    let ready = find(&plan.status.conditions, ConditionType::Ready).unwrap();
    (ready.reason.clone(), ready.message.clone())
}

/// Carries out the plan that creates the Job, and lets its pod report `state` and end.
fn reported(mut observed: ObservedEvaluation, state: EvaluationState) -> Plan<EvaluationStatus> {
    let first = plan(&observed);
    observed.object.status = Some(first.status.clone());
    let job = first.desired.jobs.into_iter().next().unwrap();
    let config = job.annotations()["codex-ml.dev/config-digest"].parse().ok();
    observed.job = Some(job);
    let report = make::report(Kind::Evaluation, "evaluation-1", "pod", 1, config, State::Evaluation(state));
    observed.pods = vec![make::from(json!({
        "metadata": {"name": "pod", "uid": "pod", "namespace": "team"},
        "status": {"containerStatuses": [{
            "name": "any", "image": "codex:dev", "imageID": "sha256:image", "ready": false, "restartCount": 0,
            "state": {"terminated": {
                "exitCode": 0, "message": serde_json::to_string(&report).unwrap(), "startedAt": make::at(90),
                "finishedAt": make::at(95),
            }},
        }]},
    }))];
    observed.reports = vec![Received { report, pod: "pod".to_owned(), at: make::at(95), contradiction: None }];
    plan(&observed)
}

#[test]
fn the_job_is_given_the_outcomes_of_the_reference_and_their_digest() {
    let observed = observed(&better());
    let plan = plan(&observed);
    let before = observed.compared["before"].status.clone().unwrap();
    let outcomes = before.outcomes.unwrap();
    assert_eq!(outcomes.claim_name, "output");
    assert!(outcomes.path.ends_with("/run-1/evaluations/uid of before"), "{}", outcomes.path);
    let pod = plan.desired.jobs[0].spec.clone().unwrap().template.spec.unwrap();
    let args = pod.containers[0].args.clone().unwrap();
    assert!(args.contains(&"reference-before=/references/before/outcomes.json".to_owned()), "{args:?}");
    let mounts = pod.containers[0].volume_mounts.clone().unwrap();
    let mount = mounts.iter().find(|mount| mount.mount_path == "/references/before").unwrap();
    assert_eq!((mount.sub_path.as_ref(), mount.read_only), (Some(&outcomes.path), Some(true)));
    let config = &plan.desired.config_maps[0].data.clone().unwrap()["config.yaml"];
    assert!(config.contains("name: reference-before") && config.contains(&outcomes.sha256.to_string()), "{config}");
    assert_eq!(plan.status.references[0].outcomes, outcomes.sha256);
    // A reference with other outcomes is another configuration.
    let mut other = observed;
    let status = other.compared.get_mut("before").unwrap().status.as_mut().unwrap();
    status.outcomes.as_mut().unwrap().sha256 = DataDigest(Sha256::of("others"));
    assert_ne!(self::plan(&other).status.config_digest, plan.status.config_digest);
}

#[test]
fn what_cannot_be_compared_is_said_before_a_pod_starts() {
    let said = |edit: fn(&mut ObservedEvaluation)| {
        let mut observed = observed(&better());
        edit(&mut observed);
        let plan = plan(&observed);
        assert!(plan.desired.jobs.is_empty() && plan.status.config_digest.is_none());
        let (reason, message) = ready(&plan);
        (reason, message, plan.status.phase.unwrap())
    };
    let (reason, message, phase) = said(|it| it.compared.clear());
    assert_eq!((reason.as_str(), phase), ("NotFound", EvaluationPhase::Pending));
    assert_eq!(message, "spec.gates[] names Evaluation \"before\", which does not exist in this namespace: create it");
    let (reason, message, phase) = said(|it| it.compared.get_mut("before").unwrap().status = None);
    assert_eq!((reason.as_str(), phase), ("WaitingForReference", EvaluationPhase::Pending));
    assert_eq!(message, "Evaluation before has no result yet");
    let (reason, message, phase) = said(|it| {
        it.compared.get_mut("before").unwrap().status.as_mut().unwrap().outcomes = None;
    });
    assert_eq!((reason.as_str(), phase), ("InvalidConfiguration", EvaluationPhase::Stalled));
    assert!(message.starts_with("Evaluation before recorded no outcomes"), "{message}");
    let (_, message, _) = said(|it| it.object.spec.overrides = vec!["evaluation.max_new_tokens=9".to_owned()]);
    assert!(message.contains("its settings are not those of this Evaluation"), "{message}");
    let (_, message, _) = said(|it| {
        let status = it.compared.get_mut("before").unwrap().status.as_mut().unwrap();
        status.report_digest = None;
    });
    assert!(message.starts_with("Evaluation before failed, so nothing can be compared with it"), "{message}");
    let (_, message, _) = said(|it| {
        let before = it.compared.remove("before").unwrap();
        it.compared.insert("lite".to_owned(), before);
        it.object.spec.gates[0].better_than.as_mut().unwrap().evaluation = "lite".to_owned();
    });
    assert_eq!(message, "spec.gates[] compares the Evaluation with itself: name another Evaluation");
    let (_, message, _) = said(|it| it.object.spec.gates[0].metric = "perplexity".to_owned());
    assert_eq!(
        message,
        "Evaluation before did not measure perplexity: create it again under another name with the override \
         evaluation.metrics=[perplexity] and compare with that"
    );
    // The size of batches and what else is measured decide nothing.
    let mut observed = observed(&better());
    observed.object.spec.overrides = vec!["evaluation.batch_size=9".to_owned(), "evaluation.metrics=[bleu]".to_owned()];
    assert_eq!(plan(&observed).desired.jobs.len(), 1);
}

#[test]
fn gates_decide_what_is_measured_and_their_power_is_told_before_a_pod_starts() {
    let observed = |gate: Value, overrides: &[&str]| {
        let mut observed = observed(&gate);
        observed.object.spec.overrides = overrides.iter().map(|&text| text.to_owned()).collect();
        observed
    };
    let bleu = json!({"metric": "bleu", "min": "30", "confidence": "0.9"});
    let of = plan(&observed(bleu.clone(), &["evaluation.confidence=0.9"]));
    let config = &of.desired.config_maps[0].data.clone().unwrap()["config.yaml"];
    assert!(config.contains("- bleu\n"), "{config}");
    let (reason, message) = ready(&plan(&observed(bleu, &[])));
    assert_eq!(reason, "InvalidConfiguration");
    assert!(
        message.starts_with("spec.gates[0].confidence: the gate on bleu has confidence 0.9, but its bounds"),
        "{message}"
    );

    let resolved = |gate: Value, overrides: &[&str]| {
        let plan = plan(&observed(gate, overrides));
        assert_eq!(plan.desired.jobs.len(), 1, "a notice refuses nothing");
        find(&plan.status.conditions, ConditionType::ConfigResolved).unwrap().message.clone()
    };
    let exact = json!({"metric": "exact_match", "min": "0.95", "confidence": "0.95"});
    let told = resolved(exact.clone(), &["evaluation.limit=58"]);
    assert!(
        told.contains(" is valid; notice: the gate on exact_match cannot pass: at most 58 items are scored"),
        "{told}"
    );
    assert!(resolved(exact, &["evaluation.limit=59"]).ends_with(" is valid"));
}

#[test]
fn a_contradicted_comparison_is_no_result() {
    let failed = |edit: fn(&mut EvaluationState)| {
        let mut state = make::compared("a", 450, (360, 10));
        edit(&mut state);
        let plan = reported(observed(&better()), state);
        assert_eq!(plan.status.phase, Some(EvaluationPhase::Failed));
        assert_eq!(plan.status.verdict, None);
        ready(&plan)
    };
    let (reason, message) = failed(|it| {
        let pairs = Measurement::Duel { wins: 400, ties: 90, losses: 10 };
        it.metrics.insert("exact_match@before".to_owned(), pairs);
    });
    assert_eq!(reason, "Contradiction");
    assert_eq!(
        message,
        "the evaluator's report is refused: its exact_match@before is contradicted: its difference is 0.78, but the model has \
         0.9 and the reference 0.2"
    );
    let (reason, message) = failed(|it| it.data.last_mut().unwrap().sha256 = DataDigest(Sha256::of("others")));
    assert_eq!(reason, "DataMismatch");
    assert!(message.starts_with("the outcomes of Evaluation before: the pod read a file with SHA-256 "), "{message}");
    let (reason, message) = failed(|it| drop(it.data.pop()));
    assert_eq!(reason, "DataMismatch");
    assert!(message.starts_with("the pod reported no digest for the outcomes of Evaluation before"), "{message}");
}

#[test]
fn a_proven_improvement_passes_and_an_unproven_one_does_not() {
    let plan = reported(observed(&better()), make::compared("a", 450, (360, 10)));
    assert_eq!(plan.status.verdict, Some(Verdict::Passed));
    assert_eq!(plan.status.gates[0].p_value.as_ref().unwrap().0, "0.000001");
    assert_eq!(plan.status.references[0].evaluation, "before");
    // The evidence is as strong as that of the reference at most.
    assert_eq!(plan.status.evidence, Some(EvidenceStrength::Weak));
    let plan = reported(observed(&better()), make::compared("a", 102, (12, 10)));
    assert_eq!(plan.status.verdict, Some(Verdict::Inconclusive));
    let plan = reported(observed(&better()), make::compared("a", 50, (10, 60)));
    assert_eq!(plan.status.verdict, Some(Verdict::Failed));
    // Without the comparison nothing is decided.
    let plan = reported(observed(&better()), {
        let mut state = make::compared("a", 450, (360, 10));
        state.metrics.remove("exact_match@before");
        state
    });
    assert_eq!(plan.status.verdict, Some(Verdict::Inconclusive));
}
