//! The Job that trainer and evaluator share, and what a Job's status says. Pure.

use std::collections::BTreeMap;

use codex_configs::{Data, Resolved, Spec};
use codex_crds::annotation;
use codex_provenance::ConfigDigest;
use codex_reports::exit;
use jiff::Timestamp;
use k8s_openapi::api::{
    batch::v1::{
        Job, JobSpec, PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement, PodFailurePolicyOnPodConditionsPattern,
        PodFailurePolicyRule,
    },
    core::v1::{ConfigMap, PodTemplateSpec},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;

use crate::{
    Desired, Kept, KeptKind, Settings,
    metadata::{Component, our_annotations},
    pod_template::{CA, CONFIG_FILE, Template},
    refusal::Granted,
    worker::Worker,
};

/// What a Job is made of.
struct Work<'a> {
    name: String,
    template: Template<'a>,
    config_digest: ConfigDigest,
    limits: Limits,
}

/// What of a Job may change in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limits {
    suspend: bool,
    retries: i32,
    /// Seconds of `activeDeadlineSeconds` that are left for the time from here to the next suspension.
    remaining: Option<i64>,
}

impl Work<'_> {
    /// The Job as it is made.
    fn job(self) -> Job {
        let Self { name, template, config_digest, limits } = self;
        let (component, version) = (template.component, template.settings.version.clone());
        let owner = template.owner;
        let mut metadata = owner.child(name, component, &version);
        let digest = BTreeMap::from([(annotation::CONFIG_DIGEST.to_owned(), config_digest.to_string())]);
        metadata.annotations = Some(digest);
        let labels = owner.labels(component, &version);
        Job {
            metadata,
            spec: Some(JobSpec {
                parallelism: Some(1),
                completions: Some(1),
                backoff_limit: Some(limits.retries),
                suspend: Some(limits.suspend),
                active_deadline_seconds: limits.remaining,
                // A pod that still ends could write beside its replacement.
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

/// The first rule that fits decides; what none fits counts against `backoffLimit`.
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

/// A live Job that has to differ in what may change, and in nothing else: the API server refuses another template.
fn changed(live: &Job, metadata: ObjectMeta, limits: Limits) -> Job {
    let spec = live.spec.as_ref();
    Job {
        metadata: ObjectMeta { annotations: Some(our_annotations(live)), ..metadata },
        spec: spec.map(|spec| JobSpec {
            parallelism: spec.parallelism,
            completions: spec.completions,
            backoff_limit: Some(limits.retries),
            suspend: Some(limits.suspend),
            active_deadline_seconds: limits.remaining,
            pod_replacement_policy: spec.pod_replacement_policy.clone(),
            pod_failure_policy: spec.pod_failure_policy.clone(),
            template: spec.template.clone(),
            ..JobSpec::default()
        }),
        status: None,
    }
}

/// Puts a live Job into the desired children: kept where it is right, changed where it is not.
fn carry_on(desired: &mut Desired, live: &Job, metadata: ObjectMeta, limits: Limits) {
    let spec = live.spec.as_ref();
    let suspended = spec.and_then(|spec| spec.suspend).unwrap_or(false);
    // A clock that stands still is set when it runs again.
    let timed = limits.suspend || spec.and_then(|spec| spec.active_deadline_seconds) == limits.remaining;
    let right =
        suspended == limits.suspend && timed && spec.and_then(|spec| spec.backoff_limit).unwrap_or(6) == limits.retries;
    if right || Progress::of(live).ended.is_some() {
        keep(desired, KeptKind::Job, live.name_any());
    } else {
        desired.jobs.push(changed(live, metadata, limits));
    }
}

/// What becomes of a Job and of the configuration that its pods mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Course {
    /// Nothing is begun.
    None,
    /// What is there stays as it is.
    Kept,
    /// It goes on, or stands still while `stopped`; once `settled` nothing is made again.
    On { stopped: bool, settled: bool },
}

/// Work for a Job: one that is there, or one that is to be made.
pub(crate) struct Task<'a> {
    pub(crate) worker: &'a Worker<'a>,
    pub(crate) component: Component,
    pub(crate) settings: &'a Settings,
    pub(crate) name: String,
    pub(crate) live: Option<&'a Job>,
    pub(crate) config: &'a Result<Config, String>,
    pub(crate) granted: Granted,
}

impl Task<'_> {
    /// The Job and its configuration as they are to be; `template` is asked for where the Job has to be made.
    pub(crate) fn children<'b>(self, course: Course, template: impl FnOnce(String) -> Option<Template<'b>>) -> Desired {
        let mut desired = Desired::default();
        let Course::On { stopped, settled } = course else {
            if course == Course::Kept {
                keep(&mut desired, KeptKind::ConfigMap, self.name.clone());
                if self.live.is_some() {
                    keep(&mut desired, KeptKind::Job, self.name);
                }
            }
            return desired;
        };
        let Granted { retries, deadline } = self.granted;
        let limits = Limits { suspend: stopped, retries, remaining: self.worker.clock.remaining(deadline) };
        match (self.live, self.config) {
            (Some(live), config) => {
                carry_on(&mut desired, live, self.metadata(), limits);
                match config {
                    Ok(Config { file: Some(file), .. }) if !settled => desired.config_maps.push(self.config_map(file)),
                    _ => keep(&mut desired, KeptKind::ConfigMap, self.name),
                }
            }
            // Success is what was recorded, and failure stays.
            (None, _) if settled => keep(&mut desired, KeptKind::ConfigMap, self.name),
            (None, Ok(config)) if !stopped => {
                desired.config_maps.extend(config.file.as_ref().map(|file| self.config_map(file)));
                let config_digest = config.digest;
                let work = template(self.name.clone()).map(|template| Work {
                    name: self.name,
                    template,
                    config_digest,
                    limits,
                });
                desired.jobs.extend(work.map(Work::job));
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

/// Puts a child that stays as it is into the desired children.
fn keep(desired: &mut Desired, kind: KeptKind, name: String) {
    desired.kept.push(Kept { kind, name });
}

/// What a Job's status says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    /// When the clock of `activeDeadlineSeconds` was started, while it runs.
    pub(crate) active_since: Option<Timestamp>,
    /// Since when it is suspended, while it is.
    pub(crate) suspended_since: Option<Timestamp>,
    /// How it ended.
    pub(crate) ended: Option<Ended>,
}

/// How a Job ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) at: Option<Timestamp>,
    /// None when it is complete; otherwise the reason of its failure, in the words of Kubernetes.
    pub(crate) failure: Option<String>,
}

impl Progress {
    pub(crate) fn of(job: &Job) -> Self {
        let status = job.status.as_ref();
        let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        let holds =
            |kind: &str| conditions.iter().find(|condition| condition.type_ == kind && condition.status == "True");
        let time = |condition: &k8s_openapi::api::batch::v1::JobCondition| {
            condition.last_transition_time.as_ref().map(|time| time.0)
        };
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
        }
    }
}

/// The digest of the configuration that a Job was made with.
pub(crate) fn config_digest(job: &Job) -> Option<ConfigDigest> {
    job.annotations().get(annotation::CONFIG_DIGEST)?.parse().ok()
}

/// The configuration of a Job's pods.
pub(crate) struct Config {
    pub(crate) digest: ConfigDigest,
    /// The resolved file; none where a Job runs with another than this controller composes: that one stays.
    pub(crate) file: Option<String>,
    /// The data files, as far as this controller knows them.
    pub(crate) data: Vec<Data>,
}

/// What a Job's pods are to mount: `composed`, unless the work was begun with another configuration (`begun`) or the
/// Job that is there was.
///
/// # Errors
/// The sentence that says what to change.
pub(crate) fn config<T: Spec>(
    composed: Result<Resolved<T>, String>,
    job: Option<&Job>,
    begun: Option<ConfigDigest>,
    data: impl Fn(&T) -> &[Data],
) -> Result<Config, String> {
    if let Some(digest) = job.and_then(config_digest) {
        // What runs, runs: a controller that composes otherwise changes nothing under it.
        let same = composed.ok().filter(|resolved| resolved.digest() == digest);
        let data = same.as_ref().map(|resolved| data(resolved.spec()).to_vec()).unwrap_or_default();
        return Ok(Config { digest, file: same.and_then(|resolved| resolved.to_yaml().ok()), data });
    }
    let resolved = composed?;
    let digest = resolved.digest();
    match begun {
        Some(begun) if begun != digest => Err(format!(
            "the work was begun with the configuration {begun}, and this controller composes {digest}: create another object"
        )),
        _ => Ok(Config {
            digest,
            file: Some(resolved.to_yaml().map_err(|why| why.to_string())?),
            data: data(resolved.spec()).to_vec(),
        }),
    }
}

/// How long pods worked: seconds before the newest start, and that start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Clock {
    pub(crate) seconds: i64,
    pub(crate) since: Option<Timestamp>,
}

impl Clock {
    /// The clock after what `job` says now.
    pub(crate) fn advance(self, job: Option<&Job>, now: Timestamp) -> Self {
        let progress = job.map(Progress::of);
        let runs = progress.as_ref().and_then(|progress| progress.active_since);
        let Some(since) = self.since else {
            return Self { since: runs, ..self };
        };
        if runs == Some(since) {
            return self;
        }
        let stopped = progress.and_then(|progress| match progress.ended {
            Some(ended) => ended.at,
            None => progress.suspended_since.or(runs),
        });
        let worked = stopped.unwrap_or(now).as_second().saturating_sub(since.as_second()).max(0);
        Self { seconds: self.seconds.saturating_add(worked), since: runs }
    }

    /// What is left of `deadline`, at least 1 so that a Job takes it; none without a deadline.
    pub(crate) fn remaining(self, deadline: Option<i64>) -> Option<i64> {
        deadline.map(|deadline| deadline.saturating_sub(self.seconds).max(1))
    }
}
