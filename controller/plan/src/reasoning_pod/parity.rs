//! The parity that shadows have proved for a model, which policies may demand. Pure.

use codex_crds::{Parity, ShadowStatus};
use codex_provenance::{ModelDigest, promotion};
use codex_verdict::{
    Ring,
    policy::{Policy, ShadowParity},
};
use kube::ResourceExt;

use super::observed::{Compared, ObservedReasoningPod, RecordedPromotion};
use crate::seal::StatusSeal;

/// Parity of a model, with what a statement says about it; `None` if the numbers give no bound.
pub(super) struct Found {
    pub(super) fact: ShadowParity,
    stated: Option<promotion::Parity>,
}

/// Returns what is known about the parity of a model in the ring of the object: what shadows have compared, the object itself included if
/// it is or was one, and what promotions of the same model into the ring state. What was promoted stays so when the shadow is gone.
pub(super) fn found(
    observed: &ObservedReasoningPod,
    model: Option<ModelDigest>,
    of_model: &[&RecordedPromotion],
) -> Vec<Found> {
    let object = &observed.object;
    let status = object.status.as_ref().filter(|_| observed.seal == StatusSeal::Valid);
    let own = status.and_then(|status| {
        Some(Compared { name: object.name_any(), uid: object.uid()?, status: status.shadow.clone()? })
    });
    let shadows = own.iter().chain(&observed.compared);
    let shadows = shadows.filter(|shadow| model.is_some() && shadow.status.digest == model).map(of_shadow);
    let stated = of_model.iter().filter(|promoted| promoted.ring == object.spec.rollout_ring);
    let stated = stated.flat_map(|promoted| &promoted.parity);
    shadows
        .chain(stated.map(|parity| Found { fact: ShadowParity::of_statement(parity), stated: Some(parity.clone()) }))
        .collect()
}

fn of_shadow(shadow: &Compared) -> Found {
    let ShadowStatus { of, of_digest, max_divergence, compared, agreed, parity, .. } = &shadow.status;
    let number = |number: i64| u64::try_from(number).unwrap_or(0);
    let fact = ShadowParity {
        shadow: shadow.name.clone(),
        holds: *parity == Some(Parity::Holds),
        compared: number(*compared),
        agreed: number(*agreed),
        max_divergence: max_divergence.clone(),
    };
    let stated = fact.bound().map(|bound| promotion::Parity {
        shadow: promotion::Object { name: shadow.name.clone(), uid: shadow.uid.clone() },
        of: of.clone(),
        of_model: *of_digest,
        compared: fact.compared,
        agreed: fact.agreed,
        max_divergence: fact.max_divergence.clone(),
        bound,
    });
    Found { fact, stated }
}

/// Returns the parity that the rules for a ring demand, as a statement names it: for each rule, the first that meets it.
pub(super) fn required(policies: &[Policy], ring: Ring, found: &[Found]) -> Vec<promotion::Parity> {
    let mut all: Vec<promotion::Parity> = Vec::new();
    for wanted in policies.iter().filter_map(|policy| policy.rule(ring)?.parity.as_ref()) {
        let stated = found.iter().find(|found| found.fact.meets(wanted)).and_then(|found| found.stated.clone());
        all.extend(stated.filter(|stated| !all.contains(stated)));
    }
    all
}
