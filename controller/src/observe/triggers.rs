//! Maps watch events to the objects that must be reconciled: TrainingRun → TrainingRuns, Evaluations → ReasoningPods, Evaluation →
//! Evaluations, ReasoningPods; ReasoningPod → its shadows and the one that it shadows; policies and sign-offs → ReasoningPods; children → their
//! owner, references → the objects that mount them.

use std::sync::Arc;

use codex_crds::{PromotionPolicy, ReasoningPod, TrainingRun, child};
use codex_plan::network_policy::of_workers;
use codex_verdict::{Ring, policy::PolicyRule};
use k8s_openapi::api::{
    core::v1::{ConfigMap, PersistentVolumeClaim, Pod},
    discovery::v1::EndpointSlice,
    networking::v1::NetworkPolicy,
};
use kube::{Resource, ResourceExt, core::PartialObjectMeta};

use super::{
    cache::{Cache, Name, Names},
    queues::{Queued, Queues},
    stores::{Stores, get},
};
use crate::ownership::{controller, is_shared};

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

    /// Queues an object that has changed itself.
    pub fn changed<K: Queued>(&self, object: &K) {
        self.queues.add_changed::<K>(&object.namespace().unwrap_or_default(), &object.name_any());
    }

    /// Queues an object itself.
    pub fn object<K: Queued>(&self, object: &K) {
        self.queues.add::<K>(&object.namespace().unwrap_or_default(), &object.name_any());
    }

    /// Queues the object `name` of a kind.
    pub(super) fn named<K: Queued>(&self, namespace: &str, name: &str) {
        self.queues.add::<K>(namespace, name);
    }

    /// Queues the ReasoningPod that created an object for one of its cycles.
    pub(super) fn owner<K: Resource<DynamicType = ()>>(&self, object: &K) {
        if let Some(owner) = controller(object) {
            self.queues.add_kind(&owner.kind, &object.namespace().unwrap_or_default(), &owner.name);
        }
    }

    /// Queues the ReasoningPods that shadow a ReasoningPod.
    pub(super) fn shadows_of(&self, namespace: &str, name: &str) {
        self.users(namespace, &Name::ReasoningPod(name.to_owned()));
    }

    /// Queues the Evaluations and ReasoningPods of a TrainingRun, and the TrainingRuns whose base it is.
    pub fn users_of_run(&self, namespace: &str, name: &str) {
        self.users(namespace, &Name::TrainingRun(name.to_owned()));
    }

    /// Queues the Evaluations that are compared with an Evaluation, and the ReasoningPods that require it.
    pub fn users_of_evaluation(&self, namespace: &str, name: &str) {
        self.users(namespace, &Name::Evaluation(name.to_owned()));
    }

    /// Queues the ReasoningPods of a ring that a policy promotes there only if a shadow has proved parity.
    pub(super) fn promoted_by_parity(&self, namespace: &str, ring: Ring) {
        let demands = |rules: &[PolicyRule]| rules.iter().any(|rule| rule.ring == ring && rule.parity.is_some());
        let own = |policy: &PromotionPolicy| policy.metadata.namespace.as_deref() == Some(namespace);
        let (mut policies, mut everywhere) =
            (self.stores.promotion_policies.all(), self.stores.cluster_promotion_policies.all());
        if policies.any(|policy| own(&policy) && demands(&policy.spec.rules))
            || everywhere.any(|policy| demands(&policy.spec.rules))
        {
            self.reasoning_pods(Some(namespace), |pod| pod.spec.rollout_ring == ring && pod.spec.shadow.is_none());
        }
    }

    /// Queues the ReasoningPods for which `depends` returns true: those of a namespace, or all.
    pub(super) fn reasoning_pods(&self, namespace: Option<&str>, depends: impl Fn(&ReasoningPod) -> bool) {
        for pod in self.stores.reasoning_pods.all() {
            if namespace.is_none_or(|namespace| pod.metadata.namespace.as_deref() == Some(namespace)) && depends(&pod) {
                self.object(&*pod);
            }
        }
    }

    /// Queues the owner of a child. Bundles belong to a TrainingRun and also concern its ReasoningPods. A policy can make a
    /// promotion concern every ReasoningPod of the namespace.
    pub(super) fn child<K: Resource<DynamicType = ()>>(&self, child: &K) {
        let namespace = child.namespace().unwrap_or_default();
        let Some(owner) = controller(child) else { return };
        self.queues.add_kind(&owner.kind, &namespace, &owner.name);
        if K::kind(&()) == "ConfigMap" && owner.kind == TrainingRun::kind(&()) {
            self.users_of_run(&namespace, &owner.name);
            self.reasoning_pods(Some(&namespace), |_| true);
        }
    }

    /// Queues the owner of a NetworkPolicy. One that the TrainingRuns and Evaluations of a namespace share concerns all of them once it
    /// is gone or changed.
    pub(super) fn network_policy(&self, policy: &NetworkPolicy) {
        if policy.name_any() != child::WORKERS || !is_shared(policy) {
            return self.child(policy);
        }
        let namespace = policy.namespace().unwrap_or_default();
        let live = get(&self.stores.network_policies, &namespace, child::WORKERS);
        if live.is_some() && !self.stores.has_workers(&namespace) {
            // It was written for an object that is gone. No object has this name, and the controller answers as if one was deleted.
            return self.named::<TrainingRun>(&namespace, child::WORKERS);
        }
        if live.is_some_and(|live| live.spec == of_workers(&namespace).spec) {
            return;
        }
        self.all_of(&self.stores.training_runs, &namespace);
        self.all_of(&self.stores.evaluations, &namespace);
    }

    /// Queues all objects of a kind in a namespace.
    fn all_of<K: Queued + Names>(&self, cache: &Cache<K>, namespace: &str) {
        for reference in cache.references() {
            if reference.namespace.as_deref() == Some(namespace) {
                self.named::<K>(namespace, &reference.name);
            }
        }
    }

    /// Queues the object that a pod works for. Its labels may be forged, but a needless reconciliation does no harm.
    pub(super) fn pod(&self, pod: &Pod) {
        self.queues.add_labelled(&pod.namespace().unwrap_or_default(), pod.labels());
    }

    /// Queues the ReasoningPod whose label an EndpointSlice bears: the cluster copies the labels of the Service.
    pub(super) fn slice(&self, slice: &EndpointSlice) {
        self.queues.add_labelled(&slice.namespace().unwrap_or_default(), slice.labels());
    }

    /// Queues the ReasoningPod whose label a pod bears.
    pub(super) fn labelled(&self, pod: &PartialObjectMeta<Pod>) {
        self.queues.add_labelled(&pod.namespace().unwrap_or_default(), pod.labels());
    }

    /// Queues the objects that mount a PersistentVolumeClaim.
    pub(super) fn claim(&self, claim: &PartialObjectMeta<PersistentVolumeClaim>) {
        self.users(&claim.namespace().unwrap_or_default(), &Name::Claim(claim.name_any()));
    }

    /// Queues the objects that mount a user's ConfigMap.
    pub(super) fn config_map(&self, config_map: &PartialObjectMeta<ConfigMap>) {
        self.users(&config_map.namespace().unwrap_or_default(), &Name::ConfigMap(config_map.name_any()));
    }

    /// Queues the objects that name something.
    fn users(&self, namespace: &str, name: &Name) {
        self.all(&self.stores.training_runs.naming(namespace, name));
        self.all(&self.stores.evaluations.naming(namespace, name));
        self.all(&self.stores.reasoning_pods.naming(namespace, name));
    }

    fn all<K: Queued>(&self, objects: &[Arc<K>]) {
        for object in objects {
            self.object(&**object);
        }
    }
}

#[cfg(test)]
mod tests {
    use codex_crds::{Evaluation, ReasoningPod, TrainingRun};
    use codex_plan::network_policy::of_workers;
    use k8s_openapi::api::core::v1::PersistentVolumeClaim;
    use kube::{core::PartialObjectMeta, runtime::watcher::Event};
    use serde_json::{Value, json};

    use super::Triggers;
    use crate::observe::{Kind, Queues, Requests, Stores, Writers};

    fn object(kind: &str, name: &str, spec: &Value) -> Value {
        let metadata = json!({"name": name, "namespace": "team", "uid": name});
        json!({"apiVersion": "codex-ml.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec})
    }

    /// Returns the runs and evaluations in the queues.
    fn queued(requests: &mut Requests) -> Vec<String> {
        let mut all = Vec::new();
        while let Ok(run) = requests.training_runs.try_recv() {
            all.push(run.name);
        }
        while let Ok(evaluation) = requests.evaluations.try_recv() {
            all.push(evaluation.name);
        }
        all.sort();
        all
    }

    #[test]
    fn a_shadow_and_the_one_that_it_shadows_queue_each_other() {
        let mut writers = Writers::ready();
        let stores = Stores::of(&mut writers);
        let pod = |name: &str, shadow: &Value, recorded: &Value| -> ReasoningPod {
            let spec = json!({"rolloutRing": "main", "trainingRun": "a", "evaluations": ["e"], "shadow": shadow});
            let mut object = object("ReasoningPod", name, &spec);
            object["status"] = json!({"shadow": recorded});
            serde_json::from_value(object).unwrap()
        };
        let of = |name: &str| json!({"of": name, "samplePercent": 10, "maxDivergence": "0.01"});
        let live = pod("live", &Value::Null, &Value::Null);
        let next = pod("next", &of("live"), &json!({"of": "former"}));
        for pod in [&live, &next] {
            writers.reasoning_pods.apply_watcher_event(&Event::Apply(pod.clone()));
        }
        let (queues, mut requests) = Queues::new();
        let triggers = Triggers::new(queues, stores);
        let mut queued = |pod: &ReasoningPod| {
            pod.changed(&triggers);
            let mut all = Vec::new();
            while let Ok(found) = requests.reasoning_pods.try_recv() {
                all.push(found.name);
            }
            all.sort();
            all
        };
        assert_eq!(queued(&live), ["live", "next"]);
        // What it shadowed before its spec changed must forget it.
        assert_eq!(queued(&next), ["former", "live", "next"]);
        assert_eq!(queued(&pod("alone", &Value::Null, &Value::Null)), ["alone"]);
    }

    #[test]
    fn a_changed_or_deleted_shared_policy_queues_the_objects_of_its_namespace() {
        let mut writers = Writers::ready();
        let stores = Stores::of(&mut writers);
        let (queues, mut requests) = Queues::new();
        let triggers = Triggers::new(queues, stores);
        let policy = of_workers("team");
        writers.network_policies.apply_watcher_event(&Event::Apply(policy.clone()));
        triggers.network_policy(&policy);
        assert_eq!(queued(&mut requests), ["codex-workers"], "no object needs it: it is deleted as after the last one");
        let output = json!({"persistentVolumeClaim": {"claimName": "runs"}});
        let spec = json!({"rolloutRing": "main", "template": "cot-starter", "data": [], "output": output});
        for (name, namespace) in [("here", "team"), ("elsewhere", "other")] {
            let mut run = object("TrainingRun", name, &spec);
            run["metadata"]["namespace"] = json!(namespace);
            let run: TrainingRun = serde_json::from_value(run).unwrap();
            writers.training_runs.apply_watcher_event(&Event::Apply(run));
        }
        let spec = json!({"trainingRun": "here", "preset": "cot-lite", "gates": []});
        let evaluation: Evaluation = serde_json::from_value(object("Evaluation", "of-here", &spec)).unwrap();
        writers.evaluations.apply_watcher_event(&Event::Apply(evaluation));
        triggers.network_policy(&policy);
        assert!(queued(&mut requests).is_empty(), "it is as planned");
        let mut open = policy.clone();
        open.spec.as_mut().unwrap().ingress = None;
        writers.network_policies.apply_watcher_event(&Event::Apply(open.clone()));
        triggers.network_policy(&open);
        assert_eq!(queued(&mut requests), ["here", "of-here"]);
        writers.network_policies.apply_watcher_event(&Event::Delete(policy.clone()));
        triggers.network_policy(&policy);
        assert_eq!(queued(&mut requests), ["here", "of-here"]);
    }

    #[test]
    fn a_run_and_a_claim_queue_the_objects_that_use_them() {
        let mut writers = Writers::ready();
        let stores = Stores::of(&mut writers);
        let run = |name: &str, base: &Value| {
            let output = json!({"persistentVolumeClaim": {"claimName": format!("output-of-{name}")}});
            let spec =
                json!({"rolloutRing": "main", "template": "cot-starter", "data": [], "output": output, "base": base});
            Event::Apply(serde_json::from_value::<TrainingRun>(object("TrainingRun", name, &spec)).unwrap())
        };
        let given = json!({"persistentVolumeClaim": {"claimName": "given"}});
        writers.training_runs.apply_watcher_event(&run("first", &Value::Null));
        writers.training_runs.apply_watcher_event(&run("tuned", &json!({"trainingRun": {"name": "first"}})));
        writers.training_runs.apply_watcher_event(&run("based", &given));
        let evaluation = |name: &str, spec: Value| {
            let mut spec = spec;
            (spec["preset"], spec["gates"]) = (json!("cot-lite"), json!([]));
            Event::Apply(serde_json::from_value::<Evaluation>(object("Evaluation", name, &spec)).unwrap())
        };
        let results = json!({"persistentVolumeClaim": {"claimName": "results"}});
        writers.evaluations.apply_watcher_event(&evaluation("of-first", json!({"trainingRun": "first"})));
        writers.evaluations.apply_watcher_event(&evaluation("of-given", json!({"model": given, "output": results})));
        let (queues, mut requests) = Queues::new();
        let triggers = Triggers::new(queues, stores);
        triggers.users_of_run("team", "first");
        assert_eq!(queued(&mut requests), ["of-first", "tuned"]);
        let mut later = evaluation("later", json!({"trainingRun": "tuned"}));
        if let Event::Apply(later) = &mut later {
            let gate = json!({"metric": "exact_match", "betterThan": {"evaluation": "of-first"}});
            later.spec.gates = vec![serde_json::from_value(gate).unwrap()];
        }
        writers.evaluations.apply_watcher_event(&later);
        triggers.users_of_evaluation("team", "of-first");
        assert_eq!(queued(&mut requests), ["later"]);
        triggers.users_of_run("another", "first");
        assert!(queued(&mut requests).is_empty());
        for (name, expected) in [
            ("given", vec!["based", "of-given"]),
            ("results", vec!["of-given"]),
            ("output-of-tuned", vec!["tuned"]),
            ("unused", vec![]),
        ] {
            let mut claim: PartialObjectMeta<PersistentVolumeClaim> = PartialObjectMeta::default();
            (claim.metadata.name, claim.metadata.namespace) = (Some(name.to_owned()), Some("team".to_owned()));
            triggers.claim(&claim);
            assert_eq!(queued(&mut requests), expected, "{name}");
        }
    }
}
