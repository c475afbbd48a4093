//! A Job and its pods, as trainer and evaluator share them: what they said, how long they worked. Pure.

use std::time::Duration;

use codex_crds::{Reason, WorkStatus};
use codex_reports::{Report, Stage as PodStage};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

use crate::{
    Received,
    job::{Clock, Ended, Progress},
    metadata::Owner,
    pods::{Facts, said},
    refusal::last_failure,
    throttle,
};

/// A Job and its pods.
pub(crate) struct Worker<'a> {
    pub(crate) owner: Owner,
    pub(crate) now: Timestamp,
    pub(crate) job: Option<Progress>,
    pub(crate) facts: Vec<Facts<'a>>,
    pub(crate) said: Vec<Report>,
    pub(crate) clock: Clock,
    held: WorkStatus,
    /// The Job's name, and since when it should have a pod; none while it is suspended or has ended.
    due: Option<(String, Timestamp)>,
}

/// How long a Job may take to make its pod before somebody wonders.
const POD_MADE: SignedDuration = SignedDuration::from_secs(30);

/// What is said of a pod that nothing is known to keep from beginning.
pub(crate) const NO_OBSTACLE: &str = "waiting for a pod to start";

/// What a worker is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Doing {
    /// There is no Job.
    Nothing,
    /// No pod works; perhaps with what stands in its way.
    Waiting(Option<String>),
    /// A pod works, or the newest one ended well and its Job does not say so yet.
    Working,
    /// The Job is complete.
    Complete(Option<Timestamp>),
    /// The Job failed.
    Failed(Ended),
}

impl<'a> Worker<'a> {
    pub(crate) fn of(
        owner: Owner,
        live: Option<&'a Job>,
        pods: &'a [Pod],
        reports: &[Received],
        held: WorkStatus,
        now: Timestamp,
    ) -> Self {
        let facts = Facts::of(pods);
        let said = said(&owner, &facts, reports);
        let clock =
            Clock { seconds: held.active_seconds.unwrap_or(0), since: held.active_since.as_ref().map(|time| time.0) };
        let clock = clock.advance(live, now);
        let job = live.map(Progress::of);
        let due = live.zip(job.as_ref()).and_then(|(live, progress)| {
            let waits = progress.suspended_since.is_none() && progress.ended.is_none();
            let since = progress.active_since.or(live.creation_timestamp().map(|time| time.0));
            since.filter(|_| waits).map(|since| (live.name_any(), since))
        });
        Self { owner, now, job, facts, said, clock, held, due }
    }

    /// That its Job made no pod, once it should have: only its Events say why.
    fn unmade(&self) -> Option<String> {
        let (job, since) = self.due.as_ref().filter(|_| self.facts.is_empty())?;
        (self.now.duration_since(*since) >= POD_MADE)
            .then(|| format!("the Job {job} has made no pod; its Events say why: kubectl describe job {job}"))
    }

    /// When to look again for a pod that its Job should make.
    pub(crate) fn pod_due(&self) -> Option<Duration> {
        let (_, since) = self.due.as_ref().filter(|_| self.facts.is_empty())?;
        let at = since.checked_add(POD_MADE).ok().filter(|at| self.now < *at)?;
        Some(throttle::until(self.now, at))
    }

    /// Whether a pod has worked, ever.
    pub(crate) fn begun(&self) -> bool {
        self.held.attempts.is_some() || self.facts.iter().any(|facts| facts.started().is_some())
    }

    pub(crate) fn doing(&self) -> Doing {
        let Some(job) = &self.job else { return Doing::Nothing };
        match &job.ended {
            Some(ended) if ended.failure.is_some() => Doing::Failed(ended.clone()),
            Some(ended) => Doing::Complete(ended.at),
            None if self.works() => Doing::Working,
            None => Doing::Waiting(self.obstacle()),
        }
    }

    /// What keeps a pod from beginning, if anything is known to.
    pub(crate) fn obstacle(&self) -> Option<String> {
        self.facts.iter().rev().find_map(Facts::obstacle).or_else(|| self.unmade())
    }

    /// Whether a pod works: its status says so, or it reported and has not ended. A Job takes a moment to say that its
    /// newest pod ended well.
    fn works(&self) -> bool {
        let reported = |facts: &Facts<'_>| self.said.iter().any(|report| report.pod_uid == facts.uid());
        self.facts.iter().any(|facts| facts.works() || (facts.ended().is_none() && reported(facts)))
            || self.facts.last().is_some_and(Facts::finished)
    }

    /// Whether the newest pod gave up by itself, so that nobody has to stop it.
    pub(crate) fn gave_up(&self) -> bool {
        self.said.last().is_some_and(|report| report.state.stage() == PodStage::Failed)
    }

    pub(crate) fn last_failure(&self) -> Option<(Reason, String)> {
        last_failure(&self.facts, &self.said)
    }

    /// When the Job ended, if it did.
    pub(crate) fn ended_at(&self) -> Option<Timestamp> {
        self.job.as_ref()?.ended.as_ref()?.at
    }

    /// What accumulated in the end: the clock stands still.
    pub(crate) fn final_tally(&self) -> WorkStatus {
        let tally = self.tally();
        let Some(since) = tally.active_since else { return tally };
        let until = self.ended_at().unwrap_or(self.now).as_second();
        let worked = until.saturating_sub(since.0.as_second()).max(0);
        let before = tally.active_seconds.unwrap_or(0);
        WorkStatus { active_since: None, active_seconds: Some(before.saturating_add(worked)), ..tally }
    }

    /// What accumulated, over what the status holds already.
    pub(crate) fn tally(&self) -> WorkStatus {
        let held = &self.held;
        let begun = self.facts.iter().filter(|facts| facts.started().is_some()).count();
        let counted = self.said.iter().map(|report| i32::try_from(report.attempt).unwrap_or(i32::MAX)).max();
        let attempts = held
            .attempts
            .max(counted)
            .max(Some(i32::try_from(begun).unwrap_or(i32::MAX)))
            .filter(|attempts| *attempts > 0);
        let image_id = self.facts.iter().rev().find_map(Facts::image_id).map(str::to_owned);
        WorkStatus {
            attempts,
            // The clock is told once somebody has worked: a pod that waits for its image is no news.
            active_seconds: attempts.map(|_| self.clock.seconds).or(held.active_seconds),
            active_since: self.clock.since.filter(|_| attempts.is_some()).map(Time),
            started_at: held
                .started_at
                .clone()
                .or_else(|| self.facts.iter().filter_map(Facts::started).min().map(Time)),
            image_id: image_id.or_else(|| held.image_id.clone()),
        }
    }
}
