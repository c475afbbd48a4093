//! Data files and where they come from. No I/O.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// One data file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("has(self.sha256) || has(self.source.synthetic)", "data[].sha256 is required unless the source is synthetic: write the SHA-256 of the file, 64 lower-case hexadecimal digits")
)]
pub struct DataItem {
    /// The name of the file within this object: lower-case letters, digits and dashes.
    #[schemars(length(min = 1, max = 40))]
    #[x_kube(validation = crate::rules::text("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')", "name must have lower-case letters, digits and inner dashes only, such as train"))]
    pub name: String,
    /// SHA-256 of the file, 64 lower-case hexadecimal digits. The pod refuses a file that differs. Required but for synthetic data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    #[x_kube(validation = crate::rules::text("self.matches('^[0-9a-f]{64}$')", "sha256 must be 64 lower-case hexadecimal digits, as sha256sum prints them"))]
    pub sha256: Option<String>,
    /// Where the file comes from: exactly one of configMap, persistentVolumeClaim and synthetic.
    pub source: DataSource,
}

/// Where a data file comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("(has(self.configMap) ? 1 : 0) + (has(self.persistentVolumeClaim) ? 1 : 0) + (has(self.synthetic) ? 1 : 0) == 1", "data[].source needs exactly one of configMap, persistentVolumeClaim and synthetic")
)]
pub struct DataSource {
    /// A key of a ConfigMap in this namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map: Option<ConfigMapKey>,
    /// A file on a PersistentVolumeClaim in this namespace; it is mounted read-only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim: Option<VolumeClaimPath>,
    /// Problems that the pod generates: the same task, seed and count give the same bytes on every machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub synthetic: Option<Synthetic>,
}

/// A key of a ConfigMap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConfigMapKey {
    /// The ConfigMap's name.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = crate::rules::subdomain("name", "training-data"))]
    pub name: String,
    /// The key that holds the file.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = crate::rules::text("self.matches('^[-._a-zA-Z0-9]+$')", "key must have letters, digits, dashes, dots and underscores only, such as train.jsonl"))]
    pub key: String,
}

/// A file on a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeClaimPath {
    /// The PersistentVolumeClaim's name.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = crate::rules::subdomain("claimName", "training-data"))]
    pub claim_name: String,
    /// The file's path on the volume, relative, without `..`.
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(validation = crate::rules::text("!self.startsWith('/') && !self.split('/').exists(part, part == '..')", "path must be relative to the volume and have no .., such as data/train.jsonl"))]
    pub path: String,
}

/// Generated problems.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Synthetic {
    /// The task: arithmetic, word-problems, arithmetic-5, multiplication, word-problems-3 or arithmetic-padded.
    #[schemars(length(min = 1, max = 40))]
    pub task: String,
    /// The seed of the generator.
    #[schemars(with = "i64", range(min = 0, max = 9_007_199_254_740_991_i64))]
    pub seed: u64,
    /// How many problems to generate.
    #[schemars(with = "i64", range(min = 1, max = 10_000_000))]
    pub count: u64,
}
