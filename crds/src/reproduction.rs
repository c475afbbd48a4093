//! Reproductions: a TrainingRun that trains another one again, and what it is compared with. No I/O.

use codex_provenance::{ConfigDigest, ModelDigest, Sha256};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::DataStatus;

/// The TrainingRun that a run reproduces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Reproduces {
    /// Name of the TrainingRun. It must be another run than this one, and have the same template, overrides, config, seed, data and
    /// base.
    #[schemars(length(min = 1, max = 52))]
    #[x_kube(validation = crate::rules::subdomain("name", "cot-starter"))]
    pub name: String,
}

/// What computed a model. Equal inputs, programs, engines and kernels give equal bits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ComputationStatus {
    /// SHA-256 of the program.
    pub program: Sha256,
    /// Code path of the engine, such as cpu-f32.
    #[schemars(length(max = 63))]
    pub engine: String,
    /// Architecture and instruction set of the kernels, such as x86_64 avx512.
    #[schemars(length(max = 63))]
    pub kernels: String,
    /// Node of the pod. Absent if the pod was gone before the controller observed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub node: Option<String>,
    /// True if earlier attempts computed with another program, engine or kernels, so that the run cannot be reproduced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mixed: Option<bool>,
}

/// The run that a run reproduces, as its status recorded it when this run began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReproductionStatus {
    /// Uid of the run.
    #[schemars(length(max = 64))]
    pub uid: String,
    /// Digest of its model.
    pub model: ModelDigest,
    /// SHA-256 of its resolved configuration.
    pub config_digest: ConfigDigest,
    /// Digests of the data that it read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub data_digests: Vec<DataStatus>,
    /// Digest of the base that it started from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<ModelDigest>,
    /// What computed its model. Absent if it was trained by a version that recorded none, or on a GPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub computation: Option<ComputationStatus>,
    /// Image that it ran, by digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub image_id: Option<String>,
    /// Image that this run asks for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub image: Option<String>,
    /// True if what its trainer reported is attested.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attested: Option<bool>,
    /// Path of the first file of the model that differs, if the models differ and the files of the other one were recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub first_difference: Option<String>,
    /// Why the run could not be trained again under the recorded conditions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    pub unreproducible: Option<String>,
    /// Name of the ConfigMap with the signed verdict. Absent until the models were compared and are equal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub bundle: Option<String>,
}
