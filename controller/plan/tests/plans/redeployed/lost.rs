//! ReasoningPods that redeploy, when a name, an object or the status of a cycle is lost.

use codex_crds::{CyclePhase, Reason};
use codex_plan::{
    Obstruction,
    reasoning_pod::{Aims, aims, cycles},
};
use serde_json::json;

use super::{FIRST, HOUR, Hourly};
use crate::make;

#[test]
fn what_former_cycles_made_is_not_tried_again_when_the_field_comes_back() {
    let mut hourly = Hourly::new();
    hourly.plan(100);
    hourly.train(1);
    hourly.judge(500);
    // The field was removed: a plan recorded a status without it, and sealed that.
    let status = hourly.observed.object.status.as_mut().unwrap();
    (status.redeploy, status.current, status.seal) = (None, None, Some("x".to_owned()));
    let again = hourly.plan(HOUR + 300);
    let redeploy = hourly.redeploy();
    assert!(redeploy.cycle.is_none() && again.effects.is_empty() && again.desired.training_runs.is_empty());
    assert_eq!(redeploy.seen.unwrap().0, make::at(HOUR + 300));
    assert_eq!(redeploy.next_schedule_time.unwrap().0, make::at(2 * HOUR));
}

#[test]
fn a_name_that_somebody_else_took_does_not_stop_the_next_cycle() {
    let mut hourly = Hourly::new();
    hourly.plan(100);
    hourly.plan(HOUR);
    let message = format!("the TrainingRun {FIRST} exists and was not created by this controller");
    let generation = hourly.observed.object.metadata.generation;
    hourly.observed.obstruction =
        Some(Obstruction { reason: Reason::NameTaken, message: message.clone(), generation, waits: false });
    // The name stays taken.
    for second in [HOUR + 1, HOUR + 2] {
        hourly.plan(second);
        hourly.runs.clear();
    }
    hourly.plan(2 * HOUR);
    let status = hourly.redeploy();
    assert!(status.history[0].reason.contains(&message), "{:?}", status.history);
    assert_eq!(status.cycle.unwrap().training_run, "rc-30000120");
}

#[test]
fn a_run_that_is_deleted_while_it_is_rolled_out_ends_its_cycle() {
    let mut hourly = Hourly::new();
    hourly.plan(100);
    hourly.train(1);
    hourly.judge(500);
    hourly.plan(HOUR + 200);
    assert_eq!(hourly.phase(), Some(CyclePhase::RollingOut));
    (hourly.observed.deployment, hourly.runs) = (None, Vec::new());
    hourly.plan(HOUR + 201);
    assert_eq!(hourly.phase(), Some(CyclePhase::Failed));
}

#[test]
fn a_lost_status_follows_from_the_objects_and_nothing_is_created_twice() {
    let mut hourly = Hourly::new();
    hourly.plan(100);
    hourly.train(1);
    let before = hourly.redeploy().cycle.unwrap();
    hourly.observed.seal = codex_plan::StatusSeal::Broken;
    let anew = hourly.plan(HOUR + 300);
    assert!(anew.desired.training_runs.is_empty() && anew.desired.expired.is_empty());
    let after = hourly.redeploy();
    hourly.observed.seal = codex_plan::StatusSeal::Valid;
    let cycle = after.cycle.unwrap();
    assert_eq!((cycle.training_run, cycle.evaluations), (before.training_run, before.evaluations));
    assert_eq!(after.last_schedule_time.unwrap().0, make::at(HOUR));
    // What the servers mount is served, although both runs made the same model.
    let lost = |hourly: &Hourly| {
        let observed = &hourly.observed;
        aims(&observed.object, &codex_plan::StatusSeal::Broken, &observed.cycles, observed.deployment.as_ref())
    };
    let Aims { served, candidate } = lost(&hourly);
    assert_eq!((served.training_run.as_str(), candidate.unwrap().training_run.as_str()), ("cot", FIRST));
    let mut deployment = json!(hourly.observed.deployment);
    let text =
        deployment.to_string().replace("/run-1/", &format!("/{}/", hourly.runs[0].metadata.uid.as_ref().unwrap()));
    deployment = serde_json::from_str(&text).unwrap();
    hourly.observed.deployment = make::from(deployment);
    let Aims { served, candidate } = lost(&hourly);
    assert_eq!((served.training_run.as_str(), candidate), (FIRST, None));
    // An Evaluation that differs from the template is not an object of a cycle.
    let mut forged = hourly.evaluations[0].clone();
    forged.spec.gates[0].min = Some(make::from(json!("0.1")));
    assert!(cycles(&[], [&forged], &[]).is_empty());
}
