//! Names, labels and owner references of children. Pure.

use std::collections::BTreeMap;

use codex_crds::{Evaluation, ReasoningPod, TrainingRun, annotation, label};
use codex_verdict::Ring;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::{Resource, ResourceExt};

/// The component of a child: the value of `app.kubernetes.io/component`, and the name of the container in its pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Component {
    Trainer,
    Evaluator,
    Server,
    Activator,
    Bundle,
    Cycle,
}

impl Component {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Trainer => "trainer",
            Self::Evaluator => "evaluator",
            Self::Server => "server",
            Self::Activator => "activator",
            Self::Bundle => "bundle",
            Self::Cycle => "cycle",
        }
    }
}

/// The object that owns children.
#[derive(Clone, Debug)]
pub(crate) struct Owner {
    pub(crate) kind: &'static str,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    reference: OwnerReference,
    labels: BTreeMap<String, String>,
}

impl Owner {
    pub(crate) fn run(run: &TrainingRun) -> Self {
        Self::of(run, "TrainingRun", [(label::TRAINING_RUN, run.name_any())])
    }

    pub(crate) fn evaluation(evaluation: &Evaluation) -> Self {
        let run = evaluation.spec.training_run.clone().map(|run| (label::TRAINING_RUN, run));
        let labels = std::iter::once((label::EVALUATION, evaluation.name_any())).chain(run);
        Self::of(evaluation, "Evaluation", labels)
    }

    /// Returns the owner of servers. Its labels must not change with a rollout, so the ring is not among them.
    pub(crate) fn reasoning_pod(pod: &ReasoningPod) -> Self {
        Self::of(pod, "ReasoningPod", [(label::REASONING_POD, pod.name_any())])
    }

    fn of<K: Resource<DynamicType = ()>>(
        object: &K,
        kind: &'static str,
        labels: impl IntoIterator<Item = (&'static str, String)>,
    ) -> Self {
        let reference = OwnerReference {
            api_version: K::api_version(&()).into_owned(),
            kind: kind.to_owned(),
            name: object.name_any(),
            uid: object.uid().unwrap_or_default(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        };
        Self {
            kind,
            namespace: object.namespace().unwrap_or_default(),
            name: reference.name.clone(),
            uid: reference.uid.clone(),
            reference,
            labels: labels.into_iter().map(|(key, value)| (key.to_owned(), label_value(&value))).collect(),
        }
    }

    /// Returns the labels that select the pods of `component`. They must not change while the owner exists.
    pub(crate) fn selector(&self, component: Component) -> BTreeMap<String, String> {
        let mut labels = self.labels.clone();
        labels.insert("app.kubernetes.io/component".to_owned(), component.name().to_owned());
        labels
    }

    /// Returns all labels of a child or its pods.
    pub(crate) fn labels(&self, component: Component, version: &str) -> BTreeMap<String, String> {
        let mut labels = self.selector(component);
        for (key, value) in [
            ("name", "codex"),
            ("instance", self.name.as_str()),
            ("part-of", "codex"),
            ("managed-by", "codex-controller"),
            ("version", version),
        ] {
            labels.insert(format!("app.kubernetes.io/{key}"), label_value(value));
        }
        labels
    }

    /// Returns the metadata of a child.
    pub(crate) fn child(&self, name: String, component: Component, version: &str) -> ObjectMeta {
        ObjectMeta {
            name: Some(name),
            namespace: Some(self.namespace.clone()),
            labels: Some(self.labels(component, version)),
            owner_references: Some(vec![self.reference.clone()]),
            ..ObjectMeta::default()
        }
    }
}

/// Returns the annotations of a live child that this controller owns.
pub(crate) fn our_annotations(live: &impl Resource) -> BTreeMap<String, String> {
    live.annotations()
        .iter()
        .filter(|(key, _)| key.starts_with(annotation::PREFIX))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect()
}

/// Returns the `LocalQueue` of Kueue that the label of an object names.
pub(crate) fn queue(object: &impl Resource) -> Option<&str> {
    object.labels().get(label::QUEUE_NAME).map(String::as_str).filter(|queue| !queue.is_empty())
}

/// Returns the label of a ring.
pub(crate) fn ring_label(ring: Ring) -> (String, String) {
    (label::RING.to_owned(), ring.label().to_owned())
}

/// Returns the nearest valid label value: at most 63 characters of `[-_.A-Za-z0-9]`, alphanumeric at both ends.
pub(crate) fn label_value(text: &str) -> String {
    let allowed: String = text
        .chars()
        .map(|letter| if letter.is_ascii_alphanumeric() || "-_.".contains(letter) { letter } else { '-' })
        .take(63)
        .collect();
    allowed.trim_matches(|letter: char| !letter.is_ascii_alphanumeric()).to_owned()
}

#[cfg(test)]
mod tests {
    use super::label_value;

    #[test]
    fn label_values_are_valid() {
        assert_eq!(label_value("0.1.0+dirty_"), "0.1.0-dirty");
        assert_eq!(label_value(&"x".repeat(80)).len(), 63);
        assert_eq!(label_value("--"), "");
    }
}
