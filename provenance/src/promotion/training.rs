//! What a promotion statement says about the training of a model. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Object;
use crate::{
    device::Device,
    digest::{ConfigDigest, DataDigest, ModelDigest, Sha256},
};

/// The training of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Training {
    /// The TrainingRun.
    pub run: Object,
    /// What the controller knows of the training, and what it believes.
    pub attested: Attested,
    /// What the trainer said of itself. Its image may be any that the author of the TrainingRun chose. Absent if the controller's
    /// list of attested images names the image; `attested` then holds the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reported: Option<Reported>,
    /// The model from which the training started; absent if it started from initial weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<Base>,
    /// The device that computed the model, as the trainer said; attested if `data` is. Absent if the controller recorded none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<Device>,
    /// Digest of the adapter in `artifacts/adapter/` of the run, as the trainer said; attested if `data` is. Absent if it did not train
    /// an adapter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<ModelDigest>,
    /// The training that computed the model, if the TrainingRun adopted the model of a former one and trained nothing itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adopted: Option<Adopted>,
}

impl Training {
    /// Returns the TrainingRun that computed the model.
    pub fn computed_by(&self) -> &Object {
        self.adopted.as_ref().map_or(&self.run, |adopted| &adopted.run)
    }

    /// Returns the image that computed the model, as the node reported it.
    pub fn computing_image(&self) -> &str {
        let adopted = self.adopted.as_ref().map(|adopted| adopted.image_id.as_str());
        adopted.unwrap_or(&self.attested.image_id)
    }

    /// Returns the time at which the controller first recorded the model (RFC 3339), if that is known.
    pub fn computed_at(&self) -> Option<&str> {
        let own = self.attested.completed_at.as_ref();
        self.adopted.as_ref().map_or(own, |adopted| adopted.completed_at.as_ref()).map(String::as_str)
    }

    /// Returns the digests of the data files that the trainer read, by name.
    pub fn data(&self) -> Option<&BTreeMap<String, DataDigest>> {
        self.reported.as_ref().map(|reported| &reported.data).or(self.attested.data.as_ref())
    }

    /// Whether what the trainer said is attested: the controller's list of attested images names its image.
    pub fn is_attested(&self) -> bool {
        self.reported.is_none()
    }
}

/// What the controller knows of a training, and what it believes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Attested {
    /// Digest of the resolved configuration that the trainer was given.
    pub config_digest: ConfigDigest,
    /// Image that ran, as the node reported it. Empty, and absent from the statement, if the pod was gone before the controller
    /// observed it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub image_id: String,
    /// Time at which the controller recorded the model (RFC 3339), if its status records it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<String>,
    /// Digests of the data files that the trainer read, by name, if the controller's list of attested images names its image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<BTreeMap<String, DataDigest>>,
}

/// What a trainer said of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Reported {
    /// Digests of the data files that it read, by name.
    pub data: BTreeMap<String, DataDigest>,
}

/// The model from which a training started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Base {
    /// Digest of the model.
    pub model: ModelDigest,
    /// Where it came from, such as a path on a claim, or a repository of a model hub and its commit, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Fingerprint of the key whose signature of the base the TrainingRun required, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signer: Option<Sha256>,
}

/// The training of a former TrainingRun whose model another one adopted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Adopted {
    /// The TrainingRun that computed the model.
    pub run: Object,
    /// Image that computed it, as the node reported it.
    pub image_id: String,
    /// Time at which the controller recorded the model of that run (RFC 3339), if it was recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<String>,
    /// SHA-256 of the SLSA provenance that proved it.
    pub provenance: Sha256,
}
