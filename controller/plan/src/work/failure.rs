//! Why the work of a TrainingRun or an Evaluation failed: a reason and a message. Pure.

use codex_crds::{ConditionType, Reason};
use codex_reports::{Report, exit};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::job_status::Clock;
use crate::{
    conditions::find,
    pods::{self, Facts},
};

/// Why work failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WorkFailure {
    pub(crate) reason: Reason,
    pub(crate) message: String,
}

impl WorkFailure {
    pub(crate) fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }

    /// Returns the failure that the conditions of an object already record.
    pub(crate) fn recorded(conditions: &[Condition]) -> Self {
        let stalled = find(conditions, ConditionType::Stalled);
        let reason = stalled.and_then(|stalled| Reason::ALL.iter().find(|reason| reason.name() == stalled.reason));
        Self::new(
            reason.copied().unwrap_or(Reason::PodFailed),
            stalled.map_or("it failed, and the status no longer records why", |stalled| &stalled.message),
        )
    }

    /// Returns a failure if the pods have used up `deadline`.
    pub(crate) fn deadline_exceeded(clock: Clock, deadline: Option<i64>) -> Option<Self> {
        let deadline = deadline.filter(|deadline| clock.seconds >= *deadline)?;
        let message =
            format!("the pods ran for {} seconds, but spec.activeDeadlineSeconds is {deadline}", clock.seconds);
        Some(Self::new(Reason::DeadlineExceeded, message))
    }

    /// Returns how the newest failed pod ended.
    pub(crate) fn of_pods(facts: &[Facts<'_>], reports: &[Report]) -> Option<Self> {
        facts.iter().rev().find_map(|facts| Self::of_pod(facts, reports))
    }

    /// Returns how a pod failed, if it did.
    pub(crate) fn of_pod(facts: &Facts<'_>, reports: &[Report]) -> Option<Self> {
        let ended = facts.ended()?;
        if ended.exit_code == exit::FINISHED {
            return None;
        }
        let (pod, code) = (facts.name(), ended.exit_code);
        if ended.reason.as_deref() == Some(Reason::OOMKilled.name()) {
            return Some(Self::new(Reason::OOMKilled, format!("pod {pod} was OOMKilled (exit code {code})")));
        }
        if code == exit::INTERRUPTED {
            let message = format!("pod {pod} was interrupted after a checkpoint (exit code {code})");
            return Some(Self::new(Reason::PodFailed, message));
        }
        let own =
            reports.iter().rev().find(|report| report.pod_uid == facts.uid()).and_then(|report| report.state.failure());
        if let Some(failure) = own {
            return Some(Self::new(pods::reason(failure), format!("pod {pod} reported: {}", failure.message)));
        }
        let reason = ended.reason.as_deref().filter(|reason| *reason != "Error");
        let word = reason.map_or_else(String::new, |reason| format!("{reason}, "));
        Some(Self::new(
            Reason::PodFailed,
            format!("pod {pod} exited without reporting a reason ({word}exit code {code})"),
        ))
    }
}
