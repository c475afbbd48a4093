//! The latest attempts in a status.

use codex_crds::{AttemptStatus, MAX_ATTEMPTS};
use codex_plan::training_run;
use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::Time};
use serde_json::json;

use crate::{make, world::World};

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
