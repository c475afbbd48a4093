//! `run_metadata.json` and `dataset_checksums.json`: which run this is, and on what data. Pure.

use std::{collections::BTreeMap, path::PathBuf};

use codex_provenance::{ConfigDigest, DataDigest, Sha256};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The name of [`RunMetadata`]'s file.
pub const FILE: &str = "run_metadata.json";
/// The name of [`Checksums`]' file.
pub const CHECKSUMS_FILE: &str = "dataset_checksums.json";

/// `run_metadata.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "run_metadata.json")]
pub struct RunMetadata {
    /// Who and what.
    pub metadata: Metadata,
    /// The run and its attempt, as `run-attempt`.
    pub session_id: String,
    /// Where this file lies.
    pub artifacts_dir: PathBuf,
    /// The digest of the resolved configuration.
    pub config_digest: ConfigDigest,
    /// SHA-256 of the canonical `{files, name}`, the files those of `dataset_checksums.json`.
    pub dataset_version: Sha256,
    /// The five knobs by their paths.
    pub control_surface: ControlSurface,
    /// The same by short names.
    pub knobs: Knobs,
}

/// Who and what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Metadata {
    /// Who answers for the run.
    pub owner: String,
    /// The template it was composed from.
    pub template: String,
    /// The object's uid in a cluster, the output directory's name elsewhere.
    pub run_id: String,
}

/// The five knobs by their paths; null where the run has none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ControlSurface {
    /// What is captured: `disabled`, `weights` or `activations`.
    pub trace_mode: String,
    /// The curriculum.
    #[serde(rename = "curriculum.preset")]
    pub curriculum_preset: Option<String>,
    /// The evaluation.
    #[serde(rename = "evaluation.preset")]
    pub evaluation_preset: Option<String>,
    /// The deployment.
    #[serde(rename = "deployment.preset")]
    pub deployment_preset: Option<String>,
    /// The ring; none here, for a run does not depend on it.
    #[serde(rename = "metadata.rollout_ring")]
    pub rollout_ring: Option<String>,
}

/// The knobs by short names; null where the run has none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Knobs {
    /// What is captured: `disabled`, `weights` or `activations`.
    pub trace_mode: String,
    /// The curriculum.
    pub curriculum_preset: Option<String>,
    /// The evaluation.
    pub evaluation_preset: Option<String>,
    /// The deployment.
    pub deployment_preset: Option<String>,
}

/// `dataset_checksums.json`: SHA-256 of each file of data by its name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(title = "dataset_checksums.json")]
pub struct Checksums(pub BTreeMap<String, DataDigest>);

impl Checksums {
    /// The version of the data under this name: SHA-256 of the canonical `{files, name}`.
    ///
    /// # Errors
    /// When JSON cannot carry it.
    pub fn version(&self, name: &str) -> Result<Sha256, serde_json::Error> {
        #[derive(Serialize)]
        struct Version<'a> {
            name: &'a str,
            files: &'a Checksums,
        }
        serde_json_canonicalizer::to_vec(&Version { name, files: self }).map(Sha256::of)
    }
}
