//! The promotion statement: the evidence that allows a model in a ring. Pure.
//!
//! It is an in-toto statement with a predicate type of this project. Its subject is the model digest. It holds neither times
//! nor locations, so that the same evidence gives the same bytes and the same [`PromotionDigest`]. Decimals are strings,
//! digit for digit as in the status of the evaluations.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    canonical::canonical,
    digest::{
        ConfigDigest, DataDigest, GatesDigest, ModelDigest, OmsPayloadDigest, PromotionDigest, ReportDigest, Sha256,
    },
    statement,
};

/// The predicate type of promotion statements.
pub const PREDICATE_TYPE: &str = "https://codex-ml.dev/promotion/v1";

/// A statement that allows a model in a ring.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// Digest of the payload of the OMS bundle over the files of the model.
    pub oms_payload: OmsPayloadDigest,
    /// The training of the model.
    pub training: Training,
    /// Evaluations that passed, ordered by name.
    pub evaluations: Vec<Evaluation>,
}

/// The training of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Training {
    /// Uid of the TrainingRun.
    pub run_uid: String,
    /// Digest of the resolved configuration.
    pub config_digest: ConfigDigest,
    /// Digests of the data files, by name.
    pub data: BTreeMap<String, DataDigest>,
    /// Image that ran, as the node reported it. Empty, and absent from the statement, if the pod was gone before the controller
    /// observed it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub image_id: String,
}

/// An evaluation that passed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Evaluation {
    /// Name of the Evaluation.
    pub name: String,
    /// Uid of the Evaluation.
    pub uid: String,
    /// Digest of the reported measurements.
    pub report_digest: ReportDigest,
    /// Digest of the gates.
    pub gates_digest: GatesDigest,
    /// Digests of the data files, by name.
    pub data: BTreeMap<String, DataDigest>,
    /// Image that ran, as the node reported it. Empty, and absent from the statement, if the pod was gone before the controller
    /// observed it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub image_id: String,
    /// Gates and their verdicts, in the order of the spec.
    pub gates: Vec<Gate>,
}

/// A gate and its verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Gate {
    /// Name of the metric.
    pub metric: String,
    /// Lowest value that passes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<String>,
    /// Highest value that passes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<String>,
    /// Confidence level of the one-sided bounds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confidence: Option<String>,
    /// Measured value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Number of scored items.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n: Option<u64>,
    /// One-sided lower bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lower: Option<String>,
    /// One-sided upper bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upper: Option<String>,
    /// Verdict, such as `Passed`.
    pub verdict: String,
}

impl Promotion {
    /// Returns the bytes to sign. Evaluations are sorted by name and uid, so that their order in a spec does not matter.
    pub fn payload(&self) -> Vec<u8> {
        let mut reasons = self.reasons.clone();
        reasons.evaluations.sort_by(|a, b| (&a.name, &a.uid).cmp(&(&b.name, &b.uid)));
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
        let (model, reasons) = statement::read(payload, PREDICATE_TYPE)?;
        Ok(Self { model: ModelDigest(model), reasons })
    }

    /// The key of this promotion. The name of its bundle derives from [`PromotionKey::digest`].
    pub fn key(&self) -> PromotionKey {
        let evaluations = &self.reasons.evaluations;
        PromotionKey {
            model: self.model,
            ring: self.reasons.ring.clone(),
            evaluations: evaluations.iter().map(|passed| (passed.report_digest, passed.gates_digest)).collect(),
        }
    }
}

/// Identifies a promotion: the model, the ring, and the report and gates digests of its evaluations. Names, uids and
/// images do not count.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PromotionKey {
    /// The model.
    pub model: ModelDigest,
    /// The ring.
    pub ring: String,
    /// Report and gates of each evaluation, in any order.
    pub evaluations: Vec<(ReportDigest, GatesDigest)>,
}

impl PromotionKey {
    /// SHA-256 of its canonical JSON; the order of the evaluations does not count.
    pub fn digest(&self) -> Sha256 {
        let mut sorted = self.clone();
        sorted.evaluations.sort_unstable();
        Sha256::of(canonical(&sorted))
    }
}

/// Returns the digest of the payload of a promotion statement.
pub fn payload_digest(payload: &[u8]) -> PromotionDigest {
    PromotionDigest(Sha256::of(payload))
}
