//! Data files and where they come from. No I/O.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// A data file, its expected digest and its source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("has(self.sha256) || has(self.source.synthetic)", "data[].sha256 is required unless data[].source is synthetic: write the SHA-256 of the file, 64 lower-case hexadecimal digits")
)]
pub struct DataItem {
    /// Name of the file within this object: lower-case letters, digits and inner dashes.
    #[schemars(length(min = 1, max = 40))]
    #[x_kube(validation = crate::rules::text("name", "self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')", "lower-case letters, digits and inner dashes, such as train"))]
    pub name: String,
    /// SHA-256 of the file, as 64 lower-case hexadecimal digits. The pod refuses a file with another digest. Required unless the
    /// source is synthetic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    #[x_kube(validation = crate::rules::text("sha256", "self.matches('^[0-9a-f]{64}$')", "64 lower-case hexadecimal digits, as sha256sum prints them"))]
    pub sha256: Option<String>,
    /// Source of the file: exactly one of configMap, persistentVolumeClaim and synthetic.
    pub source: DataSource,
}

/// Source of a data file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("(has(self.configMap) ? 1 : 0) + (has(self.persistentVolumeClaim) ? 1 : 0) + (has(self.synthetic) ? 1 : 0) == 1", "data[].source must have exactly one of configMap, persistentVolumeClaim and synthetic")
)]
pub struct DataSource {
    /// ConfigMap of this namespace, and the key that holds the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map: Option<ConfigMapKey>,
    /// PersistentVolumeClaim of this namespace, and the path of the file on it. It is mounted read-only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim: Option<VolumeClaimPath>,
    /// Problems that the pod generates. The same task, seed and count give the same bytes on every machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub synthetic: Option<Synthetic>,
}

/// A key of a ConfigMap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConfigMapKey {
    /// Name of the ConfigMap.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = crate::rules::subdomain("name", "training-data"))]
    pub name: String,
    /// Key of the ConfigMap that holds the file.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = crate::rules::text("key", "self.matches('^[-._a-zA-Z0-9]+$')", "letters, digits, dashes, dots and underscores, such as train.jsonl"))]
    pub key: String,
}

/// A file on a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeClaimPath {
    /// Name of the PersistentVolumeClaim.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = crate::rules::subdomain("claimName", "training-data"))]
    pub claim_name: String,
    /// Path of the file on the volume, as a relative path without `..`.
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(validation = crate::rules::text("path", "!self.startsWith('/') && !self.split('/').exists(part, part == '..')", "a path relative to the volume, without .., such as data/train.jsonl"))]
    pub path: String,
}

/// A folder on a volume that pods only read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeClaimFolder {
    /// Name of the PersistentVolumeClaim.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = crate::rules::subdomain("claimName", "base-models"))]
    pub claim_name: String,
    /// Path of the folder on the volume, as a relative path without `..`. Defaults to the root of the volume.
    #[serde(default)]
    #[schemars(length(max = 512))]
    #[x_kube(validation = crate::rules::text("path", "!self.startsWith('/') && !self.split('/').exists(part, part == '..')", "a path relative to the volume, without .., such as llama/model"))]
    pub path: String,
}

/// Generated problems.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Synthetic {
    /// Task to generate problems for: arithmetic, word-problems, arithmetic-5, multiplication, word-problems-3 or arithmetic-padded.
    #[schemars(length(min = 1, max = 40))]
    pub task: String,
    /// Seed of the generator.
    #[schemars(with = "i64", range(min = 0, max = 9_007_199_254_740_991_i64))]
    pub seed: u64,
    /// Number of problems to generate.
    #[schemars(with = "i64", range(min = 1, max = 10_000_000))]
    pub count: u64,
}
