//! `data_report.json`: what a run trains on. Pure.

use codex_provenance::DataDigest;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The name of [`DataReport`]'s file.
pub const FILE: &str = "data_report.json";

/// The content of `data_report.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "data_report.json")]
pub struct DataReport {
    /// The sources of training data, in the order of the configuration.
    pub sources: Vec<SourceReport>,
    /// How prompts are changed; absent if they are not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub augmentation: Option<AugmentationReport>,
}

/// Changed versions of prompts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AugmentationReport {
    /// Share of the examples whose prompts are changed.
    pub probability: f64,
    /// Share of the words of a prompt that are changed.
    pub rate: f64,
    /// Number of changed versions of each record.
    pub variants: u32,
    /// What is changed.
    pub kinds: Vec<String>,
}

/// A source of training data. Of `records`, `other_languages`, `blocked`, `filtered`, `duplicates` and `held_out` are left out, in this
/// order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SourceReport {
    /// The name of the data.
    pub name: String,
    /// SHA-256 of the file.
    pub sha256: DataDigest,
    /// The size of the file in bytes.
    pub size: u64,
    /// Number of records of the file.
    pub records: u64,
    /// Number of records in other languages than `data.languages`.
    pub other_languages: u64,
    /// Number of records that a safety rule blocks.
    #[serde(default)]
    pub blocked: u64,
    /// Number of other records of which a safety rule replaced something.
    #[serde(default)]
    pub redacted: u64,
    /// Number of records that the plugin of the run dropped.
    #[serde(default)]
    pub filtered: u64,
    /// Number of records that repeat an earlier one, in this source or one before it.
    pub duplicates: u64,
    /// Number of records that are held out for validation.
    pub held_out: u64,
    /// Number of records that are trained on.
    pub trained: u64,
    /// Number of their tokens.
    pub tokens: u64,
    /// Number of tokens of the longest of them.
    pub longest: u64,
    /// Share of the examples that are drawn from this source.
    pub share: f64,
}
