//! What ReasoningPods observe of each other: a shadow of the one that it shadows, and that one of its shadows. From the caches.

use std::collections::{BTreeMap, BTreeSet};

use codex_crds::{ReasoningPod, TrainingRun};
use codex_plan::reasoning_pod::{Compared, Incumbent, LentPromotion, Mirrored, SignedModel, SignedPromotion};
use codex_provenance::{Identity, manifest::Manifest};
use codex_reports::State;
use codex_signing::verify::{verify_promotion, verify_signature};
use codex_verdict::Ring;
use kube::ResourceExt;

use super::{cache::Name, kind::Observe, stores::get};
use crate::{context::Context, ownership::controller, signer::BUNDLE};

/// Returns the ReasoningPod that a shadow shadows.
pub(super) fn incumbent(context: &Context, pod: &ReasoningPod) -> Option<Incumbent> {
    let of = &pod.spec.shadow.as_ref()?.of;
    let namespace = pod.namespace().unwrap_or_default();
    let found = get(&context.stores.reasoning_pods, &namespace, of)?;
    let uid = found.uid().unwrap_or_default();
    // A forged label adds a uid, for which there is no report.
    let labelled = context.stores.pods.naming(&namespace, &Name::ReasoningPod(found.name_any()));
    let servers = labelled.iter().filter(|pod| controller(&***pod).is_some_and(|owner| owner.kind == "ReplicaSet"));
    let pods: BTreeSet<String> = servers.filter_map(|pod| pod.uid()).collect();
    let key = |state: &State| match state {
        State::Serving(state) => state.valid_copies_key().map(str::to_owned),
        State::Training(_) | State::Evaluation(_) => None,
    };
    let keys: BTreeMap<String, String> = context
        .inbox
        .of(&uid)
        .into_iter()
        .filter_map(|received| Some((received.report.pod_uid.clone(), key(&received.report.state)?)))
        .collect();
    let tls = found.spec.serving.tls.is_some();
    let shadow_of = found.spec.shadow.as_ref().map(|shadow| shadow.of.clone());
    let believed = std::sync::Arc::unwrap_or_clone(found).believed(context);
    let model = believed.status.and_then(|status| Some(status.verified?.digest));
    Some(Incumbent { model, tls, shadow_of, pods, keys })
}

/// Returns the shadows of a ReasoningPod. A shadow has none: it answers no requests.
pub(super) fn shadows(context: &Context, pod: &ReasoningPod) -> Vec<Mirrored> {
    if pod.spec.shadow.is_some() {
        return Vec::new();
    }
    let namespace = pod.namespace().unwrap_or_default();
    let all = context.stores.reasoning_pods.naming(&namespace, &Name::ReasoningPod(pod.name_any()));
    let all = all.into_iter().filter(|other| !other.spec.dry_run && other.metadata.deletion_timestamp.is_none());
    let mirrored = |other: &ReasoningPod| {
        let sample_percent = other.spec.shadow.as_ref()?.sample_percent;
        Some(Mirrored { name: other.name_any(), uid: other.uid()?, sample_percent })
    };
    let mut shadows: Vec<_> = all.filter_map(|other| mirrored(&other)).collect();
    shadows.sort();
    shadows
}

/// Returns what the other shadows of a namespace that serve the model of a run in the ring of `pod` have compared, by name.
pub(super) fn compared(context: &Context, pod: &ReasoningPod, run: Option<&TrainingRun>) -> Vec<Compared> {
    let Some(model) = run.and_then(|run| Some(run.status.as_ref()?.model.as_ref()?.digest)) else { return Vec::new() };
    let others = context.stores.reasoning_pods.all().filter(|other| {
        other.metadata.namespace == pod.metadata.namespace
            && other.metadata.uid != pod.metadata.uid
            && other.metadata.deletion_timestamp.is_none()
            && other.spec.shadow.is_some()
            && other.spec.rollout_ring == pod.spec.rollout_ring
    });
    let known = |other: &ReasoningPod| {
        let status = other.clone().believed(context).status?.shadow.filter(|status| status.digest == Some(model))?;
        Some(Compared { name: other.name_any(), uid: other.uid()?, status })
    };
    let mut found: Vec<_> = others.filter_map(|other| known(&other)).collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

/// Returns the rings whose promotions a shadow may run on: the one before its own, and its own. `None` if it needs one of its own, as
/// without `spec.shadow` and in the first ring.
pub(super) fn rings(pod: &ReasoningPod) -> Option<[Ring; 2]> {
    pod.spec.shadow.as_ref()?;
    Some([pod.spec.rollout_ring.before()?, pod.spec.rollout_ring])
}

/// Returns the promotions of a model into these rings that are recorded in a namespace, each with the signature of the model that it names.
/// They are verified as servers verify them, with the listed keys. Identities that signed them are added to `met`.
pub(super) fn lent(
    context: &Context,
    namespace: &str,
    manifest: &Manifest,
    rings: &[Ring],
    met: &mut Vec<Identity>,
) -> Vec<LentPromotion> {
    let trusted = context.signer.trusted();
    if trusted.is_empty() {
        return Vec::new();
    }
    let model = manifest.digest();
    let config_maps = context.stores.config_maps.naming(namespace, &Name::Model(model.to_string()));
    let bundle = |index: usize| config_maps[index].data.as_ref()?.get(BUNDLE).map(String::as_bytes);
    let signatures: Vec<_> = (0..config_maps.len())
        .filter_map(|index| Some((index, verify_signature(manifest, bundle(index)?, &trusted, Some(model)).ok()?)))
        .collect();
    let mut found = Vec::new();
    let promotions = (0..config_maps.len()).filter(|index| signatures.iter().all(|(signed, _)| signed != index));
    for (index, bundle) in promotions.filter_map(|index| Some((index, bundle(index)?))) {
        let pairs = signatures.iter().flat_map(|signature| rings.iter().map(move |ring| (signature, *ring)));
        for ((signature, signed), ring) in pairs {
            let Ok(promoted) = verify_promotion(signed, bundle, &trusted, ring.name(), None) else { continue };
            let Some(since) = config_maps[index].metadata.creation_timestamp.as_ref() else { continue };
            // A copy from another namespace was promoted under the policies there.
            if promoted.promotion.reasons.namespace != namespace {
                continue;
            }
            met.extend([signed.identity.clone(), promoted.identity.clone()].into_iter().flatten());
            found.push(LentPromotion {
                ring,
                since: since.0,
                bundle: config_maps[index].name_any(),
                promotion: SignedPromotion {
                    digest: promoted.digest,
                    key: promoted.promotion.key().digest(),
                    signer: promoted.signer,
                },
                oms_bundle: config_maps[*signature].name_any(),
                oms: SignedModel { payload: signed.payload, signer: signed.signer },
            });
        }
    }
    found.sort_by(|a, b| (a.ring, a.since, &a.bundle, &a.oms_bundle).cmp(&(b.ring, b.since, &b.bundle, &b.oms_bundle)));
    found
}
