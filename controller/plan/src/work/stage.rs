//! Stages that TrainingRun and Evaluation share. Pure.

use std::time::Duration;

use codex_crds::{ConditionType, Reason};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::{failure::WorkFailure, job::DesiredJob, job_status::Ended, view::WorkView, worker::JobPhase};
use crate::{
    conditions::{Conditions, find},
    data,
    pods::{self, References, refusals},
    throttle::{self, REFERENCES_AGAIN},
};

/// The message of an object that waits for a pod when nothing is known to prevent it.
const WAITING_FOR_POD: &str = "waiting for a pod to start";

/// Work that is neither settled nor waiting for another object of ours.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Active {
    /// Suspended by `spec.suspend`.
    Suspended,
    /// Referenced objects do not exist; each sentence names one.
    MissingReferences(Vec<String>),
    /// The Job exists, and objects that its pods mount no longer do; each sentence names one.
    LostReferences(Vec<String>),
    /// The Job is suspended by Kueue until there is quota for it, as the sentence says.
    Queued(String),
    /// No pod is running. The text says what prevents it, if that is known.
    Pending(Option<String>),
    /// A pod is running.
    Running,
    /// The pod exited 0 and its final report is awaited, until this time at most.
    FinalReport(Timestamp),
}

/// How far the Job is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Progress {
    /// The work can still succeed.
    Active(Active),
    /// The Job is complete: what the pod reported decides.
    Complete(Option<Timestamp>),
    /// The work failed.
    Failed(WorkFailure),
}

impl Progress {
    /// Returns how far the Job of `view` is. `claims` are those that its pods mount besides the data, each with the field that
    /// names it.
    pub(crate) fn of(view: &WorkView<'_>, claims: &[(String, &str)]) -> Self {
        match view.worker.phase() {
            JobPhase::Absent | JobPhase::Pending(_) | JobPhase::Running if view.suspend => {
                Self::Active(Active::Suspended)
            }
            JobPhase::Absent => Self::without_job(view, claims),
            JobPhase::Pending(obstacle) => {
                let missing =
                    view.references.map(|references| data::missing(view.data, claims, &view.keys, references));
                Self::Active(match missing {
                    Some(missing) if !missing.is_empty() => Active::LostReferences(missing),
                    _ => match view.worker.waits_for_quota() {
                        Some(waits) => Active::Queued(waits),
                        None => Active::Pending(obstacle),
                    },
                })
            }
            JobPhase::Running => Self::Active(Active::Running),
            JobPhase::Complete(at) => Self::Complete(at),
            JobPhase::Failed(ended) => Self::Failed(job_failure(&ended, view)),
        }
    }

    fn without_job(view: &WorkView<'_>, claims: &[(String, &str)]) -> Self {
        if let Some(failure) = WorkFailure::deadline_exceeded(view.worker.clock, view.limits.deadline) {
            return Self::Failed(failure);
        }
        let none = References::default();
        let missing = data::missing(view.data, claims, &view.keys, view.references.unwrap_or(&none));
        Self::Active(if missing.is_empty() { Active::Pending(None) } else { Active::MissingReferences(missing) })
    }
}

impl Active {
    /// Returns the stage after the Job completed at `at` without a result: the final report may still arrive, for a while.
    ///
    /// # Errors
    /// The failure with that message, once the report is overdue.
    pub(crate) fn without_result(
        view: &WorkView<'_>,
        at: Option<Timestamp>,
        failure: &str,
    ) -> Result<Self, WorkFailure> {
        let until = throttle::final_report_until(at, view.now());
        until.map(Self::FinalReport).ok_or_else(|| WorkFailure::new(Reason::PodFailed, failure))
    }

    /// Returns the desired state of the Job.
    pub(crate) fn job(&self) -> DesiredJob {
        match self {
            Self::Suspended => DesiredJob::Present { suspended: true, settled: false },
            Self::MissingReferences(_) => DesiredJob::Absent,
            Self::LostReferences(_) | Self::Queued(_) | Self::Pending(_) | Self::Running | Self::FinalReport(_) => {
                DesiredJob::Present { suspended: false, settled: false }
            }
        }
    }

    /// Returns when to plan again although nothing changed.
    pub(crate) fn requeue(&self, view: &WorkView<'_>) -> Option<Duration> {
        match self {
            Self::MissingReferences(_) | Self::LostReferences(_) => Some(REFERENCES_AGAIN),
            Self::FinalReport(until) => Some(throttle::until(view.now(), *until)),
            Self::Pending(_) => view.worker.pod_due(),
            Self::Running => [view.stale_due(), view.worker.node_due()].into_iter().flatten().min(),
            Self::Suspended | Self::Queued(_) => None,
        }
    }

    /// Returns the reason and the message of the `Ready` condition. The message must not change with every step.
    pub(crate) fn message(&self, view: &WorkView<'_>) -> (Reason, String) {
        let component = view.component.name();
        let failed = view.worker.former_failure().map(|failure| failure.message);
        let told = failed.into_iter().chain(view.changed_too_late());
        let before = told.fold(String::new(), |before, told| before + "; " + &told);
        if let (Self::Pending(_) | Self::Running | Self::FinalReport(_), Some(why)) = (self, refusals(view.refused)) {
            return (Reason::PodChanged, why);
        }
        match self {
            Self::Suspended => (Reason::Suspended, "spec.suspend is true: set it to false to resume".to_owned()),
            Self::MissingReferences(missing) | Self::LostReferences(missing) => (Reason::NotFound, missing.join("; ")),
            Self::Queued(waits) => (Reason::WaitingForQuota, waits.clone()),
            Self::Pending(obstacle) => {
                let message = obstacle.as_deref().unwrap_or(WAITING_FOR_POD);
                (Reason::WaitingForPod, format!("{message}{before}"))
            }
            Self::FinalReport(_) => {
                (Reason::Running, format!("the {component} exited 0; waiting for its final report"))
            }
            Self::Running => match (view.worker.lost_node(), view.stale()) {
                (Some(lost), _) => (Reason::NodeLost, lost),
                (None, Some(stale)) => (Reason::ProgressDeadlineExceeded, stale),
                (None, None) => (Reason::Running, format!("the {component} is running{before}")),
            },
        }
    }
}

/// Sets `ProgressStale` if the running pod has reported no progress for too long.
pub(crate) fn stale_condition(conditions: &mut Conditions<'_>, active: &Active, view: &WorkView<'_>) {
    if let (Active::Running, Some(stale)) = (active, view.stale()) {
        conditions.set(ConditionType::ProgressStale, true, Reason::ProgressDeadlineExceeded, &stale);
    }
}

/// Returns why a Job failed: what its pods reported, or how they ended.
fn job_failure(ended: &Ended, view: &WorkView<'_>) -> WorkFailure {
    let (worker, limits) = (&view.worker, view.limits);
    let own = worker.reports.iter().rev().find_map(|report| report.state.failure());
    let why = ended.failure.as_deref().unwrap_or_default();
    if let Some(failure) = own.filter(|failure| failure.is_final || why == "PodFailurePolicy") {
        return WorkFailure::new(pods::reason(failure), &*failure.message);
    }
    let last = worker.last_failure();
    let told = last.as_ref().map_or("no pod reported why", |last| &last.message);
    match why {
        "DeadlineExceeded" => {
            let deadline = limits.deadline.map_or_else(String::new, |deadline| format!(" ({deadline})"));
            let (what, why) = if worker.has_started() {
                ("the pods ran longer than", last.map(|last| format!("; last failure: {}", last.message)))
            } else {
                let obstacle = worker.obstacle().or_else(|| recorded_obstacle(view.conditions));
                ("no pod started within", obstacle.map(|obstacle| format!("; {obstacle}")))
            };
            let why = why.unwrap_or_default();
            WorkFailure::new(Reason::DeadlineExceeded, format!("{what} spec.activeDeadlineSeconds{deadline}{why}"))
        }
        "BackoffLimitExceeded" => match last {
            Some(WorkFailure { reason: Reason::OOMKilled, message }) => WorkFailure::new(
                Reason::OOMKilled,
                format!(
                    "{message}, and spec.retries ({}) are exhausted: create another object with more memory in \
                     spec.pod.resources.limits",
                    limits.retries
                ),
            ),
            _ => WorkFailure::new(
                Reason::RetriesExhausted,
                format!("spec.retries ({}) are exhausted; last failure: {told}", limits.retries),
            ),
        },
        "PodFailurePolicy" => WorkFailure::new(Reason::BadInput, format!("the pod refused its input; {told}")),
        other => WorkFailure::new(Reason::PodFailed, format!("the Job failed ({other}); {told}")),
    }
}

/// Returns the obstacle that the conditions of an object record: it outlives the pod that met it.
fn recorded_obstacle(conditions: &[Condition]) -> Option<String> {
    let ready = find(conditions, ConditionType::Ready)?;
    let known = ready.reason == Reason::WaitingForPod.name() && !ready.message.starts_with(WAITING_FOR_POD);
    known.then(|| ready.message.clone())
}
