//! The observation of a TrainingRun, in the form that its plan needs. Pure.

use std::sync::LazyLock;

use codex_configs::{Data, Method, Training, compose_training, compose_training_from};
use codex_crds::{
    BaseStatus, ComputationStatus, DeviceStatus, LostCheckpointStatus, Reason, TrainingRunSpec, TrainingRunStatus,
};
use codex_provenance::ConfigDigest;
use codex_reports::{Former, Report, Stage as PodStage, State, TrainingState};
use jiff::Timestamp;
use k8s_openapi::{api::core::v1::PodSpec, apimachinery::pkg::apis::meta::v1::Time};
use serde_json::Value;

use super::{
    adoption::{self, Inputs},
    base::{self, Base},
    observed::ObservedTrainingRun,
    own_template,
    reproduction::Reproduction,
};
use crate::{
    data,
    device::{NeedsGpu, device_status},
    metadata::{Component, Owner, queue},
    numbers::count,
    obstruction::Obstruction,
    pods::Facts,
    seal::{Discarded, Sealable},
    throttle::whole_seconds,
    work::{Config, Limits, Memory, Moved, Outcome, WorkFailure, WorkView, Worker, pod_settings},
};

/// The observation of a TrainingRun.
pub(crate) struct View<'a> {
    pub(crate) observed: &'a ObservedTrainingRun,
    pub(crate) obstruction: Option<&'a Obstruction>,
    /// The status as it is recorded, without the parts that were discarded.
    pub(crate) status: TrainingRunStatus,
    /// Why the recorded status was discarded, if it was.
    pub(crate) discarded: Option<Discarded>,
    pub(crate) work: WorkView<'a>,
    /// The base, or the sentence that says what is wrong with it. `None` if the weights are initialized.
    pub(crate) base: Result<Option<Base<'a>>, String>,
    /// What the run is held to, if it reproduces another one.
    pub(crate) reproduction: Option<Reproduction<'a>>,
    /// The image of the trainer, or the message for a pod with a GPU if no image with CUDA is configured.
    pub(crate) image: Result<String, String>,
    /// The former run that the trainers of the Job are told of, or would be.
    pub(crate) former: Option<Former>,
}

impl<'a> View<'a> {
    pub(crate) fn of(observed: &'a ObservedTrainingRun, now: Timestamp) -> Self {
        let (object, spec, job) = (&observed.object, &observed.object.spec, observed.job.as_ref());
        let status = object.status.clone().unwrap_or_default().believed(&observed.seal);
        let owner = Owner::run(object);
        let worker =
            Worker::of(owner, job, &observed.pods, &observed.reports, &observed.warnings, status.work.clone(), now);
        let started_with = status.config_digest.filter(|_| worker.has_started());
        let reproduction = Reproduction::of(observed, &status);
        let composed = compose(spec, observed.template.as_deref());
        let digest = composed.as_ref().ok().map(|composed| composed.resolved.digest());
        let known = composed.as_ref().ok().cloned();
        let settings = known.as_ref().map(|composed| &composed.resolved.spec().settings.training);
        let needs = settings.and_then(NeedsGpu::of_training);
        let former = reproduction.as_ref().filter(|_| job.is_none()).and_then(|it| it.former_file(digest, observed));
        let config = match former {
            Some((digest, file)) => Ok(Config { digest, file: Some(file), data: Vec::new() }),
            None => Config::of(composed, job, started_with, read_data),
        };
        let discarded = Discarded::of(&observed.seal, &status.conditions);
        let work = WorkView {
            component: Component::Trainer,
            settings: &observed.settings,
            job,
            config,
            worker,
            limits: Limits::of(spec.retries, spec.active_deadline_seconds, spec.progress_deadline_seconds),
            suspend: spec.suspend,
            queue: queue(object),
            ttl: spec.ttl_seconds_after_finished,
            settled_at: status.completed_at.as_ref().map(|time| time.0),
            data: &spec.data,
            preset_data: Vec::new(),
            keys: base::key(spec).into_iter().collect(),
            references: observed.references.as_ref(),
            refused: &observed.refused,
            conditions: object.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default(),
            moved: None,
            // What a reproduction adds comes from another object. Without its Job, work with a restored status would not go on.
            pod: pod_settings::digest(&spec.pod.worker).filter(|_| discarded != Some(Discarded::Restored)),
        };
        let obstruction = Obstruction::current(observed.obstruction.as_ref(), object.metadata.generation);
        let held = reproduction.as_ref().and_then(|it| it.target.as_ref().ok()?.image.clone());
        let image = match held.or_else(|| spec.pod.image.clone()) {
            Some(image) => Ok(image),
            None => observed.settings.image(Component::Trainer, &spec.pod.worker, needs).map(str::to_owned),
        };
        let former = match (job, digest.zip(settings), image.as_deref()) {
            (Some(job), ..) => adoption::told(job),
            (None, Some((config, training)), Ok(image)) if !work.worker.has_started() => {
                adoption::proven(observed, &Inputs { config, training, image }, now)
            }
            (None, ..) => None,
        };
        let mut view =
            Self { observed, obstruction, status, discarded, work, base: Ok(None), reproduction, image, former };
        view.base = Base::of(observed, view.first_base().map(|base| base.digest));
        view.work.moved = view.moved();
        view
    }

    pub(crate) fn spec(&self) -> &'a TrainingRunSpec {
        &self.observed.object.spec
    }

    /// Returns the trainers' reports, the newest first.
    pub(crate) fn states(&self) -> impl Iterator<Item = (&Report, &TrainingState)> {
        self.work.worker.reports.iter().rev().filter_map(|report| match &report.state {
            State::Training(state) => Some((report, state)),
            State::Evaluation(_) | State::Serving(_) => None,
        })
    }

    /// Returns the latest step, and when its report was received.
    fn moved(&self) -> Option<Moved> {
        let steps = |step: String| format!("step {}", step.replacen('/', " of ", 1));
        if let Some((at, numbers)) = self.states().next().and_then(|(report, state)| {
            let numbers = state.progress.as_ref()?;
            Some((self.reported_at(report, count(numbers.step))?, numbers))
        }) {
            return Some(Moved { at, to: steps(format!("{}/{}", numbers.step, numbers.total_steps)) });
        }
        let held = self.status.progress.as_ref()?;
        Some(Moved { at: held.reported_at.as_ref()?.0, to: steps(held.steps.clone()) })
    }

    /// Returns when the report of this `step` was received: as it is recorded, else when that `report` was.
    pub(crate) fn reported_at(&self, report: &Report, step: i64) -> Option<Timestamp> {
        let held = self.status.progress.as_ref().filter(|held| held.step == step);
        let recorded = held.and_then(|held| held.reported_at.as_ref()).map(|time| time.0);
        recorded.or_else(|| self.work.worker.received_at(&report.pod_uid).map(whole_seconds))
    }

    /// Returns the latest checkpoint that the volume no longer held when a trainer started: one that the newest report shows to be
    /// gone, else the one in the status.
    pub(crate) fn lost_checkpoint(&self) -> Option<LostCheckpointStatus> {
        self.newly_lost().or_else(|| self.status.lost_checkpoint.clone())
    }

    /// Returns the recorded checkpoint if the running trainer started from less.
    fn newly_lost(&self) -> Option<LostCheckpointStatus> {
        let held = self.status.last_checkpoint.as_ref()?;
        let (report, state) = self.states().next()?;
        // Until a trainer trains, it may not have looked for checkpoints.
        let begun = matches!(state.stage, PodStage::Running | PodStage::Finished) || state.progress.is_some();
        let newest = state.last_checkpoint.as_ref().map(|checkpoint| checkpoint.step).max(state.resumed_from);
        // The report of a pod that ended may be older than the recorded checkpoint.
        let lost = begun && self.work.worker.is_current(&report.pod_uid) && newest.map_or(0, count) < held.step;
        let others = self.work.worker.reports.iter().filter(|other| other.pod_uid != report.pod_uid);
        let before = others.map(|other| other.attempt).max().unwrap_or(0);
        // A damaged checkpoint leaves the counters of the volume as they are; an empty volume counts from 1 again.
        let restarted = report.attempt <= before;
        lost.then(|| LostCheckpointStatus {
            step: held.step,
            digest: held.digest,
            resumed_from: state.resumed_from.map_or(0, count),
            found_at: Time(self.work.now()),
            attempts: if restarted { i32::try_from(before).unwrap_or(i32::MAX) } else { 0 },
            steps_executed: self.status.steps_executed.filter(|_| restarted).unwrap_or(0),
        })
    }

    /// Returns a failure if a trainer found another base than it had to. Another attempt cannot help.
    pub(crate) fn wrong_base(&self, state: &TrainingState) -> Option<WorkFailure> {
        let found = state.base.as_ref()?;
        if let Some(base) = self.base.as_ref().ok()? {
            return base.mismatch(found);
        }
        let found = found.digest;
        let why = format!("the trainer loaded the base {found}, but the spec has no base: correct spec.pod.image");
        Some(WorkFailure::new(Reason::BaseMismatch, why))
    }

    /// Returns a failure if the trainer that finished did not say which base it started from.
    pub(crate) fn unread_base(&self, state: &TrainingState) -> Option<WorkFailure> {
        let known = state.base.is_some() || self.status.base.is_some() || self.spec().base.is_none();
        let why = "the trainer reported no digest for spec.base, so the weights that it started from are unverified";
        (!known).then(|| WorkFailure::new(Reason::BaseMismatch, why))
    }

    /// Whether the pod that reported the model runs an image of the controller's list, with nothing added that could change what
    /// it does: other containers may share its processes, and a debugger always can.
    pub(crate) fn is_attested(&self) -> bool {
        let finished = |state: &TrainingState| state.stage == PodStage::Finished && state.model.is_some();
        let pod = self
            .states()
            .find(|(_, state)| finished(state))
            .and_then(|(report, _)| self.work.worker.pod(&report.pod_uid));
        let (Some(pod), Some(job)) = (pod, self.observed.job.as_ref()) else { return false };
        let planned = job.spec.as_ref().and_then(|spec| spec.template.spec.as_ref()).map(containers);
        let listed = |image: &str| self.observed.settings.attested_images.iter().any(|images| images.matches(image));
        pod.image_id().is_some_and(listed) && planned == pod.pod.spec.as_ref().map(containers)
    }

    /// Whether the status has to record first what the run reproduces: its Job is created after that.
    pub(crate) fn pins(&self) -> bool {
        self.work.job.is_none() && self.reproduction.as_ref().is_some_and(|it| !it.is_pinned)
    }

    /// Returns what computes or has computed the model: as the newest report says that says it, else as it is recorded. The node is the
    /// one of the pod.
    pub(crate) fn computation(&self) -> Option<ComputationStatus> {
        let held = self.status.computation.as_ref();
        let reported = self.states().find_map(|(report, state)| Some((report, state.computation.as_ref()?)));
        let Some((report, it)) = reported.filter(|_| self.status.completed_at.is_none()) else { return held.cloned() };
        let cut = |text: &str| text.chars().take(63).collect::<String>();
        let now = ComputationStatus {
            program: it.program,
            engine: cut(&it.engine),
            kernels: cut(&it.kernels),
            node: self.work.worker.pod(&report.pod_uid).and_then(Facts::node).map(str::to_owned),
            mixed: it.mixed.then_some(true),
        };
        if self.has_adopted() {
            // The node of the pod that copied the model did not compute it.
            return Some(ComputationStatus { node: None, ..now });
        }
        let node = held.and_then(|held| held.node.clone()).filter(|_| now.node.is_none());
        Some(ComputationStatus { node: node.or(now.node), ..now })
    }

    /// Whether the trainer adopted the model of a former run.
    pub(crate) fn has_adopted(&self) -> bool {
        adoption::status(self).is_some_and(|adoption| adoption.is_done())
    }

    /// Returns the device that computes or has computed the model: as the newest report that names one has it, else as it is recorded.
    pub(crate) fn device(&self) -> Option<DeviceStatus> {
        let held = self.status.device.as_ref();
        let reported = self.states().find_map(|(_, state)| state.device.as_ref());
        let reported = reported.filter(|_| self.status.completed_at.is_none());
        reported.map(device_status).or_else(|| held.cloned())
    }

    /// Returns the reason if the trainer of a reproduction read or computes something else than that of the other run.
    pub(crate) fn deviation(&self) -> Option<String> {
        let reproduction = self.reproduction.as_ref()?;
        let (_, state) = self.states().next()?;
        let read = self.work.digests(&state.data);
        reproduction.deviation(&read, self.base_status().as_ref(), self.computation().as_ref())
    }

    /// Returns the base in the oldest report that names one.
    fn first_base(&self) -> Option<&codex_reports::Base> {
        self.states().filter_map(|(_, state)| state.base.as_ref()).last()
    }

    /// Returns `status.base`: as it is recorded, else from the first report, if that is the base that the run needs.
    pub(crate) fn base_status(&self) -> Option<BaseStatus> {
        let first = || {
            let (base, reported) = (self.base.as_ref().ok()?.as_ref()?, self.first_base()?);
            base.mismatch(reported).is_none().then(|| base.status(reported))
        };
        self.status.base.clone().or_else(first)
    }
}

/// Returns the data that a trainer reads: none without training.
fn read_data(training: &Training) -> &[Data] {
    if training.settings.training.method == Method::None { &[] } else { &training.data }
}

/// Returns the names of all containers of a pod.
fn containers(spec: &PodSpec) -> Vec<&str> {
    let debuggers = spec.ephemeral_containers.iter().flatten().map(|container| container.name.as_str());
    let others = spec.init_containers.iter().flatten().chain(&spec.containers);
    debuggers.chain(others.map(|container| container.name.as_str())).collect()
}

/// Returns the configuration that this controller composes for a run, in the form that its digest covers; `None` if it has another
/// digest, or a template in a ConfigMap.
pub(crate) fn configuration(spec: &TrainingRunSpec, digest: ConfigDigest) -> Option<Value> {
    let composed = compose(spec, None).ok()?;
    if composed.resolved.digest() != digest {
        return None;
    }
    composed.resolved.digested()
}

/// Returns the digest of the configuration that this controller composes for a run; `None` if the spec is invalid. `text` is the template
/// that `spec.templateFrom` names.
pub fn config_digest(spec: &TrainingRunSpec, text: Option<&str>) -> Option<ConfigDigest> {
    compose(spec, text).ok().map(|composed| composed.resolved.digest())
}

/// Returns the configuration of a run. `text` is the template that `spec.templateFrom` names.
///
/// # Errors
/// One sentence that says what to change.
pub(crate) fn compose(spec: &TrainingRunSpec, text: Option<&str>) -> Outcome<Training> {
    static COMPOSED: LazyLock<Memory<Training>> = LazyLock::new(Memory::new);
    let TrainingRunSpec { template, overrides, config, seed, data, base, .. } = spec;
    let own = own_template::pinned(spec, text)?;
    COMPOSED.of(&(template, own, overrides, config, seed, data, base.is_some()), || {
        let (config, data) = (config.as_deref(), data::configured(data)?);
        let composed = match own {
            Some(text) => compose_training_from(template, text, overrides, config, *seed, data),
            None => compose_training(template, overrides, config, *seed, data),
        };
        let checked = composed.and_then(|resolved| resolved.spec().check_base(base.is_some()).map(|()| resolved));
        checked.map_err(|why| why.to_string())
    })
}
