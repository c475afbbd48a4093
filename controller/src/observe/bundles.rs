//! The bundles of a model, verified with the trusted keys. They are read from the caches.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use codex_crds::{Evaluation, ReasoningPod, TrainingRun, bundle};
use codex_plan::{
    reasoning_pod::{
        Bundle, LentPromotion, SignedModel, SignedPromotion, Signer, TrustedKey, TrustedRoot, bundle_names, manifest,
    },
    training_run::statement,
};
use codex_provenance::{Identity, Sha256};
use codex_signing::{
    bundle::BundleError,
    verify::{Signed, Trusted, VerifyError, verify_demanded, verify_promotion, verify_reproduction, verify_signature},
};
use codex_verdict::policy::{Policy, demanded_attestations};
use kube::ResourceExt;

use super::{shadows, stores::get};
use crate::{context::Context, error::chain, ownership::is_controlled_by, signer::BUNDLE};

/// The signer and the bundles of a ReasoningPod.
pub(super) struct Found {
    /// Whether the signer is available.
    pub signer: Signer,
    /// The list of trusted keys and identities.
    pub trusted: Vec<TrustedKey>,
    /// The trusted root that verifies identities.
    pub trusted_root: Option<Arc<TrustedRoot>>,
    /// The signed manifest of the model.
    pub oms: Bundle<SignedModel>,
    /// The same, signed again, by the key in the name.
    pub oms_again: BTreeMap<Sha256, Bundle<SignedModel>>,
    /// The signed promotion of the model into the ring.
    pub promotion: Bundle<SignedPromotion>,
    /// The same, signed again, by the key in the name.
    pub promotion_again: BTreeMap<Sha256, Bundle<SignedPromotion>>,
    /// The promotions that a shadow may run on.
    pub lent: Vec<LentPromotion>,
}

/// Returns whether the signer is available.
fn signer(context: &Context) -> Signer {
    let fingerprint = context.signer.fingerprint();
    match (context.signer.available(), fingerprint) {
        (Ok(()), Some(fingerprint)) => Signer::Available { fingerprint },
        (Ok(()), None) => Signer::Unavailable { fingerprint, reason: "no key is pinned".to_owned() },
        (Err(reason), fingerprint) => Signer::Unavailable { fingerprint, reason },
    }
}

/// Returns whether the signer is available, and the bundle with the verdict of a run that reproduces another one: that of its sealed
/// status.
pub(super) fn verdict(context: &Context, run: &TrainingRun) -> (Signer, Bundle<Sha256>) {
    let verdict = statement(run).map(|statement| {
        let namespace = run.namespace().unwrap_or_default();
        let here = Here { context, namespace, run, trusted: context.signer.trusted(), known: BTreeSet::new() };
        here.one(
            &bundle::reproduction(&statement.digest().short()),
            &mut |bundle: &[u8], _: &Entries, trusted: &Trusted| {
                let found = verify_reproduction(statement.model, bundle, trusted).map_err(|why| refused(&why))?;
                if found.reproduction == statement {
                    Ok(found.signer)
                } else {
                    Err(Bundle::Invalid("the bundle states something else than the status records".to_owned()))
                }
            },
        )
    });
    (signer(context), verdict.unwrap_or_default())
}

/// Finds the bundles of a ReasoningPod and verifies them.
pub(super) fn find(
    context: &Context,
    pod: &ReasoningPod,
    run: Option<&TrainingRun>,
    evaluations: &BTreeMap<String, Evaluation>,
    policies: &[Policy],
) -> Found {
    let (signer, fingerprint) = (signer(context), context.signer.fingerprint());
    let names = bundle_names(pod, run, evaluations, policies);
    let mut found = Found {
        signer,
        trusted: context.signer.listed(&[]),
        trusted_root: context.signer.trusted_root(),
        oms: Bundle::Absent,
        oms_again: BTreeMap::new(),
        promotion: Bundle::Absent,
        promotion_again: BTreeMap::new(),
        lent: Vec::new(),
    };
    let Some((run, model)) = run.and_then(|run| Some((run, run.status.as_ref()?.model.as_ref()?))) else {
        return found;
    };
    let namespace = pod.namespace().unwrap_or_default();
    let known = found.trusted.iter().map(|it| it.fingerprint).chain(fingerprint).collect();
    let here = Here { context, namespace, run, trusted: context.signer.trusted(), known };
    let mut met: Vec<Identity> = Vec::new();
    let manifest = manifest(model).map_err(|why| chain(&why));
    // The payload is that of the manifest, whichever key signed it.
    let mut model_signed: Option<Signed> = None;
    (found.oms, found.oms_again) = here.all(names.oms, |bundle, _, keys| {
        let manifest = manifest.as_ref().map_err(|why| Bundle::Invalid(why.clone()))?;
        let signed = verify_signature(manifest, bundle, keys, Some(model.digest)).map_err(|why| refused(&why))?;
        let stated = SignedModel { payload: signed.payload, signer: signed.signer };
        met.extend(signed.identity.clone());
        model_signed.get_or_insert(signed);
        Ok(stated)
    });
    if let (Ok(manifest), Some(rings)) = (&manifest, shadows::rings(pod)) {
        found.lent = shadows::lent(context, &here.namespace, manifest, &rings, &mut met);
    }
    let Some(signed) = model_signed else {
        if !met.is_empty() {
            found.trusted = context.signer.listed(&met);
        }
        return found;
    };
    let mut promoters: Vec<Identity> = Vec::new();
    let ring = pod.spec.rollout_ring;
    let demanded = demanded_attestations(policies, ring);
    (found.promotion, found.promotion_again) = here.all(names.promotion, |bundle, entries, keys| {
        let promoted = verify_promotion(&signed, bundle, keys, ring.name(), None).map_err(|why| refused(&why))?;
        let attestations = demanded.iter().filter_map(|kind| entries.get(kind.entry())).map(String::as_bytes);
        verify_demanded(&promoted, attestations, &demanded, keys).map_err(|why| refused(&why))?;
        let key = promoted.promotion.key().digest();
        promoters.extend(promoted.identity.clone());
        Ok(SignedPromotion { digest: promoted.digest, key, signer: promoted.signer })
    });
    met.extend(promoters);
    if !met.is_empty() {
        found.trusted = context.signer.listed(&met);
    }
    found
}

/// The entries of a ConfigMap.
type Entries = BTreeMap<String, String>;

/// Where the bundles of a run are, and what verifies them.
struct Here<'a> {
    context: &'a Context,
    namespace: String,
    run: &'a TrainingRun,
    trusted: Trusted,
    /// The fingerprints of those who may have signed again.
    known: BTreeSet<Sha256>,
}

impl Here<'_> {
    /// Returns the bundle in the ConfigMap `name`, and those in which a listed key signed its statement again.
    fn all<T>(
        &self,
        name: Option<String>,
        mut verify: impl FnMut(&[u8], &Entries, &Trusted) -> Result<T, Bundle<T>>,
    ) -> (Bundle<T>, BTreeMap<Sha256, Bundle<T>>) {
        let Some(name) = name else { return (Bundle::Absent, BTreeMap::new()) };
        let first = self.one(&name, &mut verify);
        let mut again = BTreeMap::new();
        for key in self.known.iter().copied() {
            match self.one(&bundle::again(&name, &key.short()), &mut verify) {
                Bundle::Absent => {}
                found => drop(again.insert(key, found)),
            }
        }
        (first, again)
    }

    fn one<T>(
        &self,
        name: &str,
        verify: &mut impl FnMut(&[u8], &Entries, &Trusted) -> Result<T, Bundle<T>>,
    ) -> Bundle<T> {
        let Some(config_map) = get(&self.context.stores.config_maps, &self.namespace, name) else {
            return Bundle::Absent;
        };
        if self.trusted.is_empty() {
            return Bundle::Unchecked;
        }
        if !is_controlled_by(&*config_map, &self.run.uid().unwrap_or_default()) {
            let run = self.run.name_any();
            return Bundle::Invalid(format!("the ConfigMap {name} does not belong to the TrainingRun {run}"));
        }
        match config_map.data.as_ref().and_then(|data| Some((data, data.get(BUNDLE)?))) {
            Some((entries, bundle)) => {
                verify(bundle.as_bytes(), entries, &self.trusted).map_or_else(|why| why, Bundle::Valid)
            }
            None => Bundle::Invalid(format!("the ConfigMap {name} has no {BUNDLE:?}")),
        }
    }
}

/// Classifies a bundle that failed verification.
fn refused<T>(why: &VerifyError) -> Bundle<T> {
    let sentence = why.to_string();
    let (VerifyError::Oms(bundle) | VerifyError::Promotion(bundle) | VerifyError::Reproduction(bundle)) = why else {
        return Bundle::Invalid(sentence);
    };
    match bundle {
        // Somebody else signed: another key, another identity, or the one where the other is trusted.
        BundleError::AnotherKey { .. }
        | BundleError::Identity { .. }
        | BundleError::Issuer { .. }
        | BundleError::NoneOf { .. }
        | BundleError::NoKey
        | BundleError::NoCertificate => Bundle::Foreign(sentence),
        _ => Bundle::Invalid(sentence),
    }
}
