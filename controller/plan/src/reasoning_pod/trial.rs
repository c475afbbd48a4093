//! The shadow of a cycle: what it runs on, whether parity is proved, and when it exists. Pure.
//!
//! A shadow runs on a promotion into the ring before its own, and the model of a cycle was not promoted before. So the controller first
//! promotes the model into that earlier ring, on the verdicts of the cycle and under the policies of that ring. In the first ring,
//! which has no earlier ring, the shadow runs on a promotion into that ring itself, like every ReasoningPod there.

use codex_crds::{
    CyclePhase, CycleStatus, Parity, ReasoningPod, ReasoningPodSpec, Redeploy, RedeployShadow, RedeployStatus, Shadow,
    ShadowStatus, child,
};
use codex_verdict::policy::Demand;
use jiff::{SignedDuration, Timestamp};

use super::{
    cycles::{CycleKind, ObservedCycle, shadow_digest},
    effects,
    evidence::{About, Block, Evidence},
    generated::metadata,
    redeploy::minute,
    signing::Signing,
    stage::Stage,
    trust::Chosen,
    view::View,
};
use crate::plan::{Desired, Effect, Expired};

/// What the shadow of a cycle says about it.
pub(super) enum Trial {
    /// Parity is proved, or no shadow is asked for.
    Passed,
    /// The shadow is to be created.
    Starts(String),
    /// The shadow compares.
    Waits(String),
    /// Something besides parity has to change before a shadow is of use.
    Blocked(String),
    /// Parity was lost, or not proved in time.
    Failed(String),
}

impl Trial {
    /// Judges the shadow of a cycle whose Evaluations have passed. `evidence` is that for its promotion into the ring of the object.
    pub(super) fn of(view: &View<'_>, cycle: &CycleStatus, evidence: &Evidence<'_>) -> Self {
        let Some(wanted) = wanted(view) else { return Self::Passed };
        let shadow = child::cycle(&view.owner.name, minute(cycle.scheduled.0));
        let compared = compared(view, cycle);
        let numbers = compared.map_or_else(
            || "no request was compared".to_owned(),
            |status| {
                let (differ, all) = (status.compared - status.agreed, status.compared);
                format!("{differ} of {all} requests were answered differently than by {}", view.owner.name)
            },
        );
        let limit = format!("spec.redeploy.shadow.maxDivergence is {}", wanted.max_divergence);
        match compared.and_then(|status| status.parity) {
            Some(Parity::Holds) => return Self::Passed,
            Some(Parity::Lost) => return Self::Failed(format!("its shadow {shadow} lost parity: {numbers}; {limit}")),
            None => {}
        }
        if deadline(cycle, wanted).is_some_and(|deadline| deadline <= view.now) {
            return Self::Failed(format!(
                "its shadow {shadow} did not prove parity within the {} s of spec.redeploy.shadow.deadlineSeconds: {numbers}; {limit}",
                wanted.deadline_seconds
            ));
        }
        let blocks = remaining(evidence);
        if !blocks.is_empty() {
            return Self::Blocked(blocks.join("; "));
        }
        if let Some(trial) = view.trial.as_ref().filter(|trial| !trial.evidence.blocks.is_empty()) {
            let sentences: Vec<_> = trial.evidence.blocks.iter().map(|block| block.sentence.as_str()).collect();
            return Self::Blocked(format!(
                "its shadow needs a promotion into {}, the ring before: {}",
                trial.spec().rollout_ring,
                sentences.join("; ")
            ));
        }
        if exists(view, cycle) {
            Self::Waits(format!("its shadow {shadow} compares: {numbers}; {limit}"))
        } else {
            Self::Starts(format!("its shadow {shadow} is being created"))
        }
    }
}

/// Returns what `spec.redeploy.shadow` asks for; `None` if nothing is served, so that there are no requests to compare with.
fn wanted<'a>(view: &View<'a>) -> Option<&'a RedeployShadow> {
    let wanted = view.spec().redeploy.as_ref()?.shadow.as_ref()?;
    // A Deployment that was deleted comes back.
    let serves = view.serves() || view.status.training_run_uid.is_some();
    (serves && view.spec().replicas > 0 && !view.is_revoked()).then_some(wanted)
}

/// Whether the shadow of a cycle exists.
fn exists(view: &View<'_>, cycle: &CycleStatus) -> bool {
    let found = view.observed.cycles.iter().find(|observed| observed.scheduled == cycle.scheduled.0);
    found.is_some_and(|found| found.objects.iter().any(|it| it.kind == CycleKind::ReasoningPod))
}

/// Returns what the shadow of a cycle has compared of its model with the object.
fn compared<'a>(view: &View<'a>, cycle: &CycleStatus) -> Option<&'a ShadowStatus> {
    let observed = view.observed.cycles.iter().find(|observed| observed.scheduled == cycle.scheduled.0)?;
    let status = observed.shadow.as_ref()?;
    (status.digest.is_some() && status.digest == observed.model && status.of == view.owner.name).then_some(status)
}

/// Returns when a shadow must have proved parity; `None` until it is to be created.
fn deadline(cycle: &CycleStatus, wanted: &RedeployShadow) -> Option<Timestamp> {
    let since = cycle.shadow_since.as_ref()?.0;
    since.checked_add(SignedDuration::from_secs(wanted.deadline_seconds)).ok()
}

/// Returns when the cycle that has not ended must have proved parity.
pub(super) fn due(view: &View<'_>, cycle: &CycleStatus) -> Option<Timestamp> {
    deadline(cycle, wanted(view)?).filter(|_| cycle.phase == CyclePhase::Shadowing)
}

/// Returns what keeps a model from being promoted that neither a shadow, nor time, nor a SignOff can change: a shadow would be of no use.
fn remaining<'a>(evidence: &'a Evidence<'_>) -> Vec<&'a str> {
    let later = |demand: Demand| matches!(demand, Demand::Parity | Demand::Ring | Demand::Time | Demand::SignOff);
    let blocks = evidence.blocks.iter().filter(|block: &&Block| block.about != About::Policy);
    let unmet = evidence.policies.unmet.iter().filter(|breach| !later(breach.demand));
    blocks.map(|block| block.sentence.as_str()).chain(unmet.map(|breach| breach.sentence.as_str())).collect()
}

/// Returns the cycle whose shadow is recorded to be created.
fn at_work<'a>(view: &'a View<'_>) -> Option<(&'a CycleStatus, &'a RedeployShadow)> {
    let cycle = view.status.redeploy.as_ref()?.cycle.as_ref()?;
    let wanted = wanted(view)?;
    (cycle.phase == CyclePhase::Shadowing && !view.spec().dry_run).then_some((cycle, wanted))
}

/// Returns what has to be signed before the shadow can run.
pub(super) fn effects(view: &View<'_>) -> Vec<Effect> {
    let Some(trial) = view.trial.as_ref().filter(|_| at_work(view).is_some()) else { return Vec::new() };
    match Signing::of(trial.observed, &trial.evidence, trial.trust()) {
        Some(signing @ (Signing::Model | Signing::Promotion(_))) => effects::effects(trial, &Stage::Signing(signing)),
        Some(Signing::Recorded(_)) | None => Vec::new(),
    }
}

/// Adds the shadow of the cycle, once what it runs on is signed.
pub(super) fn create(view: &View<'_>, desired: &mut Desired) {
    let Some((cycle, wanted)) = at_work(view) else { return };
    let signed = |trial: &View<'_>| matches!(trial.evidence.promotion, Chosen::Recorded { .. });
    if view.trial.as_ref().is_some_and(|trial| !signed(trial)) {
        return;
    }
    if exists(view, cycle) {
        return;
    }
    let scheduled = cycle.scheduled.0;
    let name = child::cycle(&view.owner.name, minute(scheduled));
    let spec = ReasoningPodSpec {
        rollout_ring: view.spec().rollout_ring,
        training_run: cycle.training_run.clone(),
        evaluations: cycle.evaluations.clone(),
        dry_run: false,
        replicas: 1,
        autoscaling: None,
        rollout: None,
        redeploy: None,
        shadow: Some(Shadow {
            of: view.owner.name.clone(),
            sample_percent: wanted.sample_percent,
            max_divergence: wanted.max_divergence.clone(),
            min_requests: wanted.min_requests,
        }),
        pod: view.spec().pod.clone(),
        serving: view.spec().serving.of_engine(),
    };
    let digest = shadow_digest(&name, &spec);
    let metadata = metadata(view, &name, scheduled, digest, &[]);
    desired.reasoning_pods.push(ReasoningPod { metadata, spec, status: None });
}

/// Returns the shadows that are deleted: those of cycles that have ended, and that of a cycle whose promotion is signed.
pub(super) fn expired(view: &View<'_>, redeploy: Option<(&Redeploy, &RedeployStatus)>) -> Vec<Expired> {
    let cycle = redeploy.and_then(|(_, status)| status.cycle.as_ref());
    let promoted = view.rolls_cycle && matches!(view.evidence.promotion, Chosen::Recorded { .. });
    let stays = |observed: &ObservedCycle| {
        cycle.is_some_and(|cycle| cycle.scheduled.0 == observed.scheduled)
            && !promoted
            && redeploy.is_some_and(|(redeploy, _)| redeploy.shadow.is_some())
    };
    let gone = view.observed.cycles.iter().filter(|cycle| !stays(cycle)).flat_map(|cycle| &cycle.objects);
    let shadows = gone.filter(|it| it.kind == CycleKind::ReasoningPod);
    shadows.map(|it| Expired { kind: it.kind, name: it.name.clone(), uid: it.uid.clone() }).collect()
}
