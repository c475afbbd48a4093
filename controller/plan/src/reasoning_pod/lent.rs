//! The promotion that a shadow runs on: it is not promoted itself. Pure.

use codex_crds::Reason;
use codex_provenance::ModelDigest;
use codex_verdict::Ring;

use super::{
    evidence::{About, Block},
    observed::{LentPromotion, ObservedReasoningPod, SignedModel, SignedPromotion},
    trust::{Chosen, Trust},
    view::View,
};
use crate::seal::StatusSeal;

/// Chooses the promotion of the model that a shadow runs on: the one that the status records, or else the earliest in the ring before
/// its own, or else in its own. Returns `None` if the object is promoted as every ReasoningPod: without `spec.shadow`, and in the first
/// ring.
///
/// # Errors
/// The block that says which promotion is missing.
pub(super) fn choose<'a>(
    observed: &'a ObservedReasoningPod,
    model: Option<ModelDigest>,
    trust: Trust<'_>,
) -> Option<Result<&'a LentPromotion, Block>> {
    observed.object.spec.shadow.as_ref()?;
    let own = observed.object.spec.rollout_ring;
    let before = own.before()?;
    let status = observed.object.status.as_ref().filter(|_| observed.seal == StatusSeal::Valid);
    let recorded = status.and_then(|status| Some(&status.promotion.as_ref()?.bundle));
    let distrust = |lent: &LentPromotion| {
        let mut signers = [lent.promotion.signer, lent.oms.signer].into_iter();
        signers.find_map(|signer| Some((signer, trust.check_at(signer, trust.now()).err()?)))
    };
    let all = || observed.lent.iter().filter(|lent| lent.ring == own || lent.ring == before);
    let trusted = all().filter(|lent| model.is_some() && distrust(lent).is_none());
    // Servers that compare are not replaced because another promotion appears.
    let order = |lent: &&LentPromotion| {
        let other = recorded != Some(&lent.bundle);
        (other, lent.ring, lent.since, lent.bundle.clone(), lent.oms_bundle.clone())
    };
    if let Some(lent) = trusted.min_by_key(order) {
        return Some(Ok(lent));
    }
    let named = model.map_or_else(|| "the model".to_owned(), |model| format!("the model {}", model.short()));
    let distrusted = all().find_map(|lent| Some((lent, distrust(lent)?)));
    Some(Err(match distrusted {
        Some((lent, (signer, why))) => Block::stalls(
            About::Signing,
            Reason::KeyNotTrusted,
            format!(
                "{} signed the promotion of {named} into {} or its signature, and it {why}: let a ReasoningPod without spec.shadow in \
                 {} promote the same model again",
                trust.name(signer),
                lent.ring,
                lent.ring
            ),
        ),
        None => Block::waits(
            About::Signing,
            Reason::NotFound,
            format!(
                "{named} has no recorded promotion into {before} or {own} in this namespace, and a shadow runs on one: promote the \
                 same model into {before} first, with a TrainingRun and a ReasoningPod without spec.shadow in that ring"
            ),
        ),
    }))
}

/// Returns the bundles of a promotion that a shadow runs on.
pub(super) fn bundles(lent: &LentPromotion) -> (Chosen<SignedModel>, Chosen<SignedPromotion>) {
    (
        Chosen::Recorded { name: lent.oms_bundle.clone(), signed: lent.oms },
        Chosen::Recorded { name: lent.bundle.clone(), signed: lent.promotion },
    )
}

/// Whether the status records a promotion into another ring than that of the object, and a shadow ran on it, but the spec asks for
/// servers that answer clients.
pub(super) fn is_returned(observed: &ObservedReasoningPod, ring: Ring) -> bool {
    let object = &observed.object;
    let was_shadow = object.status.as_ref().is_some_and(|status| status.shadow.is_some());
    object.spec.shadow.is_none() && was_shadow && ring != object.spec.rollout_ring
}

/// Returns the sentence about the promotion that a shadow runs on.
pub(super) fn told(view: &View<'_>) -> Option<String> {
    let (ring, Chosen::Recorded { name, .. }) = (view.evidence.lent?, &view.evidence.promotion) else { return None };
    Some(format!(
        "a shadow is not promoted: it runs on the promotion of the same model into {ring}, in ConfigMap {name}"
    ))
}
