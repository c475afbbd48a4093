//! Reports of evaluators. No I/O.

use std::collections::BTreeMap;

use codex_provenance::{DataDigest, Device, ModelDigest, golden::Golden};
use codex_verdict::Measurement;
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
    /// Data files that were read: the problems, the baseline if there is one, and the outcomes of the Evaluations that gates
    /// compare with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<DataFile>,
    /// Measurements by metric name. Complete only at [`Stage::Finished`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metrics: BTreeMap<String, Measurement>,
    /// SHA-256 of the file of the outcome of each problem, once it is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcomes: Option<DataDigest>,
    /// SHA-256 of the page for people, once it is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page: Option<DataDigest>,
    /// What the model generated for a few of the problems. Servers generate it again before they are ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub golden_tokens: Option<Golden>,
    /// Device that computes. `None` until it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<Device>,
    /// Reason why the evaluator failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
}
