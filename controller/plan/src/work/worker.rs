//! A Job with its pods and their reports: what they are doing, how long they ran. Pure.

use std::{collections::BTreeMap, time::Duration};

use codex_crds::{AttemptStatus, MAX_ATTEMPTS, WorkStatus};
use codex_reports::{Report, Stage as PodStage};
use jiff::Timestamp;
use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

use super::{
    ending::{Ending, contradiction},
    failure::WorkFailure,
    job_status::{self, Clock, Ended, JobStatus},
};
use crate::{
    metadata::Owner,
    pods::{ClusterWarning, Facts, Received, explained_again, is_late, newest_reports},
};

/// A Job with its pods and their reports.
pub(crate) struct Worker<'a> {
    pub(crate) owner: Owner,
    pub(crate) now: Timestamp,
    pub(crate) reports: Vec<Report>,
    pub(crate) clock: Clock,
    job: Option<JobStatus>,
    facts: Vec<Facts<'a>>,
    /// When the newest report of each pod was received, by the pod's uid.
    received: BTreeMap<String, Timestamp>,
    contradiction: Option<WorkFailure>,
    /// `status.work` as it is recorded.
    recorded: WorkStatus,
    /// The Job's name and the time since which it should have a pod; `None` while it is suspended or after it ended.
    pod_expected: Option<(String, Timestamp)>,
    /// The name of the Job and its queue, while it waits for quota.
    queued: Option<(String, String)>,
    /// The Job's uid.
    job_uid: Option<&'a str>,
    warnings: &'a [ClusterWarning],
}

/// What the Job of a [`Worker`] is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum JobPhase {
    /// The Job does not exist.
    Absent,
    /// No pod is running. The text says what prevents it, if that is known.
    Pending(Option<String>),
    /// A pod is running, or the newest one exited 0 and the Job does not show it yet.
    Running,
    /// The Job is complete.
    Complete(Option<Timestamp>),
    /// The Job failed.
    Failed(Ended),
}

impl<'a> Worker<'a> {
    pub(crate) fn of(
        owner: Owner,
        job: Option<&'a Job>,
        pods: &'a [Pod],
        received: &[Received],
        warnings: &'a [ClusterWarning],
        recorded: WorkStatus,
        now: Timestamp,
    ) -> Self {
        let facts = Facts::of(pods);
        let reports = newest_reports(&owner, &facts, received);
        let clock = Clock {
            seconds: recorded.active_seconds.unwrap_or(0),
            since: recorded.active_since.as_ref().map(|time| time.0),
        };
        let clock = clock.advance(job, now);
        let status = job.map(JobStatus::of);
        let pod_expected = job.zip(status.as_ref()).and_then(|(job, status)| {
            let pending = status.suspended_since.is_none() && status.ended.is_none();
            let since = status.active_since.or(job.creation_timestamp().map(|time| time.0));
            since.filter(|_| pending).map(|since| (job.name_any(), since))
        });
        let contradiction = contradiction(&owner, &facts, received);
        let received = received.iter().map(|received| (received.report.pod_uid.clone(), received.at)).collect();
        let queued = job.filter(|job| job.spec.as_ref().is_some_and(|spec| spec.suspend == Some(true)));
        let queued = queued.and_then(|job| Some((job.name_any(), job_status::queue(job)?.to_owned())));
        let job_uid = job.and_then(|job| job.metadata.uid.as_deref());
        Self {
            owner,
            now,
            reports,
            clock,
            job: status,
            facts,
            received,
            contradiction,
            recorded,
            pod_expected,
            queued,
            job_uid,
            warnings,
        }
    }

    /// Returns when the newest report of the pod with this uid was received.
    pub(crate) fn received_at(&self, pod: &str) -> Option<Timestamp> {
        self.received.get(pod).copied()
    }

    /// Returns the name of the running pod, and when it started.
    pub(crate) fn running(&self) -> Option<(String, Timestamp)> {
        let facts = self.facts.iter().rev().find(|facts| facts.is_running())?;
        Some((facts.name(), facts.started()?))
    }

    /// Returns a sentence if the node of the running pod no longer answers.
    pub(crate) fn lost_node(&self) -> Option<String> {
        let facts = self.facts.iter().rev().find(|facts| facts.is_running())?;
        let since = facts.silent_since().filter(|since| is_late(*since, self.now))?;
        let (pod, node) = (facts.name(), facts.node().unwrap_or("unknown"));
        Some(format!(
            "the node {node} of pod {pod} has not answered since {since}: the pod may still be at work, and is not replaced before \
             the node answers or is removed. If the node does not come back, remove it: kubectl delete node {node}"
        ))
    }

    /// Returns when to check again whether the node of the running pod answers.
    pub(crate) fn node_due(&self) -> Option<Duration> {
        let facts = self.facts.iter().rev().find(|facts| facts.is_running())?;
        let since = facts.silent_since().filter(|since| !is_late(*since, self.now))?;
        Some(explained_again(since, self.now))
    }

    /// Whether the pod with this uid is running or has exited 0: no pod of the Job is newer.
    pub(crate) fn is_current(&self, pod: &str) -> bool {
        self.facts.iter().any(|facts| facts.uid() == pod && (facts.is_running() || facts.succeeded()))
    }

    /// Returns why the Job has no pod, once it is late.
    fn late_pod(&self) -> Option<String> {
        let (name, since) = self.pod_expected.as_ref().filter(|_| self.facts.is_empty())?;
        let job = self.job.as_ref().filter(|_| is_late(*since, self.now))?;
        if let Some(warning) = self.warnings.iter().find(|warning| Some(warning.about.as_str()) == self.job_uid) {
            return Some(format!("the Job {name} cannot create a pod ({}): {}", warning.reason, warning.message));
        }
        let pods = |count: i32| if count == 1 { "1 pod".to_owned() } else { format!("{count} pods") };
        Some(if job.active > 0 {
            format!(
                "the Job {name} counts {} as active, but no pod bears the labels of its template: a pod whose labels were \
                 changed cannot report; delete it to have it replaced",
                pods(job.active)
            )
        } else if job.failed > 0 {
            format!(
                "the Job {name} counts {} as failed and waits before it creates the next one: the wait doubles with each \
                 failure, from 10 seconds to 10 minutes",
                pods(job.failed)
            )
        } else {
            format!("the Job {name} has not created a pod, and no Event says why: kubectl describe job {name}")
        })
    }

    /// Returns which finalizers hold a Job that is being deleted.
    fn held_job(&self) -> Option<String> {
        let (name, _) = self.pod_expected.as_ref()?;
        let (since, finalizers) = self.job.as_ref()?.held.as_ref().filter(|(since, _)| is_late(*since, self.now))?;
        Some(format!(
            "the Job {name} is being deleted since {since} and is replaced once it is gone, but its finalizers hold it \
             ({finalizers}): remove them if the controllers that they wait for do not exist"
        ))
    }

    /// Returns when to check again why no pod has started.
    pub(crate) fn pod_due(&self) -> Option<Duration> {
        let (_, since) = self.pod_expected.as_ref()?;
        let held = self.job.as_ref().and_then(|job| job.held.as_ref()).map(|(since, _)| *since);
        let since = if self.facts.is_empty() { Some(*since) } else { self.facts.iter().find_map(Facts::unexplained) };
        Some(explained_again(held.or(since)?, self.now))
    }

    /// Whether the Job has pods.
    pub(crate) fn has_pods(&self) -> bool {
        !self.facts.is_empty()
    }

    /// Whether a pod has ever started.
    pub(crate) fn has_started(&self) -> bool {
        self.recorded.attempts.is_some() || self.facts.iter().any(|facts| facts.started().is_some())
    }

    pub(crate) fn phase(&self) -> JobPhase {
        let Some(job) = &self.job else { return JobPhase::Absent };
        match &job.ended {
            Some(ended) if ended.failure.is_some() => JobPhase::Failed(ended.clone()),
            Some(ended) => JobPhase::Complete(ended.at),
            None if self.is_running() => JobPhase::Running,
            None => JobPhase::Pending(self.obstacle()),
        }
    }

    /// Returns what a Job in a queue waits for, if it waits.
    pub(crate) fn waits_for_quota(&self) -> Option<String> {
        let (name, queue) = self.queued.as_ref()?;
        Some(format!("the Job {name} waits for quota in the LocalQueue {queue}: Kueue starts it"))
    }

    /// Returns what prevents a pod from running, if that is known.
    pub(crate) fn obstacle(&self) -> Option<String> {
        let warned = |facts: &Facts<'_>| facts.obstacle().or_else(|| facts.warned(self.warnings));
        self.held_job().or_else(|| self.facts.iter().rev().find_map(warned)).or_else(|| self.late_pod())
    }

    /// Whether a pod is running: its status says so, or it has reported and has not ended. A Job takes a moment to show
    /// that its newest pod exited with a code that ends it.
    fn is_running(&self) -> bool {
        let reported = |facts: &Facts<'_>| self.reports.iter().any(|report| report.pod_uid == facts.uid());
        self.facts.iter().any(|facts| facts.is_running() || (facts.ended().is_none() && reported(facts)))
            || self.facts.last().is_some_and(|facts| facts.succeeded() || facts.refused_input())
    }

    /// Whether the newest pod reported a failure. It exits by itself, so its Job need not be suspended.
    pub(crate) fn reported_failure(&self) -> bool {
        self.reports.last().is_some_and(|report| report.state.stage() == PodStage::Failed)
    }

    /// Returns a failure if a pod contradicts itself.
    pub(crate) fn contradiction(&self) -> Option<&WorkFailure> {
        self.contradiction.as_ref()
    }

    /// Returns the facts about the pod with this uid, if it exists.
    pub(crate) fn pod(&self, uid: &str) -> Option<&Facts<'a>> {
        self.facts.iter().find(|facts| facts.uid() == uid)
    }

    /// Returns how the pod with this uid ended.
    pub(crate) fn ending(&self, pod: &str) -> Ending {
        Ending::of(&self.owner, &self.facts, pod, self.is_complete())
    }

    /// Whether the Job is complete.
    pub(crate) fn is_complete(&self) -> bool {
        matches!(self.phase(), JobPhase::Complete(_))
    }

    /// Returns how the newest failed pod ended whose end the Job has shown, or shows by running another one.
    pub(crate) fn former_failure(&self) -> Option<WorkFailure> {
        let shown = match self.facts.split_last() {
            Some((last, before)) if last.refused_input() => before,
            _ => &self.facts,
        };
        WorkFailure::of_pods(shown, &self.reports)
    }

    /// Returns how the newest failed pod ended.
    pub(crate) fn last_failure(&self) -> Option<WorkFailure> {
        WorkFailure::of_pods(&self.facts, &self.reports)
    }

    /// Returns when the Job ended.
    pub(crate) fn ended_at(&self) -> Option<Timestamp> {
        self.job.as_ref()?.ended.as_ref()?.at
    }

    /// Returns `status.work` of settled work: the clock no longer runs.
    pub(crate) fn final_status(&self) -> WorkStatus {
        let status = self.status();
        let Some(since) = status.active_since else { return status };
        let until = self.ended_at().unwrap_or(self.now).as_second();
        let active = until.saturating_sub(since.0.as_second()).max(0);
        let before = status.active_seconds.unwrap_or(0);
        WorkStatus { active_since: None, active_seconds: Some(before.saturating_add(active)), ..status }
    }

    /// Returns `status.work`: what is recorded already, and what is observed beyond it.
    pub(crate) fn status(&self) -> WorkStatus {
        let recorded = &self.recorded;
        let started = self.facts.iter().filter(|facts| facts.started().is_some()).count();
        let counted = self.reports.iter().map(|report| i32::try_from(report.attempt).unwrap_or(i32::MAX)).max();
        let attempts = recorded
            .attempts
            .max(counted)
            .max(Some(i32::try_from(started).unwrap_or(i32::MAX)))
            .filter(|attempts| *attempts > 0);
        let image_id = self.facts.iter().rev().find_map(Facts::image_id).map(str::to_owned);
        WorkStatus {
            attempts,
            // The clock is written only after a pod has started: a pod that pulls its image causes no status write.
            active_seconds: attempts.map(|_| self.clock.seconds).or(recorded.active_seconds),
            active_since: self.clock.since.filter(|_| attempts.is_some()).map(Time),
            started_at: recorded
                .started_at
                .clone()
                .or_else(|| self.facts.iter().filter_map(Facts::started).min().map(Time)),
            image_id: image_id.or_else(|| recorded.image_id.clone()),
            recent_attempts: self.recent_attempts(),
        }
    }

    /// Returns the latest attempts: those of the pods that exist, and the recorded ones of pods that do not.
    fn recent_attempts(&self) -> Vec<AttemptStatus> {
        let observed: Vec<_> = self.facts.iter().filter_map(|facts| self.attempt(facts)).collect();
        let gone = |recorded: &&AttemptStatus| !observed.iter().any(|attempt| attempt.pod == recorded.pod);
        let mut attempts: Vec<_> = self.recorded.recent_attempts.iter().filter(gone).cloned().collect();
        attempts.extend(observed);
        attempts.sort_by_key(|attempt| attempt.started_at.0);
        attempts.split_off(attempts.len().saturating_sub(MAX_ATTEMPTS))
    }

    /// Returns the attempt of a pod that has started.
    fn attempt(&self, facts: &Facts<'_>) -> Option<AttemptStatus> {
        let ended = facts.ended();
        Some(AttemptStatus {
            pod: facts.name(),
            node: facts.node().map(str::to_owned),
            started_at: Time(facts.started()?),
            ended_at: ended.and_then(|ended| ended.finished_at.clone()),
            exit_code: ended.map(|ended| ended.exit_code),
            reason: WorkFailure::of_pod(facts, &self.reports).map(|failure| failure.reason.name().to_owned()),
        })
    }
}
