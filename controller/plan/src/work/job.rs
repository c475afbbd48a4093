//! The Job of a TrainingRun or an Evaluation, and the ConfigMap that its pods mount. Pure.

use std::collections::BTreeMap;

use codex_crds::{annotation, label};
use codex_provenance::{ConfigDigest, Sha256};
use codex_reports::exit;
use k8s_openapi::api::{
    batch::v1::{
        Job, JobSpec, PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement, PodFailurePolicyOnPodConditionsPattern,
        PodFailurePolicyRule,
    },
    core::v1::{ConfigMap, PodTemplateSpec},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;

use super::{
    config::Config,
    job_status::{self, JobStatus, Limits},
    worker::Worker,
};
use crate::{
    metadata::{Component, our_annotations},
    network_policy,
    plan::{Desired, Kept, KeptKind},
    pod_template::{CA, CONFIG_FILE, Template},
    settings::Settings,
};

/// The inputs of a new Job.
struct NewJob<'a> {
    name: String,
    template: Template<'a>,
    config_digest: ConfigDigest,
    fields: MutableFields,
    /// The `LocalQueue` of Kueue that admits the Job.
    queue: Option<&'a str>,
    /// The digest of the settings of its pods that may change until one has started.
    pod: Option<Sha256>,
}

/// The fields of a Job that may change after its creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct MutableFields {
    suspend: bool,
    retries: i32,
    /// `activeDeadlineSeconds` for the period that lasts until the next suspension.
    remaining: Option<i64>,
}

impl NewJob<'_> {
    fn build(self) -> Job {
        let Self { name, template, config_digest, fields, queue, pod } = self;
        let (component, version) = (template.component, template.settings.version.clone());
        let owner = template.owner;
        let mut metadata = owner.child(name, component, &version);
        let mut annotations = BTreeMap::from([(annotation::CONFIG_DIGEST.to_owned(), config_digest.to_string())]);
        annotations.extend(pod.map(|pod| (annotation::POD_DIGEST.to_owned(), pod.to_string())));
        if let Some(queue) = queue {
            annotations.insert(annotation::QUEUE.to_owned(), queue.to_owned());
            metadata.labels.get_or_insert_default().insert(label::QUEUE_NAME.to_owned(), queue.to_owned());
        }
        metadata.annotations = Some(annotations);
        let labels = owner.labels(component, &version);
        Job {
            metadata,
            spec: Some(JobSpec {
                parallelism: Some(1),
                completions: Some(1),
                backoff_limit: Some(fields.retries),
                // Kueue starts a Job in a queue once there is quota for it.
                suspend: Some(fields.suspend || queue.is_some()),
                active_deadline_seconds: fields.remaining,
                // A terminating pod must not write to the volume at the same time as its replacement.
                pod_replacement_policy: Some("Failed".to_owned()),
                pod_failure_policy: Some(failure_policy(component.name())),
                template: PodTemplateSpec {
                    metadata: Some(ObjectMeta {
                        labels: Some(labels),
                        annotations: template.scraped(),
                        ..ObjectMeta::default()
                    }),
                    spec: Some(template.spec()),
                },
                ..JobSpec::default()
            }),
            status: None,
        }
    }
}

/// Kubernetes applies the first rule that matches; a failure that matches no rule counts against `backoffLimit`.
fn failure_policy(container: &str) -> PodFailurePolicy {
    let on_exit = |action: &str, code: i32| PodFailurePolicyRule {
        action: action.to_owned(),
        on_exit_codes: Some(PodFailurePolicyOnExitCodesRequirement {
            container_name: Some(container.to_owned()),
            operator: "In".to_owned(),
            values: vec![code],
        }),
        on_pod_conditions: None,
    };
    let disrupted =
        PodFailurePolicyOnPodConditionsPattern { type_: "DisruptionTarget".to_owned(), status: "True".to_owned() };
    PodFailurePolicy {
        rules: vec![
            on_exit("FailJob", exit::BAD_INPUT),
            PodFailurePolicyRule {
                action: "Ignore".to_owned(),
                on_exit_codes: None,
                on_pod_conditions: Some(vec![disrupted]),
            },
            on_exit("Ignore", exit::INTERRUPTED),
        ],
    }
}

/// Returns a live Job with other mutable fields. The rest stays: the API server refuses another template.
fn changed(live: &Job, mut metadata: ObjectMeta, fields: MutableFields) -> Job {
    let spec = live.spec.as_ref();
    let queue = job_status::queue(live);
    if let Some(queue) = queue {
        metadata.labels.get_or_insert_default().insert(label::QUEUE_NAME.to_owned(), queue.to_owned());
    }
    Job {
        metadata: ObjectMeta { annotations: Some(our_annotations(live)), ..metadata },
        spec: spec.map(|spec| JobSpec {
            parallelism: spec.parallelism,
            completions: spec.completions,
            backoff_limit: Some(fields.retries),
            // Kueue's `false` stays Kueue's. A `true` that this controller wrote must stay, or the Job would start.
            suspend: (queue.is_none() || fields.suspend).then_some(fields.suspend),
            active_deadline_seconds: fields.remaining,
            pod_replacement_policy: spec.pod_replacement_policy.clone(),
            pod_failure_policy: spec.pod_failure_policy.clone(),
            template: spec.template.clone(),
            ..JobSpec::default()
        }),
        status: None,
    }
}

/// Adds a live Job to the desired children: kept if its mutable fields are right, changed otherwise.
fn update(desired: &mut Desired, live: &Job, metadata: ObjectMeta, mut fields: MutableFields) {
    let spec = live.spec.as_ref();
    let suspended = spec.and_then(|spec| spec.suspend).unwrap_or(false);
    if job_status::queue(live).is_some() {
        fields.suspend = suspended;
    }
    // The deadline of a suspended Job is set when the Job resumes.
    let timed = fields.suspend || spec.and_then(|spec| spec.active_deadline_seconds) == fields.remaining;
    let right =
        suspended == fields.suspend && timed && spec.and_then(|spec| spec.backoff_limit).unwrap_or(6) == fields.retries;
    if right || JobStatus::of(live).ended.is_some() {
        keep(desired, KeptKind::Job, live.name_any());
    } else {
        desired.jobs.push(changed(live, metadata, fields));
    }
}

/// The desired state of a Job and of the ConfigMap that its pods mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DesiredJob {
    /// Neither exists.
    Absent,
    /// Both stay as they are.
    Unchanged,
    /// The Job is deleted with its pods, and nothing is created again. The ConfigMap stays.
    Expired,
    /// Both exist. The pods run unless `suspended`; once the work is `settled`, nothing is created again.
    Present { suspended: bool, settled: bool },
}

/// The inputs of a Job and its ConfigMap.
pub(crate) struct JobChildren<'a> {
    pub(crate) worker: &'a Worker<'a>,
    pub(crate) component: Component,
    pub(crate) settings: &'a Settings,
    pub(crate) name: String,
    pub(crate) live: Option<&'a Job>,
    pub(crate) config: &'a Result<Config, String>,
    pub(crate) limits: Limits,
    /// The `LocalQueue` of Kueue that admits a new Job.
    pub(crate) queue: Option<&'a str>,
    /// The digest of the settings of a new Job's pods that may change until one has started.
    pub(crate) pod: Option<Sha256>,
    /// Whether the Job has to be created anew, because these settings have changed.
    pub(crate) outdated: bool,
}

impl JobChildren<'_> {
    /// Returns the desired state of a Job that may be in a queue. Kueue owns the suspension of such a Job and would start it again,
    /// so a Job that must not run is deleted, which frees its quota; the checkpoints stay.
    fn in_queue(&self, job: DesiredJob) -> DesiredJob {
        let queued =
            self.live.is_some_and(|live| job_status::queue(live).is_some() && JobStatus::of(live).ended.is_none());
        match job {
            DesiredJob::Present { suspended: true, settled } if queued => {
                if settled {
                    DesiredJob::Expired
                } else {
                    DesiredJob::Absent
                }
            }
            other => other,
        }
    }

    /// Returns the Job, its ConfigMap and the policy of its pods as desired children. `template` is called only if the Job has to be
    /// created.
    pub(crate) fn desired<'b>(self, job: DesiredJob, template: impl FnOnce(String) -> Option<Template<'b>>) -> Desired {
        let namespace = self.worker.owner.namespace.clone();
        let goes_on = self.live.is_some_and(|live| JobStatus::of(live).ended.is_none());
        let mut desired = self.job_and_config(job, template);
        let kept = desired.kept.iter().any(|kept| kept.kind == KeptKind::Job);
        if !desired.jobs.is_empty() || (kept && goes_on) {
            desired.shared_policies.push(network_policy::of_workers(&namespace));
        }
        desired
    }

    fn job_and_config<'b>(self, job: DesiredJob, template: impl FnOnce(String) -> Option<Template<'b>>) -> Desired {
        let mut desired = Desired::default();
        let DesiredJob::Present { suspended, settled } = self.in_queue(job) else {
            let job = self.in_queue(job);
            if job == DesiredJob::Expired {
                keep(&mut desired, KeptKind::ConfigMap, self.name);
            } else if job == DesiredJob::Unchanged {
                keep(&mut desired, KeptKind::ConfigMap, self.name.clone());
                if self.live.is_some() {
                    keep(&mut desired, KeptKind::Job, self.name);
                }
            }
            return desired;
        };
        let Limits { retries, deadline, .. } = self.limits;
        let fields = MutableFields { suspend: suspended, retries, remaining: self.worker.clock.remaining(deadline) };
        match (self.live, self.config) {
            // Its template cannot be changed. The next plan creates the Job.
            (Some(_), _) if self.outdated && !suspended && !settled => {
                keep(&mut desired, KeptKind::ConfigMap, self.name);
            }
            (Some(live), config) => {
                update(&mut desired, live, self.metadata(), fields);
                match config {
                    Ok(Config { file: Some(file), .. }) if !settled => desired.config_maps.push(self.config_map(file)),
                    _ => keep(&mut desired, KeptKind::ConfigMap, self.name),
                }
            }
            // Settled work is never repeated.
            (None, _) if settled => keep(&mut desired, KeptKind::ConfigMap, self.name),
            (None, Ok(config)) if !suspended => {
                desired.config_maps.extend(config.file.as_ref().map(|file| self.config_map(file)));
                let config_digest = config.digest;
                let (queue, pod) = (self.queue, self.pod);
                let new = template(self.name.clone()).map(|template| NewJob {
                    name: self.name,
                    template,
                    config_digest,
                    fields,
                    queue,
                    pod,
                });
                desired.jobs.extend(new.map(NewJob::build));
            }
            (None, _) => {}
        }
        desired
    }

    fn metadata(&self) -> ObjectMeta {
        self.worker.owner.child(self.name.clone(), self.component, &self.settings.version)
    }

    fn config_map(&self, file: &str) -> ConfigMap {
        ConfigMap {
            metadata: self.metadata(),
            data: Some(BTreeMap::from([
                (CONFIG_FILE.to_owned(), file.to_owned()),
                (CA.to_owned(), self.settings.report_ca.clone()),
            ])),
            ..ConfigMap::default()
        }
    }
}

/// Adds a child that stays as it is to the desired children.
fn keep(desired: &mut Desired, kind: KeptKind, name: String) {
    desired.kept.push(Kept { kind, name });
}
