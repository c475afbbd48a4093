//! A run whose inputs a former run had: the signed provenance that proves it, and the model that its trainer may take. Pure.
//!
//! A TrainingRun that was deleted and is created again has another uid and another folder. The provenance that was signed when its model
//! was promoted outlives it, and states everything that decides the bits: parameters, configuration, data, base, image, program and
//! kernels. If this run would state the same, its trainer is told of the former folder. It computes every digest itself, and trains if
//! one differs. So a run that adopts a model has the bytes that it would have computed.

use std::collections::BTreeMap;

use codex_configs::{Method, Optimization, Randomness};
use codex_crds::{AdoptionStatus, Reason, TrainingRunSpec, is_subdomain};
use codex_provenance::{
    ConfigDigest, DataDigest, ModelDigest, Sha256, Validity,
    attestation::{RecordedBuild, image_digest},
    promotion::{self, Training},
};
use codex_reports::{Adoption, FORMER_VARIABLE, Former, Report, TrainingState};
use jiff::Timestamp;
use k8s_openapi::api::{batch::v1::Job, core::v1::EnvVar};
use kube::ResourceExt;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{observed::ObservedTrainingRun, view::View};
use crate::{
    pod_template::{Access, Mounts},
    text::truncate_chars,
    work::WorkFailure,
};

/// The path at which trainers find the folders of former runs.
const MOUNT: &str = "/former";
/// The characters of a reason that a status holds.
const MAX_REASON: usize = 1_000;
/// The fields of a TrainingRun that define the result and cannot be changed.
const PARAMETERS: [&str; 7] = ["template", "templateFrom", "overrides", "config", "seed", "data", "base"];

/// A training as signed provenance records it, with the promotion beside which it was signed. Both bundles were verified with the listed
/// keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RecordedTraining {
    /// Namespace of the run, as the promotion states it.
    pub namespace: String,
    /// The model.
    pub model: ModelDigest,
    /// The training, as the promotion states it.
    pub training: Training,
    /// Its parameters and what computed it, as the provenance states them.
    pub build: RecordedBuild,
    /// SHA-256 of the provenance.
    pub provenance: Sha256,
    /// The time in which the signatures of its signer count.
    pub validity: Validity,
}

/// What decides the result of a run that has no Job yet.
pub(crate) struct Inputs<'a> {
    /// The digest of its configuration.
    pub(crate) config: ConfigDigest,
    /// Its settings.
    pub(crate) training: &'a Optimization,
    /// The image of its trainer.
    pub(crate) image: &'a str,
}

/// Returns the parameters that provenance states of a run, besides its configuration. Variables of the trainer are named without their
/// values.
pub(crate) fn parameters(spec: &TrainingRunSpec) -> Map<String, Value> {
    let fields = serde_json::to_value(spec).unwrap_or_default();
    let mut parameters: Map<String, Value> =
        PARAMETERS.into_iter().filter_map(|name| Some((name.to_owned(), fields.get(name)?.clone()))).collect();
    parameters.extend(spec.pod.image.clone().map(|image| ("image".to_owned(), image.into())));
    let variables: Vec<&str> = spec.pod.env.iter().map(|variable| variable.name.as_str()).collect();
    parameters.insert("environment".to_owned(), variables.into());
    parameters
}

/// Returns the former run whose record proves that it had these inputs: the one that finished last, if there are several. `None` if no
/// record does, or if inputs count that provenance does not state.
pub(crate) fn proven(observed: &ObservedTrainingRun, inputs: &Inputs<'_>, now: Timestamp) -> Option<Former> {
    let (object, spec) = (&observed.object, &observed.object.spec);
    // What a variable holds is not stated, nor what a device computes with.
    let is_stated = spec.pod.env.is_empty() && !spec.pod.worker.has_device();
    if spec.reproduces.is_some() || !is_stated || !is_repeatable(inputs.training) {
        return None;
    }
    // A tag may name another image than it named for the former run. The node runs an image with this digest and no other.
    let image = inputs.image.split_once('@').and_then(|(_, digest)| image_digest(digest))?;
    let (namespace, uid) = (object.namespace()?, object.uid()?);
    let own = Value::Object(parameters(spec));
    let equal = |record: &&RecordedTraining| {
        let training = &record.training;
        record.namespace == namespace
            && record.validity.at(now).is_ok()
            && training.run.uid != uid
            && is_subdomain(&training.run.uid)
            && training.attested.config_digest == inputs.config
            && image_digest(training.computing_image()) == Some(image)
            && record.build.parameters == own
            // The adapter beside the model would have to be adopted, too.
            && training.adapter.is_none()
    };
    let found = observed.records.iter().filter(equal);
    let last = found.max_by(|a, b| {
        let key = |record: &RecordedTraining| (record.training.computed_at().map(str::to_owned), record.provenance);
        key(a).cmp(&key(b))
    })?;
    former(last)
}

fn former(record: &RecordedTraining) -> Option<Former> {
    let training = &record.training;
    Some(Former {
        directory: format!("{MOUNT}/{}", training.run.uid),
        run: training.computed_by().clone(),
        model: record.model,
        data: training.data()?.clone(),
        base: training.base.as_ref().map(|base| base.model),
        computation: record.build.computation.clone(),
        image_id: training.computing_image().to_owned(),
        completed_at: training.computed_at().map(str::to_owned),
        attested: training.is_attested(),
        provenance: record.provenance,
    })
}

/// Whether training again gives the same bits, and takes longer than copying them.
fn is_repeatable(training: &Optimization) -> bool {
    let is_secret = training.private().is_some_and(|privacy| privacy.randomness == Randomness::Secret);
    training.method != Method::None && !is_secret
}

/// Returns the former run that the trainers of a Job are told of.
pub(crate) fn told(job: &Job) -> Option<Former> {
    let container = job.spec.as_ref()?.template.spec.as_ref()?.containers.first()?;
    let variable = container.env.iter().flatten().find(|variable| variable.name == FORMER_VARIABLE)?;
    serde_json::from_str(variable.value.as_deref()?).ok()
}

/// Mounts the folders of former runs read-only, and tells the trainer of one.
pub(crate) fn tell(former: &Former, spec: &TrainingRunSpec, mounts: &mut Mounts, env: &mut Vec<EnvVar>) {
    let Ok(value) = serde_json::to_string(former) else { return };
    let output = &spec.output.persistent_volume_claim;
    mounts.claim(&output.claim_name, &output.sub_path, MOUNT, Access::ReadOnly);
    env.push(EnvVar { name: FORMER_VARIABLE.to_owned(), value: Some(value), ..EnvVar::default() });
}

/// Whether a report is about a model that a trainer of an earlier Job adopted. The Job that replaced it trains.
pub(crate) fn is_outdated(view: &View<'_>, report: &Report, state: &TrainingState) -> bool {
    let adopted = state.adoption.as_ref().is_some_and(Adoption::is_done);
    adopted && view.former.is_none() && view.work.worker.pod(&report.pod_uid).is_none()
}

/// Returns a failure if a trainer that finished with `model` says that it adopted something else than it was told of, or that it had
/// other inputs than the former run.
pub(crate) fn refuted(view: &View<'_>, state: &TrainingState, model: ModelDigest) -> Option<WorkFailure> {
    let adoption = state.adoption.as_ref().filter(|adoption| adoption.is_done())?;
    let refuse = |why: String| Some(WorkFailure::new(Reason::ModelMismatch, format!("{why}: correct spec.pod.image")));
    let Some(former) = &view.former else {
        let (run, adopted) = (truncate_chars(&adoption.run, 64), adoption.model);
        return refuse(format!("the trainer adopted the model {adopted} of the run {run}, of which it was not told"));
    };
    if adoption.run != former.run.uid || adoption.model != former.model || model != former.model {
        let told = format!("it was told of the model {} of the run {}", former.model, former.run.uid);
        return refuse(format!("the trainer says that it adopted a model and reports {model}, but {told}"));
    }
    let read: BTreeMap<String, DataDigest> =
        view.work.digests(&state.data).into_iter().map(|file| (file.name, file.sha256)).collect();
    let computes = state.computation.as_ref().map(|it| (it.program, it.engine.as_str(), it.kernels.as_str()));
    let then = &former.computation;
    let same = read == former.data
        && state.base.as_ref().map(|base| base.digest) == former.base
        && computes == Some((then.program, then.engine.as_str(), then.kernels.as_str()));
    if same {
        return None;
    }
    let run = &former.run.uid;
    refuse(format!("the trainer adopted the model of the run {run}, but reports other data or another base or program"))
}

/// Returns `status.adoption`: as the newest report says that names the former run, else as it is recorded. A Job whose trainers were
/// told of none trains.
pub(crate) fn status(view: &View<'_>) -> Option<AdoptionStatus> {
    let held = view.status.adoption.clone();
    if view.status.completed_at.is_some() || view.work.job.is_none() {
        return held;
    }
    let former = view.former.as_ref()?;
    let said = view.states().find_map(|(_, state)| state.adoption.as_ref());
    said.and_then(|said| recorded(said, former)).or(held)
}

fn recorded(said: &Adoption, former: &Former) -> Option<AdoptionStatus> {
    (said.run == former.run.uid).then(|| AdoptionStatus {
        run: former.run.name.clone(),
        uid: former.run.uid.clone(),
        model: former.model,
        provenance: former.provenance,
        image_id: former.image_id.clone(),
        completed_at: former.completed_at.clone(),
        refused: said.refused.as_deref().map(|why| truncate_chars(why, MAX_REASON)),
    })
}

/// Returns what a promotion states of an adopted model; `None` if the run trained its own.
pub(crate) fn stated(adoption: Option<&AdoptionStatus>) -> Option<promotion::Adopted> {
    let adoption = adoption.filter(|adoption| adoption.is_done())?;
    Some(promotion::Adopted {
        run: promotion::Object { name: adoption.run.clone(), uid: adoption.uid.clone() },
        image_id: adoption.image_id.clone(),
        completed_at: adoption.completed_at.clone(),
        provenance: adoption.provenance,
    })
}
