//! Why work came to nothing, in a word and a sentence. Pure.

use codex_crds::Reason;
use codex_reports::{Report, exit};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use crate::{
    conditions::find,
    job::{Clock, Ended},
    pods::Facts,
    worker::{NO_OBSTACLE, Worker},
};

/// Why work came to nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) reason: Reason,
    pub(crate) message: String,
}

impl Refusal {
    pub(crate) fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }

    /// What the status already holds, so that a failure stays what it was.
    pub(crate) fn recorded(conditions: &[Condition]) -> Self {
        let stalled = find(conditions, codex_crds::ConditionType::Stalled);
        let reason = stalled.and_then(|stalled| Reason::ALL.iter().find(|reason| reason.name() == stalled.reason));
        Self::new(
            reason.copied().unwrap_or(Reason::PodFailed),
            stalled.map_or("it failed, and its status no longer says why", |stalled| &stalled.message),
        )
    }

    /// That nothing is left of `deadline`, if that is so.
    pub(crate) fn spent(clock: Clock, deadline: Option<i64>) -> Option<Self> {
        let deadline = deadline.filter(|deadline| clock.seconds >= *deadline)?;
        let message =
            format!("the pods worked {} seconds, and spec.activeDeadlineSeconds is {deadline}", clock.seconds);
        Some(Self::new(Reason::DeadlineExceeded, message))
    }

    /// Why a Job failed: what its pods said, or how they ended.
    /// `before` are the conditions that the object has.
    pub(crate) fn of_job(ended: &Ended, worker: &Worker<'_>, granted: Granted, before: &[Condition]) -> Self {
        let failure = worker.said.iter().rev().find_map(|report| report.state.failure());
        let why = ended.failure.as_deref().unwrap_or_default();
        if let Some(failure) = failure.filter(|failure| failure.is_final || why == "PodFailurePolicy") {
            return Self::new(crate::pods::reason(failure), &*failure.message);
        }
        let last = worker.last_failure();
        let told = last.as_ref().map_or("no pod says why", |(_, told)| told);
        match why {
            "DeadlineExceeded" => {
                let deadline = granted.deadline.map_or_else(String::new, |deadline| format!(" ({deadline})"));
                let (what, why) = if worker.begun() {
                    ("the pods worked longer than", last.map(|(_, told)| told))
                } else {
                    ("no pod began to work within", worker.obstacle().or_else(|| obstacle(before)))
                };
                let why = why.map_or_else(String::new, |why| format!("; in the end {why}"));
                Self::new(Reason::DeadlineExceeded, format!("{what} spec.activeDeadlineSeconds{deadline}{why}"))
            }
            "BackoffLimitExceeded" => match last {
                Some((Reason::OOMKilled, told)) => Self::new(
                    Reason::OOMKilled,
                    format!(
                        "{told}, and spec.retries ({}) are used up: create another object with more memory in \
                         spec.pod.resources.limits",
                        granted.retries
                    ),
                ),
                _ => Self::new(
                    Reason::RetriesExhausted,
                    format!("spec.retries ({}) are used up; in the end {told}", granted.retries),
                ),
            },
            "PodFailurePolicy" => Self::new(Reason::BadInput, format!("the input was refused; {told}")),
            other => Self::new(Reason::PodFailed, format!("the Job failed ({other}); {told}")),
        }
    }
}

/// What the conditions of an object say of what kept its pods from beginning, if anything did.
fn obstacle(before: &[Condition]) -> Option<String> {
    let ready = find(before, codex_crds::ConditionType::Ready)?;
    let known = ready.reason == Reason::WaitingForPod.name() && !ready.message.starts_with(NO_OBSTACLE);
    known.then(|| ready.message.clone())
}

/// What an object grants its pods.
#[derive(Clone, Copy)]
pub(crate) struct Granted {
    pub(crate) retries: i32,
    pub(crate) deadline: Option<i64>,
}

/// How the newest pod that came to nothing ended.
pub(crate) fn last_failure(facts: &[Facts<'_>], said: &[Report]) -> Option<(Reason, String)> {
    facts.iter().rev().find_map(|facts| {
        let ended = facts.ended()?;
        if ended.exit_code == exit::FINISHED {
            return None;
        }
        let (pod, code) = (facts.name(), ended.exit_code);
        if ended.reason.as_deref() == Some(Reason::OOMKilled.name()) {
            return Some((Reason::OOMKilled, format!("pod {pod} was OOMKilled (exit code {code})")));
        }
        if code == exit::INTERRUPTED {
            return Some((
                Reason::PodFailed,
                format!("pod {pod} was interrupted after a checkpoint (exit code {code})"),
            ));
        }
        let own =
            said.iter().rev().find(|report| report.pod_uid == facts.uid()).and_then(|report| report.state.failure());
        if let Some(failure) = own {
            return Some((crate::pods::reason(failure), format!("pod {pod} said: {}", failure.message)));
        }
        let reason = ended.reason.as_deref().filter(|reason| *reason != "Error");
        let word = reason.map_or_else(String::new, |reason| format!("{reason}, "));
        Some((Reason::PodFailed, format!("pod {pod} ended without a word ({word}exit code {code})")))
    })
}
