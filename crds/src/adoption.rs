//! Adoptions: a TrainingRun that takes the model of a former run instead of training it again. No I/O.

use codex_provenance::{ModelDigest, Sha256};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A former run with the same inputs, and whether its model was adopted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AdoptionStatus {
    /// Name of the run that computed the model.
    #[schemars(length(max = 253))]
    pub run: String,
    /// Uid of that run.
    #[schemars(length(max = 64))]
    pub uid: String,
    /// Digest of its model.
    pub model: ModelDigest,
    /// SHA-256 of the signed SLSA provenance that records it.
    pub provenance: Sha256,
    /// Image that it ran, by digest.
    #[schemars(length(max = 1024))]
    pub image_id: String,
    /// Time at which the model was first recorded, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub completed_at: Option<String>,
    /// Why the model was not adopted, so that this run trains. Absent if it was adopted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub refused: Option<String>,
}

impl AdoptionStatus {
    /// Whether the model was adopted.
    pub fn is_done(&self) -> bool {
        self.refused.is_none()
    }
}
