//! How strong the evidence of an evaluation is. Pure.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Whether admission policies protected an evaluation from its start to its verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum EvidenceStrength {
    /// Not shown to be protected: an editor of the namespace could have forged the report.
    Weak,
    /// Every policy and binding was in place, unchanged, from before the Job was created until the verdict.
    Strong,
}

impl EvidenceStrength {
    /// Returns the name as statements and status write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Weak => "weak",
            Self::Strong => "strong",
        }
    }
}

impl fmt::Display for EvidenceStrength {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
