//! How far a model and its promotion are signed. Pure.

use codex_crds::bundle;
use codex_provenance::OmsPayloadDigest;
use kube::ResourceExt;

use super::{
    bundles::promotion_name,
    evidence::Evidence,
    observed::{Bundle, ObservedReasoningPod, Signer},
    target::Target,
};
use crate::pod_template::join;

/// How far the model and its promotion are signed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Signing {
    /// The model is not signed yet.
    Model,
    /// The promotion is not signed yet.
    Promotion(OmsPayloadDigest),
    /// Both bundles exist.
    Recorded(Box<Target>),
}

impl Signing {
    /// Returns `None` while something blocks the rollout.
    pub(crate) fn of(observed: &ObservedReasoningPod, evidence: &Evidence<'_>) -> Option<Self> {
        if !evidence.blocks.is_empty() {
            return None;
        }
        let (run, model) = evidence.trained?;
        let key = evidence.key.as_ref()?;
        let Signer::Available { fingerprint } = observed.signer else { return None };
        let run_uid = run.uid()?;
        let signed = match &observed.oms {
            Bundle::Absent => return Some(Self::Model),
            Bundle::Valid(signed) => signed,
            Bundle::Unchecked | Bundle::Foreign(_) | Bundle::Invalid(_) => return None,
        };
        let promoted = match &observed.promotion {
            Bundle::Absent => return Some(Self::Promotion(signed.payload)),
            Bundle::Valid(promoted) if promoted.key == key.digest() => promoted,
            Bundle::Valid(_) | Bundle::Unchecked | Bundle::Foreign(_) | Bundle::Invalid(_) => return None,
        };
        let output = &run.spec.output.persistent_volume_claim;
        Some(Self::Recorded(Box::new(Target {
            claim: output.claim_name.clone(),
            path: join(&[&output.sub_path, &run_uid, "model"]),
            model: model.digest,
            ring: observed.object.spec.rollout_ring,
            fingerprint,
            oms_bundle: bundle::oms(&run_uid),
            promotion: promoted.digest,
            promotion_bundle: promotion_name(&run_uid, key),
            run_uid,
        })))
    }
}
