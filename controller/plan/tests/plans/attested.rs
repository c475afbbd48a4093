//! What a trainer says about its training is reported; it is attested only for images of the controller's list.

use std::sync::Arc;

use codex_crds::TrainingRunStatus;
use codex_plan::{Effect, ImagePattern, Settings, reasoning_pod, training_run};
use codex_provenance::{ModelDigest, Sha256, manifest::Manifest};
use codex_reports::{Device, TrainingState};
use k8s_openapi::api::core::v1::{EphemeralContainer, Pod};
use serde_json::json;

use crate::{make, properties::ready_to_sign, world::World};

fn settings(images: &[&str]) -> Arc<Settings> {
    let attested_images: Vec<ImagePattern> = images.iter().map(|image| image.parse().unwrap()).collect();
    Arc::new(Settings { attested_images, ..Settings::clone(&make::settings()) })
}

/// Returns the status of a run whose trainer reported its model, with this list and after this change of its pod.
fn recorded(images: &[&str], change: impl FnOnce(&mut Pod)) -> TrainingRunStatus {
    recorded_from(images, make::trained("a"), change)
}

/// As [`recorded`], with the state that the trainer reported.
fn recorded_from(images: &[&str], state: TrainingState, change: impl FnOnce(&mut Pod)) -> TrainingRunStatus {
    let mut observed = World::new().observed_run();
    let mut plan = training_run::plan(&observed, make::at(1));
    let job = plan.desired.jobs.remove(0);
    let mut pod: Pod = make::from(json!({
        "metadata": {"name": "pod", "uid": "pod", "creationTimestamp": make::at(2)},
        "status": {"containerStatuses": [{
            "name": "trainer", "image": "codex:dev", "imageID": image("1"), "ready": true, "restartCount": 0,
            "state": {"running": {"startedAt": make::at(2)}},
        }]},
    }));
    pod.spec.clone_from(&job.spec.as_ref().unwrap().template.spec);
    change(&mut pod);
    let digest = job.metadata.annotations.as_ref().unwrap()[codex_crds::annotation::CONFIG_DIGEST].parse().ok();
    let state = codex_reports::State::Training(state);
    let report = make::report(codex_reports::Kind::TrainingRun, "run-1", "pod", 1, digest, state);
    observed.job = Some(job);
    observed.pods.push(pod);
    observed.reports.push(codex_plan::Received { report, pod: "pod".to_owned(), at: make::at(3), contradiction: None });
    observed.settings = settings(images);
    let status = training_run::plan(&observed, make::at(4)).status;
    assert!(status.model.is_some(), "{status:?}");
    // What is recorded stays, whatever becomes of the list.
    observed.object.status = Some(status.clone());
    if status.attested.is_some() {
        observed.settings = settings(&[]);
        assert_eq!(training_run::plan(&observed, make::at(5)).status.attested, Some(true));
    }
    status
}

fn image(digit: &str) -> String {
    format!("registry.example.com/codex@sha256:{}", digit.repeat(64))
}

#[test]
fn a_trainer_is_attested_only_by_the_list_and_with_nothing_added_to_its_pod() {
    let unchanged = |_: &mut Pod| {};
    assert_eq!(recorded(&[&image("1")], unchanged).attested, Some(true));
    assert_eq!(recorded(&[&image("2"), "registry.example.com/codex@*"], unchanged).attested, Some(true));
    assert_eq!(recorded(&[], unchanged).attested, None);
    assert_eq!(recorded(&[&image("2"), "codex@*"], unchanged).attested, None);
    let debugged = |pod: &mut Pod| {
        let debugger = EphemeralContainer { name: "debugger".to_owned(), ..EphemeralContainer::default() };
        pod.spec.as_mut().unwrap().ephemeral_containers = Some(vec![debugger]);
    };
    assert_eq!(recorded(&[&image("1")], debugged).attested, None);
    let beside = |pod: &mut Pod| {
        let containers = &mut pod.spec.as_mut().unwrap().containers;
        let other = k8s_openapi::api::core::v1::Container { name: "proxy".to_owned(), ..containers[0].clone() };
        containers.push(other);
    };
    assert_eq!(recorded(&[&image("1")], beside).attested, None);
}

#[test]
fn the_device_that_ran_is_recorded_and_stated() {
    let device = Device {
        name: "NVIDIA H100 80GB HBM3".repeat(20),
        engine: "candle-cuda-bf16".to_owned(),
        driver: Some("580.65.06".to_owned()),
        memory_bytes: Some(85_520_809_984),
        fallback: None,
    };
    let adapter = ModelDigest(Sha256::of("adapter"));
    let mut state = TrainingState { device: Some(device), ..make::trained("a") };
    state.model.as_mut().unwrap().adapter = Some(adapter);
    let recorded = recorded_from(&[], state, |_| ());
    assert_eq!(recorded.model.unwrap().adapter, Some(adapter));
    let recorded = recorded.device.unwrap();
    assert_eq!((recorded.name.len(), recorded.memory_bytes), (128, Some(85_520_809_984)), "cut to what a status holds");
    for device in [None, Some(recorded)] {
        let mut observed = ready_to_sign("run-1");
        let status = observed.run.as_mut().unwrap().status.as_mut().unwrap();
        status.device.clone_from(&device);
        status.model.as_mut().unwrap().adapter = device.is_some().then_some(adapter);
        let plan = reasoning_pod::plan(&observed, make::at(9));
        let [Effect::SignPromotion { promotion, .. }] = &plan.effects[..] else { panic!("{plan:?}") };
        let stated = promotion.reasons.training.device.as_ref();
        assert_eq!(stated.and_then(|stated| stated.driver.clone()), device.and_then(|device| device.driver));
        let text = serde_json::to_string(&promotion.reasons.training).unwrap();
        assert_eq!(text.contains("device"), stated.is_some(), "statements without one have the bytes that they had");
        assert_eq!(promotion.reasons.training.adapter, stated.map(|_| adapter));
        assert_eq!(text.contains("adapter"), stated.is_some());
    }
}

#[test]
fn a_statement_keeps_the_trainers_word_apart_unless_it_is_attested() {
    for attested in [None, Some(true)] {
        let mut observed = ready_to_sign("run-1");
        observed.run.as_mut().unwrap().status.as_mut().unwrap().attested = attested;
        let plan = reasoning_pod::plan(&observed, make::at(9));
        let [Effect::SignPromotion { promotion, build, .. }] = &plan.effects[..] else { panic!("{plan:?}") };
        assert_eq!(Manifest::of_hashed(build.files.clone()).unwrap().digest(), promotion.model);
        let training = &promotion.reasons.training;
        assert_eq!(training.is_attested(), attested == Some(true));
        assert_eq!(training.reported.is_some(), attested.is_none());
        assert_eq!(training.attested.data.is_some(), attested.is_some());
        let names: Vec<_> = training.data().unwrap().keys().collect();
        assert_eq!(names, ["file", "made"]);
    }
}
