//! What the status says about blocks, policies and sign-offs. Pure.

use codex_crds::{ConditionType, Reason, SignOffStatus};
use codex_verdict::policy::Breach;

use super::{canary, evidence::About, stage::Stage, view::View};
use crate::{
    conditions::{Conditions, Truth, find},
    text::truncate_chars,
};

/// The most sentences in `status.blockedBy`.
const MAX_BLOCKS: usize = 64;
/// The most SignOffs in a status.
const MAX_SIGN_OFFS: usize = 64;
/// The most characters of a sentence.
const MAX_SENTENCE: usize = 1_000;

/// Whether everything that blocks the rollout can resolve without a change by the user.
pub(super) fn waits(view: &View<'_>) -> bool {
    view.evidence.blocks.iter().all(|block| block.waits)
}

/// Returns everything that blocks the rollout, one sentence each.
pub(super) fn blocked_by(view: &View<'_>, stage: &Stage, canary: &canary::Next) -> Vec<String> {
    let mut sentences: Vec<String> = match stage {
        Stage::Canary(_) if canary.rolled_back().is_some() => {
            let told = canary.told().map(|(_, message)| truncate_chars(&message, MAX_SENTENCE));
            return told.into_iter().collect();
        }
        Stage::Refused(_, _, why) => return vec![truncate_chars(why, MAX_SENTENCE)],
        Stage::Revoked => sentences(&view.evidence.policies.revoked),
        _ => Vec::new(),
    };
    for block in &view.evidence.blocks {
        if !sentences.contains(&block.sentence) {
            sentences.push(block.sentence.clone());
        }
    }
    let more = sentences.len().saturating_sub(MAX_BLOCKS);
    if more > 0 {
        sentences.truncate(MAX_BLOCKS - 1);
        sentences.push(format!("and {} more", more + 1));
    }
    sentences
}

fn sentences(breaches: &[Breach]) -> Vec<String> {
    breaches.iter().map(|breach| truncate_chars(&breach.sentence, MAX_SENTENCE)).collect()
}

/// Returns the SignOffs that concern the object.
pub(super) fn sign_offs(view: &View<'_>) -> Vec<SignOffStatus> {
    view.evidence.policies.sign_offs.iter().take(MAX_SIGN_OFFS).cloned().collect()
}

/// Sets the conditions `PolicyMet`, `SignedOff` and `Revoked`.
pub(super) fn conditions(view: &View<'_>, conditions: &mut Conditions<'_>) {
    let ring = view.spec().rollout_ring;
    let policies = &view.evidence.policies;
    let unmet = view.evidence.missing().filter(|block| block.about == About::Policy);
    let unmet: Vec<_> = unmet.collect();
    let names: Vec<_> = policies.held.iter().map(|held| format!("{} {}", held.kind, held.name)).collect();
    let (holds, reason, message) = match unmet.iter().min_by_key(|block| block.waits) {
        Some(first) => {
            let all: Vec<_> = unmet.iter().map(|block| block.sentence.as_str()).collect();
            (Truth::False, first.reason, all.join("; "))
        }
        None if names.is_empty() => {
            let said = format!(
                "no promotion policy has a rule for {ring}, so the gates of spec.evaluations alone decide: \
                 ClusterPromotionPolicy and PromotionPolicy set the least that a ring demands"
            );
            (Truth::Unknown, Reason::NoPolicy, said)
        }
        None if !policies.judged => {
            let said =
                format!("the rules for {ring} are judged once every evaluation has passed: {}", names.join(", "));
            (Truth::Unknown, Reason::WaitingForVerdict, said)
        }
        None => {
            let said = format!("the rules for {ring} hold: {}{}", names.join(", "), policies.applied());
            (Truth::True, Reason::PoliciesMet, said)
        }
    };
    conditions.set(ConditionType::PolicyMet, holds, reason, &message);
    signed_off(view, conditions);

    let mut denied = sentences(&policies.revoked);
    denied.extend(
        sentences(&policies.denied).into_iter().filter(|said| !policies.revoked.iter().any(|it| it.sentence == *said)),
    );
    if !denied.is_empty() {
        // Servers of another model than the denied one stay. Metrics tell by the reason whether something denied is served.
        let stay = policies.revoked.is_empty() && view.serves();
        let reason = if stay { Reason::Blocked } else { Reason::Revoked };
        conditions.set(ConditionType::Revoked, true, reason, &denied.join("; "));
    } else if find(&view.status.conditions, ConditionType::Revoked).is_some() {
        let message = "no promotion policy denies the model, its base, its data or its key any more";
        conditions.set(ConditionType::Revoked, false, Reason::RevocationLifted, message);
    }
}

fn signed_off(view: &View<'_>, conditions: &mut Conditions<'_>) {
    let all = &view.evidence.policies.sign_offs;
    if all.is_empty() {
        return;
    }
    let said = |sign_off: &SignOffStatus| {
        let SignOffStatus { name, by, authenticated, void, .. } = sign_off;
        match void {
            Some(void) => format!("SignOff {name} by {by} is void: {void}"),
            None if *authenticated => format!("{by} has signed (SignOff {name})"),
            None => format!("another account has signed for {by} (SignOff {name}, not authenticated)"),
        }
    };
    let counts = all.iter().any(|sign_off| sign_off.counts);
    let reason = if counts { Reason::SignedOff } else { Reason::SignOffVoid };
    let message = all.iter().map(said).collect::<Vec<_>>().join("; ");
    conditions.set(ConditionType::SignedOff, counts, reason, &message);
}
