//! Objects that are being deleted or do not exist: no work starts for them, and running servers stay.

use codex_crds::{ConditionType, ReasoningPodPhase};
use codex_plan::{
    conditions::find,
    evaluation::{self, ObservedEvaluation},
    reasoning_pod::{self, Bundle, ObservedReasoningPod},
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
