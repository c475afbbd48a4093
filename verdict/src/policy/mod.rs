//! Promotion policies: what a model needs before it is promoted into a ring, and what must not be served. Pure.
//!
//! A [`Policy`] has one [`PolicyRule`] for each ring and lists of [`Denied`] digests. Policies only add demands: every
//! policy must hold, so another one can only tighten. [`breaches`] checks the rules of a ring against [`Facts`], [`denials`] the
//! lists against a [`Lineage`]. The controller checks objects, and `codex verify --policy` the statement of a promotion.

mod check;
mod facts;
mod parity;
mod period;
mod reads;
mod spec;
mod strict;
#[cfg(test)]
mod tests;

use std::fmt;

use codex_provenance::{Sha256, promotion};
use serde::{Deserialize, Serialize};

pub use check::{Breach, Demand, breaches, demanded_attestations, denials, divided, may_sign};
pub use facts::{Candidate, Earlier, Facts, Lineage, PROBLEMS, Signatory, SignedOff};
pub use parity::{PARITY_CONFIDENCE, ShadowParity};
pub(crate) use period::{FORM, PATTERN};
pub use period::{MAX_PERIOD, period};
pub(crate) use reads::check_stated;
pub use reads::told;
pub use spec::{
    Denied, MAX_DENIED, MAX_IDENTITY, MAX_PARITY_REQUESTS, MAX_READS, MAX_RULES, MAX_SIGNERS, MAX_TEMPLATE_GATES,
    MAX_TEMPLATES, MAX_USER, PolicyRule, PolicySpec, ReadBudget, ReadinessWeights, RequiredEvaluation, RequiredParity,
    RequiredRing, RequiredSignOffs, RequiredSigners, SignerIdentity,
};

use crate::{Ring, digests::canonical};

/// The kind of a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum PolicyKind {
    /// It applies to every namespace.
    ClusterPromotionPolicy,
    /// It applies to its namespace.
    PromotionPolicy,
}

impl fmt::Display for PolicyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::ClusterPromotionPolicy => "ClusterPromotionPolicy",
            Self::PromotionPolicy => "PromotionPolicy",
        })
    }
}

/// A policy that applies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Policy {
    /// Its kind.
    pub kind: PolicyKind,
    /// Its name.
    pub name: String,
    /// Its uid; empty for a policy from a file.
    #[serde(default)]
    pub uid: String,
    /// What it demands.
    pub spec: PolicySpec,
}

impl Policy {
    /// Returns its rule for a ring.
    pub fn rule(&self, ring: Ring) -> Option<&PolicyRule> {
        self.spec.rules.iter().find(|rule| rule.ring == ring)
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.name)
    }
}

/// Returns the rules of these policies for a ring, as a promotion statement names them: sorted by kind and name.
pub fn stated(policies: &[Policy], ring: Ring) -> Vec<promotion::HeldPolicy> {
    let mut held: Vec<_> = policies
        .iter()
        .filter_map(|policy| {
            Some(promotion::HeldPolicy {
                kind: policy.kind.to_string(),
                name: policy.name.clone(),
                uid: policy.uid.clone(),
                rule: Sha256::of(canonical(policy.rule(ring)?)),
            })
        })
        .collect();
    held.sort_by(|a, b| (&a.kind, &a.name).cmp(&(&b.kind, &b.name)));
    held
}
