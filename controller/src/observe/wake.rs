//! Who has to look again when something changed: run → evaluations → pods, children → their object, references → whoever
//! mounts them. No I/O.

use std::{
    convert::Infallible,
    sync::{Arc, OnceLock},
};

use codex_crds::{DataItem, Evaluation, ReasoningPod, TrainingRun, label};
use codex_reports::Kind;
use futures::{
    Stream, StreamExt,
    channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded},
};
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod};
use kube::{
    Resource, ResourceExt,
    core::PartialObjectMeta,
    runtime::reflector::{ObjectRef, Store},
};

/// Where those who have to look again are queued.
#[derive(Clone)]
pub struct Wake {
    runs: UnboundedSender<ObjectRef<TrainingRun>>,
    evaluations: UnboundedSender<ObjectRef<Evaluation>>,
    pods: UnboundedSender<ObjectRef<ReasoningPod>>,
}

/// The other ends of [`Wake`].
pub struct Queues {
    /// Of kind `TrainingRun`.
    pub runs: UnboundedReceiver<ObjectRef<TrainingRun>>,
    /// Of kind `Evaluation`.
    pub evaluations: UnboundedReceiver<ObjectRef<Evaluation>>,
    /// Of kind `ReasoningPod`.
    pub pods: UnboundedReceiver<ObjectRef<ReasoningPod>>,
}

/// A queue as the controllers of kube want it.
pub fn requests<K: Resource + 'static>(
    queue: UnboundedReceiver<ObjectRef<K>>,
) -> impl Stream<Item = Result<ObjectRef<K>, Infallible>> {
    queue.map(Ok)
}

impl Wake {
    /// New queues.
    pub fn new() -> (Self, Queues) {
        let ((runs, runs_queue), (evaluations, evaluations_queue), (pods, pods_queue)) =
            (unbounded(), unbounded(), unbounded());
        let queues = Queues { runs: runs_queue, evaluations: evaluations_queue, pods: pods_queue };
        (Self { runs, evaluations, pods }, queues)
    }

    /// Queues the object `name` of `namespace`. A queue that is closed belongs to a process that stops.
    pub fn wake(&self, kind: Kind, namespace: &str, name: &str) {
        let _closed = match kind {
            Kind::TrainingRun => self.runs.unbounded_send(ObjectRef::new(name).within(namespace)).is_err(),
            Kind::Evaluation => self.evaluations.unbounded_send(ObjectRef::new(name).within(namespace)).is_err(),
            Kind::ReasoningPod => self.pods.unbounded_send(ObjectRef::new(name).within(namespace)).is_err(),
        };
    }

    /// Closes the queues: what is at work is finished, nothing is begun.
    pub fn close(&self) {
        self.runs.close_channel();
        self.evaluations.close_channel();
        self.pods.close_channel();
    }
}

/// Leads changes to those whom they concern.
#[derive(Clone)]
pub(super) struct Waker {
    wake: Wake,
    stores: Arc<OnceLock<Known>>,
}

struct Known {
    runs: Store<TrainingRun>,
    evaluations: Store<Evaluation>,
    pods: Store<ReasoningPod>,
}

impl Waker {
    /// Queues into `wake`.
    pub(super) fn new(wake: Wake) -> Self {
        Self { wake, stores: Arc::default() }
    }

    /// Where to look up who refers to whom. Until it is known, only the changed object itself is queued: whoever comes
    /// later is queued by its own listing.
    pub(super) fn know(&self, runs: Store<TrainingRun>, evaluations: Store<Evaluation>, pods: Store<ReasoningPod>) {
        let _ = self.stores.set(Known { runs, evaluations, pods });
    }

    /// A listener for one kind of change.
    pub(super) fn hear<K: 'static>(&self, hear: fn(&Self, &K)) -> impl Fn(&K) + Send + 'static {
        let this = self.clone();
        move |object: &K| hear(&this, object)
    }

    /// A TrainingRun changed.
    pub(super) fn run(&self, run: &TrainingRun) {
        let (namespace, name) = place(run);
        self.wake.wake(Kind::TrainingRun, &namespace, &name);
        self.users_of_run(&namespace, &name);
    }

    fn users_of_run(&self, namespace: &str, name: &str) {
        let Some(known) = self.stores.get() else { return };
        for evaluation in known.evaluations.state() {
            if evaluation.spec.training_run == name {
                self.wake_if(Kind::Evaluation, &*evaluation, namespace);
            }
        }
        for pod in known.pods.state() {
            if pod.spec.training_run == name {
                self.wake_if(Kind::ReasoningPod, &*pod, namespace);
            }
        }
    }

    /// An Evaluation changed.
    pub(super) fn evaluation(&self, evaluation: &Evaluation) {
        let (namespace, name) = place(evaluation);
        self.wake.wake(Kind::Evaluation, &namespace, &name);
        let Some(known) = self.stores.get() else { return };
        for pod in known.pods.state() {
            if pod.spec.evaluations.contains(&name) {
                self.wake_if(Kind::ReasoningPod, &*pod, &namespace);
            }
        }
    }

    /// A ReasoningPod changed.
    pub(super) fn pod(&self, pod: &ReasoningPod) {
        let (namespace, name) = place(pod);
        self.wake.wake(Kind::ReasoningPod, &namespace, &name);
    }

    /// A child of one of the three changed: its controller looks again. Bundles belong to a run and matter to its pods.
    pub(super) fn child<K: Resource<DynamicType = ()>>(&self, child: &K) {
        let namespace = child.namespace().unwrap_or_default();
        let Some(owner) = child.owner_references().iter().find(|owner| owner.controller == Some(true)) else { return };
        match owner.kind.as_str() {
            "TrainingRun" => {
                self.wake.wake(Kind::TrainingRun, &namespace, &owner.name);
                if K::kind(&()) == "ConfigMap" {
                    self.users_of_run(&namespace, &owner.name);
                }
            }
            "Evaluation" => self.wake.wake(Kind::Evaluation, &namespace, &owner.name),
            "ReasoningPod" => self.wake.wake(Kind::ReasoningPod, &namespace, &owner.name),
            _ => {}
        }
    }

    /// A pod changed. Labels say whom it works for: who is woken without need loses nothing.
    pub(super) fn worker(&self, worker: &Pod) {
        let namespace = worker.namespace().unwrap_or_default();
        let labels = worker.labels();
        let kinds = [
            (label::REASONING_POD, Kind::ReasoningPod),
            (label::EVALUATION, Kind::Evaluation),
            (label::TRAINING_RUN, Kind::TrainingRun),
        ];
        if let Some((name, kind)) = kinds.iter().find_map(|(label, kind)| Some((labels.get(*label)?, *kind))) {
            self.wake.wake(kind, &namespace, name);
        }
    }

    /// A PersistentVolumeClaim came or went.
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

    /// A ConfigMap came, changed or went.
    pub(super) fn data(&self, config_map: &PartialObjectMeta<ConfigMap>) {
        let name = config_map.name_any();
        let mounts = |item: &DataItem| item.source.config_map.as_ref().is_some_and(|key| key.name == name);
        self.mounting(
            &config_map.namespace().unwrap_or_default(),
            |run| run.spec.data.iter().any(mounts),
            |evaluation| evaluation.spec.data.iter().any(mounts),
        );
    }

    fn mounting(&self, namespace: &str, run: impl Fn(&TrainingRun) -> bool, evaluation: impl Fn(&Evaluation) -> bool) {
        let Some(known) = self.stores.get() else { return };
        for found in known.runs.state().iter().filter(|found| run(found)) {
            self.wake_if(Kind::TrainingRun, &**found, namespace);
        }
        for found in known.evaluations.state().iter().filter(|found| evaluation(found)) {
            self.wake_if(Kind::Evaluation, &**found, namespace);
        }
    }

    fn wake_if<K: Resource>(&self, kind: Kind, object: &K, namespace: &str) {
        if object.meta().namespace.as_deref() == Some(namespace) {
            self.wake.wake(kind, namespace, object.meta().name.as_deref().unwrap_or_default());
        }
    }
}

fn place<K: Resource>(object: &K) -> (String, String) {
    (object.namespace().unwrap_or_default(), object.name_any())
}
