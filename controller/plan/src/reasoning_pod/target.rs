//! What servers are rolled out for. Pure.

use codex_provenance::{ModelDigest, PromotionDigest, Sha256};
use codex_verdict::Ring;

use super::observed::ObservedReasoningPod;
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
    pub(crate) fingerprint: Sha256,
    pub(crate) oms_bundle: String,
    pub(crate) promotion: PromotionDigest,
    pub(crate) promotion_bundle: String,
}

impl Target {
    /// Returns the target that the status records, to restore servers whose pod template was modified or whose Deployment was deleted.
    /// `None` if another key has been pinned since: servers would not accept its bundles. A forged status cannot start an unsigned model, because servers
    /// verify both bundles against the key, the ring and the digests.
    pub(crate) fn recorded(observed: &ObservedReasoningPod) -> Option<Self> {
        let status = observed.object.status.as_ref().filter(|_| observed.seal == StatusSeal::Valid)?;
        let (manifest, promotion) = (status.manifest.as_ref()?, status.promotion.as_ref()?);
        let fingerprint = observed.signer.fingerprint()?;
        if manifest.signer != fingerprint.short() {
            return None;
        }
        let (claim, path) = manifest.location.as_ref()?.split_once('/')?;
        Some(Self {
            run_uid: status.training_run_uid.clone()?,
            claim: claim.to_owned(),
            path: path.to_owned(),
            model: manifest.digest,
            ring: promotion.ring,
            fingerprint,
            oms_bundle: manifest.bundle.clone(),
            promotion: promotion.digest,
            promotion_bundle: promotion.bundle.clone(),
        })
    }
}
