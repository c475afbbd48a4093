//! What servers are rolled out for. Pure.

use std::collections::BTreeSet;

use codex_provenance::{ModelDigest, PromotionDigest, Sha256, attestation::AttestationKind};
use codex_verdict::Ring;

use super::{lent, observed::ObservedReasoningPod, trust::Trust};
use crate::seal::StatusSeal;

/// What servers are rolled out for: a model that every check passed, with both of its bundles.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Target {
    pub(crate) run_uid: String,
    pub(crate) claim: String,
    /// The model's directory on that claim.
    pub(crate) path: String,
    pub(crate) model: ModelDigest,
    pub(crate) ring: Ring,
    /// Fingerprint of the key that signed the OMS bundle.
    pub(crate) oms_signer: Sha256,
    pub(crate) oms_bundle: String,
    pub(crate) promotion: PromotionDigest,
    /// Fingerprint of the key that signed the promotion bundle.
    pub(crate) promotion_signer: Sha256,
    pub(crate) promotion_bundle: String,
    /// The attestations beside the promotion that servers verify as well.
    pub(crate) attestations: BTreeSet<AttestationKind>,
    /// Digest of the trusted root that verifies them, if an identity signed one of them.
    pub(crate) root: Option<Sha256>,
}

impl Target {
    /// Returns the fingerprints of the keys that signed the bundles, and the digest of the trusted root.
    pub(crate) fn keys(&self) -> BTreeSet<Sha256> {
        [self.oms_signer, self.promotion_signer].into_iter().chain(self.root).collect()
    }

    /// Returns the target that the status records, to restore servers whose pod template was modified or whose Deployment was deleted.
    /// `None` if a key that signed it is no longer listed: its fingerprint is not known. A forged status cannot start an unsigned
    /// model, because servers verify both bundles against the keys, the ring and the digests.
    pub(crate) fn recorded(observed: &ObservedReasoningPod, trust: Trust<'_>) -> Option<Self> {
        let status = observed.object.status.as_ref().filter(|_| observed.seal == StatusSeal::Valid)?;
        let (manifest, promotion) = (status.manifest.as_ref()?, status.promotion.as_ref()?);
        // What a shadow ran on does not promote servers that answer clients.
        if lent::is_returned(observed, promotion.ring) {
            return None;
        }
        let oms_signer = trust.find(&manifest.signer)?;
        let promotion_signer = trust.find(promotion.signer.as_ref().unwrap_or(&manifest.signer))?;
        let (claim, path) = manifest.location.as_ref()?.split_once('/')?;
        Some(Self {
            run_uid: status.training_run_uid.clone()?,
            claim: claim.to_owned(),
            path: path.to_owned(),
            model: manifest.digest,
            ring: promotion.ring,
            oms_signer,
            promotion_signer,
            oms_bundle: manifest.bundle.clone(),
            promotion: promotion.digest,
            promotion_bundle: promotion.bundle.clone(),
            attestations: promotion.attestations.iter().copied().collect(),
            root: trust.root([oms_signer, promotion_signer]),
        })
    }
}
