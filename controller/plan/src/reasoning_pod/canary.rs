//! Canaries: whether a target is tried beside the servers first, and how far it has come. Pure.
//!
//! A decision is recorded in the status before it is carried out: children follow the recorded state, and the plan's status holds
//! the next one. So a canary that failed is not started again if the controller restarts between the two.

use std::time::Duration;

use codex_crds::{
    ConditionType, MAX_HISTORY, Reason, Rollout, RolloutPhase, RolloutRecord, RolloutResult, RolloutStatus,
    TrafficStatus, annotation,
};
use codex_provenance::Sha256;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use serde_json::json;

use super::{
    agreement,
    children::settings_digest,
    criteria::{breach, since, undecided},
    idle, route,
    servers::{Servers, Wanted},
    shadow,
    stage::Stage,
    target::Target,
    view::View,
};
use crate::{conditions::Conditions, text::truncate_chars, throttle};

/// The most servers of a canary: the newest reports of 128 pods are kept, those of the other servers included.
const MAX_SERVERS: i32 = 24;
/// The last step: all requests go to the canary.
pub(super) const ALL: i32 = 100;
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

/// Whether the canary has a Service of its own.
pub(super) fn is_named(view: &View<'_>) -> bool {
    view.spec().rollout.as_ref().is_some_and(Rollout::names_canary)
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
        sources: agreement::sources(view),
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
    next.sources = agreement::sources(view);
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
    let total = TrafficStatus { agreement: agreement::compared(view, canary), ..total };
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
    if let Some(why) = agreement::obstacle(view, traffic).or_else(|| undecided(analysis, traffic, held.step < ALL)) {
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

#[cfg(test)]
mod tests {
    use super::count;

    #[test]
    fn a_step_has_at_least_one_server_and_never_more_than_it_replaces() {
        for (present, step, servers) in
            [(0, 5, 0), (1, 5, 1), (2, 25, 1), (3, 50, 2), (10, 25, 3), (20, 5, 1), (4, 100, 4), (100, 100, 24)]
        {
            assert_eq!(count(present, step), servers, "{step} % of {present}");
        }
    }
}
