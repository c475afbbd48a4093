//! Runs that reproduce another one: what holds them to it, and every verdict.

use codex_crds::{ConditionType, TrainingRun, TrainingRunPhase, TrainingRunStatus};
use codex_plan::{
    Effect, Plan,
    conditions::find,
    reasoning_pod::{Bundle, Signer},
    training_run::{self, ObservedTrainingRun, statement},
};
use codex_provenance::Sha256;
use codex_reports::{Computation, Kind, Stage, State, TrainingState};
use k8s_openapi::{
    api::{batch::v1::Job, core::v1::PodSpec},
    apimachinery::pkg::apis::meta::v1::Condition,
};
use kube::ResourceExt;
use serde_json::json;

use crate::{make, properties::reproducible, world::World};

/// A run that reproduces the run `cot`, which has its model.
fn observed() -> ObservedTrainingRun {
    let mut observed = World::new().observed_run();
    observed.object.metadata.name = Some("again".to_owned());
    observed.object.metadata.uid = Some("run-2".to_owned());
    observed.object.spec.reproduces = Some(make::from(json!({"name": "cot"})));
    observed.reproduced = Some(reproducible());
    observed.signer = Some(Signer::Available { fingerprint: Sha256::of("key") });
    observed
}

fn plan(observed: &ObservedTrainingRun) -> Plan<TrainingRunStatus> {
    training_run::plan(observed, make::at(100))
}

/// Carries out the status of the next plan.
fn record(observed: &mut ObservedTrainingRun) -> Plan<TrainingRunStatus> {
    let plan = plan(observed);
    observed.object.status = Some(plan.status.clone());
    plan
}

/// The same, with a Job that has one running pod.
fn begun() -> ObservedTrainingRun {
    let mut observed = observed();
    assert!(record(&mut observed).desired.jobs.is_empty(), "the target is recorded before the Job exists");
    let job = record(&mut observed).desired.jobs.remove(0);
    observed.job = Some(Job { status: None, ..job });
    observed.pods.push(make::from(json!({
        "metadata": {"name": "a", "uid": "a", "creationTimestamp": make::at(0)},
        "spec": {"nodeName": "node-2", "containers": []},
        "status": {"containerStatuses": [{
            "name": "trainer", "image": "codex:dev", "imageID": "registry/codex@sha256:0123", "ready": true, "restartCount": 0,
            "state": {"running": {"startedAt": make::at(1)}},
        }]},
    })));
    observed
}

/// The same after its pod reported this state, and ended if the state is final.
fn said(mut observed: ObservedTrainingRun, state: TrainingState) -> ObservedTrainingRun {
    let job = observed.job.as_mut().unwrap();
    let digest = job.annotations()[codex_crds::annotation::CONFIG_DIGEST].parse().ok();
    let ended = match state.stage {
        Stage::Finished => Some((0, "Complete", "")),
        Stage::Failed => Some((2, "Failed", "PodFailurePolicy")),
        _ => None,
    };
    let report = make::report(Kind::TrainingRun, "run-2", "a", 1, digest, State::Training(state));
    if let Some((code, condition, reason)) = ended {
        let message = serde_json::to_string(&report).unwrap();
        observed.pods[0].status.as_mut().unwrap().container_statuses.as_mut().unwrap()[0].state =
            make::from(json!({"terminated": {"exitCode": code, "message": message, "finishedAt": make::at(90)}}));
        job.status = make::from(json!({"conditions": [
            {"type": condition, "status": "True", "reason": reason, "lastTransitionTime": make::at(90)},
        ]}));
    }
    observed.reports.push(codex_plan::Received { report, pod: "a".to_owned(), at: make::at(50), contradiction: None });
    observed
}

fn finished(contents: &str) -> TrainingState {
    TrainingState { computation: Some(make::computation()), ..make::trained(contents) }
}

fn condition(status: &TrainingRunStatus, kind: ConditionType) -> (&str, &str, &str) {
    let Condition { status, reason, message, .. } = find(&status.conditions, kind).unwrap();
    (status, reason, message)
}

fn container(job: &Job) -> (&PodSpec, Vec<String>) {
    let spec = job.spec.as_ref().unwrap().template.spec.as_ref().unwrap();
    (spec, spec.containers[0].args.clone().unwrap())
}

#[test]
fn the_job_is_held_to_the_image_program_engine_and_kernels() {
    let observed = begun();
    let (spec, args) = container(observed.job.as_ref().unwrap());
    let own = make::computation();
    let at = args.iter().position(|arg| arg == "--require-program").unwrap();
    let expected = [
        "--require-program",
        &own.program.to_string(),
        "--require-engine",
        "cpu-f32",
        "--require-kernels",
        "x86_64 avx512",
    ];
    assert_eq!(args[at..], expected);
    assert_eq!(spec.containers[0].image.as_deref(), Some("registry/codex@sha256:0123"));
    let limit = spec.containers[0].env.iter().flatten().find(|it| it.name == "CODEX_MAX_CPU_ISA").unwrap();
    assert_eq!(limit.value.as_deref(), Some("avx512"));
    let affinity = serde_json::to_value(&spec.affinity).unwrap();
    let of_nodes = &affinity["nodeAffinity"];
    let arch = json!({"key": "kubernetes.io/arch", "operator": "In", "values": ["amd64"]});
    assert_eq!(
        of_nodes["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"],
        json!([
            {"matchExpressions": [arch, {"key": "feature.node.kubernetes.io/cpu-cpuid.AVX512F", "operator": "Exists"}]},
            {"matchExpressions": [arch, {"key": "feature.node.kubernetes.io/cpu-model.vendor_id", "operator": "DoesNotExist"}]},
        ])
    );
    assert_eq!(
        of_nodes["preferredDuringSchedulingIgnoredDuringExecution"],
        json!([{"weight": 100, "preference": {"matchFields": [
            {"key": "metadata.name", "operator": "NotIn", "values": ["node-0"]},
        ]}}])
    );
}

#[test]
fn the_affinity_of_the_spec_holds_beside() {
    let mut observed = observed();
    observed.object.spec.pod.worker.affinity = Some(make::from(json!({"nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
            {"matchExpressions": [{"key": "pool", "operator": "In", "values": ["a"]}]},
            {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["b"]}]},
        ]},
        "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "preference": {}}],
    }})));
    record(&mut observed);
    let job = plan(&observed).desired.jobs.remove(0);
    let affinity = container(&job).0.affinity.clone().unwrap().node_affinity.unwrap();
    let terms = affinity.required_during_scheduling_ignored_during_execution.unwrap().node_selector_terms;
    assert_eq!(terms.len(), 4, "each of two terms in each of two ways");
    assert!(terms[..2].iter().all(|term| term.match_expressions.as_ref().unwrap()[0].key == "pool"));
    assert!(terms[2..].iter().all(|term| term.match_fields.is_some()));
    assert_eq!(affinity.preferred_during_scheduling_ignored_during_execution.unwrap().len(), 2);
}

#[test]
fn equal_digests_are_reproduced_and_signed_once() {
    let mut observed = said(begun(), finished("a"));
    let first = record(&mut observed);
    assert_eq!(first.status.phase, Some(TrainingRunPhase::Succeeded));
    let (status, reason, message) = condition(&first.status, ConditionType::Reproduced);
    assert_eq!((status, reason), ("True", "Reproduced"), "{message}");
    assert!(message.contains("on the node node-0, this one on the node node-2"), "{message}");
    assert!(first.effects.is_empty(), "nothing is signed before it is recorded");
    let [Effect::SignReproduction { config_map, reproduction }] = &plan(&observed).effects[..] else {
        panic!("no effect")
    };
    assert_eq!(**reproduction, statement(&observed.object).unwrap());
    assert_eq!(config_map.name_any(), format!("codex-repro-{}", reproduction.digest().short()));
    let evidence = &reproduction.evidence;
    assert_eq!((&*evidence.original.run.uid, &*evidence.again.run.uid), ("run-1", "run-2"));
    assert_eq!((evidence.original.node.as_deref(), evidence.again.node.as_deref()), (Some("node-0"), Some("node-2")));
    assert_eq!(evidence.again.image_id.as_deref(), Some("registry/codex@sha256:0123"));
    observed.verdict = Bundle::Valid(Sha256::of("key"));
    let signed = record(&mut observed);
    assert!(signed.effects.is_empty());
    assert_eq!(condition(&signed.status, ConditionType::Signed).0, "True");
    assert_eq!(signed.status.reproduction.as_ref().unwrap().bundle, config_map.metadata.name);
    // The name covers everything: the recorded bundle is still the one that is looked for.
    assert_eq!(statement(&observed.object).as_ref(), Some(&**reproduction));
    observed.verdict = Bundle::Foreign("was signed with another key".to_owned());
    let foreign = plan(&observed);
    assert_eq!(condition(&foreign.status, ConditionType::Signed).1, "ForeignSignature");
    assert!(foreign.effects.is_empty(), "it is not signed over");
}

#[test]
fn other_digests_differ_and_nothing_is_signed() {
    let mut observed = said(begun(), finished("b"));
    let differs = record(&mut observed);
    assert_eq!(differs.status.phase, Some(TrainingRunPhase::Succeeded));
    let (status, reason, message) = condition(&differs.status, ConditionType::Reproduced);
    assert_eq!((status, reason), ("False", "DigestsDiffer"));
    for part in [&make::model("a").digest.to_string(), &make::model("b").digest.to_string(), "differs is config.json"] {
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(condition(&differs.status, ConditionType::Ready).0, "True", "the work is done");
    assert!(differs.events.iter().any(|event| event.reason == "DigestsDiffer"), "{:?}", differs.events);
    assert_eq!(statement(&observed.object), None);
    assert!(plan(&observed).effects.is_empty());
    // The file is remembered when the other run is gone.
    observed.reproduced = None;
    assert_eq!(plan(&observed).status, differs.status);
}

#[test]
fn a_node_of_another_kind_is_unreproducible_and_no_failure() {
    let why = "the kernels must be \"x86_64 avx512\", for the bits of the run that is reproduced, and is \"x86_64 avx2\" here";
    let state = TrainingState {
        stage: Stage::Failed,
        failure: Some(make::failure("Unreproducible", why)),
        ..TrainingState::default()
    };
    let mut observed = said(begun(), state);
    let ended = record(&mut observed);
    assert_eq!(ended.status.phase, Some(TrainingRunPhase::Unreproducible));
    assert_eq!(condition(&ended.status, ConditionType::Reproduced), ("Unknown", "Unreproducible", why));
    assert_eq!(condition(&ended.status, ConditionType::Ready).0, "True");
    assert!(find(&ended.status.conditions, ConditionType::Stalled).is_none());
    assert!(ended.status.completed_at.is_some());
    // It stays so without pods, reports and the other run.
    (observed.pods, observed.reports, observed.reproduced) = (Vec::new(), Vec::new(), None);
    let later = plan(&observed);
    assert_eq!((later.status.phase, later.status.conditions), (ended.status.phase, ended.status.conditions));
    assert!(later.desired.jobs.is_empty() && later.effects.is_empty());
}

#[test]
fn without_a_node_of_that_kind_the_verdict_is_open() {
    let mut observed = begun();
    let obstacle = "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.";
    let unscheduled = |message: &str| {
        make::from(json!({"conditions": [{"type": "PodScheduled", "status": "False", "message": message}]}))
    };
    observed.pods[0].status = Some(unscheduled(obstacle));
    let waits = plan(&observed).status;
    assert_eq!(waits.phase, Some(TrainingRunPhase::Pending));
    let (status, reason, message) = condition(&waits, ConditionType::Reproduced);
    assert_eq!((status, reason), ("Unknown", "Unreproducible"));
    assert!(message.contains(obstacle) && message.contains("no node has"), "{message}");
    observed.pods[0].status = Some(unscheduled("0/1 nodes are available: 1 Insufficient cpu."));
    assert_eq!(condition(&plan(&observed).status, ConditionType::Reproduced).1, "WaitingForPod");
    // A deadline without such a node is no failure either.
    observed.job.as_mut().unwrap().status = Some(make::from(json!({"conditions": [
        {"type": "Failed", "status": "True", "reason": "DeadlineExceeded", "lastTransitionTime": make::at(90)},
    ]})));
    assert_eq!(plan(&observed).status.phase, Some(TrainingRunPhase::Failed));
    observed.pods[0].status = Some(unscheduled(obstacle));
    assert_eq!(plan(&observed).status.phase, Some(TrainingRunPhase::Unreproducible));
}

#[test]
fn a_run_that_no_single_run_repeats_is_unreproducible_before_it_is_trained() {
    let told = |change: fn(&mut TrainingRun)| {
        let mut observed = observed();
        change(observed.reproduced.as_mut().unwrap());
        let plan = record(&mut observed);
        assert!(plan.desired.jobs.is_empty() && plan.desired.config_maps.is_empty());
        assert_eq!(plan.status.phase, Some(TrainingRunPhase::Unreproducible), "{:?}", plan.status);
        condition(&plan.status, ConditionType::Reproduced).2.to_owned()
    };
    let status = |run: &mut TrainingRun| run.status.take().unwrap();
    let unknown = told(|run| run.status.as_mut().unwrap().computation = None);
    assert!(unknown.contains("does not say which program"), "{unknown}");
    let mixed = told(|run| {
        let computation = run.status.as_mut().unwrap().computation.as_mut().unwrap();
        computation.mixed = Some(true);
    });
    assert!(mixed.contains("different programs or instructions"), "{mixed}");
    let other = told(|run| run.status.as_mut().unwrap().config_digest = Some(make::from(json!("0".repeat(64)))));
    assert!(other.contains("its ConfigMap is gone"), "{other}");
    // A run without a model is waited for.
    let mut observed = observed();
    status(observed.reproduced.as_mut().unwrap());
    assert_eq!(condition(&plan(&observed).status, ConditionType::Ready).1, "WaitingForTraining");
    observed.reproduced = None;
    let (_, reason, message) = {
        let plan = plan(&observed);
        let (status, reason, message) = condition(&plan.status, ConditionType::Ready);
        (status.to_owned(), reason.to_owned(), message.to_owned())
    };
    assert_eq!(reason, "NotFound");
    assert!(message.starts_with("spec.reproduces.name names \"cot\""), "{message}");
}

#[test]
fn a_configuration_of_an_earlier_controller_is_taken_from_its_config_map() {
    let digest = "0".repeat(64);
    let mut observed = observed();
    observed.reproduced.as_mut().unwrap().status.as_mut().unwrap().config_digest = Some(make::from(json!(digest)));
    observed.reproduced_config = Some(format!("digest: {digest}\nspec: former\n"));
    record(&mut observed);
    let planned = record(&mut observed);
    assert_eq!(
        planned.desired.config_maps[0].data.as_ref().unwrap()["config.yaml"],
        format!("digest: {digest}\nspec: former\n")
    );
    let job = &planned.desired.jobs[0];
    assert_eq!(job.annotations()[codex_crds::annotation::CONFIG_DIGEST], digest);
    // A file with another digest is not.
    observed.object.status = None;
    observed.reproduced_config = Some("digest: 1\n".to_owned());
    assert_eq!(plan(&observed).status.phase, Some(TrainingRunPhase::Unreproducible));
}

#[test]
fn other_fields_and_circles_are_invalid() {
    let mut other = observed();
    other.object.spec.seed = 7;
    other.object.spec.overrides = vec!["training.max_steps=900".to_owned()];
    let plan_of = plan(&other);
    let (_, reason, message) = condition(&plan_of.status, ConditionType::Ready);
    assert_eq!(reason, "InvalidConfiguration");
    assert!(message.starts_with("spec.overrides, spec.seed must equal those of TrainingRun cot"), "{message}");
    assert!(plan_of.desired.jobs.is_empty());
    let mut circle = observed();
    circle.reproduced.as_mut().unwrap().spec.reproduces = Some(make::from(json!({"name": "again"})));
    assert!(condition(&plan(&circle).status, ConditionType::Ready).2.contains("name each other"));
}

#[test]
fn other_data_and_a_trainer_that_contradicts_its_arguments_are_unreproducible() {
    let mut other = TrainingState { computation: Some(make::computation()), ..make::training(5) };
    other.data[0].sha256 = make::data_digest();
    let stops = plan(&said(begun(), other));
    assert_eq!(stops.status.phase, Some(TrainingRunPhase::Unreproducible));
    assert!(condition(&stops.status, ConditionType::Reproduced).2.contains("the data made has the SHA-256"));
    assert_eq!(stops.desired.jobs[0].spec.as_ref().unwrap().suspend, Some(true), "its pod is stopped");
    for changed in [
        Computation { kernels: "x86_64 avx2".to_owned(), ..make::computation() },
        Computation { program: Sha256::of("another"), ..make::computation() },
        Computation { mixed: true, ..make::computation() },
    ] {
        let state = TrainingState { computation: Some(changed), ..make::training(5) };
        let told = plan(&said(begun(), state)).status;
        assert_eq!(told.phase, Some(TrainingRunPhase::Unreproducible));
        assert!(condition(&told, ConditionType::Reproduced).2.contains("contradicts its arguments"));
    }
    let silent = plan(&said(begun(), make::trained("a"))).status;
    assert_eq!(silent.phase, Some(TrainingRunPhase::Unreproducible));
    assert!(silent.model.is_none() && condition(&silent, ConditionType::Reproduced).2.contains("did not report"));
}

#[test]
fn an_unsealed_status_signs_nothing() {
    let mut observed = said(begun(), finished("a"));
    record(&mut observed);
    observed.seal = codex_plan::StatusSeal::Broken;
    assert!(plan(&observed).effects.is_empty());
}
