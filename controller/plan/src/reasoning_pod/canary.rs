//! Canaries: whether a target is tried beside the servers first, and what the requests that it answers say about it. Pure.
//!
//! A decision is recorded in the status before it is carried out: children follow the recorded state, and the plan's status holds
//! the next one. So a canary that failed is not started again if the controller restarts between the two.

use std::time::Duration;

use codex_crds::{
    Analysis, ConditionType, MAX_HISTORY, Reason, RejectedStatus, Rollout, RolloutPhase, RolloutRecord, RolloutResult,
    RolloutStatus, TimesStatus, TrafficStatus, annotation,
};
use codex_provenance::Sha256;
use codex_verdict::{Rounding, Sample, bounds};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use serde_json::json;

use super::{
    children::settings_digest,
    idle, route,
    servers::{Servers, Wanted},
    shadow,
    stage::Stage,
    target::Target,
    view::View,
};
use crate::{conditions::Conditions, text::truncate_chars, throttle};

/// The confidence of the one-sided bounds that fail a canary.
const CONFIDENCE: f64 = 0.99;
/// The share of requests that may take longer than the 95th percentile.
const SLOW: f64 = 0.05;
/// The number of requests from which on they can fail a canary.
const LEAST: i64 = 10;
/// The most servers of a canary: the newest reports of 128 pods are kept, those of the other servers included.
const MAX_SERVERS: i32 = 24;
/// The last step: all requests go to the canary.
const ALL: i32 = 100;
/// The most characters of a reason.
const MAX_REASON: usize = 1_000;
/// When to plan again after a decision was recorded.
const AT_ONCE: Duration = Duration::from_secs(1);

/// Returns the digest of everything that the pod template of a target is made from, but for the settings of the controller.
pub(super) fn made_from(view: &View<'_>, target: &Target) -> String {
    let Target { run_uid, model, promotion, .. } = target;
    Sha256::of(json!([run_uid, model, promotion, target.keys(), view.spec().serving]).to_string()).short()
}

fn attempt(view: &View<'_>, target: &Target, rollout: &Rollout) -> String {
    Sha256::of(json!([made_from(view, target), rollout]).to_string()).short()
}

/// Whether the servers were made for this target.
pub(super) fn is_current(view: &View<'_>, target: &Target) -> bool {
    match (&view.servers, &view.restorable) {
        (Some(servers), _) => {
            let annotations = servers.live.annotations();
            let found = |key: &str| annotations.get(key).map(String::as_str);
            // A controller upgrade restarts no server.
            let upgraded =
                found(annotation::SETTINGS_DIGEST) != Some(settings_digest(&view.observed.settings).as_str());
            let same = found(annotation::ATTEMPT).is_none_or(|from| from == made_from(view, target));
            servers.are_for(target)
                && shadow::fits(view, servers.live)
                && idle::fits(view, servers.live)
                && (upgraded || same)
        }
        (None, Some(former)) => {
            let made = |target: &Target| (target.model, target.promotion, target.keys());
            made(former) == made(target)
        }
        (None, None) => false,
    }
}

/// Whether the servers stay until a canary of this target has passed.
pub(super) fn holds(view: &View<'_>, target: &Target) -> bool {
    let Some(rollout) = &view.spec().rollout else { return false };
    if is_current(view, target) || (view.servers.is_none() && view.restorable.is_none()) {
        return false;
    }
    // Servers of a former shadow have no clients to compare with, so they are replaced without a canary.
    if view.servers.as_ref().is_some_and(|servers| !shadow::fits(view, servers.live)) {
        return false;
    }
    match recorded(view, target, rollout).map(|recorded| recorded.phase) {
        Some(RolloutPhase::RolledBack) => true,
        Some(RolloutPhase::Promoting) => false,
        // A denied model is replaced at once.
        _ if view.is_revoked() => false,
        Some(RolloutPhase::Running) => true,
        // Without a ready server there is nothing to keep.
        None => view.servers.as_ref().is_none_or(|servers| servers.counts(view.wanted()).ready > 0),
    }
}

/// Returns the recorded state of the canary of this target.
fn recorded<'a>(view: &'a View<'_>, target: &Target, rollout: &Rollout) -> Option<&'a RolloutStatus> {
    view.status.rollout.as_ref().filter(|recorded| recorded.attempt == attempt(view, target, rollout))
}

/// Returns the number of servers of the canary at a step, of so many present ones.
fn count(present: i32, step: i32) -> i32 {
    let rounded_up = present.saturating_mul(step).saturating_add(ALL - 1) / ALL;
    if present <= 0 { 0 } else { rounded_up.clamp(1, MAX_SERVERS) }
}

/// The Deployment of a canary that a plan asks for.
#[derive(Clone, Copy)]
pub(super) enum Planned<'a> {
    /// One for this target.
    For(&'a Target, i32),
    /// The live one, as it is.
    Kept(&'a Servers<'a>, i32),
}

/// Returns the Deployment of the canary that exists after this plan. One that is not needed any more is scaled to zero and deleted
/// once its pods are gone, so that none of them is ever without a known owner.
pub(super) fn planned<'a>(view: &'a View<'_>, stage: &'a Stage) -> Option<Planned<'a>> {
    let left = || view.canary.as_ref().filter(|canary| canary.exist()).map(|canary| Planned::Kept(canary, 0));
    wanted(view, stage).or_else(left)
}

/// Returns the Deployment of a canary that answers requests.
fn wanted<'a>(view: &'a View<'_>, stage: &'a Stage) -> Option<Planned<'a>> {
    let rollout = view.spec().rollout.as_ref()?;
    let held = view.status.rollout.as_ref().filter(|held| held.phase != RolloutPhase::RolledBack)?;
    let servers = count(view.wanted().replicas, held.step);
    if servers == 0 || !view.evidence.policies.canary_revoked.is_empty() {
        return None;
    }
    match stage {
        Stage::Canary(target) | Stage::RollingOut(target) | Stage::Refused(target, ..) | Stage::Serving(target) => {
            recorded(view, target, rollout).map(|_| Planned::For(target, servers))
        }
        // Running servers stay while something blocks the rollout.
        Stage::Blocked | Stage::Signing(_) => view.canary.as_ref().map(|canary| Planned::Kept(canary, servers)),
        Stage::DryRun | Stage::Revoked => None,
    }
}

/// Whether the canary may answer requests.
pub(super) fn answers(view: &View<'_>, stage: &Stage) -> bool {
    wanted(view, stage).is_some()
}

/// Whether the Service of the servers sends all requests to the canary: at the last step, once it has as many ready servers as it
/// replaces. Then the servers stay idle, so that a rollback is immediate. With a Gateway the weights of the route decide.
pub(super) fn answers_alone(view: &View<'_>, stage: &Stage) -> bool {
    let (Some(held), Some(canary)) = (&view.status.rollout, &view.canary) else { return false };
    if route::gateway(view).is_some() {
        return false;
    }
    let present = view.wanted().replicas;
    let as_many = held.step == ALL && count(present, ALL) == present;
    as_many && answers(view, stage) && canary.counts(Wanted::exactly(present)).settled
}

/// Whether the Service of the servers sends no request to the canary, which has a Service of its own: with a Gateway, until the
/// servers are being replaced.
pub(super) fn answers_apart(view: &View<'_>, stage: &Stage) -> bool {
    let replaced = matches!(stage, Stage::RollingOut(_) | Stage::Refused(..) | Stage::Serving(_));
    route::gateway(view).is_some() && !replaced && planned(view, stage).is_some()
}

/// The state of the canary after a plan.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Next {
    pub(super) rollout: Option<RolloutStatus>,
    pub(super) history: Vec<RolloutRecord>,
}

impl Next {
    pub(super) fn of(view: &View<'_>, stage: &Stage) -> Self {
        let held = &view.status;
        let mut next = Self { rollout: held.rollout.clone(), history: held.history.clone() };
        let spec = view.spec();
        let Some(rollout) = spec.rollout.as_ref().filter(|_| !spec.dry_run) else {
            let why = if spec.dry_run { "spec.dryRun is true" } else { "spec.rollout was removed" };
            next.end(view.now, RolloutResult::Superseded, why);
            return next;
        };
        match stage {
            Stage::Canary(target) => match recorded(view, target, rollout) {
                Some(held) if held.phase == RolloutPhase::Running => {
                    let judged = judge(view, stage, target, rollout, held);
                    if judged.phase == RolloutPhase::RolledBack {
                        next.record(&judged, view.now, RolloutResult::RolledBack, &judged.reason);
                    }
                    next.rollout = Some(judged);
                }
                Some(_) => {}
                None => {
                    let revision = next.revision().saturating_add(1);
                    next.end(view.now, RolloutResult::Superseded, "the spec asks for another model or other settings");
                    next.rollout = Some(begin(view, target, rollout, revision));
                }
            },
            Stage::RollingOut(target) | Stage::Refused(target, ..) | Stage::Serving(target) => {
                let passed = recorded(view, target, rollout).is_some_and(|it| it.phase == RolloutPhase::Promoting);
                match stage {
                    Stage::Serving(_) if passed => next.end(view.now, RolloutResult::Promoted, "every step passed"),
                    Stage::Serving(_) => {
                        next.end(view.now, RolloutResult::Superseded, "the spec asks again for what is served");
                    }
                    _ if passed => {}
                    _ => next.end(view.now, RolloutResult::Superseded, "no server is left that could stay"),
                }
            }
            // The canary stands still.
            Stage::Blocked | Stage::Signing(_) | Stage::Revoked | Stage::DryRun => {}
        }
        next
    }

    fn revision(&self) -> i64 {
        let ended = self.history.first().map(|record| record.revision);
        self.rollout.as_ref().map(|rollout| rollout.revision).max(ended).unwrap_or(0)
    }

    /// Ends the canary. One that failed is in the history already.
    fn end(&mut self, now: Timestamp, result: RolloutResult, why: &str) {
        if let Some(rollout) = self.rollout.take().filter(|rollout| rollout.phase != RolloutPhase::RolledBack) {
            self.record(&rollout, now, result, why);
        }
    }

    fn record(&mut self, rollout: &RolloutStatus, now: Timestamp, result: RolloutResult, why: &str) {
        let record = RolloutRecord {
            revision: rollout.revision,
            digest: rollout.canary_digest,
            promotion: rollout.promotion,
            started: rollout.started.clone(),
            ended: Time(now),
            result,
            reason: why.to_owned(),
        };
        self.history.insert(0, record);
        self.history.truncate(MAX_HISTORY);
    }

    /// Returns why the canary of what the spec describes failed.
    pub(super) fn rolled_back(&self) -> Option<&str> {
        let rollout = self.rollout.as_ref().filter(|rollout| rollout.phase == RolloutPhase::RolledBack)?;
        Some(&rollout.reason)
    }

    /// Returns the reason and a sentence about the canary. The sentence does not change with the number of requests.
    pub(super) fn told(&self) -> Option<(Reason, String)> {
        if let Some(rollout) = &self.rollout {
            let short = rollout.canary_digest.short();
            return Some(match rollout.phase {
                RolloutPhase::Running => {
                    let step = rollout.step;
                    let message = format!("a canary of the model {short} runs beside the servers: step {step} %");
                    (Reason::CanaryRunning, message)
                }
                RolloutPhase::Promoting => {
                    let message =
                        format!("the canary of the model {short} passed every step; the servers are being replaced");
                    (Reason::Promoting, message)
                }
                RolloutPhase::RolledBack => {
                    let message = format!(
                        "the canary of the model {short} was stopped, and the servers stay: {}; change the model, \
                         spec.serving or spec.rollout to try again",
                        rollout.reason
                    );
                    (Reason::RolledBack, message)
                }
            });
        }
        let last = self.history.first()?;
        let reason = match last.result {
            RolloutResult::Promoted => Reason::Promoted,
            RolloutResult::RolledBack => Reason::RolledBack,
            RolloutResult::Superseded => Reason::Superseded,
        };
        let RolloutRecord { revision, digest, reason: why, .. } = last;
        Some((reason, format!("canary {revision}, of the model {}, has ended: {why}", digest.short())))
    }

    /// Sets the condition `Canary`.
    pub(super) fn condition(&self, conditions: &mut Conditions<'_>) {
        if let Some((reason, message)) = self.told() {
            let runs = self.rollout.is_some() && self.rolled_back().is_none();
            conditions.set(ConditionType::Canary, runs, reason, &message);
        }
    }

    /// Returns when to plan again although nothing changes.
    pub(super) fn due(&self, view: &View<'_>) -> Option<Duration> {
        let at = |rollout: &Option<RolloutStatus>| rollout.as_ref().map(|it| (it.phase, it.step, it.attempt.clone()));
        if at(&self.rollout) != at(&view.status.rollout) {
            return Some(AT_ONCE);
        }
        let rollout = self.rollout.as_ref().filter(|rollout| rollout.phase == RolloutPhase::Running)?;
        let ends = ends(rollout, view.spec().rollout.as_ref()?)?;
        (view.now < ends).then(|| throttle::until(view.now, ends))
    }
}

/// Returns `next` with the numbers of `present`, if both are about the same step.
pub(super) fn with_numbers_of(next: Option<&RolloutStatus>, present: Option<&RolloutStatus>) -> Option<RolloutStatus> {
    let (Some(next), Some(present)) = (next, present) else { return next.cloned() };
    let at = |rollout: &RolloutStatus| (rollout.phase, rollout.step, rollout.step_started.clone());
    if at(next) != at(present) || next.phase != RolloutPhase::Running {
        return Some(next.clone());
    }
    let RolloutStatus { share, of, traffic, reason, .. } = present.clone();
    Some(RolloutStatus { share, of, traffic, reason, ..next.clone() })
}

fn begin(view: &View<'_>, target: &Target, rollout: &Rollout, revision: i64) -> RolloutStatus {
    let step = rollout.steps.iter().copied().min().unwrap_or(ALL);
    let present = view.wanted().replicas;
    RolloutStatus {
        phase: RolloutPhase::Running,
        revision,
        attempt: attempt(view, target, rollout),
        canary_digest: target.model,
        promotion: target.promotion,
        step,
        share: None,
        of: format!("{}/{present}", count(present, step)),
        started: Time(view.now),
        step_started: None,
        before: TrafficStatus::default(),
        traffic: TrafficStatus::default(),
        verified: None,
        reason: "the canary starts".to_owned(),
    }
}

/// Returns when the step ends if enough requests were answered.
fn ends(held: &RolloutStatus, rollout: &Rollout) -> Option<Timestamp> {
    let least = SignedDuration::from_secs(rollout.analysis.interval_seconds.into());
    held.step_started.as_ref()?.0.checked_add(least).ok()
}

/// Returns the next state of a running canary.
fn judge(view: &View<'_>, stage: &Stage, target: &Target, rollout: &Rollout, held: &RolloutStatus) -> RolloutStatus {
    let mut next = held.clone();
    let present = view.wanted().replicas;
    let servers = count(present, held.step);
    next.of = format!("{servers}/{present}");
    let waits = |mut next: RolloutStatus, why: String| {
        next.reason = truncate_chars(&why, MAX_REASON);
        next
    };
    let failed = |mut next: RolloutStatus, why: String| {
        next.phase = RolloutPhase::RolledBack;
        next.reason = truncate_chars(&why, MAX_REASON);
        next
    };
    if servers == 0 {
        return waits(next, "spec.replicas is 0".to_owned());
    }
    let Some(canary) = view.canary.as_ref().filter(|canary| canary.are_for(target)) else {
        return waits(next, "the canary starts".to_owned());
    };
    next.verified = canary.verified(target.model, target.promotion, held.verified.as_ref());
    let counts = canary.counts(Wanted::exactly(servers));
    let others = view.servers.as_ref().map_or(0, |servers| servers.counts(view.wanted()).ready);
    let others = if answers_alone(view, stage) { 0 } else { others };
    next.share = match route::gateway(view) {
        Some(_) => route::share(view),
        None => (counts.ready + others > 0).then(|| format!("{}/{}", counts.ready, counts.ready + others)),
    };
    if let Some((_, why)) = canary.refusal() {
        return failed(next, why);
    }
    if let Some(why) = held.step_started.as_ref().and_then(|since| canary.crashed(since.0)) {
        return failed(next, why);
    }
    let analysis = &rollout.analysis;
    let Some(total) = canary.traffic(analysis) else {
        return waits(next, "the servers of the canary have not reported their requests yet".to_owned());
    };
    let Some(traffic) = since(total, held.before) else {
        // A server was replaced, and its numbers are lost.
        (next.before, next.traffic, next.step_started) = (total, TrafficStatus::default(), None);
        return waits(next, "a server of the canary was replaced; the step begins again".to_owned());
    };
    next.traffic = traffic;
    if let Some(why) = breach(analysis, traffic) {
        return failed(next, why);
    }
    let ready = counts.settled && next.verified.is_some();
    if !ready {
        let why = canary.obstacle().unwrap_or_else(|| "servers of the canary are starting".to_owned());
        return waits(next, why);
    }
    if next.step_started.is_none() {
        if let Some(why) = route::obstacle(view) {
            return waits(next, why);
        }
        next.step_started = Some(Time(view.now));
    }
    let (seen, least) = (traffic.requests, i64::from(analysis.min_requests));
    let ended = ends(&next, rollout).is_none_or(|ends| view.now >= ends);
    if seen < least {
        return waits(next, format!("waiting for requests: {seen} of {least}"));
    }
    if !ended {
        return waits(next, format!("the step lasts for {} s; {seen} requests", analysis.interval_seconds));
    }
    if let Some(why) = undecided(analysis, traffic) {
        return waits(next, why);
    }
    match rollout.steps.iter().copied().filter(|step| *step > held.step).min() {
        Some(step) => RolloutStatus {
            step,
            of: format!("{}/{present}", count(present, step)),
            step_started: None,
            before: total,
            traffic: TrafficStatus::default(),
            reason: "servers of the canary are starting".to_owned(),
            ..next
        },
        None => RolloutStatus {
            phase: RolloutPhase::Promoting,
            reason: "every step passed; the servers are being replaced".to_owned(),
            ..next
        },
    }
}

/// Returns the requests since `before`; `None` if there are fewer.
fn since(total: TrafficStatus, before: TrafficStatus) -> Option<TrafficStatus> {
    let more = |total: i64, before: i64| total.checked_sub(before).filter(|more| *more >= 0);
    let times = |total: Option<TimesStatus>, before: Option<TimesStatus>| {
        let Some(total) = total else { return Some(None) };
        let before = before.unwrap_or_default();
        let (responses, slow) = (more(total.responses, before.responses)?, more(total.slow, before.slow)?);
        Some(Some(TimesStatus { responses, slow }))
    };
    let rejected = match total.rejected {
        None => None,
        Some(total) => {
            let held = before.rejected.unwrap_or_default();
            let (before, answers) = (more(total.before, held.before)?, more(total.answers, held.answers)?);
            Some(RejectedStatus { before, answers })
        }
    };
    Some(TrafficStatus {
        requests: more(total.requests, before.requests)?,
        errors: more(total.errors, before.errors)?,
        refused: more(total.refused, before.refused)?,
        completed: more(total.completed, before.completed)?,
        slow: more(total.slow, before.slow)?,
        rejected,
        first_token: times(total.first_token, before.first_token)?,
        inter_token: times(total.inter_token, before.inter_token)?,
    })
}

/// Returns why the requests fail the canary: the exact lower confidence bound of a share is above its limit (Clopper and Pearson).
/// The 95th percentile is above a limit exactly if more than 5 of 100 requests or responses take longer.
fn breach(analysis: &Analysis, traffic: TrafficStatus) -> Option<String> {
    let lowest = |successes: i64, n: i64| {
        let sample =
            Sample::Share { successes: u64::try_from(successes).unwrap_or(0), n: u64::try_from(n).unwrap_or(0) };
        if n < LEAST { 0.0 } else { bounds(&sample, CONFIDENCE).map_or(0.0, |bounds| bounds.lower) }
    };
    let TrafficStatus { requests, errors, refused, completed, slow, rejected, first_token, inter_token } = traffic;
    let RejectedStatus { before, answers } = rejected.unwrap_or_default();
    let before = refused.saturating_add(before);
    let (turned_away, came) = (before.saturating_add(answers), requests.saturating_add(before));
    let rates = [
        (Some(&analysis.max_error_rate), errors, requests, "failed", "maxErrorRate"),
        (analysis.max_refusal_rate.as_ref(), turned_away, came, "were refused", "maxRefusalRate"),
    ];
    let rates = rates.into_iter().find_map(|(limit, counted, n, what, field)| {
        let limit = limit?;
        // The API server accepts nothing else than decimals.
        let lower = Some(lowest(counted, n)).filter(|lower| *lower > limit.parse::<f64>().unwrap_or(0.0))?;
        Some(format!(
            "{counted} of {n} requests {what}, so at least {} of all with confidence {CONFIDENCE}; \
             spec.rollout.analysis.{field} is {limit}",
            Rounding::Down.show(lower)
        ))
    });
    let times = |times: Option<TimesStatus>| times.map_or((0, 0), |times| (times.slow, times.responses));
    let limits = [
        (&analysis.max_p95_seconds, (slow, completed), "requests took longer than", "maxP95Seconds"),
        (
            &analysis.max_first_token_seconds,
            times(first_token),
            "responses had their first token later than",
            "maxFirstTokenSeconds",
        ),
        (
            &analysis.max_inter_token_seconds,
            times(inter_token),
            "responses took longer between tokens than",
            "maxInterTokenSeconds",
        ),
    ];
    rates.or_else(|| {
        limits.into_iter().find_map(|(limit, (slow, n), what, field)| {
            let limit = limit.as_ref()?;
            let lower = Some(lowest(slow, n)).filter(|lower| *lower > SLOW)?;
            Some(format!(
                "{slow} of {n} {what} spec.rollout.analysis.{field}, {limit}, so at least {} of all with confidence \
                 {CONFIDENCE}; {SLOW} may",
                Rounding::Down.show(lower)
            ))
        })
    })
}

/// Returns why a criterion is not decided, although enough requests were answered: servers do not report its numbers, or these are few.
/// A step does not end before, because a criterion that was never judged would look as if it were met.
fn undecided(analysis: &Analysis, traffic: TrafficStatus) -> Option<String> {
    let unknown = |field: &str, what: &str| {
        format!(
            "spec.rollout.analysis.{field} is not decided: servers of the canary do not report {what}, because their image is of an \
             earlier version than the controller: update the images that the controller is configured with, or remove the field"
        )
    };
    if analysis.max_refusal_rate.is_some() && traffic.rejected.is_none() {
        return Some(unknown("maxRefusalRate", "all refused requests"));
    }
    let least = i64::from(analysis.min_requests);
    let times = [
        (&analysis.max_first_token_seconds, traffic.first_token, "maxFirstTokenSeconds", "with a first token"),
        (&analysis.max_inter_token_seconds, traffic.inter_token, "maxInterTokenSeconds", "of two tokens or more"),
    ];
    times.into_iter().find_map(|(limit, times, field, which)| {
        limit.as_ref()?;
        let Some(TimesStatus { responses, .. }) = times else {
            return Some(unknown(field, "the times of their tokens"));
        };
        let few = responses < least;
        few.then(|| {
            format!(
                "spec.rollout.analysis.{field} is not decided: waiting for responses {which}: {responses} of {least}"
            )
        })
    })
}

#[cfg(test)]
mod tests {
    use codex_crds::{Analysis, RejectedStatus, TimesStatus, TrafficStatus};

    use super::{breach, count, since, undecided};

    #[test]
    fn a_step_has_at_least_one_server_and_never_more_than_it_replaces() {
        for (present, step, servers) in
            [(0, 5, 0), (1, 5, 1), (2, 25, 1), (3, 50, 2), (10, 25, 3), (20, 5, 1), (4, 100, 4), (100, 100, 24)]
        {
            assert_eq!(count(present, step), servers, "{step} % of {present}");
        }
    }

    #[test]
    fn a_canary_fails_only_with_confidence() {
        let analysis: Analysis =
            serde_json::from_value(serde_json::json!({"maxErrorRate": "0.01", "maxP95Seconds": "0.7"})).unwrap();
        let seen = |errors: i64, slow: i64| TrafficStatus {
            requests: 100,
            errors,
            refused: 9,
            completed: 100,
            slow,
            ..TrafficStatus::default()
        };
        // With 1 error in 100 requests, 4 or more of 100 happen in 1 of 54 cases, which is no proof; 6 or more in 1 of 1,900.
        for (errors, slow) in [(0, 0), (1, 5), (4, 11)] {
            assert_eq!(breach(&analysis, seen(errors, slow)), None, "{errors} {slow}");
        }
        let errors = breach(&analysis, seen(6, 0)).unwrap();
        assert!(errors.starts_with("6 of 100 requests failed, so at least 0.0"), "{errors}");
        let slow = breach(&analysis, seen(0, 20)).unwrap();
        assert!(slow.starts_with("20 of 100 requests took longer"), "{slow}");
        for (requests, fails) in [(0, false), (9, false), (10, true)] {
            let all = TrafficStatus { requests, errors: requests, ..TrafficStatus::default() };
            assert_eq!(breach(&analysis, all).is_some(), fails, "{requests} failed requests");
        }
        assert_eq!(breach(&Analysis::default(), seen(0, 100)), None, "without a limit, latency does not matter");
    }

    #[test]
    fn refusals_of_every_kind_fail_a_canary_if_they_are_limited() {
        let analysis: Analysis = serde_json::from_value(serde_json::json!({"maxRefusalRate": "0.1"})).unwrap();
        let seen = |requests: i64, refused: i64, before: i64, answers: i64| TrafficStatus {
            requests,
            refused,
            rejected: Some(RejectedStatus { before, answers }),
            ..TrafficStatus::default()
        };
        for quiet in [seen(90, 10, 0, 0), seen(90, 4, 6, 0), seen(100, 0, 0, 10), seen(0, 9, 0, 0)] {
            assert_eq!(breach(&analysis, quiet), None, "{quiet:?}");
        }
        for (fails, told) in [
            (seen(80, 20, 0, 0), "20 of 100 requests were refused"),
            (seen(80, 0, 20, 0), "20 of 100 requests were refused"),
            (seen(100, 0, 0, 20), "20 of 100 requests were refused"),
            (seen(0, 4, 6, 0), "10 of 10 requests were refused"),
        ] {
            let why = breach(&analysis, fails).unwrap();
            assert!(why.starts_with(told) && why.ends_with("spec.rollout.analysis.maxRefusalRate is 0.1"), "{why}");
            assert_eq!(breach(&Analysis::default(), fails), None, "without a limit, refusals do not matter");
        }
        assert_eq!(undecided(&analysis, seen(50, 0, 0, 0)), None);
        let unknown = TrafficStatus { rejected: None, ..seen(50, 2, 0, 0) };
        let why = undecided(&analysis, unknown).unwrap();
        assert!(why.starts_with("spec.rollout.analysis.maxRefusalRate is not decided: servers of the canary"), "{why}");
        assert_eq!(undecided(&Analysis::default(), unknown), None);
        // What is known can fail it all the same.
        assert!(breach(&analysis, TrafficStatus { rejected: None, ..seen(50, 50, 0, 0) }).is_some());
    }

    #[test]
    fn times_of_tokens_fail_a_canary_only_with_confidence_and_pass_only_with_responses() {
        for field in ["maxFirstTokenSeconds", "maxInterTokenSeconds"] {
            let limits = serde_json::json!({"minRequests": 20, field: "0.5"});
            let analysis: Analysis = serde_json::from_value(limits).unwrap();
            let seen = |times: Option<TimesStatus>| {
                let traffic = TrafficStatus { requests: 100, completed: 100, ..TrafficStatus::default() };
                match field {
                    "maxFirstTokenSeconds" => TrafficStatus { first_token: times, ..traffic },
                    _ => TrafficStatus { inter_token: times, ..traffic },
                }
            };
            let of = |slow: i64, responses: i64| seen(Some(TimesStatus { responses, slow }));
            for (slow, responses) in [(0, 100), (5, 100), (11, 100), (9, 9)] {
                assert_eq!(breach(&analysis, of(slow, responses)), None, "{field}: {slow} of {responses}");
            }
            for (slow, responses) in [(20, 100), (10, 10)] {
                let why = breach(&analysis, of(slow, responses)).unwrap();
                assert!(why.starts_with(&format!("{slow} of {responses} responses ")), "{why}");
                assert!(why.contains(&format!("spec.rollout.analysis.{field}, 0.5, so at least ")), "{why}");
            }
            assert_eq!(breach(&Analysis::default(), of(100, 100)), None);
            assert_eq!(undecided(&analysis, of(0, 20)), None);
            let few = undecided(&analysis, of(0, 19)).unwrap();
            assert!(few.starts_with(&format!("spec.rollout.analysis.{field} is not decided: ")), "{few}");
            assert!(few.ends_with(": 19 of 20"), "{few}");
            let unknown = undecided(&analysis, seen(None)).unwrap();
            assert!(
                unknown.contains(&format!("{field} is not decided: servers of the canary do not report")),
                "{unknown}"
            );
        }
    }

    #[test]
    fn numbers_that_fall_are_no_numbers_of_this_step() {
        let of = |requests: i64| TrafficStatus { requests, completed: requests, ..TrafficStatus::default() };
        assert_eq!(since(of(12), of(5)), Some(of(7)));
        assert_eq!(since(of(4), of(5)), None);
        let timed = |responses: i64, slow: i64| TrafficStatus {
            first_token: Some(TimesStatus { responses, slow }),
            rejected: Some(RejectedStatus { before: slow, answers: 0 }),
            ..of(responses)
        };
        assert_eq!(since(timed(12, 3), timed(5, 1)), Some(timed(7, 2)));
        assert_eq!(since(timed(12, 0), timed(5, 1)), None);
        assert_eq!(since(timed(12, 3), TrafficStatus::default()), Some(timed(12, 3)), "nothing was known before");
        assert_eq!(since(of(12), timed(5, 1)), Some(of(7)), "nothing is known any more");
    }
}
