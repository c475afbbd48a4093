//! Evaluations with a schedule: when runs start, and what stays of the former ones.

use codex_crds::{ConditionType, EvaluationStatus};
use codex_plan::{
    Effect, Plan, Received,
    conditions::{find, is_true},
    evaluation::{self, ObservedEvaluation},
    reasoning_pod,
};
use codex_reports::{Device, EvaluationState, Kind, State};
use codex_verdict::Verdict;
use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::{
    make,
    policies::serving,
    properties::{judged, trained},
    world::World,
};

mod replaced;

/// The first time of the schedule, which is due every hour.
const HOUR: i64 = 3_600;

/// An Evaluation that runs every hour.
struct Hourly(ObservedEvaluation);

impl Hourly {
    fn new() -> Self {
        let mut observed = World::new().observed_evaluation();
        observed.object.spec.schedule = Some(make::from(json!({"cron": "0 * * * *"})));
        observed.object.metadata.creation_timestamp = make::from(json!(make::at(0)));
        observed.run = Some(trained());
        Self(observed)
    }

    /// Sets a field of the schedule.
    fn set(&mut self, field: &str, value: &Value) {
        let schedule = &mut self.0.object.spec.schedule;
        let mut changed = serde_json::to_value(&*schedule).unwrap();
        changed[field] = value.clone();
        *schedule = make::from(changed);
    }

    /// Plans, and lets the plan come true.
    fn plan(&mut self, second: i64) -> Plan<EvaluationStatus> {
        let observed = &mut self.0;
        let plan = evaluation::plan(observed, make::at(second));
        assert!(plan.desired.jobs.len() <= 1);
        observed.object.status = Some(plan.status.clone());
        if let Some(job) = plan.desired.jobs.first() {
            observed.job = Some(job.clone());
        }
        let name = evaluation::job_name(&observed.object, &observed.seal);
        if observed.job.as_ref().is_some_and(|job| job.name_any() != name) {
            (observed.job, observed.pods) = (None, Vec::new());
        }
        plan
    }

    /// Lets the pod of the run that is at work report so many right answers, and plans.
    fn finish(&mut self, pod: &str, right: u64, second: i64) -> Plan<EvaluationStatus> {
        let observed = &mut self.0;
        let config = observed.job.as_ref().and_then(|job| job.annotations()["codex-ml.dev/config-digest"].parse().ok());
        let state = State::Evaluation(make::evaluated("a", right));
        let report = make::report(Kind::Evaluation, "evaluation-1", pod, 1, config, state);
        observed.pods = vec![make::from(json!({
            "metadata": {"name": pod, "uid": pod, "namespace": "team"},
            "status": {"containerStatuses": [{
                "name": "any", "image": "codex:dev", "imageID": "sha256:image", "ready": false, "restartCount": 0,
                "state": {"terminated": {
                    "exitCode": 0, "message": serde_json::to_string(&report).unwrap(), "startedAt": make::at(second - 5),
                    "finishedAt": make::at(second),
                }},
            }]},
        }))];
        observed.reports.push(Received { report, pod: pod.to_owned(), at: make::at(second), contradiction: None });
        self.plan(second)
    }
}

fn folder(plan: &Plan<EvaluationStatus>) -> String {
    let pod = plan.desired.jobs[0].spec.clone().unwrap().template.spec.unwrap();
    let mounts = pod.containers[0].volume_mounts.clone().unwrap();
    mounts.iter().find(|mount| mount.mount_path == "/output").unwrap().sub_path.clone().unwrap()
}

fn key(plan: &Plan<EvaluationStatus>) -> String {
    let [Effect::RecordRead(read)] = &plan.effects[..] else { panic!("{:?}", plan.effects) };
    read.key.clone()
}

#[test]
fn each_run_has_a_job_a_folder_and_a_read_of_its_own() {
    let mut hourly = Hourly::new();
    let waiting = hourly.plan(10);
    assert!(waiting.desired.jobs.is_empty());
    assert_eq!(waiting.requeue.unwrap().as_secs(), 3_590, "nothing is done before the first time");
    let (mut names, mut folders, mut keys) = (Vec::new(), Vec::new(), Vec::new());
    for run in 1..=12 {
        let start = run * HOUR;
        assert!(hourly.plan(start).desired.jobs.is_empty(), "the former Job is not the new one");
        let started = hourly.plan(start + 1);
        names.push(started.desired.jobs[0].name_any());
        folders.push(folder(&started));
        let judged = hourly.finish(&format!("pod-{run}"), 500, start + 100);
        keys.push(key(&judged));
        let schedule = judged.status.schedule.clone().unwrap();
        assert_eq!((schedule.runs, schedule.active), (run, None));
        assert_eq!(schedule.history[0].number, run);
        assert_eq!(judged.requeue.unwrap().as_secs(), 3_500, "the next time");
        assert_eq!(hourly.plan(start + 200).desired.jobs.len(), 0);
    }
    assert_eq!((&*names[0], &*names[11]), ("codex-e-1-lite", "codex-e-12-lite"));
    assert!(folders[1].ends_with("/evaluations/evaluation-1/2"), "{}", folders[1]);
    for mut each in [names, folders, keys] {
        each.sort();
        each.dedup();
        assert_eq!(each.len(), 12);
    }
    let history = hourly.0.object.status.unwrap().schedule.unwrap().history;
    assert_eq!((history.len(), history[0].number, history[9].number), (10, 12, 3));
}

#[test]
fn a_verdict_stays_until_the_next_run_has_one() {
    let mut hourly = Hourly::new();
    hourly.plan(HOUR);
    hourly.plan(HOUR + 1);
    let passed = hourly.finish("a", 500, HOUR + 100);
    assert_eq!(passed.status.verdict, Some(Verdict::Passed));
    hourly.plan(2 * HOUR);
    for second in [1, 2, 50] {
        let running = hourly.plan(2 * HOUR + second).status;
        assert_eq!((running.verdict, running.report_digest), (Some(Verdict::Passed), passed.status.report_digest));
        assert_eq!(running.completed_at, passed.status.completed_at);
        assert!(
            is_true(&running.conditions, ConditionType::Ready)
                && is_true(&running.conditions, ConditionType::GatesPassed)
        );
        assert!(is_true(&running.conditions, ConditionType::Reconciling));
        assert_eq!(running.schedule.unwrap().active.map(|run| run.number), Some(2));
    }
    // What the pod of the first run reported is not the result of the second one.
    assert_eq!(hourly.0.reports.len(), 1);
    let failed = hourly.finish("b", 300, 2 * HOUR + 100);
    assert_eq!(failed.status.verdict, Some(Verdict::Failed));
    assert!(!is_true(&failed.status.conditions, ConditionType::GatesPassed));
    let history = failed.status.schedule.unwrap().history;
    assert_eq!(
        history.iter().map(|run| run.verdict).collect::<Vec<_>>(),
        [Some(Verdict::Failed), Some(Verdict::Passed)]
    );
}

#[test]
fn the_device_of_a_run_is_kept_until_its_verdict() {
    let mut hourly = Hourly::new();
    hourly.plan(HOUR);
    hourly.plan(HOUR + 1);
    let observed = &mut hourly.0;
    let config = observed.job.as_ref().and_then(|job| job.annotations()["codex-ml.dev/config-digest"].parse().ok());
    let engine = "cpu-bf16-avx512".to_owned();
    let device = Device { name: "AMD EPYC".to_owned(), engine, driver: None, memory_bytes: None, fallback: None };
    let state = State::Evaluation(EvaluationState { device: Some(device), ..make::evaluated("a", 500) });
    let report = make::report(Kind::Evaluation, "evaluation-1", "pod", 1, config, state);
    observed.pods = vec![make::from(json!({
        "metadata": {"name": "pod", "uid": "pod", "namespace": "team"},
        "status": {"containerStatuses": [{
            "name": "any", "image": "codex:dev", "imageID": "sha256:image", "ready": true, "restartCount": 0,
            "state": {"running": {"startedAt": make::at(HOUR + 2)}},
        }]},
    }))];
    observed.reports = vec![Received { report, pod: "pod".to_owned(), at: make::at(HOUR + 40), contradiction: None }];
    let active = |plan: Plan<EvaluationStatus>| plan.status.schedule?.active?.device;
    let reported = active(hourly.plan(HOUR + 50));
    assert_eq!(reported.as_ref().map(|device| &*device.engine), Some("cpu-bf16-avx512"));
    // A controller that was restarted has no reports.
    hourly.0.reports.clear();
    assert_eq!(active(hourly.plan(HOUR + 60)), reported);
    let judged = hourly.finish("pod", 500, HOUR + 100).status;
    assert_eq!((judged.verdict, judged.device), (Some(Verdict::Passed), reported));
}

#[test]
fn a_run_that_is_at_work_forbids_the_next_one() {
    let mut hourly = Hourly::new();
    hourly.plan(HOUR);
    hourly.plan(HOUR + 1);
    for second in [2 * HOUR, 3 * HOUR, 3 * HOUR + 1] {
        let plan = hourly.plan(second);
        assert!(plan.desired.jobs.is_empty());
        assert_eq!(plan.status.schedule.unwrap().runs, 1);
    }
    hourly.finish("a", 500, 3 * HOUR + 60);
    let late = hourly.plan(3 * HOUR + 61).status;
    let schedule = late.schedule.unwrap();
    assert_eq!((schedule.runs, schedule.last_schedule_time.map(|time| time.0)), (2, Some(make::at(3 * HOUR))));
    assert_eq!(schedule.missed.map(|missed| (missed.count, missed.last.0)), Some((1, make::at(2 * HOUR))));
    let told = find(&late.conditions, ConditionType::RunsMissed).unwrap();
    assert!(
        told.message.starts_with("1 time of spec.schedule has passed without a run, 2027-01-15T10:00:00Z"),
        "{}",
        told.message
    );
    // The next run in time clears the condition.
    hourly.plan(3 * HOUR + 62);
    hourly.finish("b", 500, 3 * HOUR + 100);
    let timely = hourly.plan(4 * HOUR).status;
    assert!(find(&timely.conditions, ConditionType::RunsMissed).is_none());
}

/// What a later run measures decides about what would be rolled out anew, and not about what serves.
#[test]
fn a_later_failure_blocks_rollouts_and_drains_nothing() {
    let mut observed = serving();
    let before = reasoning_pod::plan(&observed, make::at(9));
    assert!(is_true(&before.status.conditions, ConditionType::GatesPassed) && before.status.blocked_by.is_empty());
    let run = observed.run.clone().unwrap();
    for (name, evaluation) in &mut observed.evaluations {
        evaluation.status = judged(&run, name, 300).status;
    }
    observed.object.status = Some(before.status);
    let blocked = reasoning_pod::plan(&observed, make::at(10));
    assert!(!is_true(&blocked.status.conditions, ConditionType::GatesPassed) && blocked.effects.is_empty());
    assert!(!blocked.status.blocked_by.is_empty(), "{:?}", blocked.status);
    let servers = |deployments: &[Deployment]| {
        let spec = deployments[0].spec.clone().unwrap();
        (spec.replicas, spec.template.spec)
    };
    assert_eq!(servers(&blocked.desired.deployments), servers(&before.desired.deployments));
    assert_eq!(servers(&blocked.desired.deployments).0, Some(2));
}

#[test]
fn a_discarded_status_starts_anew_and_counts_another_read() {
    let mut hourly = Hourly::new();
    hourly.plan(HOUR);
    hourly.plan(HOUR + 1);
    let first = key(&hourly.finish("a", 500, HOUR + 100));
    hourly.0.seal = codex_plan::StatusSeal::Broken;
    let anew = hourly.plan(2 * HOUR + 100).status;
    assert_eq!((anew.verdict, anew.schedule.as_ref().map(|schedule| schedule.runs)), (None, Some(1)));
    hourly.0.seal = codex_plan::StatusSeal::Valid;
    hourly.plan(2 * HOUR + 101);
    let second = key(&hourly.finish("b", 500, 2 * HOUR + 200));
    assert_ne!(first, second);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    /// However late and however often it is planned, no run starts twice for a time, each ends once, and the next look is in time.
    #[test]
    fn runs_follow_the_times(
        gaps in prop::collection::vec(1_i64..20_000, 1..20), finishes in prop::collection::vec(any::<bool>(), 20),
        policy in prop::sample::select(vec!["Forbid", "Replace"]),
    ) {
        let mut hourly = Hourly::new();
        hourly.set("concurrencyPolicy", &json!(policy));
        let (mut second, mut runs, mut last) = (0, 0, None);
        for (gap, finishes) in gaps.into_iter().zip(finishes) {
            second += gap;
            let plan = if finishes && hourly.0.job.is_some() && hourly.0.object.status.as_ref().is_some_and(|it| it.schedule.as_ref().is_some_and(|it| it.active.is_some())) {
                hourly.finish(&format!("pod-{second}"), 500, second)
            } else {
                hourly.plan(second)
            };
            let schedule = plan.status.schedule.unwrap();
            prop_assert!(schedule.runs == runs || schedule.runs == runs + 1);
            if schedule.runs > runs {
                let time = schedule.last_schedule_time.as_ref().map(|time| time.0);
                prop_assert!(time > last && time <= Some(make::at(second)));
                last = time;
            }
            runs = schedule.runs;
            let ended = if schedule.active.is_some() { runs - 1 } else { runs };
            prop_assert!(schedule.history.iter().map(|run| run.number).eq((1..=ended).rev().take(10)));
            let next = schedule.next_schedule_time.unwrap().0;
            prop_assert!(next > make::at(second));
            let again = plan.requeue.unwrap().as_secs();
            prop_assert!(again >= 1 && i64::try_from(again).unwrap() <= next.as_second() - make::at(second).as_second());
        }
    }
}
