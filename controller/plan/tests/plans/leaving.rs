//! Objects that are being deleted or do not exist: no work starts for them, and running servers stay.

use std::collections::BTreeSet;

use codex_crds::{ConditionType, ReasoningPodPhase};
use codex_plan::{
    Effect,
    conditions::find,
    evaluation::{self, ObservedEvaluation},
    reasoning_pod::{self, Bundle, HeldProof, ObservedReasoningPod},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use crate::{make, properties::busy, world::World};

fn ready(conditions: &[Condition]) -> (&str, &str) {
    let ready = find(conditions, ConditionType::Ready).unwrap();
    (&ready.reason, &ready.message)
}

#[test]
fn nothing_is_signed_for_a_run_or_an_evaluation_that_is_being_deleted() {
    type Leave = fn(&mut ObservedReasoningPod);
    let leaves: [(&str, Leave); 2] = [
        ("TrainingRun cot is being deleted", |observed| {
            observed.run.as_mut().unwrap().metadata.deletion_timestamp = Some(Time(make::at(900)));
        }),
        ("Evaluation lite is being deleted", |observed| {
            let evaluation = observed.evaluations.get_mut("lite").unwrap();
            evaluation.metadata.deletion_timestamp = Some(Time(make::at(900)));
        }),
    ];
    for (sentence, leave) in leaves {
        // Its bundles are deleted already.
        let mut observed = busy().observed_pod();
        (observed.oms, observed.promotion) = (Bundle::Absent, Bundle::Absent);
        assert_eq!(reasoning_pod::plan(&observed, make::at(1_000)).effects.len(), 1);
        leave(&mut observed);
        let plan = reasoning_pod::plan(&observed, make::at(1_000));
        // Something blocks the next rollout, and the servers stay.
        assert_eq!((plan.effects.len(), plan.status.phase), (0, Some(ReasoningPodPhase::Blocked)));
        assert_eq!(plan.status.blocked_by, [sentence]);
        assert_eq!(ready(&plan.status.conditions), ("NotFound", &*format!("{sentence}; running servers stay")));
        assert_eq!(plan.desired.deployments[0].spec, observed.deployment.unwrap().spec);
    }
}

/// An evaluation that can start.
fn trained() -> ObservedEvaluation {
    let mut world = busy();
    world.evaluation.status = None;
    let observed =
        ObservedEvaluation { job: None, pods: Vec::new(), reports: Vec::new(), ..world.observed_evaluation() };
    assert_eq!(evaluation::plan(&observed, make::at(1_000)).desired.jobs.len(), 1);
    observed
}

#[test]
fn nothing_is_evaluated_for_a_run_that_is_being_deleted() {
    let mut observed = trained();
    observed.run.as_mut().unwrap().metadata.deletion_timestamp = Some(Time(make::at(900)));
    let plan = evaluation::plan(&observed, make::at(1_000));
    assert!(plan.desired.jobs.is_empty());
    assert_eq!(ready(&plan.status.conditions), ("NotFound", "TrainingRun cot is being deleted"));
}

#[test]
fn a_suspended_evaluation_says_so_whatever_it_waits_for() {
    let mut world = World::new();
    world.reconcile();
    let mut observed = ObservedEvaluation { run: None, ..world.observed_evaluation() };
    assert_eq!(ready(&evaluation::plan(&observed, make::at(1)).status.conditions).0, "NotFound");
    observed.object.spec.suspend = true;
    assert_eq!(ready(&evaluation::plan(&observed, make::at(1)).status.conditions).0, "Suspended");
    observed.run = Some(world.run.clone());
    assert_eq!(ready(&evaluation::plan(&observed, make::at(1)).status.conditions).0, "Suspended");
    // A running Job is suspended although its run no longer exists.
    let mut observed = trained();
    observed.job = evaluation::plan(&observed, make::at(1_000)).desired.jobs.pop();
    (observed.run, observed.object.spec.suspend) = (None, true);
    let plan = evaluation::plan(&observed, make::at(1_001));
    assert_eq!(plan.desired.jobs[0].spec.as_ref().unwrap().suspend, Some(true));
}

#[test]
fn the_bundles_of_servers_stay_while_they_are_mounted() {
    let observed = busy().observed_pod();
    let serving = reasoning_pod::plan(&observed, make::at(1_000));
    assert_eq!(serving.status.phase, Some(ReasoningPodPhase::Serving));
    let status = serving.status.clone();
    let (manifest, promotion) = (status.manifest.unwrap().bundle, status.promotion.unwrap().bundle);
    let mounted: BTreeSet<String> = [manifest.clone(), promotion].into();
    assert_eq!((&serving.desired.mounted_bundles, serving.desired.released_bundles.len()), (&mounted, 0));
    // The run is deleted: its servers stay, and so does what they mount.
    let gone = ObservedReasoningPod {
        run: None,
        oms: Bundle::Absent,
        promotion: Bundle::Absent,
        held_bundles: mounted.clone(),
        ..observed.clone()
    };
    let plan = reasoning_pod::plan(&gone, make::at(1_000));
    assert_eq!(plan.status.phase, Some(ReasoningPodPhase::Blocked));
    assert_eq!((&plan.desired.mounted_bundles, plan.desired.released_bundles.len()), (&mounted, 0));
    assert_eq!(plan.desired.deployments[0].spec, observed.deployment.as_ref().unwrap().spec);
    // What was served before is released once its servers have gone.
    let former = BTreeSet::from(["codex-oms-run-0".to_owned()]);
    let mut rolling = ObservedReasoningPod { held_bundles: &mounted | &former, ..observed.clone() };
    assert_eq!(reasoning_pod::plan(&rolling, make::at(1_000)).desired.released_bundles, former);
    // The promotion of the model before stays as a proof; older ones, and others of the model that is served, go.
    let proof =
        |contents: &str, second: i64| HeldProof { model: make::model(contents).digest, since: make::at(second) };
    let name = |number: u8| format!("codex-promo-{number}");
    let mounted_proof = mounted.iter().find(|name| name.starts_with("codex-promo-")).unwrap().clone();
    let former_proofs = [(name(1), proof("a", 8)), (name(2), proof("b", 7)), (name(3), proof("c", 6))];
    let held_proofs = former_proofs.into_iter().chain([(mounted_proof, proof("a", 9))]).collect();
    let mut proving = ObservedReasoningPod { held_proofs, ..rolling.clone() };
    proving.held_bundles.extend((1..=3).map(name));
    let released = reasoning_pod::plan(&proving, make::at(1_000)).desired.released_bundles;
    assert_eq!(released, BTreeSet::from(["codex-oms-run-0".to_owned(), name(1), name(3)]));
    rolling.pods.clear();
    rolling.deployment.as_mut().unwrap().status = None;
    let plan = reasoning_pod::plan(&rolling, make::at(1_000));
    assert_eq!((plan.status.phase, plan.desired.released_bundles.len()), (Some(ReasoningPodPhase::RollingOut), 0));
    // A dry run can be taken back, even if the run is gone.
    rolling.object.spec.dry_run = true;
    assert!(reasoning_pod::plan(&rolling, make::at(1_000)).desired.released_bundles.is_empty());
}

#[test]
fn what_is_signed_is_owned_by_its_run_and_by_who_serves_it() {
    let mut observed = busy().observed_pod();
    (observed.oms, observed.promotion) = (Bundle::Absent, Bundle::Absent);
    let effects = reasoning_pod::plan(&observed, make::at(1_000)).effects;
    let [Effect::SignModel { config_map, .. }] = &*effects else { panic!("{effects:?}") };
    let owners = config_map.metadata.owner_references.iter().flatten();
    let owners: Vec<_> = owners.map(|owner| (&*owner.kind, &*owner.uid, owner.controller)).collect();
    assert_eq!(owners, [("TrainingRun", "run-1", Some(true)), ("ReasoningPod", "pod-1", None)]);
}
