//! `PromotionPolicy` and `ClusterPromotionPolicy`: what a model needs before it is promoted into a ring. They never report. No I/O.

use codex_verdict::policy::{Denied, MAX_RULES, Policy, PolicyKind, PolicyRule, PolicySpec, ReadinessWeights};
use kube::{CustomResource, KubeSchema, ResourceExt};
use serde::{Deserialize, Serialize};

/// Demands on promotions in one namespace: rules for rings, and digests that must not be served.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "codex-ml.dev",
    version = "v1alpha1",
    kind = "PromotionPolicy",
    namespaced,
    derive = "PartialEq",
    doc = "A PromotionPolicy says what a model needs before a ReasoningPod of its namespace serves it in a ring, and which digests must not be served. It adds to the ClusterPromotionPolicies and to other PromotionPolicies: every one must hold.",
    shortname = "ppol",
    category = "codex",
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = crate::rules::name()
)]
#[serde(rename_all = "camelCase")]
pub struct PromotionPolicySpec {
    /// Demands, at most one rule for each ring. A ring without a rule has no demands.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_RULES))]
    #[x_kube(
        validation = ("self.all(a, self.exists_one(b, b.ring == a.ring))", "spec.rules[] must name each ring once: put the demands on a ring into one rule")
    )]
    pub rules: Vec<PolicyRule>,
    /// Digests that must not be served, in any ring. What serves one is scaled to zero, and comes back when the digest is removed.
    #[serde(default)]
    pub denied: Denied,
    /// Weights of readiness in surveys of status-report. If several policies state them, those count with which a run is least ready.
    /// Without them, readiness is 0.5 evidence, 0.2 traces and 0.3 deployment. They block nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub readiness: Option<ReadinessWeights>,
}

/// Demands on promotions in all namespaces: rules for rings, and digests that must not be served.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "codex-ml.dev",
    version = "v1alpha1",
    kind = "ClusterPromotionPolicy",
    derive = "PartialEq",
    doc = "A ClusterPromotionPolicy says what a model needs before any ReasoningPod of the cluster serves it in a ring, and which digests must not be served. Every policy must hold, so a PromotionPolicy of a namespace can only add demands.",
    shortname = "cppol",
    category = "codex",
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = crate::rules::name()
)]
#[serde(rename_all = "camelCase")]
pub struct ClusterPromotionPolicySpec {
    /// Demands, at most one rule for each ring. A ring without a rule has no demands.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_RULES))]
    #[x_kube(
        validation = ("self.all(a, self.exists_one(b, b.ring == a.ring))", "spec.rules[] must name each ring once: put the demands on a ring into one rule")
    )]
    pub rules: Vec<PolicyRule>,
    /// Digests that must not be served, in any ring. What serves one is scaled to zero, and comes back when the digest is removed.
    #[serde(default)]
    pub denied: Denied,
    /// Weights of readiness in surveys of status-report. If several policies state them, those count with which a run is least ready.
    /// Without them, readiness is 0.5 evidence, 0.2 traces and 0.3 deployment. They block nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub readiness: Option<ReadinessWeights>,
}

impl From<&PromotionPolicy> for Policy {
    fn from(object: &PromotionPolicy) -> Self {
        let PromotionPolicySpec { rules, denied, .. } = object.spec.clone();
        Self {
            kind: PolicyKind::PromotionPolicy,
            name: object.name_any(),
            uid: object.uid().unwrap_or_default(),
            spec: PolicySpec { rules, denied },
        }
    }
}

impl From<&ClusterPromotionPolicy> for Policy {
    fn from(object: &ClusterPromotionPolicy) -> Self {
        let ClusterPromotionPolicySpec { rules, denied, .. } = object.spec.clone();
        Self {
            kind: PolicyKind::ClusterPromotionPolicy,
            name: object.name_any(),
            uid: object.uid().unwrap_or_default(),
            spec: PolicySpec { rules, denied },
        }
    }
}
