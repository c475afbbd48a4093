//! The promotion statement: why a model may be served in a ring. Pure.
//!
//! An in-toto statement of our own predicate type. Its subject is the model digest. It holds neither times nor places,
//! so that the same reasons give the same bytes and the same [`PromotionDigest`]. Decimals are strings, digit for digit
//! as the status of the evaluations shows them.

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

/// The rings by their real names, in the order in which a model moves forward.
pub const RINGS: [&str; 5] = ["0A_base_", "0B_base_", "0C_base_", "0D_base_", "main"];

/// Why a model may be served in a ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Promotion {
    /// The model.
    pub model: ModelDigest,
    /// What is said about it.
    pub reasons: Reasons,
}

/// What a promotion statement says about its model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Reasons {
    /// The ring that the model may be served in, by its real name, such as `0D_base_`.
    pub ring: String,
    /// The payload of the OMS bundle that vouches for the model's files.
    pub oms_payload: OmsPayloadDigest,
    /// How the model came about.
    pub training: Training,
    /// The evaluations that passed, in the order of their names.
    pub evaluations: Vec<Evaluation>,
}

/// How a model came about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Training {
    /// The uid of the training run.
    pub run_uid: String,
    /// Its resolved configuration.
    pub config_digest: ConfigDigest,
    /// Its data, by name.
    pub data: BTreeMap<String, DataDigest>,
    /// The image that really ran, as the node names it; empty, and absent from the statement, where its pod was gone before
    /// anyone saw it run.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub image_id: String,
}

/// An evaluation that passed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Evaluation {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// The numbers that it reported.
    pub report_digest: ReportDigest,
    /// The gates that it was judged by.
    pub gates_digest: GatesDigest,
    /// Its data, by name.
    pub data: BTreeMap<String, DataDigest>,
    /// The image that really ran, as the node names it; empty, and absent from the statement, where its pod was gone before
    /// anyone saw it run.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub image_id: String,
    /// Its gates and their verdicts, in the order of its spec.
    pub gates: Vec<Gate>,
}

/// A gate and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Gate {
    /// The metric.
    pub metric: String,
    /// The least value allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<String>,
    /// The greatest value allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<String>,
    /// The confidence of the one-sided bounds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confidence: Option<String>,
    /// What was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Over how many items.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n: Option<u64>,
    /// The lower bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lower: Option<String>,
    /// The upper bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upper: Option<String>,
    /// The verdict, such as `Passed`.
    pub verdict: String,
}

impl Promotion {
    /// The bytes to sign. Evaluations are put in the order of their names (then uids), so that it does not matter in
    /// which order somebody lists them.
    pub fn payload(&self) -> Vec<u8> {
        let mut reasons = self.reasons.clone();
        reasons.evaluations.sort_by(|a, b| (&a.name, &a.uid).cmp(&(&b.name, &b.uid)));
        statement::write("model", self.model.0, PREDICATE_TYPE, &reasons)
    }

    /// The digest of [`Promotion::payload`].
    pub fn digest(&self) -> PromotionDigest {
        payload_digest(&self.payload())
    }

    /// Reads a payload, which somebody must have verified before.
    ///
    /// # Errors
    /// Why it is no promotion statement.
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

/// The digest of a promotion statement's payload.
pub fn payload_digest(payload: &[u8]) -> PromotionDigest {
    PromotionDigest(Sha256::of(payload))
}
