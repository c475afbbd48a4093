//! Golden tokens: from the evaluator's report through the sealed status into the promotion statement.

use codex_crds::{ConditionType, EvaluationStatus};
use codex_plan::{
    Effect, Received,
    conditions::find,
    evaluation::{self, ObservedEvaluation},
    reasoning_pod,
};
use codex_provenance::{
    DataDigest, Sha256,
    golden::{Golden, GoldenPrompt, Tokens},
};
use codex_reports::{Device, EvaluationState, Kind, Report, State};
use codex_verdict::Verdict;
use kube::ResourceExt;
use serde_json::json;

use crate::{
    make,
    properties::{ready_to_sign, trained},
    world::World,
};

fn golden() -> Golden {
    let tokens = Tokens { prompt: vec![4, 5], tokens: vec![6, 7], log_probabilities: vec![-0.25, -1.5] };
    Golden {
        path: "cpu-f32".to_owned(),
        instruction_set: "avx2".to_owned(),
        kernels: 1,
        tolerance: "0.01".to_owned(),
        prompts: vec![GoldenPrompt::new(&tokens)],
    }
}

/// Returns an Evaluation whose Job exists.
fn started() -> ObservedEvaluation {
    let mut observed = World::new().observed_evaluation();
    observed.run = Some(trained());
    let first = evaluation::plan(&observed, make::at(90));
    observed.object.status = Some(first.status);
    observed.job = first.desired.jobs.into_iter().next();
    observed
}

fn report(observed: &ObservedEvaluation, state: EvaluationState) -> Report {
    let config = observed.job.as_ref().unwrap().annotations()["codex-ml.dev/config-digest"].parse().ok();
    make::report(Kind::Evaluation, "evaluation-1", "pod", 1, config, State::Evaluation(state))
}

/// Lets the evaluator send a report while its pod runs, and plans.
fn reported(observed: &mut ObservedEvaluation, state: EvaluationState) -> EvaluationStatus {
    let report = report(observed, state);
    observed.pods = vec![make::from(json!({
        "metadata": {"name": "pod", "uid": "pod", "namespace": "team"},
        "status": {"containerStatuses": [{
            "name": "any", "image": "codex:dev", "imageID": "sha256:image", "ready": true, "restartCount": 0,
            "state": {"running": {"startedAt": make::at(91)}},
        }]},
    }))];
    observed.reports = vec![Received { report, pod: "pod".to_owned(), at: make::at(95), contradiction: None }];
    evaluation::plan(observed, make::at(100)).status
}

/// Ends the pod with this termination message, forgets what was received, as a restart does, and plans.
fn ended(mut observed: ObservedEvaluation, status: EvaluationStatus, message: &Report) -> EvaluationStatus {
    observed.object.status = Some(status);
    observed.reports.clear();
    observed.pods = vec![make::from(json!({
        "metadata": {"name": "pod", "uid": "pod", "namespace": "team"},
        "status": {"containerStatuses": [{
            "name": "any", "image": "codex:dev", "imageID": "sha256:image", "ready": false, "restartCount": 0,
            "state": {"terminated": {
                "exitCode": 0, "message": serde_json::to_string(message).unwrap(), "startedAt": make::at(91),
                "finishedAt": make::at(96),
            }},
        }]},
    }))];
    evaluation::plan(&observed, make::at(101)).status
}

fn state(golden_tokens: Option<Golden>) -> EvaluationState {
    EvaluationState { golden_tokens, ..make::evaluated("a", 500) }
}

#[test]
fn golden_tokens_are_recorded_and_covered_by_the_report_digest() {
    let (mut with, mut without) = (started(), started());
    let recorded = reported(&mut with, state(Some(golden())));
    assert_eq!(recorded.golden_tokens, Some(golden()));
    let plain = reported(&mut without, state(None));
    assert_eq!(plain.golden_tokens, None);
    assert_ne!(recorded.report_digest, plain.report_digest);
    // The termination message has no room for them. The status keeps what the whole report said.
    let message = Report { digest: None, ..report(&with, state(None)) };
    let judged = ended(with.clone(), recorded.clone(), &message);
    assert_eq!((judged.verdict, &judged.golden_tokens), (Some(Verdict::Passed), &Some(golden())));
    assert_eq!(judged.report_digest, recorded.report_digest);
    // Other numbers are another report, which had none.
    let other = Report { digest: None, ..report(&with, make::evaluated("a", 499)) };
    let judged = ended(with, recorded, &other);
    assert_eq!(judged.golden_tokens, None);
}

#[test]
fn the_device_that_scored_is_recorded_and_kept() {
    let mut observed = started();
    let device = Device {
        name: "NVIDIA H100 80GB HBM3".to_owned(),
        engine: "candle-cuda-bf16".to_owned(),
        driver: Some("580.65.06".to_owned()),
        memory_bytes: Some(85_520_809_984),
        fallback: None,
    };
    let recorded = reported(&mut observed, EvaluationState { device: Some(device), ..state(None) });
    let status = recorded.device.clone().unwrap();
    assert_eq!((status.name.as_str(), status.memory_bytes), ("NVIDIA H100 80GB HBM3", Some(85_520_809_984)));
    // The termination message may have no room for it.
    let message = Report { digest: None, ..report(&observed, state(None)) };
    assert_eq!(ended(observed, recorded, &message).device, Some(status));
}

#[test]
fn a_page_is_asked_for_and_its_place_is_recorded() {
    let mut observed = World::new().observed_evaluation();
    (observed.run, observed.object.spec.page) = (Some(trained()), true);
    let first = evaluation::plan(&observed, make::at(90));
    observed.object.status = Some(first.status);
    observed.job = first.desired.jobs.into_iter().next();
    let pod = observed.job.as_ref().unwrap().spec.as_ref().unwrap().template.spec.as_ref().unwrap();
    let args = pod.containers[0].args.as_ref().unwrap();
    let gates = args.iter().position(|arg| arg == "--page").map(|place| &args[place + 1]).unwrap();
    let gates: Vec<codex_verdict::GateSpec> = serde_json::from_str(gates).unwrap();
    assert_eq!(gates, observed.object.spec.gates);
    let page = DataDigest(Sha256::of("page"));
    let with_page = || EvaluationState { page: Some(page), ..state(None) };
    let found = reported(&mut observed, with_page()).page.unwrap();
    assert!(found.sha256 == page && found.path.ends_with("/evaluations/evaluation-1/report.html"), "{found:?}");
    // A pod that was not asked for a page links none.
    assert_eq!(reported(&mut started(), with_page()).page, None);
}

#[test]
fn malformed_golden_tokens_are_refused() {
    let malformed = Golden { tolerance: "much".to_owned(), ..golden() };
    let status = reported(&mut started(), state(Some(malformed)));
    assert_eq!((status.report_digest, &status.golden_tokens), (None, &None));
    let ready = find(&status.conditions, ConditionType::Ready).unwrap();
    assert!(ready.message.contains("golden tokens: tolerance must be a number from 0 to 100"), "{ready:?}");
}

#[test]
fn the_statement_has_the_golden_tokens_of_the_sealed_status() {
    let mut observed = ready_to_sign("run-1");
    let (name, evaluation) = observed.evaluations.iter_mut().next().unwrap();
    let (name, status) = (name.clone(), evaluation.status.as_mut().unwrap());
    status.golden_tokens = Some(golden());
    let data = status.data_digests.iter().map(|file| (file.name.clone(), file.sha256)).collect();
    let metrics = make::evaluated("a", 500).metrics;
    let model = status.model.as_ref().unwrap().digest;
    // Tokens that the report digest does not cover prove nothing.
    assert!(reasoning_pod::plan(&observed, make::at(9)).effects.is_empty());
    let status = observed.evaluations.get_mut(&name).unwrap().status.as_mut().unwrap();
    status.report_digest = Some(codex_verdict::report_digest(model, &data, &metrics, Some(&golden())));
    let plan = reasoning_pod::plan(&observed, make::at(9));
    let [Effect::SignPromotion { promotion, .. }] = &plan.effects[..] else { panic!("{plan:?}") };
    assert_eq!(promotion.reasons.evaluations[0].golden_tokens, Some(golden()));
    codex_verdict::recheck(model, &promotion.reasons.evaluations[0]).unwrap();
}
