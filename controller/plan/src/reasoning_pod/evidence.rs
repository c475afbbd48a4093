//! The evidence for a rollout, and everything that blocks it. Pure.

use std::collections::{BTreeMap, BTreeSet};

use codex_crds::{ConditionType, ModelStatus, Reason, TrainingRun, child};
use codex_provenance::{Sha256, Untimely, attestation::AttestationKind, promotion::PromotionKey};
use codex_verdict::{
    Ring,
    policy::{Demand, demanded_attestations},
};
use jiff::Timestamp;
use kube::ResourceExt;

use super::{
    bundles::{bundle_names, manifest, promotion_key},
    lent,
    observed::{ObservedReasoningPod, SignedModel, SignedPromotion, Signer},
    policy::Policies,
    shadow,
    target::Target,
    trust::{Chosen, Distrust, Trust},
};
use crate::{
    conditions::{find, is_true},
    device::NeedsGpu,
    evaluation::proof::{Proof, Unproven, proof},
    metadata::Component,
    seal::StatusSeal,
    text::truncate_chars,
    work::finished_model,
};

/// The most characters of a sentence in `status.blockedBy`.
const MAX_SENTENCE: usize = 1_000;

/// The subject of a block: the condition that is false because of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum About {
    Training,
    Ring,
    Gates,
    Policy,
    Revocation,
    Signing,
    Servers,
    Shadow,
}

/// One thing that blocks a rollout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) about: About,
    pub(crate) reason: Reason,
    /// Whether the block can resolve without a change by the user.
    pub(crate) waits: bool,
    pub(crate) sentence: String,
}

/// What is known about the run, the evaluations and the bundles of an object.
pub(crate) struct Evidence<'a> {
    /// The run and its finished model.
    pub(crate) trained: Option<(&'a TrainingRun, &'a ModelStatus)>,
    /// The key of the promotion, once every evaluation proves the model.
    pub(crate) key: Option<PromotionKey>,
    /// What the evaluations prove, by name.
    pub(crate) proofs: BTreeMap<&'a str, Proof>,
    /// The signature of the model that counts.
    pub(crate) oms: Chosen<SignedModel>,
    /// The signed promotion that counts.
    pub(crate) promotion: Chosen<SignedPromotion>,
    /// What policies and sign-offs say.
    pub(crate) policies: Policies,
    pub(crate) blocks: Vec<Block>,
    /// The ring of the promotion that a shadow runs on; `None` if the object has one of its own, or is to be promoted.
    pub(crate) lent: Option<Ring>,
    /// What keeps the object from being promoted, but not a shadow from running.
    waived: Vec<Block>,
}

impl Block {
    pub(super) fn waits(about: About, reason: Reason, sentence: impl Into<String>) -> Self {
        Self { about, reason, waits: true, sentence: sentence.into() }
    }

    pub(super) fn stalls(about: About, reason: Reason, sentence: impl Into<String>) -> Self {
        Self { about, reason, waits: false, sentence: sentence.into() }
    }
}

impl<'a> Evidence<'a> {
    pub(crate) fn of(observed: &'a ObservedReasoningPod, now: Timestamp) -> Self {
        let mut blocks = Vec::new();
        let trained = trained(observed, &mut blocks);
        blocks.extend(ring(observed));
        blocks.extend(shadow::block(observed));
        let spec = &observed.object.spec;
        let needs = NeedsGpu::of_server(spec.serving.device);
        let image = observed.settings.image(Component::Server, &spec.pod, needs);
        blocks.extend(image.err().map(|why| Block::stalls(About::Servers, Reason::InvalidConfiguration, why)));
        let proofs = proofs(observed, trained.map(|(_, model)| model), &mut blocks);
        let key = key(observed, trained.map(|(_, model)| model), &proofs);
        let trust = Trust::of(observed, now);
        let lent = lent::choose(observed, trained.map(|(_, model)| model.digest), trust);
        let (oms, promotion) = match &lent {
            None => chosen(observed, trust, key.as_ref()),
            Some(Ok(lent)) => lent::bundles(lent),
            Some(Err(_)) => (Chosen::Unknown, Chosen::Unknown),
        };
        // What is signed already was signed with keys that are trusted.
        let signs = lent.is_none() && (oms.signer().is_none() || promotion.signer().is_none());
        let signer = observed.signer.fingerprint().filter(|_| signs);
        let policies = Policies::of(observed, trained.map(|(_, model)| model), &proofs, trust, signer, now);
        blocks.extend(of_policies(&policies));
        let mut waived = Vec::new();
        if let Some(lent) = &lent {
            // The promotion that it runs on was given for passed evaluations, and nothing is signed for a shadow.
            (waived, blocks) =
                blocks.into_iter().partition(|block| matches!(block.about, About::Gates | About::Policy));
            blocks.extend(lent.as_ref().err().cloned());
            blocks.extend(no_signer(observed));
        } else {
            blocks.extend(cannot_sign(observed, trust));
        }
        blocks.extend([unusable(&oms), unusable(&promotion)].into_iter().flatten());
        if !blocks.is_empty() {
            blocks.extend(lost_servers(observed, trust));
        }
        if let Some(waits) = unnamed(observed) {
            (blocks, waived) = (vec![waits], Vec::new());
        }
        for block in blocks.iter_mut().chain(&mut waived) {
            block.sentence = truncate_chars(&block.sentence, MAX_SENTENCE);
        }
        let lent = lent.and_then(Result::ok).map(|lent| lent.ring);
        Self { trained, key, proofs, oms, promotion, policies, blocks, lent, waived }
    }

    /// Returns the attestations that servers verify: those that policies demand of the ring. A shadow runs on a promotion of which none
    /// are demanded.
    pub(crate) fn attestations(&self, observed: &ObservedReasoningPod) -> BTreeSet<AttestationKind> {
        match self.lent {
            None => demanded_attestations(&observed.policies, observed.object.spec.rollout_ring),
            Some(_) => BTreeSet::new(),
        }
    }

    /// Returns everything that the conditions say is missing, also if it does not keep a shadow from running.
    pub(crate) fn missing(&self) -> impl Iterator<Item = &Block> {
        self.blocks.iter().chain(&self.waived)
    }
}

/// Returns a block if nothing is to be served before the first cycle is promoted.
fn unnamed(observed: &ObservedReasoningPod) -> Option<Block> {
    let spec = &observed.object.spec;
    let unnamed = spec.redeploy.is_some() && spec.training_run.is_empty();
    unnamed.then(|| {
        let sentence =
            "nothing is served until a cycle of spec.redeploy is promoted: status.redeploy shows its progress";
        Block::waits(About::Training, Reason::WaitingForTraining, sentence)
    })
}

/// Returns a block because the object `name` does not exist. It may still be created, unless servers were rolled out for it: then
/// a user has removed it.
fn missing(observed: &ObservedReasoningPod, about: About, kind: &str, name: &str) -> Block {
    let served = (observed.deployment.is_some() || observed.tampered) && !observed.object.spec.dry_run;
    if !served {
        let sentence = format!("{kind} {name} does not exist in this namespace: create it");
        return Block::waits(about, Reason::NotFound, sentence);
    }
    let again = match about {
        About::Training => "create it again and evaluate the model that it trains",
        _ => "create it again, or remove it from spec.evaluations",
    };
    let sentence = format!(
        "{kind} {name} was removed while its model is served, and nothing can be rolled out without it: {again}, or delete this \
         ReasoningPod to stop the servers"
    );
    Block::stalls(about, Reason::NotFound, sentence)
}

/// Returns the run and its finished model.
fn trained<'a>(
    observed: &'a ObservedReasoningPod,
    blocks: &mut Vec<Block>,
) -> Option<(&'a TrainingRun, &'a ModelStatus)> {
    let name = &observed.object.spec.training_run;
    let Some(run) = &observed.run else {
        blocks.push(missing(observed, About::Training, "TrainingRun", name));
        return None;
    };
    // Nothing is signed for a run that is being deleted: its bundles are deleted with it.
    if run.metadata.deletion_timestamp.is_some() {
        let sentence = format!("TrainingRun {name} is being deleted");
        blocks.push(Block::waits(About::Training, Reason::NotFound, sentence));
    }
    let conditions = run.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    let Some(model) = finished_model(run) else {
        blocks.push(if is_true(conditions, ConditionType::Stalled) {
            let why = find(conditions, ConditionType::Stalled).map_or("", |stalled| &stalled.message);
            let sentence = format!("TrainingRun {name} has no model and is stalled: {why}");
            Block::stalls(About::Training, Reason::WaitingForTraining, sentence)
        } else {
            let sentence = format!("TrainingRun {name} has no model yet");
            Block::waits(About::Training, Reason::WaitingForTraining, sentence)
        });
        return None;
    };
    let sentence = match manifest(model) {
        Ok(manifest) if manifest.digest() == model.digest => return Some((run, model)),
        Ok(manifest) => {
            let found = manifest.digest();
            format!(
                "the files in the status of TrainingRun {name} have the digest {found}, but its model is {}",
                model.digest
            )
        }
        Err(why) => format!("the files in the status of TrainingRun {name} are not a valid manifest: {why}"),
    };
    blocks.push(Block::stalls(About::Training, Reason::ModelMismatch, sentence));
    None
}

fn ring(observed: &ObservedReasoningPod) -> Option<Block> {
    let wanted = observed.object.spec.rollout_ring;
    let run = observed.run.as_ref().filter(|run| run.spec.rollout_ring != wanted)?;
    let sentence = format!(
        "the rings differ: spec.rolloutRing of TrainingRun {} is {}, and that of this ReasoningPod is {wanted}: set both to \
         the same ring",
        run.name_any(),
        run.spec.rollout_ring
    );
    Some(Block::stalls(About::Ring, Reason::RingsDiffer, sentence))
}

/// Returns what the evaluations prove, by name.
fn proofs<'a>(
    observed: &'a ObservedReasoningPod,
    model: Option<&ModelStatus>,
    blocks: &mut Vec<Block>,
) -> BTreeMap<&'a str, Proof> {
    let spec = &observed.object.spec;
    let uid = observed.run.as_ref().and_then(ResourceExt::uid);
    let mut proofs = BTreeMap::new();
    for name in &spec.evaluations {
        let Some(evaluation) = observed.evaluations.get(name) else {
            blocks.push(missing(observed, About::Gates, "Evaluation", name));
            continue;
        };
        if evaluation.metadata.deletion_timestamp.is_some() {
            let sentence = format!("Evaluation {name} is being deleted");
            blocks.push(Block::waits(About::Gates, Reason::NotFound, sentence));
            continue;
        }
        match proof(evaluation, &spec.training_run, uid.as_deref(), model.map(|model| model.digest)) {
            Ok(proof) => {
                proofs.insert(name.as_str(), proof);
            }
            Err(Unproven { reason, waits, sentence }) => {
                blocks.push(Block { about: About::Gates, reason, waits, sentence });
            }
        }
    }
    // The API server refuses an empty list; an object that has one nevertheless proves nothing.
    if spec.evaluations.is_empty() {
        let sentence = "spec.evaluations is empty: name at least one Evaluation";
        blocks.push(Block::stalls(About::Gates, Reason::WaitingForVerdict, sentence));
    }
    proofs
}

/// Returns what policies block.
fn of_policies(policies: &Policies) -> impl Iterator<Item = Block> {
    let denied = policies.denied.iter().map(|breach| (About::Revocation, Reason::Revoked, breach));
    let unmet = policies.unmet.iter().map(|breach| match breach.demand {
        Demand::Time => (About::Policy, Reason::WaitingForTime, breach),
        _ => (About::Policy, Reason::PolicyUnmet, breach),
    });
    denied.chain(unmet).map(|(about, reason, breach)| Block {
        about,
        reason,
        waits: breach.due.is_some(),
        sentence: breach.sentence.clone(),
    })
}

/// Returns the key of the promotion, if every evaluation proves the model.
fn key(
    observed: &ObservedReasoningPod,
    model: Option<&ModelStatus>,
    proofs: &BTreeMap<&str, Proof>,
) -> Option<PromotionKey> {
    let evaluations = &observed.object.spec.evaluations;
    let digests: Option<Vec<_>> =
        evaluations.iter().map(|name| proofs.get(name.as_str()).map(|proof| (proof.report, proof.gates))).collect();
    let digests = digests.filter(|digests| !digests.is_empty())?;
    Some(promotion_key(&observed.object, model?, digests, &observed.policies))
}

/// Returns the bundles that count.
fn chosen(
    observed: &ObservedReasoningPod,
    trust: Trust<'_>,
    key: Option<&PromotionKey>,
) -> (Chosen<SignedModel>, Chosen<SignedPromotion>) {
    let names = bundle_names(&observed.object, observed.run.as_ref(), &observed.evaluations, &observed.policies);
    let status = observed.object.status.as_ref().filter(|_| observed.seal == StatusSeal::Valid);
    let manifest = status.and_then(|status| status.manifest.as_ref()).map(|manifest| manifest.signer.as_str());
    let promotion = status.and_then(|status| status.promotion.as_ref());
    let promoter = promotion.and_then(|promotion| promotion.signer.as_deref()).or(manifest);
    let oms = trust.choose(names.oms, &observed.oms, &observed.oms_again, manifest);
    let promotion = trust.choose(names.promotion, &observed.promotion, &observed.promotion_again, promoter);
    let promotion = match (promotion, key) {
        (Chosen::Recorded { name, signed }, Some(key)) if signed.key != key.digest() => {
            let why = "it promotes with other evidence".to_owned();
            Chosen::Unusable { name, reason: Reason::VerificationFailed, why }
        }
        (promotion, _) => promotion,
    };
    (oms, promotion)
}

/// Returns a block if nothing can be signed. A key that a policy denies blocks as every other denial does.
fn cannot_sign(observed: &ObservedReasoningPod, trust: Trust<'_>) -> Option<Block> {
    let key: Sha256 = match &observed.signer {
        Signer::Unavailable { .. } => return no_signer(observed),
        Signer::Available { fingerprint } => *fingerprint,
    };
    let why = trust.check(key).err().filter(|why| *why != Distrust::Revoked)?;
    let sentence = match trust.identity(key) {
        Some(identity) => format!(
            "nothing can be signed: the identity {} {why}: let the list of trusted keys and the policies name it, or sign as another \
             one",
            identity.subject
        ),
        None => format!(
            "nothing can be signed: the signing key {} {why}: put a key that is listed and valid into the Secret \
             codex-signing-key",
            key.short()
        ),
    };
    Some(match why {
        Distrust::Untimely(Untimely::NotYet(_)) => Block::waits(About::Signing, Reason::SignerUnavailable, sentence),
        _ => Block::stalls(About::Signing, Reason::SignerUnavailable, sentence),
    })
}

/// Returns a block if there is no usable key.
fn no_signer(observed: &ObservedReasoningPod) -> Option<Block> {
    let Signer::Unavailable { reason, .. } = &observed.signer else { return None };
    Some(Block::stalls(About::Signing, Reason::SignerUnavailable, format!("nothing can be signed: {reason}")))
}

/// Returns a block if a bundle that exists cannot be used.
fn unusable<T>(chosen: &Chosen<T>) -> Option<Block> {
    let Chosen::Unusable { name, reason, why } = chosen else { return None };
    let sentence = format!(
        "the bundle in ConfigMap {name} cannot be used: {why}; the controller does not replace it: restore the key, \
         or delete the ConfigMap to have it signed again"
    );
    Some(Block::stalls(About::Signing, *reason, sentence))
}

/// Servers stay while something blocks the rollout. Returns a block if their pod template was modified and the status does
/// not record what to restore.
fn lost_servers(observed: &ObservedReasoningPod, trust: Trust<'_>) -> Option<Block> {
    if !observed.tampered || Target::recorded(observed, trust).is_some() || observed.object.spec.dry_run {
        return None;
    }
    let sentence = format!(
        "the pod template of the Deployment {} was modified, and the status does not record how to restore it with the \
         pinned key: delete the Deployment; servers start again once nothing else blocks the rollout",
        child::server(&observed.object.name_any())
    );
    Some(Block::stalls(About::Servers, Reason::NameTaken, sentence))
}
