//! What a server says. No I/O.

use codex_provenance::{ModelDigest, PromotionDigest};
use serde::{Deserialize, Serialize};

use crate::{Failure, Stage};

/// A server's cumulative state.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServingState {
    /// How far the work is; [`Stage::Running`] once it verified, loaded and answers.
    pub stage: Stage,
    /// The digest of the bytes it holds in memory, once both bundles were checked against exactly those.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified: Option<ModelDigest>,
    /// The digest of the promotion statement that it checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promotion: Option<PromotionDigest>,
    /// Why it refuses to serve: `VerificationFailed` names the file, the bundle or the ring.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
}
