//! The objects of cycles: which are created, and which are deleted. Pure.

use std::collections::{BTreeMap, BTreeSet};

use codex_crds::{
    CyclePhase, CycleStatus, Evaluation, EvaluationSpec, Redeploy, RedeployStatus, TrainingRun, annotation, label,
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;

use super::{
    cycles::{CycleKind, ObservedCycle, evaluation_digest, run_digest},
    redeploy::names,
    trial,
    view::View,
};
use crate::{
    metadata::{Component, queue},
    plan::{Desired, Expired},
};

/// Adds the objects of cycles that are created, changed or deleted. They follow the recorded state.
pub(super) fn children(view: &View<'_>, desired: &mut Desired) {
    let Some((redeploy, status)) = view.spec().redeploy.as_ref().zip(view.status.redeploy.as_ref()) else {
        // Shadows would answer copies for good. The others stay.
        desired.expired = trial::expired(view, None);
        return;
    };
    let begun = |cycle: &&CycleStatus| matches!(cycle.phase, CyclePhase::Training | CyclePhase::Evaluating);
    if let Some(cycle) = status.cycle.as_ref().filter(begun).filter(|_| !view.spec().dry_run) {
        create(view, redeploy, cycle, desired);
    }
    trial::create(view, desired);
    desired.training_runs.extend(moved(view));
    desired.expired = expired(view, redeploy, status);
    desired.expired.extend(trial::expired(view, Some((redeploy, status))));
}

pub(super) fn metadata(
    view: &View<'_>,
    name: &str,
    cycle: Timestamp,
    digest: String,
    evaluations: &[String],
) -> ObjectMeta {
    let mut metadata = view.owner.child(name.to_owned(), Component::Cycle, &view.observed.settings.version);
    let queue = queue(&view.observed.object).map(|queue| (label::QUEUE_NAME.to_owned(), queue.to_owned()));
    metadata.labels.get_or_insert_default().extend(queue);
    let mut annotations = BTreeMap::from([
        (annotation::CYCLE.to_owned(), cycle.as_second().to_string()),
        (annotation::SPEC_DIGEST.to_owned(), digest),
    ]);
    if !evaluations.is_empty() {
        annotations.insert(annotation::CYCLE_EVALUATIONS.to_owned(), evaluations.join(","));
    }
    metadata.annotations = Some(annotations);
    metadata
}

/// Adds the objects of a cycle that do not exist.
fn create(view: &View<'_>, redeploy: &Redeploy, cycle: &CycleStatus, desired: &mut Desired) {
    let scheduled = cycle.scheduled.0;
    let found = view.observed.cycles.iter().find(|observed| observed.scheduled == scheduled);
    let exists = |kind: CycleKind, name: &str| {
        found.is_some_and(|found| found.objects.iter().any(|it| it.kind == kind && it.name == name))
    };
    let run = &cycle.training_run;
    if !exists(CycleKind::TrainingRun, run) {
        let spec = redeploy.template.training_run.clone();
        let digest = run_digest(run, &spec);
        let metadata = metadata(view, run, scheduled, digest, &cycle.evaluations);
        desired.training_runs.push(TrainingRun { metadata, spec, status: None });
    }
    for (name, template) in names(view, redeploy, cycle).iter().zip(&redeploy.template.evaluations) {
        if exists(CycleKind::Evaluation, name) || !cycle.evaluations.contains(name) {
            continue;
        }
        let spec = EvaluationSpec {
            training_run: Some(run.clone()),
            model: None,
            output: None,
            schedule: None,
            ..template.spec.clone()
        };
        let digest = evaluation_digest(name, &spec);
        let metadata = metadata(view, name, scheduled, digest, &[]);
        desired.evaluations.push(Evaluation { metadata, spec, status: None });
    }
}

/// Returns the run of the cycle that is served or rolled out, if its ring is not that of the object: it moves with it, and is not
/// trained again.
fn moved(view: &View<'_>) -> Option<TrainingRun> {
    let ring = view.spec().rollout_ring;
    let run = view.observed.run.as_ref().filter(|run| run.spec.rollout_ring != ring)?;
    let name = run.name_any();
    let cycle = view.observed.cycles.iter().find(|cycle| cycle.training_run.as_ref() == Some(&name))?;
    let mut spec = run.spec.clone();
    spec.rollout_ring = ring;
    let metadata = metadata(view, &name, cycle.scheduled, run_digest(&name, &spec), &cycle.evaluations);
    Some(TrainingRun { metadata, spec, status: None })
}

/// Returns the objects of cycles that are deleted: never those of what is served or tried, of what was served before, or of the
/// cycle that has not ended.
fn expired(view: &View<'_>, redeploy: &Redeploy, status: &RedeployStatus) -> Vec<Expired> {
    let observed = view.observed;
    let served = [&view.status.current, &status.former].into_iter().flatten().filter_map(|it| it.cycle.as_ref());
    let mut kept: BTreeSet<Timestamp> = served.map(|time| time.0).collect();
    kept.extend(status.cycle.as_ref().map(|cycle| cycle.scheduled.0));
    let deployments = observed.deployment.iter().chain(&observed.canary);
    let templates = deployments.filter_map(|it| it.spec.as_ref()?.template.spec.as_ref());
    let pods = observed.pods.iter().chain(&observed.former_pods).chain(&observed.canary_pods);
    let templates: Vec<_> = templates.chain(pods.filter_map(|pod| pod.spec.as_ref())).collect();
    // While their template is modified, it is not known which model the servers have.
    if observed.tampered {
        return Vec::new();
    }
    let (mut promoted, mut others) = (redeploy.successful_history_limit, redeploy.failed_history_limit);
    let mut stays = |cycle: &ObservedCycle| {
        let is_named = cycle.training_run.as_ref() == Some(&view.spec().training_run);
        if is_named
            || kept.contains(&cycle.scheduled)
            || templates.iter().any(|template| cycle.is_served(Some(template)))
        {
            return true;
        }
        let record = status.history.iter().find(|record| record.scheduled.0 == cycle.scheduled);
        let succeeded = record.is_some_and(|record| record.result == CyclePhase::Serving);
        let left = if succeeded { &mut promoted } else { &mut others };
        *left -= 1;
        *left >= 0
    };
    let gone: Vec<&ObservedCycle> = observed.cycles.iter().rev().filter(|cycle| !stays(cycle)).collect();
    let objects = gone.into_iter().flat_map(|cycle| &cycle.objects);
    let objects = objects.filter(|it| it.kind != CycleKind::ReasoningPod);
    objects.map(|it| Expired { kind: it.kind, name: it.name.clone(), uid: it.uid.clone() }).collect()
}
