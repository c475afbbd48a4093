//! The objects that a ReasoningPod created for its cycles. They are read from the caches.

use std::sync::Arc;

use codex_crds::{Evaluation, ReasoningPod, TrainingRun};
use codex_plan::reasoning_pod::{ObservedCycle, cycles};
use kube::ResourceExt;
use serde::Serialize;

use super::{
    cache::{Cache, Name, Names},
    kind::Observe,
};
use crate::context::Context;

/// Returns the cycles of a ReasoningPod. What does not carry its seal was created by others.
pub(super) fn of(context: &Context, pod: &ReasoningPod) -> Vec<ObservedCycle> {
    let stores = &context.stores;
    let runs = sealed(context, pod, &stores.training_runs);
    let runs: Vec<TrainingRun> = runs.into_iter().map(|run| Arc::unwrap_or_clone(run).believed(context)).collect();
    let evaluations: Vec<Arc<Evaluation>> = sealed(context, pod, &stores.evaluations);
    let shadows = sealed(context, pod, &stores.reasoning_pods);
    let shadows: Vec<ReasoningPod> =
        shadows.into_iter().map(|shadow| Arc::unwrap_or_clone(shadow).believed(context)).collect();
    cycles(&runs, evaluations.iter().map(|evaluation| &**evaluation), &shadows)
}

/// Returns the objects that a ReasoningPod controls and that carry its seal.
fn sealed<K: Names + Serialize>(context: &Context, pod: &ReasoningPod, cache: &Cache<K>) -> Vec<Arc<K>> {
    let owner = pod.uid().unwrap_or_default();
    let mut found = cache.naming(&pod.namespace().unwrap_or_default(), &Name::Owner(owner.clone()));
    found.retain(|object| {
        context.known.holds(&**object, ("sealed for a cycle", &owner), || context.seal.holds(&owner, &**object))
    });
    found
}
