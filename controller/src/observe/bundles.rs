//! The bundles of a model, verified with the trusted keys. They are read from the caches.

use std::collections::BTreeMap;

use codex_crds::{Evaluation, ReasoningPod, TrainingRun, bundle};
use codex_plan::reasoning_pod::{Bundle, SignedModel, SignedPromotion, Signer, TrustedKey, bundle_names, manifest};
use codex_provenance::Sha256;
use codex_signing::{
    bundle::BundleError,
    key::PublicKey,
    verify::{Signed, VerifyError, verify_promotion, verify_signature},
};
use codex_verdict::policy::Policy;
use kube::ResourceExt;

use super::stores::get;
use crate::{context::Context, error::chain, ownership::is_controlled_by, signer::BUNDLE};

/// The signer and the bundles of a ReasoningPod.
pub(super) struct Found {
    /// Whether the signer is available.
    pub signer: Signer,
    /// The list of trusted keys.
    pub trusted: Vec<TrustedKey>,
    /// The signed manifest of the model.
    pub oms: Bundle<SignedModel>,
    /// The same, signed again, by the key in the name.
    pub oms_again: BTreeMap<Sha256, Bundle<SignedModel>>,
    /// The signed promotion of the model into the ring.
    pub promotion: Bundle<SignedPromotion>,
    /// The same, signed again, by the key in the name.
    pub promotion_again: BTreeMap<Sha256, Bundle<SignedPromotion>>,
}

/// Finds the bundles of a ReasoningPod and verifies them.
pub(super) fn find(
    context: &Context,
    pod: &ReasoningPod,
    run: Option<&TrainingRun>,
    evaluations: &BTreeMap<String, Evaluation>,
    policies: &[Policy],
) -> Found {
    let fingerprint = context.signer.fingerprint();
    let signer = match (context.signer.available(), fingerprint) {
        (Ok(()), Some(fingerprint)) => Signer::Available { fingerprint },
        (Ok(()), None) => Signer::Unavailable { fingerprint, reason: "no key is pinned".to_owned() },
        (Err(reason), fingerprint) => Signer::Unavailable { fingerprint, reason },
    };
    let names = bundle_names(pod, run, evaluations, policies);
    let mut found = Found {
        signer,
        trusted: context.signer.listed(),
        oms: Bundle::Absent,
        oms_again: BTreeMap::new(),
        promotion: Bundle::Absent,
        promotion_again: BTreeMap::new(),
    };
    let Some((run, model)) = run.and_then(|run| Some((run, run.status.as_ref()?.model.as_ref()?))) else {
        return found;
    };
    let namespace = pod.namespace().unwrap_or_default();
    let here = Here { context, namespace, run, keys: context.signer.keys() };
    let manifest = manifest(model).map_err(|why| chain(&why));
    // The payload is that of the manifest, whichever key signed it.
    let mut model_signed: Option<Signed> = None;
    (found.oms, found.oms_again) = here.all(names.oms, |bundle, keys| {
        let manifest = manifest.as_ref().map_err(|why| Bundle::Invalid(why.clone()))?;
        let signed = verify_signature(manifest, bundle, keys, Some(model.digest)).map_err(|why| refused(&why))?;
        let stated = SignedModel { payload: signed.payload, signer: signed.signer };
        model_signed.get_or_insert(signed);
        Ok(stated)
    });
    let Some(signed) = model_signed else { return found };
    let ring = pod.spec.rollout_ring.name();
    (found.promotion, found.promotion_again) = here.all(names.promotion, |bundle, keys| {
        let promoted = verify_promotion(&signed, bundle, keys, ring, None).map_err(|why| refused(&why))?;
        let key = promoted.promotion.key().digest();
        Ok(SignedPromotion { digest: promoted.digest, key, signer: promoted.signer })
    });
    found
}

/// Where the bundles of a run are, and what verifies them.
struct Here<'a> {
    context: &'a Context,
    namespace: String,
    run: &'a TrainingRun,
    keys: Vec<PublicKey>,
}

impl Here<'_> {
    /// Returns the bundle in the ConfigMap `name`, and those in which a listed key signed its statement again.
    fn all<T>(
        &self,
        name: Option<String>,
        mut verify: impl FnMut(&[u8], &[PublicKey]) -> Result<T, Bundle<T>>,
    ) -> (Bundle<T>, BTreeMap<Sha256, Bundle<T>>) {
        let Some(name) = name else { return (Bundle::Absent, BTreeMap::new()) };
        let first = self.one(&name, &mut verify);
        let mut again = BTreeMap::new();
        for key in self.keys.iter().map(PublicKey::fingerprint) {
            match self.one(&bundle::again(&name, &key.short()), &mut verify) {
                Bundle::Absent => {}
                found => drop(again.insert(key, found)),
            }
        }
        (first, again)
    }

    fn one<T>(&self, name: &str, verify: &mut impl FnMut(&[u8], &[PublicKey]) -> Result<T, Bundle<T>>) -> Bundle<T> {
        let Some(config_map) = get(&self.context.stores.config_maps, &self.namespace, name) else {
            return Bundle::Absent;
        };
        if self.keys.is_empty() {
            return Bundle::Unchecked;
        }
        if !is_controlled_by(&*config_map, &self.run.uid().unwrap_or_default()) {
            let run = self.run.name_any();
            return Bundle::Invalid(format!("the ConfigMap {name} does not belong to the TrainingRun {run}"));
        }
        match config_map.data.as_ref().and_then(|data| data.get(BUNDLE)) {
            Some(bundle) => verify(bundle.as_bytes(), &self.keys).map_or_else(|why| why, Bundle::Valid),
            None => Bundle::Invalid(format!("the ConfigMap {name} has no {BUNDLE:?}")),
        }
    }
}

/// Classifies a bundle that failed verification.
fn refused<T>(why: &VerifyError) -> Bundle<T> {
    let sentence = why.to_string();
    match why {
        VerifyError::Oms(BundleError::AnotherKey { .. }) | VerifyError::Promotion(BundleError::AnotherKey { .. }) => {
            Bundle::Foreign(sentence)
        }
        _ => Bundle::Invalid(sentence),
    }
}
