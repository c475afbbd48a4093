//! Kueue: a Job in a queue is created suspended, and Kueue starts and stops it. A stand-in does here what Kueue does to a Job.

use std::collections::BTreeMap;

use codex_crds::{ConditionType, TrainingRunPhase, label};
use codex_plan::{
    KeptKind,
    conditions::{find, is_true},
    training_run,
};
use codex_reports::State;
use k8s_openapi::api::{batch::v1::Job, core::v1::Toleration};
use kube::ResourceExt;

use crate::{
    make,
    world::{End, World},
};

const JOB: &str = "codex-t-cot";

fn world() -> World {
    let mut world = World::new();
    world.run.labels_mut().insert(label::QUEUE_NAME.to_owned(), "gpus".to_owned());
    world
}

fn job(world: &World) -> &Job {
    &world.jobs[JOB]
}

fn is_suspended(world: &World) -> bool {
    job(world).spec.as_ref().unwrap().suspend == Some(true)
}

/// Acts as Kueue: admits the Job, which gets the node selector and the tolerations of its flavor, or stops it and restores its
/// template.
fn kueue(world: &mut World, admit: bool) {
    let spec = world.jobs.get_mut(JOB).unwrap().spec.as_mut().unwrap();
    spec.suspend = Some(!admit);
    let pod = spec.template.spec.as_mut().unwrap();
    if admit {
        pod.node_selector = Some(BTreeMap::from([("pool".to_owned(), "h100".to_owned())]));
        pod.tolerations = Some(vec![Toleration { key: Some("gpu".to_owned()), ..Toleration::default() }]);
    } else {
        (pod.node_selector, pod.tolerations) = (None, None);
    }
}

/// Reconciles until nothing changes, and returns what the status says.
fn told(world: &mut World) -> String {
    for _ in 0..20 {
        world.second += 11;
        if !world.reconcile() {
            let status = world.run.status.as_ref().unwrap();
            let ready = find(&status.conditions, ConditionType::Ready).unwrap();
            let attempts = status.work.attempts.map_or_else(String::new, |attempts| format!(" (attempt {attempts})"));
            return format!("{:?}{attempts}: {}: {}", status.phase.unwrap(), ready.reason, ready.message);
        }
    }
    panic!("the plans do not settle");
}

#[test]
fn a_run_in_a_queue_waits_for_quota_is_preempted_without_a_failure_and_succeeds() {
    let mut world = world();
    world.run.spec.retries = 0;
    let mut story = vec![format!("created: {}", told(&mut world))];
    assert!(is_suspended(&world));
    assert_eq!(job(&world).labels()[label::QUEUE_NAME], "gpus");
    world.sync_jobs();
    assert!(world.working(JOB).is_none());
    story.push(format!("waits: {}", told(&mut world)));
    for round in ["admitted", "admitted again"] {
        kueue(&mut world, true);
        world.sync_jobs();
        world.start_pods();
        story.push(format!("{round}: {}", told(&mut world)));
        assert!(!is_suspended(&world), "the controller leaves spec.suspend to Kueue");
        if round == "admitted" {
            let pod = world.working(JOB).unwrap();
            world.say(JOB, &pod, State::Training(make::training(300)));
            world.end(JOB, &pod, &End::Code(143, "Error"), false);
            kueue(&mut world, false);
            world.sync_jobs();
            story.push(format!("preempted: {}", told(&mut world)));
            let status = world.run.status.as_ref().unwrap();
            assert!(!is_true(&status.conditions, ConditionType::Stalled));
            assert!(is_suspended(&world), "the controller leaves spec.suspend to Kueue");
        }
    }
    let pod = world.working(JOB).unwrap();
    world.end(JOB, &pod, &End::Finished(Box::new(State::Training(make::trained("a")))), true);
    world.sync_jobs();
    story.push(format!("finished: {}", told(&mut world)));
    assert_eq!(world.run.status.as_ref().unwrap().phase, Some(TrainingRunPhase::Succeeded));
    insta::assert_snapshot!(story.join("\n"));
}

#[test]
fn limits_change_without_a_change_of_what_kueue_owns() {
    let mut world = world();
    told(&mut world);
    for admitted in [false, true] {
        kueue(&mut world, admitted);
        world.sync_jobs();
        told(&mut world);
        world.run.spec.retries += 1;
        told(&mut world);
        let spec = job(&world).spec.as_ref().unwrap();
        assert_eq!((spec.backoff_limit, spec.suspend), (Some(world.run.spec.retries), Some(!admitted)));
        assert_eq!(spec.template.spec.as_ref().unwrap().node_selector.is_some(), admitted);
        assert_eq!(job(&world).labels()[label::QUEUE_NAME], "gpus");
    }
}

#[test]
fn a_suspended_run_leaves_the_queue_and_joins_it_again() {
    let mut world = world();
    told(&mut world);
    kueue(&mut world, true);
    world.sync_jobs();
    world.start_pods();
    told(&mut world);
    world.run.spec.suspend = true;
    assert!(told(&mut world).starts_with("Suspended"));
    let desired = training_run::plan(&world.observed_run(), world.now()).desired;
    let kept = desired.kept.iter().any(|kept| kept.kind == KeptKind::Job);
    assert!(desired.jobs.is_empty() && !kept, "Kueue would start a suspended Job that it has admitted");
    world.jobs.remove(JOB);
    world.pods.clear();
    world.run.spec.suspend = false;
    assert!(told(&mut world).contains("waits for quota"));
    assert!(is_suspended(&world));
}

#[test]
fn a_run_without_the_label_starts_at_once() {
    let mut world = World::new();
    told(&mut world);
    assert!(!is_suspended(&world));
    assert!(!job(&world).labels().contains_key(label::QUEUE_NAME));
}
