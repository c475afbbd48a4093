//! The progress of a curriculum in the status of a run.

use codex_crds::{CurriculumPhaseState, TrainingRunStatus};
use codex_plan::{
    Plan,
    training_run::{self, ObservedTrainingRun},
};
use codex_reports::{Curriculum, CurriculumPhase, Kind, PhaseStatus, State, TrainingState};
use kube::ResourceExt;
use serde_json::json;

use crate::{make, world::World};

fn plan(observed: &ObservedTrainingRun) -> Plan<TrainingRunStatus> {
    training_run::plan(observed, make::at(100))
}

/// A run whose pod reported this state.
fn reported(state: TrainingState) -> ObservedTrainingRun {
    let mut observed = World::new().observed_run();
    observed.job = Some(plan(&observed).desired.jobs.remove(0));
    observed.pods.push(make::from(json!({
        "metadata": {"name": "pod-0", "uid": "pod-0", "creationTimestamp": make::at(0)},
        "status": {"containerStatuses": [{
            "name": "trainer", "image": "codex:dev", "imageID": "codex@sha256:0", "ready": true, "restartCount": 0,
            "state": {"running": {"startedAt": make::at(1)}},
        }]},
    })));
    let digest = observed.job.as_ref().unwrap().annotations()[codex_crds::annotation::CONFIG_DIGEST].parse().ok();
    let report = make::report(Kind::TrainingRun, "run-1", "pod-0", 1, digest, State::Training(state));
    observed.reports.push(codex_plan::Received {
        report,
        pod: "pod-0".to_owned(),
        at: make::at(2),
        contradiction: None,
    });
    observed
}

fn curriculum() -> Curriculum {
    let phase = |id: &str, status, first_step| CurriculumPhase { id: id.to_owned(), status, first_step };
    Curriculum {
        phase: "first_principles".to_owned(),
        index: 2,
        of: 3,
        steps_done: 412,
        steps: 400,
        reason: Some("exact_match is 0.7500 and must be at least 0.9".to_owned()),
        phases: vec![
            phase("warmup", PhaseStatus::Completed, Some(0)),
            phase("first_principles", PhaseStatus::Active, Some(200)),
            phase("challenge", PhaseStatus::Pending, None),
        ],
    }
}

#[test]
fn the_status_shows_the_phase_and_why_it_waits() {
    let state = TrainingState { curriculum: Some(curriculum()), ..make::training(612) };
    let status = plan(&reported(state)).status.curriculum.unwrap();
    assert_eq!(
        (status.phase.as_str(), status.index, status.of, status.steps.as_str()),
        ("first_principles", 2, 3, "412/400")
    );
    assert_eq!(status.reason.as_deref(), Some("exact_match is 0.7500 and must be at least 0.9"));
    let phases: Vec<_> =
        status.phases.iter().map(|phase| (phase.id.as_str(), phase.status, phase.first_step)).collect();
    assert_eq!(
        phases,
        [
            ("warmup", CurriculumPhaseState::Completed, Some(0)),
            ("first_principles", CurriculumPhaseState::Active, Some(200)),
            ("challenge", CurriculumPhaseState::Pending, None),
        ]
    );
    assert_eq!(plan(&reported(make::training(612))).status.curriculum, None, "a run without a curriculum has none");
}

/// A report that was shortened to fit has no list of phases, and a pod that has just started has not reported any.
#[test]
fn what_the_status_knows_stays() {
    let shown = plan(&reported(TrainingState { curriculum: Some(curriculum()), ..make::training(612) })).status;
    let again = |reported_now: Option<Curriculum>| {
        let mut observed = reported(TrainingState { curriculum: reported_now, ..make::training(700) });
        observed.object.status = Some(shown.clone());
        plan(&observed).status.curriculum.unwrap()
    };
    let short = Curriculum { steps_done: 500, phases: Vec::new(), ..curriculum() };
    let held = shown.curriculum.clone().unwrap();
    let now = again(Some(short));
    assert_eq!((now.steps.as_str(), &now.phases), ("500/400", &held.phases));
    assert_eq!(again(None), held);
}

/// Numbers are written at most every ten seconds, and the beginning of a phase at once.
#[test]
fn a_phase_that_begins_is_written_at_once() {
    let shown = plan(&reported(TrainingState { curriculum: Some(curriculum()), ..make::training(612) })).status;
    let next = |reported_now: Curriculum| {
        let mut observed = reported(TrainingState { curriculum: Some(reported_now), ..make::training(620) });
        observed.object.status = Some(shown.clone());
        observed.status_written_at = Some(make::at(99));
        plan(&observed).status.curriculum.unwrap()
    };
    assert_eq!(next(Curriculum { steps_done: 420, ..curriculum() }).steps, "412/400");
    let begun = next(Curriculum { phase: "challenge".to_owned(), index: 3, steps_done: 1, ..curriculum() });
    assert_eq!((begun.phase.as_str(), begun.steps.as_str()), ("challenge", "1/400"));
    assert_eq!(next(Curriculum { steps_done: 420, reason: None, ..curriculum() }).reason, None);
}

#[test]
fn what_a_pod_sends_is_cut_to_what_a_status_holds() {
    let long = CurriculumPhase { id: "p".repeat(500), status: PhaseStatus::Skipped, first_step: None };
    let sent = Curriculum {
        phase: "ä".repeat(500),
        reason: Some("why ".repeat(1000)),
        phases: vec![long; 500],
        ..curriculum()
    };
    let status =
        plan(&reported(TrainingState { curriculum: Some(sent), ..make::training(9) })).status.curriculum.unwrap();
    assert_eq!((status.phase.chars().count(), status.phases.len(), status.phases[0].id.len()), (63, 32, 63));
    assert_eq!(status.reason.unwrap().len(), 1024);
}
