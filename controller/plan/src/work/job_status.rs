//! A Job as its status and its spec show it: how far it is, how it ended, how long its pods ran. Pure.

use codex_crds::annotation;
use codex_provenance::ConfigDigest;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{Job, JobCondition};
use kube::ResourceExt;

/// Retry and deadline limits from the spec of the object that owns the Job.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) retries: i32,
    pub(crate) deadline: Option<i64>,
    /// How long a running pod may report no progress.
    pub(crate) progress: SignedDuration,
}

impl Limits {
    pub(crate) fn of(retries: i32, deadline: Option<i64>, progress: i64) -> Self {
        Self { retries, deadline, progress: SignedDuration::from_secs(progress) }
    }
}

/// The parts of a Job's status that plans depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct JobStatus {
    /// Start of the current active period, the one that `activeDeadlineSeconds` measures.
    pub(crate) active_since: Option<Timestamp>,
    /// Start of the current suspension.
    pub(crate) suspended_since: Option<Timestamp>,
    /// How the Job ended.
    pub(crate) ended: Option<Ended>,
    /// The number of pods that the Job counts as active.
    pub(crate) active: i32,
    /// The number of pods that the Job counts as failed.
    pub(crate) failed: i32,
    /// Since when the Job is being deleted, with the finalizers that hold it.
    pub(crate) held: Option<(Timestamp, String)>,
}

/// How a Job ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) at: Option<Timestamp>,
    /// The reason of the Job's `Failed` condition; `None` if the Job is complete.
    pub(crate) failure: Option<String>,
}

impl JobStatus {
    pub(crate) fn of(job: &Job) -> Self {
        let status = job.status.as_ref();
        let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        let holds =
            |kind: &str| conditions.iter().find(|condition| condition.type_ == kind && condition.status == "True");
        let time = |condition: &JobCondition| condition.last_transition_time.as_ref().map(|time| time.0);
        let completed = status.and_then(|status| status.completion_time.as_ref()).map(|time| time.0);
        let ended = holds("Complete")
            .map(|condition| Ended { at: completed.or(time(condition)), failure: None })
            .or_else(|| {
                holds("Failed").map(|condition| Ended {
                    at: time(condition),
                    failure: Some(condition.reason.clone().unwrap_or_default()),
                })
            });
        let suspended = holds("Suspended");
        let started = status.and_then(|status| status.start_time.as_ref()).map(|time| time.0);
        Self {
            active_since: started.filter(|_| suspended.is_none() && ended.is_none()),
            suspended_since: suspended.and_then(time),
            ended,
            active: status.and_then(|status| status.active).unwrap_or(0),
            failed: status.and_then(|status| status.failed).unwrap_or(0),
            held: job.metadata.deletion_timestamp.as_ref().map(|time| (time.0, job.finalizers().join(", "))),
        }
    }
}

/// Returns the digest of the configuration that a Job was created with.
pub(crate) fn config_digest(job: &Job) -> Option<ConfigDigest> {
    job.annotations().get(annotation::CONFIG_DIGEST)?.parse().ok()
}

/// Returns the `LocalQueue` of Kueue that a Job was created for.
pub(crate) fn queue(job: &Job) -> Option<&str> {
    job.annotations().get(annotation::QUEUE).map(String::as_str)
}

/// Measures how long a Job was active: the seconds of earlier active periods, and the start of the current one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Clock {
    pub(crate) seconds: i64,
    pub(crate) since: Option<Timestamp>,
}

impl Clock {
    /// Returns the clock after the current status of `job`.
    pub(crate) fn advance(self, job: Option<&Job>, now: Timestamp) -> Self {
        let status = job.map(JobStatus::of);
        let active_since = status.as_ref().and_then(|status| status.active_since);
        let Some(since) = self.since else {
            return Self { since: active_since, ..self };
        };
        if active_since == Some(since) {
            return self;
        }
        let stopped = status.and_then(|status| match status.ended {
            Some(ended) => ended.at,
            None => status.suspended_since.or(active_since),
        });
        let active = stopped.unwrap_or(now).as_second().saturating_sub(since.as_second()).max(0);
        Self { seconds: self.seconds.saturating_add(active), since: active_since }
    }

    /// Returns the seconds that are left of `deadline`: at least 1, the least that a Job accepts.
    pub(crate) fn remaining(self, deadline: Option<i64>) -> Option<i64> {
        deadline.map(|deadline| deadline.saturating_sub(self.seconds).max(1))
    }
}
