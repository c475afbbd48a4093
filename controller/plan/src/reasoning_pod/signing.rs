//! How far a model and its promotion are signed. Pure.

use codex_provenance::OmsPayloadDigest;
use kube::ResourceExt;

use super::{
    evidence::Evidence,
    observed::{ObservedReasoningPod, Signer},
    target::Target,
    trust::{Chosen, Trust},
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
    pub(crate) fn of(observed: &ObservedReasoningPod, evidence: &Evidence<'_>, trust: Trust<'_>) -> Option<Self> {
        if !evidence.blocks.is_empty() {
            return None;
        }
        let (run, model) = evidence.trained?;
        // A shadow runs on a promotion that was given for other evaluations.
        if evidence.lent.is_none() {
            evidence.key.as_ref()?;
        }
        let Signer::Available { .. } = observed.signer else { return None };
        let run_uid = run.uid()?;
        let (oms_bundle, signed) = match &evidence.oms {
            Chosen::Missing { .. } => return Some(Self::Model),
            Chosen::Recorded { name, signed } => (name, signed),
            Chosen::Unknown | Chosen::Unusable { .. } => return None,
        };
        let (promotion_bundle, promoted) = match &evidence.promotion {
            Chosen::Missing { .. } => return Some(Self::Promotion(signed.payload)),
            Chosen::Recorded { name, signed } => (name, signed),
            Chosen::Unknown | Chosen::Unusable { .. } => return None,
        };
        let output = &run.spec.output.persistent_volume_claim;
        Some(Self::Recorded(Box::new(Target {
            claim: output.claim_name.clone(),
            path: join(&[&output.sub_path, &run_uid, "model"]),
            model: model.digest,
            ring: evidence.lent.unwrap_or(observed.object.spec.rollout_ring),
            oms_signer: signed.signer,
            oms_bundle: oms_bundle.clone(),
            promotion: promoted.digest,
            promotion_signer: promoted.signer,
            promotion_bundle: promotion_bundle.clone(),
            attestations: evidence.attestations(observed),
            root: trust.root([signed.signer, promoted.signer]),
            run_uid,
        })))
    }
}
