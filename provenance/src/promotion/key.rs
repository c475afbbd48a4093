//! What identifies a promotion. Pure.

use serde::Serialize;

use super::HeldPolicy;
use crate::{
    canonical::canonical,
    digest::{GatesDigest, ModelDigest, ReportDigest, Sha256},
};

/// Identifies a promotion: the predicate type, the model, the ring, the report and gates digests of its evaluations, and the rules
/// of policies that held. Names and uids of evaluations, their times and reads, images, sign-offs and numbers of parity do not
/// count. A controller that writes another predicate type looks for its bundles under other names, and so signs every promotion
/// again after an upgrade.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PromotionKey {
    /// The predicate type, [`PREDICATE_TYPE`](super::PREDICATE_TYPE).
    pub predicate_type: &'static str,
    /// The model.
    pub model: ModelDigest,
    /// The ring.
    pub ring: String,
    /// Report and gates of each evaluation, in any order.
    pub evaluations: Vec<(ReportDigest, GatesDigest)>,
    /// The rules of policies for the ring, in any order. Absent if there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<PolicyKey>,
}

/// Identifies the rule of a policy. A policy that is created again with the same rule is the same.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct PolicyKey {
    /// Kind of the policy.
    pub kind: String,
    /// Name of the policy.
    pub name: String,
    /// SHA-256 of its rule.
    pub rule: Sha256,
}

impl PolicyKey {
    /// Returns the key of a rule that held.
    pub fn of(held: &HeldPolicy) -> Self {
        Self { kind: held.kind.clone(), name: held.name.clone(), rule: held.rule }
    }
}

impl PromotionKey {
    /// SHA-256 of its canonical JSON; the order of the evaluations does not count.
    pub fn digest(&self) -> Sha256 {
        let mut sorted = self.clone();
        sorted.evaluations.sort_unstable();
        sorted.policies.sort_unstable();
        Sha256::of(canonical(&sorted))
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{FORMER, PREDICATE_TYPE},
        *,
    };

    #[test]
    fn a_promotion_of_another_type_has_another_name() {
        let key = PromotionKey {
            predicate_type: PREDICATE_TYPE,
            model: ModelDigest(Sha256::of("model")),
            ring: "main".to_owned(),
            evaluations: vec![(ReportDigest(Sha256::of("report")), GatesDigest(Sha256::of("gates")))],
            policies: Vec::new(),
        };
        assert_ne!(key.digest(), PromotionKey { predicate_type: FORMER, ..key.clone() }.digest());
        let rule = |text: &str| PolicyKey {
            kind: "PromotionPolicy".to_owned(),
            name: "team".to_owned(),
            rule: Sha256::of(text),
        };
        let under =
            |rules: &[&str]| PromotionKey { policies: rules.iter().map(|text| rule(text)).collect(), ..key.clone() };
        assert_ne!(key.digest(), under(&["a"]).digest());
        assert_ne!(under(&["a"]).digest(), under(&["b"]).digest());
        assert_eq!(under(&["a", "b"]).digest(), under(&["b", "a"]).digest());
    }
}
