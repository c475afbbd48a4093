//! Reports of servers. No I/O.

use codex_provenance::{ModelDigest, PromotionDigest};
use serde::{Deserialize, Serialize};

use crate::{Failure, Stage};

/// Cumulative state of a server.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServingState {
    /// Stage of the work. [`Stage::Running`] once the model is verified and loaded and the server answers.
    pub stage: Stage,
    /// Digest of the model that the server holds in memory, after both bundles were verified against exactly these bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified: Option<ModelDigest>,
    /// Digest of the promotion statement that the server verified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promotion: Option<PromotionDigest>,
    /// Reason why the server refuses to serve. `VerificationFailed` names the file, the bundle or the ring.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
}
