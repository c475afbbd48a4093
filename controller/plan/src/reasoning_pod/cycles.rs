//! The cycles of `spec.redeploy`: which objects they have, and which of them are served and tried. Pure.
//!
//! The objects of a cycle name it in an annotation, with a digest of what defines their result, under the seal of the controller. So
//! what is served and which cycle is at work follow from the objects alone, if the status is lost.

use std::collections::BTreeMap;

use codex_crds::{
    CyclePhase, CycleStatus, Evaluation, EvaluationSpec, ReasoningPod, ReasoningPodSpec, ReasoningPodStatus,
    RedeployStatus, ServedStatus, ShadowStatus, TrainingRun, TrainingRunSpec, annotation,
};
use codex_provenance::{ModelDigest, Sha256};
use jiff::Timestamp;
use k8s_openapi::{
    api::{apps::v1::Deployment, core::v1::PodSpec},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{Resource, ResourceExt};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    seal::{Sealable, StatusSeal},
    work::finished_model,
};

/// The objects of a cycle that exist.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ObservedCycle {
    /// The time for which it was started.
    pub scheduled: Timestamp,
    /// The names of its Evaluations, as its TrainingRun lists them. Empty without a TrainingRun.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub evaluations: Vec<String>,
    /// The name of its TrainingRun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub training_run: Option<String>,
    /// The digest of its model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelDigest>,
    /// What its shadow has compared, from its sealed status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadow: Option<ShadowStatus>,
    /// Its objects that are not being deleted, by kind and name.
    #[serde(default)]
    pub objects: Vec<CycleObject>,
}

impl ObservedCycle {
    /// Whether pods of this template serve the model of the cycle: they mount the folder of its run. Other runs may have made the same
    /// model.
    pub(super) fn is_served(&self, template: Option<&PodSpec>) -> bool {
        let run = self.objects.iter().find(|it| it.kind == CycleKind::TrainingRun);
        let mounts = template.into_iter().flat_map(|spec| &spec.containers).filter_map(|it| it.volume_mounts.as_ref());
        let folders = mounts.flatten().filter_map(|mount| mount.sub_path.as_deref());
        run.is_some_and(|run| folders.flat_map(|folder| folder.split('/')).any(|part| part == run.uid))
    }
}

/// An object of a cycle.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CycleObject {
    /// Its kind.
    pub kind: CycleKind,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
}

/// The kinds of object that a cycle has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum CycleKind {
    /// A TrainingRun.
    TrainingRun,
    /// An Evaluation.
    Evaluation,
    /// The ReasoningPod that is its shadow.
    ReasoningPod,
}

/// A run and the Evaluations of its model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Named {
    /// The name of the run; empty if nothing is named.
    pub training_run: String,
    /// The names of the Evaluations.
    pub evaluations: Vec<String>,
    /// The cycle that they belong to; `None` if the spec names them.
    pub cycle: Option<Timestamp>,
}

impl Named {
    /// Whether these names refer to an object that has one of them. Those of a cycle refer only to objects that the cycle created,
    /// recognized by their uids, and never to one that somebody else created under such a name.
    pub fn means(&self, object: &impl Resource, cycles: &[ObservedCycle]) -> bool {
        let Some(scheduled) = self.cycle else { return true };
        let cycle = cycles.iter().find(|cycle| cycle.scheduled == scheduled);
        cycle.is_some_and(|cycle| cycle.objects.iter().any(|it| Some(&it.uid) == object.meta().uid.as_ref()))
    }

    /// Writes these names into the spec of an object that is observed.
    pub fn aim(self, object: &mut ReasoningPod) {
        (object.spec.training_run, object.spec.evaluations) = (self.training_run, self.evaluations);
    }
}

/// What a ReasoningPod serves, and what it is to serve next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Aims {
    /// What is served: the latest promoted cycle, or what the spec names.
    pub served: Named,
    /// The cycle that has not ended.
    pub candidate: Option<Named>,
}

/// Returns what a ReasoningPod serves, and what it is to serve next. `seal` is what the seal of its status says, and `deployment` that of
/// its servers.
pub fn aims(
    object: &ReasoningPod,
    seal: &StatusSeal,
    cycles: &[ObservedCycle],
    deployment: Option<&Deployment>,
) -> Aims {
    let spec = &object.spec;
    let named = Named { training_run: spec.training_run.clone(), evaluations: spec.evaluations.clone(), cycle: None };
    if spec.redeploy.is_none() {
        return Aims { served: named, candidate: None };
    }
    let status = object.status.clone().unwrap_or_default().believed(seal);
    let (state, current) = recorded(&status, cycles, deployment);
    let served = current.map(|it| Named {
        training_run: it.training_run,
        evaluations: it.evaluations,
        cycle: it.cycle.map(|time| time.0),
    });
    let candidate = state.and_then(|it| it.cycle).map(|it| Named {
        training_run: it.training_run,
        evaluations: it.evaluations,
        cycle: Some(it.scheduled.0),
    });
    Aims { served: served.unwrap_or(named), candidate }
}

/// Returns the state of the cycles and what is served, as the status records them. If the status has been lost, they follow from the
/// objects: what the servers were made for is served, and the latest cycle after that is judged again.
pub(super) fn recorded(
    status: &ReasoningPodStatus,
    cycles: &[ObservedCycle],
    deployment: Option<&Deployment>,
) -> (Option<RedeployStatus>, Option<ServedStatus>) {
    // A status with a seal was not lost: spec.redeploy was removed, and what its cycles made is not tried again.
    if status.redeploy.is_some() || status.seal.is_some() || cycles.is_empty() {
        return (status.redeploy.clone(), status.current.clone());
    }
    let whole = || cycles.iter().rev().filter_map(|cycle| Some((cycle, cycle.training_run.clone()?)));
    let template = deployment.and_then(|it| it.spec.as_ref()?.template.spec.as_ref());
    let current = whole().find(|(cycle, _)| cycle.is_served(template));
    let current = current.map(|(cycle, training_run)| ServedStatus {
        training_run,
        evaluations: cycle.evaluations.clone(),
        cycle: Some(Time(cycle.scheduled)),
    });
    let after = current.as_ref().and_then(|current| current.cycle.clone()).map(|time| time.0);
    let latest = whole().next().filter(|(cycle, _)| after.is_none_or(|after| cycle.scheduled > after));
    let cycle = latest.map(|(cycle, training_run)| CycleStatus {
        scheduled: Time(cycle.scheduled),
        since: Time(cycle.scheduled),
        phase: CyclePhase::Training,
        training_run,
        evaluations: cycle.evaluations.clone(),
        shadow_since: None,
        reason: String::new(),
    });
    let last_schedule_time = cycles.last().map(|cycle| Time(cycle.scheduled));
    (Some(RedeployStatus { cycle, last_schedule_time, ..RedeployStatus::default() }), current)
}

/// Returns the digest over the name of a run and what defines its result.
pub(super) fn run_digest(name: &str, spec: &TrainingRunSpec) -> String {
    let TrainingRunSpec { template, template_from, overrides, config, seed, data, base, .. } = spec;
    let mut defining =
        vec![json!(name), json!(template), json!(overrides), json!(config), json!(seed), json!(data), json!(base)];
    // Left out where it is absent, so that recorded digests stay.
    defining.extend(template_from.as_ref().map(|from| json!(from)));
    Sha256::of(json!(defining).to_string()).to_string()
}

/// Returns the digest over the name of an Evaluation and what defines its result.
pub(super) fn evaluation_digest(name: &str, spec: &EvaluationSpec) -> String {
    let EvaluationSpec { training_run, preset, overrides, data, seed, gates, .. } = spec;
    Sha256::of(json!([name, training_run, preset, overrides, data, seed, gates]).to_string()).to_string()
}

/// Returns the digest over the name of a shadow and what defines its comparison.
pub(super) fn shadow_digest(name: &str, spec: &ReasoningPodSpec) -> String {
    let ReasoningPodSpec { training_run, evaluations, shadow, .. } = spec;
    Sha256::of(json!([name, training_run, evaluations, shadow]).to_string()).to_string()
}

/// Returns the cycles of these objects, by time. Their owner and their seals have been checked, and with the seals the annotations;
/// an object whose annotations do not fit its spec was not created by the controller.
pub fn cycles<'a>(
    runs: impl IntoIterator<Item = &'a TrainingRun>,
    evaluations: impl IntoIterator<Item = &'a Evaluation>,
    shadows: impl IntoIterator<Item = &'a ReasoningPod>,
) -> Vec<ObservedCycle> {
    let mut cycles: BTreeMap<Timestamp, ObservedCycle> = BTreeMap::new();
    for run in runs {
        let digest = run_digest(&run.name_any(), &run.spec);
        let Some(cycle) = cycle_of(&mut cycles, run, CycleKind::TrainingRun, &digest) else { continue };
        let named = run.annotations().get(annotation::CYCLE_EVALUATIONS).map_or("", String::as_str);
        cycle.evaluations = named.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
        cycle.training_run = Some(run.name_any());
        cycle.model = finished_model(run).map(|model| model.digest);
    }
    for evaluation in evaluations {
        let digest = evaluation_digest(&evaluation.name_any(), &evaluation.spec);
        cycle_of(&mut cycles, evaluation, CycleKind::Evaluation, &digest);
    }
    for shadow in shadows {
        let digest = shadow_digest(&shadow.name_any(), &shadow.spec);
        let Some(cycle) = cycle_of(&mut cycles, shadow, CycleKind::ReasoningPod, &digest) else { continue };
        cycle.shadow = shadow.status.as_ref().and_then(|status| status.shadow.clone());
    }
    cycles.into_values().collect()
}

/// Returns the cycle of an object, and adds the object to it.
fn cycle_of<'a, K: Resource>(
    cycles: &'a mut BTreeMap<Timestamp, ObservedCycle>,
    object: &K,
    kind: CycleKind,
    digest: &str,
) -> Option<&'a mut ObservedCycle> {
    let annotations = object.annotations();
    let scheduled = Timestamp::from_second(annotations.get(annotation::CYCLE)?.parse().ok()?).ok()?;
    if annotations.get(annotation::SPEC_DIGEST).is_none_or(|carried| carried != digest)
        || object.meta().deletion_timestamp.is_some()
    {
        return None;
    }
    let cycle = cycles.entry(scheduled).or_insert_with(|| ObservedCycle {
        scheduled,
        evaluations: Vec::new(),
        training_run: None,
        model: None,
        shadow: None,
        objects: Vec::new(),
    });
    cycle.objects.push(CycleObject { kind, name: object.name_any(), uid: object.uid().unwrap_or_default() });
    cycle.objects.sort();
    Some(cycle)
}
