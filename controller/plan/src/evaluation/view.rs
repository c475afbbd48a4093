//! The observation of an Evaluation, in the form that its plan needs. Pure.

use std::sync::LazyLock;

use codex_configs::{Data, Evaluation as Configured, Resolved, compose_evaluation};
use codex_crds::{DeviceStatus, EvaluationSpec, EvaluationStatus, ReferenceStatus, child};
use codex_provenance::ConfigDigest;
use codex_reports::{EvaluationState, Report, State};
use jiff::Timestamp;
use kube::ResourceExt;

use super::{
    gates::gates,
    observed::ObservedEvaluation,
    reference::{self, NoReference},
    runs::Turn,
    subject::{Model, Subject},
};
use crate::{
    data,
    device::{NeedsGpu, device_status},
    metadata::{Component, Owner, queue},
    obstruction::Obstruction,
    seal::{Discarded, Sealable},
    throttle::whole_seconds,
    work::{Config, Ending, Limits, Memory, Moved, Outcome, WorkView, Worker},
};

/// The observation of an Evaluation.
pub(crate) struct View<'a> {
    pub(crate) observed: &'a ObservedEvaluation,
    pub(crate) obstruction: Option<&'a Obstruction>,
    /// The status as it is recorded, without the parts that were discarded.
    pub(crate) status: EvaluationStatus,
    /// Why the recorded status was discarded, if it was.
    pub(crate) discarded: Option<Discarded>,
    pub(crate) work: WorkView<'a>,
    /// What is scored, or the sentence that says what is wrong with it.
    pub(crate) subject: Result<Subject<'a>, String>,
    /// The gates, or the sentence that names the invalid one.
    pub(crate) gates: Result<Vec<codex_verdict::Gate>, String>,
    /// The image of the evaluator, or the message for a pod with a GPU if no image with CUDA is configured.
    pub(crate) image: Result<&'a str, String>,
    /// The Evaluations that the gates compare with, or what is waited for.
    pub(crate) references: Result<Vec<ReferenceStatus>, NoReference>,
    /// What can be said about the gates before anything is measured.
    pub(crate) notices: Vec<String>,
    /// What a schedule adds.
    pub(crate) turn: Turn,
}

impl<'a> View<'a> {
    pub(crate) fn of(observed: &'a ObservedEvaluation, turn: Turn, now: Timestamp) -> Self {
        let (object, spec, job) = (&observed.object, &observed.object.spec, observed.job.as_ref());
        let status = object.status.clone().unwrap_or_default().believed(&observed.seal);
        let owner = Owner::evaluation(object);
        let worker =
            Worker::of(owner, job, &observed.pods, &observed.reports, &observed.warnings, status.work.clone(), now);
        let gates = gates(&spec.gates);
        let references = reference::references(observed, &status, gates.as_deref().unwrap_or_default());
        let compared = reference::files(references.as_deref().unwrap_or_default());
        let of_preset = codex_configs::benchmark(&spec.preset).iter().map(|file| file.name.to_owned());
        let preset_data = of_preset.chain(compared.iter().map(|file| file.name.clone())).collect();
        let composed = compose(spec, &compared);
        let notices = notices(&composed, gates.as_deref().unwrap_or_default());
        let work = WorkView {
            component: Component::Evaluator,
            settings: &observed.settings,
            job,
            config: Config::of(composed, job, None, |evaluation| &evaluation.data),
            worker,
            limits: Limits::of(spec.retries, spec.active_deadline_seconds, spec.progress_deadline_seconds),
            suspend: spec.suspend,
            queue: queue(object),
            ttl: spec.ttl_seconds_after_finished,
            settled_at: status.completed_at.as_ref().map(|time| time.0),
            data: &spec.data,
            preset_data,
            keys: Vec::new(),
            references: observed.references.as_ref(),
            refused: &observed.refused,
            conditions: object.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default(),
            moved: None,
            pod: None,
        };
        let obstruction = Obstruction::current(observed.obstruction.as_ref(), object.metadata.generation);
        let discarded = Discarded::of(&observed.seal, &status.conditions);
        let subject = Subject::of(object);
        let image = observed.settings.image(Component::Evaluator, &spec.pod, NeedsGpu::of_evaluation(spec.device));
        let mut view =
            Self { observed, obstruction, status, discarded, work, subject, gates, image, references, notices, turn };
        view.work.moved = view.moved();
        view
    }

    /// Returns the latest report, and when it was received.
    fn moved(&self) -> Option<Moved> {
        let (report, state) = self.states().next()?;
        let to = format!("problem {} of {}", state.done, state.total);
        Some(Moved { at: whole_seconds(self.work.worker.received_at(&report.pod_uid)?), to })
    }

    pub(crate) fn spec(&self) -> &'a EvaluationSpec {
        &self.observed.object.spec
    }

    /// Returns the name of the Job and of the ConfigMap.
    pub(crate) fn job_name(&self) -> String {
        let name = &self.work.worker.owner.name;
        self.turn.run.map_or_else(|| child::evaluator(name), |run| child::evaluator_run(name, run.number))
    }

    /// Returns the folder of the results below `evaluations`.
    pub(crate) fn folder(&self) -> String {
        let uid = &self.work.worker.owner.uid;
        self.turn.run.map_or_else(|| uid.clone(), |run| run.folder(uid))
    }

    /// Returns the key under which the read of the problems is counted.
    pub(crate) fn read_key(&self) -> String {
        let uid = &self.work.worker.owner.uid;
        self.turn.run.map_or_else(|| uid.clone(), |run| run.key(uid))
    }

    /// Returns the digest of the configuration, if it is valid and complete: it holds the digests of the outcomes that gates
    /// compare with.
    pub(crate) fn config_digest(&self) -> Option<ConfigDigest> {
        self.work.config_digest().filter(|_| self.references.is_ok() || self.work.job.is_some())
    }

    /// Returns whether the evidence of a result is strong, or why it is weak, once its pod has ended as `ending` says; `None`
    /// while the verdict must wait.
    pub(crate) fn evidence(&self, ending: &Ending) -> Option<Result<(), String>> {
        let ended = match ending {
            Ending::Pending | Ending::Lost => return None,
            Ending::Confirmed => Ok(()),
            Ending::Unconfirmed(why) => Err((*why).to_owned()),
        };
        let started = self.work.job.and_then(ResourceExt::creation_timestamp).map(|time| time.0);
        let protected = self.observed.admission.protected_since(started, &self.work.worker.owner.namespace);
        let compared = reference::weakness(self.references.as_deref().unwrap_or_default());
        Some(protected.and(ended).and(compared.map_or(Ok(()), Err)))
    }

    /// Returns the device that scores or has scored the model: as the newest report that names one has it, else as it is recorded.
    pub(crate) fn device(&self) -> Option<DeviceStatus> {
        let reported = self.states().find_map(|(_, state)| state.device.as_ref());
        reported.map(device_status).or_else(|| self.status.device.clone())
    }

    /// Returns the evaluators' reports, the newest first.
    pub(crate) fn states(&self) -> impl Iterator<Item = (&Report, &EvaluationState)> {
        self.work.worker.reports.iter().rev().filter_map(|report| match &report.state {
            State::Evaluation(state) => Some((report, state)),
            State::Training(_) | State::Serving(_) => None,
        })
    }

    /// Returns a sentence if the run that the Evaluation belongs to was deleted and another one has its name.
    pub(crate) fn replaced(&self) -> Option<String> {
        let (name, former) = (self.spec().training_run.as_ref()?, self.status.training_run_uid.as_ref()?);
        let uid = self.observed.run.as_ref()?.uid().unwrap_or_default();
        let scored = self.status.model.as_ref().filter(|_| self.status.completed_at.is_some());
        let belongs = scored.map_or_else(
            || "this Evaluation belongs to the former one".to_owned(),
            |model| format!("the verdict is of the model {} of the former one", model.short),
        );
        (uid != *former).then(|| {
            format!("TrainingRun {name} was recreated (uid {uid}, formerly {former}), and {belongs}: create another Evaluation")
        })
    }

    /// Returns a sentence if the run that the Evaluation belongs to was deleted and no run has its name.
    pub(crate) fn gone(&self) -> Option<String> {
        let name = self.spec().training_run.as_ref().filter(|_| self.observed.run.is_none())?;
        Some(format!("TrainingRun {name} no longer exists, so nothing new is promoted with this verdict"))
    }

    /// Returns the model that is scored, if its files exist as far as the controller knows.
    pub(crate) fn model(&self) -> Option<Model<'a>> {
        self.subject.as_ref().ok()?.model(self.observed)
    }
}

/// Says which gates cannot pass, cannot decide at their margin, or are left to chance, as far as the configuration tells it.
fn notices(composed: &Outcome<Configured>, gates: &[codex_verdict::Gate]) -> Vec<String> {
    let Ok(composed) = composed else { return Vec::new() };
    let most = composed.resolved.spec().most_problems();
    gates.iter().flat_map(|gate| codex_verdict::notices(gate, most)).collect()
}

/// Returns the configuration of an Evaluation. `compared` are the outcomes that its gates compare with.
///
/// # Errors
/// One sentence that says what to change.
pub(crate) fn compose(spec: &EvaluationSpec, compared: &[Data]) -> Outcome<Configured> {
    static COMPOSED: LazyLock<Memory<Configured>> = LazyLock::new(Memory::new);
    let inputs = (&spec.preset, &spec.overrides, spec.seed, &spec.data, &spec.gates, compared);
    COMPOSED.of(&inputs, || composed(spec, compared))
}

fn composed(spec: &EvaluationSpec, compared: &[Data]) -> Result<Resolved<Configured>, String> {
    let data = [data::configured(&spec.data)?, compared.to_vec()].concat();
    let resolved = compose_evaluation(&spec.preset, &spec.overrides, spec.seed, data).map_err(|why| why.to_string())?;
    // An invalid gate is told before the configuration.
    let gates = gates(&spec.gates).unwrap_or_default();
    let resolved = resolved.measuring(gates.iter().map(|gate| gate.metric)).map_err(|why| why.to_string())?;
    // A gate that the evaluation cannot decide is refused before a pod starts.
    let refused = gates.iter().enumerate().find_map(|(index, gate)| Some((index, resolved.spec().undecidable(gate)?)));
    match refused {
        Some((index, (field, why))) => Err(format!("spec.gates[{index}].{field}: {why}")),
        None => Ok(resolved),
    }
}
