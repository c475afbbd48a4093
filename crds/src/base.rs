//! The base of a run: the model whose weights training starts from. No I/O.

use codex_provenance::{ModelDigest, Sha256};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{ConfigMapKey, VolumeClaimFolder};

/// Model whose weights a run starts from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("(has(self.persistentVolumeClaim) ? 1 : 0) + (has(self.trainingRun) ? 1 : 0) + (has(self.huggingFace) ? 1 : 0) == 1", "spec.base must have exactly one of persistentVolumeClaim, trainingRun and huggingFace"),
    validation = ("!has(self.trainingRun) || !has(self.signedBy)", "spec.base.signedBy must be absent with spec.base.trainingRun: the model of a TrainingRun has no model.sig")
)]
pub struct Base {
    /// PersistentVolumeClaim of this namespace, and the folder of the model on it: config.json, weights as safetensors, and the
    /// tokenizer, as Hugging Face lays them out. It is mounted read-only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim: Option<VolumeClaimFolder>,
    /// TrainingRun of this namespace whose model is the base. Training starts once that model is complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub training_run: Option<BaseRun>,
    /// Repository of Hugging Face, or of a mirror of it. The trainer downloads the model into the volume of the output before it
    /// trains: configuration, tokenizer and weights as safetensors, and no file that could run code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hugging_face: Option<HuggingFace>,
    /// Public key by which the base must be signed. The signature is model.sig in the folder or the repository, as
    /// `model_signing` writes it. A base without it, or with other files than the signed ones, fails the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signed_by: Option<BaseSigner>,
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

/// A model of Hugging Face or a mirror of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("!has(self.tokenSecret) || !has(self.endpoint) || self.endpoint.startsWith('https://')", "spec.base.huggingFace.endpoint must begin with https:// if tokenSecret is set, so that the token is not sent in clear text")
)]
pub struct HuggingFace {
    /// Owner and name of the repository, such as HuggingFaceTB/SmolLM2-135M-Instruct.
    #[schemars(length(min = 3, max = 193))]
    #[x_kube(validation = crate::rules::text("repository", "self.matches('^[A-Za-z0-9_][-._A-Za-z0-9]{0,95}/[A-Za-z0-9_][-._A-Za-z0-9]{0,95}$') && !self.contains('..') && !self.contains('./') && !self.endsWith('.')", "an owner and a name, such as HuggingFaceTB/SmolLM2-135M-Instruct"))]
    pub repository: String,
    /// Branch, tag or commit. Only a commit always means the same files. The first attempt of a run records the commit of a branch
    /// or tag, and later attempts keep it.
    #[schemars(length(min = 1, max = 255))]
    #[x_kube(validation = crate::rules::text("revision", "self.matches('^[A-Za-z0-9_][-._/+A-Za-z0-9]*$') && !self.contains('..') && !self.contains('//') && !self.endsWith('/') && !self.endsWith('.')", "a branch, a tag or a commit, such as main"))]
    pub revision: String,
    /// Address of the hub. Defaults to that of Hugging Face, or to the variable `HF_ENDPOINT` in spec.pod.env.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 8, max = 512))]
    #[x_kube(validation = crate::rules::text("endpoint", "self.matches('^https?://[-.:A-Za-z0-9]+(/[-._~/A-Za-z0-9]*)?$')", "an address without a user, a query or a fragment, such as https://huggingface.co"))]
    pub endpoint: Option<String>,
    /// Secret of this namespace, and the key that holds the token for a private or gated repository. The trainer gets it as the
    /// variable `HF_TOKEN`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_secret: Option<SecretKey>,
}

/// A key of a Secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretKey {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = crate::rules::subdomain("name", "hugging-face"))]
    pub name: String,
    /// Key of the Secret that holds the value.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = crate::rules::text("key", "self.matches('^[-._a-zA-Z0-9]+$')", "letters, digits, dashes, dots and underscores, such as token"))]
    pub key: String,
}

/// The key that signed a base.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct BaseSigner {
    /// ConfigMap of this namespace, and the key of it that holds the public key in PEM format.
    pub config_map: ConfigMapKey,
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
    /// Source of the base, from spec.base: PersistentVolumeClaim with claim and path, TrainingRun with its name, or Hugging Face
    /// with repository and commit.
    #[schemars(length(max = 1024))]
    pub source: String,
    /// Fingerprint of the key of spec.base.signedBy, by which the base is signed. Absent if no signature is required.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signer: Option<Sha256>,
}
