//! The NetworkPolicy that the pods of all TrainingRuns and Evaluations of a namespace share, and parts of the policies of servers. Pure.
//!
//! There is one for each namespace and not one for each object, because it is the same for all of them: it costs one write for a
//! namespace. No object owns it. It is written before the first Job and deleted after the last TrainingRun and Evaluation.

use std::collections::BTreeMap;

use codex_crds::child;
use k8s_openapi::{
    api::networking::v1::{
        NetworkPolicy, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
    },
    apimachinery::pkg::{
        apis::meta::v1::{LabelSelector, LabelSelectorRequirement, ObjectMeta},
        util::intstr::IntOrString,
    },
};

use crate::{metadata::Component, training_run::METRICS_PORT};

/// The label of everything that the controller creates, and its value.
const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "codex-controller");

/// Returns a port in a network policy.
pub(crate) fn port(protocol: &str, port: i32) -> NetworkPolicyPort {
    NetworkPolicyPort { protocol: Some(protocol.to_owned()), port: Some(IntOrString::Int(port)), end_port: None }
}

/// Returns everybody in the cluster: Prometheus may run in any namespace. A node always reaches its own pods with probes.
pub(crate) fn in_cluster() -> NetworkPolicyPeer {
    NetworkPolicyPeer { namespace_selector: Some(LabelSelector::default()), ..NetworkPolicyPeer::default() }
}

/// Returns the policy of the trainers and evaluators of a namespace: pods of the cluster reach the port of the metrics, and nothing
/// reaches another port. What they reach is not limited: a trainer may download its base, and write to trackers.
pub fn of_workers(namespace: &str) -> NetworkPolicy {
    let mut labels = BTreeMap::from([MANAGED_BY].map(|(key, value)| (key.to_owned(), value.to_owned())));
    let components = LabelSelectorRequirement {
        key: "app.kubernetes.io/component".to_owned(),
        operator: "In".to_owned(),
        values: Some([Component::Evaluator, Component::Trainer].map(|it| it.name().to_owned()).into()),
    };
    let pods = LabelSelector { match_labels: Some(labels.clone()), match_expressions: Some(vec![components]) };
    // Without the version of the controller: an upgrade writes no policy.
    for name in ["name", "part-of"] {
        labels.insert(format!("app.kubernetes.io/{name}"), "codex".to_owned());
    }
    NetworkPolicy {
        metadata: ObjectMeta {
            name: Some(child::WORKERS.to_owned()),
            namespace: Some(namespace.to_owned()),
            labels: Some(labels),
            ..ObjectMeta::default()
        },
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(pods),
            policy_types: Some(vec!["Ingress".to_owned()]),
            ingress: Some(vec![NetworkPolicyIngressRule {
                ports: Some(vec![port("TCP", METRICS_PORT)]),
                from: Some(vec![in_cluster()]),
            }]),
            egress: None,
        }),
    }
}
