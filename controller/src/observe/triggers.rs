//! Maps watch events to the objects that must be reconciled: TrainingRun → Evaluations → ReasoningPods, children → their
//! owner, references → the objects that mount them.

use codex_crds::{DataItem, Evaluation, TrainingRun};
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod};
use kube::{Resource, ResourceExt, core::PartialObjectMeta, runtime::reflector::Store};

use super::{
    queues::{Queued, Queues},
    stores::Stores,
};
use crate::ownership::controller;

/// Queues the objects that a watch event concerns.
#[derive(Clone)]
pub struct Triggers {
    queues: Queues,
    stores: Stores,
}

impl Triggers {
    /// Queues into `queues` the objects that `stores` hold.
    pub fn new(queues: Queues, stores: Stores) -> Self {
        Self { queues, stores }
    }

    /// Queues an object itself.
    pub fn object<K: Queued>(&self, object: &K) {
        self.queues.add::<K>(&object.namespace().unwrap_or_default(), &object.name_any());
    }

    /// Queues the Evaluations and ReasoningPods of a TrainingRun.
    pub fn users_of_run(&self, namespace: &str, name: &str) {
        self.each(&self.stores.evaluations, namespace, |evaluation| evaluation.spec.training_run == name);
        self.each(&self.stores.reasoning_pods, namespace, |pod| pod.spec.training_run == name);
    }

    /// Queues the ReasoningPods that require an Evaluation.
    pub fn users_of_evaluation(&self, namespace: &str, name: &str) {
        self.each(&self.stores.reasoning_pods, namespace, |pod| pod.spec.evaluations.iter().any(|it| it == name));
    }

    /// Queues the owner of a child. Bundles belong to a TrainingRun and also concern its ReasoningPods.
    pub(super) fn child<K: Resource<DynamicType = ()>>(&self, child: &K) {
        let namespace = child.namespace().unwrap_or_default();
        let Some(owner) = controller(child) else { return };
        self.queues.add_kind(&owner.kind, &namespace, &owner.name);
        if K::kind(&()) == "ConfigMap" && owner.kind == TrainingRun::kind(&()) {
            self.users_of_run(&namespace, &owner.name);
        }
    }

    /// Queues the object that a pod works for. Its labels may be forged, but a needless reconciliation does no harm.
    pub(super) fn pod(&self, pod: &Pod) {
        self.queues.add_labelled(&pod.namespace().unwrap_or_default(), pod.labels());
    }

    /// Queues the objects that mount a PersistentVolumeClaim.
    pub(super) fn claim(&self, claim: &PartialObjectMeta<PersistentVolumeClaim>) {
        let name = claim.name_any();
        let mounts = |item: &DataItem| {
            item.source.persistent_volume_claim.as_ref().is_some_and(|claim| claim.claim_name == name)
        };
        self.mounting(
            &claim.namespace().unwrap_or_default(),
            |run| run.spec.output.persistent_volume_claim.claim_name == name || run.spec.data.iter().any(mounts),
            |evaluation| evaluation.spec.data.iter().any(mounts),
        );
    }

    /// Queues the objects that mount a user's ConfigMap.
    pub(super) fn config_map(&self, config_map: &PartialObjectMeta<ConfigMap>) {
        let name = config_map.name_any();
        let mounts = |item: &DataItem| item.source.config_map.as_ref().is_some_and(|key| key.name == name);
        self.mounting(
            &config_map.namespace().unwrap_or_default(),
            |run| run.spec.data.iter().any(mounts),
            |evaluation| evaluation.spec.data.iter().any(mounts),
        );
    }

    fn mounting(&self, namespace: &str, run: impl Fn(&TrainingRun) -> bool, evaluation: impl Fn(&Evaluation) -> bool) {
        self.each(&self.stores.training_runs, namespace, run);
        self.each(&self.stores.evaluations, namespace, evaluation);
    }

    /// Queues each object of a namespace for which `depends` returns true.
    fn each<K: Queued + Clone + 'static>(&self, store: &Store<K>, namespace: &str, depends: impl Fn(&K) -> bool) {
        for object in store.state() {
            if object.meta().namespace.as_deref() == Some(namespace) && depends(&object) {
                self.object(&*object);
            }
        }
    }
}
