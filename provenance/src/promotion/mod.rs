//! The promotion statement: the evidence that allows a model in a ring. Pure.
//!
//! It is an in-toto statement with a predicate type of this project. Its subject is the model digest. It holds what a verifier
//! needs to judge again: each gate with its limits, and the measurements. Times are those at which the evidence was complete,
//! not the time of signing, so that the same evidence gives the same bytes and the same [`PromotionDigest`]. Decimals are
//! strings, so that no reader rounds them.

mod evaluation;
mod key;
mod training;

use serde::{Deserialize, Serialize};

pub use self::{
    evaluation::{Comparison, Divided, Evaluation, Gate, Measured, Read, Reference},
    key::{PolicyKey, PromotionKey},
    training::{Adopted, Attested, Base, Reported, Training},
};
use crate::{
    digest::{ModelDigest, OmsPayloadDigest, PromotionDigest, Sha256},
    statement,
};

/// The predicate type of promotion statements.
pub const PREDICATE_TYPE: &str = "https://codex-ml.dev/promotion/v2";
/// The predicate type of statements that hold no limits and no measurements.
const FORMER: &str = "https://codex-ml.dev/promotion/v1";

/// A statement that allows a model in a ring.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Promotion {
    /// The model.
    pub model: ModelDigest,
    /// The ring and the evidence.
    pub reasons: Reasons,
}

/// The predicate of a promotion statement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Reasons {
    /// Name of the ring that the model is allowed in, such as `0D_base_`.
    pub ring: String,
    /// Namespace of the TrainingRun and the Evaluations.
    pub namespace: String,
    /// Digest of the payload of the OMS bundle over the files of the model.
    pub oms_payload: OmsPayloadDigest,
    /// The training of the model.
    pub training: Training,
    /// Evaluations that passed, ordered by name.
    pub evaluations: Vec<Evaluation>,
    /// Policies with a rule for the ring, all of which held when the promotion was signed. Absent if no policy has one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<HeldPolicy>,
    /// Earlier promotions of the model that these rules require. Absent if no rule requires one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier: Vec<Earlier>,
    /// Sign-offs for exactly this model and these reports, when the promotion was signed. Absent if nobody has signed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sign_offs: Vec<SignOff>,
    /// Parity that shadows with this model had proved, as these rules demand, when the promotion was signed. Absent if no rule
    /// demands it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parity: Vec<Parity>,
}

/// A policy whose rule for the ring held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeldPolicy {
    /// Kind of the policy: ClusterPromotionPolicy or PromotionPolicy.
    pub kind: String,
    /// Name of the policy.
    pub name: String,
    /// Uid of the policy.
    pub uid: String,
    /// SHA-256 of the canonical JSON of its rule for the ring.
    pub rule: Sha256,
}

/// An earlier promotion of the same model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Earlier {
    /// Ring of the promotion.
    pub ring: String,
    /// Digest of its statement.
    pub promotion: PromotionDigest,
    /// Time at which its ConfigMap was created (RFC 3339).
    pub since: String,
}

/// The comparison of a shadow that serves the same model with the ReasoningPod whose requests it was given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Parity {
    /// The ReasoningPod that was the shadow.
    pub shadow: Object,
    /// Name of the ReasoningPod that it was compared with.
    pub of: String,
    /// Model of that ReasoningPod. Absent if it was not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of_model: Option<ModelDigest>,
    /// Number of requests that were compared.
    pub compared: u64,
    /// Number of compared requests with the same final answer.
    pub agreed: u64,
    /// Greatest share of requests that the shadow may answer differently, as its spec stated it.
    pub max_divergence: String,
    /// Upper bound of the share of requests that it answers differently, by Clopper and Pearson with confidence 0.99, rounded up.
    pub bound: String,
}

/// The sign-off of a person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SignOff {
    /// Name of the SignOff.
    pub name: String,
    /// Uid of the SignOff.
    pub uid: String,
    /// User who signed.
    pub by: String,
    /// Groups of the user that the SignOff names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// Whether the API server authenticated the user when the SignOff was created, under admission policies that were in place.
    /// Otherwise another account, such as one of GitOps, created it for the user.
    pub authenticated: bool,
    /// Why the user signed.
    pub reason: String,
    /// Digest of the report that the sign-off names.
    pub report_digest: Sha256,
}

/// A Kubernetes object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Object {
    /// Name of the object.
    pub name: String,
    /// Uid of the object.
    pub uid: String,
}

impl Promotion {
    /// Returns the bytes to sign. Evaluations are sorted by name and uid, so that their order in a spec does not matter.
    pub fn payload(&self) -> Vec<u8> {
        let mut reasons = self.reasons.clone();
        reasons.evaluations.sort_by(|a, b| (&a.name, &a.uid).cmp(&(&b.name, &b.uid)));
        reasons.sign_offs.sort_by(|a, b| (&a.name, &a.uid).cmp(&(&b.name, &b.uid)));
        reasons.parity.sort_by(|a, b| (&a.shadow.name, &a.shadow.uid).cmp(&(&b.shadow.name, &b.shadow.uid)));
        statement::write("model", self.model.0, PREDICATE_TYPE, &reasons)
    }

    /// Returns the digest of [`Promotion::payload`].
    pub fn digest(&self) -> PromotionDigest {
        payload_digest(&self.payload())
    }

    /// Reads the payload of a verified bundle.
    ///
    /// # Errors
    /// Fails if the payload is not a promotion statement.
    pub fn read(payload: &[u8]) -> Result<Self, String> {
        if statement::predicate_type(payload).as_deref() == Some(FORMER) {
            return Err(format!(
                "its predicate type is {FORMER:?}, which holds neither limits nor measurements to check: update the controller, \
                 which then signs a new one; status.promotion of the ReasoningPod names its ConfigMap"
            ));
        }
        let (model, reasons): (_, Reasons) = statement::read(payload, PREDICATE_TYPE)?;
        if reasons.training.reported.is_some() == reasons.training.attested.data.is_some() {
            return Err("it must state the data of the training either as reported or as attested".to_owned());
        }
        Ok(Self { model: ModelDigest(model), reasons })
    }

    /// The key of this promotion. The name of its bundle derives from [`PromotionKey::digest`].
    pub fn key(&self) -> PromotionKey {
        let evaluations = &self.reasons.evaluations;
        PromotionKey {
            predicate_type: PREDICATE_TYPE,
            model: self.model,
            ring: self.reasons.ring.clone(),
            evaluations: evaluations.iter().map(|passed| (passed.report_digest, passed.gates_digest)).collect(),
            policies: self.reasons.policies.iter().map(PolicyKey::of).collect(),
        }
    }
}

/// Returns the digest of the payload of a promotion statement.
pub fn payload_digest(payload: &[u8]) -> PromotionDigest {
    PromotionDigest(Sha256::of(payload))
}
