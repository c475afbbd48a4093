//! The observation that TrainingRun and Evaluation share, in the form that their plans need. Pure.

use std::time::Duration;

use codex_configs::Data;
use codex_crds::{ConfigMapKey, DataItem, DataStatus, Reason, WorkStatus};
use codex_provenance::{ConfigDigest, Sha256};
use codex_reports::{DataFile, Report};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::batch::v1::Job,
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
};

use kube::ResourceExt;

use super::{
    config::Config,
    failure::WorkFailure,
    job::{DesiredJob, JobChildren},
    job_status::{self, Limits},
    pod_settings,
    worker::{JobPhase, Worker},
};
use crate::{
    data,
    metadata::{Component, Owner},
    plan::Desired,
    pod_template::Template,
    pods::{References, RefusedPod},
    seal::Discarded,
    settings::Settings,
    throttle,
};

/// The configuration, Job, data and reports of a TrainingRun or an Evaluation.
pub(crate) struct WorkView<'a> {
    pub(crate) component: Component,
    pub(crate) settings: &'a Settings,
    pub(crate) job: Option<&'a Job>,
    pub(crate) worker: Worker<'a>,
    /// The configuration, or the sentence that says what is wrong with it.
    pub(crate) config: Result<Config, String>,
    pub(crate) limits: Limits,
    pub(crate) suspend: bool,
    /// The `LocalQueue` of Kueue that the object's label names.
    pub(crate) queue: Option<&'a str>,
    /// `spec.ttlSecondsAfterFinished`.
    pub(crate) ttl: Option<i64>,
    /// `status.completedAt` as it is recorded.
    pub(crate) settled_at: Option<Timestamp>,
    /// `spec.data`.
    pub(crate) data: &'a [DataItem],
    /// The names of data files that the preset and comparisons add to `spec.data`.
    pub(crate) preset_data: Vec<String>,
    /// Keys of ConfigMaps that hold no data, each with the field that names it.
    pub(crate) keys: Vec<(String, &'a ConfigMapKey)>,
    /// The objects that the pods mount, if they were looked for.
    pub(crate) references: Option<&'a References>,
    /// The Job's pods whose reports are refused.
    pub(crate) refused: &'a [RefusedPod],
    /// The conditions as they are recorded.
    pub(crate) conditions: &'a [Condition],
    /// The latest progress that the pods reported.
    pub(crate) moved: Option<Moved>,
    /// The digest of the settings of the pods that may change until one has started; `None` if none may.
    pub(crate) pod: Option<Sha256>,
}

/// The latest progress that pods reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Moved {
    /// When the controller received it.
    pub(crate) at: Timestamp,
    /// What was reached.
    pub(crate) to: String,
}

impl WorkView<'_> {
    pub(crate) fn now(&self) -> Timestamp {
        self.worker.now
    }

    /// Returns the digest of the configuration, if it is valid.
    pub(crate) fn config_digest(&self) -> Option<ConfigDigest> {
        self.config.as_ref().ok().map(|config| config.digest)
    }

    /// Returns the data files that the pod must read.
    fn expected_data(&self) -> &[Data] {
        self.config.as_ref().map(|config| config.data.as_slice()).unwrap_or_default()
    }

    /// Returns the digests that a pod reported for its data files, as a status records them.
    pub(crate) fn digests(&self, files: &[DataFile]) -> Vec<DataStatus> {
        let named: Vec<_> = self
            .data
            .iter()
            .map(|item| item.name.as_str())
            .chain(self.preset_data.iter().map(String::as_str))
            .collect();
        data::digests(files, &named)
    }

    /// Returns `status.dataDigests`: those of the newest report, or `recorded` if that report names no file.
    pub(crate) fn data_digests(&self, newest: Option<&[DataFile]>, recorded: &[DataStatus]) -> Vec<DataStatus> {
        let read = newest.map(|files| self.digests(files)).filter(|read| !read.is_empty());
        read.unwrap_or_else(|| recorded.to_vec())
    }

    /// Returns a failure if a data file of the configuration is missing from `read`.
    pub(crate) fn unread(&self, read: &[DataStatus]) -> Option<WorkFailure> {
        let why = data::unread(self.data, self.expected_data(), read)?;
        Some(WorkFailure::new(Reason::DataMismatch, why))
    }

    /// Returns a failure if a pod read other data or another configuration than it had to. Another attempt cannot help.
    pub(crate) fn wrong_input(&self, report: &Report, files: &[DataFile]) -> Option<WorkFailure> {
        if let Some(why) = data::mismatch(self.data, self.expected_data(), &self.digests(files)) {
            return Some(WorkFailure::new(Reason::DataMismatch, why));
        }
        let mounted = self.job.and_then(job_status::config_digest)?;
        let read = report.config_digest.filter(|read| *read != mounted)?;
        let why = format!("the {} read the configuration {read}, but {mounted} is mounted", self.component.name());
        Some(WorkFailure::new(Reason::InvalidConfiguration, why))
    }

    /// Returns why the work does not start: its status was restored with the object, and no Job of the object exists.
    pub(crate) fn restored(&self, discarded: Option<Discarded>) -> Option<WorkFailure> {
        let restored = discarded == Some(Discarded::Restored) && self.job.is_none();
        restored.then(|| {
            let Owner { kind, name, .. } = &self.worker.owner;
            let message = format!(
                "the status of {kind} {name} was recorded for a former object, as backup tools restore it, so its results \
                 are discarded: delete the object and create it again without a status to repeat the work"
            );
            WorkFailure::new(Reason::Restored, message)
        })
    }

    /// Returns why no result can come although the Job completed at `at`, and what to do: the recorded one was discarded, or no
    /// pod is left that could say what it was, as after a status was emptied. A pod that exists and did not say it failed.
    pub(crate) fn unreported(&self, discarded: Option<Discarded>, at: Option<Timestamp>) -> Option<WorkFailure> {
        let (job, Owner { kind, name, .. }) = (self.job?, &self.worker.owner);
        let gone = throttle::final_report_until(at, self.now()).is_none();
        let advice = format!("delete the Job {} to repeat the work", job.name_any());
        match discarded {
            _ if !gone => None,
            Some(discarded) => Some(WorkFailure::new(
                discarded.reason(),
                format!(
                    "the recorded result of {kind} {name} carried no valid seal and was discarded, and the report of its pod is no \
                     longer known: {advice}"
                ),
            )),
            None if self.worker.has_pods() || !self.refused.is_empty() => None,
            None => Some(WorkFailure::new(
                Reason::PodFailed,
                format!(
                    "the Job completed, but the status of {kind} {name} records no result, and the pod that reported it is gone: {advice}"
                ),
            )),
        }
    }

    /// Returns the Job if its pods have other settings than the spec has now.
    fn differing_job(&self) -> Option<&Job> {
        let wanted = self.pod?;
        self.job.filter(|job| pod_settings::differ(job, wanted))
    }

    /// Whether the Job has to be created anew: the settings of its pods have changed, and no pod has started.
    fn is_outdated(&self) -> bool {
        let waits = matches!(self.worker.phase(), JobPhase::Pending(_)) && !self.worker.has_started();
        waits && self.differing_job().is_some()
    }

    /// Returns a sentence if the settings of the pods were changed too late: a pod had started, and its status did not say so yet.
    pub(crate) fn changed_too_late(&self) -> Option<String> {
        let job = self.differing_job().filter(|_| self.worker.has_started())?;
        Some(format!(
            "spec.pod was changed when a pod had started already, so the Job {} keeps the former settings; delete it to have it \
             created with the new ones",
            job.name_any()
        ))
    }

    /// Returns when the running pod's progress becomes stale.
    fn stale_at(&self) -> Option<Timestamp> {
        let (_, started) = self.worker.running()?;
        let last = self.moved.as_ref().map_or(started, |moved| moved.at.max(started));
        last.checked_add(self.limits.progress).ok()
    }

    /// Returns when to check for stale progress.
    pub(crate) fn stale_due(&self) -> Option<Duration> {
        let at = self.stale_at().filter(|at| self.now() < *at)?;
        Some(throttle::until(self.now(), at))
    }

    /// Returns a sentence if the running pod has reported no progress for too long.
    pub(crate) fn stale(&self) -> Option<String> {
        self.stale_at().filter(|at| *at <= self.now())?;
        let (pod, started) = self.worker.running()?;
        let last = match self.moved.as_ref().filter(|moved| started <= moved.at) {
            Some(moved) => format!("since {}, when it had reached {}", moved.at, moved.to),
            None => format!("since it started at {started}"),
        };
        let (component, seconds) = (self.component.name(), self.limits.progress.as_secs());
        Some(format!(
            "pod {pod} has reported no progress {last}, and spec.progressDeadlineSeconds is {seconds}: see its log \
             (kubectl logs {pod}), or delete the pod to have the {component} replaced"
        ))
    }

    /// Returns `status.work`.
    pub(crate) fn status(&self, settled: bool) -> WorkStatus {
        if settled { self.worker.final_status() } else { self.worker.status() }
    }

    /// Returns `status.completedAt` of settled work.
    pub(crate) fn completed_at(&self, recorded: Option<&Time>) -> Time {
        recorded.cloned().unwrap_or_else(|| Time(self.worker.ended_at().unwrap_or(self.now())))
    }

    /// The desired state of a failed Job: suspended, unless its pod exits by itself, and absent once it has expired.
    pub(crate) fn failed_job(&self) -> DesiredJob {
        self.expired().unwrap_or(DesiredJob::Present { suspended: !self.worker.reported_failure(), settled: true })
    }

    /// Returns when the Job of settled work expires. The end must be recorded: a Job that is gone is never created again.
    fn expires_at(&self) -> Option<Timestamp> {
        self.settled_at?.checked_add(SignedDuration::from_secs(self.ttl?)).ok()
    }

    /// Returns the desired state of a Job that has expired.
    pub(crate) fn expired(&self) -> Option<DesiredJob> {
        self.expires_at().filter(|at| *at <= self.now()).map(|_| DesiredJob::Expired)
    }

    /// Returns when to plan again, because the Job expires then.
    pub(crate) fn expiry_due(&self) -> Option<Duration> {
        let at = self.expires_at().filter(|at| self.now() < *at && self.job.is_some())?;
        Some(throttle::until(self.now(), at))
    }

    /// Returns the Job and its ConfigMap, both called `name`, as desired children.
    pub(crate) fn children<'b>(
        &self,
        name: String,
        job: DesiredJob,
        template: impl FnOnce(String) -> Option<Template<'b>>,
    ) -> Desired {
        let children = JobChildren {
            worker: &self.worker,
            component: self.component,
            settings: self.settings,
            name,
            live: self.job,
            config: &self.config,
            limits: self.limits,
            queue: self.queue,
            pod: self.pod,
            outdated: self.is_outdated(),
        };
        children.desired(job, template)
    }
}
