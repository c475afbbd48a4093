//! Regular redeployment: when a cycle starts, where it stands, and how it ends. Pure.
//!
//! As for canaries, a decision is recorded in the status before it is carried out: a cycle is recorded before its objects are created,
//! and that it is rolled out before anything is signed for it. Where a cycle stands is judged anew by each plan.

use std::{collections::BTreeSet, time::Duration};

use codex_crds::{
    ConditionType, CyclePhase, CycleRecord, CycleStatus, Evaluation, EvaluationPhase, MAX_HISTORY, MissedRuns, Reason,
    ReasoningPodStatus, Redeploy, RedeployStatus, ServedStatus, TrainingRunPhase, child,
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

use super::{
    canary::Next,
    cycles::recorded,
    evidence::{About, Block, Evidence},
    guarded::waits,
    observed::ObservedReasoningPod,
    stage::Stage,
    trial::{self, Trial},
    view::View,
};
use crate::{
    conditions::{Conditions, Truth},
    evaluation,
    plan::{Event, EventType},
    text::truncate_chars,
    throttle,
    times::{MAX_COUNT, Times},
    training_run,
};

/// The field that holds the schedule.
const FIELD: &str = "spec.redeploy.schedule";
/// How soon a decision that was recorded is carried out.
const AT_ONCE: Duration = Duration::from_secs(1);
/// The longest time that a plan waits. Timers have a limit, and cron can name times in years.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// The most characters of a reason.
const MAX_REASON: usize = 1_000;

/// Whether the status records that a cycle is rolled out.
pub(super) fn is_rolling(status: &ReasoningPodStatus) -> bool {
    let cycle = status.redeploy.as_ref().and_then(|redeploy| redeploy.cycle.as_ref());
    cycle.is_some_and(|cycle| cycle.phase == CyclePhase::RollingOut)
}

/// Where a cycle stands.
struct Standing {
    phase: CyclePhase,
    /// Whether it goes on only if something is changed.
    stuck: bool,
    reason: String,
}

impl Standing {
    fn at_work(phase: CyclePhase, reason: impl Into<String>) -> Self {
        Self { phase, stuck: false, reason: reason.into() }
    }

    fn stuck(phase: CyclePhase, reason: impl Into<String>) -> Self {
        Self { phase, stuck: true, reason: reason.into() }
    }
}

/// The state of the redeployments after a plan.
pub(super) struct Turn {
    pub(super) status: RedeployStatus,
    pub(super) current: Option<ServedStatus>,
    /// When to plan again.
    pub(super) due: Option<Duration>,
    /// What is wrong with the schedule or the template.
    problem: Option<String>,
}

impl Turn {
    /// Returns `None` without `spec.redeploy`.
    pub(super) fn of(view: &View<'_>, stage: &Stage, canary: &Next) -> Option<Self> {
        let redeploy = view.spec().redeploy.as_deref()?;
        let observed = view.observed;
        let (status, current) = recorded(&view.status, &observed.cycles, observed.deployment.as_ref());
        // Times from before the controller saw the schedule do not count.
        let status =
            status.unwrap_or_else(|| RedeployStatus { seen: Some(Time(view.now)), ..RedeployStatus::default() });
        let mut turn = Self { status, current, due: None, problem: problem(redeploy) };
        let stuck = turn.advance(view, stage, canary);
        turn.look(view, redeploy, stuck);
        let ended = turn.status.history.first().map(|record| record.result);
        turn.status.phase = turn.status.cycle.as_ref().map(|cycle| cycle.phase).or(ended);
        turn.due = turn.due.map(|due| due.min(LONGEST));
        Some(turn)
    }

    /// Judges the cycle that has not ended. Returns whether it is stuck.
    fn advance(&mut self, view: &View<'_>, stage: &Stage, canary: &Next) -> bool {
        let Some(cycle) = &self.status.cycle else { return false };
        let standing = match (&view.candidate, cycle.phase) {
            (_, CyclePhase::RollingOut) if view.rolls_cycle => rolled(view, stage, canary),
            (Some((candidate, evidence)), phase) if phase != CyclePhase::RollingOut => {
                judged(view, cycle, candidate, evidence)
            }
            // It was recorded just now, or its objects are not observed yet.
            _ => return false,
        };
        match standing.phase {
            CyclePhase::Serving => self.promote(view, &standing.reason),
            CyclePhase::Failed | CyclePhase::RolledBack => self.end(view, standing.phase, &standing.reason, 0),
            phase => {
                if let Some(cycle) = &mut self.status.cycle {
                    let decided = matches!(phase, CyclePhase::RollingOut | CyclePhase::Shadowing);
                    if decided && cycle.phase != phase {
                        self.due = Some(AT_ONCE);
                    }
                    cycle.phase = phase;
                    if phase == CyclePhase::Shadowing {
                        cycle.shadow_since.get_or_insert(Time(view.now));
                    }
                    let due = trial::due(view, cycle).map(|due| throttle::until(view.now, due));
                    self.due = [self.due, due].into_iter().flatten().min();
                    cycle.reason = truncate_chars(&standing.reason, MAX_REASON);
                }
                return standing.stuck;
            }
        }
        // What is served is planned next.
        self.due = Some(AT_ONCE);
        false
    }

    /// Records that the model of the cycle is served.
    fn promote(&mut self, view: &View<'_>, reason: &str) {
        let Some(cycle) = &self.status.cycle else { return };
        let served = ServedStatus {
            training_run: cycle.training_run.clone(),
            evaluations: cycle.evaluations.clone(),
            cycle: Some(cycle.scheduled.clone()),
        };
        let overrides = manual_overrides(view);
        self.status.former = self.current.replace(served);
        self.status.promoted = self.status.promoted.saturating_add(1);
        self.status.manual_overrides = self.status.manual_overrides.saturating_add(overrides);
        self.end(view, CyclePhase::Serving, reason, overrides);
    }

    fn end(&mut self, view: &View<'_>, result: CyclePhase, reason: &str, manual_overrides: i64) {
        let Some(cycle) = self.status.cycle.take() else { return };
        let observed = view.observed.cycles.iter().find(|observed| observed.scheduled == cycle.scheduled.0);
        let record = CycleRecord {
            scheduled: cycle.scheduled,
            ended: Time(view.now),
            result,
            training_run: cycle.training_run,
            digest: observed.and_then(|observed| observed.model),
            manual_overrides,
            reason: truncate_chars(reason, MAX_REASON),
        };
        self.status.history.insert(0, record);
        self.status.history.truncate(MAX_HISTORY);
    }

    /// Looks at the schedule, and starts a cycle that is due.
    fn look(&mut self, view: &View<'_>, redeploy: &Redeploy, stuck: bool) {
        self.status.next_schedule_time = None;
        let schedule = &redeploy.schedule;
        let times = match Times::of(schedule, FIELD) {
            Ok(times) => times,
            Err(why) => return self.problem = Some(why),
        };
        if is_paused(view, redeploy) {
            return;
        }
        let now = view.now;
        let Some(next) = times.next(now) else {
            return self.problem = Some(format!("{FIELD}.cron {:?} names no time: change it", schedule.cron));
        };
        self.status.next_schedule_time = Some(Time(next));
        let next = throttle::until(now, next);
        self.due = Some(self.due.map_or(next, |due| due.min(next)));
        let since = self.since(view);
        let Some(latest) = times.latest(now).filter(|latest| *latest > since) else { return };
        let count = times.count(since, latest);
        let late = schedule.starting_deadline_seconds.is_some_and(|deadline| {
            latest.checked_add(SignedDuration::from_secs(deadline)).is_ok_and(|deadline| deadline < now)
        });
        let at_work = self.status.cycle.is_some() && !stuck;
        if at_work || late || self.problem.is_some() {
            let before = self.status.missed.as_ref().map_or(0, |missed| missed.count);
            let count = before.saturating_add(count).min(MAX_COUNT);
            self.status.missed = Some(MissedRuns { count, last: Time(latest) });
            return;
        }
        if let Some(cycle) = &self.status.cycle {
            let reason = format!("the cycle of {latest} replaces it: {}", cycle.reason);
            self.end(view, CyclePhase::Failed, &reason, 0);
        }
        // The latest one starts now, the others were missed.
        let earlier = times.before(latest).filter(|_| count > 1);
        self.status.missed = earlier.map(|last| MissedRuns { count: count - 1, last: Time(last) });
        self.status.last_schedule_time = Some(Time(latest));
        self.status.cycle = Some(begin(view, redeploy, latest));
        self.due = Some(AT_ONCE);
    }

    /// Returns the time after which times of the schedule count.
    fn since(&self, view: &View<'_>) -> Timestamp {
        let status = &self.status;
        let last = status.last_schedule_time.as_ref().map(|time| time.0);
        let missed = status.missed.as_ref().map(|missed| missed.last.0);
        [status.seen.as_ref().map(|time| time.0), last, missed].into_iter().flatten().max().unwrap_or(view.now)
    }

    /// Sets the condition `RedeploysOnTime`, and says what is wrong with the schedule or the template.
    pub(super) fn condition(&self, view: &View<'_>, conditions: &mut Conditions<'_>) {
        let (holds, reason, message) = self.told(view);
        conditions.set(ConditionType::RedeploysOnTime, holds, reason, &message);
        if let Some(problem) = &self.problem {
            conditions.set(ConditionType::Stalled, true, Reason::InvalidConfiguration, problem);
        }
    }

    fn told(&self, view: &View<'_>) -> (Truth, Reason, String) {
        let status = &self.status;
        if let Some(problem) = &self.problem {
            return (Truth::False, Reason::InvalidConfiguration, problem.clone());
        }
        if view.spec().dry_run {
            return (Truth::Unknown, Reason::DryRun, "a dry run starts no cycle".to_owned());
        }
        if view.spec().redeploy.as_ref().is_some_and(|redeploy| redeploy.schedule.suspend) {
            return (Truth::Unknown, Reason::Suspended, format!("{FIELD}.suspend is true: no cycle starts"));
        }
        // A promoted cycle makes up for the times that were missed before it.
        let latest = status.history.first().filter(|_| status.cycle.is_none());
        let promoted = latest.filter(|latest| latest.result == CyclePhase::Serving).map(|latest| latest.scheduled.0);
        let missed = status.missed.as_ref().filter(|missed| promoted.is_none_or(|at| at < missed.last.0));
        if let Some(MissedRuns { count, last }) = missed {
            let times = if *count == 1 { "time has" } else { "times have" };
            let why = match &status.cycle {
                Some(cycle) => format!("; the cycle of {} is at work: {}", cycle.scheduled.0, name(cycle.phase)),
                None => String::new(),
            };
            let message = format!(
                "{count} {times} passed without a cycle, the latest {}: the former one was at work, or the controller did not run{why}",
                last.0
            );
            return (Truth::False, Reason::CyclesMissed, message);
        }
        if let Some(cycle) = status.cycle.as_ref().filter(|cycle| cycle.phase == CyclePhase::Blocked) {
            let message = format!("the cycle of {} is not promoted: {}", cycle.scheduled.0, cycle.reason);
            return (Truth::False, Reason::CycleBlocked, message);
        }
        match status.history.first() {
            Some(record) => {
                let (holds, reason, ended) = match record.result {
                    CyclePhase::Serving => (Truth::True, Reason::CyclePromoted, "was promoted"),
                    CyclePhase::RolledBack => (Truth::False, Reason::RolledBack, "was rolled back"),
                    _ => (Truth::False, Reason::CycleFailed, "failed"),
                };
                (holds, reason, format!("the cycle of {} {ended}: {}", record.scheduled.0, record.reason))
            }
            None => (Truth::Unknown, Reason::WaitingForSchedule, "no cycle has ended yet".to_owned()),
        }
    }
}

/// Returns the number of sign-offs of the cycle that is rolled out: those that count now, and those that its promotions name, into the ring
/// before for its shadow, too. Deleting a SignOff does not change what was promoted with it.
fn manual_overrides(view: &View<'_>) -> i64 {
    let run = view.observed.run.as_ref().and_then(ResourceExt::uid);
    let of_run = view.observed.promotions.iter().filter(|promoted| run.as_ref() == Some(&promoted.run));
    let counts = view.evidence.policies.signed.iter().map(|it| &it.uid);
    let all: BTreeSet<&String> = of_run.flat_map(|promoted| &promoted.sign_offs).chain(counts).collect();
    i64::try_from(all.len()).unwrap_or(i64::MAX)
}

/// Whether no cycle may start.
fn is_paused(view: &View<'_>, redeploy: &Redeploy) -> bool {
    redeploy.schedule.suspend || view.spec().dry_run
}

/// Returns the name of a phase in a sentence.
fn name(phase: CyclePhase) -> &'static str {
    match phase {
        CyclePhase::Training => "it trains",
        CyclePhase::Evaluating => "it is evaluated",
        CyclePhase::Blocked => "it is blocked",
        CyclePhase::Shadowing => "its shadow is compared",
        CyclePhase::RollingOut => "it is rolled out",
        CyclePhase::Serving => "it is served",
        CyclePhase::Failed => "it failed",
        CyclePhase::RolledBack => "it was rolled back",
    }
}

/// Returns the minute of a time, counted from 1970, which names the objects of a cycle.
pub(super) fn minute(time: Timestamp) -> i64 {
    time.as_second().div_euclid(60)
}

fn begin(view: &View<'_>, redeploy: &Redeploy, scheduled: Timestamp) -> CycleStatus {
    let (pod, minute) = (&view.owner.name, minute(scheduled));
    let names = redeploy.template.evaluations.iter().map(|it| child::cycle_evaluation(pod, minute, &it.name));
    CycleStatus {
        scheduled: Time(scheduled),
        since: Time(view.now),
        phase: CyclePhase::Training,
        training_run: child::cycle(pod, minute),
        evaluations: names.collect(),
        shadow_since: None,
        reason: String::new(),
    }
}

/// Returns what is wrong with a template that its schema accepts.
fn problem(redeploy: &Redeploy) -> Option<String> {
    let template = &redeploy.template;
    let in_field = |field: String, why: String| {
        // Sentences name the field below the spec of the object that would be created.
        let why = why.strip_prefix("spec.").map(str::to_owned).unwrap_or(why);
        format!("{field}: {why}; the next cycle would fail")
    };
    // The text of a template in a ConfigMap is read once the run exists.
    let known = template.training_run.template_from.is_none();
    if let Some(why) = known.then(|| training_run::view::compose(&template.training_run, None).err()).flatten() {
        return Some(in_field("spec.redeploy.template.trainingRun".to_owned(), why));
    }
    template.evaluations.iter().enumerate().find_map(|(index, it)| {
        let compares = it.spec.gates.iter().any(|gate| gate.better_than.is_some() || gate.not_worse_than.is_some());
        // What is compared with is known once the Evaluation exists.
        let why = evaluation::gates::gates(&it.spec.gates)
            .err()
            .or_else(|| (!compares).then(|| evaluation::view::compose(&it.spec, &[]).err()).flatten())?;
        Some(in_field(format!("spec.redeploy.template.evaluations[{index}].spec"), why))
    })
}

/// Returns the observation that is planned: that of the cycle, once the believed status records that it is rolled out.
pub(crate) fn planned<'a>(observed: &'a ObservedReasoningPod, status: &ReasoningPodStatus) -> &'a ObservedReasoningPod {
    observed.candidate.as_deref().filter(|_| is_rolling(status)).unwrap_or(observed)
}

/// Judges a cycle that is not rolled out yet.
fn judged(view: &View<'_>, cycle: &CycleStatus, candidate: &ObservedReasoningPod, evidence: &Evidence<'_>) -> Standing {
    use CyclePhase::{Blocked, Evaluating, Failed, RollingOut, Shadowing, Training};
    // What keeps an object from being created may last: another object has its name, or the API server refuses it.
    let creating = |phase, sentence: String| match view.obstruction.filter(|obstruction| !obstruction.waits) {
        Some(obstruction) => Standing::stuck(phase, &*obstruction.message),
        None => Standing::at_work(phase, sentence),
    };
    let Some(run) = &candidate.run else {
        return creating(Training, "its TrainingRun is being created".to_owned());
    };
    let about = |about: About| evidence.blocks.iter().filter(move |block| block.about == about);
    let phase = run.status.as_ref().and_then(|status| status.phase);
    if let Some(block) = about(About::Training).min_by_key(|block| block.waits) {
        return match phase {
            Some(TrainingRunPhase::Failed) => Standing::at_work(Failed, &*block.sentence),
            _ if block.waits => Standing::at_work(Training, &*block.sentence),
            _ => Standing::stuck(Training, &*block.sentence),
        };
    }
    if let Some(name) = cycle.evaluations.iter().find(|name| !candidate.evaluations.contains_key(*name)) {
        let planned = view.spec().redeploy.as_ref().is_some_and(|redeploy| names(view, redeploy, cycle).contains(name));
        return if planned {
            creating(Evaluating, format!("Evaluation {name} is being created"))
        } else {
            Standing::at_work(
                Failed,
                format!("Evaluation {name} does not exist, and spec.redeploy.template no longer has it"),
            )
        };
    }
    let gates: Vec<&Block> = about(About::Gates).collect();
    let failed: Vec<&Block> = gates.iter().copied().filter(|block| !block.waits).collect();
    if !failed.is_empty() {
        let phase = |it: &Evaluation| it.status.as_ref().and_then(|status| status.phase);
        let ended = candidate.evaluations.values().any(|it| phase(it) == Some(EvaluationPhase::Failed));
        // What stalls without a verdict may go on: an obstruction can be gone a moment later.
        return if ended || failed.iter().any(|block| block.reason != Reason::WaitingForVerdict) {
            Standing::at_work(Failed, sentences(failed))
        } else {
            Standing::stuck(Evaluating, sentences(failed))
        };
    }
    if !gates.is_empty() {
        return Standing::at_work(Evaluating, sentences(gates));
    }
    match Trial::of(view, cycle, evidence) {
        Trial::Passed => {}
        Trial::Starts(reason) => return creating(Shadowing, reason),
        Trial::Waits(reason) => return Standing::at_work(Shadowing, reason),
        Trial::Blocked(reason) => return Standing::stuck(Blocked, reason),
        Trial::Failed(reason) => return Standing::at_work(Failed, reason),
    }
    if !evidence.blocks.is_empty() {
        return Standing::stuck(Blocked, sentences(&evidence.blocks));
    }
    Standing::at_work(RollingOut, "every evaluation passed, and nothing else keeps the model from being promoted")
}

/// Judges a cycle that is rolled out: its plan is the present one.
fn rolled(view: &View<'_>, stage: &Stage, canary: &Next) -> Standing {
    use CyclePhase::{Failed, RolledBack, RollingOut, Serving};
    match stage {
        Stage::Serving(target) => {
            Standing::at_work(Serving, format!("its model {} passed everything and is served", target.model.short()))
        }
        Stage::Refused(_, _, why) => Standing::at_work(RolledBack, &**why),
        Stage::Canary(_) => match (canary.rolled_back(), canary.told()) {
            (Some(why), _) => Standing::at_work(RolledBack, why),
            (None, told) => Standing::at_work(RollingOut, told.map(|(_, told)| told).unwrap_or_default()),
        },
        Stage::Blocked | Stage::Revoked => {
            let blocks = &view.evidence.blocks;
            let ends = |block: &Block| match block.about {
                About::Revocation => true,
                // What is gone is not created again while it is rolled out.
                About::Training | About::Gates => !block.waits || block.reason == Reason::NotFound,
                _ => false,
            };
            if blocks.iter().any(ends) {
                return Standing::at_work(Failed, sentences(blocks));
            }
            let stuck = !blocks.is_empty() && !waits(view);
            Standing { phase: RollingOut, stuck, reason: sentences(blocks) }
        }
        Stage::DryRun | Stage::Signing(_) | Stage::RollingOut(_) => {
            Standing::at_work(RollingOut, "its model is signed, and its servers start")
        }
    }
}

fn sentences<'a>(blocks: impl IntoIterator<Item = &'a Block>) -> String {
    blocks.into_iter().map(|block| block.sentence.as_str()).collect::<Vec<_>>().join("; ")
}

/// Returns the names of the Evaluations that the template gives a cycle.
pub(super) fn names(view: &View<'_>, redeploy: &Redeploy, cycle: &CycleStatus) -> Vec<String> {
    let minute = minute(cycle.scheduled.0);
    let all = redeploy.template.evaluations.iter();
    all.map(|it| child::cycle_evaluation(&view.owner.name, minute, &it.name)).collect()
}

/// Adds Events about cycles that started and ended, which the conditions do not tell apart.
pub(super) fn events(view: &View<'_>, status: &ReasoningPodStatus, events: &mut Vec<Event>) {
    let Some(next) = &status.redeploy else { return };
    let before = view.status.redeploy.as_ref();
    let mut add = |reason: Reason, type_: EventType, note: String| {
        if events.iter().all(|event| event.reason != reason.name()) {
            let action = ConditionType::RedeploysOnTime.name().to_owned();
            events.push(Event { type_, reason: reason.name().to_owned(), action, note });
        }
    };
    let ended = next.history.first().filter(|record| {
        let known = before.and_then(|before| before.history.first());
        known.is_none_or(|known| known.scheduled != record.scheduled)
    });
    if let Some(record) = ended {
        let (reason, type_) = match record.result {
            CyclePhase::Serving => (Reason::CyclePromoted, EventType::Normal),
            CyclePhase::RolledBack => (Reason::RolledBack, EventType::Warning),
            _ => (Reason::CycleFailed, EventType::Warning),
        };
        add(reason, type_, format!("the cycle of {}: {}", record.scheduled.0, record.reason));
    }
    let started = next
        .cycle
        .as_ref()
        .filter(|_| before.and_then(|before| before.last_schedule_time.as_ref()) != next.last_schedule_time.as_ref());
    if let Some(cycle) = started {
        let note = format!("the cycle of {} starts with the TrainingRun {}", cycle.scheduled.0, cycle.training_run);
        add(Reason::CycleStarted, EventType::Normal, note);
    }
}
