//! Pods: facts from their status, their reports, and the objects that they mount. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use codex_crds::Reason;
use codex_reports::{Failure, Report, SCHEMA_VERSION, exit};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{ContainerState, ContainerStateTerminated, ContainerStatus, Pod},
};
use kube::ResourceExt;
use serde::{Deserialize, Serialize};

use crate::{
    metadata::{Component, Owner},
    throttle,
};

/// The names of the containers that the controller plans.
const CONTAINERS: [&str; 4] =
    [Component::Trainer.name(), Component::Evaluator.name(), Component::Server.name(), Component::Activator.name()];

/// A report that the endpoint accepted: its sender is a pod that the object owns.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Received {
    /// The newest report of its pod.
    pub report: Report,
    /// The pod's name.
    pub pod: String,
    /// When it was received.
    pub at: Timestamp,
    /// What differs in another final report that the pod sent after its final report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contradiction: Option<String>,
}

/// A pod whose reports are refused.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RefusedPod {
    /// The pod's name.
    pub pod: String,
    /// The field that is refused, its value, and the expected one.
    pub why: String,
}

/// Why a report is refused that another process sent with the token of the pod.
pub const SECOND_WRITER: &str =
    "another process reports with the token of this pod, and does not have the key of the first one";

/// The newest Event about a Job or a pod that does not start, if it is a warning.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterWarning {
    /// The uid of the Job or the pod.
    pub about: String,
    /// The Event's reason, such as `FailedMount`.
    pub reason: String,
    /// The Event's message.
    pub message: String,
}

/// How long a Job or a pod may take to start before the reason is looked for.
const STARTED_WITHIN: SignedDuration = SignedDuration::from_secs(30);
/// The time until the reason is looked for again.
const EXPLAINED_AGAIN: Duration = Duration::from_secs(60);

/// Whether something that was expected `since` then is late.
pub(crate) fn is_late(since: Timestamp, now: Timestamp) -> bool {
    now.duration_since(since) >= STARTED_WITHIN
}

/// Returns when to look for the reason for which something does not start that was expected `since` then.
pub(crate) fn explained_again(since: Timestamp, now: Timestamp) -> Duration {
    let at = since.checked_add(STARTED_WITHIN).ok().filter(|at| now < *at);
    at.map_or(EXPLAINED_AGAIN, |at| throttle::until(now, at))
}

/// Returns the uids of the pods that are late and whose status does not say why, or that of the Job if it is late in creating
/// its pod.
pub fn unexplained(job: Option<&Job>, pods: &[Pod], now: Timestamp) -> Vec<String> {
    if let (Some(job), true) = (job, pods.is_empty()) {
        let since = job.status.as_ref().and_then(|status| status.start_time.as_ref()).map(|time| time.0);
        let since = since.or(job.creation_timestamp().map(|time| time.0));
        let late = since.is_some_and(|since| is_late(since, now));
        let conditions = job.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let ended =
            conditions.filter(|it| it.status == "True").any(|it| it.type_ == "Complete" || it.type_ == "Failed");
        let suspended = job.spec.as_ref().and_then(|spec| spec.suspend).unwrap_or(false);
        return job.metadata.uid.iter().filter(|_| late && !ended && !suspended).cloned().collect();
    }
    let facts = Facts::of(pods);
    let late = facts.iter().filter(|facts| facts.unexplained().is_some_and(|since| is_late(since, now)));
    late.map(|facts| facts.uid().to_owned()).collect()
}

/// Returns a sentence about the first pods whose reports are refused.
pub(crate) fn refusals(refused: &[RefusedPod]) -> Option<String> {
    let first = refused.first()?;
    let more = match refused.len() - 1 {
        0 => String::new(),
        more => format!("; so are those of {more} more"),
    };
    if first.why == SECOND_WRITER {
        return Some(format!(
            "reports for pod {} are refused: {}{more}. Find out who can read the token of the pod",
            first.pod, first.why
        ));
    }
    Some(format!(
        "the reports of pod {} are refused: {}{more}. Remove what changes the pod, such as a webhook",
        first.pod, first.why
    ))
}

/// The objects that a spec refers to, as far as they exist in its namespace.
///
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct References {
    /// The names of `PersistentVolumeClaims`.
    pub claims: BTreeSet<String>,
    /// `ConfigMap`s and their keys (of `data` and `binaryData`).
    pub config_maps: BTreeMap<String, BTreeSet<String>>,
}

/// The facts about a pod that plans depend on.
#[derive(Clone, Debug)]
pub(crate) struct Facts<'a> {
    pub(crate) pod: &'a Pod,
    status: Option<&'a ContainerStatus>,
}

impl<'a> Facts<'a> {
    /// Returns the facts about pods, oldest first.
    pub(crate) fn of(pods: &'a [Pod]) -> Vec<Self> {
        let mut facts: Vec<_> = pods
            .iter()
            .map(|pod| {
                let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_deref());
                Self { pod, status: statuses.and_then(of_ours) }
            })
            .collect();
        facts.sort_by_key(|facts| (facts.pod.creation_timestamp(), facts.pod.name_any(), facts.pod.uid()));
        facts
    }

    pub(crate) fn name(&self) -> String {
        self.pod.name_any()
    }

    pub(crate) fn uid(&self) -> &'a str {
        self.pod.metadata.uid.as_deref().unwrap_or_default()
    }

    fn state(&self) -> Option<&'a ContainerState> {
        self.status?.state.as_ref()
    }

    /// Returns when its container first started.
    pub(crate) fn started(&self) -> Option<Timestamp> {
        let status = self.status?;
        [status.state.as_ref(), status.last_state.as_ref()].into_iter().flatten().filter_map(started_at).min()
    }

    /// Whether its container is running.
    pub(crate) fn is_running(&self) -> bool {
        self.state().is_some_and(|state| state.running.is_some())
    }

    /// Returns how its container terminated; for a restarted container, how it terminated before.
    pub(crate) fn ended(&self) -> Option<&'a ContainerStateTerminated> {
        let status = self.status?;
        let ended = |state: &'a Option<ContainerState>| state.as_ref().and_then(|state| state.terminated.as_ref());
        ended(&status.state).or_else(|| ended(&status.last_state))
    }

    /// Whether its container exited 0.
    pub(crate) fn succeeded(&self) -> bool {
        let ended = self.state().and_then(|state| state.terminated.as_ref());
        ended.is_some_and(|ended| ended.exit_code == exit::FINISHED)
    }

    /// Whether its container exited with the code that makes its Job fail.
    pub(crate) fn refused_input(&self) -> bool {
        let ended = self.state().and_then(|state| state.terminated.as_ref());
        ended.is_some_and(|ended| ended.exit_code == exit::BAD_INPUT)
    }

    /// Whether its container is ready and the pod is not being deleted.
    pub(crate) fn is_ready(&self) -> bool {
        self.pod.metadata.deletion_timestamp.is_none() && self.is_serving()
    }

    /// Whether its container is ready, also while the pod is being deleted.
    pub(crate) fn is_serving(&self) -> bool {
        self.status.is_some_and(|status| status.ready)
    }

    /// Returns its addresses.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = &'a str> {
        let status = self.pod.status.as_ref();
        status.and_then(|status| status.pod_ips.as_deref()).unwrap_or_default().iter().map(|address| &*address.ip)
    }

    /// Returns how its container terminated, if it is not running or waiting to start again.
    pub(crate) fn terminated(&self) -> Option<&'a ContainerStateTerminated> {
        self.state()?.terminated.as_ref()
    }

    /// Returns the image that its container runs, with the digest.
    pub(crate) fn image_id(&self) -> Option<&'a str> {
        Some(self.status?.image_id.as_str()).filter(|id| !id.is_empty())
    }

    /// Returns why it does not start.
    pub(crate) fn obstacle(&self) -> Option<String> {
        let name = self.name();
        let waiting = self.state().and_then(|state| state.waiting.as_ref());
        if let Some(waiting) = waiting {
            let reason = waiting.reason.as_deref().unwrap_or_default();
            let ordinary = matches!(reason, "" | "ContainerCreating" | "PodInitializing" | "CrashLoopBackOff");
            let said = waiting.message.as_deref().unwrap_or("no message");
            return (!ordinary).then(|| format!("pod {name} cannot start ({reason}): {said}"));
        }
        let conditions = self.pod.status.as_ref()?.conditions.as_deref()?;
        let unscheduled = conditions
            .iter()
            .find(|condition| condition.type_ == "PodScheduled" && condition.status == "False")?
            .message
            .as_deref()?;
        Some(format!("pod {name} cannot be scheduled: {unscheduled}"))
    }

    /// Returns the name of its node.
    pub(crate) fn node(&self) -> Option<&'a str> {
        self.pod.spec.as_ref()?.node_name.as_deref()
    }

    /// Returns since when its node does not answer: its running container should have been stopped by then, or the cluster calls
    /// the pod unready although its containers are ready, which only the cluster itself does.
    pub(crate) fn silent_since(&self) -> Option<Timestamp> {
        if let Some(deadline) = &self.pod.metadata.deletion_timestamp {
            // The time of deletion includes the grace period.
            return Some(deadline.0);
        }
        let conditions = self.pod.status.as_ref()?.conditions.as_deref()?;
        let find = |kind: &str, status: &str| conditions.iter().find(|it| it.type_ == kind && it.status == status);
        find("ContainersReady", "True")?;
        Some(find("Ready", "False")?.last_transition_time.as_ref()?.0)
    }

    /// Returns when it was created, if it has not started and its status does not say why.
    pub(crate) fn unexplained(&self) -> Option<Timestamp> {
        let begun = self.state().is_some_and(|state| state.running.is_some() || state.terminated.is_some());
        let gone = self.pod.metadata.deletion_timestamp.is_some();
        let since = self.pod.creation_timestamp().filter(|_| !begun && !gone && self.obstacle().is_none())?;
        Some(since.0)
    }

    /// Returns the Event that says why it does not start.
    pub(crate) fn warned(&self, warnings: &[ClusterWarning]) -> Option<String> {
        self.unexplained()?;
        let warning = warnings.iter().find(|warning| warning.about == self.uid())?;
        Some(format!("pod {} cannot start ({}): {}", self.name(), warning.reason, warning.message))
    }

    /// Returns the report in its termination message, if this pod wrote it about `owner`.
    pub(crate) fn termination_report(&self, owner: &Owner) -> Option<Report> {
        let report: Report = serde_json::from_str(self.ended()?.message.as_deref()?).ok()?;
        let genuine = report.schema_version == SCHEMA_VERSION
            && report.object_uid == owner.uid
            && report.pod_uid == self.uid()
            && !report.pod_uid.is_empty();
        genuine.then_some(report)
    }
}

/// Returns the status of the container that the controller planned. A trainer's pod may have others beside it.
fn of_ours(statuses: &[ContainerStatus]) -> Option<&ContainerStatus> {
    let ours = |status: &&ContainerStatus| CONTAINERS.contains(&status.name.as_str());
    statuses.iter().find(ours).or_else(|| statuses.first())
}

fn started_at(state: &ContainerState) -> Option<Timestamp> {
    let running = state.running.as_ref().and_then(|running| running.started_at.as_ref());
    let ended = state.terminated.as_ref().and_then(|ended| ended.started_at.as_ref());
    running.or(ended).map(|time| time.0)
}

/// Returns the newest report of each pod, received or from a termination message, sorted by the time at which it was received
/// or the pod ended, by attempt, by the age of the pod, then by `seq`. Attempts are counted on the volume, so they begin again
/// at 1 on an emptied one.
pub(crate) fn newest_reports(owner: &Owner, facts: &[Facts<'_>], received: &[Received]) -> Vec<Report> {
    let order = |report: &Report| facts.iter().position(|facts| facts.uid() == report.pod_uid);
    let time = |report: &Report| {
        let at = received.iter().find(|received| received.report.pod_uid == report.pod_uid).map(|received| received.at);
        at.or_else(|| {
            let facts = facts.iter().find(|facts| facts.uid() == report.pod_uid)?;
            Some(facts.ended()?.finished_at.as_ref()?.0)
        })
    };
    let mut newest: BTreeMap<String, Report> = BTreeMap::new();
    let words = facts.iter().filter_map(|facts| facts.termination_report(owner));
    let taken = received.iter().map(|received| &received.report);
    for report in taken.filter(|report| report.object_uid == owner.uid).cloned().chain(words) {
        match newest.get(&report.pod_uid) {
            // A termination message may be truncated, so the received report of the same number is preferred.
            Some(known) if known.seq >= report.seq => {}
            _ => {
                newest.insert(report.pod_uid.clone(), report);
            }
        }
    }
    let mut reports: Vec<_> = newest.into_values().collect();
    reports.sort_by_key(|report| (time(report), report.attempt, order(report), report.seq, report.pod_uid.clone()));
    reports
}

/// Returns the condition reason of a failure that a pod reported.
pub(crate) fn reason(failure: &Failure) -> Reason {
    const REPORTED: [Reason; 7] = [
        Reason::BaseMismatch,
        Reason::DataMismatch,
        Reason::GoldenTokensDiffer,
        Reason::InvalidConfiguration,
        Reason::ModelMismatch,
        Reason::Unreproducible,
        Reason::VerificationFailed,
    ];
    let known = REPORTED.into_iter().find(|known| known.name() == failure.reason);
    known.unwrap_or(if failure.is_final { Reason::BadInput } else { Reason::PodFailed })
}
