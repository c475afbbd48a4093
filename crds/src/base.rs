//! The base of a run: the model whose weights training starts from. No I/O.

use codex_provenance::ModelDigest;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::VolumeClaimFolder;

/// Model whose weights a run starts from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("has(self.persistentVolumeClaim) != has(self.trainingRun)", "spec.base must have exactly one of persistentVolumeClaim and trainingRun")
)]
pub struct Base {
    /// PersistentVolumeClaim of this namespace, and the folder of the model on it: config.json, weights as safetensors, and the
    /// tokenizer, as Hugging Face lays them out. It is mounted read-only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim: Option<VolumeClaimFolder>,
    /// TrainingRun of this namespace whose model is the base. Training starts once that model is complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub training_run: Option<BaseRun>,
    /// Model digest that the base must have, as 64 lower-case hexadecimal digits. A base with another digest fails the run.
    /// Without it, the digest that the trainer reports first is recorded in status.base and required from then on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    #[x_kube(validation = crate::rules::digest())]
    pub digest: Option<String>,
}

/// A TrainingRun whose model is a base.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct BaseRun {
    /// Name of the TrainingRun. It must be another run than this one.
    #[schemars(length(min = 1, max = 52))]
    #[x_kube(validation = crate::rules::subdomain("name", "cot-starter"))]
    pub name: String,
}

/// The base that a run started from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BaseStatus {
    /// Model digest that the trainer computed from the files of the base. Every later attempt must find the same.
    pub digest: ModelDigest,
    /// First twelve digits of the digest.
    #[schemars(length(max = 12))]
    pub short: String,
    /// Source of the base, from spec.base: PersistentVolumeClaim with claim and path, or TrainingRun with its name.
    #[schemars(length(max = 1024))]
    pub source: String,
}
