//! Properties that hold for every observation.

mod damaged;

use std::collections::{BTreeMap, BTreeSet};

use codex_crds::{Evaluation, EvaluationStatus, TrainingRun, annotation};
use codex_plan::{
    Admission, Desired, Effect, Received, StatusSeal, evaluation,
    evaluation::ObservedEvaluation,
    reasoning_pod::{self, Bundle, ObservedReasoningPod, SignedModel, SignedPromotion, Signer, bundle_names},
};
use codex_provenance::{
    OmsPayloadDigest, PromotionDigest, Sha256,
    promotion::{PREDICATE_TYPE, Promotion, PromotionKey},
};
use codex_reports::{DataFile, EvaluationState, Kind, Report, State};
use codex_verdict::{Decimal, Ring, Verdict};
use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt;
use proptest::prelude::*;
use serde_json::json;

use crate::{
    make,
    world::{End, World},
};

/// Returns a run that succeeded by its own plans.
pub(crate) fn trained() -> TrainingRun {
    let mut world = World::new();
    world.reconcile();
    world.sync_jobs();
    world.start_pods();
    let pod = world.working("codex-t-cot").unwrap();
    world.end("codex-t-cot", &pod, &End::Finished(Box::new(State::Training(make::trained("a")))), true);
    world.sync_jobs();
    world.reconcile();
    assert!(world.run.status.as_ref().unwrap().model.is_some());
    world.run
}

/// The same run, which recorded what computed its model, and an image of a registry.
pub(crate) fn reproducible() -> TrainingRun {
    let mut run = trained();
    let status = run.status.as_mut().unwrap();
    let codex_reports::Computation { program, engine, kernels, .. } = make::computation();
    status.computation =
        Some(codex_crds::ComputationStatus { program, engine, kernels, node: Some("node-0".to_owned()), mixed: None });
    status.work.image_id = Some("registry/codex@sha256:0123".to_owned());
    run
}

/// An evaluator's pod that has ended with this report.
fn evaluator(report: &Report) -> k8s_openapi::api::core::v1::Pod {
    let message = serde_json::to_string(report).unwrap();
    make::from(json!({
        "metadata": {"name": "pod", "uid": "pod"},
        "status": {"containerStatuses": [{
            "name": "evaluator", "image": "codex:dev", "imageID": "sha256:image", "ready": true, "restartCount": 0,
            "state": {"terminated": {
                "startedAt": "2027-01-15T08:00:00Z", "finishedAt": "2027-01-15T08:00:01Z", "exitCode": 0, "message": message,
            }},
        }]},
    }))
}

/// Returns an evaluation that reached a verdict by its own plans.
pub(crate) fn judged(run: &TrainingRun, name: &str, right: u64) -> Evaluation {
    let mut object = make::evaluation();
    object.metadata.name = Some(name.to_owned());
    object.metadata.uid = Some(format!("uid of {name}"));
    let mut observed = ObservedEvaluation {
        settings: make::settings(),
        run: Some(run.clone()),
        compared: BTreeMap::new(),
        references: make::from(json!({"claims": ["output"]})),
        job: None,
        pods: Vec::new(),
        reports: Vec::new(),
        refused: Vec::new(),
        warnings: Vec::new(),
        reads: make::reads(),
        admission: Admission::default(),
        seal: StatusSeal::Valid,
        status_written_at: None,
        obstruction: None,
        object,
    };
    let job = evaluation::plan(&observed, make::at(0)).desired.jobs.remove(0);
    let config = job.annotations()[annotation::CONFIG_DIGEST].parse().ok();
    let uid = observed.object.uid().unwrap();
    let state = State::Evaluation(make::evaluated("a", right));
    let report = make::report(Kind::Evaluation, &uid, "pod", 1, config, state);
    observed.pods = vec![evaluator(&report)];
    observed.reports = vec![Received { report, pod: "pod".to_owned(), at: make::at(1), contradiction: None }];
    observed.job = Some(job);
    let status = evaluation::plan(&observed, make::at(2)).status;
    assert!(status.completed_at.is_some());
    Evaluation { status: Some(status), ..observed.object }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Flaw {
    None,
    Missing,
    ForeignRun,
    FormerRun,
    Failed,
    Inconclusive,
    Waiting,
    OtherModel,
    Numbers,
    Gates,
    Word,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Worth {
    Absent,
    Unchecked,
    Valid,
    Foreign,
    Invalid,
    OtherKey,
}

#[derive(Clone, Debug)]
struct Case {
    run: bool,
    trained: bool,
    forged_model: bool,
    rings: bool,
    evaluations: Vec<Flaw>,
    signer: bool,
    oms: Worth,
    promotion: Worth,
    dry_run: bool,
    live: bool,
}

fn flaw() -> impl Strategy<Value = Flaw> {
    use Flaw::*;
    prop_oneof![
        10 => Just(None),
        1 => prop::sample::select(vec![
            Missing, ForeignRun, FormerRun, Failed, Inconclusive, Waiting, OtherModel, Numbers, Gates, Word,
        ]),
    ]
}

fn worth() -> impl Strategy<Value = Worth> {
    use Worth::*;
    prop_oneof![
        3 => Just(Absent), 6 => Just(Valid), 1 => prop::sample::select(vec![Unchecked, Foreign, Invalid, OtherKey]),
    ]
}

prop_compose! {
    fn case()(
        run in prop::bool::weighted(0.95), trained in prop::bool::weighted(0.9), forged_model in prop::bool::weighted(0.05),
        rings in prop::bool::weighted(0.85), evaluations in prop::collection::vec(flaw(), 1..4),
        signer in prop::bool::weighted(0.9), oms in worth(), promotion in worth(),
        dry_run in prop::bool::weighted(0.2), live in any::<bool>(),
    ) -> Case {
        Case { run, trained, forged_model, rings, evaluations, signer, oms, promotion, dry_run, live }
    }
}

fn bundle<T>(worth: Worth, valid: T) -> Bundle<T> {
    match worth {
        Worth::Absent => Bundle::Absent,
        Worth::Unchecked => Bundle::Unchecked,
        Worth::Valid | Worth::OtherKey => Bundle::Valid(valid),
        Worth::Foreign => Bundle::Foreign("signed by another key".to_owned()),
        Worth::Invalid => Bundle::Invalid("no bundle".to_owned()),
    }
}

fn flawed(run: &TrainingRun, name: &str, flaw: Flaw) -> Option<Evaluation> {
    let right = match flaw {
        Flaw::Failed => 100,
        Flaw::Inconclusive => 480,
        _ => 500,
    };
    let mut evaluation = judged(run, name, right);
    let status = evaluation.status.as_mut().unwrap();
    match flaw {
        Flaw::None | Flaw::Failed | Flaw::Inconclusive => {}
        Flaw::Missing => return None,
        Flaw::ForeignRun => evaluation.spec.training_run = Some(String::from("another")),
        Flaw::FormerRun => status.training_run_uid = Some("run-0".to_owned()),
        Flaw::Waiting => (status.verdict, status.completed_at) = (None, None),
        Flaw::OtherModel => status.model.as_mut().unwrap().digest = make::model("b").digest,
        Flaw::Numbers => status.metrics[0].n = 501,
        Flaw::Gates => evaluation.spec.gates.clear(),
        Flaw::Word => {
            *status = judged(run, name, 100).status.unwrap();
            status.verdict = Some(Verdict::Passed);
        }
    }
    Some(evaluation)
}

fn observe(case: &Case) -> ObservedReasoningPod {
    let mut run = trained();
    let evaluations: BTreeMap<String, Evaluation> = case
        .evaluations
        .iter()
        .enumerate()
        .filter_map(|(index, flaw)| Some((format!("e{index}"), flawed(&run, &format!("e{index}"), *flaw)?)))
        .collect();
    let model = run.status.as_ref().unwrap().model.as_ref().unwrap().digest;
    let mut object = make::pod();
    object.spec.evaluations = (0..case.evaluations.len()).map(|index| format!("e{index}")).collect();
    object.spec.dry_run = case.dry_run;
    if !case.rings {
        run.spec.rollout_ring = Ring::Main;
    }
    if case.forged_model {
        run.status.as_mut().unwrap().model.as_mut().unwrap().files[0].size += 1;
    }
    if !case.trained {
        run.status.as_mut().unwrap().completed_at = None;
    }
    let reported = |evaluation: &Evaluation| {
        let status = evaluation.status.as_ref()?;
        Some((status.report_digest?, status.gates_digest?))
    };
    let key = PromotionKey {
        predicate_type: PREDICATE_TYPE,
        model,
        ring: object.spec.rollout_ring.name().to_owned(),
        evaluations: evaluations.values().filter_map(reported).collect(),
        policies: Vec::new(),
    };
    let other = case.promotion == Worth::OtherKey;
    let key = if other { Sha256::of("another") } else { key.digest() };
    let template = json!({"spec": {"containers": [{"name": "server", "image": "former:1"}]}});
    let live: Deployment = make::from(json!({
        "metadata": {"name": "codex-s-rc", "annotations": {"codex-ml.dev/model-digest": "former"}},
        "spec": {"selector": {}, "replicas": 1, "template": template},
    }));
    ObservedReasoningPod {
        object,
        settings: make::settings(),
        run: case.run.then_some(run),
        evaluations,
        cycles: Vec::new(),
        candidate: None,
        trial: None,
        policies: Vec::new(),
        sign_offs: Vec::new(),
        promotions: Vec::new(),
        admission: Admission::default(),
        signer: if case.signer {
            Signer::Available { fingerprint: Sha256::of("key") }
        } else {
            Signer::Unavailable { fingerprint: Some(Sha256::of("key")), reason: "the key is lost".to_owned() }
        },
        trusted: Vec::new(),
        trusted_root: None,
        oms: bundle(
            case.oms,
            SignedModel { payload: OmsPayloadDigest(Sha256::of("payload")), signer: Sha256::of("key") },
        ),
        oms_again: BTreeMap::new(),
        promotion: bundle(
            case.promotion,
            SignedPromotion { digest: PromotionDigest(Sha256::of("promotion")), key, signer: Sha256::of("key") },
        ),
        promotion_again: BTreeMap::new(),
        deployment: case.live.then_some(live),
        autoscaler: None,
        gateway_api: false,
        http_route: None,
        canary: None,
        canary_pods: Vec::new(),
        activator: None,
        activator_pods: Vec::new(),
        tampered: false,
        pods: Vec::new(),
        reports: Vec::new(),
        former_pods: Vec::new(),
        incumbent: None,
        lent: Vec::new(),
        compared: Vec::new(),
        shadows: Vec::new(),
        foreign_pods: BTreeSet::new(),
        unprotected: None,
        endpoint_slices: Vec::new(),
        foreign_slices: Vec::new(),
        missing_bundles: BTreeSet::new(),
        held_bundles: BTreeSet::new(),
        held_proofs: BTreeMap::new(),
        refused: Vec::new(),
        warnings: Vec::new(),
        seal: StatusSeal::Valid,
        status_written_at: None,
        obstruction: None,
    }
}

fn template(desired: &Desired) -> Option<&k8s_openapi::api::core::v1::PodTemplateSpec> {
    desired.deployments.first().and_then(|deployment| deployment.spec.as_ref()).map(|spec| &spec.template)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn nothing_new_is_served_unless_the_whole_chain_holds(case in case()) {
        let observed = observe(&case);
        let plan = reasoning_pod::plan(&observed, make::at(9));
        let evidence = case.run && case.trained && !case.forged_model && case.rings && case.signer
            && case.evaluations.iter().all(|flaw| *flaw == Flaw::None);
        let usable = |worth| matches!(worth, Worth::Absent | Worth::Valid);
        let oms = usable(case.oms) || case.oms == Worth::OtherKey;
        let holds = evidence && oms && usable(case.promotion);
        let recorded = holds && case.oms != Worth::Absent && case.promotion == Worth::Valid;
        let former = observed.deployment.as_ref().map(|live| &live.spec.as_ref().unwrap().template);

        prop_assert_eq!(plan.status.blocked_by.is_empty(), holds, "{:?}", plan.status.blocked_by);
        if case.dry_run {
            prop_assert_eq!(&plan.desired, &Desired::default());
            prop_assert!(plan.effects.is_empty());
            prop_assert_eq!(plan.status.url, None);
        } else if recorded {
            let rolled = template(&plan.desired).unwrap();
            prop_assert!(Some(rolled) != former);
            let model = make::model("a").digest.to_string();
            let args = rolled.spec.as_ref().unwrap().containers[0].args.clone().unwrap();
            prop_assert!(args.contains(&model));
        } else {
            // Running servers stay, and nothing else starts.
            prop_assert_eq!(template(&plan.desired), former);
        }
        prop_assert_eq!(plan.effects.len(), usize::from(holds && !recorded && !case.dry_run));
        let named = plan.status.promotion.is_some();
        prop_assert!(!named || case.promotion == Worth::Valid, "a promotion is named before it is real");
    }

    #[test]
    fn everything_that_blocks_is_said_at_once(case in case()) {
        let plan = reasoning_pod::plan(&observe(&case), make::at(9));
        let said = |text: &str| plan.status.blocked_by.iter().any(|sentence| sentence.contains(text));
        prop_assert!(case.run || said("TrainingRun cot does not exist") || case.live && said("TrainingRun cot was removed"));
        prop_assert!(!case.run || case.trained || said("TrainingRun cot has no model yet"));
        prop_assert!(!case.run || case.rings || said("the rings differ"));
        prop_assert!(case.signer || said("the key is lost"));
        for (index, flaw) in case.evaluations.iter().enumerate() {
            prop_assert!(*flaw == Flaw::None || said(&format!("Evaluation e{index} ")), "{flaw:?}");
        }
    }

    #[test]
    fn another_gate_never_helps(right in 0_u64..=500, more in 1_usize..4, bound in 0..=100_u32) {
        let run = trained();
        let verdict = |gates: usize| {
            let mut evaluation = judged(&run, "e", right);
            let bound = format!("{:.2}", f64::from(bound) / 100.0);
            for _ in 0..gates {
                evaluation.spec.gates.push(make::from(json!({"metric": "trace_coverage", "min": bound})));
            }
            evaluation.status = None;
            reported(evaluation, &run, make::evaluated("a", right)).verdict.unwrap()
        };
        prop_assert!(verdict(more) <= verdict(0));
    }
}

/// Returns the status of an evaluation whose pod has reported.
fn reported(object: Evaluation, run: &TrainingRun, state: EvaluationState) -> EvaluationStatus {
    let uid = object.uid().unwrap();
    let report = make::report(Kind::Evaluation, &uid, "pod", 1, None, State::Evaluation(state));
    let observed = ObservedEvaluation {
        object,
        settings: make::settings(),
        run: Some(run.clone()),
        compared: BTreeMap::new(),
        references: make::from(json!({})),
        job: None,
        pods: vec![evaluator(&report)],
        reports: vec![Received { report, pod: "pod".to_owned(), at: make::at(1), contradiction: None }],
        refused: Vec::new(),
        warnings: Vec::new(),
        reads: make::reads(),
        admission: Admission::default(),
        seal: StatusSeal::Valid,
        status_written_at: None,
        obstruction: None,
    };
    evaluation::plan(&observed, make::at(2)).status
}

#[test]
fn a_share_with_its_own_bounds_is_refused() {
    let run = trained();
    let evaluation = Evaluation { status: None, ..judged(&run, "e", 500) };
    let mut state = make::evaluated("a", 500);
    let estimate = json!({
        "kind": "estimate", "value": 1.0, "lower": 1.0, "upper": 1.0, "n": 500, "confidence": 0.95, "method": "bootstrap",
    });
    state.metrics.insert("exact_match".to_owned(), make::from(estimate));
    let status = reported(evaluation, &run, state);
    assert_eq!((status.verdict, status.metrics.len()), (None, 0));
    let stalled = status.conditions.iter().find(|condition| condition.type_ == "Stalled").unwrap();
    assert_eq!(
        stalled.message,
        "the evaluator's report is refused: its exact_match is a measurement of kind estimate, but exact_match is of kind share"
    );
}

/// Returns an observation in which the model of the run `uid` can be promoted; two runs may have made the same model.
pub(crate) fn ready_to_sign(uid: &str) -> ObservedReasoningPod {
    let case = Case {
        run: true,
        trained: true,
        forged_model: false,
        rings: true,
        evaluations: vec![Flaw::None],
        signer: true,
        oms: Worth::Valid,
        promotion: Worth::Absent,
        dry_run: false,
        live: false,
    };
    let mut observed = observe(&case);
    observed.run.as_mut().unwrap().metadata.uid = Some(uid.to_owned());
    for evaluation in observed.evaluations.values_mut() {
        evaluation.status.as_mut().unwrap().training_run_uid = Some(uid.to_owned());
    }
    observed
}

#[test]
fn files_that_the_spec_does_not_name_reach_no_status() {
    let mut world = World::new();
    world.reconcile();
    world.sync_jobs();
    world.start_pods();
    let mut state = make::training(9);
    let strange = |index: usize| DataFile { name: "x".repeat(30 + index), ..state.data[0].clone() };
    let strangers: Vec<_> = (0..20).map(strange).collect();
    state.data.splice(0..0, strangers);
    let pod = world.working("codex-t-cot").unwrap();
    world.say("codex-t-cot", &pod, State::Training(state));
    world.reconcile();
    let read = world.run.status.unwrap().data_digests;
    assert_eq!(read.iter().map(|file| &*file.name).collect::<Vec<_>>(), ["file", "made"]);
}

#[test]
fn runs_that_made_the_same_model_have_a_promotion_each() {
    let kept = ["run-1", "run-2"].map(|uid| {
        let mut observed = ready_to_sign(uid);
        let plan = reasoning_pod::plan(&observed, make::at(9));
        let [Effect::SignPromotion { config_map, promotion, .. }] = &plan.effects[..] else { panic!("{plan:?}") };
        let names = bundle_names(&observed.object, observed.run.as_ref(), &observed.evaluations, &observed.policies);
        assert_eq!(names.promotion, config_map.metadata.name, "the ConfigMap has the name that is looked up");
        let key = promotion.key().digest();
        let signer = Sha256::of("key");
        observed.promotion = Bundle::Valid(SignedPromotion { digest: promotion.digest(), key, signer });
        let plan = reasoning_pod::plan(&observed, make::at(10));
        let name = names.promotion.unwrap();
        assert_eq!(plan.status.promotion.as_ref().map(|promotion| &promotion.bundle), Some(&name));
        let volumes = template(&plan.desired).and_then(|template| template.spec.as_ref()?.volumes.as_ref()).unwrap();
        assert!(
            volumes.iter().any(|it| it.config_map.as_ref().is_some_and(|mounted| mounted.name == name)),
            "{volumes:?}"
        );
        (key, name)
    });
    assert_eq!(kept[0].0, kept[1].0, "the promotion keys are equal");
    assert_ne!(kept[0].1, kept[1].1);
}

/// Returns a world in which every object has children, reports and a status.
pub(crate) fn busy() -> World {
    let mut world = World::new();
    for _ in 0..3 {
        world.second += 20;
        world.reconcile();
        world.sync_jobs();
        world.start_pods();
        for (job, state) in [
            ("codex-t-cot", State::Training(make::trained("a"))),
            ("codex-e-lite", State::Evaluation(make::evaluated("a", 500))),
        ] {
            if let Some(pod) = world.working(job) {
                world.end(job, &pod, &End::Finished(Box::new(state)), true);
            }
        }
        world.sync_jobs();
        world.sync_servers(true);
    }
    for _ in 0..6 {
        world.reconcile();
        world.sync_servers(true);
    }
    assert!(world.deployment.is_some() && world.observed_pod().status_written_at.is_some());
    world
}

/// After an upgrade that changes the predicate type, the promotion is signed again by itself. The servers stay meanwhile.
#[test]
fn a_promotion_with_a_former_statement_is_signed_again() {
    let mut world = busy();
    let before = world.writes.len();
    let former = world.age_promotion();
    world.restart();
    for _ in 0..4 {
        world.second += 5;
        world.reconcile();
        assert!(world.deployment.is_some());
        assert!(world.pod.status.as_ref().unwrap().blocked_by.is_empty());
        world.sync_servers(true);
    }
    let writes = &world.writes[before..];
    let of = |what: &str| writes.iter().filter(|write| *write == what).count();
    assert_eq!((of("promotion"), of("signature"), of("no servers")), (1, 0, 0), "{writes:?}");
    let status = world.pod.status.as_ref().unwrap();
    assert_ne!(status.promotion.as_ref().unwrap().bundle, former);
    assert_eq!(status.phase, Some(codex_crds::ReasoningPodPhase::Serving));
}

/// A promotion is signed from the sealed metrics. Gate values that were edited in a status are not copied.
#[test]
fn a_promotion_states_what_a_verifier_confirms() {
    let mut observed = ready_to_sign("run-1");
    for evaluation in observed.evaluations.values_mut() {
        for gate in &mut evaluation.status.as_mut().unwrap().gates {
            gate.n = Some(1_000_000);
            gate.value = Some(Decimal("1".to_owned()));
        }
    }
    let plan = reasoning_pod::plan(&observed, make::at(9));
    let [Effect::SignPromotion { promotion, .. }] = &plan.effects[..] else { panic!("{plan:?}") };
    assert_eq!(promotion.reasons.namespace, "team");
    assert_eq!(promotion.reasons.training.run.uid, "run-1");
    let read = Promotion::read(&promotion.payload()).unwrap();
    let [evaluation] = &read.reasons.evaluations[..] else { panic!("{read:?}") };
    codex_verdict::recheck(read.model, evaluation).unwrap();
    assert!(evaluation.config_digest.is_some() && !evaluation.preset.is_empty());
    assert!(evaluation.completed_at.parse::<jiff::Timestamp>().is_ok(), "{}", evaluation.completed_at);
    assert!(evaluation.gates.iter().all(|gate| gate.n != Some(1_000_000)));
}
