//! What an evaluator says. No I/O.

use std::collections::BTreeMap;

use codex_provenance::ModelDigest;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{DataFile, Failure, Stage};

/// An evaluator's cumulative state.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EvaluationState {
    /// How far the work is.
    pub stage: Stage,
    /// Problems that have been answered.
    #[serde(default)]
    pub done: u64,
    /// Problems that there are.
    #[serde(default)]
    pub total: u64,
    /// The digest of the model, hashed again by this pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_digest: Option<ModelDigest>,
    /// The problems (and the baseline) as they were read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<DataFile>,
    /// The numbers by metric name, complete only at [`Stage::Finished`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metrics: BTreeMap<String, Measurement>,
    /// Why the evaluator gave up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
}

/// A metric as it was counted: enough for an exact bound, never a bare ratio.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "camelCase", deny_unknown_fields)]
pub enum Measurement {
    /// A share of items, such as `exact_match`.
    Share {
        /// Items that hold.
        successes: u64,
        /// Items, attempted or not.
        n: u64,
    },
    /// Won, tied and lost comparisons, such as `reasoning.win_rate`; a tie counts half.
    Duel {
        /// The model is right and the baseline is not.
        wins: u64,
        /// Both are right or both are wrong.
        ties: u64,
        /// The baseline is right and the model is not.
        losses: u64,
    },
    /// A mean over items of values in [0, 1], such as `trace_coverage`.
    Mean {
        /// Items.
        n: u64,
        /// Σx; JSON knows no NaN, so what is not finite travels as null.
        sum: Option<f64>,
        /// Σx².
        sum_of_squares: Option<f64>,
    },
}
