//! Reports of evaluators. No I/O.

use std::collections::BTreeMap;

use codex_provenance::ModelDigest;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{DataFile, Failure, Stage};

/// Cumulative state of an evaluator.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EvaluationState {
    /// Stage of the work.
    pub stage: Stage,
    /// Number of problems answered.
    #[serde(default)]
    pub done: u64,
    /// Number of all problems.
    #[serde(default)]
    pub total: u64,
    /// Digest that the evaluator computed from the files of the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_digest: Option<ModelDigest>,
    /// Data files that were read: the problems and, if there is one, the baseline.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<DataFile>,
    /// Measurements by metric name. Complete only at [`Stage::Finished`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metrics: BTreeMap<String, Measurement>,
    /// Reason why the evaluator failed.
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
