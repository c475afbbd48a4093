//! `concurrencyPolicy: Replace`: a run that has not finished gives way to the next one.

use codex_crds::{ConditionType, EvaluationStatus, FinishedRun};
use codex_plan::{
    Event, EventType, Plan, Received,
    conditions::{find, is_true},
    evaluation,
};
use codex_reports::{Kind, State};
use codex_verdict::Verdict;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt;
use serde_json::json;

use super::{HOUR, Hourly, folder, key};
use crate::make;

/// Returns an Evaluation whose first run is at work, and is replaced once the next one is due.
fn at_work() -> Hourly {
    let mut hourly = Hourly::new();
    hourly.set("concurrencyPolicy", &json!("Replace"));
    hourly.plan(HOUR);
    assert_eq!(hourly.plan(HOUR + 1).desired.jobs[0].name_any(), "codex-e-1-lite");
    hourly
}

impl Hourly {
    /// Lets a pod, which need not exist, report that it has finished with so many right answers.
    fn hears(&mut self, pod: &str, right: u64, second: i64) {
        let observed = &mut self.0;
        let config = observed.job.as_ref().and_then(|job| job.annotations()["codex-ml.dev/config-digest"].parse().ok());
        let state = State::Evaluation(make::evaluated("a", right));
        let report = make::report(Kind::Evaluation, "evaluation-1", pod, 1, config, state);
        observed.reports.push(Received { report, pod: pod.to_owned(), at: make::at(second), contradiction: None });
    }

    /// Lets the Job complete, without a pod that is still there.
    fn complete(&mut self, second: i64) {
        let job = self.0.job.as_mut().unwrap();
        job.status = Some(make::from(json!({
            "startTime": make::at(second - 30), "completionTime": make::at(second),
            "conditions": [{"type": "Complete", "status": "True", "lastTransitionTime": make::at(second)}],
        })));
    }
}

fn history(plan: &Plan<EvaluationStatus>) -> Vec<FinishedRun> {
    plan.status.schedule.clone().unwrap().history
}

fn active(plan: &Plan<EvaluationStatus>) -> Option<i64> {
    plan.status.schedule.as_ref()?.active.as_ref().map(|run| run.number)
}

/// Returns the Events about replaced runs.
fn events(plan: &Plan<EvaluationStatus>) -> Vec<&Event> {
    plan.events.iter().filter(|event| event.reason == "RunReplaced").collect()
}

fn told(plan: &Plan<EvaluationStatus>) -> Option<&Condition> {
    find(&plan.status.conditions, ConditionType::RunsMissed)
}

#[test]
fn the_next_run_takes_the_place_of_one_that_is_at_work() {
    let mut hourly = at_work();
    let replaced = hourly.plan(2 * HOUR);
    // The decision is recorded before the Job is deleted.
    assert!(replaced.desired.jobs.iter().all(|job| job.name_any() == "codex-e-1-lite"));
    assert!(!replaced.desired.jobs.is_empty() || !replaced.desired.kept.is_empty());
    assert_eq!((active(&replaced), replaced.requeue.unwrap().as_secs()), (Some(2), 1));
    let schedule = replaced.status.schedule.clone().unwrap();
    assert_eq!((schedule.runs, schedule.last_schedule_time.map(|time| time.0)), (2, Some(make::at(2 * HOUR))));
    assert_eq!(schedule.next_schedule_time.map(|time| time.0), Some(make::at(3 * HOUR)));
    assert_eq!(schedule.missed, None, "a time at which a run starts is not missed");
    let [ended] = &schedule.history[..] else { panic!("{:?}", schedule.history) };
    assert_eq!((ended.number, ended.scheduled.0, ended.completed_at.0), (1, make::at(HOUR), make::at(2 * HOUR)));
    assert_eq!((ended.verdict, ended.reason.as_deref(), ended.reads), (None, Some("RunReplaced"), None));
    let sentence = "run 1, which was due at 2027-01-15T09:00:00Z, was replaced by run 2 before it finished";
    let events_of = events(&replaced);
    let [event] = &events_of[..] else { panic!("{:?}", replaced.events) };
    assert_eq!((event.type_, &*event.note), (EventType::Normal, sentence));
    assert!(replaced.effects.is_empty() && replaced.status.completed_at.is_none());
    let started = hourly.plan(2 * HOUR + 1);
    assert_eq!(started.desired.jobs[0].name_any(), "codex-e-2-lite");
    assert!(folder(&started).ends_with("/evaluations/evaluation-1/2"), "{}", folder(&started));
    assert!(started.desired.kept.is_empty() && events(&started).is_empty(), "the former Job is deleted");
    assert_eq!(told(&started).map(|told| (&*told.reason, &*told.message)), Some(("RunReplaced", sentence)));
    let judged = hourly.finish("b", 500, 2 * HOUR + 100);
    assert!(key(&judged).starts_with("evaluation-1/2/"), "{}", key(&judged));
    assert_eq!(history(&judged).iter().map(|run| run.verdict).collect::<Vec<_>>(), [Some(Verdict::Passed), None]);
    assert!(told(&judged).is_none(), "a run has finished");
}

#[test]
fn a_verdict_outlives_runs_that_are_replaced_and_the_status_says_so() {
    let mut hourly = at_work();
    let passed = hourly.finish("a", 500, HOUR + 100).status;
    for run in 2..=14 {
        let due = hourly.plan(run * HOUR);
        assert_eq!((active(&due), events(&due).len()), (Some(run), usize::from(run > 2)));
        for plan in [due, hourly.plan(run * HOUR + 1)] {
            assert_eq!((plan.status.verdict, plan.status.report_digest), (passed.verdict, passed.report_digest));
            assert_eq!(plan.status.completed_at, passed.completed_at);
            assert!(is_true(&plan.status.conditions, ConditionType::Ready));
            assert_eq!(told(&plan).is_some(), run > 2, "run {run}");
        }
    }
    let plan = hourly.plan(14 * HOUR + 2);
    let message = &told(&plan).unwrap().message;
    assert!(
        message.starts_with("run 13, which was due at ") && message.contains(", was replaced by run 14 "),
        "{message}"
    );
    assert!(message.contains("the 9 runs before it: let spec.schedule.cron name fewer times, or set "), "{message}");
}

#[test]
fn a_late_report_of_a_replaced_run_is_not_that_of_the_next_one() {
    let mut hourly = at_work();
    hourly.plan(2 * HOUR);
    hourly.plan(2 * HOUR + 1);
    hourly.hears("codex-e-1-lite-x", 500, 2 * HOUR + 2);
    hourly.complete(2 * HOUR + 40);
    let stuck = hourly.plan(2 * HOUR + 200).status;
    let run = stuck.schedule.unwrap().active.unwrap();
    assert_eq!((run.number, run.report_digest, run.work.attempts), (2, None, None), "nothing of the former pod counts");
    assert!(evaluation::uncounted(&hourly.0, make::at(2 * HOUR + 200)).is_none());
    // The same report of a pod of this run counts.
    hourly.hears("codex-e-2-lite-y", 500, 2 * HOUR + 39);
    assert_eq!(hourly.plan(2 * HOUR + 201).status.verdict, Some(Verdict::Passed));
}

#[test]
fn a_run_whose_result_is_reported_is_judged_and_its_read_is_counted() {
    let mut hourly = at_work();
    hourly.hears("a", 500, HOUR + 50);
    hourly.0.pods = vec![make::from(json!({
        "metadata": {"name": "a", "uid": "a", "namespace": "team"},
        "status": {"containerStatuses": [{
            "name": "any", "image": "codex:dev", "imageID": "sha256:image", "ready": true, "restartCount": 0,
            "state": {"running": {"startedAt": make::at(HOUR + 2)}},
        }]},
    }))];
    for second in [HOUR + 60, 2 * HOUR, 2 * HOUR + 5] {
        let plan = hourly.plan(second);
        assert_eq!((active(&plan), events(&plan).len(), history(&plan).len()), (Some(1), 0, 0));
    }
    hourly.0.reports.clear();
    let judged = hourly.finish("a", 500, 2 * HOUR + 10);
    assert!(key(&judged).starts_with("evaluation-1/1/"));
    assert_eq!((judged.status.verdict, history(&judged).len()), (Some(Verdict::Passed), 1));
    let next = hourly.plan(2 * HOUR + 11);
    let schedule = next.status.schedule.clone().unwrap();
    assert_eq!((active(&next), schedule.last_schedule_time.map(|time| time.0)), (Some(2), Some(make::at(2 * HOUR))));
    assert!(schedule.missed.is_none());
}

#[test]
fn a_job_that_has_just_completed_is_not_replaced() {
    let mut hourly = at_work();
    hourly.complete(2 * HOUR - 10);
    assert_eq!(active(&hourly.plan(2 * HOUR)), Some(1), "its final report may still arrive");
    assert_eq!(active(&hourly.plan(2 * HOUR + 51)), Some(2), "it did not");
}

#[test]
fn nothing_is_replaced_while_the_evaluation_or_its_schedule_is_suspended() {
    let mut hourly = at_work();
    hourly.0.object.spec.suspend = true;
    assert_eq!(active(&hourly.plan(2 * HOUR)), Some(1));
    hourly.0.object.spec.suspend = false;
    hourly.set("suspend", &json!(true));
    assert_eq!(active(&hourly.plan(2 * HOUR + 1)), Some(1));
    hourly.set("suspend", &json!(false));
    let resumed = hourly.plan(2 * HOUR + 2);
    let due = resumed.status.schedule.as_ref().unwrap().last_schedule_time.as_ref().map(|time| time.0);
    assert_eq!((active(&resumed), due), (Some(2), Some(make::at(2 * HOUR))), "the latest time starts a run");
}

#[test]
fn the_policy_of_now_decides_about_a_run_that_is_at_work() {
    let mut hourly = at_work();
    hourly.set("concurrencyPolicy", &json!("Forbid"));
    assert_eq!(active(&hourly.plan(2 * HOUR)), Some(1));
    hourly.set("concurrencyPolicy", &json!("Replace"));
    assert_eq!(active(&hourly.plan(2 * HOUR + 600)), Some(2));
    hourly.set("concurrencyPolicy", &json!("Forbid"));
    hourly.plan(2 * HOUR + 601);
    assert_eq!(active(&hourly.plan(3 * HOUR)), Some(2));
}

#[test]
fn a_time_that_is_missed_by_more_than_the_deadline_replaces_nothing() {
    let mut hourly = at_work();
    hourly.set("startingDeadlineSeconds", &json!(60));
    let late = hourly.plan(2 * HOUR + 120);
    assert_eq!((active(&late), told(&late).map(|told| &*told.reason)), (Some(1), Some("RunsMissed")));
    let missed = late.status.schedule.clone().unwrap().missed;
    assert_eq!(missed.map(|missed| (missed.count, missed.last.0)), Some((1, make::at(2 * HOUR))));
    let timely = hourly.plan(3 * HOUR + 30);
    assert_eq!((active(&timely), told(&timely).map(|told| &*told.reason)), (Some(2), Some("RunReplaced")));
}

/// The controller ends before the status is written, and between that and the next plan.
#[test]
fn a_controller_that_restarts_while_it_replaces_a_run_replaces_it_once() {
    let mut hourly = at_work();
    let before = hourly.0.clone();
    let lost = hourly.plan(2 * HOUR);
    hourly.0 = before;
    let again = hourly.plan(2 * HOUR + 3);
    assert_eq!((active(&again), history(&again).len()), (active(&lost), 1));
    for second in [600, 601, 602] {
        let plan = hourly.plan(2 * HOUR + second);
        assert_eq!((active(&plan), history(&plan).len(), events(&plan).len()), (Some(2), 1, 0));
        assert_eq!(evaluation::job_name(&hourly.0.object, &hourly.0.seal), "codex-e-2-lite");
    }
}

/// A run that fails keeps its reason in the history.
#[test]
fn the_history_says_why_a_run_ended_without_a_verdict() {
    let mut hourly = at_work();
    let job = hourly.0.job.as_mut().unwrap();
    job.status = Some(make::from(json!({
        "startTime": make::at(HOUR + 2),
        "conditions": [{
            "type": "Failed", "status": "True", "reason": "BackoffLimitExceeded",
            "lastTransitionTime": make::at(HOUR + 90),
        }],
    })));
    let failed = hourly.plan(HOUR + 100);
    let ended = history(&failed);
    let [run] = &ended[..] else { panic!("{:?}", failed.status) };
    assert_eq!((run.verdict, run.reason.as_deref()), (None, Some("RetriesExhausted")));
    assert_eq!(active(&hourly.plan(2 * HOUR)), Some(2));
    assert_eq!(events(&hourly.plan(2 * HOUR + 1)).len(), 0, "a run that has failed is not replaced");
}
