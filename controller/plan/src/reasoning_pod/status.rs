//! The status of a ReasoningPod. Transitions are written at once, server counts at most every ten seconds. Pure.

use std::{collections::BTreeSet, time::Duration};

use codex_crds::{
    ConditionType, DeviceStatus, ManifestStatus, PromotionStatus, Reason, ReasoningPodPhase, ReasoningPodStatus,
    ShadowStatus, VerifiedStatus,
};
use codex_provenance::{EvidenceStrength, Sha256};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::{
    autoscaling,
    canary::{self, Next},
    children::{PORT, scheme, selector_text},
    evidence::{About, Block},
    guarded::{self, blocked_by, waits},
    idle, lent,
    observed::Signer,
    redeploy::Turn,
    route,
    servers::Servers,
    shadow,
    stage::Stage,
    target::Target,
    trust::Chosen,
    view::View,
};
use crate::{
    conditions::{Conditions, Truth, phase_since},
    seal::{self, StatusSeal},
    text::truncate_chars,
    throttle,
};

/// The most characters of `status.evidenceReason`.
const MAX_EVIDENCE_REASON: usize = 1_000;
/// The most foreign pods that a sentence names.
const MAX_FOREIGN: usize = 5;

/// Returns the status, and when to plan again.
pub(crate) fn status(view: &View<'_>, stage: &Stage) -> (ReasoningPodStatus, Option<Duration>) {
    let observed = view.observed;
    let recorded = observed.object.status.as_ref().filter(|_| observed.seal == StatusSeal::Valid);
    if let (Stage::Signing(_), Some(present), None) = (stage, recorded, view.obstruction) {
        // The bundle exists as soon as the signer is asked for it, and the next plan says so: one write instead of two.
        return (present.clone(), None);
    }
    let wanted = view.wanted();
    let serves = view.serves() || rolls(stage);
    let canary = Next::of(view, stage);
    let turn = Turn::of(view, stage, &canary);
    let compared = shadow::status(view, rolls(stage));
    let fits = view.servers.as_ref().is_none_or(|servers| shadow::fits(view, servers.live));
    // Servers that are about to stop get no requests any more.
    let counted = view.servers.as_ref().filter(|_| serves && !idle::sleeps(view));
    let counts = counted.map(|servers| servers.counts(wanted)).unwrap_or_default();
    let Signed { run_uid, manifest, promotion } = signed(view, stage, serves);
    let evidence = evidence(view);
    let verified = verified(view, stage, serves);
    let phase = phase(view, stage, &canary);
    let since = (view.status.phase, view.status.last_phase_transition_time.as_ref());
    let next = ReasoningPodStatus {
        observed_generation: observed.object.metadata.generation,
        selector: Some(selector_text(view)),
        phase: Some(phase),
        last_phase_transition_time: phase_since(since, phase, view.now),
        blocked_by: blocked_by(view, stage, &canary),
        training_run_uid: run_uid,
        device: verified.as_ref().and_then(|verified| device(view, verified)),
        verified,
        model: manifest.as_ref().map(|manifest| manifest.short.clone()).or_else(|| {
            let (_, model) = view.evidence.trained?;
            Some(model.short.clone())
        }),
        manifest,
        promotion,
        replicas: Some(counts.all),
        ready_replicas: Some(counts.ready),
        ready: (!view.spec().dry_run).then(|| format!("{}/{}", counts.ready, wanted.replicas)),
        // A shadow has no URL for clients, and gets one only when servers for clients have replaced it.
        url: (serves && view.spec().shadow.is_none() && fits)
            .then(|| format!("{}://{}.{}.svc:{PORT}", scheme(view), view.owner.name, view.owner.namespace)),
        evidence: evidence.as_ref().map(|evidence| match evidence {
            Ok(()) => EvidenceStrength::Strong,
            Err(_) => EvidenceStrength::Weak,
        }),
        evidence_reason: evidence.and_then(Result::err).map(|why| truncate_chars(&why, MAX_EVIDENCE_REASON)),
        report_digest: view.evidence.policies.report,
        sign_offs: guarded::sign_offs(view),
        rollout: canary.rollout.clone(),
        shadow: compared.clone(),
        history: canary.history.clone(),
        current: turn.as_ref().and_then(|turn| turn.current.clone()),
        redeploy: turn.as_ref().map(|turn| turn.status.clone()),
        seal: view.status.seal.clone(),
        conditions: conditions(view, stage, &canary, compared.as_ref(), turn.as_ref()),
    };
    let written = observed.status_written_at;
    let late = view.servers.iter().filter(|_| serves).chain(&view.canary);
    let again = late.filter_map(|servers| servers.pod_due(view.now)).min();
    let keys = view.trust().due(&keys(view)).map(|due| throttle::until(view.now, due));
    let scaling = autoscaling::due(view).filter(|_| serves);
    let judged = view.candidate.as_ref().and_then(|(_, evidence)| evidence.policies.due(view.now));
    let tried = view.trial.as_ref().and_then(|trial| trial.evidence.policies.due(view.now));
    let cycle = turn.as_ref().and_then(|turn| turn.due);
    let route = route::due(view).filter(|_| serves);
    let promoted = view.evidence.policies.due(view.now);
    let idle = idle::due(view).filter(|_| serves);
    let again = [again, promoted, keys, scaling, canary.due(view), judged, tried, cycle, route, idle];
    let again = again.into_iter().flatten().min();
    throttle::hold(recorded, next, written, view.now, again, |next, present| ReasoningPodStatus {
        replicas: present.replicas,
        ready_replicas: present.ready_replicas,
        ready: present.ready.clone(),
        rollout: canary::with_numbers_of(next.rollout.as_ref(), present.rollout.as_ref()),
        shadow: shadow::with_numbers_of(next.shadow.as_ref(), present.shadow.as_ref()),
        conditions: shadow::with_message_of(&next.conditions, &present.conditions),
        ..next.clone()
    })
}

/// Whether servers of a target exist or are about to.
fn rolls(stage: &Stage) -> bool {
    matches!(stage, Stage::Canary(_) | Stage::RollingOut(_) | Stage::Refused(..) | Stage::Serving(_))
}

/// Returns whether the evidence of every evaluation is strong, or why it is weak; `None` until every evaluation proves the model.
fn evidence(view: &View<'_>) -> Option<Result<(), String>> {
    view.evidence.key.as_ref()?;
    let mut proofs = view.evidence.proofs.iter();
    let weak = proofs.find(|(_, proof)| proof.evidence == EvidenceStrength::Weak);
    Some(weak.map_or(Ok(()), |(name, proof)| {
        Err(format!("Evaluation {name}: {}", proof.weakness.as_deref().unwrap_or("its evidence is weak")))
    }))
}

/// Returns a sentence about the pods that match the selector of the Service and that the controller did not create.
fn foreign(view: &View<'_>) -> Option<String> {
    let names = &view.observed.foreign_pods;
    let service = &view.owner.name;
    let selects = view.observed.unprotected.is_none();
    let shown: Vec<_> = names.iter().take(MAX_FOREIGN).map(String::as_str).collect();
    let more = names.len().saturating_sub(MAX_FOREIGN);
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    (!shown.is_empty()).then(|| {
        let shown = shown.join(", ");
        if selects {
            format!(
                "the Service {service} selects pods that this controller did not create, and they receive requests: \
                 {shown}{more}: delete them or remove their labels"
            )
        } else {
            format!(
                "pods that this controller did not create bear the labels of servers: {shown}{more}; they receive no requests, \
                 because the Service {service} has no selector: delete them or remove their labels"
            )
        }
    })
}

/// Returns the sentence of [`foreign`] if these pods receive requests.
fn receiving(view: &View<'_>) -> Option<String> {
    foreign(view).filter(|_| view.observed.unprotected.is_none())
}

fn phase(view: &View<'_>, stage: &Stage, canary: &Next) -> ReasoningPodPhase {
    match stage {
        _ if view.obstruction.is_some_and(|obstruction| !obstruction.waits) => ReasoningPodPhase::Blocked,
        _ if receiving(view).is_some() => ReasoningPodPhase::Blocked,
        Stage::DryRun => ReasoningPodPhase::DryRun,
        // Running servers stay: something only blocks the next rollout.
        Stage::Blocked if waits(view) && !view.serves() => ReasoningPodPhase::Pending,
        Stage::Blocked | Stage::Revoked | Stage::Refused(..) => ReasoningPodPhase::Blocked,
        Stage::Canary(_) if canary.rolled_back().is_some() => ReasoningPodPhase::Blocked,
        Stage::Signing(_) | Stage::Canary(_) | Stage::RollingOut(_) => ReasoningPodPhase::RollingOut,
        Stage::Serving(_) if idle::sleeps(view) => ReasoningPodPhase::Idle,
        Stage::Serving(_) => ReasoningPodPhase::Serving,
    }
}

/// The parts of a status that name bundles. They are set only after the bundles exist.
#[derive(Default)]
struct Signed {
    run_uid: Option<String>,
    manifest: Option<ManifestStatus>,
    promotion: Option<PromotionStatus>,
}

fn signed(view: &View<'_>, stage: &Stage, serves: bool) -> Signed {
    if let Stage::RollingOut(target) | Stage::Refused(target, ..) | Stage::Serving(target) = stage {
        return of_target(target);
    }
    if serves || matches!(stage, Stage::Canary(_)) {
        // Servers that stay serve what was recorded when they were rolled out.
        let held = &view.status;
        return Signed {
            run_uid: held.training_run_uid.clone(),
            manifest: held.manifest.clone(),
            promotion: held.promotion.clone(),
        };
    }
    if let Stage::Signing(_) = stage {
        // Both bundles are named once both exist: one write instead of two.
        return Signed::default();
    }
    let model = view.evidence.trained.map(|(_, model)| model);
    let manifest = match (&view.evidence.oms, &view.observed.signer, model) {
        (Chosen::Recorded { name, signed }, Signer::Available { .. }, Some(model)) => Some(ManifestStatus {
            digest: model.digest,
            short: model.digest.short(),
            signer: signed.signer.short(),
            bundle: name.clone(),
            location: Some(model.location.clone()),
        }),
        _ => None,
    };
    let blocked = view.evidence.blocks.iter().any(|block| block.about == About::Signing);
    let promotion = match (&view.evidence.promotion, &manifest) {
        (Chosen::Recorded { name, signed }, Some(manifest))
            if (view.evidence.key.is_some() || view.evidence.lent.is_some()) && !blocked =>
        {
            Some(PromotionStatus {
                ring: view.evidence.lent.unwrap_or(view.spec().rollout_ring),
                digest: signed.digest,
                bundle: name.clone(),
                signer: Some(signed.signer.short()).filter(|signer| *signer != manifest.signer),
                attestations: view.evidence.attestations(view.observed).into_iter().collect(),
            })
        }
        _ => None,
    };
    Signed { run_uid: None, manifest, promotion }
}

fn of_target(target: &Target) -> Signed {
    Signed {
        run_uid: Some(target.run_uid.clone()),
        manifest: Some(ManifestStatus {
            digest: target.model,
            short: target.model.short(),
            signer: target.oms_signer.short(),
            bundle: target.oms_bundle.clone(),
            location: Some(format!("{}/{}", target.claim, target.path)),
        }),
        promotion: Some(PromotionStatus {
            ring: target.ring,
            digest: target.promotion,
            bundle: target.promotion_bundle.clone(),
            signer: (target.promotion_signer != target.oms_signer).then(|| target.promotion_signer.short()),
            attestations: target.attestations.iter().copied().collect(),
        }),
    }
}

/// Returns what a server of the current or the former rollout has verified.
fn verified(view: &View<'_>, stage: &Stage, serves: bool) -> Option<VerifiedStatus> {
    // Servers that stop verify nothing any more.
    let servers = view.servers.as_ref().filter(|_| serves && !idle::sleeps(view))?;
    let (model, promotion) = servers.made_for()?;
    match stage {
        Stage::RollingOut(target) | Stage::Refused(target, ..) | Stage::Serving(target)
            if (target.model, target.promotion) != (model, promotion) =>
        {
            None
        }
        _ => servers.verified(model, promotion, view.status.verified.as_ref()),
    }
}

/// Returns the device of the server that `verified` names: as it reported it, else as it is recorded while it is the same server.
fn device(view: &View<'_>, verified: &VerifiedStatus) -> Option<DeviceStatus> {
    let same = |held: &VerifiedStatus| held.by == verified.by;
    let held = view.status.device.as_ref().filter(|_| view.status.verified.as_ref().is_some_and(same));
    let reported = view.servers.as_ref().and_then(|servers| servers.device(&verified.by));
    reported.or_else(|| held.cloned())
}

fn conditions(
    view: &View<'_>,
    stage: &Stage,
    canary: &Next,
    compared: Option<&ShadowStatus>,
    turn: Option<&Turn>,
) -> Vec<Condition> {
    use ConditionType::{
        EndpointsWritten, EvidenceStrong, ForeignPods, GatesPassed, KeyExpires, Ready, Reconciling, RingMatched,
        Signed, Stalled, Trained, Verified,
    };
    let generation = view.observed.object.metadata.generation;
    let mut conditions = Conditions::new(&view.status.conditions, generation, view.now);
    let about = |about: About| worst(view.evidence.missing().filter(|block| block.about == about));
    match about(About::Training) {
        Some(block) => conditions.set(Trained, false, block.reason, &block.sentence),
        None => conditions.set(Trained, true, Reason::Succeeded, "the run has a model"),
    }
    match (about(About::Ring), &view.observed.run) {
        (Some(block), _) => conditions.set(RingMatched, false, block.reason, &block.sentence),
        (None, Some(_)) => {
            let message = format!("run and pod are both in {}", view.spec().rollout_ring);
            conditions.set(RingMatched, true, Reason::RingsEqual, &message);
        }
        (None, None) => {
            conditions.set(RingMatched, Truth::Unknown, Reason::NotFound, "the TrainingRun does not exist");
        }
    }
    match about(About::Gates) {
        Some(block) => conditions.set(GatesPassed, false, block.reason, &block.sentence),
        None if view.evidence.key.is_some() => {
            let message = "every evaluation passed for exactly this model";
            conditions.set(GatesPassed, true, Reason::AllGatesPassed, message);
        }
        None => conditions.set(GatesPassed, false, Reason::WaitingForVerdict, "there is no model to evaluate"),
    }
    guarded::conditions(view, &mut conditions);
    match evidence(view) {
        Some(Ok(())) => {
            conditions.set(
                EvidenceStrong,
                true,
                Reason::PoliciesIntact,
                "admission policies protected every evaluation",
            );
        }
        Some(Err(why)) => conditions.set(EvidenceStrong, false, Reason::PoliciesNotIntact, &why),
        None => {}
    }
    let (holds, reason, message) = signing(view, stage, about(About::Signing));
    conditions.set(Signed, holds, reason, &message);
    let (holds, reason, message) = verification(view, stage);
    conditions.set(Verified, holds, reason, &message);

    if view.serves() || rolls(stage) {
        autoscaling::condition(view, &mut conditions);
        idle::condition(view, &mut conditions);
        route::condition(view, &mut conditions);
    }
    canary.condition(&mut conditions);
    shadow::condition(view, stage, compared, &mut conditions);
    if let Some(message) = expiring(view) {
        conditions.set(KeyExpires, true, Reason::KeyExpires, &message);
    }

    let (reason, message) = ready(view, stage, canary);
    if let Some(foreign) = foreign(view) {
        conditions.set(ForeignPods, true, Reason::ForeignPods, &foreign);
    }
    if let Some(why) = view.observed.unprotected.as_ref().filter(|_| view.serves() || rolls(stage)) {
        let message = format!(
            "the Service {} has no selector, and the controller lists only servers that verified the model in its \
             EndpointSlices: {why}",
            view.owner.name
        );
        conditions.set(EndpointsWritten, true, Reason::PoliciesNotIntact, &message);
    }
    let foreign = receiving(view);
    let is_ready = matches!(stage, Stage::DryRun | Stage::Serving(_)) && foreign.is_none();
    conditions.set(Ready, is_ready, reason, &message);
    match stage {
        _ if foreign.is_some() => conditions.set(Stalled, true, reason, &message),
        Stage::DryRun | Stage::Serving(_) => {}
        Stage::Blocked if waits(view) => conditions.set(Reconciling, true, reason, &message),
        Stage::Canary(_) if canary.rolled_back().is_some() => conditions.set(Stalled, true, reason, &message),
        Stage::Signing(_) | Stage::Canary(_) | Stage::RollingOut(_) => {
            conditions.set(Reconciling, true, reason, &message);
        }
        Stage::Blocked | Stage::Revoked | Stage::Refused(..) => conditions.set(Stalled, true, reason, &message),
    }
    if let Some(turn) = turn {
        turn.condition(view, &mut conditions);
    }
    seal::condition(&mut conditions, &view.observed.seal, true);
    if let Some(obstruction) = view.obstruction {
        conditions.obstruct(obstruction, false);
    }
    conditions.finish()
}

/// Returns the block that a condition names: one that needs attention before one that waits.
fn worst<'a>(blocks: impl Iterator<Item = &'a Block>) -> Option<&'a Block> {
    // `min_by_key` returns the first of equal elements, and false is less than true.
    blocks.min_by_key(|block| block.waits)
}

fn signing(view: &View<'_>, stage: &Stage, block: Option<&Block>) -> (bool, Reason, String) {
    if let Some(block) = block {
        return (false, block.reason, block.sentence.clone());
    }
    let recorded = |oms: &str, promotion: &str| {
        let by = identities(view);
        let lent = lent::told(view).map(|told| format!("; {told}")).unwrap_or_default();
        (true, Reason::BundlesRecorded, format!("the bundles are in ConfigMaps {oms} and {promotion}{by}{lent}"))
    };
    if let (Some(obstruction), Stage::Signing(_)) = (view.obstruction.filter(|obstruction| obstruction.waits), stage)
        && !view.serves()
    {
        return (false, obstruction.reason, obstruction.message.clone());
    }
    let stays = matches!(stage, Stage::Blocked | Stage::Revoked | Stage::Signing(_)) && view.serves();
    if let Some(why) = distrusted(view).filter(|_| stays) {
        return (false, Reason::KeyNotTrusted, why);
    }
    match stage {
        Stage::Canary(target) | Stage::RollingOut(target) | Stage::Refused(target, ..) | Stage::Serving(target) => {
            recorded(&target.oms_bundle, &target.promotion_bundle)
        }
        // Servers that stay were signed, although something blocks the next rollout.
        Stage::Blocked | Stage::Revoked | Stage::Signing(_)
            if view.serves() && !view.observed.missing_bundles.is_empty() =>
        {
            let missing: Vec<_> = view.observed.missing_bundles.iter().map(String::as_str).collect();
            let message = format!(
                "the ConfigMaps that the servers were started with no longer exist: {}; running servers stay, and none can \
                 start again",
                missing.join(", ")
            );
            (false, Reason::NotFound, message)
        }
        Stage::Blocked | Stage::Revoked | Stage::Signing(_) if view.serves() => {
            match (&view.status.manifest, &view.status.promotion) {
                (Some(manifest), Some(promotion)) => recorded(&manifest.bundle, &promotion.bundle),
                _ => (false, Reason::Blocked, "the status does not record the bundles".to_owned()),
            }
        }
        Stage::DryRun => (false, Reason::DryRun, "a dry run signs nothing".to_owned()),
        Stage::Blocked if view.spec().dry_run => (false, Reason::DryRun, "a dry run signs nothing".to_owned()),
        Stage::Blocked | Stage::Revoked => {
            (false, Reason::Blocked, "bundles are signed once nothing else blocks the rollout".to_owned())
        }
        Stage::Signing(_) => (false, Reason::RollingOut, "the bundles are being signed".to_owned()),
    }
}

/// Names the identities that signed the bundles; empty if keys did.
fn identities(view: &View<'_>) -> String {
    let signers = [view.evidence.oms.signer(), view.evidence.promotion.signer()].into_iter().flatten();
    let named: BTreeSet<String> =
        signers.filter_map(|signer| Some(format!(", signed by {}", view.trust().identity(signer)?))).collect();
    named.into_iter().collect()
}

/// Returns the keys on which the status depends: the one that signs, and those that signed what counts.
fn keys(view: &View<'_>) -> Vec<Sha256> {
    let evidence = &view.evidence;
    let mut keys: Vec<_> = [view.observed.signer.fingerprint(), evidence.oms.signer(), evidence.promotion.signer()]
        .into_iter()
        .flatten()
        .collect();
    keys.sort_unstable();
    keys.dedup();
    keys
}

/// Returns why what servers serve no longer counts as signed, with what becomes of it.
pub(super) fn distrusted(view: &View<'_>) -> Option<String> {
    let (manifest, promotion) = (view.status.manifest.as_ref()?, view.status.promotion.as_ref());
    let promoter = promotion.and_then(|promotion| promotion.signer.as_deref());
    let mut signers = std::iter::once(manifest.signer.as_str()).chain(promoter);
    signers.find_map(|signer| {
        let why = view.trust().distrusts(signer)?;
        let found = view.trust().find(signer);
        let name = found.map_or_else(|| format!("the key {signer}"), |key| view.trust().name(key));
        Some(format!(
            "{name} signed what is served, and it {why}: it is signed again, and the servers are replaced, once nothing else blocks \
             the rollout"
        ))
    })
}

/// Returns a sentence about the keys that expire, and the trusted root that ends, within thirty days.
fn expiring(view: &View<'_>) -> Option<String> {
    let signing = view.observed.signer.fingerprint();
    let sentence = |key: Sha256| {
        let (end, key_name, name) = (view.trust().expires(key)?, key.short(), view.trust().name(key));
        Some(if Some(key) == signing && view.trust().identity(key).is_some() {
            format!(
                "{name} may sign until {end}, and then nothing can be signed: list it with a later notAfter in the ConfigMap \
                 codex-trusted-keys"
            )
        } else if Some(key) == signing {
            format!(
                "the signing key {key_name} expires at {end}, and then nothing can be signed: list another key, and put it into \
                 the Secret codex-signing-key"
            )
        } else {
            format!(
                "{name} signed what is served, and expires at {end}: then it is signed again, and the servers are replaced"
            )
        })
    };
    let root = signing.and_then(|signer| view.trust().root_ends(signer)).map(|end| {
        let verb = if end <= view.now { "ended" } else { "ends" };
        format!(
            "the trusted root in the ConfigMap codex-sigstore {verb} at {end}, and from then on nothing can be signed: add the next \
             certificate or timestamp authority to it"
        )
    });
    let all: Vec<_> = keys(view).into_iter().filter_map(sentence).chain(root).collect();
    (!all.is_empty()).then(|| all.join("; "))
}

fn verification(view: &View<'_>, stage: &Stage) -> (Truth, Reason, String) {
    if let Stage::Refused(_, reason, why) = stage {
        return (Truth::False, *reason, why.clone());
    }
    let serves = !view.spec().dry_run;
    match verified(view, stage, serves) {
        Some(verified) => {
            let message =
                format!("a server verified that it holds exactly the bytes of the model {}", verified.digest.short());
            (Truth::True, Reason::BytesVerified, message)
        }
        None if view.spec().dry_run => (Truth::Unknown, Reason::DryRun, "a dry run starts no server".to_owned()),
        None if idle::sleeps(view) => {
            (Truth::Unknown, Reason::Idle, "no server runs, so none verifies the model".to_owned())
        }
        None if view.wanted().replicas == 0 && matches!(stage, Stage::Serving(_)) => {
            let message = "spec.replicas is 0, so no server verifies the model";
            (Truth::Unknown, Reason::Serving, message.to_owned())
        }
        None => match stage {
            Stage::Blocked if view.observed.tampered => {
                let message = "the pod template was modified, and no restored server has reported a verified model";
                (Truth::Unknown, Reason::Blocked, message.to_owned())
            }
            Stage::Revoked => (Truth::Unknown, Reason::Revoked, "the servers are scaled to zero".to_owned()),
            Stage::Blocked if !view.serves() => (Truth::Unknown, Reason::Blocked, "no server is running".to_owned()),
            _ => (Truth::Unknown, Reason::RollingOut, "no server has reported a verified model".to_owned()),
        },
    }
}

/// Returns the reason and the message of the stage. The message must not change with the number of servers.
fn ready(view: &View<'_>, stage: &Stage, canary: &Next) -> (Reason, String) {
    if let Some(foreign) = receiving(view) {
        return (Reason::ForeignPods, foreign);
    }
    match stage {
        Stage::DryRun => {
            let message = "nothing blocks the rollout: set spec.dryRun to false to serve";
            (Reason::DryRun, message.to_owned())
        }
        Stage::Blocked => {
            let blocks = &view.evidence.blocks;
            let reason = worst(blocks.iter()).map_or(Reason::Blocked, |block| block.reason);
            let stays = if view.serves() { "; running servers stay" } else { "" };
            let all = blocks.iter().map(|block| block.sentence.as_str()).collect::<Vec<_>>().join("; ");
            (reason, format!("{all}{stays}"))
        }
        Stage::Revoked => {
            let all = blocked_by(view, stage, canary).join("; ");
            (Reason::Revoked, format!("{all}; the servers are scaled to zero"))
        }
        Stage::Signing(_) => (Reason::RollingOut, "the model and its promotion are being signed".to_owned()),
        Stage::Canary(_) => {
            canary.told().unwrap_or_else(|| (Reason::RollingOut, "the canary is about to start".to_owned()))
        }
        Stage::RollingOut(_) if idle::sleeps(view) => (Reason::RollingOut, idle::obstacle(view)),
        Stage::RollingOut(_) => {
            let obstacle = view.servers.as_ref().and_then(Servers::obstacle);
            (Reason::RollingOut, obstacle.unwrap_or_else(|| "the servers are starting".to_owned()))
        }
        Stage::Refused(_, reason, why) => (*reason, why.clone()),
        Stage::Serving(target) if idle::sleeps(view) => {
            let model = target.model.short();
            (Reason::Idle, format!("no server runs; a request starts one, which serves the model {model}"))
        }
        Stage::Serving(target) if view.wanted().replicas == 0 => {
            (Reason::Serving, format!("spec.replicas is 0; the model {} is ready to be served", target.model.short()))
        }
        Stage::Serving(target) => {
            let model = target.model.short();
            let told = lent::told(view).map_or_else(
                || format!("the model {model} is served in {}", target.ring),
                |lent| format!("the model {model} is compared; {lent}"),
            );
            (Reason::Serving, told)
        }
    }
}
