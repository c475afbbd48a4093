//! The latest attempts in a status.

use codex_crds::{AttemptStatus, ConditionType, MAX_ATTEMPTS};
use codex_plan::{conditions::find, training_run};
use codex_reports::State;
use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::Time};
use kube::ResourceExt;
use serde_json::json;

use crate::{
    make,
    world::{End, World},
};

const JOB: &str = "codex-t-cot";

/// A pod that started at a second, and ended a second later with an exit code.
fn pod(name: &str, second: i64, code: Option<i32>) -> Pod {
    let (started, ended) = (make::at(second), make::at(second + 1));
    let state = match code {
        Some(code) => {
            json!({"terminated": {"exitCode": code, "reason": "Error", "startedAt": started, "finishedAt": ended}})
        }
        None => json!({"running": {"startedAt": started}}),
    };
    make::from(json!({
        "metadata": {"name": name, "uid": name, "namespace": "team", "creationTimestamp": started},
        "spec": {"nodeName": "node-1", "containers": []},
        "status": {"containerStatuses": [{
            "name": "trainer", "image": "codex:dev", "imageID": "registry/codex@sha256:0123", "ready": false,
            "restartCount": 0, "state": state,
        }]},
    }))
}

#[test]
fn the_latest_attempts_are_listed_and_outlive_their_pods() {
    let mut world = World::new();
    world.reconcile();
    let mut observed = world.observed_run();
    let names = |attempts: &[AttemptStatus]| attempts.iter().map(|it| it.pod.clone()).collect::<Vec<_>>();
    observed.pods = (0..7).map(|n| pod(&format!("p{n}"), 10 * n, Some(1))).chain([pod("p7", 70, None)]).collect();
    let status = training_run::plan(&observed, make::at(100)).status;
    let attempts = status.work.recent_attempts.clone();
    assert_eq!(
        (names(&attempts), attempts.len()),
        (["p3", "p4", "p5", "p6", "p7"].map(str::to_owned).to_vec(), MAX_ATTEMPTS)
    );
    let failed = AttemptStatus {
        pod: "p6".to_owned(),
        node: Some("node-1".to_owned()),
        started_at: Time(make::at(60)),
        ended_at: Some(Time(make::at(61))),
        exit_code: Some(1),
        reason: Some("PodFailed".to_owned()),
    };
    assert_eq!(attempts[3], failed);
    assert_eq!((attempts[4].exit_code, &attempts[4].reason), (None, &None));

    // The end of an attempt is written with what follows it, not on its own.
    observed.object.status = Some(status.clone());
    observed.pods[7] = pod("p7", 70, Some(0));
    assert_eq!(training_run::plan(&observed, make::at(101)).status, status);
    observed.object.metadata.generation = Some(2);
    let ended = training_run::plan(&observed, make::at(102)).status.work.recent_attempts;
    assert_eq!((ended[4].exit_code, &ended[4].reason), (Some(0), &None));

    // The pods are gone, and a new one has started.
    observed.pods = vec![pod("p8", 80, None)];
    let later = training_run::plan(&observed, make::at(103)).status.work.recent_attempts;
    assert_eq!(names(&later), ["p4", "p5", "p6", "p7", "p8"]);
    assert_eq!(later[2], failed);
}

/// Reconciles until nothing changes, and returns the message of `Ready`.
fn settled(world: &mut World) -> String {
    for _ in 0..20 {
        world.second += 11;
        if !world.reconcile() {
            let status = world.run.status.as_ref().unwrap();
            return find(&status.conditions, ConditionType::Ready).unwrap().message.clone();
        }
    }
    panic!("the plans do not settle");
}

/// Sets the priority of the pod in the spec, and returns the message of `Ready` after that with the priority in the Job.
fn prioritized(world: &mut World, priority: &str) -> (String, Option<String>) {
    world.run.spec.pod.worker.priority_class_name = Some(priority.to_owned());
    let told = settled(world);
    let template = &world.jobs[JOB].spec.as_ref().unwrap().template;
    (told, template.spec.as_ref().unwrap().priority_class_name.clone())
}

#[test]
fn the_settings_of_a_pod_change_until_one_has_started() {
    let mut world = World::new();
    settled(&mut world);
    let first = world.jobs[JOB].uid();
    world.sync_jobs();
    assert_eq!(prioritized(&mut world, "high").1.as_deref(), Some("high"), "no pod has started");
    let second = world.jobs[JOB].uid();
    assert_ne!(first, second, "the template of a Job cannot be changed");
    world.sync_jobs();
    world.start_pods();
    // The API server refuses this once the status says that a pod has started.
    let (told, priority) = prioritized(&mut world, "low");
    assert_eq!((priority.as_deref(), world.jobs[JOB].uid()), (Some("high"), second), "a pod has started");
    let late = "the trainer is running; spec.pod was changed when a pod had started already, so the Job codex-t-cot keeps the former settings";
    assert!(told.starts_with(late), "{told}");
    assert!(prioritized(&mut world, "high").0.ends_with("the trainer is running"), "nothing differs any more");
}

#[test]
fn a_result_that_nothing_can_report_any_more_is_no_failure_of_the_run() {
    let mut world = World::new();
    settled(&mut world);
    world.sync_jobs();
    world.start_pods();
    let pod = world.working(JOB).unwrap();
    world.end(JOB, &pod, &End::Finished(Box::new(State::Training(make::trained("a")))), true);
    world.sync_jobs();
    // Its status is emptied, the controller starts again, and the pod is gone.
    world.restart();
    world.run.status = None;
    let gone = std::mem::take(&mut world.pods);
    world.second += 3_600;
    let told = settled(&mut world);
    assert!(told.ends_with("is gone: delete the Job codex-t-cot to repeat the work"), "{told}");
    let status = world.run.status.clone().unwrap();
    assert_eq!((status.completed_at, status.model), (None, None), "it may still succeed");
    // A pod that is there and says nothing failed.
    world.pods = gone;
    let silent = world.pods.get_mut(&pod).unwrap().status.as_mut().unwrap().container_statuses.as_mut().unwrap();
    silent[0].state.as_mut().unwrap().terminated.as_mut().unwrap().message = None;
    let mut of_silent = world.observed_run();
    of_silent.object.status = None;
    let failed = training_run::plan(&of_silent, world.now()).status;
    assert!(failed.completed_at.is_some() && failed.model.is_none());
    // The advice helps.
    world.pods.clear();
    world.jobs.remove(JOB);
    settled(&mut world);
    assert!(world.jobs.contains_key(JOB));
}
