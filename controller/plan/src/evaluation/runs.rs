//! The runs of a repeated Evaluation. Each is planned as an Evaluation that runs once, with its own Job, folder and read; this file starts
//! them, and puts the status together: the latest finished run, and beside it the one that is at work. Pure.

use std::time::Duration;

use codex_crds::{
    ActiveRun, ConcurrencyPolicy, ConditionType, Evaluation, EvaluationStatus, FinishedRun, MAX_FINISHED, MissedRuns,
    Reason, Schedule, ScheduleStatus, child,
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

use super::{
    gates::{gates, judged_again},
    observed::ObservedEvaluation,
    status::with_result,
};
use crate::{
    conditions::find,
    plan::{Event, EventType, Plan},
    seal::{Sealable, StatusSeal},
    throttle,
    times::{MAX_COUNT, Times},
};

/// The longest time that a plan waits. Timers have a limit, and cron can name times in years.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// How soon a run that was started is planned.
const AT_ONCE: Duration = Duration::from_secs(1);

/// What the schedule adds to the plan of one run. The default adds nothing: the plan of an Evaluation that runs once.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Turn {
    /// The run that is planned.
    pub(crate) run: Option<Run>,
    /// What is waited for, while there has been no run.
    pub(crate) waits: Option<String>,
    /// A run that has just been started.
    pub(crate) starts: Option<String>,
    /// What is wrong with the schedule.
    pub(crate) problem: Option<String>,
    /// What was missed.
    pub(crate) missed: Option<String>,
    /// Which run was replaced, until one finishes.
    pub(crate) replaced: Option<String>,
    /// Whether the status describes the verdict of an earlier run.
    pub(crate) holds: bool,
}

/// One run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) number: i64,
    pub(crate) scheduled: Timestamp,
}

impl Run {
    /// Returns the folder of the results below `evaluations`.
    pub(crate) fn folder(&self, uid: &str) -> String {
        format!("{uid}/{}", self.number)
    }

    /// Returns the key of the read. The time keeps it apart from a run of the same number before the status was discarded.
    pub(crate) fn key(&self, uid: &str) -> String {
        format!("{uid}/{}/{}", self.number, self.scheduled.as_second())
    }
}

/// An Evaluation whose schedule has been looked at.
pub(super) struct Scheduled {
    /// The observation of the run that is planned.
    pub(super) observed: ObservedEvaluation,
    pub(super) turn: Turn,
    /// The status of the latest finished run, as it is recorded.
    recorded: EvaluationStatus,
    schedule: ScheduleStatus,
    /// When to look at the schedule again.
    due: Option<Duration>,
    /// The runs, and what is said about the start, if the next run is to replace the one that is at work.
    next: Option<(ScheduleStatus, String)>,
}

/// Returns the name of the Job of an Evaluation. `seal` is what the seal of its status says.
pub fn job_name(object: &Evaluation, seal: &StatusSeal) -> String {
    let name = object.name_any();
    if object.spec.schedule.is_none() {
        return child::evaluator(&name);
    }
    let schedule = object.status.as_ref().filter(|_| *seal == StatusSeal::Valid).and_then(|it| it.schedule.as_ref());
    child::evaluator_run(&name, schedule.map_or(0, |schedule| schedule.runs))
}

impl Scheduled {
    /// Looks at the schedule, and starts a run that is due.
    pub(super) fn of(observed: &ObservedEvaluation, schedule: &Schedule, now: Timestamp) -> Self {
        let mut recorded = observed.object.status.clone().unwrap_or_default().believed(&observed.seal);
        let mut runs = recorded.schedule.take().unwrap_or_default();
        let running = runs.active.clone();
        let mut turn = Turn { run: runs.current(), holds: holds(&recorded), ..Turn::default() };
        let (mut due, mut replacing) = (None, None);
        match Times::of(schedule, "spec.schedule") {
            Err(why) => {
                turn.problem = Some(why);
                runs.next_schedule_time = None;
            }
            Ok(times) => {
                let next = times.next(now).filter(|_| !schedule.suspend);
                runs.next_schedule_time = next.map(Time);
                due = next.map(|next| throttle::until(now, next));
                if next.is_none() && !schedule.suspend {
                    turn.problem = Some(format!("spec.schedule.cron {:?} names no time: change it", schedule.cron));
                }
                let since = since(&observed.object, &runs, now);
                if running.is_none() && !schedule.suspend {
                    turn.starts = runs.start(&times, schedule, since, now);
                    if turn.starts.is_some() {
                        due = Some(AT_ONCE);
                    }
                } else if running.is_some() && replaces(&observed.object, schedule) {
                    let mut next = runs.clone();
                    match next.start(&times, schedule, since, now) {
                        Some(starts) => replacing = Some((next, starts)),
                        // Only what was missed differs.
                        None => runs = next,
                    }
                }
            }
        }
        (turn.missed, turn.replaced) = (missed(&runs, schedule), replaced(&runs));
        if turn.run.is_none() {
            turn.waits = Some(match (&turn.starts, &runs.next_schedule_time) {
                (Some(starts), _) => starts.clone(),
                (None, Some(next)) => format!("the first run is due at {}", next.0),
                (None, None) => "spec.schedule.suspend is true: set it to false to start runs".to_owned(),
            });
        }
        let mut observed = observed.clone();
        let status = running.as_ref().map_or_else(|| recorded.clone(), |active| one(active, &recorded));
        // What pods of former runs reported does not count, however late they did. A clock that is behind must not hide the reports of
        // pods that exist.
        let began = running.map(|run| (child::evaluator_run_prefix(run.number), run.since.0));
        let exists = |uid: &str| observed.pods.iter().any(|pod| pod.uid().as_deref() == Some(uid));
        observed.reports.retain(|it| {
            let of_run = |(prefix, began): &(String, Timestamp)| it.pod.starts_with(prefix) && it.at >= *began;
            exists(&it.report.pod_uid) || began.as_ref().is_some_and(of_run)
        });
        if observed.object.status.is_some() {
            observed.object.status = Some(status);
        }
        Self { observed, turn, recorded, schedule: runs, due, next: replacing }
    }

    /// Returns the schedule once the next run has replaced the one that is at work; `None` if it is not to be replaced. The run must have
    /// said that it [gives way](super::stage::Stage::gives_way).
    pub(super) fn replacing(&self, schedule: &Schedule, now: Timestamp) -> Option<Self> {
        let (mut next, starts) = self.next.clone()?;
        let former = self.schedule.active.as_ref()?;
        next.end(FinishedRun {
            number: former.number,
            scheduled: former.scheduled.clone(),
            completed_at: Time(now),
            verdict: None,
            reason: Some(Reason::RunReplaced.name().to_owned()),
            report_digest: None,
            reads: None,
        });
        let (missed, replaced) = (missed(&next, schedule), replaced(&next));
        Some(Self {
            observed: self.observed.clone(),
            turn: Turn { starts: Some(starts), missed, replaced, ..self.turn.clone() },
            recorded: self.recorded.clone(),
            schedule: next,
            due: Some(AT_ONCE),
            next: None,
        })
    }

    /// Returns the plan of the object from that of its run.
    pub(super) fn plan(self, run: Plan<EvaluationStatus>) -> Plan<EvaluationStatus> {
        let Self { turn, recorded, mut schedule, due, observed, next: _ } = self;
        let Plan { desired, effects, status, mut events, requeue } = run;
        // A run that has just been started is planned next; until then the plan is that of the former one.
        if let Some(active) = schedule.active.take_if(|_| turn.starts.is_none()) {
            match &status.completed_at {
                Some(completed_at) => schedule.end(finished(&active, &status, completed_at)),
                None => schedule.active = Some(continued(active, &status)),
            }
        }
        let holds = turn.holds && status.completed_at.is_none();
        let status = if holds { held(recorded, &status, &observed) } else { status };
        // A run that starts while the latest one that ended was replaced is the one that replaces it.
        let replaced = turn.replaced.filter(|_| turn.starts.is_some());
        events.extend(replaced.and_then(|note| replacement(&events, note)));
        let requeue = [requeue, due].into_iter().flatten().min().map(|again| again.min(LONGEST));
        Plan { desired, effects, status: EvaluationStatus { schedule: Some(schedule), ..status }, events, requeue }
    }
}

/// What a plan reads and changes of the recorded runs.
trait Runs {
    /// Returns the run that is at work, or the latest one.
    fn current(&self) -> Option<Run>;

    /// Starts a run if one is due, and says so; records what was missed.
    fn start(&mut self, times: &Times, schedule: &Schedule, since: Timestamp, now: Timestamp) -> Option<String>;

    /// Adds a run that has ended to the history.
    fn end(&mut self, run: FinishedRun);
}

impl Runs for ScheduleStatus {
    fn current(&self) -> Option<Run> {
        let active = self.active.as_ref().map(|run| Run { number: run.number, scheduled: run.scheduled.0 });
        active.or_else(|| {
            let latest = self.history.first()?;
            Some(Run { number: latest.number, scheduled: latest.scheduled.0 })
        })
    }

    fn start(&mut self, times: &Times, schedule: &Schedule, since: Timestamp, now: Timestamp) -> Option<String> {
        let latest = times.latest(now).filter(|latest| *latest > since)?;
        let count = times.count(since, latest);
        let late = schedule.starting_deadline_seconds.is_some_and(|deadline| {
            latest.checked_add(SignedDuration::from_secs(deadline)).is_ok_and(|deadline| deadline < now)
        });
        if late {
            self.missed = Some(MissedRuns { count, last: Time(latest) });
            return None;
        }
        // The latest one starts now, the others were missed.
        let before = times.before(latest).filter(|_| count > 1);
        self.missed = before
            .map(|last| MissedRuns { count: if count < MAX_COUNT { count - 1 } else { count }, last: Time(last) });
        self.runs = self.runs.saturating_add(1);
        self.last_schedule_time = Some(Time(latest));
        self.active = Some(ActiveRun {
            number: self.runs,
            scheduled: Time(latest),
            since: Time(now),
            config_digest: None,
            model: None,
            metrics: Vec::new(),
            outcomes: None,
            page: None,
            device: None,
            golden_tokens: None,
            references: Vec::new(),
            report_digest: None,
            data_digests: Vec::new(),
            work: codex_crds::WorkStatus::default(),
        });
        Some(format!("run {}, which was due at {latest}, is starting", self.runs))
    }

    fn end(&mut self, run: FinishedRun) {
        self.history.insert(0, run);
        self.history.truncate(MAX_FINISHED);
    }
}

/// Whether the run that is at work is replaced once the next one is due. A run that `spec.suspend` stops stays.
fn replaces(object: &Evaluation, schedule: &Schedule) -> bool {
    schedule.concurrency_policy == ConcurrencyPolicy::Replace && !schedule.suspend && !object.spec.suspend
}

/// Returns the time after which due times count: that of the latest run, the latest that was missed, or the creation.
fn since(object: &Evaluation, runs: &ScheduleStatus, now: Timestamp) -> Timestamp {
    let created = object.creation_timestamp().map_or(now, |time| time.0);
    let last = runs.last_schedule_time.as_ref().map(|time| time.0);
    let missed = runs.missed.as_ref().map(|missed| missed.last.0);
    [Some(created), last, missed].into_iter().flatten().max().unwrap_or(now)
}

/// Whether a status records a verdict.
fn holds(status: &EvaluationStatus) -> bool {
    status.completed_at.is_some() && !status.metrics.is_empty()
}

/// Says which run was replaced, if no run has finished since.
fn replaced(runs: &ScheduleStatus) -> Option<String> {
    let replaced = |run: &&FinishedRun| run.reason.as_deref() == Some(Reason::RunReplaced.name());
    let FinishedRun { number, scheduled, .. } = runs.history.first().filter(replaced)?;
    let told = format!(
        "run {number}, which was due at {}, was replaced by run {} before it finished",
        scheduled.0,
        number.saturating_add(1)
    );
    let advice = "let spec.schedule.cron name fewer times, or set spec.schedule.concurrencyPolicy to Forbid";
    Some(match runs.history.iter().take_while(replaced).count() - 1 {
        0 => told,
        1 => format!("{told}, and so was the run before it: {advice}"),
        before => format!("{told}, and so were the {before} runs before it: {advice}"),
    })
}

/// Returns the Event of a replacement, unless the condition that says so causes it.
fn replacement(events: &[Event], note: String) -> Option<Event> {
    let reason = Reason::RunReplaced.name();
    events.iter().all(|event| event.reason != reason).then(|| Event {
        type_: EventType::Normal,
        reason: reason.to_owned(),
        action: ConditionType::RunsMissed.name().to_owned(),
        note,
    })
}

/// Says what was missed.
fn missed(runs: &ScheduleStatus, schedule: &Schedule) -> Option<String> {
    let MissedRuns { count, last } = runs.missed.as_ref()?;
    let times = match *count {
        1 => "1 time of spec.schedule has passed without a run,".to_owned(),
        MAX_COUNT.. => {
            format!("more than {} times of spec.schedule have passed without a run, the latest", MAX_COUNT - 1)
        }
        count => format!("{count} times of spec.schedule have passed without a run, the latest"),
    };
    let deadline = schedule.starting_deadline_seconds.map_or_else(String::new, |deadline| {
        format!("; a run starts at most {deadline} s late (spec.schedule.startingDeadlineSeconds)")
    });
    Some(format!(
        "{times} {}: the former run was still at work, spec.schedule.suspend was true, or the controller did not run{deadline}",
        last.0
    ))
}

/// Returns the status of a run that is at work, as that of an Evaluation that runs once.
fn one(active: &ActiveRun, recorded: &EvaluationStatus) -> EvaluationStatus {
    let run = active.clone();
    EvaluationStatus {
        observed_generation: recorded.observed_generation,
        training_run_uid: recorded.training_run_uid.clone(),
        seal: recorded.seal.clone(),
        conditions: recorded.conditions.clone(),
        config_digest: run.config_digest,
        model: run.model,
        metrics: run.metrics,
        outcomes: run.outcomes,
        page: run.page,
        device: run.device,
        golden_tokens: run.golden_tokens,
        references: run.references,
        report_digest: run.report_digest,
        data_digests: run.data_digests,
        work: run.work,
        ..EvaluationStatus::default()
    }
}

/// Returns a run with what its plan recorded.
fn continued(active: ActiveRun, status: &EvaluationStatus) -> ActiveRun {
    let run = status.clone();
    ActiveRun {
        config_digest: run.config_digest,
        model: run.model,
        metrics: run.metrics,
        outcomes: run.outcomes,
        page: run.page,
        device: run.device,
        golden_tokens: run.golden_tokens,
        references: run.references,
        report_digest: run.report_digest,
        data_digests: run.data_digests,
        work: run.work,
        ..active
    }
}

/// Returns a finished run, as the history lists it.
fn finished(active: &ActiveRun, status: &EvaluationStatus, completed_at: &Time) -> FinishedRun {
    let stalled = find(&status.conditions, ConditionType::Stalled).filter(|_| status.verdict.is_none());
    FinishedRun {
        number: active.number,
        scheduled: active.scheduled.clone(),
        completed_at: completed_at.clone(),
        verdict: status.verdict,
        reason: stalled.map(|stalled| stalled.reason.clone()),
        report_digest: status.report_digest.filter(|_| status.verdict.is_some()),
        reads: status.reads,
    }
}

/// Returns the status of the latest finished run beside one that is at work. What is not sealed is computed again.
fn held(recorded: EvaluationStatus, run: &EvaluationStatus, observed: &ObservedEvaluation) -> EvaluationStatus {
    let gates = gates(&observed.object.spec.gates).unwrap_or_default();
    let judged = judged_again(&recorded, &gates);
    let recorded = EvaluationStatus {
        observed_generation: run.observed_generation,
        phase: run.phase,
        conditions: run.conditions.clone(),
        ..recorded
    };
    match judged {
        Some(judged) => with_result(recorded, &judged),
        None => recorded,
    }
}
