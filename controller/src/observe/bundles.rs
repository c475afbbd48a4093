//! The bundles of a model, verified with the pinned key. They are read from the caches.

use std::collections::BTreeMap;

use codex_crds::{Evaluation, ReasoningPod, TrainingRun};
use codex_plan::reasoning_pod::{Bundle, SignedModel, SignedPromotion, Signer, bundle_names, manifest};
use codex_signing::{
    bundle::BundleError,
    verify::{Signed, VerifyError, verify_promotion, verify_signature},
};
use codex_verdict::policy::Policy;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt;

use super::stores::get;
use crate::{context::Context, error::chain, ownership::is_controlled_by, signer::BUNDLE};

/// The signer and the bundles of a ReasoningPod.
pub(super) struct Found {
    /// Whether the signer is available.
    pub signer: Signer,
    /// The signed manifest of the model.
    pub oms: Bundle<SignedModel>,
    /// The signed promotion of the model into the ring.
    pub promotion: Bundle<SignedPromotion>,
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
    let namespace = pod.namespace().unwrap_or_default();
    let fetch = |name: Option<String>| get(&context.stores.config_maps, &namespace, &name?);
    let mut found = Found { signer, oms: Bundle::Absent, promotion: Bundle::Absent };
    let model = run.and_then(|run| Some((run, run.status.as_ref()?.model.as_ref()?)));
    let (Some(oms), Some((run, model))) = (fetch(names.oms), model) else { return found };
    let owner = run.uid().unwrap_or_default();
    let read = |config_map: &ConfigMap| -> Result<Vec<u8>, String> {
        if !is_controlled_by(config_map, &owner) {
            return Err(format!(
                "the ConfigMap {} does not belong to the TrainingRun {}",
                config_map.name_any(),
                run.name_any()
            ));
        }
        let bundle = config_map.data.as_ref().and_then(|data| data.get(BUNDLE));
        bundle
            .map(|text| text.clone().into_bytes())
            .ok_or_else(|| format!("the ConfigMap {} has no {BUNDLE:?}", config_map.name_any()))
    };
    let Some(key) = context.signer.public() else {
        found.oms = Bundle::Unchecked;
        return found;
    };
    let checked = manifest(model).map_err(|why| Bundle::Invalid(chain(&why))).and_then(|manifest| {
        let bytes = read(&oms).map_err(Bundle::Invalid)?;
        verify_signature(&manifest, &bytes, key, Some(model.digest)).map_err(|why| refused(&why))
    });
    let signed: Signed = match checked {
        Ok(signed) => signed,
        Err(why) => {
            found.oms = why;
            return found;
        }
    };
    found.oms = Bundle::Valid(SignedModel { payload: signed.payload });
    if let Some(promotion) = fetch(names.promotion) {
        let checked = read(&promotion).map_err(Bundle::Invalid).and_then(|bytes| {
            verify_promotion(&signed, &bytes, key, pod.spec.rollout_ring.name(), None).map_err(|why| refused(&why))
        });
        found.promotion = match checked {
            Ok(promoted) => {
                Bundle::Valid(SignedPromotion { digest: promoted.digest, key: promoted.promotion.key().digest() })
            }
            Err(why) => why,
        };
    }
    found
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
